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
//! longer than they are. A channel hence holds about twice what its rule says, or `WORTH`; more
//! if purges do not keep up, up to what the server keeps by itself.
//!
//! A node remembers only the channels that it has published to. So at its start, and again and
//! again while the server is full, it looks through all that is stored for what is past its rule's
//! age, by the times that the server noted.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use airwave_core::shrink::shrink;
use airwave_core::{BrokerError, ChannelName, Position, Rules};
use async_nats::{Message, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::clock::time_of;
use super::connection::Connection;
use super::errors::lost;
use super::generations::uptime;
use super::link::{Answer, Link, is_status};
use super::remembered::{Remembered, remembered};
use super::stored::{channel_of, token};

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
        let listed = page.len();
        channels.extend(page.into_iter().map(|(subject, count)| {
            let channel = subject.strip_prefix(&before).and_then(channel_of);
            (channel, count.as_u64().unwrap_or(0))
        }));
        if listed == 0 || channels.len() as u64 >= info["total"].as_u64().unwrap_or(0) {
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
