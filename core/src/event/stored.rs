//! Messages as brokers store them (docs/reference/stored-format.md).

use bytes::Bytes;

use super::data::Data;
use super::message::Message;
use super::names::{EventName, Key};

impl Message {
    /// Writes the message as brokers store it: [`Data::kind`], the lengths of name and key as two
    /// hexadecimal digits each, name, key, payload.
    pub fn store(&self, into: &mut Vec<u8>) {
        let key = self.key.as_ref().map_or("", |key| key.as_str());
        into.reserve(5 + self.weight());
        into.push(self.data.kind());
        // Both are at most 255 bytes long, and a key is never empty.
        into.extend_from_slice(format!("{:02x}{:02x}", self.event.0.len(), key.len()).as_bytes());
        into.extend_from_slice(self.event.0.as_bytes());
        into.extend_from_slice(key.as_bytes());
        into.extend_from_slice(self.data.as_bytes());
    }

    /// Takes a message back from a broker's store: what [`Message::store`] wrote, up to the end.
    /// `None`: it is not one.
    pub fn from_stored(bytes: &Bytes) -> Option<Self> {
        let length = |digits: &[u8]| {
            let digits = std::str::from_utf8(digits).ok()?;
            // A sign would be taken for one.
            usize::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))
        };
        let (kind, names) = (*bytes.first()?, 5 + length(bytes.get(1..3)?)?);
        let keys = names + length(bytes.get(3..5)?)?;
        let name = std::str::from_utf8(bytes.get(5..names)?).ok()?;
        let key = std::str::from_utf8(bytes.get(names..keys)?).ok()?;
        let key = if key.is_empty() { None } else { Some(Key::new(key).ok()?) };
        Some(Self {
            event: EventName::from_stored(name).ok()?,
            data: Data::from_stored(kind, bytes.slice(keys..)).ok()?,
            key,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_from_a_store_as_they_were() {
        let long = "x".repeat(255);
        for (name, key, data) in [
            ("said", None, Data::text("")),
            ("said", Some("k:1"), Data::text("a:b:c\n")),
            (&long[..], Some(&long[..]), Data::binary(vec![0, 255, b':'])),
            ("s", Some("é"), Data::json_text("[1]").unwrap()),
            ("M", None, Data::text("M")),
        ] {
            let mut message = Message::new(EventName::new(name).unwrap(), data);
            message.key = key.map(|key| Key::new(key).unwrap());
            let mut bytes = Vec::new();
            message.store(&mut bytes);
            assert_eq!(bytes.len(), 5 + message.weight());
            assert_eq!(Message::from_stored(&bytes.into()), Some(message));
        }
        let mut end = Vec::new();
        crate::Append::end().message.store(&mut end);
        assert_eq!(Message::from_stored(&end.into()), Some(crate::Append::end().message));
    }

    #[test]
    fn what_no_broker_stored_is_no_message() {
        let mut whole = Vec::new();
        Message::new(EventName::new("said").unwrap(), Data::text("text")).store(&mut whole);
        let whole = Bytes::from(whole);
        for length in 0..whole.len() - 4 {
            assert_eq!(
                Message::from_stored(&whole.slice(..length)),
                None,
                "the first {length} bytes of one"
            );
        }
        for forged in ["", "t0000", "x0100a", "t0100\n", "tzz00a", "t0101a\n", "t-100a", "t+100a"] {
            assert_eq!(Message::from_stored(&Bytes::from_static(forged.as_bytes())), None, "{forged}");
        }
    }
}
