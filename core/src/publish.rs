//! An application publishes a [`Publish`] when an event and a value are not enough.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use crate::broker::Append;
use crate::event::{Data, EventName, IdempotencyKey, Invalid, Key, Message};

/// A `Publish` is one event to publish, with its options, for
/// [`Channel::publish_with`](crate::Channel::publish_with).
///
/// A chain needs no `?`. It keeps the first value that is not acceptable, and
/// [`Channel::publish_with`](crate::Channel::publish_with) refuses that value as `bad-request`.
///
/// # Examples
/// ```
/// use airwave_core::{Channel, Publish, Refusal};
/// use serde_json::json;
///
/// async fn ship(order: &Channel) -> Result<(), Refusal> {
///     // Of the events of one key, a rule that delivers the `latest` shows a listener the newest.
///     order.publish_with(Publish::json("place", &json!({"lat": 1.5})).key("van-7")).await?;
///     // The broker appends it once, however often it is repeated within two minutes.
///     let arrived = Publish::text("arrived", "at the door").idempotency_key("arrival-81");
///     order.publish_with(arrived.and_end()).await?;
///     Ok(())
/// }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is published before `Channel::publish_with` is awaited"]
pub struct Publish(Result<Append, Invalid>);

impl Publish {
    /// Publishes `value` as JSON.
    pub fn json<T: Serialize + ?Sized>(event: &str, value: &T) -> Self {
        Self::of(Message::json_of(event, value))
    }

    /// Publishes a text.
    pub fn text(event: &str, text: impl Into<Arc<str>>) -> Self {
        Self::of(EventName::new(event).map(|event| Message::new(event, Data::text(text))))
    }

    /// Publishes bytes.
    pub fn binary(event: &str, bytes: impl Into<Bytes>) -> Self {
        Self::of(EventName::new(event).map(|event| Message::new(event, Data::binary(bytes))))
    }

    /// Publishes a value of an enum that has a variant for each event,
    /// `#[serde(tag = "event", content = "data")]`.
    pub fn typed<E: Serialize + ?Sized>(event: &E) -> Self {
        Self::of(Message::of_typed(event))
    }

    /// Publishes a message that exists already: one that a client sent, for example.
    pub fn message(message: Message) -> Self {
        Self(Ok(Append::new(message)))
    }

    /// Ends the channel, without an event before the end.
    pub fn end() -> Self {
        Self(Ok(Append::end()))
    }

    /// Publishes under a key. Where the rule delivers the `latest`, a listener that is behind gets
    /// only the newest event of each key.
    pub fn key(self, key: &str) -> Self {
        self.and_then(|append| {
            append.message.key = Some(Key::new(key)?);
            Ok(())
        })
    }

    /// Adds an attribute: a name and a text that stand beside the payload, for example
    /// `content-type` and `text/markdown`.
    pub fn attribute(self, name: &str, value: &str) -> Self {
        self.and_then(|append| {
            append.message.attributes = std::mem::take(&mut append.message.attributes).with(name, value)?;
            Ok(())
        })
    }

    /// Makes it harmless to repeat this publish. Within
    /// [`IDEMPOTENCY_WINDOW`](crate::broker::IDEMPOTENCY_WINDOW) the broker appends nothing more
    /// under the same idempotency key and gives the first position again.
    pub fn idempotency_key(self, key: &str) -> Self {
        self.and_then(|append| {
            append.idempotency_key = Some(IdempotencyKey::new(key)?.into());
            Ok(())
        })
    }

    /// Ends the channel right behind the event. Both happen, or neither does.
    pub fn and_end(self) -> Self {
        self.and_then(|append| {
            append.and_end = true;
            Ok(())
        })
    }

    /// Returns the append that a node asks of its broker.
    ///
    /// # Errors
    /// The first value of the chain that is not acceptable.
    pub fn build(self) -> Result<Append, Invalid> {
        self.0
    }

    fn of(message: Result<Message, Invalid>) -> Self {
        Self(message.map(Append::new))
    }

    /// Sets an option, unless an earlier value was not acceptable.
    fn and_then(self, set: impl FnOnce(&mut Append) -> Result<(), Invalid>) -> Self {
        Self(self.0.and_then(|mut append| {
            set(&mut append)?;
            Ok(append)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_sets_each_option() {
        let append = Publish::json("moved", &7)
            .key("van")
            .idempotency_key("once")
            .and_end()
            .build()
            .unwrap();
        assert_eq!(
            append.message,
            Message::json_of("moved", &7).unwrap().with_key(Key::new("van").unwrap())
        );
        assert_eq!(append.idempotency_key, Some(IdempotencyKey::new("once").unwrap().into()));
        assert!(append.and_end);
        let append = Publish::text("t", "x")
            .attribute("b", "2")
            .attribute("a", "1")
            .build()
            .unwrap();
        assert_eq!(append.message.attributes.iter().collect::<Vec<_>>(), [("a", "1"), ("b", "2")]);
        assert!(Publish::text("t", "x").attribute("airwave.a", "1").build().is_err());
        assert!(Publish::end().build().unwrap().is_end());
        assert_eq!(
            Publish::binary("b", vec![1]).build().unwrap().message.data,
            Data::binary(vec![1])
        );
        assert_eq!(Publish::text("t", "x").build().unwrap().message.data, Data::text("x"));
    }

    #[test]
    fn the_first_unacceptable_value_is_what_is_refused() {
        let of_event = EventName::new("airwave.end").unwrap_err();
        let of_key = Key::new("").unwrap_err();
        assert_eq!(Publish::text("airwave.end", "x").key("").build().unwrap_err(), of_event);
        assert_eq!(
            Publish::text("t", "x")
                .key("")
                .idempotency_key("")
                .and_end()
                .build()
                .unwrap_err(),
            of_key
        );
        assert!(Publish::json("t", &f64::NAN.to_bits()).build().is_ok());
    }
}
