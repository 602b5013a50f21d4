//! The `airwave` binary as a user has it: a real server on a port of its own, real clients, their
//! output and exit codes.
#![allow(clippy::unwrap_used, missing_docs)]

/// Each example as a program of its own.
#[cfg(all(unix, feature = "gallery"))]
#[path = "cli/examples.rs"]
mod examples;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Far longer than anything here takes; only what hangs meets it.
const AGES: &str = "120s";
const AGES_TIME: Duration = Duration::from_secs(120);

/// A folder of its own, gone when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("airwave-cli-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn with(file: &str) -> Self {
        let folder = Self::new();
        std::fs::write(folder.0.join("airwave.toml"), file).unwrap();
        folder
    }

    /// `airwave` with these words, in this folder, with no setting from outside.
    fn airwave(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_airwave"));
        command.args(words).current_dir(&self.0).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("AIRWAVE_") || text == "RUST_LOG" {
                command.env_remove(&name);
            }
        }
        command
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A process that does not outlive its test.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    fn wait(&mut self) -> ExitStatus {
        let started = std::time::Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < AGES_TIME, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Everything that is printed until the end, and the exit code.
    fn output(&mut self) -> (String, Option<i32>) {
        let mut text = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        (text, self.wait().code())
    }

    #[cfg(unix)]
    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.0.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lines as they come, from a thread, so that a test can wait for one.
fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn wait_for(lines: &Receiver<String>, part: &str) -> String {
    loop {
        let line = lines
            .recv_timeout(AGES_TIME)
            .unwrap_or_else(|_| panic!("no line with {part:?}"));
        if line.contains(part) {
            return line;
        }
    }
}

struct Server {
    process: Running,
    url: String,
    folder: Folder,
    log: Receiver<String>,
}

impl Server {
    fn start() -> Self {
        Self::start_in(Folder::new(), &[])
    }

    fn start_in(folder: Folder, variables: &[(&str, &str)]) -> Self {
        let mut command = folder.airwave(&["--listen", "127.0.0.1:0"]);
        command.envs(variables.iter().copied());
        let mut process = Running::start(&mut command);
        let out = lines(process.0.stdout.take().unwrap());
        let log = lines(process.0.stderr.take().unwrap());
        let line = out.recv_timeout(AGES_TIME).unwrap();
        let url = line
            .strip_prefix("airwave listening on ")
            .unwrap_or_else(|| panic!("{line}"))
            .to_owned();
        Self {
            process,
            url,
            folder,
            log,
        }
    }

    fn client(&self, words: &[&str]) -> Command {
        let mut command = self.folder.airwave(words);
        command.env("AIRWAVE_URL", &self.url);
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.client(words).output().unwrap()
    }

    /// The cursor of what was published.
    fn publish(&self, words: &[&str]) -> String {
        let output = self.run(&[&["publish"], words].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A listener that is confirmed.
    fn listen(&self, words: &[&str]) -> (Running, Receiver<String>) {
        let mut process = Running::start(&mut self.client(&[&["listen", "--for", AGES], words].concat()));
        let said = lines(process.0.stderr.take().unwrap());
        wait_for(&said, "listening after");
        (process, said)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn what_is_published_is_heard_over_both_transports() {
    let server = Server::start();
    for transport in ["sse", "websocket"] {
        let channel = format!("both/{transport}");
        let (mut listener, _said) = server.listen(&[&channel, "--transport", transport]);
        std::fs::write(server.folder.0.join("bin"), [0, 255]).unwrap();
        let first = server.publish(&[&channel, "{\"n\": 1}", "--event", "count"]);
        let second = server.publish(&[&channel, "two\nlines"]);
        let third = server.publish(&[&channel, "--binary", "bin"]);
        server.publish(&[&channel, "--end"]);
        let (printed, code) = listener.output();
        let expected = format!("{first} count {{\"n\": 1}}\n{second} message two\\nlines\n{third} message AP8=\n");
        assert_eq!((printed, code), (expected, Some(0)), "{transport}");

        // A cursor that was printed is one to go on from; an ended channel ends the listener, and
        // takes nothing more.
        let again = server.run(&[
            "listen",
            &channel,
            "--transport",
            transport,
            "--after",
            &first,
            "--raw",
            "--for",
            AGES,
        ]);
        assert_eq!(
            (again.stdout, again.status.code()),
            (b"two\nlines\n\0\xff\n".to_vec(), Some(0)),
            "{transport}"
        );
        let refused = server.run(&["publish", &channel, "x"]);
        assert_eq!(refused.status.code(), Some(1));
        assert!(text(&refused.stderr).contains("(ended)"), "{}", text(&refused.stderr));
    }
}

#[test]
fn lines_arrive_in_order_on_one_stream_of_several_channels() {
    // More than one request, and less than history holds: a slow machine must not make a gap.
    const MANY: usize = 900;
    let server = Server::start();
    let count = MANY.to_string();
    let over = |transport: &str| server.listen(&["log/a", "log/b", "--transport", transport, "--count", &count, "--json"]);
    let (mut sse, sse_said) = over("sse");
    let (mut websocket, websocket_said) = over("websocket");
    // The second channel's confirmation; the first has been waited for.
    wait_for(&sse_said, "listening after");
    wait_for(&websocket_said, "listening after");

    let mut publisher = Running::start(
        server
            .client(&["publish", "log/b", "--lines", "--event", "line"])
            .stdin(Stdio::piped()),
    );
    let mut input = publisher.0.stdin.take().unwrap();
    for i in 0..MANY {
        writeln!(input, "line {i}").unwrap();
    }
    drop(input);
    let (cursor, code) = publisher.output();
    assert_eq!(code, Some(0));

    for (mut printed, name) in [(sse.output(), "sse"), (websocket.output(), "websocket")] {
        assert_eq!(printed.1, Some(0), "{name}");
        let events: Vec<serde_json::Value> = printed.0.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(events.len(), MANY, "{name}");
        for (i, event) in events.iter().enumerate() {
            assert_eq!(
                (&event["channel"], &event["text"]),
                (&"log/b".into(), &format!("line {i}").into()),
                "{name}"
            );
        }
        assert_eq!(events[MANY - 1]["id"], cursor.trim(), "{name}");
        printed.0.clear();
    }
}

#[test]
fn a_token_opens_publishing_and_nothing_shows_it() {
    const TOKEN: &str = "correct-horse-battery-staple";
    let file = "[[channels]]\nmatch = \"open/{id}\"\nuse_case = \"feed\"\n";
    let server = Server::start_in(
        Folder::with(file),
        &[("AIRWAVE_PUBLISH_TOKEN", TOKEN), ("AIRWAVE_LOG_LEVEL", "trace")],
    );
    let without = server.run(&["publish", "open/1", "x"]);
    assert_eq!(without.status.code(), Some(1));
    assert!(text(&without.stderr).contains("(unauthorized)"), "{}", text(&without.stderr));
    let output = server
        .client(&["publish", "open/1", "x"])
        .env("AIRWAVE_PUBLISH_TOKEN", TOKEN)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let unknown = server.run(&["listen", "closed", "--for", AGES]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(
        text(&unknown.stderr).contains("(unknown-channel)"),
        "{}",
        text(&unknown.stderr)
    );

    let Server { process, log, .. } = server;
    drop(process);
    let log: Vec<String> = log.iter().collect();
    assert!(!log.is_empty() && !log.iter().any(|line| line.contains(TOKEN)), "{log:#?}");
}

/// The log at start and `airwave check` say the same of rules that are open to everyone.
#[test]
fn open_rules_of_a_reachable_server_are_warned_of() {
    let file = "hosts = [\"live.example\"]\npublish.open = false\n[[channels]]\nmatch = \"open/{id}\"\nuse_case = \"chat\"\nsend = \"publish\"\n";
    let mut server = Server::start_in(Folder::with(file), &[("AIRWAVE_LOG_FORMAT", "json")]);
    let warned = |part: &str| {
        let line: serde_json::Value = serde_json::from_str(&wait_for(&server.log, part)).unwrap();
        assert_eq!(line["level"], "WARN", "{line}");
        line["message"].as_str().unwrap().to_owned()
    };
    let (hear, say) = (warned("may listen to"), warned("may publish to"));
    // The port of the server is its own; a free one is said as it was asked for.
    let json = server
        .folder
        .airwave(&["check", "--listen", "127.0.0.1:0", "--json"])
        .output()
        .unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["warnings"], serde_json::json!([hear, say]));
    let report = server.folder.airwave(&["check", "--listen", "127.0.0.1:0"]).output().unwrap();
    assert!(
        text(&report.stdout).ends_with(&format!("\n  {hear}\n  {say}\n")),
        "{}",
        text(&report.stdout)
    );

    let _ = server.process.0.kill();
    let closed = Folder::with("[[channels]]\nmatch = \"open/{id}\"\nuse_case = \"chat\"\nsend = \"publish\"\n");
    let json = closed.airwave(&["check", "--json"]).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["warnings"], serde_json::json!([]));
    let Server { process, log, .. } = Server::start_in(closed, &[]);
    drop(process);
    let log: Vec<String> = log.iter().collect();
    assert!(!log.iter().any(|line| line.contains("anyone there")), "{log:#?}");
}

#[test]
fn who_closes_publishing_closes_it_on_loopback_too() {
    let file = "publish.open = false\n[[channels]]\nmatch = \"open/{id}\"\nuse_case = \"feed\"\n";
    let server = Server::start_in(Folder::with(file), &[]);
    let refused = server.run(&["publish", "open/1", "x"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("(forbidden)"), "{}", text(&refused.stderr));
}

#[test]
fn the_transport_is_the_one_that_the_server_names() {
    let file = "[[channels]]\nmatch = \"chat/{id}\"\nuse_case = \"chat\"\n";
    let server = Server::start_in(Folder::with(file), &[]);
    let (mut listener, _said) = server.listen(&["chat/1", "--count", "1"]);
    let cursor = server.publish(&["chat/1", "hi"]);
    assert_eq!(listener.output(), (format!("{cursor} message hi\n"), Some(0)));
    let wrong = server.run(&["listen", "chat/1", "--transport", "sse", "--for", AGES]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(
        text(&wrong.stderr).contains("--transport websocket"),
        "{}",
        text(&wrong.stderr)
    );
}

#[test]
fn a_reader_that_leaves_ends_the_listener_quietly() {
    let server = Server::start();
    let (mut listener, said) = server.listen(&["pipe"]);
    let stdout: ChildStdout = listener.0.stdout.take().unwrap();
    drop(stdout);
    server.publish(&["pipe", "x"]);
    assert_eq!(listener.wait().code(), Some(0));
    assert_eq!(said.iter().collect::<Vec<_>>(), Vec::<String>::new());
}

#[test]
fn a_server_that_was_never_there_is_an_error_when_the_time_is_over() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    let folder = Folder::new();
    let output = folder
        .airwave(&["listen", "a", "--url", &url, "--for", "2s"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("refused"), "{}", text(&output.stderr));
}

#[test]
fn too_few_events_in_the_time_are_an_error() {
    let server = Server::start();
    let none = server.run(&["listen", "quiet", "--for", "1ms"]);
    assert_eq!(none.status.code(), Some(0));
    let few = server.run(&["listen", "quiet", "--for", "1ms", "--count", "1"]);
    assert_eq!(few.status.code(), Some(1));
    assert!(
        text(&few.stderr).ends_with("airwave: 0 of 1 events\n"),
        "{}",
        text(&few.stderr)
    );
}

#[cfg(unix)]
#[test]
fn a_signal_ends_the_server_well_with_listeners_on_it() {
    for signal in ["-TERM", "-INT"] {
        let mut server = Server::start();
        let (_sse, sse_said) = server.listen(&["drain", "--transport", "sse"]);
        let (_websocket, websocket_said) = server.listen(&["drain", "--transport", "websocket"]);
        server.process.signal(signal);
        wait_for(&sse_said, "the stream ended; trying again");
        wait_for(&websocket_said, "closed (1012 retry=");
        assert_eq!(server.process.wait().code(), Some(0), "{signal}");
    }
}

#[test]
fn a_wrong_configuration_starts_nothing() {
    let folder = Folder::with("[limits]\nconections = 5\n[[channels]]\nmatch = \"a\"\nuse_case = \"chat\"\n");
    let expected = "airwave: configuration refused\n\
                    airwave.toml:2:1: \"conections\" is unknown in [limits]; did you mean \"connections\"?\n";
    for words in [&["check"][..], &["serve"], &[]] {
        let output = folder.airwave(words).output().unwrap();
        assert_eq!(
            (text(&output.stderr).as_str(), output.status.code()),
            (expected, Some(2)),
            "{words:?}"
        );
        assert!(output.stdout.is_empty());
    }
    let output = folder.airwave(&["check", "--config", "other.toml"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).starts_with("airwave: cannot read other.toml: "),
        "{}",
        text(&output.stderr)
    );
    let output = Folder::new().airwave(&["serve", "--listen", "0.0.0.0:0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--listen: 0.0.0.0:0 can be reached from other machines"));
}

#[test]
fn check_shows_what_is_in_force() {
    let folder = Folder::with("[[channels]]\nmatch = \"a/{id}\"\nuse_case = \"chat\"\nhistory.events = 9\n");
    let output = folder
        .airwave(&["check", "--log", "debug"])
        .env("AIRWAVE_DRAIN", "3s")
        .output()
        .unwrap();
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0));
    assert!(!shown.contains('\x1b'), "no colours in a pipe");
    let rows: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    for row in [
        &["history.events", "9", "airwave.toml:4"][..],
        &["transport", "websocket", "use", "case", "chat"],
        &["drain", "3s", "AIRWAVE_DRAIN"],
        &["log.level", "debug", "--log"],
    ] {
        assert!(rows.iter().any(|found| found == row), "{row:?} in\n{shown}");
    }
    let output = folder.airwave(&["check", "--json"]).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["rules"][0]["history"]["events"]["value"], 9);
}

#[test]
fn an_address_in_use_is_said() {
    let server = Server::start();
    let address = server.url.strip_prefix("http://").unwrap();
    let output = server.folder.airwave(&["serve", "--listen", address]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains(&format!("cannot listen on {address}")),
        "{}",
        text(&output.stderr)
    );
}

/// What a server says at a path, with the head before it.
fn get(server: &Server, path: &str, headers: &str) -> String {
    let address = server.url.strip_prefix("http://").unwrap();
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(AGES_TIME)).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn metrics(server: &Server, accept: &str) -> String {
    let answer = get(server, "/metrics", &format!("Accept: {accept}\r\n"));
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(!head.contains("chunked"), "{head}");
    body.to_owned()
}

/// Prometheus's own tool, or nothing, where it need not be here.
fn promtool() -> Option<PathBuf> {
    let named = std::env::var_os("AIRWAVE_TEST_PROMTOOL").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = || {
        std::env::split_paths(&path)
            .map(|dir| dir.join("promtool"))
            .find(|file| file.is_file())
    };
    let tool = named.or_else(found);
    if tool.is_none() {
        assert!(
            std::env::var_os("AIRWAVE_TEST_REQUIRE_ALL").is_none_or(|all| all != "1"),
            "promtool is missing: install the package prometheus, or name it in AIRWAVE_TEST_PROMTOOL"
        );
        eprintln!("skipped: there is no promtool");
    }
    tool
}

#[test]
fn prometheus_finds_nothing_to_say_about_the_metrics() {
    let Some(promtool) = promtool() else { return };
    let server = Server::start();
    let (_listener, _) = server.listen(&["a/b"]);
    server.publish(&["a/b", "1"]);
    let plain = metrics(&server, "text/plain");
    for name in [
        "process_resident_memory_bytes ",
        "process_open_fds ",
        "process_cpu_seconds_total ",
        "process_start_time_seconds ",
        "airwave_build_info{version=",
        "airwave_events_published_total{rule=\"{*channel}\"} 1",
        "airwave_connections{format=\"sse\"} 1",
    ] {
        assert!(plain.lines().any(|line| line.starts_with(name)), "{name} in {plain}");
    }
    assert!(!plain.contains("airwave_broker_silent_seconds"), "memory: cannot be silent");
    let mut check = Command::new(&promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check.stdin.take().unwrap().write_all(plain.as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");

    // `check metrics` reads the older format alone. What reads the other one wants a time with each
    // value.
    let open = metrics(&server, "application/openmetrics-text");
    assert!(open.ends_with("\n# EOF\n"), "{open}");
    let timed = |line: &str| match line.starts_with('#') {
        true => format!("{line}\n"),
        false => format!("{line} 1700000000\n"),
    };
    let file = server.folder.0.join("open.txt");
    std::fs::write(&file, open.lines().map(timed).collect::<String>()).unwrap();
    let output = Command::new(&promtool)
        .args(["tsdb", "create-blocks-from", "openmetrics"])
        .args([&file, &server.folder.0.join("blocks")])
        .output()
        .unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{said}");
    let names = |text: &str| {
        let series = text.lines().filter(|line| !line.starts_with('#'));
        series
            .map(|line| line.rsplit_once(' ').unwrap().0.to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&plain), names(&open));
}

#[test]
#[cfg(unix)]
fn a_start_and_a_drain_are_told_line_by_line() {
    let folder = Folder::with(
        "broker.url = \"memory:\"\ndrain = \"120s\"\n[publish]\ntoken = \"0123456789abcdef\"\n\
         [[channels]]\nmatch = \"orders/{id}\"\nuse_case = \"feed\"\n[log]\nformat = \"json\"\n",
    );
    let mut server = Server::start_in(folder, &[]);
    let line = wait_for(&server.log, "configuration in force");
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (value["level"].as_str(), value["file"].as_str()),
        (Some("INFO"), Some("airwave.toml"))
    );
    assert_eq!(value["rules"], "orders/{id}");
    assert!(value["settings"].as_str().unwrap().contains("drain=2m; "), "{line}");
    assert!(!line.contains("0123456789abcdef"), "{line}");
    // A request that is under way, so that the drain has to wait.
    let address = server.url.strip_prefix("http://").unwrap().to_owned();
    let mut stream = std::net::TcpStream::connect(&address).unwrap();
    let head = format!(
        "POST /publish HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer 0123456789abcdef\r\n\
         Content-Type: application/json\r\nContent-Length: 30\r\nExpect: 100-continue\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    // The server says so when it waits for the body.
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100");
    server.process.signal("-TERM");
    let begun = wait_for(&server.log, "draining: nothing new is taken in");
    assert!(begun.contains("\"connections\":"), "{begun}");
    let waits = wait_for(&server.log, "draining: waits for");
    let value: serde_json::Value = serde_json::from_str(&waits).unwrap();
    assert_eq!(
        (value["connections"].as_u64(), value["sessions"].as_u64()),
        (Some(1), Some(0)),
        "{waits}"
    );
    assert!(value["seconds_left"].as_u64().unwrap() > 60);
    drop(stream);
    wait_for(&server.log, "\"message\":\"drained\"");
    assert_eq!(server.process.wait().code(), Some(0));
}

#[test]
fn what_ends_the_process_at_its_start_is_one_line_of_the_log() {
    let json = |output: &Output| {
        let said = text(&output.stderr);
        assert_eq!(said.lines().count(), 1, "{said}");
        let value: serde_json::Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
        assert_eq!(
            (value["level"].as_str(), value["target"].as_str()),
            (Some("ERROR"), Some("airwave"))
        );
        assert!(value["timestamp"].is_string());
        value["message"].as_str().unwrap().to_owned()
    };
    let wrong = Folder::with("[limits]\nconections = 5\n[log]\nformat = \"json\"\n[[channels]]\nmatch = \"a\"\n");
    let output = wrong.airwave(&[]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(json(&output).contains("did you mean \"connections\"?"));

    let folder = Folder::new();
    let output = folder
        .airwave(&["--log-format", "json", "--config", "other.toml"])
        .output()
        .unwrap();
    assert!(json(&output).starts_with("cannot read other.toml: "));
    let output = folder.airwave(&["--log-format=json", "--port", "80"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(json(&output).contains("--listen 127.0.0.1:8080"));
    let output = folder.airwave(&["--port", "80"]).output().unwrap();
    assert!(text(&output.stderr).contains("tip: the port is part of the address: --listen 127.0.0.1:8080"));

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = folder
        .airwave(&["--listen", &address, "--log", "off"])
        .env("AIRWAVE_LOG_FORMAT", "json")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(json(&output).contains("choose another address with --listen"));
    let output = folder
        .airwave(&["--listen", "127.0.0.1:0", "--log", "off"])
        .env("AIRWAVE_LOG_FORMAT", "json")
        .env("AIRWAVE_BROKER_URL", format!("redis://:secret@{address}"))
        .output();
    // The listener above takes the connection and says nothing.
    assert!(!json(&output.unwrap()).contains("secret"));
}

#[test]
fn a_client_says_something_from_the_command_line() {
    let folder =
        Folder::with("[[channels]]\nmatch = \"chat/{room}\"\nuse_case = \"chat\"\nsend = \"publish\"\npresence = false\n");
    let server = Server::start_in(folder, &[]);
    let (mut listener, _) = server.listen(&["chat/lobby", "--count", "2"]);
    let output = server.run(&["send", "chat/lobby", "{\"text\":\"hi\"}", "--event", "say"]);
    assert_eq!(
        (text(&output.stdout).as_str(), output.status.code()),
        ("", Some(0)),
        "{}",
        text(&output.stderr)
    );
    let output = server.run(&["send", "chat/lobby", "7", "--text", "--key", "k"]);
    assert!(output.status.success());
    let (heard, code) = listener.output();
    let heard: Vec<&str> = heard.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    assert_eq!((heard, code), (vec!["say {\"text\":\"hi\"}", "message 7"], Some(0)));
    let output = server.run(&["send", "nowhere", "x"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("unknown-channel"), "{}", text(&output.stderr));
}

#[test]
fn a_refused_origin_is_told_once_with_what_to_write() {
    let server = Server::start();
    for _ in 0..300 {
        let answer = get(&server, "/channels/a", "Origin: https://app.example\r\n");
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    }
    let line = wait_for(&server.log, "refused a page");
    assert!(
        line.contains("'origins'") && line.contains("https://app.example") && line.contains("127.0.0.1"),
        "{line}"
    );
    let Server { process, log, .. } = server;
    drop(process);
    let rest: Vec<String> = log.iter().filter(|line| line.contains("app.example")).collect();
    assert!(rest.is_empty(), "{rest:?}");
}
