//! A follower holds an `Unhealed` for a channel that cannot be healed. The node's [`Outage`] counts
//! these channels.
//!
//! [`Outage`]: crate::outage::Outage

use std::sync::Arc;

use tokio::time::Instant;

use crate::backbone::Backbone;
use crate::broker::BrokerError;
use crate::event::ChannelName;
use crate::outage::Troubled;

/// This guard stands for one channel that cannot be healed. Dropping it says that this is over.
pub(crate) struct Unhealed(Arc<Backbone>);

impl Unhealed {
    /// Records that the first try to heal this channel has failed.
    pub(crate) fn begin(backbone: &Arc<Backbone>, channel: &ChannelName, error: &BrokerError) -> Self {
        let first = {
            let mut troubled = backbone.outage.lock();
            troubled.now += 1;
            troubled.in_all += 1;
            backbone.metrics.healing.set(troubled.now as i64);
            let first = troubled.since.is_none();
            troubled.since.get_or_insert_with(Instant::now);
            first
        };
        if first {
            tracing::warn!(%channel, %error, "cannot heal yet; this and every other channel is tried until it can be, and then summed up");
        }
        let unhealed = Self(backbone.clone());
        unhealed.again(channel, error);
        unhealed
    }

    /// Records that one more try has failed.
    pub(crate) fn again(&self, channel: &ChannelName, error: &BrokerError) {
        self.0.outage.lock().tries += 1;
        tracing::debug!(%channel, %error, "cannot heal yet");
    }
}

impl Drop for Unhealed {
    fn drop(&mut self) {
        let over = {
            let mut troubled = self.0.outage.lock();
            troubled.now -= 1;
            self.0.metrics.healing.set(troubled.now as i64);
            (troubled.now == 0).then(|| std::mem::take(&mut *troubled))
        };
        if let Some(Troubled {
            since: Some(since),
            in_all,
            tries,
            ..
        }) = over
        {
            let seconds = since.elapsed().as_secs_f64();
            tracing::info!(
                channels = in_all,
                tries,
                seconds,
                "what could not be healed is healed, or closed"
            );
        }
    }
}
