//! A follower feeds the log of one channel. It takes the broker's feed, checks the chain, and heals
//! a broken chain from history, or announces a gap.
//!
//! Only this module checks `previous`, for every broker. A healthy log costs no task: the broker's
//! feed calls the follower directly.

mod pending;
mod rate_window;

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::pending::Pending;
use self::rate_window::{RateWindow, Show};
use crate::backbone::{Backbone, torn};
use crate::broker::{BrokerError, Feed, PageLimit, Replay};
use crate::event::{ChannelName, Event, Position};
use crate::inbox::FeedSink;
use crate::log::{Appended, Found, Log};
use crate::patience;
use crate::ring_memory::RingMemory;
use crate::rule::Rule;
use crate::unhealed::Unhealed;

/// Bounds the page of history that one read asks for while healing.
const HEAL_PAGE: PageLimit = PageLimit::events(1000).with_bytes(4 << 20);
/// Bounds the fruitless history reads of one healing, which take about ten seconds. After them a
/// chain that nothing closes counts as a loss.
const HEAL_TRIES: u32 = 12;
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// The follower waits before it follows again if its feed ended sooner than this. So feeds that do
/// not last cause no busy loop of calls to the broker.
const FEED_LASTS: Duration = Duration::from_secs(1);

/// Bounds how long a log that heals keeps its turn from other logs. Part of a broker may be away,
/// and calls to that part must not delay calls to other parts.
const HOLDS_TURN: Duration = Duration::from_millis(500);

/// A follower holds a log and the feed that fills it.
pub(crate) struct Follower {
    pub(crate) log: Arc<Log>,
    backbone: Arc<Backbone>,
    runtime: Handle,
    state: Mutex<FollowerState>,
    rate: RateWindow,
    me: Weak<Follower>,
}

struct FollowerState {
    /// Distinguishes the feed in use from an abandoned one.
    generation: u64,
    feed: Option<Feed>,
    /// Holds the position of the feed: its head at first, then its newest event.
    fed: Position,
    /// Holds the time at which the follower opened the feed.
    followed: Instant,
    /// Holds the feed's events while the log heals.
    healing: Option<Pending>,
    closed: bool,
}

struct LiveFeed {
    follower: Weak<Follower>,
    generation: u64,
}

impl FeedSink<Arc<Event>> for LiveFeed {
    fn take(&self, event: Arc<Event>) {
        if let Some(follower) = self.follower.upgrade() {
            follower.event(self.generation, event);
        }
    }

    fn ended(&self) {
        if let Some(follower) = self.follower.upgrade() {
            follower.ended(self.generation);
        }
    }
}

impl Follower {
    /// Follows the channel and fills a log with its recent history. From then on every event
    /// reaches the log.
    pub(crate) async fn open(
        backbone: Arc<Backbone>,
        ring_memory: &Arc<RingMemory>,
        name: ChannelName,
        rule: Arc<Rule>,
    ) -> Result<Arc<Self>, BrokerError> {
        let want = rule.history.events.max(backbone.limits.ring_events);
        let history = if rule.history.events == 0 { 1 } else { want };
        // The follower asks for more than the ring holds, so that the log sees that its ring begins
        // behind the broker's history.
        let history = PageLimit::events(history).with_bytes(backbone.limits.ring_bytes.saturating_mul(2));
        let (feed, history) = backbone.open(&name, history).await?;
        let figures = backbone.metrics.by_rule(backbone.metrics.index_of(&rule)).clone();
        let log = Log::open(name, rule, figures, &backbone.limits, ring_memory, history).ok_or_else(torn)?;
        let follower = Arc::new_cyclic(|me| Follower {
            log,
            backbone,
            runtime: Handle::current(),
            state: Mutex::new(FollowerState {
                generation: 1,
                feed: None,
                fed: feed.head,
                followed: Instant::now(),
                healing: None,
                closed: false,
            }),
            rate: RateWindow::new(),
            me: me.clone(),
        });
        follower.attach(feed, 1);
        Ok(follower)
    }

    fn lock(&self) -> MutexGuard<'_, FollowerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether the log may lack events, or a gap, that the broker knows of already.
    pub(crate) fn is_healing(&self) -> bool {
        self.lock().healing.is_some()
    }

    /// Returns a page of history from the log, or `None` if the log does not hold all of it. The
    /// broker only reports where the channel ends. So the page holds every event that was
    /// acknowledged before the call.
    pub(crate) async fn page(&self, after: Position, limit: PageLimit) -> Result<Option<Replay>, BrokerError> {
        if self.is_healing() || !matches!(self.log.find(after), Found::At(_)) || self.log.head() == after {
            return Ok(None);
        }
        // The node asks for one event: of an empty page a broker need not report whether it is
        // complete.
        let newest = self
            .backbone
            .replay(&self.log.name, Some(after), PageLimit::events(1))
            .await?;
        let held = match newest.complete && newest.head > after && !self.is_healing() {
            true => self.log.page(after, newest.head, limit),
            false => None,
        };
        Ok(held.map(|(events, more)| Replay {
            events,
            complete: true,
            more,
            ..newest
        }))
    }

    /// Attaches the feed, so that its events reach the log. The call to the feed is not under the
    /// follower's lock. The feed calls back with its waiting events, and holds its own lock then.
    fn attach(&self, feed: Feed, generation: u64) {
        {
            let mut state = self.lock();
            if state.generation == generation {
                state.fed = feed.head;
            }
        }
        feed.attach(Arc::new(LiveFeed {
            follower: self.me.clone(),
            generation,
        }));
        let unwanted = {
            let mut state = self.lock();
            if state.closed || state.generation != generation {
                Some(feed)
            } else {
                state.feed.replace(feed)
            }
        };
        drop(unwanted);
    }

    /// Ends the feed. The log stays readable but receives no more events.
    pub(crate) fn close(&self) {
        let feed = {
            let mut state = self.lock();
            state.closed = true;
            state.feed.take()
        };
        drop(feed);
    }

    fn event(&self, generation: u64, event: Arc<Event>) {
        self.backbone.metrics.stats.record_activity();
        self.backbone.newer.look(&event.message);
        {
            let mut state = self.lock();
            if state.generation != generation {
                return;
            }
            let goes_on = event.position > state.fed && (event.previous == state.fed || event.previous == Position::ZERO);
            state.fed = event.position;
            if let Some(pending) = &mut state.healing {
                pending.push(event, goes_on);
                return;
            }
            match self.log.append(event.clone()) {
                Appended::Yes => {}
                // The node reads history after it opens the feed, so the log may be ahead of the
                // feed.
                Appended::Known if goes_on || self.log.has(&event) => return,
                // A feed goes back only with its store. History shows what that store holds.
                Appended::Known | Appended::Broken => {
                    tracing::debug!(channel = %self.log.name, position = %event.position, previous = %event.previous, "the chain is broken: healing");
                    state.healing = Some(Pending::since(event));
                    drop(state);
                    self.heal(generation, None);
                    return;
                }
            }
        }
        self.show();
    }

    fn ended(&self, generation: u64) {
        let pause = {
            let mut state = self.lock();
            if state.generation != generation || state.closed {
                return;
            }
            state.generation += 1;
            state.healing = Some(Pending::default());
            FEED_LASTS.saturating_sub(state.followed.elapsed())
        };
        tracing::debug!(channel = %self.log.name, "the feed ended: following again");
        self.heal(generation + 1, Some(pause));
    }

    /// Makes the appended events visible at once. Where the rule has a rate, they become visible
    /// when the window has passed.
    fn show(&self) {
        let Some(window) = self.log.rule.window() else {
            self.log.show();
            return;
        };
        let due = match self.rate.appended(window) {
            Show::Now => return self.log.show(),
            Show::Scheduled => return,
            Show::At(due) => due,
        };
        let me = self.me.clone();
        // One timer serves the log, whatever the number of its listeners.
        self.runtime.spawn(async move {
            sleep_until(due).await;
            if let Some(follower) = me.upgrade() {
                follower.rate.shown(due);
                follower.log.show();
            }
        });
    }

    /// Starts a task that heals the log. With `follow_after` the feed is gone, and the task follows
    /// again after that pause.
    fn heal(&self, generation: u64, follow_after: Option<Duration>) {
        self.backbone.metrics.heals.inc();
        let pause = follow_after.filter(|pause| !pause.is_zero());
        let pause = pause.map(|pause| self.backbone.jitter.spread(pause));
        let heal = Heal {
            follower: self.me.clone(),
            generation,
            follow_again: follow_after.is_some(),
            backoff: BACKOFF.0,
            tries: 0,
            unhealed: None,
        };
        self.runtime.spawn(heal.until_whole(self.backbone.clone(), pause));
    }

    /// Appends a page of history that was asked for with `after`. `give_up` means the same as in
    /// [`Pending::take_in`].
    fn take_in(&self, generation: u64, after: Position, replay: &Replay, give_up: bool) -> Healed {
        // The follower holds the lock from the first check on. If the feed ends while one task
        // heals, a second one begins, and only one of them may append.
        let mut state = self.lock();
        if state.generation != generation || state.closed {
            return Healed::Superseded;
        }
        let Some(pending) = &mut state.healing else {
            return Healed::Superseded;
        };
        if !pending.take_in(&self.log, after, replay, give_up) {
            return Healed::NotYet;
        }
        state.healing = None;
        Healed::Yes
    }
}

/// This type heals one log, and keeps what is known between one try and the next.
struct Heal {
    /// Holds only a weak handle across waits, because the log's owner may go away in between.
    follower: Weak<Follower>,
    generation: u64,
    follow_again: bool,
    backoff: Duration,
    tries: u32,
    unhealed: Option<Unhealed>,
}

impl Heal {
    /// Tries until the log is whole again, or closed. Waits for `pause` before the first try.
    async fn until_whole(mut self, backbone: Arc<Backbone>, mut pause: Option<Duration>) {
        loop {
            if let Some(pause) = pause {
                sleep(pause).await;
            }
            let Some(follower) = self.follower.upgrade() else { return };
            // The log waits for its turn first, so that a call's time counts from the call itself.
            let turns = match self.unhealed.is_some() || follower.log.is_unused() {
                true => &backbone.turns.other,
                false => &backbone.turns.awaited,
            };
            drop(follower);
            // The node never closes the semaphore.
            let turn = turns.acquire().await.ok();
            // Each try has a box of its own. All logs of a node may wait for their turn at once,
            // and each must take little room until then.
            match Box::pin(self.try_once(&backbone, turn)).await {
                Try::Done => return,
                Try::Again(after) => pause = after,
            }
        }
    }

    async fn try_once(&mut self, backbone: &Arc<Backbone>, turn: Option<SemaphorePermit<'_>>) -> Try {
        let Some(follower) = self.follower.upgrade() else {
            return Try::Done;
        };
        let log = follower.log.clone();
        drop(follower);
        let (after, replay) = match in_turn(turn, self.read(backbone, &log)).await {
            Ok(Some(answer)) => answer,
            Ok(None) => return Try::Done,
            Err(error) => {
                match &self.unhealed {
                    Some(unhealed) => unhealed.again(&log.name, &error),
                    None => self.unhealed = Some(Unhealed::begin(backbone, &log.name, &error)),
                }
                return Try::Again(Some(self.next_pause(backbone)));
            }
        };
        let Some(follower) = self.follower.upgrade() else {
            return Try::Done;
        };
        // Events that the log has already, behind a gap that took them back, are no progress
        // either.
        self.tries += u32::from(replay.events.last().is_none_or(|last| last.position <= log.head()));
        let healed = follower.take_in(self.generation, after, &replay, self.tries >= HEAL_TRIES);
        if let Healed::Superseded = healed {
            return Try::Done;
        }
        log.show();
        match healed {
            Healed::NotYet if replay.more => Try::Again(None),
            // The waiting events do not follow yet: history is behind what the feed has shown.
            Healed::NotYet => Try::Again(Some(self.next_pause(backbone))),
            Healed::Yes | Healed::Superseded => Try::Done,
        }
    }

    /// Follows again if need be, and reads what the broker has behind the log. Returns `None` if
    /// the log's owner has gone away.
    async fn read(&mut self, backbone: &Backbone, log: &Log) -> Result<Option<(Position, Replay)>, BrokerError> {
        let mut whole_at = None;
        if self.follow_again {
            let feed = follow(backbone, &log.name).await?;
            whole_at = Some(feed.head);
            let Some(follower) = self.follower.upgrade() else {
                return Ok(None);
            };
            self.generation = {
                let mut state = follower.lock();
                state.generation += 1;
                state.followed = Instant::now();
                state.healing = Some(Pending::default());
                state.generation
            };
            follower.attach(feed, self.generation);
            self.follow_again = false;
        }
        let after = log.expected_previous();
        let Some(follower) = self.follower.upgrade() else {
            return Ok(None);
        };
        if let Some(pending) = &mut follower.lock().healing {
            pending.asks_history();
        }
        drop(follower);
        // Most channels are quiet: the new feed begins where the log ends, so there is nothing to
        // read.
        let replay = match whole_at == Some(after) && log.head() == after {
            true => Replay::nothing_after(after),
            false => backbone.replay(&log.name, Some(after), HEAL_PAGE).await?,
        };
        Ok(Some((after, replay)))
    }

    fn next_pause(&mut self, backbone: &Backbone) -> Duration {
        let pause = backbone.jitter.spread(self.backoff);
        self.backoff = (self.backoff * 2).min(BACKOFF.1);
        pause
    }
}

/// This type says what follows a try.
enum Try {
    /// The log is whole, or closed, or another task has healed it.
    Done,
    /// The task tries again, after the pause if there is one.
    Again(Option<Duration>),
}

enum Healed {
    Yes,
    NotYet,
    Superseded,
}

/// Gives the turn back when the step is done, or when its calls take so long that others must not
/// wait for them.
async fn in_turn<T>(turn: Option<SemaphorePermit<'_>>, step: impl Future<Output = T>) -> T {
    let mut step = pin!(step);
    match timeout(HOLDS_TURN, &mut step).await {
        Ok(done) => done,
        Err(_) => {
            drop(turn);
            step.await
        }
    }
}

async fn follow(backbone: &Backbone, name: &ChannelName) -> Result<Feed, BrokerError> {
    patience::call(backbone.limits.broker_timeout, backbone.broker.follow(name)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<F>(_: impl Fn(Heal, Arc<Backbone>, Option<Duration>) -> F) -> usize {
        size_of::<F>()
    }

    /// When a connection to the broker breaks, every log of a node waits for its turn.
    #[test]
    fn a_log_that_waits_for_its_turn_to_heal_takes_little_room() {
        let size = size_of_future(Heal::until_whole);
        assert!(size <= 384, "{size} bytes");
    }
}
