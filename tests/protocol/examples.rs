use airwave_protocol::{
    Answer, ClientFrame, ClientMessage, Code, ErrorBody, Failure, GapReason, Member, Page, Publication, Published, ServerFrame,
    sse,
};
use serde::Deserialize;
use serde_json::{Value, json};

fn page() -> String {
    std::fs::read_to_string(super::at_root("docs/protocol.md")).unwrap()
}

/// What stands between backticks: lines of blocks, and code within text. Objects and arrays that a
/// block breaks into several lines are put together.
fn code_of(page: &str) -> Vec<String> {
    let mut all = Vec::new();
    for (index, part) in page.split("```").enumerate() {
        if index % 2 == 0 {
            let text = part.replace('\n', " ");
            all.extend(text.split('`').skip(1).step_by(2).map(str::to_owned));
            continue;
        }
        let mut whole = String::new();
        for line in part.lines() {
            whole.push_str(line.trim());
            let count = |mark: char| whole.matches(mark).count();
            if count('{') == count('}') && count('[') == count(']') {
                all.push(std::mem::take(&mut whole));
            }
        }
    }
    all
}

/// `{…}` is any object, and `…` any text: the page leaves out what differs.
fn filled(code: &str) -> String {
    let code = code.replace("{…}", "{}").replace("[…]", "[]");
    let mut text = String::new();
    let mut in_string = false;
    for c in code.chars() {
        match c {
            '"' => in_string = !in_string,
            '…' if !in_string => {
                text.push_str("\"…\"");
                continue;
            }
            _ => {}
        }
        text.push(c);
    }
    text
}

/// The name of the type that an example is of, by the fields that it has.
fn type_of(value: &Value) -> Option<&'static str> {
    let has = |name: &str| value.get(name).is_some();
    let kind = value["type"].as_str();
    Some(match kind {
        Some("subscribe" | "unsubscribe" | "send" | "ping") => "ClientFrame",
        Some(_) => "ServerFrame",
        None if has("events") => "Page",
        None if has("error") => "ErrorBody",
        None if has("user") => "Member",
        None if has("duplicate") => "Published",
        None if has("channel") && has("id") => "ServerFrame",
        None if has("channel") && has("event") => "Publication",
        None if has("event") => "ClientMessage",
        None if has("data") => "Answer",
        None if has("code") => "Failure",
        _ => return None,
    })
}

/// Every object of the page that is whole: the name of its type, and its text.
fn examples() -> Vec<(&'static str, String)> {
    let whole = |code: &String| !code.contains(",…}");
    let texts = code_of(&page()).into_iter().filter(whole).map(|code| filled(&code));
    let example = |text: String| {
        // Data of events are the application's, and lists of fields have a test of their own.
        let value: Value = serde_json::from_str(&text).ok()?;
        Some((type_of(&value)?, text))
    };
    texts.filter_map(example).collect()
}

fn is<'a, T: Deserialize<'a>>(text: &'a str) -> Result<(), String> {
    serde_json::from_str::<T>(text).map(drop).map_err(|error| error.to_string())
}

fn is_read(kind: &str, text: &str) -> Result<(), String> {
    match kind {
        "ServerFrame" => match ServerFrame::parse(text) {
            Ok(ServerFrame::Unknown(unknown)) => Err(format!("'{}' is no type of a frame", unknown.kind)),
            read => read.map(drop).map_err(|error| error.to_string()),
        },
        "ClientFrame" => is::<ClientFrame<'_>>(text),
        "Page" => is::<Page<'_>>(text),
        "ErrorBody" => is::<ErrorBody<'_>>(text),
        "Member" => is::<Member<'_>>(text),
        "Published" => is::<Published<'_>>(text),
        "Publication" => is::<Publication<'_>>(text),
        "ClientMessage" => is::<ClientMessage<'_>>(text),
        "Answer" => is::<Answer<'_>>(text),
        "Failure" => is::<Failure<'_>>(text),
        other => Err(format!("no type is called {other}")),
    }
}

#[test]
fn each_example_of_the_page_is_read_as_what_it_shows() {
    let examples = examples();
    for (kind, text) in &examples {
        assert_eq!(is_read(kind, text), Ok(()), "{kind}: {text}");
    }
    assert!(examples.len() >= 25, "only {} examples were found", examples.len());
    // A validator that is not ours looks at the same (clients/typescript/test/protocol.test.ts).
    let all: Vec<Value> = examples
        .iter()
        .map(|(kind, text)| json!({"type": kind, "json": serde_json::from_str::<Value>(text).unwrap()}))
        .collect();
    super::is_up_to_date("docs/protocol/examples.json", &super::pretty(&Value::Array(all)));
}

#[test]
fn each_stream_of_the_page_is_read_as_what_it_shows() {
    let page = page();
    let mut read = 0;
    for block in page.split("```").skip(1).step_by(2) {
        let (mut parser, mut events) = (sse::Parser::default(), Vec::new());
        parser.push(block.trim_start().as_bytes(), &mut events).unwrap();
        for event in events.iter().filter(|event| event.event != "message") {
            let frame = ServerFrame::from_sse(event, Some("orders/abc123")).unwrap();
            assert!(!matches!(frame, ServerFrame::Unknown(_)), "{event:?}");
            read += 1;
        }
    }
    assert!(read >= 3, "only {read} events were found");
}

/// The names of `{"channel","cursor"}`; `None` if the code is no such list.
fn list_of_names(code: &str) -> Option<Vec<String>> {
    let inside = code.replace(":[…]", "");
    let inside = inside.strip_prefix("{\"")?.strip_suffix("\"}")?.to_owned();
    let names: Vec<String> = inside.split("\",\"").map(str::to_owned).collect();
    let mut names: Vec<String> = names.into_iter().filter(|name| !name.contains('"')).collect();
    names.sort();
    (names.len() == inside.matches("\",\"").count() + 1).then_some(names)
}

#[test]
fn the_fields_of_control_events_are_those_of_the_schema() {
    let schema = airwave_protocol::schema::document();
    let fields_of = |kind: &str| -> Vec<String> {
        let frames = schema["$defs"]["ServerFrame"]["oneOf"].as_array().unwrap();
        let frame = frames.iter().find(|frame| frame["properties"]["type"]["const"] == kind);
        let frame = frame.unwrap_or_else(|| panic!("no frame is called {kind}"));
        let name = frame["$ref"].as_str().unwrap().rsplit('/').next().unwrap();
        let required = schema["$defs"][name]["required"].as_array().into_iter().flatten();
        // On a stream no command is answered.
        let mut fields: Vec<_> = required
            .map(|name| name.as_str().unwrap().to_owned())
            .filter(|name| name != "id")
            .collect();
        fields.sort();
        fields
    };
    let mut compared = 0;
    for row in page().lines().filter(|line| line.starts_with('|')) {
        let code: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
        let kind = code.iter().find_map(|code| code.strip_prefix("airwave."));
        let names = code.iter().find_map(|code| list_of_names(code));
        let (Some(kind), Some(names)) = (kind, names) else { continue };
        assert_eq!(names, fields_of(kind), "{row}");
        compared += 1;
    }
    assert_eq!(compared, 8, "rows of control events with their fields");
}

#[test]
fn the_table_of_codes_is_the_one_of_the_crate() {
    let mut found = Vec::new();
    for row in page().lines() {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, code, status, close, _, _] = cells[..] else { continue };
        let Some(code) = code.strip_prefix('`').and_then(|code| code.strip_suffix('`')) else {
            continue;
        };
        if let (Ok(status), Ok(close)) = (status.parse::<u16>(), close.parse::<u16>()) {
            found.push((code.to_owned(), status, close));
        }
    }
    let expected = Code::ALL.map(|code| (code.as_str().to_owned(), code.http_status(), code.close_code()));
    assert_eq!(found, expected);
    let text = page().replace('\n', " ");
    for reason in GapReason::ALL {
        let explained = format!("`{}` (", reason.as_str());
        assert!(text.contains(&explained), "{reason:?} is explained");
    }
}
