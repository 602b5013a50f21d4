//! JSON Schema of every type, generated from the types. docs/protocol/schema.json holds it.

use std::borrow::Cow;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use crate::client::{ClientFrame, ClientMessage, MAX_ID, Ping, SendMessage, Subscribe, Unsubscribe};
use crate::code::{Code, GapReason};
use crate::envelope::Envelope;
use crate::error::ErrorBody;
use crate::notices::{Empty, End, ErrorFrame, Gap, MemberChange, Members, Pong, Reply, Subscribed, Unsubscribed};
use crate::page::Page;
use crate::payload::{Attributes, Base64, Json};
use crate::publication::{Answer, Publication, PublishAnswer};
use crate::server::ServerFrame;

/// Returns the schema of everything that goes over the wire as JSON: one document, whose `$defs`
/// name the types.
///
/// What a server sends may have more fields; what a client sends may not.
pub fn document() -> Value {
    let mut generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    generator.subschema_for::<ServerFrame<'_>>();
    generator.subschema_for::<ClientFrame<'_>>();
    generator.subschema_for::<ClientMessage<'_>>();
    generator.subschema_for::<Answer<'_>>();
    generator.subschema_for::<Publication<'_>>();
    generator.subschema_for::<PublishAnswer<'_>>();
    generator.subschema_for::<Page<'_>>();
    generator.subschema_for::<ErrorBody<'_>>();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Airwave's protocol",
        "description": "Generated from the crate airwave-protocol. Each JSON on the wire is one of these types.",
        "$defs": generator.take_definitions(true),
    })
}

/// A union whose members are told apart by `type`.
fn union(description: &str, members: Vec<Schema>) -> Schema {
    json_schema!({ "description": description, "oneOf": members })
}

fn tagged<T: JsonSchema>(generator: &mut SchemaGenerator, kind: &str, is_open: bool) -> Schema {
    let mut schema = generator.subschema_for::<T>();
    schema.insert("properties".into(), json!({ "type": { "const": kind } }));
    schema.insert("required".into(), json!(["type"]));
    if !is_open {
        schema.insert("unevaluatedProperties".into(), false.into());
    }
    schema
}

impl JsonSchema for ServerFrame<'_> {
    fn schema_name() -> Cow<'static, str> {
        "ServerFrame".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut event = generator.subschema_for::<Envelope<'_>>();
        event.insert("properties".into(), json!({ "type": false }));
        union(
            "A JSON frame of a server: a notice with a `type`, or an event. On a stream of server-sent \
             events the type stands in the event's name (`airwave.gap`), and the rest is the same.",
            vec![
                event,
                tagged::<Subscribed<'_>>(generator, "subscribed", true),
                tagged::<Unsubscribed<'_>>(generator, "unsubscribed", true),
                tagged::<Gap<'_>>(generator, "gap", true),
                tagged::<End<'_>>(generator, "end", true),
                tagged::<Reply<'_>>(generator, "reply", true),
                tagged::<ErrorFrame<'_>>(generator, "error", true),
                tagged::<Pong>(generator, "pong", true),
                tagged::<Members<'_>>(generator, "presence", true),
                tagged::<MemberChange<'_>>(generator, "join", true),
                tagged::<MemberChange<'_>>(generator, "leave", true),
                tagged::<MemberChange<'_>>(generator, "update", true),
                tagged::<Empty>(generator, "stale", true),
                tagged::<Empty>(generator, "heartbeat", true),
            ],
        )
    }
}

impl JsonSchema for ClientFrame<'_> {
    fn schema_name() -> Cow<'static, str> {
        "ClientFrame".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        union(
            "A JSON frame of a client on a WebSocket.",
            vec![
                tagged::<Subscribe<'_>>(generator, "subscribe", false),
                tagged::<Unsubscribe<'_>>(generator, "unsubscribe", false),
                tagged::<SendMessage<'_>>(generator, "send", false),
                tagged::<Ping>(generator, "ping", false),
            ],
        )
    }
}

impl JsonSchema for Json<'_> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Json".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!(true)
    }
}

impl JsonSchema for Base64<'_> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Base64".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "contentEncoding": "base64" })
    }
}

impl JsonSchema for Attributes<'_> {
    fn schema_name() -> Cow<'static, str> {
        "Attributes".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Names and texts beside a payload.",
            "type": "object",
            "additionalProperties": { "type": "string" },
        })
    }
}

/// A code: one of the table, or one of a newer server.
pub(crate) fn code(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "examples": Code::ALL.map(Code::as_str) })
}

/// A reason: one of those that are known, or one of a newer server.
pub(crate) fn gap_reason(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "examples": GapReason::ALL.map(GapReason::as_str) })
}

pub(crate) fn command_id(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "minimum": 0, "maximum": MAX_ID })
}

pub(crate) fn after(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["string", "integer"] })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_type_of_frame_is_in_the_schema() {
        let document = document();
        let kinds = |name: &str| -> Vec<String> {
            let members = document["$defs"][name]["oneOf"].as_array().unwrap();
            let kind = |member: &Value| member["properties"]["type"]["const"].as_str().map(str::to_owned);
            members.iter().filter_map(kind).collect()
        };
        for kind in kinds("ServerFrame") {
            let text = format!(
                r#"{{"type":"{kind}","id":1,"channel":"a","cursor":"1","after":null,"reason":"too-slow","data":1,"code":"ended",
                "message":"m","members":[],"member":{{"user":null,"connections":1}},"more":false,"resumed":true}}"#
            );
            let frame = ServerFrame::parse(&text).unwrap();
            assert_eq!(frame.kind(), Some(&*kind));
            assert!(!matches!(frame, ServerFrame::Unknown(_)), "{kind}");
        }
        for kind in kinds("ClientFrame") {
            let text = format!(r#"{{"type":"{kind}","channel":"a","event":"e","data":1}}"#);
            assert!(ClientFrame::parse(&text).is_ok(), "{kind}");
        }
    }
}
