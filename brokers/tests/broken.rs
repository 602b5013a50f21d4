//! Brokers with one thing wrong each, to see that the conformance suite notices, and a healthy one
//! among them, which only answers late, to see that it notices nothing else. Time is paused, so a
//! clause that waits in vain fails at once.

#![allow(clippy::unwrap_used)]

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use airwave_brokers::Memory;
use airwave_core::broker::{BrokerStats, FeedSender};
use airwave_core::conformance::{CLAUSES, Fault, Fixture, Verdict, clause, rules, table};
use airwave_core::event::{Attributes, IdempotencyKey};
use airwave_core::idempotency::ScopedKey;
use airwave_core::{
    Append, Broker, BrokerError, ChannelName, Data, Event, EventName, Feed, Message, PageLimit, Position, Published, Replay,
    Rules,
};
use async_trait::async_trait;
use tokio::sync::watch;
use tokio::task::yield_now;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Flaw {
    Nothing,
    // Positions and the chain.
    CountsFromOne,
    BirthMoves,
    OneFirstPositionCounts,
    StoresWhatIsAskedFor,
    NamesWrongPrevious,
    NamesNoPrevious,
    // Feeds.
    DropsSome,
    ShowsTwice,
    Reorders,
    ShowsNothing,
    FollowsLate,
    OpensLate,
    EndsAfterMany,
    OneDropSilencesAll,
    LeaksSubscriptions,
    FollowsAgainInSecret,
    // Replays.
    KeepsLate,
    AlwaysComplete,
    CompleteWithinTheRange,
    CompleteAheadOfTheHead,
    CompleteOnlyIfHeld,
    NeverComplete,
    NewestAreOldest,
    NeverMore,
    EmptyPagesAreNeverComplete,
    EmptyPagesAreAlwaysComplete,
    EmptyPagesHaveNoMore,
    LosesAttributes,
    FailsOnLaterVersions,
    IgnoresLimit,
    IgnoresBytes,
    LargeEventsAreLeftOut,
    GivesAPart,
    EndsWhereItIsOvertaken,
    // History.
    KeepsHalf,
    KeepsHalfTheBytes,
    KeepsEverything,
    JudgesByTheWritersClock,
    // Keys and ends.
    IgnoresKeys,
    KeysAreForAllChannels,
    KeysGoWithHistory,
    RetriesInSecret,
    GoesOnAfterTheEnd,
    ForgetsTheEnd,
    EndRefusesOldKeys,
    /// Whatever is published under a known key is taken for the first payload.
    TakesAnyPayload,
    /// Stores the caller's key, without whose it is.
    KeysAreForAllSources,
    /// The end is a publish of its own, behind the event's.
    EndsInASecondStep,
    /// Gives the event's position, where the end's is the last.
    GivesTheEventsPosition,
    // Names, payloads, numbers.
    PingFails,
    ChangesLineBreaks,
    CutsLargePayloads,
    FoldsCase,
    MixesChannels,
    FewChannels,
    NodesStandAlone,
    // Faults.
    LosesAllOnRestart,
    BelievesItsClock,
}

/// Which clauses notice which flaw. Others may too.
const NOTICED: &[(Flaw, &[&str])] = &[
    (
        Flaw::CountsFromOne,
        &["positions_come_from_the_clock", "after_a_wipe_nothing_old_goes_on"],
    ),
    (Flaw::BirthMoves, &["a_listener_without_events_misses_nothing"]),
    (Flaw::OneFirstPositionCounts, &["a_listener_without_events_misses_nothing"]),
    (Flaw::StoresWhatIsAskedFor, &["names_that_are_only_asked_for_are_not_stored"]),
    (
        Flaw::NamesWrongPrevious,
        &[
            "positions_strictly_increase_and_name_their_previous",
            "a_channel_without_history_keeps_its_chain",
            "channels_do_not_hear_each_other",
        ],
    ),
    (
        Flaw::NamesNoPrevious,
        &["positions_strictly_increase_and_name_their_previous"],
    ),
    (
        Flaw::DropsSome,
        &[
            "a_feed_shows_every_event_after_its_head",
            "replay_is_what_the_feed_showed",
            "an_acknowledged_event_stands_before_one_published_later",
            "any_sequence_of_calls_agrees_with_a_list",
            "a_channel_without_history_keeps_its_chain",
        ],
    ),
    (
        Flaw::ShowsTwice,
        &[
            "a_feed_shows_every_event_after_its_head",
            "replay_is_what_the_feed_showed",
            "a_publish_that_was_given_up_happened_or_did_not",
        ],
    ),
    (
        Flaw::Reorders,
        &[
            "concurrent_publishers_are_put_into_one_order_that_every_feed_shows",
            "an_acknowledged_event_stands_before_one_published_later",
            "a_feed_without_a_reader_delays_no_other",
        ],
    ),
    (
        Flaw::ShowsNothing,
        &[
            "two_nodes_share_one_channel",
            "an_event_that_a_feed_has_shown_can_be_replayed",
        ],
    ),
    (Flaw::FollowsLate, &["a_feed_shows_every_event_after_its_head"]),
    (
        Flaw::OpensLate,
        &["an_opened_channel_has_every_event_in_its_page_or_its_feed"],
    ),
    (Flaw::EndsAfterMany, &["a_feed_without_a_reader_delays_no_other"]),
    (Flaw::OneDropSilencesAll, &["dropping_a_feed_unsubscribes"]),
    (Flaw::LeaksSubscriptions, &["dropping_a_feed_unsubscribes"]),
    (
        Flaw::FollowsAgainInSecret,
        &[
            "a_feed_that_was_cut_ends_or_misses_nothing",
            "after_a_wipe_nothing_old_goes_on",
        ],
    ),
    (Flaw::KeepsLate, &["an_event_that_a_feed_has_shown_can_be_replayed"]),
    (
        Flaw::AlwaysComplete,
        &[
            "replay_after_a_position_that_was_trimmed_is_incomplete",
            "replay_inside_the_range_but_not_there_is_incomplete",
            "replay_after_a_position_that_was_never_given_is_incomplete",
            "replay_without_a_position_gives_the_newest",
            "history_is_trimmed_by_age",
            "after_a_wipe_nothing_old_goes_on",
        ],
    ),
    (
        Flaw::CompleteWithinTheRange,
        &["replay_inside_the_range_but_not_there_is_incomplete"],
    ),
    (
        Flaw::CompleteAheadOfTheHead,
        &["replay_after_a_position_that_was_never_given_is_incomplete"],
    ),
    (
        Flaw::CompleteOnlyIfHeld,
        &[
            "replay_after_the_previous_of_the_oldest_is_complete",
            "replay_after_the_head_is_complete_and_empty",
        ],
    ),
    (
        Flaw::NeverComplete,
        &[
            "replay_is_what_the_feed_showed",
            "replay_without_a_position_gives_the_newest",
            "large_histories_come_in_pages",
        ],
    ),
    (Flaw::NewestAreOldest, &["replay_without_a_position_gives_the_newest"]),
    (Flaw::NeverMore, &["large_histories_come_in_pages"]),
    (
        Flaw::EmptyPagesAreNeverComplete,
        &["a_page_of_nothing_answers_as_a_page_of_one"],
    ),
    (
        Flaw::EmptyPagesAreAlwaysComplete,
        &["a_page_of_nothing_answers_as_a_page_of_one"],
    ),
    (Flaw::EmptyPagesHaveNoMore, &["a_page_of_nothing_answers_as_a_page_of_one"]),
    (Flaw::LosesAttributes, &["attributes_come_back_as_they_were"]),
    (
        Flaw::FailsOnLaterVersions,
        &["what_a_later_version_stored_takes_no_channel_down"],
    ),
    (Flaw::IgnoresLimit, &["large_histories_come_in_pages"]),
    (Flaw::IgnoresBytes, &["a_page_ends_at_its_bytes"]),
    (Flaw::LargeEventsAreLeftOut, &["a_page_ends_at_its_bytes"]),
    (
        Flaw::GivesAPart,
        &[
            "replay_is_what_the_feed_showed",
            "large_histories_come_in_pages",
            "any_sequence_of_calls_agrees_with_a_list",
        ],
    ),
    (
        Flaw::EndsWhereItIsOvertaken,
        &["a_page_leads_to_the_head_or_says_that_there_is_more"],
    ),
    (
        Flaw::JudgesByTheWritersClock,
        &["nodes_with_different_clocks_see_the_same_history"],
    ),
    (
        Flaw::KeepsHalf,
        &[
            "history_is_trimmed_by_count",
            "replay_after_the_previous_of_the_oldest_is_complete",
        ],
    ),
    (Flaw::KeepsHalfTheBytes, &["history_is_trimmed_by_bytes"]),
    (
        Flaw::KeepsEverything,
        &[
            "history_is_trimmed_by_count",
            "history_is_trimmed_by_bytes",
            "history_is_trimmed_by_age",
            "a_channel_without_history_keeps_its_chain",
            "replay_after_a_position_that_was_trimmed_is_incomplete",
        ],
    ),
    (
        Flaw::IgnoresKeys,
        &[
            "a_repeated_key_gives_the_first_position_and_no_second_event",
            "a_repeated_key_among_concurrent_publishers_makes_one_event",
            "a_repeated_key_is_recognised_after_its_event_was_trimmed",
            "a_publish_that_was_given_up_may_be_repeated_with_its_key",
            "a_repeated_end_with_its_key_gives_its_position",
            "any_sequence_of_calls_agrees_with_a_list",
        ],
    ),
    (Flaw::KeysAreForAllChannels, &["a_key_counts_for_its_channel_alone"]),
    (
        Flaw::KeysGoWithHistory,
        &["a_repeated_key_is_recognised_after_its_event_was_trimmed"],
    ),
    (Flaw::RetriesInSecret, &["a_publish_that_was_given_up_happened_or_did_not"]),
    (
        Flaw::GoesOnAfterTheEnd,
        &[
            "an_ended_channel_takes_no_more_events",
            "a_repeated_end_with_its_key_gives_its_position",
        ],
    ),
    (Flaw::ForgetsTheEnd, &["an_ended_channel_can_still_be_followed_and_replayed"]),
    (Flaw::EndRefusesOldKeys, &["a_repeated_end_with_its_key_gives_its_position"]),
    (Flaw::TakesAnyPayload, &["a_key_with_another_payload_is_refused"]),
    (Flaw::KeysAreForAllSources, &["keys_of_different_sources_do_not_meet"]),
    (
        Flaw::EndsInASecondStep,
        &["an_event_with_its_end_that_was_given_up_happened_whole_or_not"],
    ),
    (
        Flaw::GivesTheEventsPosition,
        &["an_event_and_the_end_behind_it_are_one_append"],
    ),
    (Flaw::PingFails, &["a_broker_that_works_says_so"]),
    (Flaw::ChangesLineBreaks, &["any_valid_name_and_payload_survives"]),
    (Flaw::CutsLargePayloads, &["binary_payloads_of_one_mebibyte_survive"]),
    (Flaw::FoldsCase, &["names_that_look_alike_are_different_channels"]),
    (Flaw::MixesChannels, &["channels_do_not_hear_each_other"]),
    (Flaw::FewChannels, &["ten_thousand_channels_work"]),
    (
        Flaw::NodesStandAlone,
        &[
            "two_nodes_share_one_channel",
            "an_acknowledged_event_stands_before_one_published_later",
            "a_repeated_key_among_concurrent_publishers_makes_one_event",
            "an_ended_channel_takes_no_more_events",
        ],
    ),
    (Flaw::LosesAllOnRestart, &["a_restart_loses_no_acknowledged_event"]),
    (
        Flaw::BelievesItsClock,
        &["a_store_that_returns_behind_goes_on_above_what_it_gave"],
    ),
];

#[tokio::test(start_paused = true)]
async fn every_flaw_is_noticed() {
    let mut unnoticed = Vec::new();
    for (flaw, clauses) in NOTICED {
        for name in *clauses {
            let verdict = clause(name).judge(&Backbone::with(*flaw)).await;
            if let Verdict::Broken(why) = verdict {
                println!("{flaw:?}: {name}: {why}");
            } else {
                unnoticed.push((flaw, name));
            }
        }
    }
    assert!(unnoticed.is_empty(), "unnoticed: {unnoticed:#?}");
}

#[test]
fn every_clause_notices_something() {
    let noticing: HashSet<&str> = NOTICED.iter().flat_map(|(_, clauses)| clauses.iter().copied()).collect();
    for clause in CLAUSES {
        assert!(
            noticing.contains(clause.name),
            "no broken broker shows what {} is for",
            clause.name
        );
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_else_is_noticed() {
    let table = table(&[
        ("late", &Backbone::with(Flaw::Nothing)),
        ("mute", &Backbone::with(Flaw::PingFails)),
    ])
    .await;
    println!("{table}");
    assert_eq!(table.matches(" held | held |").count(), CLAUSES.len() - 1, "{table}");
    assert_eq!(table.matches(" held | BROKEN |").count(), 1);
    assert!(table.contains("\nmute: a_broker_that_works_says_so: "));
}

/// What all nodes share.
struct Backbone {
    flaw: Flaw,
    memory: Arc<Mutex<Arc<Memory>>>,
    nodes: Mutex<Vec<Arc<Node>>>,
    cuts: watch::Sender<usize>,
    subscriptions: Arc<AtomicUsize>,
    written_late: Arc<Mutex<HashSet<Position>>>,
    behind: Arc<AtomicU64>,
}

impl Backbone {
    fn with(flaw: Flaw) -> Self {
        Backbone {
            flaw,
            memory: Arc::new(Mutex::new(Arc::new(memory(flaw)))),
            nodes: Mutex::default(),
            cuts: watch::Sender::new(0),
            subscriptions: Arc::default(),
            written_late: Arc::default(),
            behind: Arc::default(),
        }
    }
}

fn memory(flaw: Flaw) -> Memory {
    let rules = rules();
    Memory::new(Rules::new(rules.iter().map(|rule| {
        let mut rule = (**rule).clone();
        match flaw {
            Flaw::KeepsHalf => rule.history.events /= 2,
            Flaw::KeepsHalfTheBytes => rule.history.bytes /= 2,
            Flaw::KeepsEverything => {
                rule.history = airwave_core::rule::History::new(usize::MAX, std::time::Duration::MAX).with_bytes(usize::MAX)
            }
            _ => {}
        }
        rule
    })))
}

#[async_trait]
impl Fixture for Backbone {
    async fn node(&self) -> Arc<dyn Broker> {
        self.node_with_clock(0).await
    }

    async fn node_with_clock(&self, ahead: i64) -> Arc<dyn Broker> {
        let memory = match self.flaw {
            Flaw::NodesStandAlone => Arc::new(Mutex::new(Arc::new(memory(self.flaw)))),
            _ => self.memory.clone(),
        };
        let node = Arc::new(Node {
            flaw: self.flaw,
            memory,
            cuts: self.cuts.clone(),
            base: Mutex::new(Position::now()),
            subscriptions: self.subscriptions.clone(),
            silenced: Arc::default(),
            fresh: AtomicBool::new(false),
            keys: Mutex::default(),
            names: Mutex::default(),
            clock_ahead: ahead,
            written_late: self.written_late.clone(),
            behind: self.behind.clone(),
        });
        self.nodes.lock().unwrap().push(node.clone());
        node
    }

    fn faults(&self) -> &[Fault] {
        &[Fault::Wipe, Fault::Cut, Fault::Restart, Fault::ReturnBehind]
    }

    async fn inflict(&self, fault: Fault) {
        if matches!(fault, Fault::Wipe | Fault::ReturnBehind) || self.flaw == Flaw::LosesAllOnRestart {
            *self.memory.lock().unwrap() = Arc::new(memory(self.flaw));
            for node in &*self.nodes.lock().unwrap() {
                *node.base.lock().unwrap() = Position::now();
            }
        }
        if fault == Fault::ReturnBehind && self.flaw == Flaw::BelievesItsClock {
            self.behind.store(600_000_000, Ordering::SeqCst);
        }
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    async fn subscriptions(&self, _: &ChannelName) -> Option<usize> {
        Some(self.subscriptions.load(Ordering::SeqCst))
    }

    async fn stored(&self) -> Option<usize> {
        let nodes = self.nodes.lock().unwrap();
        let names = nodes.iter().map(|node| node.names.lock().unwrap().len());
        Some(if self.flaw == Flaw::StoresWhatIsAskedFor {
            names.sum()
        } else {
            0
        })
    }
}

/// A memory broker with one thing wrong. It answers late, and its feeds are read by a task.
struct Node {
    flaw: Flaw,
    memory: Arc<Mutex<Arc<Memory>>>,
    cuts: watch::Sender<usize>,
    base: Mutex<Position>,
    subscriptions: Arc<AtomicUsize>,
    silenced: Arc<AtomicBool>,
    fresh: AtomicBool,
    keys: Mutex<HashMap<ScopedKey, Position>>,
    names: Mutex<HashSet<ChannelName>>,
    clock_ahead: i64,
    /// What was published by nodes whose clocks are far behind.
    written_late: Arc<Mutex<HashSet<Position>>>,
    /// By how much its clock is behind, in µs.
    behind: Arc<AtomicU64>,
}

impl Node {
    fn memory(&self) -> Arc<Memory> {
        self.memory.lock().unwrap().clone()
    }

    fn renamed(&self, channel: &ChannelName) -> ChannelName {
        match self.flaw {
            Flaw::FoldsCase => ChannelName::new(&channel.as_str().to_ascii_lowercase()).unwrap(),
            Flaw::MixesChannels => {
                let (front, _) = channel.as_str().rsplit_once('-').unwrap();
                ChannelName::new(front).unwrap()
            }
            _ => channel.clone(),
        }
    }

    /// What the world sees of a position.
    fn told(&self, position: Position) -> Position {
        match self.flaw {
            Flaw::CountsFromOne => Position(position.0.saturating_sub(self.base.lock().unwrap().0) + 1),
            Flaw::BelievesItsClock => Position(position.0.saturating_sub(self.behind.load(Ordering::SeqCst))),
            _ => position,
        }
    }

    fn meant(&self, position: Position) -> Position {
        match self.flaw {
            Flaw::CountsFromOne => Position(position.0.saturating_add(self.base.lock().unwrap().0).saturating_sub(1)),
            Flaw::BelievesItsClock => Position(position.0 + self.behind.load(Ordering::SeqCst)),
            _ => position,
        }
    }

    fn told_event(&self, event: &Event, of_feed: bool) -> Arc<Event> {
        let mut event = event.clone();
        event.position = self.told(event.position);
        event.previous = match self.flaw {
            Flaw::NamesWrongPrevious if of_feed => Position(event.previous.0 - 1),
            Flaw::NamesNoPrevious => Position::ZERO,
            _ => self.told(event.previous),
        };
        Arc::new(event)
    }

    /// Applies the flaw to an append before it is stored. `Some` is the answer, and nothing else is
    /// stored.
    async fn before_the_append(
        &self,
        memory: &Memory,
        channel: &ChannelName,
        append: &mut Append,
    ) -> Result<Option<Published>, BrokerError> {
        let (key, ends) = (append.idempotency_key.clone(), append.ends_channel());
        let known = || key.as_ref().and_then(|key| self.keys.lock().unwrap().get(key).copied());
        match (self.flaw, &mut append.message.data) {
            (Flaw::ChangesLineBreaks, Data::Text(text)) => *text = text.replace("\r\n", "\n").into(),
            (Flaw::CutsLargePayloads, Data::Binary(bytes)) => bytes.truncate(64 << 10),
            (Flaw::IgnoresKeys, _) => append.idempotency_key = None,
            (Flaw::GoesOnAfterTheEnd, _) if ends => {
                append.message = Message::new(EventName::new("over").unwrap(), Data::text(""));
            }
            (Flaw::KeysAreForAllChannels, _) => return Ok(known().map(Published::duplicate_of)),
            (Flaw::TakesAnyPayload, _) if key.is_some() => {
                append.idempotency_key = None;
                return Ok(known().map(Published::duplicate_of));
            }
            (Flaw::KeysAreForAllSources, _) => {
                let callers = append.idempotency_key.take().map(|key| {
                    let callers = key.as_str().split(' ').next().unwrap_or_default();
                    IdempotencyKey::new(callers).unwrap()
                });
                append.idempotency_key = callers.map(Into::into);
            }
            (Flaw::EndsInASecondStep, _) if append.and_end => {
                append.and_end = false;
                memory.publish(channel, append.clone()).await?;
                yield_now().await;
                return memory.publish(channel, Append::end()).await.map(Some);
            }
            (Flaw::EndRefusesOldKeys, _) if memory.replay(channel, None, PageLimit::events(0)).await?.ended => {
                return Err(BrokerError::ended());
            }
            _ => {}
        }
        Ok(None)
    }

    /// The node as the task of a feed sees it.
    fn for_a_feed(&self) -> Node {
        Node {
            cuts: self.cuts.clone(),
            base: Mutex::new(*self.base.lock().unwrap()),
            memory: self.memory.clone(),
            subscriptions: self.subscriptions.clone(),
            silenced: self.silenced.clone(),
            fresh: AtomicBool::new(false),
            keys: Mutex::default(),
            names: Mutex::default(),
            clock_ahead: self.clock_ahead,
            written_late: self.written_late.clone(),
            behind: self.behind.clone(),
            flaw: self.flaw,
        }
    }

    /// Hands the events of `inner` to the feed, with the flaw, until the feed is gone or cut.
    async fn feed(
        self,
        channel: ChannelName,
        mut inner: Feed,
        sender: FeedSender,
        mut gone: watch::Receiver<()>,
        mut cuts: watch::Receiver<usize>,
    ) {
        let (mut count, mut held, mut secretly) = (0, None, false);
        loop {
            let event = tokio::select! {
                // What was shown before the cut counts.
                biased;
                _ = gone.changed() => return,
                event = inner.next() => event,
                _ = cuts.changed() => None,
            };
            let Some(event) = event else {
                if self.flaw != Flaw::FollowsAgainInSecret {
                    return;
                }
                // With paused time: when everybody else waits, which is to say, late.
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                inner = self.memory().follow(&channel).await.unwrap();
                secretly = true;
                continue;
            };
            if self.flaw == Flaw::OneDropSilencesAll && self.silenced.load(Ordering::SeqCst) {
                continue;
            }
            count += 1;
            if self.flaw == Flaw::EndsAfterMany && count > 500 {
                return;
            }
            for event in self.shown(count, event, &mut held) {
                let mut event = self.told_event(&event, true);
                if std::mem::take(&mut secretly) {
                    event = Arc::new(Event::new(event.position, Position::ZERO, event.message.clone()));
                }
                if !sender.push(event) {
                    return;
                }
            }
        }
    }

    /// What a feed shows instead of the `count`th event.
    fn shown(&self, count: usize, event: Arc<Event>, held: &mut Option<Arc<Event>>) -> Vec<Arc<Event>> {
        match self.flaw {
            Flaw::ShowsNothing => vec![],
            Flaw::DropsSome if count % 3 == 2 => vec![],
            Flaw::ShowsTwice if count % 3 == 2 => vec![event.clone(), event],
            Flaw::Reorders if count % 3 == 2 => {
                *held = Some(event);
                vec![]
            }
            Flaw::Reorders => [event].into_iter().chain(held.take()).collect(),
            _ => vec![event],
        }
    }
}

impl Node {
    /// Reads what version 0.1 knew: no attributes, and no message of a later version.
    fn reads_as_before(&self, replay: &mut Replay) -> Result<(), BrokerError> {
        if self.flaw == Flaw::FailsOnLaterVersions && replay.events.iter().any(|event| event.is_hidden()) {
            return Err(BrokerError::unavailable("a message cannot be read"));
        }
        if self.flaw == Flaw::LosesAttributes {
            for event in &mut replay.events {
                Arc::make_mut(event).message.attributes = Attributes::new();
            }
        }
        Ok(())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Broker for Node {
    fn name(&self) -> &'static str {
        "broken"
    }

    async fn publish(&self, channel: &ChannelName, mut append: Append) -> Result<Published, BrokerError> {
        let channel = &self.renamed(channel);
        let (memory, key, and_end) = (self.memory(), append.idempotency_key.clone(), append.and_end);
        if let Some(answer) = self.before_the_append(&memory, channel, &mut append).await? {
            return Ok(answer);
        }
        let secret =
            (self.flaw == Flaw::RetriesInSecret).then(|| RetriesInSecret(memory.clone(), channel.clone(), append.clone()));
        yield_now().await;
        std::mem::forget(secret);
        let again = Append::new(append.message.clone());
        let mut published = memory.publish(channel, append).await?;
        if self.flaw == Flaw::KeysGoWithHistory && published.duplicate {
            let replay = memory.replay(channel, None, PageLimit::events(usize::MAX)).await?;
            if replay.events.iter().all(|event| event.position != published.position) {
                published = memory.publish(channel, again).await?;
            }
        }
        if let Some(key) = key {
            self.keys.lock().unwrap().insert(key, published.position);
        }
        self.fresh.store(true, Ordering::SeqCst);
        if self.clock_ahead < -60_000_000 {
            self.written_late.lock().unwrap().insert(published.position);
        }
        if self.flaw == Flaw::GivesTheEventsPosition && and_end {
            let replay = memory.replay(channel, None, PageLimit::events(2)).await?;
            published.position = replay.events[0].position;
        }
        published.position = self.told(published.position);
        Ok(published)
    }

    async fn follow(&self, channel: &ChannelName) -> Result<Feed, BrokerError> {
        yield_now().await;
        let channel = self.renamed(channel);
        let open = {
            let mut names = self.names.lock().unwrap();
            names.insert(channel.clone());
            names.len()
        };
        if self.flaw == Flaw::FewChannels && open > 5000 {
            return Err(BrokerError::unavailable("too many channels"));
        }
        let mut head = self.memory().replay(&channel, None, PageLimit::events(1)).await?.head;
        if self.flaw == Flaw::FollowsLate {
            yield_now().await;
        }
        let inner = self.memory().follow(&channel).await?;
        if self.flaw != Flaw::FollowsLate {
            head = inner.head;
        }
        if self.flaw == Flaw::BirthMoves
            && self
                .memory()
                .replay(&channel, None, PageLimit::events(1))
                .await?
                .events
                .is_empty()
        {
            head = Position::now();
        }
        let (dropped, gone) = watch::channel(());
        let (subscriptions, silenced, flaw) = (self.subscriptions.clone(), self.silenced.clone(), self.flaw);
        subscriptions.fetch_add(1, Ordering::SeqCst);
        let (sender, feed) = Feed::new(self.told(head), move || {
            drop(dropped);
            if flaw != Flaw::LeaksSubscriptions {
                subscriptions.fetch_sub(1, Ordering::SeqCst);
            }
            silenced.store(true, Ordering::SeqCst);
        });
        let cuts = self.cuts.subscribe();
        tokio::spawn(self.for_a_feed().feed(channel, inner, sender, gone, cuts));
        Ok(feed)
    }

    async fn replay(&self, channel: &ChannelName, after: Option<Position>, limit: PageLimit) -> Result<Replay, BrokerError> {
        yield_now().await;
        let channel = &self.renamed(channel);
        let after = after.map(|after| self.meant(after));
        let asked = match self.flaw {
            Flaw::IgnoresLimit => PageLimit::events(usize::MAX),
            Flaw::IgnoresBytes => PageLimit::events(limit.events),
            _ => limit,
        };
        let mut replay = self.memory().replay(channel, after, asked).await?;
        let all = self.memory().replay(channel, None, PageLimit::events(usize::MAX)).await?;
        match (self.flaw, after) {
            (Flaw::KeepsLate, _) if self.fresh.swap(false, Ordering::SeqCst) && !replay.more => {
                if let Some(newest) = replay.events.pop() {
                    replay.head = newest.previous;
                }
            }
            (Flaw::AlwaysComplete, _) => replay.complete = true,
            (Flaw::NeverComplete, _) => replay.complete = false,
            (Flaw::CompleteWithinTheRange, Some(after)) => {
                let oldest = all.events.first().map_or(replay.head, |event| event.previous);
                replay.complete = (oldest..=replay.head).contains(&after);
            }
            (Flaw::CompleteAheadOfTheHead, Some(after)) => replay.complete |= after > replay.head,
            (Flaw::CompleteOnlyIfHeld, Some(after)) => {
                replay.complete = all.events.iter().any(|event| event.position == after);
            }
            (Flaw::NewestAreOldest, None) => replay.events = all.events.into_iter().take(limit.events).collect(),
            (Flaw::NeverMore, _) => replay.more = false,
            (Flaw::EmptyPagesAreNeverComplete, Some(after)) if limit.events == 0 => replay.complete = after == replay.head,
            (Flaw::EmptyPagesAreAlwaysComplete, Some(_)) if limit.events == 0 => replay.complete = true,
            (Flaw::EmptyPagesHaveNoMore, _) if limit.events == 0 => replay.more = false,
            (Flaw::LosesAttributes | Flaw::FailsOnLaterVersions, _) => self.reads_as_before(&mut replay)?,
            (Flaw::LargeEventsAreLeftOut, _) if replay.events.len() == 1 => {
                replay.events.retain(|event| event.message.weight() <= limit.bytes);
            }
            // It reads on where the rest was trimmed meanwhile, and takes that for the end.
            (Flaw::EndsWhereItIsOvertaken, _) => {
                yield_now().await;
                let now = self.memory().replay(channel, None, PageLimit::events(1)).await?.head;
                if now != replay.head && replay.events.len() > 1 {
                    replay.events.pop();
                    replay.more = false;
                }
            }
            (Flaw::JudgesByTheWritersClock, _) => {
                let late = self.written_late.lock().unwrap();
                replay.events.retain(|event| !late.contains(&event.position));
            }
            (Flaw::GivesAPart, _) if replay.events.len() > 1 => drop(replay.events.remove(0)),
            (Flaw::ForgetsTheEnd, _) => replay.ended = false,
            (Flaw::BirthMoves, _) if all.events.is_empty() => replay.head = Position::now(),
            // Each node gives one of its own, which the others call good as long as nothing has
            // come after it.
            (Flaw::OneFirstPositionCounts, after) if all.events.is_empty() => {
                replay.complete |= after.is_some_and(|after| after > replay.head);
                replay.head = Position::now();
            }
            _ => {}
        }
        replay.head = self.told(replay.head);
        replay.events = replay.events.iter().map(|event| self.told_event(event, false)).collect();
        Ok(replay)
    }

    async fn open(&self, channel: &ChannelName, limit: PageLimit) -> Result<(Feed, Replay), BrokerError> {
        if self.flaw == Flaw::OpensLate {
            let replay = self.replay(channel, None, limit).await?;
            yield_now().await;
            return Ok((self.follow(channel).await?, replay));
        }
        let feed = self.follow(channel).await?;
        Ok((feed, self.replay(channel, None, limit).await?))
    }

    async fn ping(&self) -> Result<(), BrokerError> {
        match self.flaw {
            Flaw::PingFails => Err(BrokerError::unavailable("no")),
            _ => self.memory().ping().await,
        }
    }

    fn stats(&self) -> BrokerStats {
        BrokerStats::in_process()
    }
}

/// Publishes what its caller has given up, twice.
struct RetriesInSecret(Arc<Memory>, ChannelName, Append);

impl Drop for RetriesInSecret {
    fn drop(&mut self) {
        let (memory, channel, publish) = (self.0.clone(), self.1.clone(), self.2.clone());
        tokio::spawn(async move {
            for _ in 0..2 {
                let result = memory.publish(&channel, publish.clone()).await;
                assert!(result.is_ok_and(|published| !published.duplicate));
            }
        });
    }
}
