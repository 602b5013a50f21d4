//! The stream of the events: making it, judging one that is there, and sending it ahead of what it
//! gave before.

use std::sync::atomic::Ordering;
use std::time::Duration;

use airwave_core::BrokerError;
use airwave_core::broker::IDEMPOTENCY_WINDOW;
use async_nats::HeaderMap;
use bytes::Bytes;
use serde_json::{Value, json};

use super::clock::time_of;
use super::connection::Connection;
use super::errors::{NatsConnectError, code, unstored};
use super::kept;
use super::link::{Answer, Link, SERVER_TIME};
use crate::reconnect::Disconnected;

/// The head outlives the history by far, so that a quiet channel keeps its chain and a listener its
/// cursor.
const HEAD_LIVES: Duration = Duration::from_secs(30 * 24 * 3600);

impl Connection {
    /// Whether JetStream is there and our stream is what it must be; makes it if it is missing.
    pub(super) async fn examine(&self, link: &Link) -> Result<(), NatsConnectError> {
        match link.api("INFO".into(), &Value::Null).await {
            Ok(Answer::Done(_)) => {}
            Ok(Answer::Refused { code, text }) if code::NOT_ENABLED.contains(&code) => {
                return Err(self.unusable(format!(
                    "JetStream is not enabled for this account ({text}); enable it in the account's configuration"
                )));
            }
            Ok(Answer::Refused { text, .. }) => return Err(self.unreachable(text)),
            Err(_) if link.dead.is() && !link.client.server_info().jetstream => {
                return Err(
                    self.unusable("it has no JetStream; start it with -js, or write jetstream {} into its configuration".into())
                );
            }
            Err(error) => return Err(self.unreachable(error.message)),
        }
        let name = &self.settings.prefix;
        for _ in 0..3 {
            match self.info(link).await? {
                Some(info) => return self.judge(link, &info).await,
                None => {
                    let mut wanted = self.wanted();
                    let now = server_time(link).await.unwrap_or_else(|| self.now());
                    wanted["first_seq"] = now.max(self.highest() + 1).into();
                    tracing::info!(server = %self.settings, stream = name, "making the stream");
                    match self.reached(link.api(format!("STREAM.CREATE.{name}"), &wanted).await)? {
                        // Or another node was faster.
                        Answer::Done(_)
                        | Answer::Refused {
                            code: code::NAME_TAKEN, ..
                        } => {}
                        Answer::Refused {
                            code: code::SUBJECTS_TAKEN,
                            ..
                        } => {
                            return Err(self.unusable(format!(
                                "another stream takes the subjects {name}.log.>; delete that one, or choose another prefix (?prefix=NAME in the broker's URL)"
                            )));
                        }
                        Answer::Refused { text, .. } => return Err(self.not_made(&text)),
                    }
                }
            }
        }
        Err(self.unreachable("the stream comes and goes"))
    }

    async fn info(&self, link: &Link) -> Result<Option<Value>, NatsConnectError> {
        match self.reached(link.api(format!("STREAM.INFO.{}", self.settings.prefix), &Value::Null).await)? {
            Answer::Done(info) => Ok(Some(info)),
            Answer::Refused {
                code: code::NO_SUCH_STREAM,
                ..
            } => Ok(None),
            Answer::Refused { text, .. } => Err(self.unreachable(text)),
        }
    }

    fn not_made(&self, text: &str) -> NatsConnectError {
        let (name, replicas, storage) = (&self.settings.prefix, self.settings.replicas, self.settings.storage);
        self.unusable(format!(
            "it does not make or change the stream {name} with replicas={replicas} and storage={storage} ({text}); give it as many servers \
             and as much room as that takes, or write other replicas into the broker's URL"
        ))
    }

    /// The stream as the rules want it. What differs between channels is done by us; this is the
    /// most that any of them keeps.
    fn wanted(&self) -> Value {
        let histories = self.rules.iter().map(|rule| rule.history).chain([Default::default()]);
        let (events, age) = histories.fold((0, Duration::ZERO), |(events, age), history| {
            (history.events.max(events), history.age.max(age))
        });
        let century = Duration::from_secs(100 * 365 * 24 * 3600);
        let nanos = |duration: Duration| u64::try_from(duration.min(century).as_nanos()).unwrap_or(u64::MAX);
        let settings = &self.settings;
        // The newest of a channel is its head: that outlives its history.
        let lives = HEAD_LIVES.max(age.saturating_mul(2));
        let lives = settings.tuning.head_lives.unwrap_or(lives);
        let prefix = &settings.prefix;
        let mut metadata = json!({ "airwave-format": "1" });
        if let Some(kept) = kept::with_ours(&Value::Null, &self.rules) {
            metadata[kept::KEPT] = kept.into();
        }
        json!({
            "name": prefix,
            "description": "Airwave: the events of all channels",
            "subjects": [self.log(">")],
            "retention": "limits",
            "discard": "old",
            "max_consumers": -1,
            "max_msgs": -1,
            "max_bytes": -1,
            "max_msg_size": -1,
            // One more for a mark.
            "max_msgs_per_subject": events.min(1 << 40) + 1,
            "max_age": nanos(lives),
            "duplicate_window": nanos(IDEMPOTENCY_WINDOW.min(lives)),
            "storage": settings.storage,
            "num_replicas": settings.replicas,
            "allow_direct": true,
            "allow_rollup_hdrs": true,
            "republish": { "src": self.log(">"), "dest": self.live(">") },
            "metadata": metadata,
        })
    }

    async fn judge(&self, link: &Link, info: &Value) -> Result<(), NatsConnectError> {
        let (name, config, wanted) = (&self.settings.prefix, &info["config"], self.wanted());
        self.keeps.store(config["max_age"].as_u64().unwrap_or(0), Ordering::Release);
        let other_format = config["metadata"]["airwave-format"] != wanted["metadata"]["airwave-format"];
        // How much the stream may hold, and what it does when that is reached, is the operator's to
        // say.
        let shape = ["subjects", "retention", "allow_direct", "republish"];
        let foreign = shape.into_iter().find(|what| match *what {
            "republish" => ["src", "dest"]
                .iter()
                .any(|side| config["republish"][side] != wanted["republish"][side]),
            what => config[what] != wanted[what],
        });
        let foreign = foreign.or((other_format).then_some("metadata"));
        if let Some(what) = foreign {
            return Err(self.unusable(format!(
                "its stream {name} is not as Airwave makes it ({what} differs); choose another prefix (?prefix=NAME in the broker's URL), or \
                 delete the stream and all it holds (nats stream rm {name})"
            )));
        }
        if config["storage"] != wanted["storage"] {
            return Err(self.unusable(format!(
                "its stream {name} has the storage {}, which cannot be changed; write storage={} into the broker's URL, or delete the stream \
                 and all it holds (nats stream rm {name})",
                config["storage"].as_str().unwrap_or("?"),
                config["storage"].as_str().unwrap_or("?"),
            )));
        }
        self.kept_by_others.learn(&config["metadata"], &self.rules);
        let sealed = config["sealed"] == true;
        let changed = grown(config, &wanted, kept::with_ours(&config["metadata"], &self.rules));
        if let Some(changed) = changed.filter(|_| !sealed) {
            tracing::info!(server = %self.settings, stream = name, "the stream keeps more from now on, as the rules of this node say");
            match self.reached(link.api(format!("STREAM.UPDATE.{name}"), &changed).await)? {
                Answer::Done(_) => {}
                Answer::Refused { code, text } if code::FULL.contains(&code) => {
                    tracing::warn!(server = %self.settings, stream = name, text, "the stream stays as it is: JetStream is full");
                }
                Answer::Refused { text, .. } => return Err(self.not_made(&text)),
            }
        }
        if sealed {
            return Ok(());
        }
        self.set_forward(link, info).await
    }

    /// A stream in memory begins again at its first number when its servers restart, and gave all
    /// numbers from there before. So one that never held anything since is sent ahead to the clock
    /// ([`count_of_now`]), and so is one that is behind what this node has seen.
    ///
    /// A new one gives its first number away unused. Servers before 2.11.11 that are killed read a
    /// file stream that still begins where it was made as an empty one, and lose all that it held.
    /// Every node that finds it new does so, to the same number: nothing can have been stored below
    /// it.
    async fn set_forward(&self, link: &Link, info: &Value) -> Result<(), NatsConnectError> {
        let (first, last) = (
            info["config"]["first_seq"].as_u64().unwrap_or(0),
            info["state"]["last_seq"].as_u64().unwrap_or(0),
        );
        let new = last < first.max(1);
        let now = count_of_now(info).unwrap_or_else(|| self.now());
        let again = new && info["config"]["storage"] == "memory" && now.saturating_sub(first) > 1_000_000;
        let ahead = if again || last < self.highest() {
            if self.goes_on(link).await? {
                return Ok(());
            }
            tracing::warn!(server = %self.settings, stream = self.settings.prefix, "the stream has lost what it held; it goes on above all it gave");
            now.max(self.highest() + 1)
        } else if new {
            first + 1
        } else {
            return Ok(());
        };
        let subject = format!("STREAM.PURGE.{}", self.settings.prefix);
        match self.reached(link.api(subject, &json!({ "seq": ahead })).await)? {
            Answer::Done(_) => Ok(()),
            Answer::Refused { text, .. } => Err(self.not_made(&text)),
        }
    }

    /// Whether the stream goes on above all that this node knows of, whatever is said of it. A
    /// server that was cut off from the others, or has just been chosen to lead, tells of an older
    /// state than was acknowledged; and to purge the stream then is to lose all that it holds. What
    /// is stored now is stored by most of them, and has its place behind all the rest.
    async fn goes_on(&self, link: &Link) -> Result<bool, NatsConnectError> {
        let before = self.highest();
        if before == 0 {
            return Ok(false);
        }
        let sequence = self.reached(self.store_something(link).await)?;
        Ok(sequence > before)
    }

    /// Stores a message without meaning, and returns its sequence. Most of the servers have it
    /// then. A server that is cut off from them cannot store it.
    pub(super) async fn store_something(&self, link: &Link) -> Result<u64, BrokerError> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Rollup", "sub");
        let subject = self.log(&format!("probe.{}", self.node));
        match link.call(subject, Some(headers), "0".into()).await? {
            Answer::Done(ack) => {
                let sequence = ack["seq"].as_u64().unwrap_or(0);
                self.highest.fetch_max(sequence, Ordering::AcqRel);
                Ok(sequence)
            }
            Answer::Refused { code, text } => Err(unstored(code, &text)),
        }
    }
}

/// The stream's configuration with room for what this node wants, too. `None`: it has that. Limits
/// only grow by themselves: a node with older rules must not take away what newer ones promise. To
/// make them smaller is the operator's part.
fn grown(config: &Value, wanted: &Value, kept: Option<String>) -> Option<Value> {
    let mut changed = config.clone();
    // Below one means without a limit.
    for (what, unlimited) in [
        ("max_msgs_per_subject", true),
        ("max_age", true),
        ("duplicate_window", false),
        ("num_replicas", false),
    ] {
        let (has, wants) = (config[what].as_i64().unwrap_or(0), wanted[what].as_i64().unwrap_or(0));
        if has < wants && !(unlimited && has < 1) {
            changed[what] = wanted[what].clone();
        }
    }
    changed["allow_rollup_hdrs"] = true.into();
    if let Some(kept) = kept {
        changed["metadata"][kept::KEPT] = kept.into();
    }
    (changed != *config).then_some(changed)
}

/// The server's time, so that what one node makes begins above all that another one made before. A
/// node's own clock may be minutes behind that of the node whose stream was lost. `None`: this user
/// may not ask.
async fn server_time(link: &Link) -> Option<u64> {
    // Not to be answered is no sign of a dead connection here.
    let gone = Disconnected::default();
    let asked = link.ask_of(&gone, SERVER_TIME.into(), None, Bytes::new());
    let answer: Value = serde_json::from_slice(&asked.await.ok()?.payload).ok()?;
    time_of(answer["server"]["time"].as_str()?)
}

/// How far the stream would have counted by now if it gave a number each microsecond since it was
/// made, by the server's clock: so every node comes to the same number, above all that the stream
/// gave, whatever its own clock says, and also if a clock that was ahead made it. `None`: the
/// server does not tell the times.
fn count_of_now(info: &Value) -> Option<u64> {
    let time = |what: &str| time_of(info[what].as_str()?);
    let (made, now) = (time("created")?, time("ts")?);
    let first = info["config"]["first_seq"].as_u64().unwrap_or(0);
    Some(first.saturating_add(now.saturating_sub(made)).max(now))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_stream_counts_on_from_its_first_number_by_the_servers_clock() {
        let info = |first: u64, now: &str| {
            json!({
                "config": { "first_seq": first },
                "created": "2026-11-29T16:16:40.000001Z",
                "ts": now,
            })
        };
        let made = time_of("2026-11-29T16:16:40.000001Z").unwrap();
        let (behind, right, ahead) = (made - 120_000_000, made, made + 120_000_000);
        for (first, counted) in [(behind, made + 9), (right, made + 9), (ahead, ahead + 9)] {
            let info = info(first, "2026-11-29T16:16:40.00001Z");
            assert_eq!(count_of_now(&info), Some(counted));
        }
        // The server's clock was set back.
        let info = info(ahead, "2026-11-29T16:16:39Z");
        assert_eq!(count_of_now(&info), Some(ahead));
        assert_eq!(count_of_now(&json!({ "config": { "first_seq": right } })), None);
    }
}
