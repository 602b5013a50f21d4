//! Reading a page of a channel's history.

use std::collections::VecDeque;
use std::sync::Arc;

use airwave_core::{BrokerError, ChannelName, Event, PageLimit, Position, Replay};
use serde_json::json;

use super::Nats;
use super::link::Link;
use super::page::{Age, Beginning, Page, has_room};
use super::scan::{FEW, Met, Scanned};
use super::stored::{Chain, Stored};

/// How long a page of history can be.
const MOST_AT_ONCE: usize = 100_000;

/// So often the newest page is begun again because trimming was faster, all the way up to the head.
const OVERTAKEN_TRIES: usize = 3;

impl Nats {
    pub(super) async fn read(
        &self,
        channel: &ChannelName,
        after: Option<Position>,
        limit: PageLimit,
    ) -> Result<Replay, BrokerError> {
        let link = self.connection.link().await?;
        let mut newest = self.chain_and_newest(&link, channel).await?;
        if after.is_some_and(|after| after > newest.0.head) && self.connection.settings.are_several() {
            // Lost, or told by one that is cut off from the others and does not know it yet. Such a
            // one cannot store anything.
            self.connection.store_something(&link).await?;
            newest = self.chain_and_newest(&link, channel).await?;
        }
        let mut page = self.page(channel, newest);
        let limit = PageLimit::events(limit.events.min(MOST_AT_ONCE)).with_bytes(limit.bytes);
        if page.history.events == 0 || page.chain.head == page.chain.base {
            let complete = after.unwrap_or(page.chain.base) == page.chain.head;
            let replay = page.replay(Vec::new(), complete, false);
            return self.with_epochs(&link, &page, after, replay).await;
        }
        if let Some(position) = after {
            if position == page.chain.head {
                return Ok(page.replay(Vec::new(), true, false));
            }
            // The first event after the position says whether the page is complete, so a page of
            // nothing reads that one, too.
            let read = PageLimit::events(limit.events.max(1)).with_bytes(limit.bytes);
            let replay = self.read_after(&link, channel, &page, position, read).await?;
            let mut replay = self.with_epochs(&link, &page, after, replay).await?;
            if limit.events == 0 {
                replay.more |= !replay.events.is_empty();
                replay.events.clear();
            }
            return Ok(replay);
        }
        for _ in 0..OVERTAKEN_TRIES {
            // Where there were never more, the newest few are all.
            let few = limit.events <= FEW || page.chain.events <= FEW as u64;
            let read = match few {
                true => self.read_back(&link, channel, &page, limit).await?,
                false => self.read_newest(&link, channel, &page, limit).await?,
            };
            if let Some(events) = read {
                return Ok(page.newest(events));
            }
            // Everything up to that head has been trimmed since: there is a newer one.
            page = self.page(channel, self.chain_and_newest(&link, channel).await?);
        }
        Ok(page.newest(Vec::new()))
    }

    /// What may be shown of a channel that stands like this.
    fn page(&self, channel: &ChannelName, (chain, newest): (Chain, Option<Stored>)) -> Page {
        Page {
            history: self.rules.history(channel),
            now: self.connection.server_clock.now(),
            chain,
            newest,
        }
    }

    /// The replay, made complete if it begins with the channel's first event and was asked for
    /// after an epoch: what follows the first position follows every epoch.
    async fn with_epochs(
        &self,
        link: &Link,
        page: &Page,
        after: Option<Position>,
        mut replay: Replay,
    ) -> Result<Replay, BrokerError> {
        let follows = replay.events.first().map_or(replay.head, |first| first.previous);
        let Some(after) = after.filter(|_| !replay.complete && follows == page.chain.base) else {
            return Ok(replay);
        };
        if self.epochs.honours(&self.connection, link, after).await? {
            replay.complete = true;
            if let Some(first) = replay.events.first_mut() {
                let mut event = Event::clone(first);
                event.previous = after;
                *first = Arc::new(event);
            }
        }
        Ok(replay)
    }

    async fn read_after(
        &self,
        link: &Link,
        channel: &ChannelName,
        page: &Page,
        after: Position,
        limit: PageLimit,
    ) -> Result<Replay, BrokerError> {
        let mut events: Vec<Arc<Event>> = Vec::new();
        let (mut more, mut bytes) = (false, 0_usize);
        if after < page.chain.head {
            let most = limit.events.saturating_add(1).max(FEW);
            let scanned = self.scan(link, channel, page, after, most, |met| match met {
                Met::Event(event) if has_room(&events, bytes, &event, limit) => {
                    bytes = bytes.saturating_add(event.message.weight());
                    events.push(event);
                    true
                }
                // What was read so far is whole. Who asks for what comes after it is told of the
                // hole.
                Met::Event(_) | Met::Hole => {
                    more = true;
                    false
                }
            });
            let scanned = scanned.await?;
            more |= scanned == Scanned::UpToAHole && !events.is_empty();
        }
        let complete = after == page.chain.head || events.first().is_some_and(|first| first.previous == after);
        Ok(page.replay(events, complete, more))
    }

    /// The newest events. `None`: they were trimmed, up to the head.
    async fn read_newest(
        &self,
        link: &Link,
        channel: &ChannelName,
        page: &Page,
        limit: PageLimit,
    ) -> Result<Option<Vec<Arc<Event>>>, BrokerError> {
        let mut newest: VecDeque<Arc<Event>> = VecDeque::new();
        let mut bytes = 0_usize;
        let begin = Position(page.chain.base.0.saturating_sub(1));
        let scanned = self.scan(link, channel, page, begin, usize::MAX, |met| {
            match met {
                Met::Event(event) => {
                    bytes = bytes.saturating_add(event.message.weight());
                    newest.push_back(event);
                    while newest.len() > limit.events || (bytes > limit.bytes && newest.len() > 1) {
                        bytes -= newest.pop_front().map_or(0, |oldest| oldest.message.weight());
                    }
                }
                // Trimming has overtaken us. The page begins again behind the hole.
                Met::Hole => {
                    newest.clear();
                    bytes = 0;
                }
            }
            true
        });
        Ok(match scanned.await? {
            Scanned::ToTheEnd => Some(newest.into()),
            Scanned::UpToAHole => None,
        })
    }

    /// The newest events, found from the newest back. `None`: the newest one was trimmed.
    async fn read_back(
        &self,
        link: &Link,
        channel: &ChannelName,
        page: &Page,
        limit: PageLimit,
    ) -> Result<Option<Vec<Arc<Event>>>, BrokerError> {
        let (mut found, mut bytes) = (Vec::new(), 0_usize);
        let mut at = page.chain.head;
        while found.len() < limit.events && at > page.chain.base {
            let sequence = if at == page.chain.head {
                page.chain.head_message()
            } else {
                at.0
            };
            let mut stored = page.newest.clone().filter(|_| at == page.chain.head);
            if stored.is_none() {
                stored = self.connection.at(link, channel, sequence).await?;
            }
            if stored.is_none() {
                stored = self.connection.ask_leader(link, channel, &json!({ "seq": sequence })).await?;
            }
            // The end and the event before it may stand in one message.
            let stored = stored.and_then(|stored| stored.parts().find(|part| part.chain.newest == at.0));
            let Some(stored) = stored else {
                // A head without its event is a mark, and then its event was trimmed long ago.
                if found.is_empty() && page.chain.newest == page.chain.head_message() {
                    return Ok(None);
                }
                break;
            };
            match (page.judges(&stored), stored.event) {
                (age, Some(event)) if age != Age::Beyond => {
                    bytes = bytes.saturating_add(event.message.weight());
                    if bytes > limit.bytes && !found.is_empty() {
                        break;
                    }
                    at = event.previous;
                    found.push((age, event));
                }
                _ => break,
            }
        }
        found.reverse();
        let mut beginning = Beginning::default();
        Ok(Some(beginning.of_all(found)))
    }
}
