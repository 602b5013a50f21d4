//! Unit tests of a node's parts share this module: a broker whose channels stay empty, and a format
//! without bytes.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::broker::{Append, Broker, BrokerError, BrokerStats, Feed, PageLimit, Published, Replay, follow_and_replay};
use crate::event::{ChannelName, Event, Position};
use crate::format::{Format, Notice, Stamp};
use crate::handler::ConnectRequest;
use crate::hub::Hub;
use crate::rule::{Rule, Rules, TransportName};

pub(crate) struct EmptyBroker;

const HEAD: Position = Position(1);

#[async_trait]
impl Broker for EmptyBroker {
    fn name(&self) -> &'static str {
        "empty"
    }

    async fn publish(&self, _: &ChannelName, _: Append) -> Result<Published, BrokerError> {
        Err(BrokerError::unavailable("it takes nothing"))
    }

    async fn follow(&self, _: &ChannelName) -> Result<Feed, BrokerError> {
        Ok(Feed::new(HEAD, || ()).1)
    }

    async fn open(&self, channel: &ChannelName, limit: PageLimit) -> Result<(Feed, Replay), BrokerError> {
        follow_and_replay(self, channel, limit).await
    }

    async fn replay(&self, _: &ChannelName, after: Option<Position>, _: PageLimit) -> Result<Replay, BrokerError> {
        Ok(Replay {
            events: Vec::new(),
            complete: after.is_none_or(|after| after == HEAD),
            more: false,
            head: HEAD,
            ended: false,
        })
    }

    async fn ping(&self) -> Result<(), BrokerError> {
        Ok(())
    }

    fn stats(&self) -> BrokerStats {
        BrokerStats::in_process()
    }
}

/// This format only has a name.
pub(crate) struct Named(pub(crate) &'static str);

impl Format for Named {
    fn name(&self) -> &'static str {
        self.0
    }

    fn event(&self, _: &ChannelName, _: &Event) -> Bytes {
        Bytes::new()
    }

    fn notice(&self, _: &Notice<'_>) -> Bytes {
        Bytes::new()
    }

    fn stamp(&self) -> Option<Stamp> {
        None
    }
}

/// Builds a node on an [`EmptyBroker`] with one rule for every channel.
pub(crate) fn hub() -> Hub {
    let rule = Rule::new("{name}".parse().unwrap(), vec![TransportName::SSE]);
    Hub::builder(Arc::new(EmptyBroker), Rules::new([rule])).build()
}

pub(crate) fn request() -> ConnectRequest {
    ConnectRequest {
        transport: TransportName::SSE,
        peer: None,
        query: String::new(),
        headers: Vec::new(),
    }
}
