//! Each example alone, as `cargo run --example NAME` has it: it says where it is, shows its page,
//! its first event comes over its transport, and it goes when it is asked to.

use std::net::TcpStream;
use std::path::Path;

use super::*;

/// An example that runs, in a folder of its own.
struct Example {
    process: Running,
    /// `127.0.0.1:PORT`
    address: String,
    folder: Folder,
}

impl Example {
    fn start(name: &str) -> Self {
        // `cargo test` builds the examples beside the binary.
        let program = Path::new(env!("CARGO_BIN_EXE_airwave")).with_file_name("examples").join(name);
        assert!(
            program.exists(),
            "there is no {}: build it with cargo build --examples",
            program.display()
        );
        let folder = Folder::new();
        let mut command = Command::new(program);
        command.current_dir(&folder.0).stdin(Stdio::null());
        for (variable, _) in std::env::vars_os() {
            if ["AIRWAVE_", "OPENAI_", "FEED_"]
                .iter()
                .any(|begin| variable.to_string_lossy().starts_with(begin))
            {
                command.env_remove(variable);
            }
        }
        let mut process = Running::start(command.env("AIRWAVE_LISTEN", "127.0.0.1:0"));
        let said = lines(process.0.stdout.take().unwrap());
        let line = wait_for(&said, "open http://");
        let address = line.strip_prefix("open http://").unwrap();
        let (address, at) = address.split_once('/').unwrap();
        assert_eq!(at, format!("{name}/"));
        Self {
            process,
            address: address.to_owned(),
            folder,
        }
    }

    /// The whole answer to a request, head and body.
    fn ask(&self, request: &str, host: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(AGES_TIME)).unwrap();
        write!(
            stream,
            "{request} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer Ada\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn get(&self, path: &str) -> String {
        self.ask(&format!("GET {path}"), &self.address, "")
    }

    fn send(&self, channel: &str, body: &str) {
        let answer = self.ask(&format!("POST /channels/{channel}"), &self.address, body);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

/// `NAME: CHANNEL over TRANSPORT`; `cause` makes the `first` event, if the example does not make it
/// by itself.
fn works_alone(name: &str, channel: &str, transport: &str, first: &str, cause: impl FnOnce(&Example)) {
    let mut example = Example::start(name);
    assert!(example.get("/").contains(&format!("\r\nlocation: /{name}/\r\n")));
    let page = example.get(&format!("/{name}/"));
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    assert!(
        page.contains("<header id=\"bar\">") && page.contains("src=\"page.js\""),
        "{page}"
    );
    for file in ["page.js", "frame.js", "style.css", "preview.js"] {
        let answer = example.get(&format!("/{name}/{file}"));
        assert!(answer.starts_with("HTTP/1.1 200"), "{file}: {answer}");
    }
    assert!(example.get("/client.js").starts_with("HTTP/1.1 200"));

    // What the channel tells its clients to use is what the matrix says.
    let told = example.get(&format!("/channels/{channel}"));
    assert!(told.contains(&format!("\"transport\":\"{transport}\"")), "{told}");

    // A page of another site that has its own name lead here is told to go, whatever it asks for.
    for request in [
        format!("GET /{name}/"),
        format!("GET /channels/{channel}"),
        format!("POST /channels/{channel}"),
    ] {
        let answer = example.ask(&request, "evil.example", "{\"event\":\"start\",\"data\":\"gzip -1\"}");
        assert!(
            answer.starts_with("HTTP/1.1 403") && answer.contains("\"forbidden\""),
            "{request}: {answer}"
        );
    }

    let mut listener = example
        .folder
        .airwave(&["listen", channel, "--transport", transport, "--for", AGES]);
    let mut listener = Running::start(listener.env("AIRWAVE_URL", format!("http://{}", example.address)));
    let heard = lines(listener.0.stdout.take().unwrap());
    wait_for(&lines(listener.0.stderr.take().unwrap()), "listening after");
    cause(&example);
    // Who comes in the middle of a round hears the rest of it first.
    let line = wait_for(&heard, &format!(" {first} "));
    assert_eq!(line.split(' ').nth(1), Some(first), "{line}");

    example.process.signal("-TERM");
    let status = example.process.wait();
    assert!(status.success(), "{status}");
}

#[test]
fn dashboard() {
    works_alone("dashboard", "dashboard/machine", "sse", "cpu", |_| {});
}

#[test]
fn job_status() {
    works_alone("job-status", "jobs/one", "sse", "queued", |example| {
        example.send("jobs/one", "{\"event\":\"start\",\"data\":\"gzip -1\"}");
    });
}

#[test]
fn ai_tokens() {
    works_alone("ai-tokens", "ai/one", "sse", "asked", |example| {
        example.send("ai/one", "{\"event\":\"ask\",\"data\":\"Why?\"}");
    });
}

#[test]
fn feed() {
    works_alone("feed", "feed/activity", "sse", "file", |example| {
        std::fs::write(example.folder.0.join("new.txt"), "new").unwrap();
    });
}

#[test]
fn chat() {
    works_alone("chat", "chat/lobby", "websocket", "said", |example| {
        example.send("chat/lobby", "{\"event\":\"say\",\"data\":{\"text\":\"hello\"}}");
    });
}

#[test]
fn collab() {
    // An update of one document by one client: "a" at its beginning, as Yjs writes it.
    let update = "AQEBAAQBBHRleHQBYQA=";
    works_alone("collab", "collab/notes", "websocket", "update", |example| {
        example.send("collab/notes", &format!("{{\"event\":\"update\",\"base64\":\"{update}\"}}"));
    });
}

#[test]
fn game() {
    works_alone("game", "game/arena", "websocket", "player", |_| {});
}

#[test]
fn trading() {
    works_alone("trading", "trading/quotes", "websocket", "quote", |_| {});
}
