//! This module holds the handle that applications publish with. The handle needs the broker alone:
//! publishing needs no listener and no open log.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use serde::Serialize;

use crate::backbone::Backbone;
use crate::broker::{Append, PageLimit, Published, Replay};
use crate::event::{ChannelName, EventName, IdempotencyKey, Message, Position};
use crate::format::Member;
use crate::idempotency::{Fingerprint, KeySource, ScopedKey};
use crate::publish::Publish;
use crate::refusal::Refusal;
use crate::rule::{Params, Rule};

/// An application publishes to a channel, ends it and reads its history through this handle. A
/// clone is cheap.
#[derive(Clone)]
pub struct Channel {
    backbone: Arc<Backbone>,
    name: ChannelName,
    rule: Arc<Rule>,
    /// Holds the index of the rule's metrics.
    figures: usize,
    params: Params,
    /// Is set if a client's message brought a key. What the handler publishes through this handle
    /// is then repeatable.
    key: Option<Arc<ClientKey>>,
}

/// Carries the key of a client's message for everything that its handler publishes.
struct ClientKey {
    user: Option<Arc<str>>,
    /// Holds the source of the key for a client without a user.
    connection: KeySource<'static>,
    key: IdempotencyKey,
    fingerprint: Fingerprint,
    parts: AtomicU32,
}

impl Channel {
    /// Finds the channel of that name on this node.
    ///
    /// # Errors
    /// `bad-request`: not a name; `unknown-channel`: no rule matches.
    pub(crate) fn find(backbone: &Arc<Backbone>, name: &str) -> Result<Self, Refusal> {
        let name = ChannelName::new(name)?;
        let (rule, params) = backbone.rule(&name)?;
        Ok(Self::new(backbone.clone(), name, rule, params))
    }

    pub(crate) fn new(backbone: Arc<Backbone>, name: ChannelName, rule: Arc<Rule>, params: Params) -> Self {
        Self {
            figures: backbone.metrics.index_of(&rule),
            backbone,
            name,
            rule,
            params,
            key: None,
        }
    }

    /// Returns the same handle for the handler of a client's `message` that came with a key.
    /// `connection` is the key's source if there is no `user`.
    pub(crate) fn with_key(
        mut self,
        key: Option<IdempotencyKey>,
        user: Option<Arc<str>>,
        connection: KeySource<'static>,
        message: &Message,
    ) -> Self {
        self.key = key.map(|key| {
            Arc::new(ClientKey {
                user,
                connection,
                key,
                fingerprint: Fingerprint::of_message(message, false),
                parts: AtomicU32::new(0),
            })
        });
        self
    }

    /// Returns the channel called `name` on the same node. A handler reaches all other channels
    /// this way. The node calls no handler for it.
    ///
    /// In [`Handler::message`](crate::Handler::message) the channel continues the message's
    /// idempotency key. When a client repeats the message, the channels do not publish the
    /// handler's events again.
    ///
    /// # Errors
    /// `bad-request`: not a name; `unknown-channel`: no rule matches.
    ///
    /// # Examples
    /// ```
    /// use airwave_core::{Channel, Client, Handler, Message, Refusal, Reply};
    ///
    /// struct Jobs;
    ///
    /// impl Handler for Jobs {
    ///     async fn message(&self, _: &Client, job: &Channel, _: Message) -> Result<Reply, Refusal> {
    ///         job.publish("started", &true).await?;
    ///         job.other("jobs/list")?.publish("job", job.name().as_str()).await?;
    ///         Ok(Reply::done())
    ///     }
    /// }
    /// ```
    pub fn other(&self, name: &str) -> Result<Channel, Refusal> {
        let other = Self::find(&self.backbone, name)?;
        Ok(Self {
            key: self.key.clone(),
            ..other
        })
    }

    /// Returns the channel's name.
    pub fn name(&self) -> &ChannelName {
        &self.name
    }

    /// Returns the rule that the channel follows.
    pub fn rule(&self) -> &Rule {
        &self.rule
    }

    /// Returns the value of a parameter of the pattern: `room` of `chat/{room}`. In a handler the
    /// handler's pattern counts, elsewhere the rule's.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.get(name)
    }

    /// Publishes `value` as JSON and waits for the broker's answer. The returned position is a
    /// cursor of this channel.
    ///
    /// # Errors
    /// `bad-request`: the name or value is not acceptable; `too-large`; `ended`: the channel takes
    /// no more; `too-many`: a limit; `unavailable`: it may or may not have happened.
    ///
    /// # Examples
    /// ```
    /// # async fn example(channel: airwave_core::Channel) -> Result<(), airwave_core::Refusal> {
    /// let published = channel.publish("status", "shipped").await?;
    /// println!("listeners behind {} have it", published.position);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn publish<T: Serialize + ?Sized>(&self, event: &str, value: &T) -> Result<Published, Refusal> {
        self.append(Message::json_of(event, value).map(Append::new)?).await
    }

    /// Publishes with options: under a key, once under an idempotency key, as text or as bytes,
    /// with the end of the channel behind it.
    ///
    /// # Errors
    /// As for [`Channel::publish`]; `bad-request` as well for a key that is not acceptable.
    ///
    /// # Examples
    /// ```
    /// use airwave_core::{Channel, Publish, Refusal};
    ///
    /// async fn quote(prices: &Channel, symbol: &str, cents: u32) -> Result<(), Refusal> {
    ///     prices.publish_with(Publish::json("quote", &cents).key(symbol)).await?;
    ///     Ok(())
    /// }
    /// ```
    pub async fn publish_with(&self, publish: Publish) -> Result<Published, Refusal> {
        self.append(publish.build()?).await
    }

    /// Publishes a value of an enum that has a variant for each event, `#[serde(tag = "event",
    /// content = "data")]`.
    ///
    /// # Errors
    /// As for [`Channel::publish`].
    ///
    /// # Examples
    /// ```
    /// use airwave_core::{Channel, Refusal};
    ///
    /// #[derive(serde::Serialize)]
    /// #[serde(tag = "event", content = "data", rename_all = "kebab-case")]
    /// enum OrderEvent {
    ///     Shipped { parcels: u32 },
    /// }
    ///
    /// async fn ship(order: &Channel) -> Result<(), Refusal> {
    ///     order.publish_typed(&OrderEvent::Shipped { parcels: 2 }).await?;
    ///     Ok(())
    /// }
    /// ```
    pub async fn publish_typed<E: Serialize + ?Sized>(&self, event: &E) -> Result<Published, Refusal> {
        self.append(Message::of_typed(event).map(Append::new)?).await
    }

    async fn append(&self, mut append: Append) -> Result<Published, Refusal> {
        if append.message.event.is_fired_by_event_source() {
            warn_of_name(&self.name, &append.message.event);
        }
        if let (None, Some(key)) = (&append.idempotency_key, &self.key) {
            append.idempotency_key = Some(key.next());
        }
        self.backbone.publish(&self.name, self.figures, append).await
    }

    /// Ends the channel. Its listeners receive the end and are let go, and it takes no more events.
    ///
    /// # Errors
    /// `ended` if it has ended already; `unavailable`.
    pub async fn end(&self) -> Result<Published, Refusal> {
        self.append(Append::end()).await
    }

    /// Returns what the broker keeps after `after`, or without it the newest events. The page holds
    /// at most `limit` events, oldest first.
    ///
    /// # Errors
    /// `unavailable`.
    pub async fn history(&self, after: Option<Position>, limit: usize) -> Result<Replay, Refusal> {
        self.page(after, PageLimit::events(limit)).await
    }

    /// Returns a page like [`Channel::history`], with a bound in bytes as well.
    ///
    /// # Errors
    /// `unavailable`.
    pub async fn page(&self, after: Option<Position>, limit: PageLimit) -> Result<Replay, Refusal> {
        let mut page = self.whole_page(after, limit).await?;
        let complete = page.complete;
        // The page leaves hidden events out. The caller goes on from the last event of a page, so
        // the channel reads the next page after a page of hidden events alone.
        while after.is_some() && page.more && page.events.iter().all(|event| event.is_hidden()) {
            let Some(last) = page.events.last() else { break };
            page = self.whole_page(Some(last.position), limit).await?;
        }
        page.complete &= complete;
        page.events.retain(|event| !event.is_hidden());
        Ok(page)
    }

    /// Returns a page that includes the hidden events.
    pub(crate) async fn whole_page(&self, after: Option<Position>, limit: PageLimit) -> Result<Replay, Refusal> {
        self.backbone
            .replay(&self.name, after, limit)
            .await
            .map_err(|error| self.backbone.refusal(&error))
    }
}

/// Warns once of each event name that pages cannot tell from their connection's own events.
fn warn_of_name(channel: &ChannelName, event: &EventName) {
    static WARNED: [AtomicBool; 2] = [const { AtomicBool::new(false) }; 2];
    let warned = &WARNED[usize::from(event.as_str() == "open")];
    if !warned.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            %channel,
            %event,
            "an event has a name that a browser's EventSource fires itself: pages take it for a broken or an opened connection; \
             choose another name (this is said once for each name)"
        );
    }
}

impl Channel {
    /// Returns the channel's current members on all nodes: users in the order of their ids, the
    /// anonymous last. The node asks the directory of members, unless it already follows the
    /// channel's members for a listener.
    ///
    /// # Errors
    /// `bad-request`: the channel's rule says nothing of presence; `unavailable`.
    pub async fn members(&self) -> Result<Vec<Arc<Member>>, Refusal> {
        let presence = self.backbone.presence(&self.name, &self.rule)?;
        let members = presence.members(&self.name).await;
        members.map_err(|error| self.backbone.refusal(&error))
    }
}

impl ClientKey {
    /// Returns a key for the next publish. A repeated message gives the same keys in the same
    /// order.
    fn next(&self) -> ScopedKey {
        let part = self.parts.fetch_add(1, Ordering::Relaxed);
        let source = self.user.as_deref().map_or(self.connection, KeySource::User);
        ScopedKey::client(source, &self.key, part, self.fingerprint)
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").field("name", &self.name).finish_non_exhaustive()
    }
}
