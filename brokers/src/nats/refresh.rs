//! Keeps the heads of followed channels in the stream, however long nothing is published to them.
//!
//! The stream lets go of every message after its `max_age`, also of a channel's newest one, which
//! says where the channel's head is. A channel that has listeners would then begin anew with its
//! next event, and the listeners would be told of a loss that was none. So a node that follows a
//! channel looks at its newest message from time to time, and writes a mark of the same head behind
//! one that is past half of that age. Several nodes may do so: the first one is enough, and the
//! others see its mark.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use airwave_core::shrink::shrink;
use airwave_core::{BrokerError, ChannelName, Position};
use async_nats::HeaderMap;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::clock::micros;
use super::connection::Connection;
use super::epoch;
use super::errors::lost;
use super::generations::uptime;
use super::link::{Answer, Link};
use super::messages::EXPECTED;
use super::stored::{self, Chain};

/// Between two rounds: an eighth of the stream's age, within these.
const ROUND: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(3600));

/// The channels that this node follows: how many feeds each has, and when its newest message was
/// looked at, by [`uptime`].
#[derive(Clone, Default)]
pub(super) struct Followed(Arc<Mutex<HashMap<ChannelName, Following>>>);

struct Following {
    feeds: usize,
    /// Where the first of them began.
    head: Position,
    looked_at: Option<u64>,
}

/// One feed. Dropping it ends the following.
pub(super) struct Follows {
    followed: Followed,
    channel: ChannelName,
}

impl Followed {
    fn lock(&self) -> MutexGuard<'_, HashMap<ChannelName, Following>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, channel: &ChannelName, head: Position) -> Follows {
        let begin = || Following {
            feeds: 0,
            head,
            looked_at: None,
        };
        self.lock().entry(channel.clone()).or_insert_with(begin).feeds += 1;
        Follows {
            followed: self.clone(),
            channel: channel.clone(),
        }
    }

    /// Those that were not looked at for so long.
    fn due(&self, after: Duration) -> Vec<(ChannelName, Position)> {
        let now = uptime();
        let is_due = |following: &Following| following.looked_at.is_none_or(|at| now.saturating_sub(at) >= micros(after));
        let followed = self.lock();
        let due = followed.iter().filter(|(_, following)| is_due(following));
        due.map(|(channel, following)| (channel.clone(), following.head)).collect()
    }

    fn looked_at(&self, channel: &ChannelName) {
        if let Some(following) = self.lock().get_mut(channel) {
            following.looked_at = Some(uptime());
        }
    }
}

impl Drop for Follows {
    fn drop(&mut self) {
        let mut followed = self.followed.lock();
        if let Some(following) = followed.get_mut(&self.channel) {
            following.feeds -= 1;
            if following.feeds == 0 {
                followed.remove(&self.channel);
            }
        }
        // A crowd that has gone must not keep its room for ever.
        shrink(&mut *followed);
    }
}

/// Looks at what is followed, for ever.
pub(super) async fn refresh(connection: &Connection, followed: Followed) {
    let mut round = ROUND.0;
    loop {
        sleep(round).await;
        match look(connection, &followed).await {
            Ok(Some(age)) => round = (age / 8).clamp(ROUND.0, ROUND.1),
            Ok(None) => round = ROUND.1,
            Err(error) => {
                tracing::debug!(%error, "what is followed could not be refreshed");
                round = Duration::from_secs(1).max(round.min(Duration::from_secs(60)));
            }
        }
    }
}

/// One round; gives the stream's age. `None`: it keeps everything.
async fn look(connection: &Connection, followed: &Followed) -> Result<Option<Duration>, BrokerError> {
    let link = connection.link().await?;
    let info = link
        .api(format!("STREAM.INFO.{}", connection.settings.prefix), &Value::Null)
        .await?;
    let age = match info {
        Answer::Done(info) => Duration::from_nanos(info["config"]["max_age"].as_u64().unwrap_or(0)),
        Answer::Refused { text, .. } => return Err(lost(&text)),
    };
    if age.is_zero() {
        return Ok(None);
    }
    for (channel, head) in followed.due(age / 4) {
        let since = Instant::now();
        refresh_one(connection, &link, &channel, head, age).await?;
        followed.looked_at(&channel);
        // Half of the time at most, so that nothing else waits for it.
        sleep(since.elapsed()).await;
    }
    Ok(Some(age))
}

async fn refresh_one(
    connection: &Connection,
    link: &Link,
    channel: &ChannelName,
    followed_from: Position,
    age: Duration,
) -> Result<(), BrokerError> {
    let (chain, stored_at) = match connection.newest_at_leader(link, channel).await? {
        Some(newest) => (newest.chain, newest.stored_at),
        None => {
            // Nothing was ever published. Its listeners stand at an epoch, which goes as well; from
            // now on the channel has a message.
            let Some(stored_at) = epoch::stored_at(connection, link, followed_from).await? else {
                return Ok(());
            };
            let chain = Chain {
                head: followed_from,
                base: followed_from,
                ..Chain::NONE
            };
            (chain, stored_at)
        }
    };
    let old = connection.server_clock.now().saturating_sub(stored_at);
    if chain.ended || old < micros(age / 2) {
        return Ok(());
    }
    let mut headers = HeaderMap::new();
    headers.insert(EXPECTED, chain.newest.to_string());
    let mark = stored::mark(&chain, connection.now());
    match link.call(connection.subject_of(channel), Some(headers), mark).await? {
        Answer::Done(_) => tracing::debug!(%channel, "a quiet channel's head was refreshed"),
        // Another node was faster, or published something.
        Answer::Refused { text, .. } => tracing::debug!(%channel, text, "a quiet channel's head was not refreshed"),
    }
    Ok(())
}
