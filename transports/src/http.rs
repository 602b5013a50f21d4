//! This module serves plain HTTP: backends publish, SSE clients send, pages read history, operators
//! check the node.

mod authorize;
mod body;
mod history;
mod operations;
mod publish;
mod send;

use std::sync::Arc;

use airwave_core::Hub;
use axum::Router;

pub(crate) use body::{coding_refused, is_encoded};
pub(crate) use history::history;
pub(crate) use send::send;

use crate::request::Options;

/// Returns the routes beside the channels' URLs.
pub(crate) fn routes(hub: Hub, options: Arc<Options>) -> Router {
    operations::routes(hub.clone()).merge(publish::routes(hub, options))
}
