//! Judges a [`History`] by the promises of docs/guarantees.md, P1 to P8, and knows nothing of how
//! they are kept.
//!
//! It has no view into the broker, as the simulation's checker has. What existed is what was
//! acknowledged, what a listener heard, and what history held in the end. The part of the plan that
//! kills the broker says what may have been lost.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::ops::Bound::{Excluded, Included, Unbounded};

use super::history::{Channel, History, Listener, Loss, Moment, Outcome, Told};

/// The reasons that docs/protocol.md knows.
const REASONS: [&str; 4] = ["unknown-position", "history-expired", "too-slow", "broker-lost-data"];

/// So long after a loss every node knows of it, whatever it was cut off from meanwhile.
const KNOWN_AFTER: Moment = 15_000_000;

/// The promises, and that everybody has everything once everything is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// P1 and P10.
    Acknowledged,
    /// P2.
    Idempotent,
    /// P3.
    Order,
    /// P4.
    NoSilentGap,
    /// P5.
    NoFalseGap,
    /// P6.
    SubscribeBarrier,
    /// P7.
    NoDuplicates,
    /// P8.
    SameEverywhere,
    /// In the end.
    CaughtUp,
}

/// A promise that was broken, and how.
#[derive(Clone, Debug)]
pub struct Breach {
    /// Which.
    pub promise: Promise,
    /// For people.
    pub what: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let promise = match self.promise {
            Promise::Acknowledged => "P1 acknowledged",
            Promise::Idempotent => "P2 idempotent",
            Promise::Order => "P3 order",
            Promise::NoSilentGap => "P4 no silent gap",
            Promise::NoFalseGap => "P5 no false gap",
            Promise::SubscribeBarrier => "P6 subscribe barrier",
            Promise::NoDuplicates => "P7 no duplicates",
            Promise::SameEverywhere => "P8 the same everywhere",
            Promise::CaughtUp => "caught up in the end",
        };
        write!(f, "{promise}: {}", self.what)
    }
}

fn breach(promise: Promise, what: String) -> Option<Breach> {
    Some(Breach { promise, what })
}

/// Everything that was broken. Of what one listener was told only the first breach: what follows it
/// means little.
pub fn check(history: &History) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for (name, channel) in &history.channels {
        let known = Known::of(history, name, channel, &mut breaches);
        publications(history, name, &known, &mut breaches);
        for listener in history.listeners.iter().filter(|listener| listener.channel == *name) {
            let breach = Standing::of(&known)
                .follow(listener)
                .or_else(|| owed(history, listener, &known));
            breaches.extend(breach.map(|breach| Breach {
                what: format!("{} on {name}: {}", listener.name, breach.what),
                ..breach
            }));
        }
    }
    breaches
}

/// What is known of one channel.
struct Known<'a> {
    channel: &'a Channel,
    losses: Vec<&'a Loss>,
    jumps: &'a [Moment],
    clocks: bool,
    ended: Moment,
    events: BTreeMap<u64, &'a str>,
    /// Where each body stands.
    places: HashMap<&'a str, BTreeSet<u64>>,
    /// When the first try to publish it began.
    began: HashMap<&'a str, Moment>,
    /// When it was acknowledged.
    acknowledged: HashMap<&'a str, Moment>,
}

impl<'a> Known<'a> {
    fn of(history: &'a History, name: &str, channel: &'a Channel, breaches: &mut Vec<Breach>) -> Self {
        let mut known = Self {
            channel,
            losses: history
                .losses
                .iter()
                .filter(|loss| loss.channel.as_deref().is_none_or(|channel| channel == name))
                .collect(),
            jumps: &history.jumps,
            clocks: history.clocks,
            ended: history.ended,
            events: BTreeMap::new(),
            places: HashMap::new(),
            began: HashMap::new(),
            acknowledged: HashMap::new(),
        };
        let mut see = |position: u64, body: &'a str, who: &str| {
            let first = *known.events.entry(position).or_insert(body);
            if first != body {
                let what = format!("on {name}, {position} is {first}, but {body} {who}");
                breaches.extend(breach(Promise::SameEverywhere, what));
            }
            known.places.entry(body).or_default().insert(position);
        };
        for publication in history.publications.iter().filter(|publication| publication.channel == name) {
            known.began.insert(&publication.body, publication.began);
            if let Outcome::Acknowledged { at, position } = publication.outcome {
                known.acknowledged.insert(&publication.body, at);
                if let Some(position) = position {
                    see(position, &publication.body, "was acknowledged there");
                }
            }
        }
        for (position, body) in &channel.held {
            see(*position, body, "is in history");
        }
        for listener in history.listeners.iter().filter(|listener| listener.channel == name) {
            for (_, told) in &listener.told {
                if let Told::Event { position, body } = told {
                    see(*position, body, &format!("came to {}", listener.name));
                }
            }
        }
        for (position, body) in &known.events {
            if !known.began.contains_key(body) {
                let what = format!("on {name}, {body} at {position} was published by no client");
                breaches.extend(breach(Promise::SameEverywhere, what));
            }
        }
        known
    }

    /// Whether the broker may have lost what stood at `position` by then.
    fn is_lost(&self, position: u64, by: Moment) -> bool {
        let held = self.channel.held.contains_key(&position);
        let lost = |loss: &&Loss| loss.at <= by && position < loss.position && (loss.everything || !held);
        self.losses.iter().any(lost)
    }

    /// Whether there may be lines of events that go apart, because something newest was lost.
    fn has_forks(&self) -> bool {
        self.losses.iter().any(|loss| !loss.everything)
    }

    /// Whether the broker had lost everything up to `position` by then.
    fn is_lost_with_all(&self, position: u64, by: Moment) -> bool {
        self.losses
            .iter()
            .any(|loss| loss.everything && loss.at <= by && position < loss.position)
    }

    /// Whether history holds it in the end, or held it so long that it was forgotten in good order.
    fn is_held(&self, position: u64) -> bool {
        let held = &self.channel.held;
        let forgets = held.len() >= self.channel.keeps;
        held.contains_key(&position)
            || (forgets && held.first_key_value().is_some_and(|(first, _)| position < *first))
            || self.is_too_old(position, self.ended)
    }

    /// Whether it may have been older than history's age by then.
    fn is_too_old(&self, position: u64, by: Moment) -> bool {
        let (Some(age), Some(body)) = (self.channel.age, self.events.get(&position)) else {
            return false;
        };
        // It was stored after its publication had begun, and no clock but the broker's counts.
        self.began
            .get(body)
            .is_some_and(|began| began + age <= by || self.jumps.iter().any(|jump| began <= jump && *jump <= by))
    }

    /// Whether so many newer ones may have been published by then that history need not hold it.
    fn is_forgotten(&self, position: u64, by: Moment) -> bool {
        if self.is_too_old(position, by) {
            return true;
        }
        let newer = self.events.range((Excluded(position), Unbounded));
        newer
            .filter(|(_, body)| self.began.get(*body).is_some_and(|began| *began < by))
            .count()
            >= self.channel.keeps
    }

    fn between(&self, after: u64, before: u64) -> impl Iterator<Item = u64> {
        let range = (after < before).then(|| self.events.range((Excluded(after), Excluded(before))));
        range.into_iter().flatten().map(|(position, _)| *position)
    }
}

/// For so long a broker knows an idempotency key, by its own clock. Microseconds.
const KEYS_LIVE: u64 = 120_000_000;

fn publications(history: &History, name: &str, known: &Known<'_>, breaches: &mut Vec<Breach>) {
    let mut acknowledged: Vec<(Moment, Moment, u64)> = Vec::new();
    let nowhere = BTreeSet::new();
    for publication in history.publications.iter().filter(|publication| publication.channel == name) {
        let body = &publication.body;
        let places = known.places.get(&**body).unwrap_or(&nowhere);
        match publication.outcome {
            Outcome::Acknowledged { at, position } => {
                let position = position.or_else(|| places.last().copied());
                let lossy = known.losses.iter().any(|loss| loss.at > at || !loss.everything);
                match position {
                    Some(position) if known.is_held(position) || known.is_lost(position, Moment::MAX) => {}
                    None if lossy || known.channel.held.len() >= known.channel.keeps => {}
                    _ => breaches.extend(breach(
                        Promise::Acknowledged,
                        format!("{body} on {name} was acknowledged at {position:?}, and history does not hold it"),
                    )),
                }
                // Of what stood on two lines one was lost, and there is no order between them.
                let position = position.filter(|position| !known.has_forks() || known.channel.held.contains_key(position));
                acknowledged.extend(position.map(|position| (publication.began, at, position)));
            }
            Outcome::Refused if !places.is_empty() => {
                let what = format!("{body} on {name} was refused, but it stands at {places:?}");
                breaches.extend(breach(Promise::Acknowledged, what));
            }
            Outcome::Refused | Outcome::Unknown => {}
        }
        // Only what is lost may be made once more. After failovers to and fro it is the later one
        // that may be lost.
        let standing: Vec<_> = places.iter().collect();
        for pair in standing.windows(2) {
            let (first, second) = (*pair[0], *pair[1]);
            let made_again = known.losses.iter().any(|loss| {
                // What comes first after a loss may stand right there.
                let between = first < loss.position && second >= loss.position;
                between && loss.everything
                    || known.has_forks() && (known.is_lost(first, loss.at) || known.is_lost(second, loss.at))
            });
            // Positions are the time of the broker's clock. A clock that is put forward makes keys
            // too old at once.
            let too_old = !history.jumps.is_empty() && second - first >= KEYS_LIVE;
            if !made_again && !too_old {
                let what = format!("{body} on {name} is both at {first} and at {second}");
                breaches.extend(breach(Promise::Idempotent, what));
            }
        }
    }
    // In the order in which they began; before each, the highest position that had been
    // acknowledged by then.
    acknowledged.sort_unstable();
    let mut by_end: Vec<_> = acknowledged.iter().map(|(_, at, position)| (*at, *position)).collect();
    by_end.sort_unstable();
    let (mut ended, mut highest) = (by_end.into_iter().peekable(), 0);
    for (began, _, position) in acknowledged {
        while let Some((_, earlier)) = ended.next_if(|(at, _)| *at < began) {
            highest = highest.max(earlier);
        }
        if position < highest {
            let what = format!("on {name}, {position} was published after {highest} had been acknowledged");
            breaches.extend(breach(Promise::Order, what));
        }
    }
}

/// Where a listener stands while its story is told again.
struct Standing<'a> {
    known: &'a Known<'a>,
    /// What it came with, and when.
    asked: Option<u64>,
    asked_at: Moment,
    /// When it was confirmed that it resumes, if nothing came since.
    resumed_at: Option<Moment>,
    /// What it would resume with; `None`: it was never confirmed.
    cursor: Option<u64>,
    /// The newest event that it was ever given.
    newest: u64,
    delivered: BTreeSet<u64>,
    /// A gap was announced after the last event.
    gap: bool,
    /// The confirmation said that a gap to here comes next.
    announced: Option<u64>,
}

impl<'a> Standing<'a> {
    fn of(known: &'a Known<'a>) -> Self {
        Self {
            known,
            asked: None,
            asked_at: 0,
            resumed_at: None,
            cursor: None,
            newest: 0,
            delivered: BTreeSet::new(),
            gap: false,
            announced: None,
        }
    }

    fn follow(mut self, listener: &Listener) -> Option<Breach> {
        for (at, told) in &listener.told {
            let breach = match told {
                Told::Asked { after, how } => self.asks(*at, *after, how),
                Told::Confirmed { cursor, resumed } => self.confirmed(*at, *cursor, *resumed),
                Told::Event { position, .. } => self.event(*at, *position),
                Told::Gap { after, cursor, reason } => self.gap(*at, *after, *cursor, reason),
            };
            if breach.is_some() {
                return breach;
            }
        }
        if listener.leaves {
            return None;
        }
        let head = self.known.channel.held.last_key_value().map(|(position, _)| *position);
        if self.announced.is_some() || self.cursor.is_none() || head.is_some_and(|head| self.cursor != Some(head)) {
            let what = format!("it stands at {:?}, the broker at {head:?}", self.cursor);
            return breach(Promise::CaughtUp, what);
        }
        None
    }

    fn asks(&mut self, at: Moment, after: Option<u64>, how: &str) -> Option<Breach> {
        self.announced = None;
        self.resumed_at = None;
        self.asked = after;
        self.asked_at = at;
        if self.cursor.is_some() && after != self.cursor {
            let what = format!("its cursor for {how} says {after:?}, but it was told up to {:?}", self.cursor);
            return breach(Promise::SameEverywhere, what);
        }
        None
    }

    fn confirmed(&mut self, at: Moment, cursor: u64, resumed: bool) -> Option<Breach> {
        match self.asked {
            Some(mine) if resumed && mine == cursor => {
                self.cursor = Some(mine);
                self.resumed_at = Some(at);
            }
            Some(mine) if resumed => {
                return breach(Promise::NoSilentGap, format!("it resumed after {mine}, but from {cursor} on"));
            }
            Some(mine) => {
                self.cursor = Some(mine);
                self.announced = Some(cursor);
            }
            None if resumed => return breach(Promise::NoSilentGap, "it resumed without a cursor".into()),
            None => {
                let left_out = self
                    .known
                    .events
                    .range(..=cursor)
                    .find(|(_, body)| self.known.began[*body] > at);
                if let Some((position, body)) = left_out {
                    let what = format!("{body} at {position} was published after its confirmation, which says {cursor}");
                    return breach(Promise::SubscribeBarrier, what);
                }
                if let Some(held) = self.left_out_of_replay(at, cursor) {
                    let what = format!("it came without a cursor, and {held}, which history holds, is before {cursor}");
                    return breach(Promise::NoSilentGap, what);
                }
                self.cursor = Some(cursor);
            }
        }
        None
    }

    /// Who comes without a cursor, to a channel that replays all, gets all: an event before the
    /// first that was there when it asked.
    fn left_out_of_replay(&self, at: Moment, cursor: u64) -> Option<u64> {
        let known = self.known;
        if !known.channel.replays || known.has_forks() {
            return None;
        }
        let was_there = |(position, body): (&u64, &&str)| {
            let acknowledged = known
                .acknowledged
                .get(*body)
                .is_some_and(|acknowledged| *acknowledged < self.asked_at);
            let gone = known.is_lost(*position, at) || known.is_forgotten(*position, at);
            (acknowledged && !gone).then_some(*position)
        };
        // The newest of them is the last to be forgotten.
        known.events.range(..=cursor).next_back().and_then(was_there)
    }

    fn event(&mut self, at: Moment, position: u64) -> Option<Breach> {
        let known = self.known;
        self.resumed_at = None;
        let Some(cursor) = self.cursor else {
            return breach(Promise::SubscribeBarrier, format!("{position} came before any confirmation"));
        };
        if self.delivered.contains(&position) {
            return breach(Promise::NoDuplicates, format!("{position} came twice"));
        }
        if position < self.newest {
            return breach(Promise::Order, format!("{position} came after {}", self.newest));
        }
        if position <= cursor {
            return breach(
                Promise::NoDuplicates,
                format!("{position} came, but it stood at {cursor} already"),
            );
        }
        if self.announced.is_some() {
            let what = format!("it was not resumed, yet {position} came before any gap");
            return breach(Promise::NoSilentGap, what);
        }
        // After a failover there are two lines, and only what history holds in the end is known to
        // stand on one.
        let same_line =
            |missing: &u64| !known.has_forks() || [*missing, position].iter().all(|p| known.channel.held.contains_key(p));
        let missing = if self.gap {
            let still_there = |missing: &u64| !known.is_lost(*missing, at) && same_line(missing);
            known.between(cursor, position).find(still_there)
        } else {
            // The listener is owed what the broker lost with all the rest, or a gap for it. But no
            // node can report what a failover lost before a node had seen it.
            let surely_lost = known.is_lost_with_all(cursor, at) || (known.is_lost(cursor, at) && !known.is_held(cursor));
            let had_lost = known.events.contains_key(&cursor) && surely_lost && !known.is_lost(position, at);
            // A clock that went back gives a first position below what was lost. Who came without a
            // cursor after the loss is not owed that.
            let owed = |missing: &u64| self.asked.is_some() || !known.is_lost_with_all(*missing, self.asked_at);
            let missing = known
                .between(cursor, position)
                .find(|missing| same_line(missing) && owed(missing));
            missing.or(had_lost.then_some(cursor))
        };
        if let Some(missing) = missing {
            let what = format!("{position} came, but it stood at {cursor}: {missing} is missing without a gap");
            return breach(Promise::NoSilentGap, what);
        }
        self.cursor = Some(position);
        self.newest = position;
        self.delivered.insert(position);
        self.gap = false;
        None
    }

    fn gap(&mut self, at: Moment, after: Option<u64>, cursor: u64, reason: &str) -> Option<Breach> {
        let known = self.known;
        let stood = self.cursor;
        if !REASONS.contains(&reason) {
            return breach(
                Promise::NoSilentGap,
                format!("a gap without a reason that there is: '{reason}'"),
            );
        }
        if after.is_none() || after != stood {
            let what = format!("the gap begins after {after:?}, but it stood at {stood:?}");
            return breach(Promise::NoSilentGap, what);
        }
        let after = after.unwrap_or_default();
        // Of what is ahead of its clock a node may say that it was never given.
        let goes_back = cursor < after && !(known.clocks && reason == "unknown-position");
        if goes_back || self.announced.is_some_and(|announced| announced != cursor) {
            let what = format!(
                "the gap leads from {after} to {cursor}, the confirmation said {:?}",
                self.announced
            );
            return breach(Promise::NoSilentGap, what);
        }
        if let Some(resumed) = self.resumed_at.take() {
            // What was lost long before is no news to a node. Of the last seconds it may not know
            // yet. Of a broker that may lose its newest, this run does not show when it did.
            let known_then = |loss: &&Loss| loss.everything && loss.position > after && loss.at + KNOWN_AFTER < self.asked_at;
            if reason == "unknown-position" || known.losses.iter().any(known_then) {
                let what = format!("at {resumed} it was resumed after {after}, and then a gap came ({reason})");
                return breach(Promise::NoSilentGap, what);
            }
        }
        let skipped = || {
            known
                .events
                .range((Excluded(after), Included(cursor.max(after))))
                .map(|(position, _)| *position)
        };
        let skips = known.channel.skips && reason == "too-slow";
        // What one failover takes away, another may bring back.
        let skips = skips || known.has_forks();
        let gone = |position: u64| known.is_lost(position, at) || known.is_forgotten(position, at);
        if let Some(held) = skipped().find(|position| !gone(*position) && !skips) {
            let what = format!("the gap from {after} to {cursor} ({reason}) leaves out {held}, which the broker holds");
            return breach(Promise::NoFalseGap, what);
        }
        let lost_since = known.losses.iter().any(|loss| loss.at <= at && loss.position > after);
        if skipped().next().is_none() && !lost_since {
            let what = format!("a gap from {after} to {cursor} ({reason}), but nothing was lost there");
            return breach(Promise::NoFalseGap, what);
        }
        self.cursor = Some(cursor);
        self.gap = true;
        self.announced = None;
        None
    }
}

/// The same once more without looking at cursors: what was acknowledged came, or was announced as
/// lost, or the broker lost it.
fn owed(history: &History, listener: &Listener, known: &Known<'_>) -> Option<Breach> {
    let confirmed = |(at, told): &(Moment, Told)| matches!(told, Told::Confirmed { .. }).then_some(*at);
    if listener.leaves {
        return None;
    }
    let Some(since) = listener.told.iter().find_map(confirmed) else {
        return breach(Promise::CaughtUp, "it was never confirmed".into());
    };
    let (mut delivered, mut gaps) = (BTreeSet::new(), Vec::new());
    for (_, told) in &listener.told {
        match told {
            Told::Event { position, .. } => drop(delivered.insert(*position)),
            Told::Gap { after, cursor, .. } => gaps.push((after.unwrap_or(0), *cursor)),
            Told::Asked { .. } | Told::Confirmed { .. } => {}
        }
    }
    let has = |position: u64| {
        delivered.contains(&position)
            || known.is_lost(position, Moment::MAX)
            // A listener past a fork is told where it stands, and that may be behind what it never
            // got.
            || gaps.iter().any(|(after, cursor)| (*after..=*cursor).contains(&position) || (known.has_forks() && position < *cursor))
    };
    for publication in history.publications.iter().filter(|p| p.channel == listener.channel) {
        let Outcome::Acknowledged { position, .. } = publication.outcome else {
            continue;
        };
        let Some(position) = position.or_else(|| known.places.get(&*publication.body)?.last().copied()) else {
            continue;
        };
        let body = &publication.body;
        if publication.began > since && !has(position) {
            return breach(Promise::NoSilentGap, format!("{body} at {position} never came"));
        }
        if publication.last && !delivered.contains(&position) {
            return breach(Promise::CaughtUp, format!("{body}, of the last round, never came"));
        }
    }
    if listener.from_the_beginning
        && let Some(first) = known.channel.held.keys().find(|position| !has(**position))
    {
        return breach(Promise::NoSilentGap, format!("it wanted everything, and {first} never came"));
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::history::Publication;
    use super::*;

    type Change<'a> = &'a dyn Fn(&mut Vec<(Moment, Told)>);

    const LOST_AT: u64 = 65;

    fn event(position: u64) -> Told {
        Told::Event {
            position,
            body: format!("m{position}"),
        }
    }

    fn gap(after: u64, cursor: u64, reason: &str) -> Told {
        Told::Gap {
            after: Some(after),
            cursor,
            reason: reason.into(),
        }
    }

    fn asked(after: Option<u64>) -> Told {
        Told::Asked {
            after,
            how: "sse".into(),
        }
    }

    fn confirmed(cursor: u64, resumed: bool) -> Told {
        Told::Confirmed { cursor, resumed }
    }

    /// Events at 20, 30, … 90, each published and acknowledged around the moment of its position.
    /// One listener hears all from 30 on and comes back after 50. `lossy`: the broker loses
    /// everything at 65, is born again at 66, and the listener is told.
    fn story(lossy: bool) -> History {
        let mut history = History::default();
        let mut held = BTreeMap::new();
        for position in (20..=90).step_by(10) {
            let body = format!("m{position}");
            if !lossy || position > LOST_AT {
                held.insert(position, body.clone());
            }
            history.publications.push(Publication {
                channel: "a".into(),
                body,
                began: position * 10,
                outcome: Outcome::Acknowledged {
                    at: position * 10 + 1,
                    position: Some(position),
                },
                last: position == 90,
            });
        }
        let mut told = vec![
            (250, asked(None)),
            (251, confirmed(20, false)),
            (301, event(30)),
            (401, event(40)),
            (501, event(50)),
            (502, asked(Some(50))),
            (503, confirmed(50, true)),
            (601, event(60)),
        ];
        if lossy {
            history.losses.push(Loss {
                channel: None,
                position: LOST_AT,
                at: LOST_AT * 10,
                everything: true,
            });
            told.push((660, gap(60, 66, "broker-lost-data")));
        }
        told.extend([(701, event(70)), (801, event(80)), (901, event(90))]);
        history.listeners.push(Listener {
            name: "l".into(),
            channel: "a".into(),
            from_the_beginning: false,
            leaves: false,
            told,
        });
        let channel = Channel {
            keeps: 1000,
            skips: false,
            age: None,
            replays: false,
            held,
        };
        history.channels.insert("a".into(), channel);
        history
    }

    fn broken(history: &History) -> Vec<Promise> {
        let mut promises: Vec<_> = check(history).iter().map(|breach| breach.promise).collect();
        promises.dedup();
        promises
    }

    /// The story, told with one thing wrong.
    fn wrong(lossy: bool, change: impl FnOnce(&mut Vec<(Moment, Told)>)) -> Vec<Promise> {
        let mut history = story(lossy);
        change(&mut history.listeners[0].told);
        broken(&history)
    }

    fn wrong_truth(lossy: bool, change: impl FnOnce(&mut History)) -> Vec<Promise> {
        let mut history = story(lossy);
        change(&mut history);
        broken(&history)
    }

    // Places in the story: 0 asked, 1 confirmed, 2 to 4 events 30 to 50, 5 asked, 6 confirmed, 7
    // event 60, [8 gap], then 70 to 90.

    #[test]
    fn a_story_in_which_all_is_well_is_fine() {
        assert_eq!(broken(&story(false)), []);
        assert_eq!(broken(&story(true)), []);
    }

    /// The clock of what comes back is behind: its first position is 25, and its events go on right
    /// above all that was given.
    #[test]
    fn what_was_lost_before_a_listener_came_is_not_owed() {
        let after_the_loss = |asked_at: u64, position: Option<u64>| {
            let mut history = story(true);
            history.losses[0].position = 70;
            let listener = &mut history.listeners[0];
            listener.told = vec![(asked_at, asked(position)), (asked_at + 1, confirmed(25, position.is_some()))];
            listener.told.extend([(701, event(70)), (801, event(80)), (901, event(90))]);
            history.listeners[0].told.sort_by_key(|(at, _)| *at);
            broken(&history)
        };
        assert_eq!(after_the_loss(660, None), []);
        // Who was there before the loss, or had a cursor, is told of it.
        assert_eq!(after_the_loss(640, None), [Promise::NoSilentGap]);
        assert_eq!(after_the_loss(660, Some(25)), [Promise::NoSilentGap]);
        // The first event behind the loss may be one that was lost.
        let again = wrong_truth(true, |history| {
            history.losses[0].position = 70;
            let channel = history.channels.get_mut("a").unwrap();
            channel.held.insert(70, "m60".into());
            history.publications.retain(|publication| publication.body != "m70");
            let told = &mut history.listeners[0].told;
            told.iter_mut().find(|(at, _)| *at == 701).unwrap().1 = Told::Event {
                position: 70,
                body: "m60".into(),
            };
        });
        assert_eq!(again, []);
    }

    #[test]
    fn a_gap_that_leads_back_is_one_of_clocks_that_differ() {
        for (clocks, reason, expected) in [
            (true, "unknown-position", vec![]),
            (true, "broker-lost-data", vec![Promise::NoSilentGap]),
            (false, "unknown-position", vec![Promise::NoSilentGap]),
        ] {
            let told = wrong_truth(true, |history| {
                history.clocks = clocks;
                history.listeners[0].told[8].1 = gap(60, 55, reason);
            });
            assert_eq!(told, expected, "{clocks} {reason}");
        }
    }

    #[test]
    fn what_does_not_come_is_noticed() {
        for missing in [2, 3, 4, 7, 8, 9] {
            assert_eq!(
                wrong(false, |told| drop(told.remove(missing))),
                match missing {
                    // What it resumes with is not what it has.
                    4 => [Promise::SameEverywhere],
                    _ => [Promise::NoSilentGap],
                }
            );
        }
        assert_eq!(wrong(false, |told| drop(told.pop())), [Promise::CaughtUp]);
        assert_eq!(wrong(false, |told| told.truncate(1)), [Promise::CaughtUp]);
        assert_eq!(wrong(false, Vec::clear), [Promise::CaughtUp]);
        // Before the loss and behind it.
        for missing in [3, 9, 10] {
            assert_eq!(wrong(true, |told| drop(told.remove(missing))), [Promise::NoSilentGap]);
        }
    }

    #[test]
    fn what_comes_twice_or_in_the_wrong_order_is_noticed() {
        assert_eq!(wrong(false, |told| told.insert(3, told[2].clone())), [Promise::NoDuplicates]);
        // Across a resume.
        assert_eq!(wrong(false, |told| told.insert(7, told[4].clone())), [Promise::NoDuplicates]);
        assert_eq!(wrong(false, |told| told.swap(2, 3)), [Promise::NoSilentGap]);
        let late = wrong(false, |told| {
            let early = told.remove(3);
            told.insert(4, early);
            told.remove(2);
            told.insert(3, (501, event(30)));
        });
        assert_eq!(late, [Promise::NoSilentGap], "the one that came too early is noticed first");
        let history = story(false);
        let known = Known::of(&history, "a", &history.channels["a"], &mut Vec::new());
        let mut standing = Standing::of(&known);
        (standing.cursor, standing.newest) = (Some(60), 60);
        assert_eq!(standing.event(0, 50).unwrap().promise, Promise::Order);
    }

    #[test]
    fn a_loss_that_is_not_told_is_noticed() {
        assert_eq!(wrong(true, |told| drop(told.remove(8))), [Promise::NoSilentGap]);
        // Also for a client that was away and comes back.
        let away = |resumed| {
            wrong(true, |told| {
                told[7] = (660, asked(Some(50)));
                told[8] = (661, confirmed(if resumed { 50 } else { 66 }, resumed));
            })
        };
        assert_eq!(away(true), [Promise::NoSilentGap]);
        assert_eq!(away(false), [Promise::NoSilentGap]);
        for wrong_gap in [
            gap(50, 66, "broker-lost-data"),
            gap(60, 59, "broker-lost-data"),
            gap(60, 66, "bad-luck"),
        ] {
            assert_eq!(wrong(true, |told| told[8].1 = wrong_gap), [Promise::NoSilentGap]);
        }
        let unknown = Told::Gap {
            after: None,
            cursor: 66,
            reason: "unknown-position".into(),
        };
        assert_eq!(wrong(true, |told| told[8].1 = unknown), [Promise::NoSilentGap]);
    }

    #[test]
    fn a_gap_that_is_false_is_noticed() {
        // Over an event that is held; and where nothing is.
        for (after, cursor) in [(30, 40), (30, 30), (30, 35)] {
            for lossy in [false, true] {
                let told = wrong(lossy, |told| told.insert(3, (302, gap(after, cursor, "history-expired"))));
                assert_eq!(told, [Promise::NoFalseGap], "{after} {cursor}");
            }
        }
        // Before the loss, and once more behind it.
        assert_eq!(wrong(true, |told| told[8].0 = 640), [Promise::NoFalseGap]);
        assert_eq!(
            wrong(true, |told| told.insert(9, (661, gap(66, 67, "broker-lost-data")))),
            [Promise::NoFalseGap]
        );
        // History may forget, but no more than is agreed.
        for (keeps, expected) in [(4, vec![]), (5, vec![Promise::NoFalseGap])] {
            let promises = wrong_truth(false, |history| {
                let channel = history.channels.get_mut("a").unwrap();
                channel.keeps = keeps;
                let told = &mut history.listeners[0].told;
                // It comes back when 90 has just been published, and 60 to 90 are kept at least.
                told.truncate(4);
                told.push((902, asked(Some(40))));
                told.push((903, confirmed(50, false)));
                told.push((904, gap(40, 50, "history-expired")));
                told.extend([60, 70, 80, 90].map(|position| (905, event(position))));
                // Listeners that had 50 do not matter here.
            });
            assert_eq!(promises, expected, "{keeps}");
        }
        // A slow listener whose rule lets it miss things may; for that reason only.
        for (skips, reason, expected) in [
            (true, "too-slow", vec![]),
            (true, "history-expired", vec![Promise::NoFalseGap]),
            (false, "too-slow", vec![Promise::NoFalseGap]),
        ] {
            let promises = wrong_truth(false, |history| {
                history.channels.get_mut("a").unwrap().skips = skips;
                history.listeners[0].told[3].1 = gap(30, 40, reason);
            });
            assert_eq!(promises, expected, "{skips} {reason}");
        }
    }

    #[test]
    fn a_barrier_or_a_cursor_that_is_wrong_is_noticed() {
        assert_eq!(
            wrong(false, |told| told[1].1 = confirmed(30, false)),
            [Promise::SubscribeBarrier]
        );
        assert_eq!(wrong(false, |told| told[1].1 = confirmed(20, true)), [Promise::NoSilentGap]);
        assert_eq!(wrong(false, |told| drop(told.remove(1))), [Promise::SubscribeBarrier]);
        assert_eq!(wrong(false, |told| told[6].1 = confirmed(60, true)), [Promise::NoSilentGap]);
        assert_eq!(wrong(false, |told| told[6].1 = confirmed(50, false)), [Promise::NoSilentGap]);
        assert_eq!(wrong(false, |told| told[5].1 = asked(Some(40))), [Promise::SameEverywhere]);
        assert_eq!(wrong(false, |told| told[5].1 = asked(None)), [Promise::SameEverywhere]);
    }

    /// A fresh stream whose page ends in the middle, as if a hole were its end.
    #[test]
    fn a_hole_in_a_fresh_stream_is_noticed() {
        let fresh = |leaves, cursor, positions: &[u64]| {
            wrong_truth(false, |history| {
                history.channels.get_mut("a").unwrap().replays = true;
                history.listeners[0].leaves = leaves;
                let told = &mut history.listeners[0].told;
                *told = vec![(950, asked(None)), (951, confirmed(cursor, false))];
                told.extend(positions.iter().map(|position| (952, event(*position))));
            })
        };
        let all = [20, 30, 40, 50, 60, 70, 80, 90];
        assert_eq!(fresh(false, 10, &all), []);
        assert_eq!(fresh(true, 10, &all[..3]), [], "it left");
        assert_eq!(fresh(true, 10, &[20, 30, 80, 90]), [Promise::NoSilentGap]);
        assert_eq!(fresh(true, 10, &[80, 90]), [Promise::NoSilentGap]);
        assert_eq!(fresh(true, 70, &[80, 90]), [Promise::NoSilentGap], "the page began too late");
        assert_eq!(fresh(true, 90, &[]), [Promise::NoSilentGap], "the page was empty");
    }

    #[test]
    fn what_is_too_old_need_not_come_and_what_is_not_must() {
        // It comes at 950. Events are published ten times their position.
        let aged = |age, jumps: &[Moment], cursor, first: u64| {
            wrong_truth(false, |history| {
                let channel = history.channels.get_mut("a").unwrap();
                (channel.age, channel.replays) = (Some(age), true);
                channel.held.retain(|position, _| *position >= first);
                (history.ended, history.jumps) = (960, jumps.to_vec());
                let told = &mut history.listeners[0].told;
                *told = vec![(950, asked(None)), (951, confirmed(cursor, false))];
                told.extend((first..=90).step_by(10).map(|position| (952, event(position))));
            })
        };
        assert_eq!(aged(260, &[], 60, 70), []);
        // 60 was not too old, and neither a listener nor history has it.
        assert_eq!(aged(400, &[], 60, 70), [Promise::Acknowledged, Promise::NoSilentGap]);
        assert_eq!(aged(400, &[650], 60, 70), [], "the clock was put forward");
    }

    /// The broker was empty and behind, and a node took everything new for something old.
    #[test]
    fn a_listener_that_is_deaf_after_a_store_came_back_behind_is_noticed() {
        let deaf = wrong(true, |told| told.truncate(9));
        assert_eq!(deaf, [Promise::CaughtUp]);
        // The first events are swallowed, and then the clock has caught up.
        let late = wrong(true, |told| drop(told.drain(9..10)));
        assert_eq!(late, [Promise::NoSilentGap]);
    }

    #[test]
    fn to_be_resumed_and_then_told_of_a_gap_is_noticed() {
        let story = |reason: &str, asked_at: Moment| {
            wrong_truth(true, |history| {
                let told = &mut history.listeners[0].told;
                told.truncate(8);
                told.push((asked_at, asked(Some(60))));
                told.push((asked_at + 1, confirmed(60, true)));
                told.push((asked_at + 2, gap(60, 66, reason)));
                told.extend([70, 80, 90].map(|position| (asked_at + 3, event(position))));
            })
        };
        assert_eq!(story("broker-lost-data", 20_000_000), [Promise::NoSilentGap]);
        assert_eq!(story("unknown-position", 660), [Promise::NoSilentGap]);
        assert_eq!(story("broker-lost-data", 660), [], "a node may not know of it yet");
    }

    /// A publish with an `end` that is tried again: the event must not be there twice.
    #[test]
    fn an_event_that_is_doubled_when_its_channel_ends_is_noticed() {
        let doubled = wrong_truth(false, |history| {
            history.channels.get_mut("a").unwrap().held.insert(91, "m90".into());
            history.listeners[0].told.push((
                902,
                Told::Event {
                    position: 91,
                    body: "m90".into(),
                },
            ));
        });
        assert_eq!(doubled, [Promise::Idempotent]);
    }

    #[test]
    fn one_place_has_one_event_for_all() {
        let body = |body: &str| {
            let told = Told::Event {
                position: 30,
                body: body.into(),
            };
            wrong(false, |all| all[2].1 = told)
        };
        assert!(body("m40").contains(&Promise::SameEverywhere));
        assert!(body("invented").contains(&Promise::SameEverywhere));
    }

    #[test]
    fn a_publish_that_did_not_happen_as_answered_is_noticed() {
        let outcome = |outcome| wrong_truth(false, |history| history.publications[4].outcome = outcome);
        assert_eq!(outcome(Outcome::Unknown), []);
        assert_eq!(outcome(Outcome::Refused), [Promise::Acknowledged]);
        assert_eq!(outcome(Outcome::Acknowledged { at: 601, position: None }), []);
        let acknowledged = |at, position| outcome(Outcome::Acknowledged { at, position });
        assert!(acknowledged(601, Some(61)).contains(&Promise::Acknowledged));
        // Acknowledged before one began that stands before it.
        assert_eq!(acknowledged(1, Some(60)), [Promise::Order]);
        // History does not hold it; and then without having lost anything.
        let lost = |history: &mut History| drop(history.channels.get_mut("a").unwrap().held.remove(&60));
        assert_eq!(wrong_truth(false, lost), [Promise::Acknowledged]);
        // Lost after the broker had lost everything once.
        let lost = |history: &mut History| drop(history.channels.get_mut("a").unwrap().held.remove(&80));
        assert_eq!(wrong_truth(true, lost), [Promise::Acknowledged]);
    }

    #[test]
    fn a_message_that_is_published_twice_is_noticed() {
        // 90 says what another said before: fine only if that was lost.
        let twice = |lossy, body: &str| {
            let body = body.to_owned();
            wrong_truth(lossy, |history| {
                history.publications.pop();
                history.channels.get_mut("a").unwrap().held.insert(90, body.clone());
                history.listeners[0].told.last_mut().unwrap().1 = Told::Event { position: 90, body };
            })
        };
        assert_eq!(twice(false, "m50"), [Promise::Idempotent]);
        assert_eq!(twice(true, "m80"), [Promise::Idempotent]);
        assert_eq!(twice(true, "m50"), []);
    }

    /// By the broker's clock its key was too old then.
    #[test]
    fn a_key_may_be_too_old_only_after_the_clock_was_put_forward() {
        let twice = |jumps: &[Moment], position: u64| {
            wrong_truth(false, |history| {
                history.jumps = jumps.to_vec();
                history.publications.pop();
                let channel = history.channels.get_mut("a").unwrap();
                channel.held.remove(&90);
                channel.held.insert(position, "m50".into());
                let body = "m50".into();
                history.listeners[0].told.last_mut().unwrap().1 = Told::Event { position, body };
            })
        };
        assert_eq!(twice(&[450], 50 + KEYS_LIVE), []);
        assert_eq!(twice(&[450], 49 + KEYS_LIVE), [Promise::Idempotent]);
        assert_eq!(twice(&[], 50 + KEYS_LIVE), [Promise::Idempotent]);
    }

    #[test]
    fn who_wants_everything_gets_it() {
        let from = |cursor, first: u64| {
            wrong_truth(false, |history| {
                history.listeners[0].from_the_beginning = true;
                let told = &mut history.listeners[0].told;
                *told = vec![(950, asked(None)), (951, confirmed(cursor, false))];
                told.extend((first..=90).step_by(10).map(|position| (952, event(position))));
            })
        };
        assert_eq!(from(10, 20), []);
        assert_eq!(from(20, 30), [Promise::NoSilentGap]);
    }

    /// A failover: 60 was acknowledged, but the server that took over never had it. A listener that
    /// saw it is owed a gap.
    #[test]
    fn a_failover_may_lose_the_newest_but_not_in_silence() {
        let failover = |change: Change<'_>| {
            wrong_truth(false, |history| {
                history.channels.get_mut("a").unwrap().held.remove(&60);
                history.losses.push(Loss {
                    channel: None,
                    position: 65,
                    at: 650,
                    everything: false,
                });
                change(&mut history.listeners[0].told);
            })
        };
        assert_eq!(failover(&|told| told.insert(8, (651, gap(60, 60, "broker-lost-data")))), []);
        assert_eq!(failover(&|_| {}), [Promise::NoSilentGap]);
        assert_eq!(
            failover(&|told| drop(told.remove(7))),
            [],
            "it never saw it, and neither did its node"
        );
        assert_eq!(failover(&|told| drop(told.drain(3..5))), [Promise::SameEverywhere]);
        // What is held on both sides stands on one line.
        assert_eq!(failover(&|told| drop(told.remove(3))), [Promise::NoSilentGap]);
        let told = |told: &mut Vec<(Moment, Told)>| told.insert(8, (651, gap(60, 60, "broker-lost-data")));
        let dropped = |all: &mut Vec<(Moment, Told)>| {
            told(all);
            all.remove(9);
        };
        assert_eq!(failover(&dropped), [Promise::NoSilentGap]);
    }

    /// A server that was paused comes back, carries out what waited in its sockets, and is the
    /// master once more.
    #[test]
    fn repeated_failovers_may_bring_back_events_that_no_listener_had() {
        let history = wrong_truth(false, |history| {
            history.losses.push(Loss {
                channel: None,
                position: u64::MAX,
                at: 0,
                everything: false,
            });
            let held = &mut history.channels.get_mut("a").unwrap().held;
            // 60 and 70 were on the other line. What is 70 there was carried out late, and is 55
            // here.
            held.remove(&60);
            held.remove(&70);
            held.insert(55, "m70".into());
            history.listeners[0].told.insert(9, (702, gap(70, 70, "broker-lost-data")));
        });
        assert_eq!(history, []);
    }
}
