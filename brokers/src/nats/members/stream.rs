//! The stream of members: its subjects, making it, and judging one that is there.

use serde_json::{Value, json};

use crate::nats::connection::Connection;
use crate::nats::errors::{NatsConnectError, code};
use crate::nats::link::{Answer, Link};

impl Connection {
    pub(super) fn members_stream(&self) -> String {
        format!("{}-members", self.settings.prefix)
    }

    pub(super) fn members(&self, what: &str) -> String {
        format!("{}.members.{what}", self.settings.prefix)
    }

    pub(super) fn changes(&self, what: &str) -> String {
        format!("{}.changes.{what}", self.settings.prefix)
    }

    /// Makes the stream of members if it is missing, and judges one that is there.
    pub(in crate::nats) async fn examine_members(&self, link: &Link, first: bool) -> Result<(), NatsConnectError> {
        let (name, wanted) = (self.members_stream(), self.wanted_members());
        for _ in 0..3 {
            match self.reached(link.api(format!("STREAM.INFO.{name}"), &Value::Null).await)? {
                Answer::Done(info) => return self.judge_members(link, info["config"].clone(), &wanted, first).await,
                Answer::Refused {
                    code: code::NO_SUCH_STREAM,
                    ..
                } => {
                    if self.make_members(link, &wanted, first).await? {
                        return Ok(());
                    }
                }
                Answer::Refused { text, .. } => return Err(self.unreachable(text)),
            }
        }
        Err(self.unreachable("the stream comes and goes"))
    }

    /// The stream's configuration as Airwave makes it.
    fn wanted_members(&self) -> Value {
        json!({
            "name": self.members_stream(),
            "description": "Airwave: who is in which channel",
            "subjects": [self.members(">")],
            "retention": "limits",
            "discard": "old",
            "max_consumers": -1,
            "max_msgs": -1,
            "max_bytes": -1,
            "max_msg_size": -1,
            "max_msgs_per_subject": 1,
            "storage": self.settings.storage,
            "num_replicas": self.settings.replicas,
            "republish": { "src": self.members(">"), "dest": self.changes(">"), "headers_only": true },
            "metadata": { "airwave-format": "1" },
        })
    }

    /// Makes the stream. False: another node was faster.
    ///
    /// A split cluster may say of a stream that exists that it is missing, and lose it by this.
    /// Then the nodes announce all their members again, and no member counts as gone.
    async fn make_members(&self, link: &Link, wanted: &Value, first: bool) -> Result<bool, NatsConnectError> {
        let (name, settings) = (self.members_stream(), &self.settings);
        tracing::info!(server = %settings, stream = name, "making the stream");
        match self.reached(link.api(format!("STREAM.CREATE.{name}"), wanted).await)? {
            Answer::Done(_) => Ok(true),
            Answer::Refused {
                code: code::NAME_TAKEN, ..
            } => Ok(false),
            Answer::Refused {
                code: code::SUBJECTS_TAKEN,
                ..
            } => Err(self.unusable(format!(
                "another stream takes the subjects {}; delete that one, or choose another prefix (?prefix=NAME in the broker's URL)",
                self.members(">")
            ))),
            // Events are served meanwhile. The first caller that needs the members makes it later.
            Answer::Refused { code, text } if first && code::FULL.contains(&code) => {
                tracing::warn!(server = %settings, stream = name, text, "presence waits: JetStream is full");
                Ok(true)
            }
            Answer::Refused { text, .. } => Err(self.members_not_made(&text)),
        }
    }

    /// Refuses a stream that is not as Airwave makes it, and gives it the replicas of the URL.
    async fn judge_members(&self, link: &Link, mut config: Value, wanted: &Value, first: bool) -> Result<(), NatsConnectError> {
        let name = self.members_stream();
        if let Some(what) = differs(&config, wanted) {
            // Nothing in it is worth keeping: nodes say it all again.
            return Err(self.unusable(format!(
                "its stream {name} is not as Airwave makes it ({what} differs); delete it (nats stream rm {name}), or choose another prefix \
                 (?prefix=NAME in the broker's URL)"
            )));
        }
        // As with the events: a node that only comes back changes nothing.
        if first && config["num_replicas"] != wanted["num_replicas"] {
            config["num_replicas"] = wanted["num_replicas"].clone();
            tracing::info!(server = %self.settings, stream = name, "changing the stream's replicas");
            if let Answer::Refused { text, .. } = self.reached(link.api(format!("STREAM.UPDATE.{name}"), &config).await)? {
                return Err(self.members_not_made(&text));
            }
        }
        Ok(())
    }

    fn members_not_made(&self, text: &str) -> NatsConnectError {
        self.unusable(format!(
            "it does not make or change the stream {} with replicas={} and storage={} ({text}); give it as many servers and as much \
             room as that takes, or write other replicas into the broker's URL",
            self.members_stream(),
            self.settings.replicas,
            self.settings.storage
        ))
    }
}

/// What of a stream's configuration Airwave makes otherwise, and cannot do without.
fn differs(config: &Value, wanted: &Value) -> Option<&'static str> {
    let shape = ["subjects", "retention", "max_msgs_per_subject", "storage"];
    let republished = ["src", "dest", "headers_only"];
    let other_republish = republished
        .iter()
        .any(|what| config["republish"][what] != wanted["republish"][what]);
    let forgets = config["max_age"].as_u64().is_some_and(|age| age > 0);
    let other_format = config["metadata"]["airwave-format"] != wanted["metadata"]["airwave-format"];
    shape
        .into_iter()
        .find(|what| config[what] != wanted[what])
        .or(other_republish.then_some("republish"))
        .or(forgets.then_some("max_age"))
        .or(other_format.then_some("metadata"))
}
