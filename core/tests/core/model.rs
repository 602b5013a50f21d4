//! A model of the resume protocol, checked by stateright in every interleaving of a few steps. It
//! imports nothing of the core: what it tries is the rules, before and beside the code that follows
//! them.
//!
//! **Modelled.** A broker's log: positions that strictly increase and are never reused, `previous`
//! links, a base position at the first touch, trimming from the old end, and a failover that loses
//! events from the new end, so that later ones fork off. Two nodes that follow it through feeds
//! that lag, end and are followed again, or (against their contract) skip an event; each heals by
//! replaying after its head and keeps a small ring. One client that subscribes on either node,
//! reads when it likes (so it may fall off the ring), drops at any step and resumes with the last
//! cursor it was told, on either node. The transport does not matter, so there is none.
//!
//! **Judged** not by what the protocol believes but by the log as it really was ([`Promise`]): P3
//! to P7 in every state, and that a client that is left alone catches up. Each [`Fault`] is a
//! mistake that an implementation could make; the checker must find every one.
//!
//! **Not modelled**: several channels in one cursor, conflation, limits of a replay, `end`,
//! idempotency, time (a bounded wait is a step that may be taken at any moment), a broker that is
//! out of reach, and a session's bytes on their way: a client that drops before it read them is one
//! that dropped before they were sent. A follow and a replay are one step each: that they are is
//! the broker's contract.
//!
//! To see the shortest counterexample of each fault: `cargo test -p airwave-core --test core model
//! -- --nocapture`.

use std::fmt;
use std::time::Instant;

use stateright::{Checker, Model, Property};

/// A position in the log; [`NOWHERE`] is none.
type Position = u8;

const NOWHERE: Position = 0;

/// A set of events, by their positions. Bits, because millions of states are made of them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Events(u16);

impl Events {
    fn contains(self, position: Position) -> bool {
        self.0 & (1 << position) != 0
    }
    fn insert(&mut self, position: Position) {
        self.0 |= 1 << position;
    }
    fn remove(&mut self, position: Position) {
        self.0 &= !(1 << position);
    }
    fn len(self) -> u32 {
        self.0.count_ones()
    }
    fn is_empty(self) -> bool {
        self.0 == 0
    }
    fn first(self) -> Option<Position> {
        (self.0 != 0).then(|| self.0.trailing_zeros() as Position)
    }
    fn last(self) -> Option<Position> {
        (self.0 != 0).then(|| self.0.ilog2() as Position)
    }
    fn after(self, position: Position) -> Events {
        Events(self.0 & !((2 << position) - 1))
    }
    fn iter(mut self) -> impl Iterator<Item = Position> {
        std::iter::from_fn(move || {
            let first = self.first()?;
            self.remove(first);
            Some(first)
        })
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// The highest position that any bound below can reach: publishes, bases and the bases after a
/// wipe.
const POSITIONS: usize = 12;

/// The backbone, and with it the truth: what was ever acknowledged, and what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Broker {
    /// The last position ever given, to an event or as a base. Survives everything: that is what
    /// "never reused" means.
    clock: Position,
    /// The newest position of the log as it stands; [`NOWHERE`] if no publisher or listener has
    /// touched the channel.
    head: Position,
    /// Of every event ever acknowledged, the one before it.
    previous: [Position; POSITIONS],
    /// Which positions are events, and not bases.
    acknowledged: Events,
    held: Events,
    lost: Events,
}

/// What a broker answers to "the events after this one".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Replay {
    Complete(Events),
    /// Something is missing. The `left` ones can be had; they go on after `expected_previous`.
    Incomplete {
        expected_previous: Position,
        left: Events,
    },
}

impl Broker {
    fn touch(&mut self, fault: Option<Fault>) {
        if self.head == NOWHERE && fault != Some(Fault::NoBasePosition) {
            self.clock += 1;
            self.head = self.clock;
        }
    }

    fn publish(&mut self, fault: Option<Fault>) -> Position {
        if fault != Some(Fault::ZeroContinues) {
            self.touch(fault);
        }
        self.clock += 1;
        let position = self.clock;
        self.previous[usize::from(position)] = self.head;
        self.acknowledged.insert(position);
        self.held.insert(position);
        self.head = position;
        position
    }

    fn trim(&mut self) {
        if let Some(oldest) = self.held.first() {
            self.held.remove(oldest);
        }
    }

    /// Steps back by one: to the event before the head, or, from a base, to an untouched channel.
    fn lose_head(&mut self) {
        let head = self.head;
        if self.acknowledged.contains(head) {
            self.lost.insert(head);
            self.held.remove(head);
        }
        self.head = self.previous[usize::from(head)];
    }

    fn answer(&mut self, after: Position, fault: Option<Fault>) -> Replay {
        self.touch(fault);
        self.replay(after, fault)
    }

    /// The rule that all of resume rests on.
    fn replay(&self, after: Position, fault: Option<Fault>) -> Replay {
        let first = self.held.first();
        let complete = if fault == Some(Fault::ResumesByRange) {
            first.is_some_and(|first| self.previous(first) <= after) && after <= self.head || after == self.head
        } else {
            self.held.contains(after) || after == self.head || first.is_some_and(|first| self.previous(first) == after)
        };
        let left = self.held.after(after);
        match complete {
            true => Replay::Complete(left),
            false => Replay::Incomplete {
                expected_previous: left.first().map_or(self.head, |first| self.previous(first)),
                left,
            },
        }
    }

    /// The broker as one of its replicas sees it that has not got the newest event yet.
    fn lagging_replica(mut self) -> Broker {
        if self.acknowledged.contains(self.head) {
            self.held.remove(self.head);
            self.head = self.previous(self.head);
        }
        self
    }

    fn previous(&self, position: Position) -> Position {
        self.previous[usize::from(position)]
    }

    /// Whether `ancestor` is on the line that leads to `position`: the log as it was when
    /// `position` was appended.
    fn leads_to(&self, ancestor: Position, position: Position) -> bool {
        let mut at = position;
        while at > ancestor {
            at = self.previous(at);
        }
        at == ancestor && ancestor != NOWHERE
    }

    /// Whether a reader who has everything up to `position` can still be given everything after it.
    fn can_continue(&self, position: Position) -> bool {
        let mut at = self.head;
        while at > position {
            if self.acknowledged.contains(at) && !self.held.contains(at) {
                return false;
            }
            at = self.previous(at);
        }
        at == position
    }
}

/// How far a node has got with following a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// The node has never opened it.
    Closed,
    /// Followed for the first time, and about to read what is recent.
    Opening,
    /// The feed has ended.
    Down,
    /// Followed again. What was missed meanwhile is not read yet.
    Healing,
    /// Only with [`Fault::HealsBeforeFollowing`].
    HealedFirst,
    Live,
}

/// One node: its feed and its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ModelNode {
    stage: Stage,
    /// What the feed has brought and the node has not looked at.
    feed: Events,
    /// The feed hangs on a broker that has failed over: it brings nothing new and will end.
    doomed: bool,
    ring: Events,
    /// The position before the first of the ring.
    log_start: Position,
    head: Position,
    /// A broker's answer that has not arrived yet.
    answer: Option<Replay>,
    /// The event of the feed that the last replay was to lead up to. What does not follow even then
    /// is lost.
    healed_for: Position,
}

impl ModelNode {
    fn has_feed(&self) -> bool {
        matches!(self.stage, Stage::Opening | Stage::Healing | Stage::Live)
    }

    /// Can confirm a subscription: it has a feed, and a position to confirm it with.
    fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Healing | Stage::Live)
    }

    fn append(&mut self, position: Position, capacity: u32) {
        self.ring.insert(position);
        self.head = position;
        if self.ring.len() > capacity
            && let Some(oldest) = self.ring.first()
        {
            self.ring.remove(oldest);
            self.log_start = oldest;
        }
    }

    /// Begins with the newest events that the broker has.
    fn fill(&mut self, broker: &mut Broker, capacity: u32, fault: Option<Fault>) {
        broker.touch(fault);
        self.ring = broker.held;
        while self.ring.len() > capacity
            && let Some(oldest) = self.ring.first()
        {
            self.ring.remove(oldest);
        }
        self.log_start = self.ring.first().map_or(broker.head, |first| broker.previous(first));
        self.head = broker.head;
    }

    /// Takes in what the broker says follows the node's head. What cannot be had leaves a log that
    /// begins later.
    fn heal(&mut self, answer: Replay, capacity: u32) {
        let events = match answer {
            Replay::Complete(events) => events,
            Replay::Incomplete { expected_previous, left } => {
                self.ring = Events::default();
                self.log_start = expected_previous;
                self.head = expected_previous;
                left
            }
        };
        for position in events.iter() {
            self.append(position, capacity);
        }
    }
}

/// What a node knows about a connected client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Session {
    node: u8,
    /// What the client was told last: the position of an event, a confirmation or a gap. It never
    /// goes back, or a node that does not know yet what the broker lost would tell that again
    /// ([`Fault::GapCursorGoesBack`]).
    cursor: Position,
    /// What the next event must follow. That is the cursor, but after a gap where the log has
    /// forked it lies before: at the fork.
    expected_previous: Position,
    /// Has read from the ring, so that it can be slow. Only kept if the rule is to skip.
    joined: bool,
    /// False only with [`Fault::ConfirmsBeforeFollowing`].
    placed: bool,
    /// A broker's answer that has not arrived yet, or is being told event by event.
    answer: Option<Replay>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Connection {
    Away { cursor: Position },
    Asking { node: u8, cursor: Position },
    Listening(Session),
}

/// What was really said to the client. The protocol never looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
struct Witness {
    /// Has ever had a subscription confirmed.
    subscribed: bool,
    /// Up to here nothing is owed: it was delivered, announced as a gap, or acknowledged before the
    /// subscription was confirmed.
    settled: Position,
    delivered: Events,
    /// A gap was announced after the last event.
    gap: bool,
    /// An event that was acknowledged after the confirmation was lost by the broker, and no node
    /// could say so.
    unsaid: bool,
}

/// What the environment may still do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Budget {
    publishes: u8,
    trims: u8,
    failovers: u8,
    feed_ends: u8,
    feed_skips: u8,
    drops: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    broker: Broker,
    nodes: [ModelNode; 2],
    client: Connection,
    witness: Witness,
    budget: Budget,
    /// The promise that the last step broke. Nothing is explored behind it.
    broken: Option<Promise>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    // The environment's.
    Publish,
    Trim,
    /// The broker goes on without its newest events.
    Failover {
        lost: u8,
    },
    FeedEnds(u8),
    /// The feed leaves out the next event, and says nothing.
    FeedSkips(u8),
    Drop,
    // The system's own.
    Connect(u8),
    Confirm,
    /// The session looks for what comes next, in its node's ring or at the broker.
    Read,
    /// The same, with [`Fault::ReplaysFromALaggingReplica`].
    ReadFromReplica,
    Follow(u8),
    /// The broker answers a node that heals. Only if answers travel; otherwise that is a part of
    /// the next step.
    Ask(u8),
    Heal(u8),
    /// The node looks at the next event of its feed.
    Take(u8),
    DoomedFeedEnds(u8),
}

/// What may not happen. The numbers are those of docs/guarantees.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Promise {
    Order,
    NoSilentGap,
    NoFalseGap,
    SubscribeBarrier,
    NoDuplicates,
    CatchesUp,
}

impl Promise {
    const ALL: [Promise; 6] = [
        Promise::Order,
        Promise::NoSilentGap,
        Promise::NoFalseGap,
        Promise::SubscribeBarrier,
        Promise::NoDuplicates,
        Promise::CatchesUp,
    ];

    fn property(self) -> Property<Resume> {
        match self {
            Promise::Order => Property::always("P3 events come in the order of their positions", |_, state: &State| {
                state.broken != Some(Promise::Order)
            }),
            Promise::NoSilentGap => Property::always("P4 what is missing is announced", |_, state: &State| {
                state.broken != Some(Promise::NoSilentGap)
            }),
            Promise::NoFalseGap => Property::always("P5 what the broker holds is not announced as a gap", |_, state: &State| {
                state.broken != Some(Promise::NoFalseGap)
            }),
            Promise::SubscribeBarrier => {
                Property::always("P6 nothing is missing after a confirmed subscription", |_, state: &State| {
                    state.broken != Some(Promise::SubscribeBarrier)
                })
            }
            Promise::NoDuplicates => Property::always("P7 nothing comes twice", |_, state: &State| {
                state.broken != Some(Promise::NoDuplicates)
            }),
            Promise::CatchesUp => Property::always("a client that is left alone catches up", Resume::caught_up_if_quiet),
        }
    }
}

/// A mistake that an implementation could make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// A cursor ahead of the node is set back to the node's head.
    AheadStartsOver,
    /// A cursor ahead of the node, once the broker has answered that nothing is missing, goes on
    /// with whatever the node gets next that is newer.
    AheadIsCaughtUp,
    /// A node takes any cursor within the range of its ring, not only one that it holds.
    RingResumesByRange,
    /// A subscription is confirmed at once, and begins when the feed is there.
    ConfirmsBeforeFollowing,
    /// The broker takes any cursor within the range of what it holds, not only one that it holds.
    ResumesByRange,
    /// After an incomplete replay the stream goes on with what is left, and nothing is said.
    GapIsNotAnnounced,
    /// A gap's cursor is the position that was asked for, not the one that the stream goes on
    /// after.
    GapCursorIsTheOldOne,
    /// A gap's cursor is the broker's head, and what is left before it is dropped.
    GapSwallowsWhatIsLeft,
    /// A gap's cursor is where the log goes on, even if the client has been told later positions.
    GapCursorGoesBack,
    /// The node appends whatever its feed brings.
    PreviousIsNotChecked,
    /// The node appends an event without a `previous`; and the first event of an untouched channel
    /// has none.
    ZeroContinues,
    /// A cursor that was never given out, because it lies in the future, is treated as one that was
    /// lost.
    FutureIsBelieved,
    /// A channel without events has no position.
    NoBasePosition,
    /// A node that lost its feed replays first and follows then.
    HealsBeforeFollowing,
    /// A replay is answered by a replica that may lag.
    ReplaysFromALaggingReplica,
    /// The rule for slow clients is applied to one that has only just come back.
    SkipsTheResuming,
}

/// What a rule says about a client that fell off its node's ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slow {
    Refill,
    Skip,
}

/// The protocol, the bounds it is tried in, and what is wrong with it.
#[derive(Clone, Copy, Debug)]
struct Resume {
    bounds: Budget,
    /// The most that one failover loses; more than there is wipes the channel.
    tail: u8,
    /// Whether feeds outlive a failover and show the fork, or end some time after it.
    feeds_outlive_failover: bool,
    /// How many events a node's ring holds.
    ring: u32,
    slow: Slow,
    /// Whether a node that opens a channel fills its ring from the broker's history.
    fills_ring: bool,
    /// Whether a node asks only for the broker's head, and waits if that has reached the cursor,
    /// when a cursor is ahead of its own.
    asks_for_head: bool,
    /// Whether anything may happen between a broker's answer and the moment that it is looked at.
    answers_travel: bool,
    /// What the client brings when it first comes. A cursor that no broker gave, or [`NOWHERE`].
    brings: Position,
    fault: Option<Fault>,
    /// Check only this. With a single property the checker stops at the shortest counterexample.
    only: Option<Promise>,
}

impl Model for Resume {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let node = ModelNode {
            stage: Stage::Closed,
            feed: Events::default(),
            doomed: false,
            ring: Events::default(),
            log_start: NOWHERE,
            head: NOWHERE,
            answer: None,
            healed_for: NOWHERE,
        };
        vec![State {
            broker: Broker {
                clock: NOWHERE,
                head: NOWHERE,
                previous: [NOWHERE; POSITIONS],
                acknowledged: Events::default(),
                held: Events::default(),
                lost: Events::default(),
            },
            nodes: [node; 2],
            client: Connection::Away { cursor: self.brings },
            witness: Witness::default(),
            budget: self.bounds,
            broken: None,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.broken.is_some() {
            return;
        }
        let budget = &state.budget;
        if budget.publishes > 0 {
            steps.push(Step::Publish);
        }
        if budget.trims > 0 && !state.broker.held.is_empty() {
            steps.push(Step::Trim);
        }
        if budget.failovers > 0 {
            steps.extend((1..=self.tail).map(|lost| Step::Failover { lost }));
        }
        if budget.drops > 0 && !matches!(state.client, Connection::Away { .. }) {
            steps.push(Step::Drop);
        }
        for node in 0..2 {
            let of_node = &state.nodes[usize::from(node)];
            if budget.feed_ends > 0 && of_node.has_feed() {
                steps.push(Step::FeedEnds(node));
            }
            if budget.feed_skips > 0 && !of_node.feed.is_empty() {
                steps.push(Step::FeedSkips(node));
            }
        }
        self.own_steps(state, steps);
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = *last;
        self.take_step(&mut state, step);
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        if let Some(promise) = self.only {
            return vec![promise.property()];
        }
        let mut properties: Vec<_> = Promise::ALL.into_iter().map(Promise::property).collect();
        // Without these, promises could be kept because nothing happens.
        properties.push(Property::sometimes(
            "everything published is delivered",
            |model: &Resume, state: &State| state.witness.delivered.len() == u32::from(model.bounds.publishes),
        ));
        properties.push(Property::sometimes(
            "a client is ahead of its node",
            |_, state: &State| match state.client {
                Connection::Listening(session) => session.expected_previous > state.nodes[usize::from(session.node)].head,
                _ => false,
            },
        ));
        properties.push(Property::sometimes(
            "a client has fallen off its node's ring",
            |_, state: &State| match state.client {
                Connection::Listening(session) => session.expected_previous < state.nodes[usize::from(session.node)].log_start,
                _ => false,
            },
        ));
        properties.push(Property::sometimes("a gap is announced", |_, state: &State| {
            state.witness.gap
        }));
        if self.bounds.failovers > 0 {
            properties.push(Property::sometimes(
                "a client has an event that the broker lost",
                |_, state: &State| state.witness.delivered.0 & state.broker.lost.0 != 0,
            ));
            properties.push(Property::sometimes(
                "a client is past a fork",
                |_, state: &State| match state.client {
                    Connection::Listening(session) => session.expected_previous != session.cursor,
                    _ => false,
                },
            ));
            properties.push(Property::sometimes(
                "an event that no node has seen is lost without a word",
                |_, state: &State| state.witness.unsaid,
            ));
        }
        properties
    }
}

impl Resume {
    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// What happens when the environment leaves everybody alone.
    fn own_steps(&self, state: &State, steps: &mut Vec<Step>) {
        for node in 0..2 {
            let of_node = &state.nodes[usize::from(node)];
            match of_node.stage {
                Stage::Down if self.has(Fault::HealsBeforeFollowing) => steps.push(Step::Heal(node)),
                Stage::Closed | Stage::Down | Stage::HealedFirst => steps.push(Step::Follow(node)),
                Stage::Healing if self.answers_travel && of_node.answer.is_none() => steps.push(Step::Ask(node)),
                Stage::Opening | Stage::Healing => steps.push(Step::Heal(node)),
                Stage::Live if !of_node.feed.is_empty() => steps.push(Step::Take(node)),
                Stage::Live => {}
            }
            if of_node.doomed {
                steps.push(Step::DoomedFeedEnds(node));
            }
        }
        match state.client {
            Connection::Away { .. } => {
                steps.push(Step::Connect(0));
                // Which node is called 0 is decided by the client's first choice: the other half of
                // the states is the same with the names swapped.
                if state.witness.subscribed {
                    steps.push(Step::Connect(1));
                }
            }
            Connection::Asking { node, .. } => {
                if state.nodes[usize::from(node)].is_open() || self.has(Fault::ConfirmsBeforeFollowing) {
                    steps.push(Step::Confirm);
                }
            }
            Connection::Listening(_) => {
                steps.push(Step::Read);
                if self.has(Fault::ReplaysFromALaggingReplica) {
                    steps.push(Step::ReadFromReplica);
                }
            }
        }
    }

    fn take_step(&self, state: &mut State, step: Step) {
        match step {
            Step::Publish => {
                state.budget.publishes -= 1;
                let position = state.broker.publish(self.fault);
                for node in &mut state.nodes {
                    if node.has_feed() && !node.doomed {
                        node.feed.insert(position);
                    }
                }
            }
            Step::Trim => {
                state.budget.trims -= 1;
                state.broker.trim();
            }
            Step::Failover { lost } => self.fail_over(state, lost),
            Step::FeedEnds(node) => {
                state.budget.feed_ends -= 1;
                self.feed_ends(&mut state.nodes[usize::from(node)]);
            }
            Step::FeedSkips(node) => {
                state.budget.feed_skips -= 1;
                let feed = &mut state.nodes[usize::from(node)].feed;
                if let Some(next) = feed.first() {
                    feed.remove(next);
                }
            }
            Step::Drop => {
                state.budget.drops -= 1;
                let cursor = match state.client {
                    Connection::Away { cursor } | Connection::Asking { cursor, .. } => cursor,
                    Connection::Listening(session) => session.cursor,
                };
                state.client = Connection::Away { cursor };
            }
            Step::Connect(node) => {
                if let Connection::Away { cursor } = state.client {
                    state.client = Connection::Asking { node, cursor };
                }
            }
            Step::Confirm => self.confirm(state),
            Step::Read => self.read(state, false),
            Step::ReadFromReplica => self.read(state, true),
            Step::Follow(node) => self.follow(state, node),
            Step::Ask(node) => {
                let node = &mut state.nodes[usize::from(node)];
                node.answer = Some(state.broker.answer(node.head, self.fault));
            }
            Step::Heal(node) => self.heal(state, node),
            Step::Take(node) => self.take(state, node),
            Step::DoomedFeedEnds(node) => self.feed_ends(&mut state.nodes[usize::from(node)]),
        }
    }

    fn fail_over(&self, state: &mut State, lost: u8) {
        state.budget.failovers -= 1;
        for _ in 0..lost {
            state.broker.lose_head();
        }
        for node in &mut state.nodes {
            node.doomed = node.has_feed() && !self.feeds_outlive_failover;
        }
    }

    fn follow(&self, state: &mut State, node: u8) {
        state.broker.touch(self.fault);
        let node = &mut state.nodes[usize::from(node)];
        node.stage = match node.stage {
            Stage::Down => Stage::Healing,
            Stage::Closed if self.fills_ring => Stage::Opening,
            Stage::Closed => {
                node.head = state.broker.head;
                node.log_start = state.broker.head;
                Stage::Live
            }
            _ => Stage::Live,
        };
    }

    fn heal(&self, state: &mut State, node: u8) {
        let node = &mut state.nodes[usize::from(node)];
        match (node.stage, node.answer.take()) {
            (Stage::Opening, _) => node.fill(&mut state.broker, self.ring, self.fault),
            (_, Some(answer)) => node.heal(answer, self.ring),
            (_, None) => node.heal(state.broker.answer(node.head, self.fault), self.ring),
        }
        node.stage = match node.stage {
            Stage::Down => Stage::HealedFirst,
            _ => Stage::Live,
        };
    }

    fn feed_ends(&self, node: &mut ModelNode) {
        node.stage = match node.stage {
            Stage::Opening => Stage::Closed,
            _ => Stage::Down,
        };
        node.feed = Events::default();
        node.doomed = false;
        node.answer = None;
        node.healed_for = NOWHERE;
    }

    /// The node looks at the next event of its feed. What does not continue its log is healed by a
    /// replay. What the replay has brought already, or does not hold any more, is dropped: since
    /// the replay is newer than the event, the broker has lost it.
    fn take(&self, state: &mut State, node: u8) {
        let node = &mut state.nodes[usize::from(node)];
        let Some(next) = node.feed.first() else { return };
        let previous = state.broker.previous(next);
        let continues = previous == node.head
            || self.has(Fault::PreviousIsNotChecked)
            || previous == NOWHERE && self.has(Fault::ZeroContinues);
        if next > node.head && continues {
            node.append(next, self.ring);
        } else if next > node.head && node.healed_for != next {
            // It stays in the feed, and is looked at again afterwards.
            node.healed_for = next;
            match self.answers_travel {
                true => node.stage = Stage::Healing,
                false => node.heal(state.broker.answer(node.head, self.fault), self.ring),
            }
            return;
        }
        node.feed.remove(next);
        node.healed_for = NOWHERE;
    }

    fn confirm(&self, state: &mut State) {
        let Connection::Asking { node, cursor } = state.client else {
            return;
        };
        let head = state.nodes[usize::from(node)].head;
        let mut session = Session {
            node,
            cursor,
            expected_previous: cursor,
            joined: false,
            placed: true,
            answer: None,
        };
        if cursor == NOWHERE {
            session.joined = self.slow == Slow::Skip;
            session.cursor = head;
            session.expected_previous = head;
            session.placed = !self.has(Fault::ConfirmsBeforeFollowing) || state.nodes[usize::from(node)].is_open();
        }
        if !state.witness.subscribed {
            state.witness.subscribed = true;
            state.witness.settled = state.broker.clock;
        }
        state.client = Connection::Listening(session);
    }

    /// What comes next for the listening client: an event, a gap, or nothing yet.
    fn read(&self, state: &mut State, from_replica: bool) {
        let Connection::Listening(mut session) = state.client else {
            return;
        };
        if let Some(answer) = session.answer.take() {
            self.heed(state, session, answer);
            return;
        }
        let node = state.nodes[usize::from(session.node)];
        let expected_previous = session.expected_previous;
        if !session.placed {
            if node.is_open() {
                (session.cursor, session.expected_previous, session.placed) = (node.head, node.head, true);
            }
            state.client = Connection::Listening(session);
            return;
        }
        let opened = !matches!(node.stage, Stage::Closed | Stage::Opening);
        let knows = expected_previous == node.log_start || node.ring.contains(expected_previous);
        let in_range = self.has(Fault::RingResumesByRange) && expected_previous >= node.log_start;
        if opened && (knows || in_range) {
            session.joined = self.slow == Slow::Skip;
            match node.ring.after(expected_previous.max(session.cursor)).first() {
                Some(next) => self.deliver(state, session, next),
                None => state.client = Connection::Listening(session),
            }
            return;
        }
        let ahead = opened && expected_previous > node.head;
        if ahead && self.has(Fault::AheadStartsOver) {
            (session.cursor, session.expected_previous) = (node.log_start, node.log_start);
            state.client = Connection::Listening(session);
            return;
        }
        if self.slow == Slow::Skip && expected_previous < node.log_start && (session.joined || self.has(Fault::SkipsTheResuming))
        {
            let cursor = session.cursor.max(node.log_start);
            self.announce_gap(state, session, node.log_start, cursor, session.joined);
            return;
        }
        if ahead && self.asks_for_head && state.broker.head >= expected_previous {
            return;
        }
        let answer = match from_replica {
            true => state.broker.lagging_replica().replay(expected_previous, self.fault),
            false => state.broker.answer(expected_previous, self.fault),
        };
        match answer {
            Replay::Complete(events) if events.after(session.cursor).is_empty() => {
                if ahead && self.has(Fault::AheadIsCaughtUp) {
                    session.expected_previous = node.head;
                    state.client = Connection::Listening(session);
                }
                // Otherwise the node is behind and will get there; the client waits, and asks
                // again.
            }
            _ if self.answers_travel => {
                session.answer = Some(answer);
                state.client = Connection::Listening(session);
            }
            _ => self.heed(state, session, answer),
        }
    }

    /// Tells the client the first of what the broker has answered. If answers travel, the others
    /// follow without asking again.
    fn heed(&self, state: &mut State, mut session: Session, answer: Replay) {
        let keep = |left: Events| (self.answers_travel && !left.is_empty()).then_some(Replay::Complete(left));
        match answer {
            Replay::Complete(events) => {
                if let Some(next) = events.after(session.cursor).first() {
                    session.answer = keep(events.after(next));
                    self.deliver(state, session, next);
                }
            }
            Replay::Incomplete { left, .. } if self.has(Fault::GapIsNotAnnounced) => match left.after(session.cursor).first() {
                Some(next) => self.deliver(state, session, next),
                None => {
                    session.expected_previous = state.broker.head;
                    state.client = Connection::Listening(session);
                }
            },
            Replay::Incomplete { expected_previous, left } => {
                let invented = session.cursor > state.broker.clock && !self.has(Fault::FutureIsBelieved);
                let (expected_previous, cursor) = match self.fault {
                    Some(Fault::GapCursorIsTheOldOne) => (expected_previous, session.cursor),
                    Some(Fault::GapSwallowsWhatIsLeft) => (state.broker.head, session.cursor.max(state.broker.head)),
                    Some(Fault::GapCursorGoesBack) => (expected_previous, expected_previous),
                    _ if invented => (expected_previous, expected_previous),
                    _ => (expected_previous, session.cursor.max(expected_previous)),
                };
                session.answer = keep(left.after(cursor));
                self.announce_gap(state, session, expected_previous, cursor, false);
            }
        }
    }

    /// Tells the client an event, and judges that by the truth.
    fn deliver(&self, state: &mut State, session: Session, next: Position) {
        let State { broker, witness, .. } = state;
        let before = broker.previous(next);
        let missing = broker.acknowledged.contains(before) && before > witness.settled;
        let forked = witness.delivered.last().is_some_and(|last| !broker.leads_to(last, next)) && !witness.gap;
        state.broken = if witness.delivered.contains(next) {
            Some(Promise::NoDuplicates)
        } else if next <= session.cursor || witness.delivered.last().is_some_and(|last| next < last) {
            Some(Promise::Order)
        } else if missing && witness.delivered.is_empty() && !witness.gap {
            Some(Promise::SubscribeBarrier)
        } else if missing || forked {
            Some(Promise::NoSilentGap)
        } else {
            None
        };
        witness.unsaid |= broker.lost.after(witness.settled).first().is_some_and(|lost| lost < next) && !witness.gap;
        witness.settled = witness.settled.max(next);
        witness.delivered.insert(next);
        witness.gap = false;
        state.client = Connection::Listening(Session {
            cursor: next,
            expected_previous: next,
            joined: self.slow == Slow::Skip,
            ..session
        });
    }

    /// Tells the client that what lies between its cursor and `cursor` is gone, and judges that by
    /// the truth.
    fn announce_gap(&self, state: &mut State, session: Session, expected_previous: Position, cursor: Position, too_slow: bool) {
        let State { broker, witness, .. } = state;
        let false_alarm = broker.can_continue(session.cursor);
        let swallowed = broker.held.after(session.cursor).first().is_some_and(|held| held <= cursor);
        let says_nothing_new = expected_previous == session.expected_previous && cursor == session.cursor;
        if !too_slow && (false_alarm || swallowed || says_nothing_new) {
            state.broken = Some(Promise::NoFalseGap);
        }
        witness.settled = witness.settled.max(cursor);
        witness.gap = true;
        state.client = Connection::Listening(Session {
            cursor,
            expected_previous,
            ..session
        });
    }

    /// When no step of the system's own is left, a client is where the broker is. No node can see
    /// two cases: a feed that skipped its newest event, and a feed that outlived a failover and has
    /// shown nothing since. Their feeds break the contract by not ending.
    fn caught_up_if_quiet(&self, state: &State) -> bool {
        let mut steps = Vec::new();
        self.own_steps(state, &mut steps);
        if state.broken.is_some() || steps.into_iter().any(|step| self.next_state(state, step).is_some()) {
            return true;
        }
        let unseen = state.budget.feed_skips < self.bounds.feed_skips
            || self.feeds_outlive_failover && state.budget.failovers < self.bounds.failovers;
        match state.client {
            Connection::Listening(session) => session.expected_previous == state.broker.head || unseen,
            _ => false,
        }
    }
}

/// A little of everything.
const EVERYTHING: Resume = Resume {
    bounds: Budget {
        publishes: 3,
        trims: 1,
        failovers: 1,
        feed_ends: 1,
        feed_skips: 1,
        drops: 1,
    },
    tail: 2,
    feeds_outlive_failover: false,
    ring: 1,
    slow: Slow::Refill,
    fills_ring: false,
    asks_for_head: false,
    answers_travel: false,
    brings: NOWHERE,
    fault: None,
    only: None,
};

/// The broker fails over without its newest events. Feeds end, each in its own time, and show
/// nothing new until then.
const FAILOVER: Resume = Resume {
    bounds: Budget {
        trims: 0,
        feed_ends: 0,
        feed_skips: 0,
        ..EVERYTHING.bounds
    },
    ..EVERYTHING
};

/// The same, but feeds go on and show the fork.
const FORK: Resume = Resume {
    feeds_outlive_failover: true,
    ..FAILOVER
};

/// The broker loses nothing, but keeps little. Feeds end.
const TRIM: Resume = Resume {
    bounds: Budget {
        trims: 2,
        failovers: 0,
        feed_skips: 0,
        ..EVERYTHING.bounds
    },
    ..EVERYTHING
};

/// The broker loses nothing. Feeds skip in silence.
const SILENT_SKIP: Resume = Resume {
    bounds: Budget {
        trims: 1,
        failovers: 0,
        feed_ends: 0,
        ..EVERYTHING.bounds
    },
    ..EVERYTHING
};

/// Every promise holds, in every state that can be reached, and what should happen can.
fn keeps_its_promises(model: Resume) {
    let begun = Instant::now();
    let checker = model.checker().spawn_bfs().join();
    println!(
        "{} states, {} steps, at most {} deep, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        begun.elapsed().as_secs_f32()
    );
    checker.assert_properties();
}

#[test]
fn promises_hold_when_the_broker_loses_its_newest_events() {
    keeps_its_promises(Resume {
        bounds: Budget {
            publishes: 2,
            ..FAILOVER.bounds
        },
        ..FAILOVER
    });
}

#[test]
fn promises_hold_when_feeds_show_the_fork() {
    keeps_its_promises(FORK);
}

#[test]
fn promises_hold_when_history_is_short_and_feeds_end() {
    keeps_its_promises(TRIM);
}

#[test]
fn promises_hold_when_a_node_begins_with_recent_history() {
    keeps_its_promises(Resume {
        fills_ring: true,
        ..TRIM
    });
}

#[test]
fn promises_hold_when_feeds_skip_in_silence() {
    keeps_its_promises(SILENT_SKIP);
}

#[test]
fn promises_hold_when_slow_clients_are_made_to_skip() {
    keeps_its_promises(Resume {
        slow: Slow::Skip,
        ..TRIM
    });
    // A skip beside a fork: here, too, a gap's cursor must not go back.
    keeps_its_promises(Resume {
        slow: Slow::Skip,
        ..FORK
    });
}

#[test]
fn to_wait_for_a_node_that_is_behind_the_brokers_head_is_enough_to_know() {
    keeps_its_promises(Resume {
        asks_for_head: true,
        ..FORK
    });
}

#[test]
fn promises_hold_for_a_client_that_brings_an_invented_cursor() {
    keeps_its_promises(Resume { brings: 11, ..FORK });
}

#[test]
fn promises_hold_when_the_brokers_answers_are_old() {
    keeps_its_promises(Resume {
        answers_travel: true,
        ..FORK
    });
    keeps_its_promises(Resume {
        answers_travel: true,
        ..SILENT_SKIP
    });
}

#[test]
#[ignore = "takes minutes: for a change of the protocol"]
fn promises_hold_in_every_mixture() {
    keeps_its_promises(EVERYTHING);
    keeps_its_promises(Resume {
        feeds_outlive_failover: true,
        fills_ring: true,
        ..EVERYTHING
    });
    keeps_its_promises(Resume {
        answers_travel: true,
        ..FAILOVER
    });
    keeps_its_promises(Resume {
        answers_travel: true,
        ..TRIM
    });
    keeps_its_promises(Resume {
        bounds: Budget {
            failovers: 2,
            ..FAILOVER.bounds
        },
        ..FAILOVER
    });
    keeps_its_promises(Resume {
        bounds: Budget {
            trims: 1,
            failovers: 2,
            ..FORK.bounds
        },
        tail: 3,
        slow: Slow::Skip,
        ..FORK
    });
}

/// Mistakes, each found. What keeps its promises in [`keeps_its_promises`] must break one as soon
/// as the mistake is made.
mod mistakes {
    use super::*;

    /// Looks for the shortest way in which `model` with `fault` breaks `promise`.
    fn is_found(fault: Fault, model: Resume, promise: Promise) {
        let begun = Instant::now();
        let checker = Resume {
            fault: Some(fault),
            only: Some(promise),
            ..model
        }
        .checker()
        .spawn_bfs()
        .join();
        let name = promise.property().name;
        let Some(path) = checker.discovery(name) else {
            panic!(
                "{fault:?} is not found: {name:?} holds in all {} states",
                checker.unique_state_count()
            );
        };
        let steps = path.into_actions();
        println!(
            "{fault:?} breaks {name:?} in {} steps ({} states, {:.1} s): {steps:?}",
            steps.len(),
            checker.unique_state_count(),
            begun.elapsed().as_secs_f32()
        );
    }

    #[test]
    fn a_cursor_ahead_of_its_node_is_set_back() {
        is_found(Fault::AheadStartsOver, FAILOVER, Promise::NoDuplicates);
    }

    #[test]
    fn a_cursor_ahead_of_its_node_is_asked_about_only_once() {
        is_found(Fault::AheadIsCaughtUp, FORK, Promise::NoSilentGap);
        // Nothing is lost here: what the node has missed is told to a client that has not.
        is_found(Fault::AheadIsCaughtUp, TRIM, Promise::NoFalseGap);
    }

    #[test]
    fn a_subscription_is_confirmed_before_the_feed_is_followed() {
        is_found(Fault::ConfirmsBeforeFollowing, TRIM, Promise::SubscribeBarrier);
    }

    #[test]
    fn a_broker_resumes_by_range() {
        is_found(Fault::ResumesByRange, FORK, Promise::NoSilentGap);
    }

    #[test]
    fn a_node_resumes_by_range() {
        is_found(Fault::RingResumesByRange, FORK, Promise::NoSilentGap);
    }

    #[test]
    fn a_gap_is_not_announced() {
        is_found(Fault::GapIsNotAnnounced, TRIM, Promise::NoSilentGap);
    }

    #[test]
    fn a_gap_carries_the_old_cursor() {
        is_found(Fault::GapCursorIsTheOldOne, TRIM, Promise::NoSilentGap);
    }

    #[test]
    fn a_gap_swallows_what_is_left() {
        is_found(Fault::GapSwallowsWhatIsLeft, TRIM, Promise::NoFalseGap);
    }

    #[test]
    fn a_gaps_cursor_goes_back() {
        is_found(Fault::GapCursorGoesBack, FORK, Promise::NoDuplicates);
        is_found(Fault::GapCursorGoesBack, FAILOVER, Promise::NoDuplicates);
    }

    #[test]
    fn the_previous_of_an_event_is_not_checked() {
        is_found(Fault::PreviousIsNotChecked, SILENT_SKIP, Promise::NoSilentGap);
        is_found(Fault::PreviousIsNotChecked, FORK, Promise::NoSilentGap);
    }

    #[test]
    fn an_event_without_a_previous_continues_whatever_there_is() {
        is_found(Fault::ZeroContinues, FORK, Promise::NoSilentGap);
    }

    #[test]
    fn an_invented_cursor_is_believed() {
        is_found(Fault::FutureIsBelieved, Resume { brings: 11, ..FORK }, Promise::CatchesUp);
    }

    #[test]
    fn an_empty_channel_has_no_position() {
        is_found(Fault::NoBasePosition, TRIM, Promise::SubscribeBarrier);
    }

    #[test]
    fn a_node_heals_before_it_follows() {
        is_found(Fault::HealsBeforeFollowing, TRIM, Promise::CatchesUp);
    }

    #[test]
    fn a_replay_is_read_from_a_replica_that_lags() {
        is_found(Fault::ReplaysFromALaggingReplica, TRIM, Promise::NoFalseGap);
    }

    #[test]
    fn a_client_that_comes_back_is_treated_as_slow() {
        let model = Resume {
            slow: Slow::Skip,
            ..TRIM
        };
        is_found(Fault::SkipsTheResuming, model, Promise::NoFalseGap);
    }
}
