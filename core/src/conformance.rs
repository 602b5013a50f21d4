//! The broker contract as tests: one public function for each clause. A broker is finished when all
//! of them hold over it.
//!
//! # The contract
//!
//! [`Broker`], [`Feed`] and [`Replay`] state it method by method; this is what it comes to. A
//! channel is a **chain**: a first position, then events, each of which names the one before it.
//!
//! - **Positions** strictly increase and are never given twice, whichever node publishes, whatever
//!   was lost. An acknowledged event stands before one whose publish began later. A channel without
//!   events has a first position to resume from. Brokers may give several of them out, and they are
//!   of equal worth: after each of them comes the first event, which names the one that was asked
//!   with. One is good for five minutes at least after it was given out, and as long as a feed goes
//!   on from it.
//! - **`previous`** is the position before, or zero where the broker does not know it any more;
//!   never another one. A feed knows it at least while history holds the event before.
//! - **A feed** shows every event after its head, each once, in order, and what it has shown can be
//!   replayed. One that may have missed something ends.
//! - **A replay** is everything after the position asked for, or says `complete: false`. A position
//!   that the channel never gave, zero among them, is never complete. It ends at the bound of its
//!   page, in events or in bytes, and says `more`; one event always comes.
//! - **History** holds at least what the rule says: after the event that stands before the newest
//!   `events` ones (or before those that fit `bytes`, or `age`) a replay is complete. It may hold
//!   more, but not without bound: at most `2 * events + 200` events and `4 * bytes` bytes, and what
//!   is older than `age` goes within half a minute. Without history the chain still stands.
//! - **Reading stores nothing** for longer than five minutes: neither a replay nor a feed that is
//!   dropped.
//! - **An idempotency key** makes one event per channel, however often, from however many nodes and
//!   at once it is published. With another payload it is refused while history holds the first
//!   event, and nothing is appended. Keys are text; different texts are different keys.
//! - **An end** is the last event. One that is published with an event is appended with it, or
//!   neither is.
//! - **Names** are literal, and different names are different channels. **Payloads** come back byte
//!   for byte, a mebibyte at least.
//!
//! # Running it
//!
//! A broker's tests give a [`Fixture`], whose brokers are made with [`rules`], and call
//! [`conformance_tests!`](crate::conformance_tests), which makes a test of each clause, in a module
//! that bears the broker's name. [`table`] shows clauses against brokers. Names are new in every
//! run, so a server may be shared and used again; clauses that break things need one of their own.
//! No clause depends on speed: a wait is for an event, and [`PATIENCE`] only turns a hang into a
//! failure.

// A clause fails by panicking.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::broker::{Append, Broker, BrokerError, BrokerErrorKind, Feed, PageLimit, Published, Replay};
use crate::event::{ChannelName, Data, Event, EventName, IdempotencyKey, Key, Message, Position};
use crate::idempotency::{Fingerprint, KeySource, ScopedKey};
use crate::rule::{History, Rule, Rules, TransportName};

/// How long a clause waits for anything. It decides nothing but when a hang is called one.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The environment variable that names a folder into which tests write their verdicts.
pub const RECORD: &str = "AIRWAVE_CONFORMANCE_RECORD";

/// How long a whole clause may take.
const CLAUSE_BOUND: Duration = Duration::from_secs(180);

/// What clauses run over: one backbone.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// The broker of another node on this backbone, made with [`rules`]. A broker that is one
    /// process gives the same one each time.
    async fn node(&self) -> Arc<dyn Broker>;

    /// The same of a node whose clock is `ahead` µs ahead, or below zero so far behind. A broker
    /// that never reads its node's clock needs none of its own.
    async fn node_with_clock(&self, ahead: i64) -> Arc<dyn Broker> {
        let _ = ahead;
        self.node().await
    }

    /// What this fixture can do to its backbone. Clauses that need more are skipped, aloud.
    fn faults(&self) -> &[Fault];

    /// Makes `fault`, one of [`Fixture::faults`], happen, and comes back when it has.
    async fn inflict(&self, fault: Fault);

    /// How many subscriptions the backbone counts for `channel`, if it counts them.
    async fn subscriptions(&self, channel: &ChannelName) -> Option<usize>;

    /// How many things the backbone stores that are of single channels, if it counts them.
    async fn stored(&self) -> Option<usize> {
        None
    }
}

/// What can happen to a backbone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// All that it held is lost, for the nodes that are there as for later ones. It works again at
    /// once.
    Wipe,
    /// Every connection of every node breaks, once.
    Cut,
    /// It dies, without warning, and comes back with what it had stored. Only for a backbone that
    /// stores.
    Restart,
    /// It dies, and comes back with nothing and with a clock that is ten minutes behind.
    ReturnBehind,
}

/// One clause of the contract.
#[derive(Debug, Clone, Copy)]
pub struct Clause {
    /// The name of its function.
    pub name: &'static str,
    /// What must happen to the backbone for it.
    pub needs: &'static [Fault],
    /// Runs it; panics if the clause is broken.
    pub run: for<'a> fn(&'a dyn Fixture) -> Run<'a>,
}

/// A clause under way.
pub type Run<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Whether a clause holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It does.
    Held,
    /// The fixture cannot make this happen.
    Skipped(Fault),
    /// It does not; why.
    Broken(String),
}

impl Clause {
    /// Runs the clause and catches its panic.
    pub async fn judge(&self, fixture: &dyn Fixture) -> Verdict {
        if let Some(fault) = self.needs.iter().find(|fault| !fixture.faults().contains(fault)) {
            return Verdict::Skipped(*fault);
        }
        let _watchdog = Watchdog::over(self.name);
        let mut run = (self.run)(fixture);
        let caught = std::future::poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| run.as_mut().poll(cx))) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => Poll::Ready(Err(panic)),
        });
        match timeout(CLAUSE_BOUND, caught).await {
            Ok(Ok(())) => Verdict::Held,
            Ok(Err(panic)) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or(panic.downcast_ref::<&str>().copied());
                Verdict::Broken(text.unwrap_or("a panic without text").to_owned())
            }
            Err(_) => Verdict::Broken(format!("not done within {CLAUSE_BOUND:?}")),
        }
    }

    /// [`Clause::judge`], and with [`RECORD`] in the environment the verdict is written down under
    /// the broker's name, for [`recorded_table`].
    ///
    /// # Panics
    /// If it cannot be written.
    pub async fn judge_and_record(&self, broker: &str, fixture: &dyn Fixture) -> Verdict {
        let verdict = self.judge(fixture).await;
        if let Some(folder) = std::env::var_os(RECORD) {
            let folder = PathBuf::from(folder).join(broker);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(self.name), verdict.to_string()).unwrap();
        }
        verdict
    }

    /// Runs the clause as a test, for the broker of this name. A skip is printed.
    ///
    /// # Panics
    /// If the clause is broken, with its name.
    pub async fn prove(&self, broker: &str, fixture: &dyn Fixture) {
        match self.judge_and_record(broker, fixture).await {
            Verdict::Held => {}
            Verdict::Skipped(fault) => eprintln!("skipped: {}, because this fixture makes no {fault:?}", self.name),
            Verdict::Broken(why) => panic!("{}: {why}", self.name),
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Verdict::Held => f.write_str("held"),
            Verdict::Skipped(fault) => write!(f, "skipped (no {fault:?})"),
            Verdict::Broken(_) => f.write_str("BROKEN"),
        }
    }
}

/// Ends the process when a broker blocks the thread itself, which no timeout can interrupt.
/// Dropping it calls it off.
struct Watchdog {
    _called_off: std::sync::mpsc::Sender<()>,
}

impl Watchdog {
    fn over(clause: &'static str) -> Self {
        let (called_off, waiting) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let waited = waiting.recv_timeout(CLAUSE_BOUND + PATIENCE);
            if waited == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                eprintln!("{clause}: the broker blocks its thread");
                std::process::exit(101);
            }
        });
        Self { _called_off: called_off }
    }
}

/// Runs every clause over every fixture and gives a Markdown table of the verdicts, then why those
/// that are broken are.
pub async fn table(fixtures: &[(&str, &dyn Fixture)]) -> String {
    let mut verdicts = HashMap::new();
    let mut reasons = String::new();
    for clause in CLAUSES {
        for (broker, fixture) in fixtures {
            let verdict = clause.judge(*fixture).await;
            if let Verdict::Broken(why) = &verdict {
                let _ = write!(reasons, "\n{broker}: {}: {why}", clause.name); // writing to a String cannot fail
            }
            verdicts.insert((*broker, clause.name), verdict.to_string());
        }
    }
    let brokers: Vec<&str> = fixtures.iter().map(|(broker, _)| *broker).collect();
    markdown(&brokers, |broker, clause| verdicts[&(broker, clause)].clone()) + &reasons
}

/// The table of what the tests of these brokers have written into this folder, with [`RECORD`]:
/// each by the name it recorded under, and the one that readers know it by. What did not run is
/// `not run`.
pub fn recorded_table(folder: &Path, brokers: &[(&str, &str)]) -> String {
    let titles: Vec<&str> = brokers.iter().map(|(_, title)| *title).collect();
    markdown(&titles, |title, clause| {
        let recorded = brokers.iter().find(|(_, known)| *known == title);
        recorded
            .and_then(|(broker, _)| std::fs::read_to_string(folder.join(broker).join(clause)).ok())
            .unwrap_or_else(|| "not run".into())
    })
}

fn markdown(brokers: &[&str], verdict: impl Fn(&str, &str) -> String) -> String {
    let mut table = format!(
        "| clause | {} |\n|---|{}\n",
        brokers.join(" | "),
        "---|".repeat(brokers.len())
    );
    for clause in CLAUSES {
        let verdicts: Vec<String> = brokers.iter().map(|broker| verdict(broker, clause.name)).collect();
        let _ = writeln!(table, "| {} | {} |", clause.name.replace('_', " "), verdicts.join(" | "));
    }
    table
}

/// The clause of that name.
///
/// # Panics
/// If there is none.
pub fn clause(name: &str) -> &'static Clause {
    CLAUSES
        .iter()
        .find(|clause| clause.name == name)
        .unwrap_or_else(|| panic!("no clause is named {name}"))
}

/// Makes a test of each clause: `conformance_tests!(fixture);`, with
/// `async fn fixture(needs: &[Fault]) -> Option<impl Fixture>`. It returns `None`, after printing
/// why, where there is no backbone. Where a fault is needed, it returns a backbone that no other
/// test uses. The calling crate needs tokio as a dependency.
#[macro_export]
macro_rules! conformance_tests {
    ($fixture:path) => { $crate::conformance_tests! { @each [tests $fixture] } };
    // The one list of clauses, in the order in which one would want to know about them.
    (@each $what:tt) => { $crate::conformance_tests! { @make $what
        a_broker_that_works_says_so;
        positions_strictly_increase_and_name_their_previous;
        positions_come_from_the_clock;
        a_listener_without_events_misses_nothing;
        an_acknowledged_event_stands_before_one_published_later;
        concurrent_publishers_are_put_into_one_order_that_every_feed_shows;
        two_nodes_share_one_channel;

        a_feed_shows_every_event_after_its_head;
        an_opened_channel_has_every_event_in_its_page_or_its_feed;
        a_feed_without_a_reader_delays_no_other;
        dropping_a_feed_unsubscribes;
        an_event_that_a_feed_has_shown_can_be_replayed;
        replay_is_what_the_feed_showed;
        names_that_are_only_asked_for_are_not_stored;

        replay_after_the_head_is_complete_and_empty;
        replay_without_a_position_gives_the_newest;
        replay_after_the_previous_of_the_oldest_is_complete;
        replay_after_a_position_that_was_trimmed_is_incomplete;
        replay_inside_the_range_but_not_there_is_incomplete;
        replay_after_a_position_that_was_never_given_is_incomplete;
        large_histories_come_in_pages;
        a_page_ends_at_its_bytes;
        a_page_leads_to_the_head_or_says_that_there_is_more;

        history_is_trimmed_by_count;
        history_is_trimmed_by_bytes;
        history_is_trimmed_by_age;
        nodes_with_different_clocks_see_the_same_history;
        a_channel_without_history_keeps_its_chain;

        a_repeated_key_gives_the_first_position_and_no_second_event;
        a_repeated_key_among_concurrent_publishers_makes_one_event;
        a_repeated_key_is_recognised_after_its_event_was_trimmed;
        a_key_counts_for_its_channel_alone;
        a_key_with_another_payload_is_refused;
        keys_of_different_sources_do_not_meet;
        a_publish_that_was_given_up_may_be_repeated_with_its_key;
        a_publish_that_was_given_up_happened_or_did_not;

        an_ended_channel_takes_no_more_events;
        an_ended_channel_can_still_be_followed_and_replayed;
        a_repeated_end_with_its_key_gives_its_position;
        an_event_and_the_end_behind_it_are_one_append;
        an_event_with_its_end_that_was_given_up_happened_whole_or_not;

        any_valid_name_and_payload_survives;
        binary_payloads_of_one_mebibyte_survive;
        channels_do_not_hear_each_other;
        names_that_look_alike_are_different_channels;
        ten_thousand_channels_work;
        any_sequence_of_calls_agrees_with_a_list;

        after_a_wipe_nothing_old_goes_on: Wipe;
        a_store_that_returns_behind_goes_on_above_what_it_gave: ReturnBehind;
        a_feed_that_was_cut_ends_or_misses_nothing: Cut;
        a_restart_loses_no_acknowledged_event: Restart;
    } };
    (@make [tests $fixture:path] $($name:ident $(: $fault:ident)?;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let clause = $crate::conformance::clause(stringify!($name));
            if let Some(fixture) = $fixture(clause.needs).await {
                let module = module_path!();
                clause.prove(module.rsplit("::").next().unwrap_or(module), &fixture).await;
            }
        }
    )*};
    (@make [list] $($name:ident $(: $fault:ident)?;)*) => {
        /// Every clause of the contract.
        pub const CLAUSES: &[Clause] = &[$(
            Clause {
                name: stringify!($name),
                needs: &[$(Fault::$fault)?],
                run: |fixture| Box::pin($name(fixture)),
            },
        )*];
    };
}
conformance_tests! { @each [list] }

/// The rules with which a fixture's brokers are made.
pub fn rules() -> Rules {
    let hour = Duration::from_secs(3600);
    let rule = |kept: Kept| {
        let pattern = format!("conformance/{}/{{*rest}}", kept.as_str());
        let mut rule = Rule::new(pattern.parse().unwrap(), vec![TransportName::SSE]);
        let (events, age, bytes) = match kept {
            Kept::Ample => (10_000, hour, 256 << 20),
            Kept::Ten => (TEN, hour, 16 << 20),
            Kept::None => (0, hour, 16 << 20),
            Kept::FewBytes => (10_000, hour, FEW_BYTES),
            Kept::Briefly => (10_000, Duration::from_secs(1), 16 << 20),
            Kept::Minute => (10_000, Duration::from_secs(60), 16 << 20),
        };
        rule.history = History { events, age, bytes };
        rule
    };
    Rules::new(
        [
            Kept::Ample,
            Kept::Ten,
            Kept::None,
            Kept::FewBytes,
            Kept::Briefly,
            Kept::Minute,
        ]
        .map(rule),
    )
}

const TEN: usize = 10;
const FEW_BYTES: usize = 20_000;

/// The bound on what a broker keeps beyond its rule, see the module's doc.
const fn at_most(events: usize) -> usize {
    2 * events + 200
}

/// A history policy of [`rules`].
#[derive(Clone, Copy)]
enum Kept {
    Ample,
    Ten,
    None,
    FewBytes,
    Briefly,
    Minute,
}

impl Kept {
    fn as_str(self) -> &'static str {
        match self {
            Kept::Ample => "ample",
            Kept::Ten => "ten",
            Kept::None => "none",
            Kept::FewBytes => "few-bytes",
            Kept::Briefly => "briefly",
            Kept::Minute => "minute",
        }
    }
}

/// Text that no other run and no other call gives.
fn unique() -> String {
    static RUN: OnceLock<Position> = OnceLock::new();
    static CALL: AtomicU64 = AtomicU64::new(0);
    let run = RUN.get_or_init(Position::now);
    format!("{run}-{}-{}", std::process::id(), CALL.fetch_add(1, Ordering::Relaxed))
}

fn channel(kept: Kept) -> ChannelName {
    named(kept, &unique())
}

fn named(kept: Kept, rest: &str) -> ChannelName {
    ChannelName::new(&format!("conformance/{}/{rest}", kept.as_str())).unwrap()
}

fn text(text: impl ToString) -> Append {
    Append::new(Message::new(EventName::new("said").unwrap(), Data::text(text.to_string())))
}

fn key(text: &str) -> IdempotencyKey {
    IdempotencyKey::new(text).unwrap()
}

fn said(event: &Event) -> &str {
    std::str::from_utf8(event.message.data.as_bytes()).unwrap()
}

/// Waits for what must come.
async fn patiently<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, future).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: nothing for {PATIENCE:?}"),
    }
}

async fn publish(node: &dyn Broker, channel: &ChannelName, append: Append) -> Position {
    let published = patiently("publish", node.publish(channel, append)).await;
    let published = published.unwrap_or_else(|error| panic!("publish: {error}"));
    assert!(!published.duplicate, "a first publish was called a duplicate");
    published.position
}

async fn follow(node: &dyn Broker, channel: &ChannelName) -> Feed {
    let feed = patiently("follow", node.follow(channel)).await;
    feed.unwrap_or_else(|error| panic!("follow: {error}"))
}

async fn replay(node: &dyn Broker, channel: &ChannelName, after: Option<Position>, limit: usize) -> Replay {
    page(node, channel, after, PageLimit::events(limit)).await
}

async fn page(node: &dyn Broker, channel: &ChannelName, after: Option<Position>, limit: PageLimit) -> Replay {
    let replay = patiently("replay", node.replay(channel, after, limit)).await;
    replay.unwrap_or_else(|error| panic!("replay: {error}"))
}

async fn next(feed: &mut Feed) -> Arc<Event> {
    let event = patiently("the feed's next event", feed.next()).await;
    event.expect("the feed ended although nothing was disturbed")
}

async fn take(feed: &mut Feed, count: usize) -> Vec<Arc<Event>> {
    let mut events = Vec::new();
    for _ in 0..count {
        events.push(next(feed).await);
    }
    events
}

/// All that comes until `position` was shown.
async fn take_until(feed: &mut Feed, position: Position) -> Vec<Arc<Event>> {
    let mut events: Vec<Arc<Event>> = Vec::new();
    while events.last().is_none_or(|event| event.position < position) {
        events.push(next(feed).await);
    }
    events
}

/// Runs futures at the same time, at most 64 of them, and gives what they give, in no order.
async fn at_once<T: Send + 'static>(futures: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>) -> Vec<T> {
    let mut tasks = JoinSet::new();
    let mut done = Vec::new();
    for future in futures {
        while tasks.len() >= 64 {
            done.extend(tasks.join_next().await.map(joined));
        }
        tasks.spawn(future);
    }
    while let Some(result) = tasks.join_next().await {
        done.push(joined(result));
    }
    done
}

fn joined<T>(result: Result<T, tokio::task::JoinError>) -> T {
    result.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// Polls a future `times` times and gives it up.
async fn give_up(times: usize, future: impl Future) {
    let mut future = pin!(future);
    for _ in 0..times {
        let ready = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_ready())).await;
        if ready {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// What a channel's chain is known to be: the base, then every event's position.
#[derive(Clone)]
struct Chain(Vec<Position>);

impl Chain {
    async fn base(node: &dyn Broker, channel: &ChannelName) -> Chain {
        Chain(vec![replay(node, channel, None, 0).await.head])
    }

    fn head(&self) -> Position {
        *self.0.last().unwrap()
    }

    fn index_of(&self, position: Position) -> Option<usize> {
        self.0.binary_search(&position).ok()
    }

    fn before(&self, position: Position) -> Position {
        let at = self
            .index_of(position)
            .unwrap_or_else(|| panic!("{position} was never given"));
        self.0[at - 1]
    }

    async fn publish(&mut self, node: &dyn Broker, channel: &ChannelName, message: Append) -> Position {
        let position = publish(node, channel, message).await;
        assert!(position > self.head(), "{position} was given after {}", self.head());
        self.0.push(position);
        position
    }

    async fn publish_many(&mut self, node: &dyn Broker, channel: &ChannelName, count: usize) {
        for n in 0..count {
            self.publish(node, channel, text(n)).await;
        }
    }

    /// Every `previous` is right or not known.
    fn names_previous_of(&self, events: &[Arc<Event>]) {
        for event in events {
            let before = self.before(event.position);
            assert!(
                event.previous == before || event.previous == Position::ZERO,
                "{} names {} as its previous, but it is {before}",
                event.position,
                event.previous
            );
        }
    }

    /// Whether a replay is all that the contract says, if history promises the newest `promised`
    /// events.
    fn allows(&self, after: Option<Position>, limit: usize, promised: usize, replay: &Replay) {
        let positions: Vec<Position> = replay.events.iter().map(|event| event.position).collect();
        let about = || {
            let told = (replay.complete, replay.more, replay.head);
            let (events, chain) = (brief(&positions), brief(&self.0));
            format!(
                "replay after {after:?}, at most {limit}: (complete, more, head) {told:?}, events {events}, of the chain {chain}"
            )
        };
        let newest = self.0.len() - 1;
        assert_eq!(replay.head, self.head(), "not the head; {}", about());
        assert!(positions.len() <= limit, "more than asked for; {}", about());
        self.names_previous_of(&replay.events);
        let indices: Vec<usize> = positions.iter().filter_map(|position| self.index_of(*position)).collect();
        assert!(
            indices.is_sorted_by(|a, b| a + 1 == *b),
            "not a run of the chain; {}",
            about()
        );
        let (first, last) = (indices.first().copied(), indices.last().copied());
        let Some(after) = after else {
            assert_eq!(last.unwrap_or(newest), newest, "not the newest; {}", about());
            assert!(!replay.more, "there is nothing after the newest; {}", about());
            let must = limit.min(promised).min(newest);
            assert!(indices.len() >= must, "not all that is kept; {}", about());
            let all = first.unwrap_or(newest + 1) == 1;
            assert_eq!(replay.complete, all, "complete or not; {}", about());
            return;
        };
        assert!(positions.iter().all(|position| *position > after), "not after; {}", about());
        let index = self.index_of(after);
        let must = index.is_some_and(|index| index + promised >= newest);
        assert!(
            replay.complete || !must,
            "called incomplete, but history holds all; {}",
            about()
        );
        if replay.complete {
            let index = index.unwrap_or_else(|| panic!("complete after a position that was never given; {}", about()));
            assert_eq!(first.unwrap_or(index + 1), index + 1, "a part is missing; {}", about());
            assert!(
                limit == 0 || index == newest || last.is_some(),
                "everything is missing; {}",
                about()
            );
        }
        let more = match last {
            Some(last) => last < newest,
            // Whether anything is left that a page of none could have had, only the broker knows.
            None => limit == 0 && after < self.head() && replay.more,
        };
        assert_eq!(replay.more, more, "more or not; {}", about());
    }

    /// Asks for every position of the chain and for all sizes of page.
    async fn replays(&self, node: &dyn Broker, channel: &ChannelName, promised: usize) {
        let newest = self.0.len() - 1;
        for after in self.0.iter().copied().map(Some).chain([None]) {
            for limit in [1, 2, newest.saturating_sub(1), newest, newest + 1, 10_000] {
                let replay = replay(node, channel, after, limit).await;
                self.allows(after, limit, promised, &replay);
            }
        }
    }
}

fn brief(positions: &[Position]) -> String {
    match positions {
        [first, .., last] if positions.len() > 20 => format!("[{first} … {last}] ({})", positions.len()),
        _ => format!("{positions:?}"),
    }
}

/// Asserts that two nodes tell the same events. `previous` may be unknown to one of them.
fn assert_same(shown: &[Arc<Event>], replayed: &[Arc<Event>]) {
    let positions = |events: &[Arc<Event>]| events.iter().map(|event| event.position).collect::<Vec<_>>();
    assert_eq!(positions(shown), positions(replayed));
    for (a, b) in shown.iter().zip(replayed) {
        assert_eq!(a.message, b.message, "the message at {}", a.position);
        let known = a.previous != Position::ZERO && b.previous != Position::ZERO;
        assert!(!known || a.previous == b.previous, "{a:?} and {b:?} differ in their previous");
    }
}

fn assert_ended(result: Result<Published, BrokerError>) {
    match result {
        Err(error) if error.kind == BrokerErrorKind::Ended => {}
        other => panic!("a publish to an ended channel gave {other:?}"),
    }
}

/// [`Broker::ping`] of a backbone that works.
pub async fn a_broker_that_works_says_so(fixture: &dyn Fixture) {
    let node = fixture.node().await;
    patiently("ping", node.ping()).await.unwrap();
    assert!(!node.name().is_empty());
}

/// The chain, as the feed and history tell it.
pub async fn positions_strictly_increase_and_name_their_previous(fixture: &dyn Fixture) {
    let (node, channel) = (fixture.node().await, channel(Kept::Ample));
    let mut feed = follow(&*node, &channel).await;
    let mut chain = Chain(vec![feed.head]);
    chain.publish_many(&*node, &channel, 50).await;
    let shown = take(&mut feed, 50).await;
    chain.names_previous_of(&shown);
    for pair in shown.windows(2) {
        assert_eq!(
            pair[1].previous, pair[0].position,
            "a feed knows the previous event while it is kept"
        );
    }
    let replay = replay(&*node, &channel, Some(chain.0[0]), 100).await;
    chain.allows(Some(chain.0[0]), 100, 50, &replay);
}

/// So that a store which begins anew begins above all it ever gave; and they fit a JavaScript
/// number.
pub async fn positions_come_from_the_clock(fixture: &dyn Fixture) {
    let (node, channel) = (fixture.node().await, channel(Kept::Ample));
    let base = follow(&*node, &channel).await.head;
    let first = publish(&*node, &channel, text("first")).await;
    // A store may count on from the clock at which it was made; none may run ahead of the clock for
    // long.
    let (made, soon) = (Position(1_577_836_800_000_000), Position(Position::now().0 + 60_000_000));
    for position in [base, first] {
        assert!(position > made && position < soon, "{position} is not from the clock");
        assert!(position.0 < 1 << 53, "{position} does not fit a JavaScript number");
    }
}

/// Whatever first position it was given, by whichever node: after that comes all that is ever
/// published. Feeds that were there before the first event show it, too.
pub async fn a_listener_without_events_misses_nothing(fixture: &dyn Fixture) {
    let (a, b) = (fixture.node().await, fixture.node().await);
    for kept in [Kept::Ample, Kept::Ten, Kept::None] {
        let (channel, other) = (channel(kept), channel(kept));
        let (mut firsts, mut feeds) = (Vec::new(), Vec::new());
        for node in [&a, &b] {
            firsts.push(replay(&**node, &channel, None, 10).await.head);
            publish(&**node, &other, text("elsewhere")).await;
            feeds.push(follow(&**node, &channel).await);
            firsts.extend(feeds.last().map(|feed| feed.head));
        }
        assert!(!firsts.contains(&Position::ZERO), "an empty channel's head is zero");
        for node in [&a, &b] {
            for after in firsts.iter().copied().map(Some).chain([None]) {
                let replay = replay(&**node, &channel, after, 10).await;
                assert!(!replay.ended && !replay.more && replay.events.is_empty(), "{replay:?}");
                assert!(replay.complete, "nothing is there, and something is missing after {after:?}");
                assert_ne!(replay.head, Position::ZERO, "an empty channel's head is zero");
            }
        }

        let mut events = Vec::new();
        for n in 0..3 {
            events.push(publish(&*b, &channel, text(n)).await);
        }
        let promised = if matches!(kept, Kept::None) { 0 } else { events.len() };
        let after_them = fixture.node().await;
        for node in [&a, &b, &after_them] {
            for first in &firsts {
                let mut chain = Chain(vec![*first]);
                chain.0.extend(&events);
                assert!(events[0] > *first, "{} was given after {first}", events[0]);
                for limit in [1, 2, 3, 10] {
                    let replay = replay(&**node, &channel, Some(*first), limit).await;
                    chain.allows(Some(*first), limit, promised, &replay);
                }
            }
        }
        for mut feed in feeds {
            let first = feed.head;
            // One that has ended cannot tell whether anything is missing: who follows again asks
            // history, as above.
            if let Some(event) = patiently("a feed's first event", feed.next()).await {
                assert_eq!(event.position, events[0], "a feed does not begin with the first event");
                let follows = event.previous == first || event.previous == Position::ZERO;
                assert!(
                    follows,
                    "{} does not follow {first}, which its feed began with",
                    event.previous
                );
                assert_eq!(next(&mut feed).await.position, events[1]);
            }
        }
    }
}

/// Also if they are published through different nodes, whose clocks and connections differ.
pub async fn an_acknowledged_event_stands_before_one_published_later(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut feed = follow(&*nodes[1], &channel).await;
    let mut chain = Chain(vec![feed.head]);
    for n in 0..100 {
        chain.publish(&*nodes[n % 2], &channel, text(n)).await;
    }
    let shown: Vec<Position> = take(&mut feed, 100).await.iter().map(|event| event.position).collect();
    assert_eq!(shown, chain.0[1..]);
}

/// Four publishers on two nodes, two feeds on each.
pub async fn concurrent_publishers_are_put_into_one_order_that_every_feed_shows(fixture: &dyn Fixture) {
    const EACH: usize = 50;
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut feeds = Vec::new();
    for n in 0..4 {
        feeds.push(follow(&*nodes[n % 2], &channel).await);
    }
    let base = feeds[0].head;
    let given = at_once((0..4).map(|publisher| {
        let (node, channel) = (nodes[publisher % 2].clone(), channel.clone());
        async move {
            let mut given = Vec::new();
            for n in 0..EACH {
                let position = publish(&*node, &channel, text(format!("{publisher} {n}"))).await;
                given.push((position, format!("{publisher} {n}")));
                tokio::task::yield_now().await;
            }
            given
        }
    }))
    .await;
    for own in &given {
        assert!(
            own.is_sorted_by(|a, b| a.0 < b.0),
            "a publisher's own events changed places: {own:?}"
        );
    }
    let mut given: Vec<_> = given.concat();
    given.sort();
    let chain = Chain(
        [base]
            .into_iter()
            .chain(given.iter().map(|(position, _)| *position))
            .collect(),
    );
    assert!(chain.0.is_sorted_by(|a, b| a < b), "a position was given twice");
    let replayed = replay(&*nodes[0], &channel, Some(base), 1000).await;
    chain.allows(Some(base), 1000, 4 * EACH, &replayed);
    for feed in &mut feeds {
        let shown = take(feed, 4 * EACH).await;
        let told: Vec<_> = shown.iter().map(|event| (event.position, said(event).to_owned())).collect();
        assert_eq!(told, given, "a feed shows another order");
        assert_same(&shown, &replayed.events);
    }
}

/// What one node publishes the other's feed shows and its replay gives, both ways.
pub async fn two_nodes_share_one_channel(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut feeds = [follow(&*nodes[0], &channel).await, follow(&*nodes[1], &channel).await];
    assert_eq!(feeds[0].head, feeds[1].head);
    let mut chain = Chain(vec![feeds[0].head]);
    for (n, node) in nodes.iter().enumerate() {
        let position = chain.publish(&**node, &channel, text(n)).await;
        for feed in &mut feeds {
            let event = next(feed).await;
            assert_eq!((event.position, said(&event)), (position, n.to_string().as_str()));
        }
    }
    for node in &nodes {
        chain.replays(&**node, &channel, 2).await;
    }
}

/// Feeds are opened while a client publishes as fast as it can: no event falls between the head and
/// the first event that the feed shows.
pub async fn a_feed_shows_every_event_after_its_head(fixture: &dyn Fixture) {
    const EVENTS: usize = 300;
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut chain = Chain::base(&*nodes[0], &channel).await;
    let publisher = tokio::spawn({
        let (node, channel) = (nodes[0].clone(), channel.clone());
        async move {
            for n in 0..EVENTS {
                chain.publish(&*node, &channel, text(n)).await;
                tokio::task::yield_now().await;
            }
            chain
        }
    });
    let mut feeds = Vec::new();
    while feeds.len() < 20 || (!publisher.is_finished() && feeds.len() < 100) {
        feeds.push(follow(&*nodes[feeds.len() % 2], &channel).await);
        tokio::task::yield_now().await;
    }
    let mut chain = joined(publisher.await);
    let last = chain.publish(&*nodes[1], &channel, text("last")).await;
    for mut feed in feeds {
        let shown: Vec<Position> = take_until(&mut feed, last).await.iter().map(|event| event.position).collect();
        let head = chain.index_of(feed.head);
        let after_head = head.expect("a feed's head is a position of its channel") + 1;
        assert_eq!(shown, chain.0[after_head..], "not what comes after the head {}", feed.head);
    }
}

/// Channels are opened while another publishes: nothing falls between the page and the feed.
pub async fn an_opened_channel_has_every_event_in_its_page_or_its_feed(fixture: &dyn Fixture) {
    const EVENTS: usize = 300;
    const PAGE: usize = 5;
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut chain = Chain::base(&*nodes[0], &channel).await;
    let publisher = tokio::spawn({
        let (node, channel) = (nodes[0].clone(), channel.clone());
        async move {
            for n in 0..EVENTS {
                chain.publish(&*node, &channel, text(n)).await;
                tokio::task::yield_now().await;
            }
            chain
        }
    });
    let mut opened = Vec::new();
    while opened.len() < 20 || (!publisher.is_finished() && opened.len() < 100) {
        let node = &nodes[opened.len() % 2];
        let open = patiently("open", node.open(&channel, PageLimit::events(PAGE))).await;
        opened.push(open.unwrap_or_else(|error| panic!("open: {error}")));
        tokio::task::yield_now().await;
    }
    let mut chain = joined(publisher.await);
    let last = chain.publish(&*nodes[1], &channel, text("last")).await;
    for (mut feed, page) in opened {
        assert!(feed.head <= page.head, "the page was read before the feed was open");
        let of_page: Vec<Position> = page.events.iter().map(|event| event.position).collect();
        let head = chain.index_of(page.head).expect("a page's head is a position of its channel");
        let newest = &chain.0[1..=head];
        assert_eq!(of_page, newest[newest.len().saturating_sub(PAGE)..], "not the newest events");
        let shown = take_until(&mut feed, last).await.into_iter().map(|event| event.position);
        let shown: Vec<Position> = shown.filter(|position| *position > page.head).collect();
        assert_eq!(
            shown,
            chain.0[head + 1..],
            "not what comes after the page's head {}",
            page.head
        );
    }
}

/// Neither publishers nor the feeds beside it; and what it did not read it still has.
pub async fn a_feed_without_a_reader_delays_no_other(fixture: &dyn Fixture) {
    let (node, channel) = (fixture.node().await, channel(Kept::Ample));
    let mut unread = follow(&*node, &channel).await;
    let mut read = follow(&*node, &channel).await;
    let mut chain = Chain(vec![unread.head]);
    for n in 0..1000 {
        let position = chain.publish(&*node, &channel, text(n)).await;
        assert_eq!(next(&mut read).await.position, position);
    }
    let shown: Vec<Position> = take(&mut unread, 1000).await.iter().map(|event| event.position).collect();
    assert_eq!(shown, chain.0[1..]);
}

/// It alone: another feed of the same channel goes on, and a later one works. Where the backbone
/// counts subscriptions, none is left.
pub async fn dropping_a_feed_unsubscribes(fixture: &dyn Fixture) {
    let (node, channel) = (fixture.node().await, channel(Kept::Ample));
    let mut stays = follow(&*node, &channel).await;
    let mut chain = Chain(vec![stays.head]);
    for n in 0..20 {
        drop(follow(&*node, &channel).await);
        let mut dropped_soon = follow(&*node, &channel).await;
        let position = chain.publish(&*node, &channel, text(n)).await;
        assert_eq!(next(&mut dropped_soon).await.position, position);
        assert_eq!(
            next(&mut stays).await.position,
            position,
            "a feed fell silent when another one was dropped"
        );
    }
    drop(stays);
    chain.publish(&*node, &channel, text("unheard")).await;
    patiently("the end of all subscriptions", async {
        while fixture.subscriptions(&channel).await.is_some_and(|count| count > 0) {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let mut again = follow(&*node, &channel).await;
    assert_eq!(again.head, chain.head());
    let position = chain.publish(&*node, &channel, text("again")).await;
    assert_eq!(next(&mut again).await.position, position);
}

/// Keeping and showing are one step, on every node.
pub async fn an_event_that_a_feed_has_shown_can_be_replayed(fixture: &dyn Fixture) {
    const EVENTS: usize = 200;
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut feed = follow(&*nodes[1], &channel).await;
    let publisher = tokio::spawn({
        let (node, channel) = (nodes[0].clone(), channel.clone());
        async move {
            for n in 0..EVENTS {
                publish(&*node, &channel, text(n)).await;
                tokio::task::yield_now().await;
            }
        }
    });
    let mut before = feed.head;
    for n in 0..EVENTS {
        let event = next(&mut feed).await;
        let replay = replay(&*nodes[n % 2], &channel, Some(before), 10).await;
        assert!(replay.complete, "{before} was shown, but is not known");
        assert_eq!(
            replay.events.first(),
            Some(&event),
            "{} was shown, but cannot be replayed",
            event.position
        );
        assert!(replay.head >= event.position);
        before = event.position;
    }
    joined(publisher.await);
}

/// Every kind of payload, from every position on, on every node.
pub async fn replay_is_what_the_feed_showed(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut feed = follow(&*nodes[0], &channel).await;
    let mut chain = Chain(vec![feed.head]);
    for n in 0..30u8 {
        let data = match n % 3 {
            0 => Data::json(&HashMap::from([("n", n)])).unwrap(),
            1 => Data::text(format!("line {n}\r\nanother")),
            _ => Data::binary(vec![n; usize::from(n)]),
        };
        let mut message = Message::new(EventName::new(&format!("event-{n}")).unwrap(), data);
        message.key = (n % 2 == 0).then(|| Key::new(&format!("key {n}")).unwrap());
        chain
            .publish(&*nodes[usize::from(n) % 2], &channel, Append::new(message))
            .await;
    }
    let shown = take(&mut feed, 30).await;
    for node in &nodes {
        for from in 0..=30 {
            let replay = replay(&**node, &channel, Some(chain.0[from]), 100).await;
            chain.allows(Some(chain.0[from]), 100, 30, &replay);
            assert!(replay.complete);
            assert_same(&shown[from..], &replay.events);
        }
    }
}

/// A stranger can name as many channels as they like. Where the backbone counts what it stores, it
/// is not more afterwards.
pub async fn names_that_are_only_asked_for_are_not_stored(fixture: &dyn Fixture) {
    let node = fixture.node().await;
    let spoken = channel(Kept::Ample);
    publish(&*node, &spoken, text("so that there is something")).await;
    let before = fixture.stored().await;
    for _ in 0..100 {
        let silent = channel(Kept::Ample);
        let first = replay(&*node, &silent, None, 10).await.head;
        replay(&*node, &silent, Some(first), 10).await;
        drop(follow(&*node, &silent).await);
    }
    if let (Some(before), Some(after)) = (before, fixture.stored().await) {
        assert!(
            after <= before,
            "{} things are stored that were only asked for",
            after - before
        );
    }
}

/// Whether the channel has events or not, and however little it keeps.
pub async fn replay_after_the_head_is_complete_and_empty(fixture: &dyn Fixture) {
    let node = fixture.node().await;
    for kept in [Kept::Ample, Kept::Ten, Kept::None, Kept::FewBytes] {
        let channel = channel(kept);
        let mut chain = Chain::base(&*node, &channel).await;
        for n in 0..15 {
            let replay = replay(&*node, &channel, Some(chain.head()), 10).await;
            assert_eq!((replay.events.len(), replay.complete, replay.more), (0, true, false));
            assert_eq!(replay.head, chain.head());
            chain.publish(&*node, &channel, text(n)).await;
        }
    }
}

/// Oldest first; complete only if that is all that the channel ever had.
pub async fn replay_without_a_position_gives_the_newest(fixture: &dyn Fixture) {
    let node = fixture.node().await;
    for (kept, promised) in [(Kept::Ample, 10_000), (Kept::Ten, TEN)] {
        let channel = channel(kept);
        let mut chain = Chain::base(&*node, &channel).await;
        for n in 0..12 {
            chain.publish(&*node, &channel, text(n)).await;
            for limit in 0..15 {
                let replay = replay(&*node, &channel, None, limit).await;
                chain.allows(None, limit, promised, &replay);
                if n < TEN {
                    assert_eq!(replay.events.len(), limit.min(n + 1));
                }
            }
        }
    }
}

/// For its listener has missed nothing.
pub async fn replay_after_the_previous_of_the_oldest_is_complete(fixture: &dyn Fixture) {
    let (node, channel) = (fixture.node().await, channel(Kept::Ten));
    let mut chain = Chain::base(&*node, &channel).await;
    for round in 0..50 {
        chain.publish_many(&*node, &channel, 10).await;
        let before_the_promised = chain.0[round * 10];
        let replayed = replay(&*node, &channel, Some(before_the_promised), 1000).await;
        assert!(replayed.complete, "the ten newest are promised");
        assert_eq!(replayed.events.len(), 10);
        chain.allows(Some(before_the_promised), 1000, TEN, &replayed);

        let left = replay(&*node, &channel, None, 1000).await.events;
        chain.names_previous_of(&left);
        if left[0].previous != Position::ZERO {
            let replayed = replay(&*node, &channel, Some(left[0].previous), 1000).await;
            assert!(replayed.complete, "the previous of the oldest is the one before it");
            assert_same(&left, &replayed.events);
        }
    }
}

/// And gives what is left after it, without a hole.
pub async fn replay_after_a_position_that_was_trimmed_is_incomplete(fixture: &dyn Fixture) {
    let (node, channel) = (fixture.node().await, channel(Kept::Ten));
    let mut chain = Chain::base(&*node, &channel).await;
    chain.publish_many(&*node, &channel, 2 * at_most(TEN)).await;
    let left = replay(&*node, &channel, None, 10_000).await;
    assert!(!left.complete, "the oldest events are gone");
    for after in chain.0.iter().take(10) {
        for limit in [0, 1, 3, 1000] {
            let replayed = replay(&*node, &channel, Some(*after), limit).await;
            assert!(!replayed.complete, "a trimmed position was called complete");
            assert_same(&left.events[..limit.min(left.events.len())], &replayed.events);
            assert_eq!(
                replayed.more,
                limit < left.events.len(),
                "more after {limit} of {}",
                left.events.len()
            );
        }
    }
    for after in &chain.0 {
        let replayed = replay(&*node, &channel, Some(*after), 1000).await;
        chain.allows(Some(*after), 1000, TEN, &replayed);
        let held = left.events.iter().any(|event| event.position == *after);
        assert!(replayed.complete || !held, "{after} is still held, but was called incomplete");
    }
}

/// Such a position was lost in a failover, and its listener must be told: equality, not `<=`.
pub async fn replay_inside_the_range_but_not_there_is_incomplete(fixture: &dyn Fixture) {
    let (node, channel, other) = (fixture.node().await, channel(Kept::Ample), channel(Kept::Ample));
    let mut chain = Chain::base(&*node, &channel).await;
    chain.publish(&*node, &channel, text("first")).await;
    let mut holes = Vec::new();
    for n in 0..1000 {
        // Positions may come from a counter that all channels share, so the other one makes a hole.
        publish(&*node, &other, text(n)).await;
        let before = chain.head();
        let position = chain.publish(&*node, &channel, text(n)).await;
        if position.0 > before.0 + 1 {
            holes.extend([Position(before.0 + 1), Position(position.0 - 1)]);
        }
        if holes.len() >= 10 {
            break;
        }
    }
    assert!(!holes.is_empty(), "positions stand side by side: there is nothing to ask for");
    for hole in holes {
        let replayed = replay(&*node, &channel, Some(hole), 10_000).await;
        assert!(!replayed.complete, "{hole} was never given, but called complete");
        chain.allows(Some(hole), 10_000, 10_000, &replayed);
        let after = chain.0.iter().filter(|position| **position > hole).count();
        assert_eq!(replayed.events.len(), after, "not all that is left after {hole}");
    }
}

/// Zero, one, ahead of the head: clients send such things. Nothing comes after a position ahead of
/// the head.
pub async fn replay_after_a_position_that_was_never_given_is_incomplete(fixture: &dyn Fixture) {
    let node = fixture.node().await;
    for (kept, promised) in [(Kept::Ample, 3), (Kept::Ten, 3), (Kept::None, 0)] {
        let channel = channel(kept);
        let mut chain = Chain::base(&*node, &channel).await;
        for _ in 0..2 {
            let ahead = [
                chain.head().0 + 1,
                chain.head().0 * 2,
                (1 << 53) - 1,
                1 << 53,
                i64::MAX as u64,
                u64::MAX,
            ];
            for after in [0, 1, chain.0[0].0 - 1].into_iter().chain(ahead).map(Position) {
                let replayed = replay(&*node, &channel, Some(after), 10).await;
                assert!(!replayed.complete, "{after} was never given, but called complete");
                chain.allows(Some(after), 10, promised, &replayed);
                if after > chain.head() {
                    assert_eq!(replayed.events.len(), 0);
                } else {
                    assert!(replayed.events.len() >= promised.min(chain.0.len() - 1));
                }
            }
            chain.publish_many(&*node, &channel, 3).await;
        }
    }
}

/// `more` until the last one; the pages together are all of it.
pub async fn large_histories_come_in_pages(fixture: &dyn Fixture) {
    const EVENTS: usize = 2500;
    let (node, channel) = (fixture.node().await, channel(Kept::Ample));
    let mut chain = Chain::base(&*node, &channel).await;
    let given = at_once((0..EVENTS).map(|n| {
        let (node, channel) = (node.clone(), channel.clone());
        async move { publish(&*node, &channel, text(n)).await }
    }))
    .await;
    chain.0.extend(given);
    chain.0.sort();
    for limit in [300, 625, 1000, EVENTS, 5000] {
        let mut after = chain.0[0];
        let mut seen = Vec::new();
        loop {
            let page = replay(&*node, &channel, Some(after), limit).await;
            chain.allows(Some(after), limit, EVENTS, &page);
            assert_eq!(page.events.len(), limit.min(EVENTS - seen.len()), "a page that is not full");
            seen.extend(page.events.iter().map(|event| event.position));
            after = seen[seen.len() - 1];
            if !page.more {
                break;
            }
        }
        assert_eq!(seen, chain.0[1..]);
    }
}

/// A page ends at the bound of bytes with `more: true`, and the next one continues behind it. One
/// event comes even if it alone is larger. Without a position the page holds the newest events that
/// fit.
pub async fn a_page_ends_at_its_bytes(fixture: &dyn Fixture) {
    const EVENTS: usize = 40;
    const LARGE: usize = 25;
    let (node, channel) = (fixture.node().await, channel(Kept::Ample));
    let mut chain = Chain::base(&*node, &channel).await;
    for n in 0..EVENTS {
        let length = if n == LARGE { 50_000 } else { 1000 };
        chain.publish(&*node, &channel, text("x".repeat(length))).await;
    }
    for (events, bytes, most_pages) in [
        (100, 0, EVENTS),
        (100, 1, EVENTS),
        (100, 2500, 22),
        (100, 10_000, 7),
        (100, 51_000, 3),
        (5, 10_000, 10),
        (3, usize::MAX, 14),
        (100, usize::MAX, 1),
    ] {
        let limit = PageLimit { events, bytes };
        let about = format!("with at most {events} events and {bytes} bytes");
        let within = |replay: &Replay| {
            let sizes: Vec<usize> = replay.events.iter().map(|event| event.message.weight()).collect();
            let fits = sizes.len() == 1 || sizes.iter().sum::<usize>() <= bytes;
            assert!(
                fits && sizes.len() <= events,
                "a page {about} holds events of {sizes:?} bytes"
            );
        };
        let (mut seen, mut pages) = (Vec::new(), 0);
        loop {
            let after = seen.last().copied().unwrap_or(chain.0[0]);
            let replay = page(&*node, &channel, Some(after), limit).await;
            within(&replay);
            chain.allows(Some(after), events, EVENTS, &replay);
            assert!(replay.complete, "a page {about} after {after} is incomplete");
            assert!(!replay.events.is_empty(), "a page {about} after {after} is empty");
            seen.extend(replay.events.iter().map(|event| event.position));
            pages += 1;
            if !replay.more {
                break;
            }
        }
        assert_eq!(seen, chain.0[1..], "the pages {about} are not all events");
        assert!(pages <= most_pages, "{pages} pages {about}, where {most_pages} are enough");

        let newest = page(&*node, &channel, None, limit).await;
        within(&newest);
        let positions: Vec<Position> = newest.events.iter().map(|event| event.position).collect();
        assert!(
            !positions.is_empty() && chain.0.ends_with(&positions),
            "not the newest events {about}: {positions:?}"
        );
        let room = (bytes / 1100).min(EVENTS - LARGE - 1).min(events).max(1);
        assert!(positions.len() >= room, "{} newest events {about}", positions.len());
        assert!(!newest.more, "nothing follows the newest events");
        assert_eq!(newest.complete, positions.len() == EVENTS, "complete or not, {about}");
    }
}

/// Whatever is published and trimmed while it is read: its events follow each other, and the last
/// one is the head, unless there is more. A page that ends early and does not say so hides events
/// for good.
pub async fn a_page_leads_to_the_head_or_says_that_there_is_more(fixture: &dyn Fixture) {
    const EVENTS: usize = 400;
    let (writer, reader) = (fixture.node().await, fixture.node().await);
    let channel = channel(Kept::Ten);
    let begin = Chain::base(&*reader, &channel).await.head();
    let writing = {
        let channel = channel.clone();
        tokio::spawn(async move {
            for n in 0..EVENTS {
                publish(&*writer, &channel, text(n)).await;
            }
        })
    };
    let mut read_to = begin;
    loop {
        let over = writing.is_finished();
        for after in [None, Some(read_to), Some(begin)] {
            let page = replay(&*reader, &channel, after, 1000).await;
            let positions: Vec<Position> = page.events.iter().map(|event| event.position).collect();
            let about = || format!("after {after:?}: {} of {}", brief(&positions), page.head);
            for pair in page.events.windows(2) {
                let previous = pair[1].previous;
                assert!(
                    previous == pair[0].position || previous == Position::ZERO,
                    "a hole before {}; {}",
                    pair[1].position,
                    about()
                );
            }
            if let Some(last) = page.events.last() {
                assert!(
                    page.more || last.position == page.head,
                    "it ends before the head; {}",
                    about()
                );
            }
            if after == Some(read_to) {
                read_to = positions.last().copied().unwrap_or(page.head);
            }
        }
        if over {
            break;
        }
    }
    patiently("the publisher", writing).await.unwrap();
}

/// It holds what the rule promises, and not much more.
pub async fn history_is_trimmed_by_count(fixture: &dyn Fixture) {
    let (node, channel) = (fixture.node().await, channel(Kept::Ten));
    let mut chain = Chain::base(&*node, &channel).await;
    for n in 0..2 * at_most(TEN) {
        chain.publish(&*node, &channel, text(n)).await;
        if n % 50 == 0 || n < 2 * TEN {
            let left = replay(&*node, &channel, None, 10_000).await;
            chain.allows(None, 10_000, TEN, &left);
            assert!(
                left.events.len() >= TEN.min(n + 1),
                "less than promised: {}",
                left.events.len()
            );
            assert!(
                left.events.len() <= at_most(TEN),
                "{} events are kept instead of {TEN}",
                left.events.len()
            );
        }
    }
}

/// It holds what fits, and not much more.
pub async fn history_is_trimmed_by_bytes(fixture: &dyn Fixture) {
    let (node, channel) = (fixture.node().await, channel(Kept::FewBytes));
    let mut chain = Chain::base(&*node, &channel).await;
    let payload = "x".repeat(2000);
    let fitting = FEW_BYTES / text(&payload).message.weight();
    for n in 0..200 {
        chain.publish(&*node, &channel, text(&payload)).await;
        if n % 20 == 0 || n < 2 * fitting {
            let left = replay(&*node, &channel, None, 10_000).await;
            chain.allows(None, 10_000, fitting, &left);
            let bytes: usize = left.events.iter().map(|event| event.message.weight()).sum();
            assert!(
                left.events.len() >= fitting.min(n + 1),
                "less than promised: {}",
                left.events.len()
            );
            assert!(bytes <= 4 * FEW_BYTES, "{bytes} bytes are kept instead of {FEW_BYTES}");
        }
    }
}

/// Old events go, even without a publish; the chain stays.
pub async fn history_is_trimmed_by_age(fixture: &dyn Fixture) {
    let (node, channel) = (fixture.node().await, channel(Kept::Briefly));
    let mut feed = follow(&*node, &channel).await;
    let mut chain = Chain(vec![feed.head]);
    chain.publish_many(&*node, &channel, 3).await;
    patiently("the end of old events", async {
        while !replay(&*node, &channel, None, 10).await.events.is_empty() {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    for after in chain.0.clone() {
        let replayed = replay(&*node, &channel, Some(after), 10).await;
        chain.allows(Some(after), 10, 0, &replayed);
        assert_eq!(replayed.complete, after == chain.head());
    }
    chain.publish(&*node, &channel, text("late")).await;
    chain.names_previous_of(&take(&mut feed, 4).await);
    let after = chain.0[3];
    chain.allows(Some(after), 10, 0, &replay(&*node, &channel, Some(after), 10).await);
}

/// One clock judges how old an event is, and none of a node: neither of the one that published nor
/// of the one that reads.
pub async fn nodes_with_different_clocks_see_the_same_history(fixture: &dyn Fixture) {
    const MINUTES: i64 = 120_000_000;
    const MOMENT: i64 = 20_000;
    // Younger than the age by far, if the difference of the clocks is left out.
    let nodes = [
        fixture.node().await,
        fixture.node_with_clock(-MINUTES).await,
        fixture.node_with_clock(MINUTES).await,
    ];
    let young = channel(Kept::Minute);
    let mut chain = Chain::base(&*nodes[0], &young).await;
    for n in 0..12 {
        chain.publish(&*nodes[n % 3], &young, text(n)).await;
    }
    for node in &nodes {
        chain.allows(None, 100, 12, &replay(&**node, &young, None, 100).await);
        chain.allows(None, 5, 12, &replay(&**node, &young, None, 5).await);
        for after in &chain.0 {
            chain.allows(Some(*after), 100, 12, &replay(&**node, &young, Some(*after), 100).await);
        }
    }
    // Some are always just about to be too old.
    let nodes = [fixture.node_with_clock(-MOMENT).await, fixture.node_with_clock(MOMENT).await];
    let reader = fixture.node().await;
    let old = channel(Kept::Briefly);
    let mut chain = Chain::base(&*reader, &old).await;
    let mut trimmed = 0;
    while trimmed < 20 {
        for node in nodes.iter().chain(&nodes) {
            chain.publish(&**node, &old, text("said")).await;
            sleep(Duration::from_millis(5)).await;
        }
        for node in [&reader, &nodes[0]] {
            let page = replay(&**node, &old, None, 10_000).await;
            chain.allows(None, 10_000, 0, &page);
            assert!(!page.events.is_empty(), "the newest is not too old");
            trimmed += usize::from(!page.complete);
            let after = chain.0[chain.0.len() / 2];
            chain.allows(Some(after), 10_000, 0, &replay(&**node, &old, Some(after), 10_000).await);
        }
    }
}

/// Feeds show everything, the head moves, and a replay says that it cannot.
pub async fn a_channel_without_history_keeps_its_chain(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::None);
    let mut feed = follow(&*nodes[1], &channel).await;
    let mut chain = Chain(vec![feed.head]);
    for n in 0..2 * at_most(0) {
        chain.publish(&*nodes[0], &channel, text(n)).await;
        let event = next(&mut feed).await;
        assert_eq!((event.position, said(&event)), (chain.head(), n.to_string().as_str()));
        chain.names_previous_of(&[event]);
        if n < 5 || n % 100 == 0 {
            chain.replays(&*nodes[1], &channel, 0).await;
        }
    }
    let left = replay(&*nodes[0], &channel, None, 10_000).await;
    assert!(
        left.events.len() <= at_most(0),
        "{} events are kept instead of none",
        left.events.len()
    );
    assert_eq!(follow(&*nodes[0], &channel).await.head, chain.head());
}

/// From whichever node it is repeated.
pub async fn a_repeated_key_gives_the_first_position_and_no_second_event(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut feed = follow(&*nodes[0], &channel).await;
    let mut chain = Chain(vec![feed.head]);
    let first = chain
        .publish(&*nodes[0], &channel, text("one").with_idempotency_key(key("k")))
        .await;
    chain
        .publish(&*nodes[0], &channel, text("two").with_idempotency_key(key("K")))
        .await;
    for node in [&nodes[0], &nodes[1], &nodes[0], &nodes[1]] {
        let repeated = text("one").with_idempotency_key(key("k"));
        let published = patiently("publish", node.publish(&channel, repeated)).await.unwrap();
        assert_eq!((published.position, published.duplicate), (first, true));
    }
    // Without a key the same text is another event.
    chain.publish(&*nodes[1], &channel, text("one")).await;
    chain.publish(&*nodes[1], &channel, text("one")).await;
    let shown = take(&mut feed, 4).await;
    assert_eq!(
        shown.iter().map(|event| said(event)).collect::<Vec<_>>(),
        ["one", "two", "one", "one"]
    );
    chain.replays(&*nodes[1], &channel, 4).await;
}

/// The check and the append are one step, over all nodes.
pub async fn a_repeated_key_among_concurrent_publishers_makes_one_event(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    for round in 0..10 {
        let channel = channel(Kept::Ample);
        let mut feed = follow(&*nodes[0], &channel).await;
        let published = at_once((0..16).map(|n| {
            let (node, channel) = (nodes[n % 2].clone(), channel.clone());
            async move {
                let publish = text("same").with_idempotency_key(key("same"));
                patiently("publish", node.publish(&channel, publish)).await.unwrap()
            }
        }))
        .await;
        let first = published[0].position;
        assert!(
            published.iter().all(|p| p.position == first),
            "one key, several positions: {published:?}"
        );
        let news = published.iter().filter(|p| !p.duplicate).count();
        assert_eq!(
            news, 1,
            "round {round}: so many publishers were told that theirs was the first"
        );
        let last = publish(&*nodes[1], &channel, text("last")).await;
        let shown: Vec<Position> = take_until(&mut feed, last).await.iter().map(|event| event.position).collect();
        assert_eq!(shown, [first, last]);
    }
}

/// Its window does not depend on history.
pub async fn a_repeated_key_is_recognised_after_its_event_was_trimmed(fixture: &dyn Fixture) {
    let node = fixture.node().await;
    for kept in [Kept::None, Kept::Ten] {
        let channel = channel(kept);
        let mut chain = Chain::base(&*node, &channel).await;
        let first = chain
            .publish(&*node, &channel, text("one").with_idempotency_key(key("k")))
            .await;
        chain.publish_many(&*node, &channel, 2 * at_most(TEN)).await;
        let again = patiently("publish", node.publish(&channel, text("one").with_idempotency_key(key("k")))).await;
        let again = again.unwrap();
        assert_eq!((again.position, again.duplicate), (first, true));
        assert_eq!(replay(&*node, &channel, None, 1).await.head, chain.head());
    }
}

/// The same key in another channel is another publish.
pub async fn a_key_counts_for_its_channel_alone(fixture: &dyn Fixture) {
    let node = fixture.node().await;
    let rest = unique();
    for name in [format!("{rest}/a"), format!("{rest}/b"), format!("{rest}/a/b"), rest] {
        publish(&*node, &named(Kept::Ample, &name), text(&name).with_idempotency_key(key("k"))).await;
        // A key that spells the boundary between name and key must not cross it either.
        publish(
            &*node,
            &named(Kept::Ample, &name),
            text(&name).with_idempotency_key(key("a/k")),
        )
        .await;
        publish(
            &*node,
            &named(Kept::Ample, &name),
            text(&name).with_idempotency_key(key("/k")),
        )
        .await;
    }
}

/// The first payload counts, on every node, and after the channel's end too.
pub async fn a_key_with_another_payload_is_refused(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut chain = Chain::base(&*nodes[0], &channel).await;
    let keyed = |append: Append| append.with_idempotency_key(key("k"));
    let first = chain.publish(&*nodes[0], &channel, keyed(text("one"))).await;
    let with_key = Message::new(EventName::new("said").unwrap(), Data::text("one")).with_key(Key::new("a").unwrap());
    let others = [
        text("two"),
        text("one").and_end(),
        Append::end(),
        Append::new(Message::new(EventName::new("heard").unwrap(), Data::text("one"))),
        Append::new(Message::new(EventName::new("said").unwrap(), Data::binary("one"))),
        Append::new(with_key),
    ];
    for ended in [false, true] {
        for node in &nodes {
            for other in &others {
                let result = patiently("publish", node.publish(&channel, keyed(other.clone()))).await;
                match result {
                    Err(error) if error.kind == BrokerErrorKind::Rejected => {}
                    other => panic!("a known key with another payload gave {other:?}"),
                }
            }
            let again = patiently("publish", node.publish(&channel, keyed(text("one"))))
                .await
                .unwrap();
            assert_eq!((again.position, again.duplicate), (first, true));
            let replayed = replay(&**node, &channel, None, 100).await;
            assert_eq!(
                (replayed.head, replayed.ended),
                (chain.head(), ended),
                "something was appended"
            );
        }
        if !ended {
            chain.publish(&*nodes[1], &channel, Append::end()).await;
        }
    }
}

/// Backend, users, connections, and the parts of one handled message: each has keys of its own.
pub async fn keys_of_different_sources_do_not_meet(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut chain = Chain::base(&*nodes[0], &channel).await;
    let print = |text: &str| Fingerprint::of_message(&Message::new(EventName::new("say").unwrap(), Data::text(text)), false);
    let mut keys = Vec::new();
    for caller in ["k", "k~1", "k~end", &"k".repeat(255)] {
        let key = key(caller);
        keys.push(ScopedKey::backend(&key));
        for part in 0..3 {
            for source in [
                KeySource::User("ann"),
                KeySource::User("k \u{e9}"),
                KeySource::Connection(1, 2),
            ] {
                keys.push(ScopedKey::client(source, &key, part, print("said")));
            }
        }
    }
    let keyed = |n: usize, key: &ScopedKey| text(n).with_idempotency_key(key.clone());
    let mut positions = Vec::new();
    for (n, key) in keys.iter().enumerate() {
        positions.push(chain.publish(&*nodes[n % 2], &channel, keyed(n, key)).await);
    }
    for (n, key) in keys.iter().enumerate() {
        let again = patiently("publish", nodes[(n + 1) % 2].publish(&channel, keyed(n, key)))
            .await
            .unwrap();
        assert_eq!((again.position, again.duplicate), (positions[n], true), "{key:?}");
    }
    // What a handler makes of a repeated message may differ. What its client says may not.
    let said = |text: &str| ScopedKey::client(KeySource::User("ann"), &key("k"), 0, print(text));
    let again = patiently("publish", nodes[0].publish(&channel, keyed(1000, &said("said"))))
        .await
        .unwrap();
    assert_eq!((again.position, again.duplicate), (positions[1], true));
    let other = patiently("publish", nodes[1].publish(&channel, keyed(1, &said("other")))).await;
    assert!(other.is_err_and(|error| error.kind == BrokerErrorKind::Rejected));
    assert_eq!(replay(&*nodes[0], &channel, None, 0).await.head, chain.head());
}

/// A caller that gave up waiting repeats it; either way there is one event.
pub async fn a_publish_that_was_given_up_may_be_repeated_with_its_key(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut feed = follow(&*nodes[1], &channel).await;
    let mut expected = Vec::new();
    for n in 0..40 {
        let message = text(n).with_idempotency_key(key(&format!("k{n}")));
        give_up(n % 8, nodes[0].publish(&channel, message.clone())).await;
        let published = patiently("publish", nodes[n % 2].publish(&channel, message)).await.unwrap();
        expected.push((published.position, n.to_string()));
    }
    let last = publish(&*nodes[0], &channel, text("last")).await;
    expected.push((last, "last".into()));
    let shown = take_until(&mut feed, last).await;
    let shown: Vec<_> = shown.iter().map(|event| (event.position, said(event).to_owned())).collect();
    assert_eq!(shown, expected);
}

/// Nothing in between: it is in feed and history alike, once, or in neither.
pub async fn a_publish_that_was_given_up_happened_or_did_not(fixture: &dyn Fixture) {
    let (node, channel) = (fixture.node().await, channel(Kept::Ample));
    let mut feed = follow(&*node, &channel).await;
    for n in 0..80 {
        give_up(n % 8, node.publish(&channel, text(n))).await;
    }
    let last = publish(&*node, &channel, text("last")).await;
    let shown = take_until(&mut feed, last).await;
    for pair in shown.windows(2) {
        assert!(pair[0].position < pair[1].position);
        assert_eq!(pair[1].previous, pair[0].position);
    }
    let mut replayed = replay(&*node, &channel, Some(feed.head), 1000).await;
    assert!(replayed.complete);
    // One that was under way may still have come after the last one.
    replayed.events.retain(|event| event.position <= last);
    assert_same(&shown, &replayed.events);
    let mut texts: Vec<_> = shown.iter().map(|event| said(event)).collect();
    texts.sort();
    let count = texts.len();
    texts.dedup();
    assert_eq!(texts.len(), count, "an event happened twice");
}

/// The end is the last event, on every node.
pub async fn an_ended_channel_takes_no_more_events(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut feed = follow(&*nodes[1], &channel).await;
    let mut chain = Chain(vec![feed.head]);
    chain.publish(&*nodes[0], &channel, text("one")).await;
    assert!(!replay(&*nodes[0], &channel, None, 10).await.ended);
    chain.publish(&*nodes[0], &channel, Append::end()).await;
    for node in &nodes {
        assert_ended(patiently("publish", node.publish(&channel, text("late"))).await);
        assert_ended(
            patiently(
                "publish",
                node.publish(&channel, text("late").with_idempotency_key(key("new"))),
            )
            .await,
        );
        assert_ended(patiently("publish", node.publish(&channel, Append::end())).await);
        let replayed = replay(&**node, &channel, None, 10).await;
        chain.allows(None, 10, 2, &replayed);
        assert!(replayed.ended && replayed.events[1].is_end());
    }
    let shown = take(&mut feed, 2).await;
    assert!(shown[1].is_end() && shown[1].position == chain.head());
}

/// A late visitor hears all of it, and that it is over.
pub async fn an_ended_channel_can_still_be_followed_and_replayed(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    for kept in [Kept::Ample, Kept::None] {
        let channel = channel(kept);
        let mut chain = Chain::base(&*nodes[0], &channel).await;
        let promised = if matches!(kept, Kept::None) { 0 } else { 3 };
        chain.publish_many(&*nodes[0], &channel, 2).await;
        chain.publish(&*nodes[0], &channel, Append::end()).await;
        for node in &nodes {
            assert_eq!(follow(&**node, &channel).await.head, chain.head());
            for after in chain.0.iter().copied().map(Some).chain([None]) {
                let replayed = replay(&**node, &channel, after, 10).await;
                assert!(
                    replayed.ended,
                    "the replay after {after:?} does not know that the channel has ended"
                );
                chain.allows(after, 10, promised, &replayed);
            }
        }
    }
}

/// And so does the key of an earlier event; only something new is refused.
pub async fn a_repeated_end_with_its_key_gives_its_position(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut chain = Chain::base(&*nodes[0], &channel).await;
    let first = chain
        .publish(&*nodes[0], &channel, text("one").with_idempotency_key(key("one")))
        .await;
    let end = chain
        .publish(&*nodes[0], &channel, Append::end().with_idempotency_key(key("end")))
        .await;
    for node in &nodes {
        for (repeated, position) in [
            (Append::end().with_idempotency_key(key("end")), end),
            (text("one").with_idempotency_key(key("one")), first),
        ] {
            let published = patiently("publish", node.publish(&channel, repeated)).await.unwrap();
            assert_eq!((published.position, published.duplicate), (position, true));
        }
        assert_ended(
            patiently(
                "publish",
                node.publish(&channel, Append::end().with_idempotency_key(key("other"))),
            )
            .await,
        );
    }
    chain.replays(&*nodes[1], &channel, 2).await;
}

/// Behind the event stands its end and nothing else, in feeds and in pages of any size, and the
/// end's position is given.
pub async fn an_event_and_the_end_behind_it_are_one_append(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    for (kept, promised) in [(Kept::Ample, 100), (Kept::Ten, TEN), (Kept::None, 0)] {
        for earlier in [0, 1, 12] {
            let channel = channel(kept);
            let mut feed = follow(&*nodes[1], &channel).await;
            let mut chain = Chain(vec![feed.head]);
            chain.publish_many(&*nodes[0], &channel, earlier).await;
            let last = text("last").and_end().with_idempotency_key(key("k"));
            let published = patiently("publish", nodes[0].publish(&channel, last.clone())).await.unwrap();
            assert!(!published.duplicate);
            let shown = take(&mut feed, earlier + 2).await;
            assert_eq!(said(&shown[earlier]), "last");
            assert!(shown[earlier + 1].is_end());
            chain.0.extend(shown[earlier..].iter().map(|event| event.position));
            assert!(chain.0.is_sorted_by(|a, b| a < b));
            chain.names_previous_of(&shown);
            assert_eq!(published.position, chain.head(), "the end's position is the channel's last");
            for node in &nodes {
                for after in chain.0.iter().copied().map(Some).chain([None]) {
                    for limit in [1, 2, 3, 100] {
                        let replayed = replay(&**node, &channel, after, limit).await;
                        assert!(replayed.ended);
                        chain.allows(after, limit, promised, &replayed);
                    }
                }
                assert_eq!(follow(&**node, &channel).await.head, chain.head());
                let again = patiently("publish", node.publish(&channel, last.clone())).await.unwrap();
                assert_eq!((again.position, again.duplicate), (chain.head(), true));
                assert_ended(patiently("publish", node.publish(&channel, text("late"))).await);
                assert_ended(patiently("publish", node.publish(&channel, text("late").and_end())).await);
            }
        }
    }
}

/// Never the event without its end.
pub async fn an_event_with_its_end_that_was_given_up_happened_whole_or_not(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    for n in 0..24 {
        let channel = channel(Kept::Ample);
        let base = replay(&*nodes[0], &channel, None, 0).await.head;
        give_up(n % 8, nodes[0].publish(&channel, text("last").and_end())).await;
        for node in &nodes {
            let replayed = replay(&**node, &channel, Some(base), 10).await;
            match &replayed.events[..] {
                [] => assert!(!replayed.ended),
                [event, end] => assert!(said(event) == "last" && end.is_end() && replayed.ended),
                other => panic!("half of it happened: {other:?}"),
            }
        }
    }
}

/// Every character that is allowed, the longest names, every byte; each through feed and replay of
/// another node.
pub async fn any_valid_name_and_payload_survives(fixture: &dyn Fixture) {
    const NAME: &str = "ABCXYZabcxyz0189-_.~:@=+";
    let nodes = [fixture.node().await, fixture.node().await];
    let every_byte: Vec<u8> = (0..=255).collect();
    let payloads = [
        Data::text(""),
        Data::text("line\r\n\nline\r\0\u{1}\u{7f}\u{85}\u{2028}\u{feff}é😀"),
        Data::text("{\"looks\": \"like JSON\"}"),
        Data::text("* > $ ' \" \\ % { } [ ] \u{1b}[31m"),
        Data::json_text("{\"a\": [1, 2.50, null, \"\u{2028}\\u0000 é😀\"]}").unwrap(),
        Data::json_text("null").unwrap(),
        Data::json_text("123456789012345678901234567890").unwrap(),
        Data::binary(vec![]),
        Data::binary(every_byte),
        Data::binary(b"\r\n\r\n+OK\r\n$-1\r\n".to_vec()),
    ];
    let (event_names, keys) = (
        [NAME, "a", "-", "..", "airwave", &"e".repeat(255)],
        ["k", " ", "é😀 *>$'\"\\{}", &"k".repeat(255), &"é".repeat(127)],
    );
    let idempotency_keys = ["k", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", &"i".repeat(255)];
    let rest = unique();
    let long = |c: &str| format!("{rest}/{}", c.repeat(254 - rest.len() - "conformance/ample/".len()));
    for rest in [
        format!("{rest}/{NAME}"),
        format!("{NAME}/{rest}"),
        long("x"),
        long("."),
        format!("{rest}/-/_/~/:/..."),
    ] {
        let channel = named(Kept::Ample, &rest);
        let mut feed = follow(&*nodes[1], &channel).await;
        let mut chain = Chain(vec![feed.head]);
        let mut messages = Vec::new();
        for n in 0..30 {
            let event = EventName::new(event_names[n % event_names.len()]).unwrap();
            let mut message = Message::new(event, payloads[n % payloads.len()].clone());
            message.key = (n % 4 != 0).then(|| Key::new(keys[n % keys.len()]).unwrap());
            messages.push(message);
        }
        for (n, message) in messages.iter().enumerate() {
            let mut append = Append::new(message.clone());
            append.idempotency_key = idempotency_keys.get(n).map(|text| key(text).into());
            chain.publish(&*nodes[0], &channel, append).await;
        }
        let shown = take(&mut feed, messages.len()).await;
        let replayed = replay(&*nodes[1], &channel, None, 100).await.events;
        assert_same(&shown, &replayed);
        for (event, message) in replayed.iter().zip(&messages) {
            assert_eq!(event.message, *message, "in channel {channel}");
            assert_eq!(event.message.data.as_bytes(), message.data.as_bytes());
        }
    }
}

/// Whatever the limit of the servers before it is.
pub async fn binary_payloads_of_one_mebibyte_survive(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut feed = follow(&*nodes[1], &channel).await;
    for n in 0..3u32 {
        let bytes: Vec<u8> = (0..1u32 << 20).map(|i| (i ^ (i >> 8) ^ n).to_le_bytes()[0]).collect();
        let message = Message::new(EventName::new("large").unwrap(), Data::binary(bytes.clone()));
        publish(&*nodes[0], &channel, Append::new(message)).await;
        let shown = next(&mut feed).await;
        let replayed = replay(&*nodes[1], &channel, None, 1).await.events;
        for event in [&shown, &replayed[0]] {
            assert_eq!(event.message.data.len(), bytes.len());
            assert!(event.message.data.as_bytes() == bytes, "a large payload was changed");
        }
    }
}

/// Nor do their chains, ends and positions touch.
pub async fn channels_do_not_hear_each_other(fixture: &dyn Fixture) {
    let node = fixture.node().await;
    let channels = [channel(Kept::Ample), channel(Kept::Ample), channel(Kept::Ample)];
    let mut open = Vec::new();
    for channel in &channels {
        let feed = follow(&*node, channel).await;
        open.push((channel, Chain(vec![feed.head]), feed));
    }
    for n in 0..20 {
        for (channel, chain, _) in &mut open {
            chain.publish(&*node, channel, text(format!("{channel} {n}"))).await;
        }
    }
    publish(&*node, &channels[2], Append::end()).await;
    for (channel, chain, feed) in &mut open[..2] {
        chain.publish(&*node, channel, text(format!("{channel} 20"))).await;
        let shown = take(feed, 21).await;
        chain.names_previous_of(&shown);
        for (n, event) in shown.iter().enumerate() {
            assert_eq!(said(event), format!("{channel} {n}"));
        }
        chain.replays(&*node, channel, 21).await;
    }
}

/// A broker with another alphabet for its names must not fold two into one.
pub async fn names_that_look_alike_are_different_channels(fixture: &dyn Fixture) {
    let node = fixture.node().await;
    let rest = unique();
    let alike = [
        "a/b", "a.b", "a:b", "a_b", "a-b", "a~b", "a@b", "a=b", "a+b", "A/b", "a/B", "ab", "a", "a/b/c", "a=2Fb", "a=2fb",
        "a~1b", "a_2Fb", "a/.b", "a.../b", "b", "a=", "a==", "a=3D", "a~", "a~~", "a~0", "a__b", "a--b",
    ];
    let mut feeds = Vec::new();
    for name in alike {
        feeds.push((name, follow(&*node, &named(Kept::Ample, &format!("{rest}/{name}"))).await));
    }
    for (name, feed) in &feeds {
        let channel = named(Kept::Ample, &format!("{rest}/{name}"));
        publish(&*node, &channel, text(name).with_idempotency_key(key("same"))).await;
        let replayed = replay(&*node, &channel, Some(feed.head), 10).await;
        assert!(
            replayed.complete && replayed.events.len() == 1,
            "{name} shares its chain: {replayed:?}"
        );
        assert_eq!(said(&replayed.events[0]), *name);
    }
    for (name, feed) in &mut feeds {
        assert_eq!(said(&*next(feed).await), *name);
        publish(&*node, &named(Kept::Ample, &format!("{rest}/{name}")), text("last")).await;
        assert_eq!(said(&*next(feed).await), "last", "{name} heard another channel");
    }
}

/// Followed and published to at once; each feed shows its own event.
pub async fn ten_thousand_channels_work(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let names: Vec<ChannelName> = (0..10_000).map(|_| channel(Kept::Ample)).collect();
    let feeds = at_once(names.clone().into_iter().map(|name| {
        let node = nodes[1].clone();
        async move { (name.clone(), follow(&*node, &name).await) }
    }))
    .await;
    at_once(names.into_iter().map(|name| {
        let node = nodes[0].clone();
        async move { publish(&*node, &name, text(&name)).await }
    }))
    .await;
    for (n, (name, mut feed)) in feeds.into_iter().enumerate() {
        let event = next(&mut feed).await;
        assert_eq!(said(&event), name.as_str());
        if n % 100 == 0 {
            let replayed = replay(&*nodes[1], &name, Some(feed.head), 10).await;
            assert!(replayed.complete && replayed.events.len() == 1, "{name}: {replayed:?}");
        }
    }
}

/// Publish, repeat, follow, drop, replay, end, by dice, over two nodes, checked against a list.
pub async fn any_sequence_of_calls_agrees_with_a_list(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    for (seed, kept, promised) in [
        (1, Kept::Ample, 10_000),
        (2, Kept::Ten, TEN),
        (3, Kept::None, 0),
        (4, Kept::Ten, TEN),
    ] {
        let mut dice = Dice(seed);
        let channel = channel(kept);
        let mut chain = Chain::base(&*nodes[0], &channel).await;
        let mut keys: Vec<(Append, Position)> = Vec::new();
        let mut feeds: Vec<(Feed, Position)> = Vec::new();
        for step in 0..300 {
            let node = &*nodes[dice.roll(2)];
            match dice.roll(10) {
                0..4 => {
                    chain.publish(node, &channel, text(step)).await;
                }
                4 => {
                    let fresh = text(step).with_idempotency_key(key(&format!("key-{step}")));
                    let position = chain.publish(node, &channel, fresh.clone()).await;
                    keys.push((fresh, position));
                }
                5 if !keys.is_empty() => {
                    let (old, position) = &keys[dice.roll(keys.len())];
                    let published = patiently("publish", node.publish(&channel, old.clone())).await.unwrap();
                    assert_eq!(
                        (published.position, published.duplicate),
                        (*position, true),
                        "seed {seed}, step {step}"
                    );
                }
                6 if feeds.len() < 4 => {
                    let feed = follow(node, &channel).await;
                    assert_eq!(feed.head, chain.head(), "seed {seed}, step {step}");
                    let head = feed.head;
                    feeds.push((feed, head));
                }
                7 if !feeds.is_empty() => {
                    let at = dice.roll(feeds.len());
                    let (feed, shown) = &mut feeds[at];
                    let from = chain.index_of(*shown).unwrap() + 1;
                    for expected in &chain.0[from..] {
                        assert_eq!(next(feed).await.position, *expected, "seed {seed}, step {step}");
                    }
                    *shown = chain.head();
                    if dice.roll(2) == 0 {
                        feeds.swap_remove(at);
                    }
                }
                _ => {
                    let somewhere = chain.0[dice.roll(chain.0.len())];
                    let after = [None, Some(somewhere), Some(Position(somewhere.0 + 1))][dice.roll(3)];
                    let limit = [1, 3, 10, 1000][dice.roll(4)];
                    let replayed = replay(node, &channel, after, limit).await;
                    chain.allows(after, limit, promised, &replayed);
                }
            }
        }
        chain.publish(&*nodes[0], &channel, Append::end()).await;
        assert_ended(patiently("publish", nodes[1].publish(&channel, text("late"))).await);
    }
}

/// Small, repeatable, and no dependency (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides as u64) as usize
    }
}

/// Publishes until it is acknowledged, as a caller with a key may.
async fn insist(node: &dyn Broker, channel: &ChannelName, message: Append) -> Position {
    assert!(message.idempotency_key.is_some(), "only a publish with a key may be repeated");
    patiently("publishing after a fault", async {
        loop {
            match node.publish(channel, message.clone()).await {
                Ok(published) => return published.position,
                Err(error) if error.kind == BrokerErrorKind::Unavailable => sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("publish after a fault: {error}"),
            }
        }
    })
    .await
}

/// Asks until there is an answer.
async fn insist_on_replay(node: &dyn Broker, channel: &ChannelName, after: Position) -> Replay {
    patiently("replaying after a fault", async {
        loop {
            match node.replay(channel, Some(after), PageLimit::events(10_000)).await {
                Ok(replay) => return replay,
                Err(error) if error.kind == BrokerErrorKind::Unavailable => sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("replay after a fault: {error}"),
            }
        }
    })
    .await
}

async fn insist_on_following(node: &dyn Broker, channel: &ChannelName) -> Feed {
    patiently("following after a fault", async {
        loop {
            match node.follow(channel).await {
                Ok(feed) => return feed,
                Err(error) if error.kind == BrokerErrorKind::Unavailable => sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("follow after a fault: {error}"),
            }
        }
    })
    .await
}

/// The broker gives no position again and calls no cursor from before the wipe complete. No feed
/// takes an event of the new chain for the next of the old one.
pub async fn after_a_wipe_nothing_old_goes_on(fixture: &dyn Fixture) {
    let (node, channel) = (fixture.node().await, channel(Kept::Ample));
    let mut feed = follow(&*node, &channel).await;
    let mut old = Chain(vec![feed.head]);
    old.publish_many(&*node, &channel, 20).await;
    take(&mut feed, 20).await;

    fixture.inflict(Fault::Wipe).await;

    let new = insist(&*node, &channel, text("new").with_idempotency_key(key("new"))).await;
    assert!(new > old.head(), "{new} was given after {} before the wipe", old.head());
    for node in [node.clone(), fixture.node().await] {
        for after in &old.0 {
            let replayed = insist_on_replay(&*node, &channel, *after).await;
            assert!(!replayed.complete, "{after}, from before the wipe, was called complete");
            assert_eq!(replayed.events.len(), 1);
            assert_eq!(replayed.head, new);
        }
    }
    match patiently("the old feed's end or next event", feed.next()).await {
        None => {}
        Some(event) => {
            assert_eq!(said(&event), "new");
            let goes_on = event.previous == Position::ZERO || event.previous == old.head();
            assert!(!goes_on, "a feed shows the new chain as if it continued the old one");
        }
    }
}

/// A store that lost everything and whose clock is behind goes on above what nodes have seen and
/// above what a client has had: below it no listener would hear anything until the clock has caught
/// up.
pub async fn a_store_that_returns_behind_goes_on_above_what_it_gave(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let (known, forgotten) = (channel(Kept::Ample), channel(Kept::Ample));
    let mut feed = follow(&*nodes[1], &known).await;
    let mut old = Chain(vec![feed.head]);
    old.publish_many(&*nodes[0], &known, 20).await;
    take(&mut feed, 20).await;
    let had = publish(&*nodes[0], &forgotten, text("old")).await;
    // This node has published nothing and asked for nothing but its feed.
    let heard = nodes[1].clone();

    fixture.inflict(Fault::ReturnBehind).await;

    let new = insist(&*heard, &known, text("new").with_idempotency_key(key("new"))).await;
    assert!(new > old.head(), "{new} was given after {} had been heard", old.head());
    for after in &old.0 {
        let replayed = insist_on_replay(&*nodes[0], &known, *after).await;
        assert!(!replayed.complete, "{after}, from before the loss, was called complete");
        assert_eq!((replayed.events.len(), replayed.head), (1, new));
    }
    // These know nothing. A client comes to one of them with what it had.
    let (asked, publisher) = (fixture.node().await, fixture.node().await);
    let replayed = insist_on_replay(&*asked, &forgotten, had).await;
    assert!(!replayed.complete && replayed.events.is_empty(), "{replayed:?}");
    let late = insist(&*publisher, &forgotten, text("late").with_idempotency_key(key("late"))).await;
    assert!(late > had, "{late} was given, and a client that has had {had} had asked");
    let mut feed = insist_on_following(&*asked, &known).await;
    let next = insist(&*publisher, &known, text("next").with_idempotency_key(key("next"))).await;
    assert_eq!(take(&mut feed, 1).await[0].position, next);
}

/// A node that reconnects behind the feed's back would hide what it missed.
pub async fn a_feed_that_was_cut_ends_or_misses_nothing(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut feed = follow(&*nodes[1], &channel).await;
    let mut chain = Chain(vec![feed.head]);
    chain.publish_many(&*nodes[0], &channel, 10).await;
    for round in 0..5 {
        fixture.inflict(Fault::Cut).await;
        for n in 0..10 {
            let message = text(n).with_idempotency_key(key(&format!("{round}-{n}")));
            let position = insist(&*nodes[n % 2], &channel, message).await;
            assert!(position > chain.head());
            chain.0.push(position);
        }
        let mut shown = feed.head;
        while shown < chain.head() {
            match patiently("the feed's next event or end", feed.next()).await {
                Some(event) => {
                    assert_eq!(
                        event.position,
                        chain.0[1 + chain.index_of(shown).unwrap()],
                        "a feed hid a loss"
                    );
                    shown = event.position;
                }
                None => {
                    feed = insist_on_following(&*nodes[1], &channel).await;
                    let replayed = insist_on_replay(&*nodes[0], &channel, shown).await;
                    chain.allows(Some(shown), 10_000, 10_000, &replayed);
                    shown = feed.head;
                }
            }
        }
        // The next round begins from here.
        feed.head = shown;
    }
}

/// Nor an end, a key or the chain.
pub async fn a_restart_loses_no_acknowledged_event(fixture: &dyn Fixture) {
    let (node, channel, ended) = (fixture.node().await, channel(Kept::Ample), channel(Kept::Ample));
    let mut chain = Chain::base(&*node, &channel).await;
    publish(&*node, &ended, Append::end()).await;
    chain.publish_many(&*node, &channel, 100).await;
    let keyed = chain
        .publish(&*node, &channel, text("keyed").with_idempotency_key(key("k")))
        .await;

    fixture.inflict(Fault::Restart).await;

    for node in [node.clone(), fixture.node().await] {
        let replayed = insist_on_replay(&*node, &channel, chain.0[0]).await;
        chain.allows(Some(chain.0[0]), 10_000, 10_000, &replayed);
        assert_eq!(
            insist(&*node, &channel, text("keyed").with_idempotency_key(key("k"))).await,
            keyed
        );
        assert_ended(patiently("publish", node.publish(&ended, text("late"))).await);
        let position = insist(&*node, &channel, text("after").with_idempotency_key(key(&unique()))).await;
        assert!(position > chain.head());
        chain.0.push(position);
        let replayed = insist_on_replay(&*node, &channel, chain.0[0]).await;
        chain.allows(Some(chain.0[0]), 10_000, 10_000, &replayed);
    }
}
