//! The list of leases: which nodes live, by the times of the server.

use std::collections::BTreeMap;
use std::time::Duration;

use airwave_core::BrokerError;
use airwave_core::directory::{NODE_EXPIRES, NodeId};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::nats::clock::micros;
use crate::nats::errors::lost;

/// How long a dead node stays in the list of leases. What it was still saying when it was found
/// dead has come by then.
const DEAD_ARE_KEPT: Duration = Duration::from_secs(60);

/// The nodes, and how they stand at times of the server, in µs.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Leases {
    /// The message that it was read from; zero: there is none.
    pub(super) sequence: u64,
    pub(super) nodes: BTreeMap<NodeId, LeaseState>,
    /// Leases of a later version that this one does not understand. They are written back as they
    /// are: every node writes the whole list.
    others: serde_json::Map<String, Value>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum LeaseState {
    /// Its heartbeat was then.
    Heartbeat(u64),
    /// It was found dead or has left then.
    Gone(u64),
}

impl Leases {
    /// `written`: when the server stored it, which is its heartbeat.
    pub(super) fn read(sequence: u64, written: u64, bytes: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(bytes).ok()?;
        let (mut nodes, mut others) = (BTreeMap::new(), serde_json::Map::new());
        for (node, stands) in value["nodes"].as_object()? {
            let known = match (node.parse(), stands[0].as_str(), stands[1].as_u64()) {
                (Ok(node), Some("beat"), Some(at)) => nodes.insert(node, LeaseState::Heartbeat(at)).is_none(),
                (Ok(node), Some("gone"), Some(at)) => nodes.insert(node, LeaseState::Gone(at)).is_none(),
                _ => false,
            };
            if !known {
                others.insert(node.clone(), stands.clone());
            }
        }
        if let Some(Ok(by)) = value["by"].as_str().map(str::parse) {
            nodes.insert(by, LeaseState::Heartbeat(written));
        }
        Some(Self { sequence, nodes, others })
    }

    pub(super) fn text(&self, by: Option<NodeId>) -> Bytes {
        let nodes = self.nodes.iter().map(|(node, stands)| {
            let (what, at) = match stands {
                LeaseState::Heartbeat(at) => ("beat", at),
                LeaseState::Gone(at) => ("gone", at),
            };
            (node.to_string(), json!([what, at]))
        });
        let nodes: serde_json::Map<String, Value> = nodes.chain(self.others.clone()).collect();
        json!({ "by": by.map(|by| by.to_string()), "nodes": nodes })
            .to_string()
            .into()
    }

    /// Marks those that have sent no heartbeat for too long, and names them.
    pub(super) fn judge(&mut self, now: u64) -> Vec<NodeId> {
        let mut dead = Vec::new();
        for (node, stands) in &mut self.nodes {
            if matches!(stands, LeaseState::Heartbeat(at) if now.saturating_sub(*at) > micros(NODE_EXPIRES)) {
                *stands = LeaseState::Gone(now);
                dead.push(*node);
            }
        }
        dead
    }

    pub(super) fn living(&self) -> Vec<NodeId> {
        let living = self
            .nodes
            .iter()
            .filter(|(_, stands)| matches!(stands, LeaseState::Heartbeat(_)));
        living.map(|(node, _)| *node).collect()
    }

    /// Those that were gone long ago.
    pub(super) fn forgotten(&self, now: u64) -> Vec<NodeId> {
        let long_gone =
            |stands: &LeaseState| matches!(stands, LeaseState::Gone(at) if now.saturating_sub(*at) > micros(DEAD_ARE_KEPT));
        let forgotten = self.nodes.iter().filter(|(_, stands)| long_gone(stands));
        forgotten.map(|(node, _)| *node).collect()
    }
}

/// Something else writes to our subjects, or a later version of this program did.
pub(super) fn wrong_leases() -> BrokerError {
    lost("the stream of members holds what Airwave did not write there: give it a prefix or an account of its own")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_has_not_beaten_is_gone_and_in_the_end_forgotten() {
        let (one, other) = (NodeId::draw(), NodeId::draw());
        let mut leases = Leases::default();
        leases.nodes.insert(one, LeaseState::Heartbeat(1));
        leases.nodes.insert(other, LeaseState::Heartbeat(2));
        // The heartbeat of the writer was when the server stored it.
        let mut leases = Leases::read(7, 5_000_000, &leases.text(Some(other))).unwrap();
        assert_eq!((leases.sequence, leases.judge(micros(NODE_EXPIRES) + 1).len()), (7, 0));
        let at = micros(NODE_EXPIRES) + 2;
        assert_eq!(leases.judge(at), [one]);
        assert_eq!((leases.living(), leases.judge(at)), (vec![other], vec![]));
        let again = Leases::read(8, 0, &leases.text(None)).unwrap();
        assert_eq!(again.nodes, leases.nodes);
        assert_eq!(again.forgotten(at + micros(DEAD_ARE_KEPT)), []);
        assert_eq!(again.forgotten(at + micros(DEAD_ARE_KEPT) + 1), [one]);
        assert_eq!(Leases::read(1, 1, b"{}"), None);
    }

    #[test]
    fn leases_of_a_later_version_are_kept_as_they_are() {
        let node = NodeId::draw();
        let written = json!({
            "by": "another form",
            "nodes": { node.to_string(): ["beat", 7], "n2": ["beat", 8], NodeId::draw().to_string(): ["paused", 9, "x"] },
        });
        let leases = Leases::read(7, 5, written.to_string().as_bytes()).unwrap();
        assert_eq!(leases.living(), [node]);
        let again: Value = serde_json::from_slice(&leases.text(None)).unwrap();
        assert_eq!(again["nodes"], written["nodes"]);
    }
}
