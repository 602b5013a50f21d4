//! What goes out on the wire, read back by independent code: an event stream parser written from
//! the standard alone, and tungstenite as a client. Whatever is published, under whatever name, a
//! reader gets exactly that, in one event, and nothing that was not said.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../../tests/support/whatwg_sse.rs"]
mod whatwg_sse;

use std::io::{self, Read, Write};
use std::sync::Arc;

use airwave_core::event::quoted;
use airwave_core::format::{Change, Gap, GapReason, Notice};
use airwave_core::rule::TransportName;
use airwave_core::{
    Attributes, ChannelName, Code, Cursor, Data, Event, EventName, Format, Key, Member, Message, Position, Refusal,
};
use airwave_protocol::{self as protocol, Envelope, Failure, Json, Payload, ServerFrame, binary, sse};
use airwave_transports::sse::{ManyChannels, OneChannel};
use airwave_transports::websocket::Frames;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use proptest::prelude::*;
use serde_json::Value;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{self, WebSocket};
use whatwg_sse::{ParsedEvent, Parser};

/// Text that is made of everything that an event stream gives a meaning to.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "\\PC{0,12}",
        any::<char>().prop_map(String::from),
        prop::sample::select(vec![
            "\r\n",
            "\r",
            "\n",
            "\n\n",
            "\0",
            "\u{feff}",
            "\u{85}",
            "\u{2028}",
            "\u{2029}",
            "\u{b}",
            "\u{c}",
            "\u{1b}",
            "\u{7f}",
            "data: ",
            "data",
            "id: 7",
            "id",
            "event: forged",
            "retry: 1",
            ":",
            ": ",
            " ",
            "\"",
            "\\",
            "</script>",
            "{",
            "[",
            "\u{d7ff}",
            "\u{10ffff}",
        ])
        .prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

fn data() -> impl Strategy<Value = Data> {
    let leaf = prop_oneof![
        text().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        Just(Value::Null),
    ];
    let json = leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((text(), inner), 0..4).prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    });
    prop_oneof![
        json.clone().prop_map(|value| Data::json(&value).unwrap()),
        // As it may come from a client: with line breaks between its parts.
        json.prop_map(|value| Data::json_text(&serde_json::to_string_pretty(&value).unwrap()).unwrap()),
        text().prop_map(Data::text),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(Data::binary),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    let name = "[A-Za-z0-9_.~:@=+-]{1,30}".prop_filter("reserved", |name| !name.starts_with("airwave."));
    let key = prop::option::of("[^\\p{Cc}]{1,20}");
    let pairs = prop::collection::btree_map("[A-Za-z0-9_.~:@+-]{1,7}", "[^\\p{Cc}]{0,20}", 0..4);
    (name, data(), key, pairs).prop_map(|(name, data, key, pairs)| {
        let mut message = Message::new(EventName::new(&name).unwrap(), data);
        message.key = key.map(|key| Key::new(&key).unwrap());
        message.attributes = pairs
            .iter()
            .try_fold(Attributes::new(), |all, (name, value)| all.with(name, value))
            .unwrap();
        message
    })
}

fn channel() -> impl Strategy<Value = ChannelName> {
    "[a-z0-9~:@=+-]{1,10}(/[a-z0-9_-]{1,10}){0,3}".prop_map(|name| ChannelName::new(&name).unwrap())
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    prop::collection::vec((message(), 1..1000u64), 0..8).prop_map(|messages| {
        let mut position = 1_748_123_004_217_000;
        let event = |(message, step): (Message, u64)| {
            let previous = Position(position);
            position += step;
            Event::new(Position(position), previous, message)
        };
        messages.into_iter().map(event).collect()
    })
}

/// The stream, cut at any places, as a browser would hear it.
fn hear(stream: &[u8], cuts: &[prop::sample::Index]) -> Vec<ParsedEvent> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
    places.extend([0, stream.len()]);
    places.sort_unstable();
    let mut parser = Parser::new();
    places
        .windows(2)
        .flat_map(|ends| parser.feed(&stream[ends[0]..ends[1]]))
        .collect()
}

/// docs/protocol.md, section 4: line breaks of a text arrive as LF.
fn as_lines(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

/// JSON goes out on one line, without any character that a reader might take for a line break.
fn is_plain_line(text: &str) -> bool {
    !text.contains(|c: char| c.is_control() || ['\u{85}', '\u{2028}', '\u{2029}'].contains(&c))
}

fn check_envelope(text: &str, channel: &ChannelName, event: &Event) -> Result<(), TestCaseError> {
    prop_assert!(is_plain_line(text), "{:?}", text);
    let value: Value = serde_json::from_str(text).unwrap();
    prop_assert_eq!(value["channel"].as_str(), Some(channel.as_str()));
    prop_assert_eq!(&value["id"], &Value::from(event.position.to_string()));
    prop_assert_eq!(value["event"].as_str(), Some(event.message.event.as_str()));
    prop_assert_eq!(value["key"].as_str(), event.message.key.as_ref().map(Key::as_str));
    let attributes = &event.message.attributes;
    prop_assert_eq!(value.get("attributes").is_some(), !attributes.is_empty());
    for (name, text) in attributes.iter() {
        prop_assert_eq!(value["attributes"][name].as_str(), Some(text));
    }
    if !attributes.is_empty() {
        prop_assert_eq!(value["attributes"].as_object().unwrap().len(), attributes.iter().count());
    }
    let mut fields = 3 + usize::from(event.message.key.is_some()) + usize::from(!attributes.is_empty());
    match &event.message.data {
        Data::Json(json) => prop_assert_eq!(&value["data"], &serde_json::from_str::<Value>(json.as_str()).unwrap()),
        Data::Text(text) => prop_assert_eq!(value["text"].as_str(), Some(&**text)),
        Data::Binary(bytes) => prop_assert_eq!(&STANDARD.decode(value["base64"].as_str().unwrap()).unwrap()[..], &bytes[..]),
        other => panic!("{other:?} is not published"),
    }
    fields += 1;
    prop_assert_eq!(value.as_object().unwrap().len(), fields);
    Ok(())
}

/// Every kind of notice, with whatever text a handler may put into a refusal.
fn notices<'a>(channel: &'a ChannelName, refusal: &'a Refusal, gap: &'a Gap, members: &'a [Arc<Member>]) -> Vec<Notice<'a>> {
    vec![
        Notice::Subscribed {
            id: None,
            channel,
            cursor: Position(7),
            stamp: None,
            resumed: true,
            retry: 1000,
        },
        Notice::Gap {
            channel,
            gap,
            stamp: None,
        },
        Notice::End {
            channel,
            cursor: Position(9),
            stamp: None,
        },
        Notice::Refused {
            id: None,
            channel: None,
            refusal,
            url: Some("/channels/a"),
            retry: 1000,
        },
        Notice::Members {
            channel,
            members,
            more: true,
        },
        Notice::Change {
            channel,
            change: Change::Update,
            member: &members[0],
        },
        Notice::Stale,
        Notice::Heartbeat { visible: true },
        Notice::Heartbeat { visible: false },
        Notice::Drain { retry: 1000 },
    ]
}

/// A named member with any metadata, and the anonymous member.
fn members(text: &str) -> Vec<Arc<Member>> {
    let Data::Json(meta) = Data::json(text).unwrap() else {
        panic!()
    };
    let named = Member::new(Some(text.into()), 3).with_meta(meta);
    let anonymous = Member::new(None, 2);
    vec![Arc::new(named), Arc::new(anonymous)]
}

fn check_member(member: &Value, text: &str) {
    assert_eq!(*member, serde_json::json!({"user": text, "connections": 3, "meta": text}));
}

const GAP: Gap = Gap::new(None, Position(8), GapReason::TooSlow);

proptest! {
    #[test]
    fn an_event_source_hears_what_was_published(channel in channel(), events in events(), cuts: Vec<prop::sample::Index>) {
        let mut stream = Vec::new();
        for event in &events {
            stream.extend_from_slice(&OneChannel.event(&channel, event));
            // Heartbeats may stand anywhere between events.
            stream.extend_from_slice(&OneChannel.notice(&Notice::Heartbeat { visible: false }));
        }
        let heard = hear(&stream, &cuts);
        prop_assert_eq!(heard.len(), events.len());
        for (heard, event) in heard.iter().zip(&events) {
            prop_assert_eq!(&heard.last_event_id, &event.position.to_string());
            let name = event.message.event.as_str();
            match &event.message.data {
                Data::Json(json) => {
                    prop_assert_eq!((heard.event.as_str(), heard.data.as_str()), (name, json.as_str()));
                    prop_assert!(is_plain_line(&heard.data));
                }
                Data::Text(text) => prop_assert_eq!((heard.event.as_str(), &heard.data), (name, &as_lines(text))),
                Data::Binary(bytes) => {
                    prop_assert_eq!(heard.event.strip_suffix(";base64"), Some(name));
                    prop_assert_eq!(&STANDARD.decode(&heard.data).unwrap()[..], &bytes[..]);
                }
                other => panic!("{other:?} is not published"),
            }
        }
    }

    #[test]
    fn an_event_source_of_several_channels_hears_what_was_published(
        channels in prop::collection::vec(channel(), 1..4),
        events in events(),
        cuts: Vec<prop::sample::Index>,
    ) {
        let mut stream = BytesMut::new();
        let stamp = ManyChannels.stamp().unwrap();
        let mut cursors = Vec::new();
        for (index, event) in events.iter().enumerate() {
            let channel = &channels[index % channels.len()];
            stream.extend_from_slice(&ManyChannels.event(channel, event));
            cursors.push(Cursor::many(channels.iter().map(|channel| (channel, event.position))));
            stamp(&cursors[index], &mut stream);
        }
        let heard = hear(&stream, &cuts);
        prop_assert_eq!(heard.len(), events.len());
        for (index, (heard, event)) in heard.iter().zip(&events).enumerate() {
            prop_assert_eq!(heard.event.as_str(), event.message.event.as_str());
            prop_assert_eq!(Cursor::parse(&heard.last_event_id), Ok(cursors[index].clone()));
            check_envelope(&heard.data, &channels[index % channels.len()], event)?;
        }
    }

    /// A notice is one event, or none; and no text in it makes it two.
    #[test]
    fn notices_are_what_they_are(channel in channel(), message in text(), cuts: Vec<prop::sample::Index>) {
        let refusal = Refusal::new(Code::Forbidden, message.clone());
        let mut stream = Vec::new();
        let members = members(&message);
        for notice in notices(&channel, &refusal, &GAP, &members) {
            stream.extend_from_slice(&OneChannel.notice(&notice));
            prop_assert_eq!(OneChannel.notice(&notice), ManyChannels.notice(&notice));
        }
        let heard = hear(&stream, &cuts);
        let names: Vec<_> = heard.iter().map(|event| event.event.as_str()).collect();
        prop_assert_eq!(
            names,
            ["airwave.subscribed", "airwave.gap", "airwave.end", "airwave.error", "airwave.presence", "airwave.update", "airwave.stale", "airwave.heartbeat"]
        );
        for heard in &heard[4..6] {
            prop_assert!(is_plain_line(&heard.data));
        }
        let list: Value = serde_json::from_str(&heard[4].data).unwrap();
        prop_assert_eq!((list["channel"].as_str(), &list["more"]), (Some(channel.as_str()), &Value::Bool(true)));
        check_member(&list["members"][0], &message);
        prop_assert_eq!(&list["members"][1], &serde_json::json!({"user": null, "connections": 2}));
        let update: Value = serde_json::from_str(&heard[5].data).unwrap();
        prop_assert_eq!(update["channel"].as_str(), Some(channel.as_str()));
        check_member(&update["member"], &message);
        let said: Value = serde_json::from_str(&heard[3].data).unwrap();
        prop_assert_eq!(said["message"].as_str(), Some(message.as_str()));
        // Those without an id leave the last one as it was.
        let ids: Vec<_> = heard.iter().map(|event| event.last_event_id.as_str()).collect();
        prop_assert_eq!(ids, ["7", "8", "9", "9", "9", "9", "9", "9"]);
    }

    #[test]
    fn a_websocket_client_hears_what_was_published(channel in channel(), events in events(), message in text()) {
        let mut stream = Vec::new();
        for event in &events {
            stream.extend_from_slice(&Frames.event(&channel, event));
        }
        let refusal = Refusal::new(Code::Forbidden, message.clone());
        let reply = Data::text(message.clone());
        let members = members(&message);
        let notices = notices(&channel, &refusal, &GAP, &members);
        for notice in notices.iter().chain([
            &Notice::Reply { id: 3, data: Some(&reply) },
            &Notice::Reply { id: 4, data: None },
            &Notice::Unsubscribed { id: Some(5), channel: &channel },
        ]) {
            stream.extend_from_slice(&Frames.notice(notice));
        }
        let mut heard = frames(&stream).into_iter();
        for event in &events {
            match (&event.message.data, heard.next().unwrap()) {
                (Data::Binary(payload), tungstenite::Message::Binary(frame)) => {
                    let mut wanted = vec![1, channel.as_str().len() as u8];
                    wanted.extend_from_slice(channel.as_str().as_bytes());
                    wanted.push(event.message.event.as_str().len() as u8);
                    wanted.extend_from_slice(event.message.event.as_str().as_bytes());
                    wanted.extend_from_slice(&event.position.0.to_be_bytes());
                    wanted.extend_from_slice(payload);
                    prop_assert_eq!(&frame[..], &wanted[..]);
                }
                (_, tungstenite::Message::Text(text)) => check_envelope(&text, &channel, event)?,
                (_, other) => prop_assert!(false, "{:?}", other),
            }
        }
        let mut kinds = Vec::new();
        for frame in heard {
            let kind = match frame {
                tungstenite::Message::Text(text) => {
                    prop_assert!(is_plain_line(&text));
                    let value: Value = serde_json::from_str(&text).unwrap();
                    let kind = value["type"].as_str().unwrap().to_owned();
                    match kind.as_str() {
                        "error" => prop_assert_eq!(value["message"].as_str(), Some(message.as_str())),
                        "presence" => check_member(&value["members"][0], &message),
                        "update" => check_member(&value["member"], &message),
                        "reply" if value["id"] == 3 => prop_assert_eq!(value["data"].as_str(), Some(message.as_str())),
                        _ => {}
                    }
                    kind
                }
                tungstenite::Message::Ping(_) => "(ping)".to_owned(),
                other => panic!("{other:?}"),
            };
            kinds.push(kind);
        }
        prop_assert_eq!(
            kinds,
            ["subscribed", "gap", "end", "error", "presence", "update", "stale", "(ping)", "heartbeat", "(ping)", "reply", "reply", "unsubscribed"]
        );
    }
}

/// What an event is in the protocol crate.
fn as_envelope<'a>(channel: &'a ChannelName, event: &'a Event) -> Envelope<'a> {
    let message = &event.message;
    let payload = match &message.data {
        Data::Json(json) => Payload::Json(Json::parse(json.as_str()).unwrap()),
        Data::Text(text) => Payload::text(&**text),
        binary => Payload::binary(binary.as_bytes()),
    };
    let mut envelope = Envelope::new(channel.as_str(), event.position.to_string(), message.event.as_str(), payload);
    envelope.key = message.key.as_ref().map(|key| key.as_str().into());
    let pairs = message.attributes.iter().map(|(name, text)| (name.into(), text.into()));
    envelope.attributes = (!message.attributes.is_empty()).then(|| protocol::Attributes(pairs.collect()));
    envelope
}

fn as_member(member: &Member) -> protocol::Member<'_> {
    let mut same = protocol::Member::new(member.user.as_deref(), member.connections);
    same.meta = member.meta.as_ref().map(|meta| Json::parse(meta.as_str()).unwrap());
    same
}

/// What a notice is in the protocol crate. `None`: nothing that a script sees.
fn as_frame<'a>(notice: &Notice<'a>) -> Option<ServerFrame<'a>> {
    Some(match *notice {
        Notice::Subscribed {
            id,
            channel,
            cursor,
            resumed,
            ..
        } => ServerFrame::Subscribed(protocol::Subscribed::new(id, channel.as_str(), cursor.to_string(), resumed)),
        Notice::Unsubscribed { id, channel } => ServerFrame::Unsubscribed(protocol::Unsubscribed::new(id, channel.as_str())),
        Notice::Gap { channel, gap, .. } => ServerFrame::Gap(protocol::Gap::new(
            channel.as_str(),
            gap.after.map(|after| after.to_string().into()),
            gap.cursor.to_string(),
            gap.reason.as_str(),
        )),
        Notice::End { channel, cursor, .. } => ServerFrame::End(protocol::End::new(channel.as_str(), cursor.to_string())),
        Notice::Reply { id, data } => {
            let json = match data {
                None => Json::of(&()),
                Some(Data::Json(json)) => Json::parse(json.as_str()),
                // With the escapes that keep it on one line.
                Some(Data::Text(text)) => Ok(Json::parse(&quoted(text)).unwrap().into_owned()),
                Some(binary) => Json::of(&STANDARD.encode(binary.as_bytes())),
            };
            ServerFrame::Reply(protocol::Reply::new(id, json.unwrap()))
        }
        Notice::Refused {
            id,
            channel,
            refusal,
            url,
            ..
        } => {
            let mut failure = Failure::new(refusal.code.as_str(), &*refusal.message);
            failure.transport = refusal.transport.as_ref().map(|transport| transport.as_str().into());
            failure.url = refusal.transport.as_ref().and(url).map(Into::into);
            let channel = channel.map(|channel| channel.as_str().into());
            ServerFrame::Error(protocol::ErrorFrame::new(id, channel, failure))
        }
        Notice::Members { channel, members, more } => {
            let members: Vec<_> = members.iter().map(|member| as_member(member)).collect();
            ServerFrame::Presence(protocol::Members::new(channel.as_str(), members, more))
        }
        Notice::Change { channel, change, member } => {
            let member = protocol::MemberChange::new(channel.as_str(), as_member(member));
            match change {
                Change::Join => ServerFrame::Join(member),
                Change::Leave => ServerFrame::Leave(member),
                Change::Update => ServerFrame::Update(member),
                _ => panic!("a change without a frame: {change:?}"),
            }
        }
        Notice::Stale => ServerFrame::parse("{\"type\":\"stale\"}").unwrap(),
        Notice::Heartbeat { visible: true } => ServerFrame::parse("{\"type\":\"heartbeat\"}").unwrap(),
        Notice::Heartbeat { visible: false } | Notice::Drain { .. } => return None,
        _ => panic!("a notice without a frame: {notice:?}"),
    })
}

proptest! {
    /// The encoders are written by hand, for speed. The protocol crate reads what they write as
    /// what it is, and would write the same fields with the same values.
    #[test]
    fn the_encoders_write_what_the_protocol_crate_reads(
        channel in channel(), events in events(), message in text(), id in prop::option::of(0..1u64 << 53), cuts: Vec<prop::sample::Index>,
    ) {
        let mut refusal = Refusal::new(Code::WrongTransport, message.clone());
        let reply = Data::text(message.clone());
        let members = members(&message);
        refusal.transport = id.map(|_| TransportName::SSE);
        let mut all = notices(&channel, &refusal, &GAP, &members);
        let changes = [Change::Join, Change::Leave].map(|change| Notice::Change { channel: &channel, change, member: &members[1] });
        all.extend(changes);
        let gap = Gap::new(Some(Position(3)), Position(8), GapReason::HistoryExpired);
        all.push(Notice::Gap { channel: &channel, gap: &gap, stamp: None });
        let only_sockets = [
            Notice::Reply { id: 3, data: Some(&reply) },
            Notice::Reply { id: 4, data: None },
            Notice::Unsubscribed { id, channel: &channel },
            Notice::Subscribed { id, channel: &channel, cursor: Position(7), stamp: None, resumed: false, retry: 0 },
            Notice::Refused { id, channel: Some(&channel), refusal: &refusal, url: Some("/x"), retry: 0 },
        ];

        // WebSocket: frames.
        let (mut stream, mut expected) = (Vec::new(), Vec::new());
        for notice in all.iter().chain(&only_sockets) {
            stream.extend_from_slice(&Frames.notice(notice));
            expected.extend(as_frame(notice));
        }
        for event in &events {
            stream.extend_from_slice(&Frames.event(&channel, event));
            expected.push(ServerFrame::Event(as_envelope(&channel, event)));
        }
        let mut expected = expected.iter();
        for frame in frames(&stream) {
            match frame {
                tungstenite::Message::Text(text) => {
                    let expected = expected.next().unwrap();
                    prop_assert_eq!(&ServerFrame::parse(&text).unwrap(), expected);
                    let same: Value = serde_json::from_str(&expected.to_json()).unwrap();
                    prop_assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), same, "{}", text);
                }
                tungstenite::Message::Binary(bytes) => {
                    let frame = binary::Frame::decode(&bytes).unwrap();
                    prop_assert_eq!(&frame.encode()[..], &bytes[..]);
                    let event = frame.into_event();
                    let ServerFrame::Event(expected) = expected.next().unwrap() else { panic!() };
                    // A binary frame has no room for a key and for attributes.
                    prop_assert_eq!(ServerFrame::Event(event).to_json(), {
                        let mut expected = expected.clone();
                        (expected.key, expected.attributes) = (None, None);
                        ServerFrame::Event(expected).to_json()
                    });
                }
                _ => {}
            }
        }
        prop_assert_eq!(expected.next(), None);

        // Streams: of several channels, and of one.
        let (mut stream, mut of_one, mut expected) = (BytesMut::new(), Vec::new(), Vec::new());
        let stamp = ManyChannels.stamp().unwrap();
        for event in &events {
            stream.extend_from_slice(&ManyChannels.event(&channel, event));
            stamp(&event.position, &mut stream);
            of_one.extend_from_slice(&OneChannel.event(&channel, event));
            expected.push(ServerFrame::Event(as_envelope(&channel, event)));
        }
        for notice in &all {
            stream.extend_from_slice(&ManyChannels.notice(notice));
            expected.extend(as_frame(notice));
        }
        let read = sse_events(&stream, &cuts);
        prop_assert_eq!(&read, &hear(&stream, &cuts).into_iter().map(as_sse).collect::<Vec<_>>(), "as the standard reads it");
        let frames: Vec<_> = read.iter().map(|event| ServerFrame::from_sse(event, None).unwrap()).collect();
        prop_assert_eq!(&frames, &expected);
        for (event, read) in events.iter().zip(sse_events(&of_one, &cuts)) {
            let ServerFrame::Event(read) = ServerFrame::from_sse(&read, Some(channel.as_str())).unwrap() else { panic!() };
            let bytes = match &event.message.data {
                Data::Text(text) => as_lines(text).into_bytes(),
                other => other.as_bytes().to_vec(),
            };
            prop_assert_eq!((&*read.id, &*read.event), (&*event.position.to_string(), event.message.event.as_str()));
            prop_assert_eq!(read.payload.as_bytes(), &bytes[..]);
        }
    }

    /// Two parsers of the same standard, written apart, hear the same in any stream.
    #[test]
    fn both_parsers_of_streams_agree(
        pieces in prop::collection::vec(prop_oneof![
            text().prop_map(String::into_bytes),
            prop::sample::select(vec!["data", "event", "id", "retry", ":", ": ", "\n", "\r", "\r\n", "\n\n", "7"]).prop_map(|text| text.as_bytes().to_vec()),
            prop::collection::vec(any::<u8>(), 0..4),
        ], 0..60),
        cuts: Vec<prop::sample::Index>,
    ) {
        let stream = pieces.concat();
        prop_assert_eq!(sse_events(&stream, &cuts), hear(&stream, &cuts).into_iter().map(as_sse).collect::<Vec<_>>());
        let (mut ours, mut theirs) = (sse::Parser::default(), Parser::new());
        ours.push(&stream, &mut Vec::new()).unwrap();
        theirs.feed(&stream);
        prop_assert_eq!((ours.last_id(), ours.retry()), (theirs.last_event_id(), theirs.retry()));
    }
}

fn as_sse(event: ParsedEvent) -> sse::Event {
    sse::Event::new(event.last_event_id, event.event, event.data)
}

/// The stream, cut at any places, as the protocol crate reads it.
fn sse_events(stream: &[u8], cuts: &[prop::sample::Index]) -> Vec<sse::Event> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
    places.extend([0, stream.len()]);
    places.sort_unstable();
    let (mut parser, mut events) = (sse::Parser::default(), Vec::new());
    for ends in places.windows(2) {
        parser.push(&stream[ends[0]..ends[1]], &mut events).unwrap();
    }
    events
}

/// A server's bytes as the other end of a WebSocket.
struct Recorded<'a>(&'a [u8]);

impl Read for Recorded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Recorded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn frames(stream: &[u8]) -> Vec<tungstenite::Message> {
    let mut socket = WebSocket::from_raw_socket(Recorded(stream), Role::Client, None);
    let mut messages = Vec::new();
    loop {
        match socket.read() {
            Ok(message) => messages.push(message),
            Err(tungstenite::Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake)) => {
                return messages;
            }
            Err(error) => panic!("{error}"),
        }
    }
}
