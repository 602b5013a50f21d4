//! This module decides whether a client may send a message, and who receives the message.

use std::sync::Arc;

use super::{Admission, Admitted, Connection, KeyOwner};
use crate::broker::IDEMPOTENCY_WINDOW;
use crate::event::{ChannelName, IdempotencyKey, Message};
use crate::handler::Reply;
use crate::idempotency::KeySource;
use crate::publish::Publish;
use crate::refusal::{Code, Refusal};
use crate::rule::{SendPolicy, TransportName};

impl Admission {
    /// Implements [`Hub::send`](crate::Hub::send).
    pub(crate) async fn send(
        &self,
        connection: &Connection,
        name: &ChannelName,
        message: Message,
        key: Option<IdempotencyKey>,
    ) -> Result<Reply, Refusal> {
        let admitted = self.admit_sender(connection, name, &message).await?;
        if self.requires_subscription(&admitted, name)? {
            self.ask_to_subscribe(&admitted).await?;
        }
        self.deliver(connection, admitted, message, key).await
    }

    /// Implements [`Hub::send_from_listener`](crate::Hub::send_from_listener).
    pub(crate) async fn send_from_listener(
        &self,
        connection: &Connection,
        listens: bool,
        name: &ChannelName,
        message: Message,
        key: Option<IdempotencyKey>,
    ) -> Result<Reply, Refusal> {
        let admitted = self.admit_sender(connection, name, &message).await?;
        if !listens && self.requires_subscription(&admitted, name)? {
            // The sender receives here the refusals that subscribing would give.
            self.admit_listener(connection, name).await?;
            if self.logs.has_ended(name) {
                return Err(Refusal::new(Code::Ended, "the channel has ended"));
            }
            return Err(Refusal::forbidden(
                "subscribe to this channel first: a message needs an open subscription of its connection",
            ));
        }
        self.deliver(connection, admitted, message, key).await
    }

    /// Checks whether the client may send this message to the channel at all.
    async fn admit_sender(&self, connection: &Connection, name: &ChannelName, message: &Message) -> Result<Admitted, Refusal> {
        let weight = message.weight();
        let limit = self.backbone.limits.message_bytes;
        if weight > limit {
            return Err(Refusal::new(
                Code::TooLarge,
                format!("the message has {weight} bytes; at most {limit} are allowed"),
            ));
        }
        if message.event.is_fired_by_event_source() {
            return Err(Refusal::bad_request(format!(
                "a client cannot send an event named '{}': a browser's EventSource fires events of that name itself, so choose another",
                message.event
            )));
        }
        let admitted = self.admit(connection, name).await?;
        self.count_if_http(connection, &admitted)?;
        if admitted.handler.is_none() && admitted.rule.send == SendPolicy::Publish {
            self.count_name(connection.peer, name)?;
        }
        match (&admitted.handler, admitted.rule.send) {
            (_, SendPolicy::Refuse) => Err(Refusal::forbidden("this channel takes no messages from clients")),
            (None, SendPolicy::Handler) => Err(Refusal::forbidden(
                "this channel takes no messages from clients: no handler is registered for it (send = \"publish\" in its rule would publish them)",
            )),
            (Some(_), _) | (None, SendPolicy::Publish) => Ok(admitted),
        }
    }

    fn requires_subscription(&self, admitted: &Admitted, name: &ChannelName) -> Result<bool, Refusal> {
        match &admitted.handler {
            Some(handler) => self
                .call("requires_subscription", name, None)
                .run(|| handler.requires_subscription()),
            None => Ok(true),
        }
    }

    /// Gives the message to the handler, or publishes it where the channel has no handler.
    async fn deliver(
        &self,
        connection: &Connection,
        admitted: Admitted,
        message: Message,
        key: Option<IdempotencyKey>,
    ) -> Result<Reply, Refusal> {
        let user = admitted.client.user_id().filter(|user| !user.is_empty()).cloned();
        if key.is_some() {
            self.count_key(connection, user.as_ref())?;
        }
        let channel = admitted.channel.with_key(key, user, self.key_source(connection), &message);
        match admitted.handler {
            Some(handler) => {
                let event = message.event.clone();
                let call = self.call("message", channel.name(), Some(event.as_str()));
                call.answer(call.wait(|| handler.message(&admitted.client, &channel, message)).await?)
            }
            None => channel.publish_with(Publish::message(message)).await.map(|_| Reply::done()),
        }
    }

    /// Counts an idempotency key against the client that uses it.
    fn count_key(&self, connection: &Connection, user: Option<&Arc<str>>) -> Result<(), Refusal> {
        let owner = match user {
            Some(user) => KeyOwner::User(user.clone()),
            None => KeyOwner::Address(connection.peer.map(Into::into)),
        };
        let limit = self.backbone.limits.idempotency_keys_per_client;
        if self.keys.take(owner, limit) {
            return Ok(());
        }
        Err(Refusal::new(
            Code::TooMany,
            format!(
                "{limit} messages with an idempotency key within {} seconds (limits.idempotency_keys_per_client): send it later, or without one",
                IDEMPOTENCY_WINDOW.as_secs()
            ),
        ))
    }

    /// Returns the source to which the idempotency keys of a connection without a user belong.
    fn key_source(&self, connection: &Connection) -> KeySource<'static> {
        if connection.transport == TransportName::HTTP {
            KeySource::Address(connection.peer.map(Into::into))
        } else {
            KeySource::Connection(self.node, connection.id)
        }
    }
}
