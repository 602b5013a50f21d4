//! The directory: entering, listing and watching members, and the heartbeats of nodes. How all of
//! it is stored: `members`.

use std::sync::PoisonError;

use airwave_core::directory::{Heartbeat, MemberEntry, NODE_EXPIRES, NodeId, Watch};
use airwave_core::shrink::shrink;
use airwave_core::{BrokerError, ChannelName, Directory};
use async_trait::async_trait;
use redis::{Cmd, Value};
use tokio::time::{Duration, Instant, timeout};

use super::Redis;
use super::errors::{broke_meanwhile, late, not_ours};
use super::members::{encode, field, listed_entry, stored};
use super::scripts::Script;
use super::times::{HEAD_LIVES, LONGEST, millis};
use super::values::strings;

/// How much a node does for the dead with each heartbeat.
const EXPIRE_FOR: Duration = Duration::from_millis(700);
const BURY_AT_ONCE: usize = 100;

impl Redis {
    /// The channel beside which the list of leases is kept: any name does, since a key says what it
    /// is of behind the name.
    fn leases() -> Result<ChannelName, BrokerError> {
        ChannelName::new("nodes").map_err(|error| BrokerError::rejected(error.to_string()))
    }

    async fn ask_leases(&self, what: &str, key: &str, arguments: impl Fn(&mut Cmd) + Send + Sync) -> Result<Value, BrokerError> {
        self.ask_beside_leases(Script::LEASES, what, key, arguments).await
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
        self.ask_beside_leases(Script::ENTER, "enter", &format!("of:{node}"), |call| {
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
                    let expire = self.script(&channel, Script::LEASES, |call, _| {
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
            let answer = self.script(channel, Script::MEMBERS, |call, _| {
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
                .script(channel, Script::LEASES, |call, _| {
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
            let listener = self.join(channel).await?;
            listener.watch().ok_or_else(broke_meanwhile)
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
            self.ask_beside_leases(Script::ENTER, "register", "beats", |call| {
                call.arg(node.to_string());
            })
            .await?;
            (_, living, dead, _) = ask().await?;
        }
        let heartbeat = Heartbeat::new(known, nodes(living).ok_or_else(wrong_leases)?);
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
    strings(answer)?
        .into_iter()
        .map(|bytes| String::from_utf8(bytes).ok())
        .collect()
}

fn nodes(answer: Value) -> Option<Vec<NodeId>> {
    // A name in another form is a node of a later version.
    Some(texts(answer)?.iter().filter_map(|text| text.parse().ok()).collect())
}
