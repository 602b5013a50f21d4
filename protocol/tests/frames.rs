//! Every type, written and read back; and what readers tolerate and refuse.
#![allow(clippy::unwrap_used)]

use airwave_protocol::{
    Answer, Attributes, ClientFrame, ClientMessage, End, Envelope, ErrorBody, ErrorFrame, Failure, Gap, Json, MAX_ID, Member,
    MemberChange, Members, Page, Payload, Ping, Pong, Publication, PublishAnswer, Published, Reply, SendMessage, ServerFrame,
    Subscribe, Subscribed, Unsubscribe, Unsubscribed, binary, sse,
};
use proptest::prelude::*;

fn text() -> impl Strategy<Value = String> {
    "(\\PC|[\\x00-\\x1f]|\"|\\\\|\u{2028}|\u{85}){0,12}"
}

fn json() -> impl Strategy<Value = Json<'static>> {
    prop_oneof![
        Just("null".to_owned()),
        any::<i64>().prop_map(|number| number.to_string()),
        Just("1.50e3".to_owned()),
        text().prop_map(|text| serde_json::to_string(&text).unwrap()),
        text().prop_map(|text| serde_json::json!({"a": [text, {"b": null}]}).to_string()),
    ]
    .prop_map(|text| Json::parse(&text).unwrap().into_owned())
}

fn payload() -> impl Strategy<Value = Payload<'static>> {
    prop_oneof![
        json().prop_map(Payload::Json),
        text().prop_map(Payload::text),
        prop::collection::vec(any::<u8>(), 0..20).prop_map(Payload::binary),
    ]
}

fn attributes() -> impl Strategy<Value = Attributes<'static>> {
    prop::collection::btree_map("[a-z]{1,4}", text(), 0..3)
        .prop_map(|all| Attributes(all.into_iter().map(|(name, text)| (name.into(), text.into())).collect()))
}

fn cursor() -> impl Strategy<Value = String> {
    "[1-9][0-9]{0,15}"
}

fn envelope() -> impl Strategy<Value = Envelope<'static>> {
    let more = (prop::option::of(text()), prop::option::of(attributes()));
    (cursor(), "[a-z-]{1,9}", payload(), more).prop_map(|(id, event, payload, (key, attributes))| {
        let mut envelope = Envelope::new("a/b", id, event, payload);
        envelope.key = key.map(Into::into);
        envelope.attributes = attributes;
        envelope
    })
}

fn member() -> impl Strategy<Value = Member<'static>> {
    (prop::option::of(text()), any::<u32>(), prop::option::of(json())).prop_map(|(user, connections, meta)| {
        let mut member = Member::new(user, connections);
        member.meta = meta;
        member
    })
}

fn failure() -> impl Strategy<Value = Failure<'static>> {
    (text(), prop::option::of(text())).prop_map(|(message, url)| {
        let mut failure = Failure::new("wrong-transport", message);
        failure.transport = url.clone().map(Into::into);
        failure.url = url.map(Into::into);
        failure
    })
}

fn server_frame() -> impl Strategy<Value = ServerFrame<'static>> {
    let id = || prop::option::of(0..=MAX_ID);
    prop_oneof![
        (id(), cursor(), any::<bool>())
            .prop_map(|(id, cursor, resumed)| ServerFrame::Subscribed(Subscribed::new(id, "a", cursor, resumed))),
        id().prop_map(|id| ServerFrame::Unsubscribed(Unsubscribed::new(id, "a"))),
        (prop::option::of(cursor()), cursor()).prop_map(|(after, cursor)| ServerFrame::Gap(Gap::new(
            "a",
            after.map(Into::into),
            cursor,
            "too-slow"
        ))),
        cursor().prop_map(|cursor| ServerFrame::End(End::new("a", cursor))),
        (0..=MAX_ID, json()).prop_map(|(id, data)| ServerFrame::Reply(Reply::new(id, data))),
        (id(), failure()).prop_map(|(id, error)| ServerFrame::Error(ErrorFrame::new(id, id.map(|_| "a".into()), error))),
        id().prop_map(|id| ServerFrame::Pong(Pong::new(id))),
        (prop::collection::vec(member(), 0..3), any::<bool>())
            .prop_map(|(members, more)| ServerFrame::Presence(Members::new("a", members, more))),
        member().prop_map(|member| ServerFrame::Join(MemberChange::new("a", member))),
        member().prop_map(|member| ServerFrame::Leave(MemberChange::new("a", member))),
        member().prop_map(|member| ServerFrame::Update(MemberChange::new("a", member))),
        prop::sample::select(vec![r#"{"type":"stale"}"#, r#"{"type":"heartbeat"}"#, r#"{"type":"moon"}"#])
            .prop_map(|text| ServerFrame::parse(text).unwrap()),
        envelope().prop_map(ServerFrame::Event),
    ]
}

fn message() -> impl Strategy<Value = ClientMessage<'static>> {
    (text(), payload(), prop::option::of(text()), prop::option::of(attributes())).prop_map(|(event, payload, key, attributes)| {
        let mut message = ClientMessage::new(event, payload);
        message.key = key.map(Into::into);
        message.attributes = attributes;
        message
    })
}

fn client_frame() -> impl Strategy<Value = ClientFrame<'static>> {
    let id = || prop::option::of(0..=MAX_ID);
    prop_oneof![
        (id(), prop::option::of(cursor()), any::<bool>()).prop_map(|(id, after, presence)| {
            let mut subscribe = Subscribe::new("a/b");
            (subscribe.id, subscribe.after, subscribe.presence) = (id, after.map(Into::into), presence);
            ClientFrame::Subscribe(subscribe)
        }),
        id().prop_map(|id| ClientFrame::Unsubscribe(Unsubscribe::new(id, "a/b"))),
        (id(), message(), prop::option::of(text())).prop_map(|(id, message, key)| {
            let mut send = SendMessage::new("a/b", message);
            (send.id, send.idempotency_key) = (id, key.map(Into::into));
            ClientFrame::Send(send)
        }),
        id().prop_map(|id| ClientFrame::Ping(Ping::new(id))),
    ]
}

proptest! {
    #[test]
    fn frames_of_servers_are_read_back(frames in prop::collection::vec(server_frame(), 1..4)) {
        let texts: Vec<String> = frames.iter().map(ServerFrame::to_json).collect();
        for (frame, text) in frames.iter().zip(&texts) {
            prop_assert_eq!(&ServerFrame::parse(text).unwrap(), frame, "{}", text);
            prop_assert_eq!(&ServerFrame::parse(text).unwrap().into_owned(), frame);
            prop_assert_eq!(&serde_json::from_str::<ServerFrame<'_>>(text).unwrap(), frame);
            prop_assert_eq!(&ServerFrame::parse_all(text).unwrap(), std::slice::from_ref(frame));
        }
        let batch = format!(" [{}]", texts.join(", "));
        prop_assert_eq!(ServerFrame::parse_all(&batch).unwrap(), frames);
    }

    /// On a stream the type stands in the event's name, and the rest is the same.
    #[test]
    fn frames_mean_the_same_on_a_stream(frame in server_frame()) {
        let text = frame.to_json();
        let event = match frame.kind() {
            Some(kind) => sse::Event::new("1", format!("airwave.{kind}"), text),
            None => sse::Event::new("1", "ignored", text),
        };
        prop_assert_eq!(ServerFrame::from_sse(&event, None).unwrap(), frame);
    }

    #[test]
    fn frames_and_messages_of_clients_are_read_back(frame in client_frame(), message in message()) {
        let text = frame.to_json();
        prop_assert_eq!(&ClientFrame::parse(&text).unwrap(), &frame, "{}", text);
        let with_more = text.replacen('{', "{\"colour\":1,", 1);
        prop_assert!(ClientFrame::parse(&with_more).unwrap_err().to_string().contains("colour"));
        let text = message.to_json();
        prop_assert_eq!(serde_json::from_str::<ClientMessage<'_>>(&text).unwrap(), message);
    }

    #[test]
    fn publications_and_their_answers_are_read_back(
        payload in prop::option::of(payload()), key in prop::option::of(text()), attributes in prop::option::of(attributes()),
        error in failure(), cursor in cursor(), duplicate: bool, data in json(),
    ) {
        let mut publication = Publication::end_of("a").with_event("e").with_idempotency_key("k");
        publication.end = payload.is_none();
        (publication.payload, publication.key, publication.attributes) = (payload, key.map(Into::into), attributes);
        let text = publication.to_json();
        prop_assert_eq!(&serde_json::from_str::<Publication<'_>>(&text).unwrap(), &publication, "{}", text);
        let with_more = text.replacen('{', "{\"colour\":1,", 1);
        prop_assert!(serde_json::from_str::<Publication<'_>>(&with_more).is_err());

        let answers = [PublishAnswer::Published(Published::new("a", cursor, duplicate)), PublishAnswer::Refused(ErrorBody::new(error))];
        let text = serde_json::to_string(&answers).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Vec<PublishAnswer<'_>>>(&text).unwrap()[..], &answers[..], "{}", text);
        let answer = Answer::new(data);
        let text = serde_json::to_string(&answer).unwrap();
        prop_assert_eq!(serde_json::from_str::<Answer<'_>>(&text).unwrap(), answer);
    }

    #[test]
    fn pages_are_read_back(events in prop::collection::vec(envelope(), 0..3), members in prop::option::of(prop::collection::vec(member(), 0..3))) {
        let mut page = Page::new("a", "17", "/channels/a");
        page.members_more = members.as_ref().map(|_| true);
        (page.events, page.members, page.transports) = (events, members, vec!["sse".into()]);
        let text = serde_json::to_string(&page).unwrap();
        prop_assert_eq!(Page::parse(text.as_bytes()).unwrap(), page, "{}", text);
    }

    #[test]
    fn binary_frames_are_read_back(channel in "[a-z/]{0,20}", event in "é{0,20}", number: u64, payload: Vec<u8>, cut: prop::sample::Index) {
        let frame = binary::Frame::new(&channel, &event, number, &payload);
        let bytes = frame.encode();
        prop_assert_eq!(binary::Frame::decode(&bytes).unwrap(), frame);
        let head = bytes.len() - payload.len();
        prop_assert!(binary::Frame::decode(&bytes[..cut.index(head)]).is_err(), "a torn head is no frame");
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..60), text in "\\PC{0,60}", name in "(airwave\\.)?[a-z]{0,6}(;base64)?") {
        let _ = (ServerFrame::parse_all(&text), ClientFrame::parse(&text), Page::parse(&bytes), ErrorBody::parse(&bytes));
        let event = sse::Event::new("1", name, text);
        let _ = (ServerFrame::from_sse(&event, None), ServerFrame::from_sse(&event, Some("a")));
        if let Ok(frame) = binary::Frame::decode(&bytes) {
            prop_assert_eq!(frame.encode(), bytes, "a frame has one form");
        }
    }
}

#[test]
fn a_reader_of_servers_tolerates_what_is_new() {
    let text = r#"{"type":"end","channel":"a","cursor":17,"colour":{"deep":[1]}}"#;
    assert_eq!(ServerFrame::parse(text).unwrap(), ServerFrame::End(End::new("a", "17")));
    let ServerFrame::Unknown(unknown) = ServerFrame::parse(r#"{"type":"moon","phase":3}"#).unwrap() else {
        panic!()
    };
    assert_eq!(unknown.kind, "moon");
    let text = r#"{"type":"gap","channel":"a","after":null,"cursor":"1","reason":"eclipse"}"#;
    let ServerFrame::Gap(gap) = ServerFrame::parse(text).unwrap() else {
        panic!()
    };
    assert_eq!((&*gap.reason, gap.known_reason()), ("eclipse", None));
    let body = br#"{"error":{"code":"teapot","message":"m","colour":1},"more":2}"#;
    assert_eq!(ErrorBody::parse(body).unwrap().error.known_code(), None);
}

#[test]
fn a_frame_that_lacks_a_field_is_an_error_that_names_it() {
    for (text, field) in [
        (r#"{"type":"gap","channel":"a"}"#, "cursor"),
        (r#"{"type":"subscribed","cursor":"1"}"#, "channel"),
        (r#"{"type":"join","channel":"a"}"#, "member"),
        (r#"{"channel":"a","event":"e","data":1}"#, "id"),
        (r#"{"channel":"a","id":"1","event":"e"}"#, "base64"),
    ] {
        let error = ServerFrame::parse(text).unwrap_err().to_string();
        assert!(error.contains(field), "{text}: {error}");
    }
    for text in ["", "[]", "1", "{\"type\":1}", "{\"channel\":\"a\"", "nonsense"] {
        assert!(ServerFrame::parse(text).is_err(), "{text}");
    }
}

#[test]
fn null_is_data_where_it_stands_alone() {
    let null = || Payload::Json(Json::parse("null").unwrap());
    let text = r#"{"channel":"a","id":"1","event":"e","data":null}"#;
    assert_eq!(Envelope::parse(text).unwrap(), Envelope::new("a", "1", "e", null()));
    let text = r#"{"event":"e","data":null,"text":"x","base64":null,"key":null}"#;
    let message: ClientMessage<'_> = serde_json::from_str(text).unwrap();
    assert_eq!(message, ClientMessage::new("e", Payload::text("x")));
    for both in [r#"{"event":"e","data":1,"text":"x"}"#, r#"{"event":"e"}"#] {
        assert!(serde_json::from_str::<ClientMessage<'_>>(both).is_err(), "{both}");
    }
}

#[test]
fn an_event_of_a_stream_of_one_channel_is_json_text_or_bytes() {
    let of = |name: &str, data: &str| match ServerFrame::from_sse(&sse::Event::new("17", name, data), Some("a")).unwrap() {
        ServerFrame::Event(event) => event.into_owned(),
        other => panic!("{other:?}"),
    };
    let event = |payload| Envelope::new("a", "17", "e", payload);
    assert_eq!(
        of("e", "{\"n\": 1.50}"),
        event(Payload::Json(Json::parse("{\"n\": 1.50}").unwrap()))
    );
    assert_eq!(of("e", "not json"), event(Payload::text("not json")));
    assert_eq!(of("e", " 1"), event(Payload::text(" 1")));
    assert_eq!(of("e;base64", "AP8="), event(Payload::binary(vec![0, 255])));
    assert!(ServerFrame::from_sse(&sse::Event::new("1", "e;base64", "?"), Some("a")).is_err());
}

#[test]
fn what_has_no_escapes_is_borrowed() {
    use std::borrow::Cow;
    let text = r#"{"channel":"a","id":"1","event":"e","key":"k","data":{"a":1}}"#;
    let event = Envelope::parse(text).unwrap();
    assert!(matches!(
        (&event.channel, &event.id, &event.key),
        (Cow::Borrowed(_), Cow::Borrowed(_), Some(Cow::Borrowed(_)))
    ));
    let Payload::Json(json) = &event.payload else { panic!() };
    assert!(text.as_bytes().as_ptr_range().contains(&json.get().as_ptr()));
}
