//! Takes from the stream what no rule shows any more.
//!
//! The server keeps of each channel the same: as many messages as the most generous rule wants, for thirty days. What another rule's
//! count, age or bytes leave out would stay on the disk, so whoever publishes to a channel lets go of it, a *generation* at a time: once a
//! history's worth has been written since some event, nothing before that one is shown, and one purge removes all of it. The newest event
//! always stays: it is the channel's head.
//!
//! A purge is dear (the server looks through all blocks between the channel's oldest and newest message), so a generation is large, one
//! purge goes on at a time, and the pauses between them are longer than they are. A channel hence holds about twice what its rule says,
//! or [`WORTH`]; more if purges do not keep up, up to what the server keeps by itself. One to which nobody publishes any more, and that no
//! node remembers that runs, is left to the server, too.

use std::collections::VecDeque;
use std::time::Duration;

use airwave_core::rule::History;
use airwave_core::{ChannelName, Position, Rules};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::connection::{Answer, Connection};
use super::stored::{Chain, now, token};
use super::{Remembered, remembered};

/// A purge of a channel that goes on is for at least so many events or bytes.
const WORTH: (u64, u64) = (1000, 1 << 20);

/// And of one that has gone quiet.
const WORTH_QUIET: (u64, u64) = (16, 64 << 10);

/// So many channels wait for a purge. Who finds no place comes again with its next generation.
const WAITING: usize = 1000;

/// How often quiet channels are looked for: half the shortest age of a rule, within these.
const LOOK: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

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
    /// An event was stored; the chain with it. `Some`: nothing before that position is shown, and it is worth a purge.
    pub(super) fn stored(&mut self, chain: &Chain, history: &History, now: u64) -> Option<Position> {
        let here = Mark {
            head: chain.head,
            events: chain.events,
            bytes: chain.bytes,
            at: now,
        };
        self.newest = Some(here);
        let begin = *self.begin.get_or_insert(here);
        let written = here.since(&begin);
        // These agree with what a page shows: the event that the generation began with is left out already.
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

/// A channel and a position before which nothing of it is needed.
pub(super) type Due = (ChannelName, Position);

pub(super) fn queue() -> (mpsc::Sender<Due>, mpsc::Receiver<Due>) {
    mpsc::channel(WAITING)
}

/// Purges what is due, for ever.
pub(super) async fn sweep(connection: &Connection, rules: Rules, known: Remembered, mut due: mpsc::Receiver<Due>) {
    let shortest = rules.iter().map(|rule| rule.history.age).min().unwrap_or(LOOK.1);
    let every = (shortest / 2).clamp(LOOK.0, LOOK.1);
    let mut look = Instant::now() + every;
    let mut quiet = VecDeque::new();
    loop {
        let (channel, before) = tokio::select! {
            biased;
            Some(due) = due.recv() => due,
            Some(due) = async { quiet.pop_front() }, if !quiet.is_empty() => due,
            () = sleep_until(look) => {
                quiet = quiet_ones(&rules, &known);
                look = Instant::now() + every;
                continue;
            }
        };
        let since = Instant::now();
        purge(connection, &channel, before).await;
        sleep(since.elapsed() * PAUSE).await;
    }
}

fn quiet_ones(rules: &Rules, known: &Remembered) -> VecDeque<Due> {
    // Copied: nobody's publish is to wait while all of them are looked at.
    let all: Vec<_> = remembered(known)
        .iter()
        .map(|(name, memory)| (name.clone(), memory.clone()))
        .collect();
    let now = now();
    let due = all.into_iter().filter_map(|(name, memory)| {
        // Whoever holds it publishes: it is not quiet.
        let position = memory.try_lock().ok()?.generations.quiet(|| rules.history(&name), now)?;
        Some((name, position))
    });
    due.take(WAITING).collect()
}

/// What is not removed now is removed with the next generation: so nothing is repeated, and nobody is told.
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
