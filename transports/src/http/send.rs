//! `POST /channels/{name}` sends a client's message.

use airwave_core::rule::TransportName;
use airwave_core::{ChannelName, Hub, Refusal};
use axum::body::Body;
use axum::response::Response;
use http::request::Parts;

use super::body::{idempotency_key, json_body};
use crate::envelope;
use crate::request::{check_query, connect_request, json_response};

/// Hands a client's message to the handler, and answers with the handler's reply.
pub(crate) async fn send(hub: &Hub, channel: ChannelName, parts: &mut Parts, body: Body) -> Result<Response, Refusal> {
    check_query(hub, parts, &[])?;
    let limit = hub.limits().message_bytes;
    // Base64 and names need additional room. The message itself is measured again once it has been
    // read.
    let body = json_body(&parts.headers, body, limit * 2).await?;
    let message = envelope::read_sent(&body)?;
    let key = idempotency_key(&parts.headers)?;
    let connection = hub.connect(connect_request(parts, TransportName::HTTP), false)?;
    let reply = hub.request(hub.send(&connection, &channel, message, key)).await?;
    Ok(json_response(
        200,
        format!("{{\"data\":{}}}", envelope::data_as_json(reply.data())),
    ))
}
