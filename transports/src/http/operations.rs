//! Operators ask a node at `/healthz`, `/readyz` and `/metrics`.

use airwave_core::{Hub, Refusal};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::get;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue, VARY};

use crate::accept;
use crate::prometheus::TextFormat;
use crate::request::{check_query, refusal_response};

pub(super) fn routes(hub: Hub) -> Router {
    Router::new()
        .route("/healthz", get(health))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(hub)
}

async fn health(State(hub): State<Hub>, request: Request) -> Response {
    match without_query(&hub, request) {
        Ok(()) => Response::new(Body::from("ok")),
        Err(refusal) => refusal_response(&refusal, None),
    }
}

async fn ready(State(hub): State<Hub>, request: Request) -> Response {
    if let Err(refusal) = without_query(&hub, request) {
        return refusal_response(&refusal, None);
    }
    let (status, text) = match hub.ready().await {
        Ok(()) => (200, "ready\n".to_owned()),
        Err(why) => (503, format!("{why}\n")),
    };
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    response
}

async fn metrics(State(hub): State<Hub>, request: Request) -> Response {
    let format = match accept::prefers_openmetrics(request.headers()) {
        true => TextFormat::OpenMetrics,
        false => TextFormat::Prometheus,
    };
    if let Err(refusal) = without_query(&hub, request) {
        return refusal_response(&refusal, None);
    }
    let mut response = Response::new(Body::from(format.encode(&hub.metrics().read())));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    headers.insert(VARY, HeaderValue::from_static("accept"));
    response
}

fn without_query(hub: &Hub, request: Request) -> Result<(), Refusal> {
    let (parts, _) = request.into_parts();
    check_query(hub, &parts, &[]).inspect_err(|refusal| hub.metrics().refused(refusal.code))
}
