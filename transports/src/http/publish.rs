//! Backends publish one event or an array of events with `POST /publish`.

use std::collections::HashMap;
use std::sync::Arc;

use airwave_core::warnings::Warning;
use airwave_core::{Code, Hub, Publish, Refusal};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::post;
use http::request::Parts;

use super::authorize::authorize;
use super::body::{coding_refused, idempotency_key, is_encoded, json_body};
use crate::envelope::{self, Publication};
use crate::request::{Options, Publishers, check_query, json_response, peer, refusal_response};

const MAX_PUBLICATIONS: usize = 1000;
/// An array may hold many messages, each of which has its own limit.
const PUBLISH_BODY_MESSAGES: usize = 64;

pub(super) fn routes(hub: Hub, options: Arc<Options>) -> Router {
    Router::new().route("/publish", post(publish)).with_state((hub, options))
}

async fn publish(State((hub, options)): State<(Hub, Arc<Options>)>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    if is_encoded(&parts.headers) {
        return coding_refused(&hub);
    }
    match publish_all(&hub, &options, &parts, body).await {
        Ok(response) => response,
        Err(refusal) => {
            hub.metrics().refused(refusal.code);
            refusal_response(&refusal, None)
        }
    }
}

async fn publish_all(hub: &Hub, options: &Options, parts: &Parts, body: Body) -> Result<Response, Refusal> {
    check_query(hub, parts, &[])?;
    authorize(&options.publishers, parts).inspect_err(|refusal| {
        if refusal.code == Code::Unauthorized {
            hub.warn(Warning::WrongToken, peer(parts), "/publish");
        }
    })?;
    if matches!(options.publishers, Publishers::Anybody) {
        hub.count_request(None, peer(parts))?;
    }
    if hub.is_draining() {
        return Err(Refusal::unavailable("this server is going away: publish again"));
    }
    let limit = hub.limits().message_bytes.saturating_mul(PUBLISH_BODY_MESSAGES);
    let body = json_body(&parts.headers, body, limit).await?;
    let key = idempotency_key(&parts.headers)?;
    if body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'[') {
        let mut publication: Publication<'_> = envelope::read(&body)?;
        publication.idempotency_key = publication.idempotency_key.or(key);
        let answer = hub.request(publish_one(hub, publication)).await?;
        return Ok(json_response(200, answer));
    }
    if key.is_some() {
        return Err(Refusal::bad_request(
            "an 'Idempotency-Key' header is for one publication: in an array, give each its own 'idempotency_key'",
        ));
    }
    publish_array(hub, envelope::read(&body)?).await
}

/// Publishes an array, and answers with one item for each publication, in the order of the array.
async fn publish_array(hub: &Hub, publications: Vec<Publication<'_>>) -> Result<Response, Refusal> {
    if publications.is_empty() || publications.len() > MAX_PUBLICATIONS {
        return Err(Refusal::bad_request(format!(
            "an array holds 1 to {MAX_PUBLICATIONS} publications, this one {}",
            publications.len()
        )));
    }
    let answers = publish_each(hub, publications).await;
    let (mut done, mut first_error) = (0, None);
    let mut items = Vec::with_capacity(answers.len());
    for answer in answers {
        items.push(match answer {
            Ok(answer) => {
                done += 1;
                answer
            }
            Err(refusal) => {
                first_error.get_or_insert(refusal.code.http_status());
                format!("{{\"error\":{{{}}}}}", refusal.json_fields(None))
            }
        });
    }
    let status = match first_error {
        None => 200,
        Some(_) if done > 0 => 207,
        Some(status) => status,
    };
    Ok(json_response(status, format!("[{}]", items.join(","))))
}

/// Publishes an array. Channels do not wait for each other: if the broker does not answer, their
/// times do not add up. The answers are in the order of the array.
async fn publish_each(hub: &Hub, publications: Vec<Publication<'_>>) -> Vec<Result<String, Refusal>> {
    let count = publications.len();
    let mut groups: Vec<Vec<(usize, Publication<'_>)>> = Vec::new();
    let mut group_of: HashMap<String, usize> = HashMap::new();
    for (index, publication) in publications.into_iter().enumerate() {
        let group = *group_of.entry(publication.channel.to_string()).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        groups[group].push((index, publication));
    }
    let groups = groups.into_iter().map(|group| hub.request(publish_in_order(hub, group)));
    let mut answers: Vec<_> = futures_util::future::join_all(groups).await.into_iter().flatten().collect();
    debug_assert_eq!(answers.len(), count);
    answers.sort_unstable_by_key(|(index, _)| *index);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

/// Publishes the items of an array for one channel, one after the other. The first in the array is
/// the first in the channel. After a failure that may pass, the node tries nothing more. A caller
/// that repeats the failed items thus keeps their order.
async fn publish_in_order(hub: &Hub, group: Vec<(usize, Publication<'_>)>) -> Vec<(usize, Result<String, Refusal>)> {
    let mut answers = Vec::with_capacity(group.len());
    let mut stopped = false;
    for (index, publication) in group {
        let answer = if stopped {
            Err(Refusal::unavailable(
                "not tried, because an earlier publication to this channel failed: repeat both, in order",
            ))
        } else {
            publish_one(hub, publication).await
        };
        stopped |= answer.as_ref().is_err_and(|refusal| refusal.code == Code::Unavailable);
        answers.push((index, answer));
    }
    answers
}

async fn publish_one(hub: &Hub, mut publication: Publication<'_>) -> Result<String, Refusal> {
    let channel = hub.channel(&publication.channel)?;
    let mut publish = match publication.take_message()? {
        Some(message) => Publish::message(message),
        None => Publish::end(),
    };
    if publication.ends() {
        publish = publish.and_end();
    }
    if let Some(key) = &publication.idempotency_key {
        publish = publish.idempotency_key(key.as_str());
    }
    // The publication is one append: if the broker refuses it, no part of it has happened.
    let published = channel.publish_with(publish).await?;
    Ok(format!(
        "{{\"channel\":\"{}\",\"cursor\":\"{}\",\"duplicate\":{}}}",
        channel.name(),
        published.position,
        published.duplicate
    ))
}
