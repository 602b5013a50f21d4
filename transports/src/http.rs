//! Plain HTTP: backends publish, SSE clients send, pages read history, operators ask how it goes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use airwave_core::event::{IdempotencyKey, quoted};
use airwave_core::format::Member;
use airwave_core::rule::TransportName;
use airwave_core::warnings::Warning;
use airwave_core::{ChannelName, Code, Event, Hub, PageLimit, Position, Publish, Refusal};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::{get, post};
use bytes::Bytes;
use http::StatusCode;
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, VARY};
use http::request::Parts;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::time::timeout;

use crate::accept;
use crate::envelope::{self, Publication, envelope};
use crate::pages::{self, PAGE_BYTES, Pages};
use crate::prometheus::TextFormat;
use crate::request::{
    Options, Publishers, check_query, connect_request, header_text, is_local, json_response, only, path_as_seen, peer,
    query_value, refusal_response, wants_presence,
};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const MAX_PUBLICATIONS: usize = 1000;
const MAX_PAGE: usize = 1000;
const DEFAULT_PAGE: usize = 50;
/// A page of members ends at whichever comes first.
const MEMBERS_PAGE: (usize, usize) = (500, 32 << 10);
/// How long a body may take, so that one that never ends takes no place for ever.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// An array may hold many messages, each of which has its own limit.
const PUBLISH_BODY_MESSAGES: usize = 64;

#[derive(Clone)]
struct Http {
    hub: Hub,
    options: Arc<Options>,
}

pub(crate) fn routes(hub: Hub, options: Arc<Options>) -> Router {
    Router::new()
        .route("/publish", post(publish))
        .route("/healthz", get(health))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Http { hub, options })
}

async fn health(State(http): State<Http>, request: Request) -> Response {
    match without_query(&http, request) {
        Ok(()) => Response::new(Body::from("ok")),
        Err(refusal) => refusal_response(&refusal, None),
    }
}

fn without_query(http: &Http, request: Request) -> Result<(), Refusal> {
    let (parts, _) = request.into_parts();
    check_query(&http.hub, &parts, &[]).inspect_err(|refusal| http.hub.metrics().refused(refusal.code))
}

async fn ready(State(http): State<Http>, request: Request) -> Response {
    if let Err(refusal) = without_query(&http, request) {
        return refusal_response(&refusal, None);
    }
    let (status, text) = match http.hub.ready().await {
        Ok(()) => (200, "ready\n".to_owned()),
        Err(why) => (503, format!("{why}\n")),
    };
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    response
}

async fn metrics(State(http): State<Http>, request: Request) -> Response {
    let format = match accept::prefers_openmetrics(request.headers()) {
        true => TextFormat::OpenMetrics,
        false => TextFormat::Prometheus,
    };
    if let Err(refusal) = without_query(&http, request) {
        return refusal_response(&refusal, None);
    }
    let mut response = Response::new(Body::from(format.encode(&http.hub.metrics().read())));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    headers.insert(VARY, HeaderValue::from_static("accept"));
    response
}

/// The whole body, if it is JSON by its own account and not too large.
///
/// Other content types are refused because a foreign page may send those without asking (CORS
/// "simple requests").
async fn json_body(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, Refusal> {
    let kind = only(headers, &CONTENT_TYPE)?
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or_default();
    if !kind
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .eq_ignore_ascii_case("application/json")
    {
        return Err(Refusal::bad_request("send JSON, with 'Content-Type: application/json'"));
    }
    match timeout(BODY_TIMEOUT, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => {
            let body = body.to_bytes();
            Ok(body.slice_ref(envelope::without_bom(&body)))
        }
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(Refusal::new(Code::TooLarge, format!("the body is larger than {limit} bytes")))
        }
        Ok(Err(_)) => Err(Refusal::bad_request("the body broke off")),
        Err(_) => Err(Refusal::bad_request(format!(
            "the body did not come within {} seconds",
            BODY_TIMEOUT.as_secs()
        ))),
    }
}

/// Whether a request's body is coded in a way that is not taken.
pub(crate) fn is_encoded(headers: &HeaderMap) -> bool {
    let codings = headers.get_all(CONTENT_ENCODING).iter();
    let mut codings = codings.flat_map(|value| value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii));
    codings.any(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity"))
}

/// The answer to a body that is coded (RFC 9110, section 15.5.16).
pub(crate) fn coding_refused(hub: &Hub) -> Response {
    let refusal = Refusal::bad_request("send the body as it is: 'Content-Encoding' is not taken");
    hub.metrics().refused(refusal.code);
    let mut response = refusal_response(&refusal, None);
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    let headers = response.headers_mut();
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    response
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, Refusal> {
    match header_text(headers, &IDEMPOTENCY_KEY)? {
        Some(text) => Ok(Some(IdempotencyKey::new(text)?)),
        None => Ok(None),
    }
}

/// `POST /channels/{name}`: a client's message, for the handler.
pub(crate) async fn send(hub: &Hub, channel: ChannelName, parts: &mut Parts, body: Body) -> Result<Response, Refusal> {
    check_query(hub, parts, &[])?;
    let limit = hub.limits().message_bytes;
    // Base64 and names take room of their own; the message itself is measured again once it has
    // been read.
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

/// `GET /channels/{name}`: recent events, and how to listen.
pub(crate) async fn history(
    hub: &Hub,
    pages: &Pages,
    known: &[TransportName],
    channel: ChannelName,
    parts: &mut Parts,
) -> Result<Response, Refusal> {
    check_query(hub, parts, &["after", "limit", "presence", "members_after"])?;
    let limit = match query_value(parts, "limit")? {
        None => DEFAULT_PAGE,
        Some(text) => match text.parse() {
            Ok(limit @ 1..=MAX_PAGE) => limit,
            _ => return Err(Refusal::bad_request(format!("'limit' is a number from 1 to {MAX_PAGE}"))),
        },
    };
    let after = match query_value(parts, "after")?.as_deref() {
        None | Some("" | "0") => None,
        Some(text) => {
            let position: Position = text
                .parse()
                .map_err(|_| Refusal::bad_request("'after' is the cursor of a single channel: a decimal number"))?;
            Some(position)
        }
    };
    let connection = hub.connect(connect_request(parts, TransportName::HTTP), false)?;
    // The mark of the end is no event to the client, so it takes no event's place among the newest.
    let asked = if after.is_none() { limit + 1 } else { limit };
    let asked = PageLimit::events(asked).with_bytes(PAGE_BYTES);
    let members_after = query_value(parts, "members_after")?;
    let with_members = wants_presence(parts)?;
    if members_after.is_some() && !with_members {
        return Err(Refusal::bad_request(
            "'members_after' is for a page of members: add 'presence=true'",
        ));
    }
    let turn = pages.turn(peer(parts)).await?;
    let reading = async {
        let (channel, page) = hub.history(&connection, &channel, after, asked).await?;
        let members = if with_members {
            let (members, more) = members_page(channel.members().await?, members_after.as_deref());
            format!(",\"members\":{},\"members_more\":{more}", envelope::members_json(&members))
        } else {
            String::new()
        };
        Ok::<_, Refusal>((channel, page, members))
    };
    let (channel, page, members) = hub.request(reading).await?;
    let shown = |event: &&Arc<Event>| !event.is_end() && !event.is_hidden();
    let events: Vec<_> = page.events.iter().filter(shown).collect();
    let events: Vec<String> = events[events.len().saturating_sub(limit)..]
        .iter()
        .map(|event| envelope(channel.name(), event))
        .collect();
    // A stream that starts here continues exactly after what was returned.
    let cursor = page.events.last().map_or(page.head, |event| event.position);
    let transports: Vec<String> = channel
        .rule()
        .transports
        .iter()
        .filter(|name| known.contains(name))
        .map(|name| quoted(name.as_str()))
        .collect();
    let complete = after.is_none() || page.complete;
    let body = format!(
        "{{\"channel\":\"{}\",\"cursor\":\"{cursor}\",\"complete\":{complete},\"more\":{},\"ended\":{},\"transport\":{},\"transports\":[{}],\"url\":{},\"events\":[{}]{members}}}",
        channel.name(),
        page.more,
        page.ended,
        transports.first().map_or("null", String::as_str),
        transports.join(","),
        quoted(&path_as_seen(parts)),
        events.join(",")
    );
    drop((events, page));
    let mut response = json_response(200, String::new());
    *response.body_mut() = pages::body(body.into(), turn, hub.limits().stalled_write);
    Ok(response)
}

/// The members behind the user `after`, in the order of their ids, the anonymous last; and whether
/// there are more behind those.
fn members_page(mut members: Vec<Arc<Member>>, after: Option<&str>) -> (Vec<Arc<Member>>, bool) {
    if let Some(after) = after {
        members.retain(|member| member.user.as_deref().is_none_or(|user| user > after));
    }
    let mut bytes = 0;
    let fits = |(n, member): &(usize, &Arc<Member>)| {
        bytes += envelope::member_json(member).len();
        *n == 0 || bytes <= MEMBERS_PAGE.1
    };
    let fitting = members.iter().take(MEMBERS_PAGE.0).enumerate().take_while(fits).count();
    let more = fitting < members.len();
    members.truncate(fitting);
    (members, more)
}

async fn publish(State(http): State<Http>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    if is_encoded(&parts.headers) {
        return coding_refused(&http.hub);
    }
    match publish_all(&http, &parts, body).await {
        Ok(response) => response,
        Err(refusal) => {
            http.hub.metrics().refused(refusal.code);
            refusal_response(&refusal, None)
        }
    }
}

async fn publish_all(http: &Http, parts: &Parts, body: Body) -> Result<Response, Refusal> {
    check_query(&http.hub, parts, &[])?;
    authorize(&http.options.publishers, parts).inspect_err(|refusal| {
        if refusal.code == Code::Unauthorized {
            http.hub.warn(Warning::WrongToken, peer(parts), "/publish");
        }
    })?;
    if matches!(http.options.publishers, Publishers::Anybody) {
        http.hub.count_request(None, peer(parts))?;
    }
    if http.hub.is_draining() {
        return Err(Refusal::unavailable("this server is going away: publish again"));
    }
    let limit = http.hub.limits().message_bytes.saturating_mul(PUBLISH_BODY_MESSAGES);
    let body = json_body(&parts.headers, body, limit).await?;
    let key = idempotency_key(&parts.headers)?;
    if body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'[') {
        let mut publication: Publication<'_> = envelope::read(&body)?;
        publication.idempotency_key = publication.idempotency_key.or(key);
        let answer = http.hub.request(publish_one(&http.hub, publication)).await?;
        return Ok(json_response(200, answer));
    }
    if key.is_some() {
        return Err(Refusal::bad_request(
            "an 'Idempotency-Key' header is for one publication: in an array, give each its own 'idempotency_key'",
        ));
    }
    let publications: Vec<Publication<'_>> = envelope::read(&body)?;
    if publications.is_empty() || publications.len() > MAX_PUBLICATIONS {
        return Err(Refusal::bad_request(format!(
            "an array holds 1 to {MAX_PUBLICATIONS} publications, this one {}",
            publications.len()
        )));
    }
    let answers = publish_each(&http.hub, publications).await;
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

/// Publishes an array. Channels do not wait for each other: where the broker does not answer, their
/// times do not add up. The answers stand in the order of the array.
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

/// Publishes what an array has for one channel, one after the other: what stands first in the array
/// stands first in the channel. Behind a failure that may pass nothing more is tried, so that a
/// caller that repeats the failed ones keeps their order.
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
    // One append: what is refused has not happened, not even in part.
    let published = channel.publish_with(publish).await?;
    Ok(format!(
        "{{\"channel\":\"{}\",\"cursor\":\"{}\",\"duplicate\":{}}}",
        channel.name(),
        published.position,
        published.duplicate
    ))
}

fn authorize(publishers: &Publishers, parts: &Parts) -> Result<(), Refusal> {
    match publishers {
        Publishers::Anybody => Ok(()),
        Publishers::Local if is_local(parts) => Ok(()),
        Publishers::Local => Err(Refusal::forbidden(
            "without a publish token this server takes publishes only at localhost or an IP address, and through no proxy: set publish.token in its configuration",
        )),
        Publishers::NoOne => Err(Refusal::forbidden(
            "publishing over HTTP is off: set publish.token in the server's configuration and send 'Authorization: Bearer TOKEN'",
        )),
        Publishers::Token(token) => {
            let given = only(&parts.headers, &AUTHORIZATION)?
                .map(HeaderValue::as_bytes)
                .and_then(|value| {
                    let (scheme, token) = value.split_at_checked(7)?;
                    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
                });
            match given {
                Some(given) if same(given, token.as_bytes()) => Ok(()),
                Some(_) => Err(Refusal::unauthorized("this is not the publish token")),
                None => Err(Refusal::unauthorized("publishing needs 'Authorization: Bearer TOKEN'")),
            }
        }
    }
}

/// Takes as long for a wrong token as for the right one, so that time tells nothing about how much
/// of it was right.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (x, y)| differ | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::HOST;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_ends_is_given_up() {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let endless = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
        let refusal = json_body(&headers, Body::from_stream(endless), 1000).await.unwrap_err();
        assert_eq!(refusal.code, Code::BadRequest);
        assert!(refusal.message.contains("30 seconds"), "{refusal}");
    }

    fn request(target: &str, headers: &[(HeaderName, &'static str)]) -> Parts {
        let mut request = http::Request::post(target);
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn refused(publishers: &Publishers, parts: &Parts) -> Result<(), Code> {
        authorize(publishers, parts).map_err(|no| no.code)
    }

    #[test]
    fn only_the_token_publishes() {
        let with = |value: Option<&'static str>| {
            let headers: Vec<_> = value.map(|value| (AUTHORIZATION, value)).into_iter().collect();
            refused(&Publishers::Token("correct horse".into()), &request("/publish", &headers))
        };
        assert_eq!(with(Some("Bearer correct horse")), Ok(()));
        assert_eq!(with(Some("bearer correct horse")), Ok(()));
        for wrong in [
            None,
            Some("Bearer "),
            Some("Bearer correct hors"),
            Some("Bearer correct horsf"),
            Some("Basic correct horse"),
            Some("x"),
        ] {
            assert_eq!(with(wrong), Err(Code::Unauthorized), "{wrong:?}");
        }
        assert_eq!(refused(&Publishers::NoOne, &request("/publish", &[])), Err(Code::Forbidden));
    }

    #[test]
    fn a_name_that_a_foreign_site_made_lead_here_publishes_nothing() {
        let named = |host: &'static str| refused(&Publishers::Local, &request("/publish", &[(HOST, host)]));
        for ours in [
            "localhost",
            "LocalHost:8080",
            "127.0.0.1:8080",
            "[::1]:8080",
            "[::1]",
            "192.168.1.7",
        ] {
            assert_eq!(named(ours), Ok(()), "{ours}");
        }
        for foreign in [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil.example",
            "",
        ] {
            assert_eq!(named(foreign), Err(Code::Forbidden), "{foreign}");
        }
        assert_eq!(refused(&Publishers::Local, &request("/publish", &[])), Err(Code::Forbidden));
        // HTTP/2 has the name in the target.
        assert_eq!(refused(&Publishers::Local, &request("http://[::1]:80/publish", &[])), Ok(()));
        let rebound = request("http://evil.example/publish", &[(HOST, "localhost")]);
        assert_eq!(refused(&Publishers::Local, &rebound), Err(Code::Forbidden));
    }

    #[test]
    fn a_proxy_that_shows_itself_publishes_nothing_without_a_token() {
        let local = |sign: HeaderName| {
            refused(
                &Publishers::Local,
                &request("/publish", &[(HOST, "127.0.0.1:8080"), (sign, "x")]),
            )
        };
        assert_eq!(local(HeaderName::from_static("x-request-id")), Ok(()));
        for sign in ["forwarded", "via", "x-forwarded-for", "x-real-ip"] {
            assert_eq!(local(HeaderName::from_static(sign)), Err(Code::Forbidden), "{sign}");
        }
        let mut old = request("/publish", &[(HOST, "127.0.0.1:8080")]);
        old.version = http::Version::HTTP_10;
        assert_eq!(refused(&Publishers::Local, &old), Err(Code::Forbidden));
    }
}
