//! Reading through a channel's messages, oldest first.

use std::sync::Arc;

use airwave_core::{BrokerError, ChannelName, Event, Position};
use async_nats::StatusCode;
use futures_util::StreamExt;
use serde_json::json;
use tokio::time::sleep;

use super::Nats;
use super::errors::lost;
use super::link::{LAG, Link, is_status};
use super::page::{Age, Beginning, Page};
use super::stored::Stored;

/// How much is asked for at once: messages and bytes. Below what a subscription holds.
const BATCH: (usize, usize) = (10_000, 8 << 20);

/// So many questions for one message each go out at once, at most.
const WIDEST: u64 = 256;

/// Up to so many of the newest events are found one by one, from the newest back.
pub(super) const FEW: usize = 8;

/// The status behind the last message of a batch.
const END_OF_BATCH: u16 = 204;

/// What a scan comes to.
pub(super) enum Met {
    Event(Arc<Event>),
    /// Events before the next one are not there any more.
    Hole,
}

/// How a scan ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scanned {
    /// At the head, or where it was told to.
    ToTheEnd,
    /// All that was left up to the head has been trimmed meanwhile.
    UpToAHole,
}

/// A scan on its way to the head.
struct Scan<'a, F> {
    page: &'a Page,
    after: Position,
    /// Takes what is shown. False: no more is wanted.
    show: F,
    beginning: Beginning,
    /// The newest event that was read; none right after a skip.
    last_read: Option<Position>,
    /// The sequence up to which messages were read.
    read: u64,
    /// The message that holds the head was read.
    reached: bool,
}

impl<'a, F: FnMut(Met) -> bool> Scan<'a, F> {
    fn new(page: &'a Page, after: Position, show: F) -> Self {
        // If the end stands in the message that is read up to, what comes next is in it, too.
        let again = page.chain.end_in_event && after.0 == page.chain.head_message();
        Self {
            page,
            after,
            show,
            beginning: Beginning::default(),
            last_read: None,
            read: after.0 - u64::from(again),
            reached: false,
        }
    }

    /// Goes on behind a message without looking at what lies before.
    fn skip_to(&mut self, sequence: u64) {
        self.read = sequence;
        self.last_read = None;
    }

    /// Shows what a batch holds, up to the head. False: no more is wanted.
    fn take(&mut self, batch: Vec<Stored>) -> bool {
        let head = self.page.chain.head.0;
        for stored in batch {
            if stored.chain.newest > head {
                self.read = head;
                break;
            }
            self.read = stored.chain.newest;
            self.reached = self.read == head;
            if !self.take_one(stored) {
                return false;
            }
        }
        true
    }

    fn take_one(&mut self, stored: Stored) -> bool {
        let age = self.page.judges(&stored);
        let after = self.after;
        let Some(event) = stored.event.filter(|event| age != Age::Beyond && event.position > after) else {
            return true;
        };
        let hole = self.last_read.is_some_and(|last| last != event.previous);
        self.last_read = Some(event.position);
        if hole && !self.beginning.forget() && !(self.show)(Met::Hole) {
            return false;
        }
        self.beginning.next(age, event).all(|event| (self.show)(Met::Event(event)))
    }

    /// Shows what was undecided, and says how the scan ended.
    fn end(mut self) -> Scanned {
        for event in self.beginning.rest() {
            if !(self.show)(Met::Event(event)) {
                return Scanned::ToTheEnd;
            }
        }
        // Where a mark stands for the head, its event may have gone long ago.
        let chain = &self.page.chain;
        match self.reached || (self.last_read.is_none() && chain.newest != chain.head_message()) {
            true => Scanned::ToTheEnd,
            false => Scanned::UpToAHole,
        }
    }
}

impl Nats {
    /// Shows the events after `after` up to the head, oldest first, as long as they are wanted: at
    /// most `most`, so no more are asked for at once.
    pub(super) async fn scan(
        &self,
        link: &Link,
        channel: &ChannelName,
        page: &Page,
        after: Position,
        most: usize,
        show: impl FnMut(Met) -> bool,
    ) -> Result<Scanned, BrokerError> {
        let mut scan = Scan::new(page, after, show);
        let mut skipped = false;
        let mut width = FEW as u64;
        loop {
            let batch = self.batch(link, channel, scan.read + 1, most, &mut width).await?;
            let before = scan.read;
            let last = batch.last().map(|stored| (stored.chain.newest, stored.chain.events));
            if !scan.take(batch) {
                return Ok(Scanned::ToTheEnd);
            }
            if scan.read >= page.chain.head.0 {
                break;
            }
            if let Some(last) = last
                && scan.beginning.is_open()
                && !std::mem::replace(&mut skipped, true)
            {
                scan.skip_to(self.skip(link, channel, page, last).await?);
            }
            if scan.read == before {
                // The server that answers lags, or all that was left up to the head has been
                // trimmed. The leader knows; that there is a newer head meanwhile says nothing.
                let next = json!({ "seq": scan.read + 1, "next_by_subj": self.connection.subject_of(channel) });
                let next = self.connection.ask_leader(link, channel, &next).await?;
                if next.is_none_or(|next| next.chain.newest > page.chain.head.0) {
                    break;
                }
                sleep(LAG).await;
            }
        }
        Ok(scan.end())
    }

    /// A place before which nothing is shown, at most [`FEW`] events before what is: the stream may
    /// keep far more of a channel than its rule shows, and reading past all that takes long. `low`
    /// is a message that is not shown: its sequence, and how many events there were with it.
    async fn skip(&self, link: &Link, channel: &ChannelName, page: &Page, low: (u64, u64)) -> Result<u64, BrokerError> {
        let (mut low, mut high) = (low, (page.chain.head.0, page.chain.events));
        while high.1.saturating_sub(low.1) > FEW as u64 && high.0.saturating_sub(low.0) > 1 {
            let middle = low.0 + (high.0 - low.0) / 2;
            let Some(stored) = self.connection.first_from(link, channel, middle).await? else {
                break;
            };
            let at = (stored.chain.newest, stored.chain.events);
            if at.0 >= high.0 {
                high.0 = middle;
            } else if matches!(page.judges(&stored), Age::Young | Age::Unknown) {
                high = (middle, at.1);
            } else {
                low = at;
            }
        }
        // Not past a message that holds the head behind its event.
        Ok(low.0.min(page.chain.head_message() - 1))
    }

    /// Messages of the channel from a sequence on, as many as come at once.
    ///
    /// `width` is of [`Self::batch_one_by_one`] alone.
    async fn batch(
        &self,
        link: &Link,
        channel: &ChannelName,
        from: u64,
        most: usize,
        width: &mut u64,
    ) -> Result<Vec<Stored>, BrokerError> {
        if link.is_2_10 {
            return self.batch_one_by_one(link, channel, from, width).await;
        }
        let subject = format!("$JS.API.DIRECT.GET.{}", self.connection.settings.prefix);
        let mut question = json!({ "seq": from, "next_by_subj": self.connection.subject_of(channel) });
        question["batch"] = self.connection.settings.tuning.batch.unwrap_or(BATCH.0.min(most)).into();
        question["max_bytes"] = BATCH.1.into();
        let inbox = link.client.new_inbox();
        let broke = |error: &dyn std::fmt::Display| lost(&format!("history could not be read: {error}"));
        let mut answers = link.client.subscribe(inbox.clone()).await.map_err(|error| broke(&error))?;
        let mut watched = link.forbidden.watch("Publish", &subject);
        let asked = link
            .client
            .publish_with_reply(subject, inbox, question.to_string().into())
            .await;
        asked.map_err(|error| broke(&error))?;
        let mut batch = Vec::new();
        loop {
            let message = tokio::select! {
                message = answers.next() => message.ok_or_else(|| lost("the connection broke"))?,
                () = link.dead.wait() => return Err(lost("the connection broke")),
                forbidden = watched.wait() => return Err(forbidden),
            };
            match is_status(&message) {
                None => batch.extend(self.connection.stored(channel, message)?.parts()),
                Some(StatusCode::NOT_FOUND) => return Ok(batch),
                Some(status) if status.as_u16() == END_OF_BATCH => return Ok(batch),
                Some(StatusCode::NO_RESPONDERS) => {
                    link.dead.tell();
                    return Err(lost("no server answers for the stream"));
                }
                Some(status) => return Err(broke(&status)),
            }
        }
    }

    /// The same of version 2.10, which gives one message for a question. So many are asked at once,
    /// one for each of the next `width` sequences: more the next time, if they were close together,
    /// and fewer if not.
    async fn batch_one_by_one(
        &self,
        link: &Link,
        channel: &ChannelName,
        from: u64,
        width: &mut u64,
    ) -> Result<Vec<Stored>, BrokerError> {
        let asked = (from..from + *width).map(|from| self.connection.first_from(link, channel, from));
        let mut batch: Vec<Stored> = Vec::new();
        for answer in futures_util::future::join_all(asked).await {
            // Who answered that one lags. Another one may have answered the next, and what lies
            // between would be missing.
            let Some(stored) = answer? else { break };
            if batch.last().is_none_or(|last| last.chain.newest < stored.chain.newest) {
                batch.push(stored);
            }
        }
        let dense = batch.len() as u64 == *width;
        *width = if dense {
            (*width * 2).min(WIDEST)
        } else {
            (*width / 2).max(1)
        };
        Ok(batch.into_iter().flat_map(Stored::parts).collect())
    }
}
