//! What really happened, written down by those who know: the backbone what became of events,
//! listeners what they were told.
//!
//! Everything carries a [`Moment`]. The simulation runs on one thread, so moments are one order of
//! everything, on all hosts.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A point in the one order of everything that happened.
pub type Moment = u64;

/// Gives moments.
#[derive(Clone, Default)]
pub struct Clock(Arc<AtomicU64>);

impl Clock {
    pub fn now(&self) -> Moment {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// A whole run.
#[derive(Clone, Default)]
pub struct History {
    pub channels: BTreeMap<String, Truth>,
    pub publications: Vec<Publication>,
    pub listeners: Vec<Listener>,
}

/// One channel as it really was: every position that the broker ever gave.
#[derive(Clone, Default)]
pub struct Truth {
    pub places: BTreeMap<u64, Place>,
    /// The newest position of what the broker still calls its log.
    pub head: u64,
    /// The failovers and restarts in which it lost events.
    pub losses: Vec<Moment>,
    /// Whether its rule lets slow listeners miss what the broker holds.
    pub skips: bool,
    /// Whether for a time more was published than could be read before it was trimmed. A listener
    /// that cannot be caught up goes on live then, and misses what is trimmed soon.
    pub busy: bool,
}

/// What stands at a position: an event, or the base of a channel.
#[derive(Clone)]
pub struct Place {
    /// The place before it; zero for a base.
    pub previous: u64,
    /// `None`: a base.
    pub body: Option<String>,
    pub since: Moment,
    /// A failover or a restart threw it away.
    pub lost: Option<Moment>,
    /// It grew too old for the channel's history.
    pub trimmed: Option<Moment>,
}

impl Truth {
    pub fn base(&mut self, position: u64, since: Moment) {
        self.place(position, 0, None, since);
    }

    pub fn event(&mut self, position: u64, previous: u64, body: &str, since: Moment) {
        self.place(position, previous, Some(body.to_owned()), since);
    }

    fn place(&mut self, position: u64, previous: u64, body: Option<String>, since: Moment) {
        self.head = position;
        let place = Place {
            previous,
            body,
            since,
            lost: None,
            trimmed: None,
        };
        let taken = self.places.insert(position, place);
        assert!(taken.is_none(), "the broker gave {position} twice");
    }

    /// Whether `ancestor` stands on the line that leads to `position`, or is it.
    pub fn leads_to(&self, ancestor: u64, position: u64) -> bool {
        let mut at = position;
        while at > ancestor {
            at = self.places.get(&at).map_or(0, |place| place.previous);
        }
        at == ancestor
    }
}

/// One message that a backend wanted to have published, however often it tried.
#[derive(Clone)]
pub struct Publication {
    pub channel: String,
    pub body: String,
    pub began: Moment,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Acknowledged {
        at: Moment,
        position: u64,
    },
    /// A 4xx.
    Refused,
    Unknown,
}

/// What one client was told about one channel, over all its connections.
#[derive(Clone)]
pub struct Listener {
    pub name: String,
    pub channel: String,
    pub told: Vec<(Moment, Told)>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// Not told but asked: the client connects, with the cursor it has.
    Asked {
        after: Option<u64>,
        how: &'static str,
    },
    Confirmed {
        cursor: u64,
        resumed: bool,
    },
    Event {
        position: u64,
        body: String,
    },
    Gap {
        after: Option<u64>,
        cursor: u64,
        reason: String,
    },
}

impl fmt::Display for History {
    /// All of it in the order of moments, for people who look into a failure.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines: Vec<(Moment, String)> = Vec::new();
        for (name, truth) in &self.channels {
            for (position, place) in &truth.places {
                let what = match &place.body {
                    Some(body) => format!("{name} {position} <- {}: {body}", place.previous),
                    None => format!("{name} is born at {position}"),
                };
                lines.push((place.since, format!("broker: {what}")));
                if let Some(at) = place.lost {
                    lines.push((at, format!("broker: {name} {position} is lost")));
                }
                if let Some(at) = place.trimmed {
                    lines.push((at, format!("broker: {name} {position} is trimmed")));
                }
            }
        }
        for publication in &self.publications {
            let Publication {
                channel,
                body,
                began,
                outcome,
            } = publication;
            lines.push((*began, format!("publisher: {channel} {body} begins")));
            if let Outcome::Acknowledged { at, position } = outcome {
                lines.push((*at, format!("publisher: {channel} {body} is acknowledged at {position}")));
            }
        }
        for listener in &self.listeners {
            for (at, told) in &listener.told {
                lines.push((*at, format!("{} {}: {told:?}", listener.name, listener.channel)));
            }
        }
        lines.sort();
        // Bodies are padded; what names them stands first.
        let short = |line: &str| {
            line.split_once("\\\"padding").map_or_else(
                || line.split_once("\"padding").map_or(line, |(head, _)| head).to_owned(),
                |(head, _)| head.to_owned(),
            )
        };
        lines.iter().try_for_each(|(at, line)| writeln!(f, "{at:>7} {}", short(line)))
    }
}
