//! docs/protocol.md, docs/protocol/*.json and the client's frame types, against the types of
//! airwave-protocol. `AIRWAVE_WRITE=1 cargo test --test protocol` writes what is generated anew.
#![allow(clippy::unwrap_used, missing_docs)]

/// The examples and tables of docs/protocol.md.
mod examples;
/// Streams for readers that are not ours.
mod streams;
/// The TypeScript of a JSON Schema.
mod typescript;

use std::path::PathBuf;

use serde_json::Value;

fn at_root(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Compares a generated file with what it must hold, or writes it.
fn is_up_to_date(path: &str, expected: &str) {
    let file = at_root(path);
    if std::env::var_os("AIRWAVE_WRITE").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, expected).unwrap();
    }
    let found = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        found == expected,
        "{path} is stale: AIRWAVE_WRITE=1 cargo test --test protocol"
    );
}

/// JSON with its keys in order, whatever features of serde_json the build has.
fn in_order(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            Value::Object(
                fields
                    .into_iter()
                    .map(|(name, value)| (name.clone(), in_order(value)))
                    .collect(),
            )
        }
        Value::Array(items) => Value::Array(items.iter().map(in_order).collect()),
        other => other.clone(),
    }
}

fn pretty(value: &Value) -> String {
    format!("{}\n", serde_json::to_string_pretty(&in_order(value)).unwrap())
}

#[test]
fn the_schema_is_up_to_date() {
    is_up_to_date("docs/protocol/schema.json", &pretty(&airwave_protocol::schema::document()));
}

#[test]
fn the_frames_of_the_typescript_client_are_up_to_date() {
    let types = typescript::module(&airwave_protocol::schema::document());
    is_up_to_date("clients/typescript/src/frames.ts", &types);
}
