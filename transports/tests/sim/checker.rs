//! Judges a [`History`] by the promises of docs/guarantees.md, P1 to P8, and knows nothing of how
//! they are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Bound::{Excluded, Included};

use crate::history::{History, Listener, Moment, Outcome, Told, Truth};

/// The promises, and that everybody is where the broker is once everything is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    Acknowledged,
    Idempotent,
    Order,
    NoSilentGap,
    NoFalseGap,
    SubscribeBarrier,
    NoDuplicates,
    SameEverywhere,
    CaughtUp,
}

/// A promise that was broken, and how.
pub struct Breach {
    pub promise: Promise,
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
            Promise::SameEverywhere => "P8 resume is the same everywhere",
            Promise::CaughtUp => "caught up in the end",
        };
        write!(f, "{promise}: {}", self.what)
    }
}

/// Everything that was broken. Of what one listener was told only the first breach: what follows it
/// means little.
pub fn check(history: &History) -> Vec<Breach> {
    let mut breaches = Vec::new();
    publications(history, &mut breaches);
    for listener in &history.listeners {
        let nothing = Truth::default();
        let truth = history.channels.get(&listener.channel).unwrap_or(&nothing);
        let breach = Standing::default()
            .follow(listener, truth)
            .or_else(|| owed(history, listener, truth));
        breaches.extend(breach.map(|breach| Breach {
            what: format!("{} on {}: {}", listener.name, listener.channel, breach.what),
            ..breach
        }));
    }
    breaches
}

fn breach(promise: Promise, what: String) -> Option<Breach> {
    Some(Breach { promise, what })
}

fn publications(history: &History, breaches: &mut Vec<Breach>) {
    let mut acknowledged: BTreeMap<&str, Vec<(Moment, Moment, u64)>> = BTreeMap::new();
    for publication in &history.publications {
        let Some(truth) = history.channels.get(&publication.channel) else {
            continue;
        };
        let body = &publication.body;
        let mine: Vec<_> = truth
            .places
            .iter()
            .filter(|(_, place)| place.body.as_ref() == Some(body))
            .collect();
        match publication.outcome {
            Outcome::Acknowledged { at, position } => {
                if !mine.iter().any(|(p, place)| **p == position && place.since < at) {
                    breaches.extend(breach(
                        Promise::Acknowledged,
                        format!("{body} was acknowledged at {position}, but the broker had no such event"),
                    ));
                }
                let of_channel = acknowledged.entry(&publication.channel).or_default();
                of_channel.push((publication.began, at, position));
            }
            Outcome::Refused if !mine.is_empty() => {
                breaches.extend(breach(Promise::Acknowledged, format!("{body} was refused, but it happened")));
            }
            Outcome::Refused | Outcome::Unknown => {}
        }
        for pair in mine.windows(2) {
            let ((first, before), (second, after)) = (pair[0], pair[1]);
            if before.lost.is_none_or(|lost| lost > after.since) {
                breaches.extend(breach(
                    Promise::Idempotent,
                    format!("{body} is both at {first} and at {second}"),
                ));
            }
        }
    }
    for (channel, mut list) in acknowledged {
        // In the order in which they began; before each, the highest position that had been
        // acknowledged by then.
        list.sort_unstable();
        let mut by_end: Vec<_> = list.iter().map(|(_, at, position)| (*at, *position)).collect();
        by_end.sort_unstable();
        let (mut ended, mut highest) = (by_end.into_iter().peekable(), 0);
        for (began, _, position) in list {
            while let Some((_, earlier)) = ended.next_if(|(at, _)| *at < began) {
                highest = highest.max(earlier);
            }
            if position < highest {
                breaches.extend(breach(
                    Promise::Order,
                    format!("on {channel}, {position} was published after {highest} had been acknowledged"),
                ));
            }
        }
    }
}

/// Where a listener stands while its story is told again.
#[derive(Default)]
struct Standing {
    /// What it came with.
    asked: Option<u64>,
    /// What it would resume with; `None`: it was never confirmed.
    cursor: Option<u64>,
    /// The newest event that it was ever given.
    newest: u64,
    delivered: BTreeSet<u64>,
    /// A gap was announced after the last event; and how many on this connection that left it where
    /// it stood.
    gap: bool,
    unmoved: usize,
    /// The confirmation said that a gap to here comes next.
    announced: Option<u64>,
}

impl Standing {
    fn follow(mut self, listener: &Listener, truth: &Truth) -> Option<Breach> {
        for (at, told) in &listener.told {
            let breach = match told {
                Told::Asked { after, how } => self.asks(*after, how),
                Told::Confirmed { cursor, resumed } => self.confirmed(truth, *at, *cursor, *resumed),
                Told::Event { position, body } => self.event(truth, *position, body),
                Told::Gap { after, cursor, reason } => self.gap(truth, *at, *after, *cursor, reason),
            };
            if breach.is_some() {
                return breach;
            }
        }
        let stands = self.cursor.unwrap_or(0);
        // Behind a fork, a listener may stand at what was lost: it has been told so, and there is
        // nothing behind the fork yet.
        let at_the_fork = self.gap && truth.leads_to(truth.head, stands);
        if self.announced.is_some() || (stands != truth.head && !at_the_fork) {
            return breach(
                Promise::CaughtUp,
                format!("it stands at {stands}, the broker at {}", truth.head),
            );
        }
        None
    }

    fn asks(&mut self, after: Option<u64>, how: &str) -> Option<Breach> {
        self.announced = None;
        self.unmoved = 0;
        self.asked = after;
        // Before its first confirmation it may know where it stands from the cursor of a stream of
        // several channels, or not.
        if self.cursor.is_some() && after != self.cursor {
            return breach(
                Promise::SameEverywhere,
                format!(
                    "the cursor it has for {how} says {after:?}, but it was told up to {:?}",
                    self.cursor
                ),
            );
        }
        None
    }

    fn confirmed(&mut self, truth: &Truth, at: Moment, cursor: u64, resumed: bool) -> Option<Breach> {
        match self.asked {
            Some(mine) if resumed && mine == cursor => self.cursor = Some(mine),
            Some(mine) if resumed => {
                return breach(Promise::NoSilentGap, format!("it resumed after {mine}, but from {cursor} on"));
            }
            Some(mine) => {
                self.cursor = Some(mine);
                self.announced = Some(cursor);
            }
            None if resumed => return breach(Promise::NoSilentGap, "it resumed without a cursor".into()),
            None => {
                if truth.places.get(&cursor).is_none_or(|place| place.since > at) {
                    return breach(
                        Promise::SubscribeBarrier,
                        format!("its confirmation names {cursor}, a position that the broker had not given"),
                    );
                }
                self.cursor = Some(cursor);
            }
        }
        None
    }

    fn event(&mut self, truth: &Truth, position: u64, body: &str) -> Option<Breach> {
        let cursor = self.cursor.unwrap_or(0);
        let place = truth
            .places
            .get(&position)
            .filter(|place| place.body.as_deref() == Some(body));
        let breach = match place {
            None => breach(
                Promise::SameEverywhere,
                format!("{position} came as {body}, which no client published"),
            ),
            Some(_) if self.delivered.contains(&position) => breach(Promise::NoDuplicates, format!("{position} came twice")),
            Some(_) if position < self.newest => breach(Promise::Order, format!("{position} came after {}", self.newest)),
            Some(_) if self.announced.is_some() => breach(
                Promise::NoSilentGap,
                format!("it was not resumed, yet {position} came before any gap"),
            ),
            Some(place) => {
                let follows = place.previous == cursor || (self.gap && truth.leads_to(place.previous, cursor));
                let promise = if self.delivered.is_empty() && !self.gap {
                    Promise::SubscribeBarrier
                } else {
                    Promise::NoSilentGap
                };
                let what = || format!("{position} follows {}, but it stood at {cursor}", place.previous);
                (!follows).then(|| breach(promise, what())).flatten()
            }
        };
        self.cursor = Some(position);
        self.newest = position;
        self.delivered.insert(position);
        self.gap = false;
        self.unmoved = 0;
        breach
    }

    fn gap(&mut self, truth: &Truth, at: Moment, after: Option<u64>, cursor: u64, reason: &str) -> Option<Breach> {
        let stood = self.cursor;
        // Each loss may be told once on a connection, even if the listener stands where it stood.
        let losses = truth.losses.iter().filter(|lost| **lost < at).count();
        let moves = stood != Some(cursor);
        let repeated = !moves && self.unmoved >= losses;
        let misplaced = if after != stood {
            Some(format!("the gap begins after {after:?}, but it stood at {stood:?}"))
        } else if self.announced.is_some_and(|announced| announced != cursor) {
            Some(format!(
                "the gap leads to {cursor}, the confirmation said {:?}",
                self.announced
            ))
        } else if !truth.places.contains_key(&cursor) {
            Some(format!("the gap leads to {cursor}, a position that the broker never gave"))
        } else {
            None
        };
        if let Some(what) = misplaced {
            return breach(Promise::NoSilentGap, what);
        }
        let after = after.unwrap_or(0);
        let is_gone = |position: &u64| {
            let place = truth.places.get(position);
            place.is_some_and(|place| {
                place.lost.is_some_and(|lost| lost < at) || place.trimmed.is_some_and(|trimmed| trimmed < at)
            })
        };
        let is_lost = |position: &u64| {
            let place = truth.places.get(position);
            place.is_none_or(|place| place.lost.is_some_and(|lost| lost < at))
        };
        let between: Vec<u64> = truth
            .places
            .range((Excluded(after), Included(cursor.max(after))))
            .filter(|(_, place)| place.body.is_some())
            .map(|(position, _)| *position)
            .collect();
        let allowed = truth.skips && reason == "too-slow";
        let overtaken = |position: &u64| {
            let trimmed = truth.places.get(position).is_some_and(|place| place.trimmed.is_some());
            truth.busy && reason == "history-expired" && trimmed
        };
        let left_out = between.iter().find(|position| !is_gone(position) && !overtaken(position));
        if let Some(held) = left_out.filter(|_| !allowed) {
            return breach(
                Promise::NoFalseGap,
                format!("the gap from {after} to {cursor} ({reason}) leaves out {held}, which the broker holds"),
            );
        }
        if repeated || (between.is_empty() && !is_lost(&after)) {
            return breach(
                Promise::NoFalseGap,
                format!("a gap from {after} to {cursor} ({reason}), but nothing was lost there"),
            );
        }
        self.cursor = Some(cursor);
        self.gap = true;
        self.unmoved += usize::from(!moves);
        self.announced = None;
        None
    }
}

/// The same once more, without looking at `previous`: what was acknowledged came, or was announced
/// as lost, or the broker lost it.
fn owed(history: &History, listener: &Listener, truth: &Truth) -> Option<Breach> {
    let confirmed = |(at, told): &(Moment, Told)| matches!(told, Told::Confirmed { .. }).then_some(*at);
    let Some(since) = listener.told.iter().find_map(confirmed) else {
        return breach(Promise::CaughtUp, "it was never confirmed".into());
    };
    let mut delivered = BTreeSet::new();
    let mut gaps = Vec::new();
    for (_, told) in &listener.told {
        match told {
            Told::Event { position, .. } => drop(delivered.insert(*position)),
            Told::Gap { after, cursor, .. } => gaps.push((after.unwrap_or(0), *cursor)),
            Told::Asked { .. } | Told::Confirmed { .. } => {}
        }
    }
    for publication in history.publications.iter().filter(|p| p.channel == listener.channel) {
        let Outcome::Acknowledged { position, .. } = publication.outcome else {
            continue;
        };
        let lost = truth.places.get(&position).is_none_or(|place| place.lost.is_some());
        let announced = gaps.iter().any(|(after, cursor)| (*after..=*cursor).contains(&position));
        if publication.began > since && !lost && !announced && !delivered.contains(&position) {
            let promise = if delivered.iter().any(|other| *other < position) {
                Promise::NoSilentGap
            } else {
                Promise::SubscribeBarrier
            };
            return breach(promise, format!("{} at {position} never came", publication.body));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Clock, Publication};

    fn publication(clock: &Clock, truth: &mut Truth, position: u64, previous: u64) -> Publication {
        let began = clock.now();
        let body = format!("m{position}");
        truth.event(position, previous, &body, clock.now());
        Publication {
            channel: "a".into(),
            body,
            began,
            outcome: Outcome::Acknowledged {
                at: clock.now(),
                position,
            },
        }
    }

    /// A channel born at 10 with events at 20, 30, … 90; 20 to 40 are trimmed before anybody
    /// listens; 70 and 80 are lost, so that 90 follows 60. One listener hears it until 70, and
    /// comes back.
    fn story() -> History {
        let clock = Clock::default();
        let mut history = History::default();
        let mut truth = Truth::default();
        truth.base(10, clock.now());
        let publish = |truth: &mut Truth, history: &mut History, position: u64, previous: u64| {
            history.publications.push(publication(&clock, truth, position, previous));
        };
        for position in [20, 30, 40] {
            publish(&mut truth, &mut history, position, position - 10);
            truth.places.get_mut(&position).unwrap().trimmed = Some(clock.now());
        }
        let mut told = Vec::new();
        let mut tell = |what| told.push((clock.now(), what));
        let event = |position| Told::Event {
            position,
            body: format!("m{position}"),
        };
        tell(Told::Asked { after: None, how: "sse" });
        tell(Told::Confirmed {
            cursor: 40,
            resumed: false,
        });
        for position in [50, 60, 70] {
            publish(&mut truth, &mut history, position, position - 10);
            tell(event(position));
        }
        publish(&mut truth, &mut history, 80, 70);
        truth.losses.push(clock.now());
        for position in [70, 80] {
            truth.places.get_mut(&position).unwrap().lost = Some(clock.now());
        }
        publish(&mut truth, &mut history, 90, 60);
        tell(Told::Asked {
            after: Some(70),
            how: "websocket",
        });
        tell(Told::Confirmed {
            cursor: 60,
            resumed: false,
        });
        tell(Told::Gap {
            after: Some(70),
            cursor: 60,
            reason: "broker-lost-data".into(),
        });
        tell(event(90));
        history.listeners.push(Listener {
            name: "l".into(),
            channel: "a".into(),
            told,
        });
        history.channels.insert("a".into(), truth);
        history
    }

    fn broken(history: &History) -> Vec<Promise> {
        let mut promises: Vec<_> = check(history).iter().map(|breach| breach.promise).collect();
        promises.dedup();
        promises
    }

    /// The story, told with one thing wrong.
    fn wrong(change: impl FnOnce(&mut Vec<(Moment, Told)>)) -> Vec<Promise> {
        let mut history = story();
        change(&mut history.listeners[0].told);
        broken(&history)
    }

    fn wrong_truth(change: impl FnOnce(&mut History)) -> Vec<Promise> {
        let mut history = story();
        change(&mut history);
        broken(&history)
    }

    // Places in the story: 0 asked, 1 confirmed, 2 to 4 events 50 to 70, 5 asked, 6 confirmed, 7
    // gap, 8 event 90.

    #[test]
    fn a_story_in_which_everything_is_announced_is_fine() {
        assert_eq!(broken(&story()), []);
        // A gap may also leave the listener where it stands: what it saw is gone, and the stream
        // goes on at the fork.
        assert_eq!(
            wrong(|told| {
                told[6].1 = Told::Confirmed {
                    cursor: 70,
                    resumed: false,
                };
                told[7].1 = Told::Gap {
                    after: Some(70),
                    cursor: 70,
                    reason: "broker-lost-data".into(),
                };
            }),
            []
        );
    }

    #[test]
    fn what_does_not_come_is_noticed() {
        assert_eq!(wrong(|told| drop(told.remove(3))), [Promise::NoSilentGap]);
        assert_eq!(wrong(|told| drop(told.remove(2))), [Promise::SubscribeBarrier]);
        assert_eq!(wrong(|told| drop(told.remove(8))), [Promise::CaughtUp]);
        assert_eq!(wrong(|told| told.truncate(1)), [Promise::CaughtUp]);
        assert_eq!(wrong(Vec::clear), [Promise::CaughtUp]);
    }

    #[test]
    fn what_comes_twice_or_in_the_wrong_order_is_noticed() {
        assert_eq!(wrong(|told| told.insert(3, told[2].clone())), [Promise::NoDuplicates]);
        // Across a resume: the event before the connection broke once more.
        assert_eq!(
            wrong(|told| {
                told[6].1 = Told::Confirmed {
                    cursor: 70,
                    resumed: true,
                };
                told[7].1 = told[4].1.clone();
            }),
            [Promise::NoDuplicates]
        );
        assert_eq!(
            wrong(|told| {
                told[6].1 = Told::Confirmed {
                    cursor: 60,
                    resumed: false,
                };
                told.insert(8, told[3].clone());
            }),
            [Promise::NoDuplicates]
        );
        let swapped = wrong(|told| {
            let first = told[2].1.clone();
            told[2].1 = std::mem::replace(&mut told[3].1, first);
        });
        // The one that came too early is noticed first.
        assert_eq!(swapped, [Promise::SubscribeBarrier]);
        let mut standing = Standing {
            cursor: Some(60),
            newest: 60,
            ..Standing::default()
        };
        let history = story();
        let late = standing.event(&history.channels["a"], 50, "m50").unwrap();
        assert_eq!(late.promise, Promise::Order);
    }

    #[test]
    fn a_gap_that_is_missing_or_wrong_is_noticed() {
        assert_eq!(wrong(|told| drop(told.remove(7))), [Promise::NoSilentGap]);
        // Resumed, they say, but what the listener had is lost.
        assert_eq!(
            wrong(|told| {
                told.remove(7);
                told[6].1 = Told::Confirmed {
                    cursor: 70,
                    resumed: true,
                };
            }),
            [Promise::NoSilentGap]
        );
        for (after, cursor) in [(Some(60), 60), (None, 60), (Some(70), 61), (Some(70), 50)] {
            let reason = "broker-lost-data".into();
            assert_eq!(
                wrong(|told| told[7].1 = Told::Gap { after, cursor, reason }),
                [Promise::NoSilentGap],
                "{after:?} {cursor}"
            );
        }
        let resumed = |cursor| Told::Confirmed { cursor, resumed: true };
        assert_eq!(wrong(|told| told[6].1 = resumed(60)), [Promise::NoSilentGap]);
        assert_eq!(wrong(|told| told[1].1 = resumed(40)), [Promise::NoSilentGap]);
    }

    #[test]
    fn a_gap_that_is_false_is_noticed() {
        let gap = |after, cursor, reason: &str| Told::Gap {
            after: Some(after),
            cursor,
            reason: reason.into(),
        };
        // Over an event that is held, and where nothing is.
        for cursor in [50, 40] {
            let told = wrong(|told| told.insert(2, (told[2].0, gap(40, cursor, "history-expired"))));
            assert_eq!(told, [Promise::NoFalseGap], "{cursor}");
        }
        // The same loss twice.
        assert_eq!(
            wrong(|told| told.insert(8, (told[7].0, gap(60, 60, "broker-lost-data")))),
            [Promise::NoFalseGap]
        );
        // A slow listener whose rule lets it miss things may; for that reason only.
        for (skips, reason, expected) in [
            (true, "too-slow", vec![]),
            (true, "history-expired", vec![Promise::NoFalseGap]),
            (false, "too-slow", vec![Promise::NoFalseGap]),
        ] {
            let mut history = story();
            history.channels.get_mut("a").unwrap().skips = skips;
            history.listeners[0].told[2].1 = gap(40, 50, reason);
            assert_eq!(broken(&history), expected, "{skips} {reason}");
        }
        // Trimmed, but after the listener was told so; of a busy channel that is as it must be.
        for (busy, expected) in [(false, vec![Promise::NoFalseGap]), (true, vec![])] {
            let trimmed_later = wrong_truth(|history| {
                let truth = history.channels.get_mut("a").unwrap();
                truth.busy = busy;
                truth.places.get_mut(&50).unwrap().trimmed = Some(Moment::MAX);
                history.listeners[0].told[2].1 = gap(40, 50, "history-expired");
            });
            assert_eq!(trimmed_later, expected);
        }
    }

    #[test]
    fn a_barrier_that_is_not_one_is_noticed() {
        for cursor in [41, 90] {
            assert_eq!(
                wrong(|told| told[1].1 = Told::Confirmed { cursor, resumed: false }),
                [Promise::SubscribeBarrier],
                "{cursor}"
            );
        }
    }

    #[test]
    fn a_cursor_that_does_not_say_where_the_listener_stands_is_noticed() {
        let how = "sse-many";
        assert_eq!(
            wrong(|told| told[5].1 = Told::Asked { after: None, how }),
            [Promise::SameEverywhere]
        );
        assert_eq!(
            wrong(|told| told[3].1 = Told::Event {
                position: 60,
                body: "m50".into()
            }),
            [Promise::SameEverywhere]
        );
        assert_eq!(
            wrong(|told| told[3].1 = Told::Event {
                position: 65,
                body: "m65".into()
            }),
            [Promise::SameEverywhere]
        );
    }

    #[test]
    fn a_publish_that_did_not_happen_as_answered_is_noticed() {
        let outcome = |outcome| wrong_truth(|history| history.publications[4].outcome = outcome);
        let at = Moment::MAX;
        assert_eq!(outcome(Outcome::Unknown), []);
        assert_eq!(outcome(Outcome::Refused), [Promise::Acknowledged]);
        assert_eq!(outcome(Outcome::Acknowledged { at, position: 61 }), [Promise::Acknowledged]);
        assert_eq!(
            outcome(Outcome::Acknowledged { at: 1, position: 60 }),
            [Promise::Acknowledged, Promise::Order]
        );
        // The same message twice; not if the first was lost before.
        let twice = |body: &str| {
            let body = body.to_owned();
            wrong_truth(|history| {
                let event = history.channels.get_mut("a").unwrap().places.get_mut(&90).unwrap();
                let old = event.body.replace(body.clone()).unwrap();
                history.publications.retain(|publication| publication.body != old);
                let last = history.listeners[0].told.last_mut().unwrap();
                last.1 = Told::Event { position: 90, body };
            })
        };
        assert_eq!(twice("m60"), [Promise::Idempotent]);
        assert_eq!(twice("m80"), []);
    }

    #[test]
    fn what_was_acknowledged_and_never_came_is_noticed_without_the_chain() {
        // The chain itself is wrong, so that only the publisher knows.
        assert_eq!(
            wrong_truth(|history| {
                let places = &mut history.channels.get_mut("a").unwrap().places;
                places.get_mut(&70).unwrap().previous = 50;
                history.listeners[0].told.remove(3);
                history.listeners[0].told[6].1 = Told::Gap {
                    after: Some(70),
                    cursor: 60,
                    reason: "broker-lost-data".into(),
                };
            }),
            [Promise::NoSilentGap]
        );
    }
}
