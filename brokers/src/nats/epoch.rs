//! The epoch: the first position of every channel without events, so that such a channel needs no
//! message of its own.
//!
//! An epoch is a message of the stream, under a subject that all epochs share. The stream drops its
//! oldest messages first, by age or by the room that it has, and an epoch is older than every
//! message that it speaks for. So while an epoch is stored, no younger event was dropped with its
//! whole channel: a channel without a message had no event since then. A stream that begins anew
//! has no epoch of before.
//!
//! A new epoch is stored when the newest one has lived for half of what the stream keeps. The one
//! before is good for the other half.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use airwave_core::{BrokerError, Position};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::clock::time_of;
use super::connection::Connection;
use super::errors::{code, lost, unstored};
use super::link::{Answer, Link};
use super::stored::UNKNOWN;

/// What this node knows of the epochs.
#[derive(Default)]
pub(super) struct Epochs {
    /// How many questions for the newest epoch have begun.
    begun: AtomicU64,
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    question: u64,
    epoch: Position,
    /// When this node stored one.
    stored: Option<Instant>,
}

impl Epochs {
    /// The newest epoch, as the stream's leader knows it now; stores one if it must. Many callers
    /// share one question, but no caller takes the answer to a question that began earlier: the
    /// stream may have been lost since.
    pub(super) async fn newest(&self, connection: &Connection, link: &Link) -> Result<Position, BrokerError> {
        let begun = self.begun.load(Ordering::Acquire);
        let mut last = self.last.lock().await;
        if last.question > begun {
            return Ok(last.epoch);
        }
        let question = self.begun.fetch_add(1, Ordering::AcqRel) + 1;
        let found = ask(connection, link, json!({ "last_by_subj": subject(connection) })).await?;
        let lives = connection.stream_keeps();
        let now = connection.server_clock.now();
        let old = |stored: u64| Duration::from_micros(now.saturating_sub(stored)) > lives / 2;
        // By this node's own time, too: beside a clock that jumps it would store one after the
        // other.
        let may_store = last.stored.is_none_or(|stored| stored.elapsed() > lives / 2);
        let epoch = match found {
            Some((epoch, stored)) if !(old(stored) && may_store) => epoch,
            found => match store(connection, link).await {
                Ok(epoch) => {
                    last.stored = Some(Instant::now());
                    epoch
                }
                // A full stream, say. The old one is as good for as long as it is there.
                Err(error) => found.map(|(epoch, _)| epoch).ok_or(error)?,
            },
        };
        (last.question, last.epoch) = (question, epoch);
        Ok(epoch)
    }

    /// Whether a position is an epoch that is still stored.
    pub(super) async fn honours(&self, connection: &Connection, link: &Link, position: Position) -> Result<bool, BrokerError> {
        Ok(stored_at(connection, link, position).await?.is_some())
    }
}

fn subject(connection: &Connection) -> String {
    connection.log("epoch")
}

/// When an epoch was stored. `None`: the position is none, or it is gone.
pub(super) async fn stored_at(connection: &Connection, link: &Link, position: Position) -> Result<Option<u64>, BrokerError> {
    if position == Position::ZERO {
        return Ok(None);
    }
    let found = ask(connection, link, json!({ "seq": position.0 })).await?;
    Ok(found.filter(|(epoch, _)| *epoch == position).map(|(_, stored_at)| stored_at))
}

/// An epoch, and when it was stored by the server's clock. Asked of the leader.
async fn ask(connection: &Connection, link: &Link, which: Value) -> Result<Option<(Position, u64)>, BrokerError> {
    let api = format!("$JS.API.STREAM.MSG.GET.{}", connection.settings.prefix);
    match link.call(api, None, which.to_string().into()).await? {
        Answer::Done(answer) => {
            let message = &answer["message"];
            if message["subject"].as_str() != Some(&subject(connection)) {
                return Ok(None);
            }
            let stored_at = message["time"].as_str().and_then(time_of).unwrap_or(UNKNOWN);
            Ok(message["seq"].as_u64().map(|sequence| (Position(sequence), stored_at)))
        }
        Answer::Refused {
            code: code::NO_MESSAGE, ..
        } => Ok(None),
        Answer::Refused { text, .. } => Err(lost(&text)),
    }
}

async fn store(connection: &Connection, link: &Link) -> Result<Position, BrokerError> {
    let before = connection.highest();
    match link
        .call(subject(connection), None, connection.now().to_string().into())
        .await?
    {
        Answer::Done(ack) => match ack["seq"].as_u64() {
            Some(sequence) if connection.went_up(link, before, sequence) => Ok(Position(sequence)),
            _ => Err(lost("the stream was lost")),
        },
        Answer::Refused { code, text } => Err(unstored(code, &text)),
    }
}
