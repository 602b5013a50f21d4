//! Each channel has one URL, and the router asks each transport whether a request is its own.

use std::sync::Arc;

use airwave_core::hub::FormatError;
use airwave_core::{ChannelName, Hub, Refusal};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware;
use axum::response::Response;
use axum::routing::any;
use http::header::{ALLOW, HeaderValue};
use http::request::Parts;
use http::{Method, StatusCode};

use crate::cors::guard_origin;
use crate::pages::Pages;
use crate::request::{Options, channel_name, path_as_seen, refusal_response};
use crate::transport::{ChannelRequest, Transport};
use crate::{http as plain, sse, websocket};

#[derive(Clone)]
struct App {
    hub: Hub,
    transports: Arc<[Arc<dyn Transport>]>,
    pages: Arc<Pages>,
}

/// Returns the transports that come with Airwave, in the order in which the router asks them.
///
/// # Errors
/// Those of [`Hub::register_format`], with which they register their formats.
pub fn standard(hub: &Hub) -> Result<Vec<Arc<dyn Transport>>, FormatError> {
    Ok(vec![Arc::new(websocket::WebSocket::new(hub)?), Arc::new(sse::Sse::new(hub)?)])
}

/// Returns all routes, which the caller can nest under any prefix.
pub fn router(hub: Hub, options: Options, transports: Vec<Arc<dyn Transport>>) -> Router {
    let options = Arc::new(options);
    let mut router = plain::routes(hub.clone(), options.clone());
    for transport in &transports {
        router = router.merge(transport.routes(hub.clone()));
    }
    let guard = (hub.clone(), options);
    let app = App {
        hub,
        transports: transports.into(),
        pages: Arc::default(),
    };
    let channels = Router::new().route("/channels/{*name}", any(channel)).with_state(app);
    router
        .merge(channels)
        .layer(middleware::from_fn_with_state(guard, guard_origin))
}

async fn channel(State(app): State<App>, request: Request) -> Response {
    let method = request.method().clone();
    let (mut parts, body) = request.into_parts();
    let channel = name_in_path(&parts);
    if let Some(transport) = app.transports.iter().find(|transport| transport.wants(&parts)) {
        // A WebSocket over HTTP/2 is a CONNECT (RFC 8441); everything else that listens is a GET.
        if method == Method::GET || method == Method::HEAD || method == Method::CONNECT {
            return transport.listen(&app.hub, ChannelRequest::new(channel, parts, body)).await;
        }
    }
    let result = match (channel, method) {
        (Err(refusal), _) => Err(refusal),
        (Ok(channel), Method::GET | Method::HEAD) => {
            let names: Vec<_> = app.transports.iter().map(|transport| transport.name()).collect();
            plain::history(&app.hub, &app.pages, &names, channel, &mut parts).await
        }
        (Ok(_), Method::POST) if plain::is_encoded(&parts.headers) => Ok(plain::coding_refused(&app.hub)),
        (Ok(channel), Method::POST) => plain::send(&app.hub, channel, &mut parts, body).await,
        (Ok(_), _) => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            response
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST"));
            Ok(response)
        }
    };
    result.unwrap_or_else(|refusal| {
        app.hub.metrics().refused(refusal.code);
        refusal_response(&refusal, Some(&path_as_seen(&parts)))
    })
}

/// Returns the channel's name from the path. The router strips any prefix under which it is nested,
/// so the name is all that follows `/channels/`.
fn name_in_path(parts: &Parts) -> Result<ChannelName, Refusal> {
    let path = parts.uri.path();
    let name = path.strip_prefix("/channels/").unwrap_or(path);
    let decoded = percent_encoding::percent_decode_str(name).decode_utf8();
    channel_name(&decoded.map_err(|_| Refusal::bad_request("the channel's name in the path is not UTF-8"))?)
}
