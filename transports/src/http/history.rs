//! `GET /channels/{name}` returns a page of recent events, of members, and how to listen.

use std::sync::Arc;

use airwave_core::event::quoted;
use airwave_core::format::Member;
use airwave_core::rule::TransportName;
use airwave_core::{Channel, ChannelName, Event, Hub, PageLimit, Position, Refusal, Replay};
use axum::response::Response;
use http::request::Parts;

use crate::envelope::{self, envelope};
use crate::pages::{self, PAGE_BYTES, Pages};
use crate::request::{check_query, connect_request, json_response, path_as_seen, peer, query_value, wants_presence};

const MAX_PAGE: usize = 1000;
const DEFAULT_PAGE: usize = 50;
/// Bounds a page of members, in members and in bytes. The page ends at the bound that comes first.
const MEMBERS_PAGE: (usize, usize) = (500, 32 << 10);

/// Holds what the query of a request asks for.
struct PageQuery {
    /// Bounds the number of events.
    limit: usize,
    /// Holds the position that the page follows; `None`: the newest events.
    after: Option<Position>,
}

impl PageQuery {
    fn of(parts: &Parts) -> Result<Self, Refusal> {
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
        Ok(Self { limit, after })
    }

    /// Returns how much of history the node asks of the broker.
    fn page_limit(&self) -> PageLimit {
        // The mark of the end is no event to the client, so it takes no event's place among the
        // newest.
        let events = if self.after.is_none() { self.limit + 1 } else { self.limit };
        PageLimit::events(events).with_bytes(PAGE_BYTES)
    }
}

/// A request may ask for a page of members beside the events.
struct MembersQuery {
    /// Names the user that the page follows; `None`: the page begins with the first member.
    after: Option<String>,
}

impl MembersQuery {
    /// Reads the query. `None`: the request asks for no members.
    fn of(parts: &Parts) -> Result<Option<Self>, Refusal> {
        match (query_value(parts, "members_after")?, wants_presence(parts)?) {
            (after, true) => Ok(Some(Self { after })),
            (None, false) => Ok(None),
            (Some(_), false) => Err(Refusal::bad_request(
                "'members_after' is for a page of members: add 'presence=true'",
            )),
        }
    }
}

/// Answers with a page of a channel. `known`: the transports of this server.
pub(crate) async fn history(
    hub: &Hub,
    pages: &Pages,
    known: &[TransportName],
    channel: ChannelName,
    parts: &mut Parts,
) -> Result<Response, Refusal> {
    check_query(hub, parts, &["after", "limit", "presence", "members_after"])?;
    let query = PageQuery::of(parts)?;
    let connection = hub.connect(connect_request(parts, TransportName::HTTP), false)?;
    let members = MembersQuery::of(parts)?;
    let turn = pages.turn(peer(parts)).await?;
    let reading = async {
        let (channel, page) = hub.history(&connection, &channel, query.after, query.page_limit()).await?;
        let members = match &members {
            Some(MembersQuery { after }) => {
                let (members, more) = members_page(channel.members().await?, after.as_deref());
                format!(",\"members\":{},\"members_more\":{more}", envelope::members_json(&members))
            }
            None => String::new(),
        };
        Ok::<_, Refusal>((channel, page, members))
    };
    let (channel, page, members) = hub.request(reading).await?;
    let body = page_json(&channel, &page, &query, known, &path_as_seen(parts), &members);
    drop(page);
    let mut response = json_response(200, String::new());
    *response.body_mut() = pages::body(body.into(), turn, hub.limits().stalled_write);
    Ok(response)
}

/// Encodes the page as JSON. `members` holds the fields of the members, or nothing.
fn page_json(channel: &Channel, page: &Replay, query: &PageQuery, known: &[TransportName], url: &str, members: &str) -> String {
    let shown = |event: &&Arc<Event>| !event.is_end() && !event.is_hidden();
    let events: Vec<_> = page.events.iter().filter(shown).collect();
    let events: Vec<String> = events[events.len().saturating_sub(query.limit)..]
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
    let complete = query.after.is_none() || page.complete;
    format!(
        "{{\"channel\":\"{}\",\"cursor\":\"{cursor}\",\"complete\":{complete},\"more\":{},\"ended\":{},\"transport\":{},\"transports\":[{}],\"url\":{},\"events\":[{}]{members}}}",
        channel.name(),
        page.more,
        page.ended,
        transports.first().map_or("null", String::as_str),
        transports.join(","),
        quoted(url),
        events.join(",")
    )
}

/// Returns the members behind the user `after`, in the order of their ids, the anonymous last. The
/// flag says whether there are more behind those.
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
