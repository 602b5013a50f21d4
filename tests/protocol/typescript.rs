use serde_json::Value;

const HEAD: &str = "// Generated from the types of airwave-protocol; `cargo test --test protocol` says when it is stale.\n";

/// The module that exports a type for each of the schema's `$defs`.
pub fn module(schema: &Value) -> String {
    let mut module = HEAD.to_owned();
    let mut all: Vec<_> = schema["$defs"].as_object().unwrap().iter().collect();
    all.sort_by_key(|(name, _)| *name);
    for (name, schema) in all {
        module.push('\n');
        if let Some(text) = schema["description"].as_str() {
            module.push_str(&comment(text, ""));
        }
        module.push_str(&format!("export type {name} = {};\n", of(schema, "")).replace("= \n", "=\n"));
    }
    module
}

/// Within 100 columns.
fn comment(text: &str, indent: &str) -> String {
    // Links of Rust's documentation are none here.
    let text = text.replace("[`", "`").replace("`]", "`");
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let one = format!("{indent}/** {text} */\n");
    if one.chars().count() <= 101 {
        return one;
    }
    let (mut comment, mut line) = (format!("{indent}/**\n"), format!("{indent} *"));
    for word in text.split(' ') {
        if line.chars().count() + 1 + word.chars().count() > 100 {
            comment.push_str(&line);
            comment.push('\n');
            line = format!("{indent} *");
        }
        line.push(' ');
        line.push_str(word);
    }
    format!("{comment}{line}\n{indent} */\n")
}

fn of(schema: &Value, indent: &str) -> String {
    let Some(schema) = schema.as_object() else {
        return if schema == &Value::Bool(true) {
            "unknown"
        } else {
            "undefined"
        }
        .to_owned();
    };
    let mut parts = Vec::new();
    if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
        parts.push(name.rsplit('/').next().unwrap().to_owned());
    }
    if let Some(value) = schema.get("const") {
        parts.push(value.to_string());
    }
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        parts.push(object(schema, properties, indent));
    }
    for union in ["oneOf", "anyOf"] {
        if let Some(members) = schema.get(union).and_then(Value::as_array) {
            parts.push(of_union(members, indent));
        }
    }
    if parts.is_empty() {
        return plain(schema, indent);
    }
    parts.join(" & ")
}

/// Each member on a line of its own where they are told apart by `type`.
fn of_union(members: &[Value], indent: &str) -> String {
    let lines = members.iter().all(|member| member["properties"]["type"] != Value::Null);
    if lines {
        return members.iter().map(|member| format!("\n  | {}", of(member, indent))).collect();
    }
    // Of fields of which there is exactly one, the others are `undefined`: code may look at each.
    let only = |member: &Value| match member["properties"].as_object() {
        Some(properties) if properties.len() == 1 => properties.keys().next().cloned(),
        _ => None,
    };
    let names: Vec<String> = members.iter().filter_map(only).collect();
    let members: Vec<String> = members
        .iter()
        .map(|member| match only(member) {
            Some(own) => {
                let others = names
                    .iter()
                    .filter(|name| **name != own)
                    .map(|name| format!("; {name}?: undefined"));
                let own = format!("{own}: {}", of(&member["properties"][&own], indent));
                format!("{{ {own}{} }}", others.collect::<String>())
            }
            None => of(member, indent),
        })
        .collect();
    format!("({})", members.join(" | "))
}

fn object(schema: &serde_json::Map<String, Value>, properties: &serde_json::Map<String, Value>, indent: &str) -> String {
    let required = schema.get("required").and_then(Value::as_array);
    let is_required = |name: &str| required.is_some_and(|required| required.iter().any(|known| known == name));
    let mut fields: Vec<_> = properties.iter().collect();
    fields.sort_by_key(|(name, _)| *name);
    let field = |(name, schema): &(&String, &Value), indent: &str| {
        let mark = if is_required(name) { "" } else { "?" };
        format!("{name}{mark}: {}", of(schema, indent))
    };
    if let [one] = &fields[..]
        && one.1["description"].is_null()
    {
        return format!("{{ {} }}", field(one, indent));
    }
    let inner = format!("{indent}  ");
    let mut text = "{\n".to_owned();
    for one in &fields {
        if let Some(description) = one.1["description"].as_str() {
            text.push_str(&comment(description, &inner));
        }
        text.push_str(&format!("{inner}{};\n", field(one, &inner)));
    }
    format!("{text}{indent}}}")
}

fn plain(schema: &serde_json::Map<String, Value>, indent: &str) -> String {
    let name = |kind: &str| match kind {
        "string" => "string".to_owned(),
        "integer" | "number" => "number".to_owned(),
        "boolean" => "boolean".to_owned(),
        "null" => "null".to_owned(),
        "array" => {
            let items = schema.get("items").map_or("unknown".to_owned(), |items| of(items, indent));
            format!("{items}[]")
        }
        "object" => match schema.get("additionalProperties") {
            Some(value) => format!("Record<string, {}>", of(value, indent)),
            None => "Record<never, never>".to_owned(),
        },
        other => panic!("no TypeScript for the type {other}"),
    };
    match schema.get("type") {
        Some(Value::String(kind)) => name(kind),
        Some(Value::Array(kinds)) => kinds
            .iter()
            .map(|kind| name(kind.as_str().unwrap()))
            .collect::<Vec<_>>()
            .join(" | "),
        _ => "unknown".to_owned(),
    }
}
