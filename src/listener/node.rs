//! What all connections of a node share.

use airwave_core::Hub;
use axum::Router;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::serving::Serving;

/// What all connections have in common.
pub(super) struct Node {
    pub(super) hub: Hub,
    pub(super) app: Router,
    /// Answers in place of `app` where no place is left.
    pub(super) refusing: Router,
    pub(super) serving: Serving,
    pub(super) tasks: TaskTracker,
    pub(super) draining: watch::Receiver<bool>,
    pub(super) cutting: watch::Receiver<bool>,
}
