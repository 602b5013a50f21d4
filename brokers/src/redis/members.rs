//! Who is in a channel: the entries of each channel in a hash of its own, the leases of the nodes
//! in one place, and the word of changes by the pub/sub channel that carries the channel's events.
//!
//! A hash's fields are `NODE` (25 characters, always) and the member's id, whatever that is; the
//! values an entry's stamp and its value. The list of leases is a sorted set of when each node sent
//! its last heartbeat, by the server's clock, and for each node the set of channels in which it has
//! members: a node that sends a heartbeat and finds another dead removes the dead node's entries.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use airwave_core::directory::{Heartbeat, MemberEntry, NODE_EXPIRES, NodeId, Watch};
use airwave_core::shrink::shrink;
use airwave_core::{BrokerError, ChannelName, Directory};
use async_trait::async_trait;
use bytes::Bytes;
use redis::{Cmd, Value};
use tokio::time::{Duration, Instant, timeout};

use super::connection::lost;
use super::{HEAD_LIVES, LONGEST, Redis, Script, Servers, late, millis, not_ours};

pub(super) const MEMBERS: &str = include_str!("members.lua");
pub(super) const LEASES: &str = include_str!("leases.lua");
pub(super) const ENTER: &str = include_str!("enter.lua");

const MEMBERS_SCRIPT: Script = Script {
    text: MEMBERS,
    hash: |connected| &connected.members,
    pages: false,
    tells: true,
    own: false,
};

const LEASES_SCRIPT: Script = Script {
    text: LEASES,
    hash: |connected| &connected.leases,
    pages: false,
    tells: false,
    own: false,
};

const ENTER_SCRIPT: Script = Script {
    text: ENTER,
    hash: |connected| &connected.enter,
    pages: false,
    tells: false,
    own: false,
};

/// What a message in pub/sub begins with that tells of members. An event's begins with a digit.
pub(super) const TELLS_OF_MEMBERS: u8 = b'm';

/// How long a node's text is.
const NODE: usize = 25;

/// An entry that is cleared, where the length of its value would stand.
const CLEARED: u16 = u16::MAX;

/// How much a node does for the dead with each heartbeat.
const EXPIRE_FOR: Duration = Duration::from_millis(700);
const BURY_AT_ONCE: usize = 100;

/// How many entries this broker has in each channel, as far as it knows: in which channels each of
/// its lives is to expire.
pub(super) type Registered = Mutex<HashMap<(NodeId, ChannelName), i64>>;

impl Redis {
    /// The channel beside which the list of leases is kept: any name does, since a key says what it
    /// is of behind the name.
    fn leases() -> Result<ChannelName, BrokerError> {
        ChannelName::new("nodes").map_err(|error| BrokerError::rejected(error.to_string()))
    }

    async fn ask_leases(&self, what: &str, key: &str, arguments: impl Fn(&mut Cmd) + Send + Sync) -> Result<Value, BrokerError> {
        self.ask_beside_leases(LEASES_SCRIPT, what, key, arguments).await
    }

    async fn ask_beside_leases(
        &self,
        script: Script,
        what: &str,
        key: &str,
        arguments: impl Fn(&mut Cmd) + Send + Sync,
    ) -> Result<Value, BrokerError> {
        let leases = Self::leases()?;
        let ask = self.script(&leases, script, |call, _| {
            call.arg(1).arg(self.key(&leases, key)).arg(what);
            arguments(call);
        });
        timeout(LONGEST, ask).await.unwrap_or_else(|_| Err(late()))
    }

    /// Writes down, before anything else, that the node has members there.
    async fn enter(&self, node: NodeId, channel: &ChannelName) -> Result<(), BrokerError> {
        let known = {
            let registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
            registered.contains_key(&(node, channel.clone()))
        };
        if known {
            return Ok(());
        }
        self.ask_beside_leases(ENTER_SCRIPT, "enter", &format!("of:{node}"), |call| {
            call.arg(channel.as_str()).arg(millis(HEAD_LIVES));
        })
        .await?;
        let mut registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
        registered.entry((node, channel.clone())).or_default();
        Ok(())
    }

    async fn count(&self, node: NodeId, channel: &ChannelName, more: i64) -> Result<(), BrokerError> {
        let empty = {
            let mut registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
            let key = (node, channel.clone());
            let count = registered.entry(key.clone()).or_default();
            *count += more;
            let empty = *count <= 0;
            if empty {
                registered.remove(&key);
                shrink(&mut *registered);
            }
            empty
        };
        if empty {
            self.ask_leases("exit", &format!("of:{node}"), |call| {
                call.arg(channel.as_str());
            })
            .await?;
        }
        Ok(())
    }

    /// Removes what a dead node has said, as much as there is time for. True: all of it.
    async fn expire(&self, node: &str, until: Instant) -> Result<bool, BrokerError> {
        let of = format!("of:{node}");
        while Instant::now() < until {
            let some = self
                .ask_leases("some", &of, |call| {
                    call.arg(BURY_AT_ONCE);
                })
                .await?;
            let channels = texts(some).ok_or_else(wrong_leases)?;
            if channels.is_empty() {
                self.ask_leases("forget", "beats", |call| {
                    call.arg(node);
                })
                .await?;
                return Ok(true);
            }
            for channel in channels {
                // A text that is no channel name belongs to no channel. It is only taken from the
                // list.
                if let Ok(channel) = ChannelName::new(&channel) {
                    let expire = self.script(&channel, LEASES_SCRIPT, |call, _| {
                        call.arg(1).arg(self.key(&channel, "members")).arg("expire").arg(node);
                    });
                    timeout(LONGEST, expire).await.unwrap_or_else(|_| Err(late()))?;
                }
                self.ask_leases("exit", &of, |call| {
                    call.arg(&channel);
                })
                .await?;
            }
        }
        Ok(false)
    }
}

#[async_trait]
impl Directory for Redis {
    async fn set(&self, channel: &ChannelName, entries: &[MemberEntry]) -> Result<(), BrokerError> {
        let Some(first) = entries.first() else { return Ok(()) };
        let set = async {
            self.enter(first.node, channel).await?;
            let message = encode(entries);
            let answer = self.script(channel, MEMBERS_SCRIPT, |call, _| {
                call.arg(1).arg(self.key(channel, "members"));
                call.arg(self.naming.wire(channel)).arg(self.naming.publish());
                call.arg(millis(HEAD_LIVES)).arg(&message[..]);
                for entry in entries {
                    call.arg(field(entry)).arg(u8::from(entry.value.is_some())).arg(stored(entry));
                }
            });
            match answer.await? {
                Value::Int(more) => self.count(first.node, channel, more).await,
                _ => Err(not_ours(channel)),
            }
        };
        timeout(LONGEST, set).await.unwrap_or_else(|_| Err(late()))
    }

    async fn list(&self, channel: &ChannelName) -> Result<Vec<MemberEntry>, BrokerError> {
        let list = async {
            let listed = self
                .script(channel, LEASES_SCRIPT, |call, _| {
                    call.arg(1).arg(self.key(channel, "members")).arg("list");
                    call.arg(millis(HEAD_LIVES));
                })
                .await?;
            let Value::Array(listed) = listed else {
                return Err(not_ours(channel));
            };
            if listed.is_empty() {
                return Ok(Vec::new());
            }
            // Reads the list of leases only now: a node in the list had sent a heartbeat before.
            let living = self
                .ask_leases("living", "beats", |call| {
                    call.arg("").arg(millis(NODE_EXPIRES));
                })
                .await?;
            let living = nodes(living).ok_or_else(wrong_leases)?;
            let mut entries = Vec::with_capacity(listed.len() / 2);
            for pair in listed.chunks_exact(2) {
                let [Value::BulkString(field), Value::BulkString(value)] = pair else {
                    return Err(not_ours(channel));
                };
                // What cannot be read is of a later version, whose members are not told here.
                entries.extend(listed_entry(field, value).filter(|entry| living.contains(&entry.node)));
            }
            Ok(entries)
        };
        timeout(LONGEST, list).await.unwrap_or_else(|_| Err(late()))
    }

    async fn watch(&self, channel: &ChannelName) -> Result<Watch, BrokerError> {
        let watch = async {
            let listener = match &self.servers {
                Servers::One { shard, .. } => shard.listening.join(channel).await?,
                Servers::Cluster(cluster) => cluster.join(channel).await?,
            };
            listener
                .watch()
                .ok_or_else(|| lost("the subscription broke while it was made"))
        };
        timeout(LONGEST, watch).await.unwrap_or_else(|_| Err(late()))
    }

    async fn heartbeat(&self, node: NodeId) -> Result<Heartbeat, BrokerError> {
        let until = Instant::now() + EXPIRE_FOR;
        let ask = async || {
            let answer = self
                .ask_leases("heartbeat", "beats", |call| {
                    call.arg(node.to_string()).arg(millis(NODE_EXPIRES));
                })
                .await?;
            let Value::Array(answer) = answer else {
                return Err(wrong_leases());
            };
            let mut answer = answer.into_iter();
            match (answer.next(), answer.next(), answer.next(), answer.next()) {
                (Some(Value::Int(known)), Some(living), Some(dead), Some(Value::Int(there))) => {
                    Ok((known == 1, living, dead, there == 1))
                }
                _ => Err(wrong_leases()),
            }
        };
        let (known, mut living, mut dead, there) = ask().await?;
        if !there {
            self.ask_beside_leases(ENTER_SCRIPT, "register", "beats", |call| {
                call.arg(node.to_string());
            })
            .await?;
            (_, living, dead, _) = ask().await?;
        }
        let heartbeat = Heartbeat {
            known,
            living: nodes(living).ok_or_else(wrong_leases)?,
        };
        for dead in texts(dead).ok_or_else(wrong_leases)? {
            match timeout(EXPIRE_FOR, self.expire(&dead, until)).await {
                Ok(Ok(true)) => tracing::debug!(node = dead, "what a dead node had said is removed"),
                // The next heartbeat goes on with it, this node's or another's.
                Ok(Ok(false) | Err(_)) | Err(_) => break,
            }
        }
        Ok(heartbeat)
    }

    async fn leave(&self, node: NodeId) -> Result<(), BrokerError> {
        let name = node.to_string();
        self.ask_leases("leave", "beats", |call| {
            call.arg(&name);
        })
        .await?;
        {
            let mut registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
            registered.retain(|(other, _), _| *other != node);
            shrink(&mut *registered);
        }
        self.expire(&name, Instant::now() + EXPIRE_FOR).await.map(|_| ())
    }
}

/// Something else writes to our keys, or a later version of this program did.
fn wrong_leases() -> BrokerError {
    BrokerError::unavailable("the keys of the nodes' leases hold what Airwave did not write there: give it a database of its own")
}

fn texts(answer: Value) -> Option<Vec<String>> {
    super::strings(answer)?
        .into_iter()
        .map(|bytes| String::from_utf8(bytes).ok())
        .collect()
}

fn nodes(answer: Value) -> Option<Vec<NodeId>> {
    // A name in another form is a node of a later version.
    Some(texts(answer)?.iter().filter_map(|text| text.parse().ok()).collect())
}

fn field(entry: &MemberEntry) -> Vec<u8> {
    let mut field = entry.node.to_string().into_bytes();
    field.extend_from_slice(entry.member.as_bytes());
    field
}

fn stored(entry: &MemberEntry) -> Vec<u8> {
    let mut stored = entry.stamp.to_be_bytes().to_vec();
    stored.extend_from_slice(entry.value.as_deref().unwrap_or_default());
    stored
}

fn listed_entry(field: &[u8], value: &[u8]) -> Option<MemberEntry> {
    let (node, member) = field.split_at_checked(NODE)?;
    let (stamp, value) = value.split_first_chunk::<8>()?;
    Some(MemberEntry {
        node: std::str::from_utf8(node).ok()?.parse().ok()?,
        member: std::str::from_utf8(member).ok()?.into(),
        stamp: u64::from_be_bytes(*stamp),
        value: Some(Bytes::copy_from_slice(value)),
    })
}

/// Entries as one message: `m`, and for each its node, stamp, member and value, with their lengths
/// before them.
fn encode(entries: &[MemberEntry]) -> Vec<u8> {
    let mut message = vec![TELLS_OF_MEMBERS];
    for entry in entries {
        message.extend_from_slice(entry.node.to_string().as_bytes());
        message.extend_from_slice(&entry.stamp.to_be_bytes());
        // At most 255 bytes, and at most 2 KiB.
        message.push(entry.member.len() as u8);
        message.extend_from_slice(entry.member.as_bytes());
        let length = entry.value.as_ref().map_or(CLEARED, |value| value.len() as u16);
        message.extend_from_slice(&length.to_be_bytes());
        message.extend_from_slice(entry.value.as_deref().unwrap_or_default());
    }
    message
}

/// `None`: it is not one of ours.
pub(super) fn decode(message: &[u8]) -> Option<Vec<MemberEntry>> {
    let (&TELLS_OF_MEMBERS, mut rest) = message.split_first()? else {
        return None;
    };
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let mut take = |count: usize| {
            let (taken, left) = rest.split_at_checked(count)?;
            rest = left;
            Some(taken)
        };
        let node = std::str::from_utf8(take(NODE)?).ok()?.parse().ok()?;
        let stamp = u64::from_be_bytes(take(8)?.try_into().ok()?);
        let length = usize::from(*take(1)?.first()?);
        let member: Arc<str> = std::str::from_utf8(take(length)?).ok()?.into();
        let value = match u16::from_be_bytes(take(2)?.try_into().ok()?) {
            CLEARED => None,
            length => Some(Bytes::copy_from_slice(take(length.into())?)),
        };
        entries.push(MemberEntry {
            node,
            member,
            stamp,
            value,
        });
    }
    Some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_as_they_were() {
        let node = NodeId::draw().next();
        let entry = |member: &str, value: Option<&[u8]>| MemberEntry {
            node,
            member: member.into(),
            stamp: u64::MAX - 1,
            value: value.map(Bytes::copy_from_slice),
        };
        let long = "\0".repeat(255);
        let entries = [
            entry("", Some(b"")),
            entry("é*?[a]{}", None),
            entry(&long, Some(&[255; 2048])),
        ];
        let message = encode(&entries);
        assert_eq!(decode(&message).unwrap(), entries);
        for length in 0..message.len() {
            let whole = decode(&message[..length]).is_none_or(|part| entries.starts_with(&part));
            assert!(whole, "the first {length} bytes of it");
        }
        for entry in entries.iter().filter(|entry| entry.value.is_some()) {
            assert_eq!(listed_entry(&field(entry), &stored(entry)).as_ref(), Some(entry));
        }
        assert_eq!((listed_entry(b"short", &[0; 8]), decode(b"1:2:t")), (None, None));
    }
}
