//! Takes from the stream what no rule shows any more.
//!
//! The server keeps of each channel the same: as many messages as the most generous rule wants, for
//! thirty days. What another rule's count, age or bytes leave out would stay on the disk, so the
//! node that publishes to a channel removes it, a *generation* at a time: once a history's worth
//! has been written since some event, nothing before that one is shown, and one purge removes all
//! of it. The newest event always stays: it is the channel's head.
//!
//! A purge is dear (the server looks through all blocks between the channel's oldest and newest
//! message), so a generation is large, one purge goes on at a time, and the pauses between them are
//! longer than they are. A channel hence holds about twice what its rule says, or [`WORTH`]; more
//! if purges do not keep up, up to what the server keeps by itself.
//!
//! A node remembers only the channels that it has published to. So at its start, and again and
//! again while the server is full, it looks through all that is stored for what is past its rule's
//! age, by the times that the server noted.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use airwave_core::rule::History;
use airwave_core::shrink::shrink;
use airwave_core::{BrokerError, ChannelName, Position, Rules};
use async_nats::{Message, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::clock::{micros, time_of};
use super::connection::{Answer, Connection, Link, is_status, lost};
use super::stored::{Chain, channel_of, token};
use super::{Remembered, remembered};

/// A purge of a channel that goes on is for at least so many events or bytes.
const WORTH: (u64, u64) = (1000, 1 << 20);

/// And of one that has gone quiet.
const WORTH_QUIET: (u64, u64) = (16, 64 << 10);

/// How long nothing must be published to a channel until this node forgets what it knows of it.
const IDLE: Duration = Duration::from_secs(600);

/// How many events a channel has at least that is looked through: at a start, and while the server
/// is full.
const WORTH_A_LOOK: (u64, u64) = (16, 2);

/// So many channels wait for a purge. Who finds no place comes again with its next generation.
const WAITING: usize = 1000;

/// How often quiet channels are looked for: half the shortest age of a rule, within these.
const LOOK: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// How long is relied on what other nodes' rules keep. A node that starts with rules that keep more
/// says so before it publishes.
const LEARN: Duration = Duration::from_secs(5);

/// After a purge, its own time so often is waited.
const PAUSE: u32 = 4;

/// How a channel stood when an event was its newest.
#[derive(Debug, Clone, Copy)]
struct Mark {
    head: Position,
    events: u64,
    bytes: u64,
    at: u64,
}

impl Mark {
    fn since(&self, before: &Mark) -> (u64, u64) {
        (
            self.events.saturating_sub(before.events),
            self.bytes.saturating_sub(before.bytes),
        )
    }

    fn older_than(&self, age: Duration, now: u64) -> bool {
        Duration::from_micros(now.saturating_sub(self.at)) > age
    }
}

fn is_worth(left: (u64, u64), worth: (u64, u64)) -> bool {
    left.0 >= worth.0 || left.1 >= worth.1
}

/// A monotonic clock, in µs: one that is set ahead would make a node take away what is young.
pub(super) fn uptime() -> u64 {
    static SINCE: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);
    micros(SINCE.elapsed())
}

/// What this node knows of what a channel has stored.
#[derive(Debug, Default)]
pub(super) struct Generations {
    /// Where the generation began that is being written.
    begin: Option<Mark>,
    newest: Option<Mark>,
    /// Nothing is stored before, as far as this node has seen to it.
    swept: Option<Mark>,
}

impl Generations {
    /// An event was stored; the chain with it. `Some`: nothing before that position is shown, and
    /// it is worth a purge.
    pub(super) fn stored(&mut self, chain: &Chain, history: &History, now: u64) -> Option<Position> {
        let here = Mark {
            // The message that holds the head, which may stand below it.
            head: Position(chain.newest),
            events: chain.events,
            bytes: chain.bytes,
            at: now,
        };
        self.newest = Some(here);
        let begin = *self.begin.get_or_insert(here);
        let written = here.since(&begin);
        // These agree with what a page shows: the event that the generation began with is left out
        // already.
        let passed =
            written.0 >= history.events as u64 || written.1 >= history.bytes as u64 || begin.older_than(history.age, now);
        (passed && is_worth(written, WORTH)).then(|| {
            self.begin = Some(here);
            self.swept = Some(begin);
            begin.head
        })
    }

    /// The same for one to which this node has published nothing for long.
    fn quiet(&mut self, history: impl FnOnce() -> History, now: u64) -> Option<Position> {
        let newest = self.newest?;
        let left = self.swept.map_or((newest.events, newest.bytes), |swept| newest.since(&swept));
        let due = is_worth(left, WORTH_QUIET) && newest.older_than(history().age, now);
        due.then(|| {
            self.swept = Some(newest);
            newest.head
        })
    }
}

impl Generations {
    /// Whether nothing was published for long, and nothing is left that a later look would purge.
    /// What is known of such a channel is asked for again with its next publish.
    fn is_idle(&self, now: u64) -> bool {
        let Some(newest) = self.newest else { return true };
        let left = self.swept.map_or((newest.events, newest.bytes), |swept| newest.since(&swept));
        newest.older_than(IDLE, now) && !is_worth(left, WORTH_QUIET)
    }
}

/// A channel and a position before which nothing of it is needed.
pub(super) type ToSweep = (ChannelName, Position);

pub(super) fn queue() -> (mpsc::Sender<ToSweep>, mpsc::Receiver<ToSweep>) {
    mpsc::channel(WAITING)
}

/// Purges what is due, for ever.
pub(super) async fn sweep(connection: &Connection, rules: Rules, known: Remembered, mut due: mpsc::Receiver<ToSweep>) {
    let shortest = rules.iter().map(|rule| rule.history.age).min().unwrap_or(LOOK.1);
    let every = (shortest / 2).clamp(LOOK.0, LOOK.1);
    let mut look = Instant::now() + every;
    let mut quiet = aged(connection, &rules, WORTH_A_LOOK.0).await;
    let mut learned: Option<Instant> = None;
    loop {
        let (channel, before) = tokio::select! {
            biased;
            Some(due) = due.recv() => due,
            Some(due) = async { quiet.pop_front() }, if !quiet.is_empty() => due,
            () = sleep_until(look) => {
                quiet = match connection.refuses() {
                    true => aged(connection, &rules, WORTH_A_LOOK.1).await,
                    false => quiet_ones(connection, &known),
                };
                look = Instant::now() + every;
                continue;
            }
        };
        let since = Instant::now();
        if learned.is_none_or(|learned| learned.elapsed() >= LEARN) {
            match what_others_keep(connection).await {
                Ok(false) => learned = Some(since),
                // It was found with less than others keep. Its next generation is found with what
                // is known now.
                _ => continue,
            }
        }
        purge(connection, &channel, before).await;
        sleep(since.elapsed() * PAUSE).await;
    }
}

/// True: more than was known, or less.
async fn what_others_keep(connection: &Connection) -> Result<bool, BrokerError> {
    let link = connection.link().await?;
    connection.learn_what_others_keep(&link).await
}

fn quiet_ones(connection: &Connection, known: &Remembered) -> VecDeque<ToSweep> {
    // Copies the list, so that no publish waits while all of them are looked at.
    let all: Vec<_> = remembered(known)
        .iter()
        .map(|(name, memory)| (name.clone(), memory.clone()))
        .collect();
    let now = uptime();
    let due = all.into_iter().filter_map(|(name, memory)| {
        // A publish holds the lock, so the channel is not quiet.
        let position = memory.try_lock().ok()?.generations.quiet(|| connection.keeps(&name), now)?;
        Some((name, position))
    });
    let due = due.take(WAITING).collect();
    let mut known = remembered(known);
    known.retain(|_, memory| {
        // One that is locked is published to.
        Arc::strong_count(memory) > 1 || !memory.try_lock().is_ok_and(|known| known.generations.is_idle(now))
    });
    shrink(&mut *known);
    due
}

/// What is stored past its rule's age, of channels with so many events at least. The largest come
/// first.
async fn aged(connection: &Connection, rules: &Rules, worth: u64) -> VecDeque<ToSweep> {
    let found = async {
        let link = connection.link().await?;
        let (now, last, mut channels) = all_stored(connection, &link).await?;
        channels.retain(|(_, events)| *events >= worth);
        channels.sort_by_key(|(_, events)| std::cmp::Reverse(*events));
        channels.truncate(WAITING);
        let mut begins = HashMap::new();
        let mut due = VecDeque::new();
        for (channel, _) in channels {
            // A full server takes nothing at all: then this node's own rule is what counts.
            let age = match connection.refuses() {
                true => rules.history(&channel).age,
                false => connection.keeps(&channel).age,
            };
            let begin = match begins.get(&age) {
                Some(begin) => *begin,
                None => {
                    let since = now.saturating_sub(u64::try_from(age.as_micros()).unwrap_or(u64::MAX));
                    let begin = first_since(connection, &link, since, last).await?;
                    *begins.entry(age).or_insert(begin)
                }
            };
            let subject = connection.log(&format!("c.{}", token(&channel)));
            let newest = direct(connection, &link, json!({ "last_by_subj": subject })).await?;
            let oldest = direct(connection, &link, json!({ "seq": 1, "next_by_subj": subject })).await?;
            if let (Some((newest, _)), Some((oldest, _))) = (newest, oldest) {
                // The newest stays: it is the head.
                let before = begin.min(newest);
                if oldest < before {
                    due.push_back((channel, Position(before)));
                }
            }
        }
        Ok::<_, BrokerError>(due)
    };
    found.await.unwrap_or_else(|error| {
        tracing::debug!(%error, "what is stored could not be looked through");
        VecDeque::new()
    })
}

/// The server's time in µs, the stream's newest sequence, and its channels with how many messages
/// each has.
async fn all_stored(connection: &Connection, link: &Link) -> Result<(u64, u64, Vec<(ChannelName, u64)>), BrokerError> {
    let (before, mut channels) = (connection.log("c."), Vec::new());
    loop {
        let question = json!({ "subjects_filter": connection.log("c.>"), "offset": channels.len() });
        let info = match link
            .api(format!("STREAM.INFO.{}", connection.settings.prefix), &question)
            .await?
        {
            Answer::Done(info) => info,
            Answer::Refused { text, .. } => return Err(lost(&text)),
        };
        let page = info["state"]["subjects"].as_object();
        let page: Vec<_> = page.into_iter().flatten().collect();
        let told = page.len();
        channels.extend(page.into_iter().map(|(subject, count)| {
            let channel = subject.strip_prefix(&before).and_then(channel_of);
            (channel, count.as_u64().unwrap_or(0))
        }));
        if told == 0 || channels.len() as u64 >= info["total"].as_u64().unwrap_or(0) {
            let now = info["ts"]
                .as_str()
                .and_then(time_of)
                .ok_or_else(|| lost("it does not tell its time"))?;
            let last = info["state"]["last_seq"].as_u64().unwrap_or(0);
            // What is not one of ours has no rule.
            let ours = channels.into_iter().filter_map(|(channel, count)| Some((channel?, count)));
            return Ok((now, last, ours.collect()));
        }
    }
}

/// The first sequence of the stream that was stored at a time or later; all are older: one more
/// than the last.
async fn first_since(connection: &Connection, link: &Link, since: u64, last: u64) -> Result<u64, BrokerError> {
    let (mut low, mut high) = (1, last + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        let question = json!({ "seq": middle, "next_by_subj": connection.log(">") });
        match direct(connection, link, question).await? {
            Some((sequence, stored)) if stored < since => low = sequence + 1,
            _ => high = middle,
        }
    }
    Ok(low)
}

/// A message's sequence, and when it was stored. `None`: there is none.
async fn direct(connection: &Connection, link: &Link, question: Value) -> Result<Option<(u64, u64)>, BrokerError> {
    let subject = format!("$JS.API.DIRECT.GET.{}", connection.settings.prefix);
    let message = link.ask(subject, None, question.to_string().into()).await?;
    match is_status(&message) {
        None => Ok(sequence_and_time(&message)),
        Some(StatusCode::NOT_FOUND) => Ok(None),
        Some(status) => Err(lost(&format!("a message could not be read: {status}"))),
    }
}

fn sequence_and_time(message: &Message) -> Option<(u64, u64)> {
    let headers = message.headers.as_ref()?;
    let stored = headers.get("Nats-Time-Stamp").and_then(|time| time_of(time.as_str()))?;
    Some((headers.get("Nats-Sequence")?.as_str().parse().ok()?, stored))
}

/// Removes what lies before `before`. A purge that fails is neither repeated nor reported: the next
/// generation removes the rest.
async fn purge(connection: &Connection, channel: &ChannelName, before: Position) {
    let Ok(link) = connection.link().await else { return };
    let filter = connection.log(&format!("c.{}", token(channel)));
    let question = json!({ "filter": filter, "seq": before.0 });
    let subject = format!("$JS.API.STREAM.PURGE.{}", connection.settings.prefix);
    match link.call(subject, None, question.to_string().into()).await {
        Ok(Answer::Done(answer)) => tracing::debug!(%channel, purged = answer["purged"].as_u64(), "swept"),
        Ok(Answer::Refused { text, .. }) => tracing::debug!(%channel, text, "not swept"),
        Err(error) => tracing::debug!(%channel, %error, "not swept"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(events: u64, bytes: u64) -> Chain {
        Chain {
            newest: 1000 + events,
            head: Position(1000 + events),
            events,
            bytes,
            ..Chain::NONE
        }
    }

    const SECOND: u64 = 1_000_000;

    fn keeping(events: usize, bytes: usize, seconds: u64) -> History {
        History {
            events,
            bytes,
            age: Duration::from_secs(seconds),
        }
    }

    /// What is swept after each of so many events, of ten bytes and a second each.
    fn sweeps(history: &History, events: u64) -> Vec<(u64, u64)> {
        let mut generations = Generations::default();
        let sweep = |n: u64| {
            let swept = generations.stored(&chain(n, n * 10), history, n * SECOND)?;
            Some((n, swept.0 - 1000))
        };
        (1..=events).filter_map(sweep).collect()
    }

    #[test]
    fn a_channel_is_forgotten_when_it_was_quiet_for_long_and_nothing_of_it_is_due() {
        let history = keeping(100, usize::MAX, 3600);
        let mut generations = Generations::default();
        assert!(generations.is_idle(0), "nothing was ever stored");
        generations.stored(&chain(3, 30), &history, SECOND);
        assert!(!generations.is_idle(600 * SECOND), "it may be published to again");
        assert!(generations.is_idle(602 * SECOND));
        generations.stored(&chain(50, 500), &history, 700 * SECOND);
        assert!(!generations.is_idle(4_000 * SECOND), "its history will be too old");
        let later = 5_000 * SECOND;
        assert!(generations.quiet(|| history, later).is_some());
        assert!(generations.is_idle(later), "it is purged");
    }

    #[test]
    fn a_generation_goes_when_the_next_one_is_a_history_long() {
        for (history, sizes) in [
            (keeping(2000, usize::MAX, 1 << 40), 2000),
            // Too small to be worth it.
            (keeping(10, usize::MAX, 1 << 40), 1000),
            (keeping(usize::MAX, 30_000, 1 << 40), 3000),
            (keeping(usize::MAX, usize::MAX, 1500), 1501),
            (keeping(usize::MAX, usize::MAX, 10), 1000),
        ] {
            let expected: Vec<(u64, u64)> = (1..=3).map(|n| (1 + n * sizes, 1 + (n - 1) * sizes)).collect();
            assert_eq!(sweeps(&history, 1 + 3 * sizes), expected, "{history:?}");
        }
        assert_eq!(sweeps(&keeping(usize::MAX, usize::MAX, 1 << 40), 10_000), []);
    }

    #[test]
    fn a_quiet_channel_is_left_with_its_head() {
        let history = keeping(100, 1 << 20, 60);
        let mut generations = Generations::default();
        for n in 1..=20 {
            generations.stored(&chain(n, n * 10), &history, n * SECOND);
        }
        assert_eq!(generations.quiet(|| history, 80 * SECOND), None, "the newest is not old yet");
        assert_eq!(generations.quiet(|| history, 81 * SECOND), Some(Position(1020)));
        assert_eq!(generations.quiet(|| history, 82 * SECOND), None, "nothing is left");
        for n in 21..=36 {
            assert_eq!(generations.quiet(|| history, 1000 * SECOND), None, "little is left");
            generations.stored(&chain(n, n * 10), &history, 100 * SECOND);
        }
        assert_eq!(generations.quiet(|| history, 1000 * SECOND), Some(Position(1036)));
    }
}
