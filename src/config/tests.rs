#![allow(clippy::unwrap_used)]

use std::time::Duration;

use airwave_core::rule::{Delivery, Limits, ReplayOnSubscribe, Rules, SendPolicy, SlowPolicy, TransportName};
use airwave_core::{ChannelName, UseCase};
use proptest::prelude::*;

use super::*;

const ONE_RULE: &str = "[[channels]]\nmatch = \"orders/{id}\"\nuse_case = \"job-status\"\n";

fn load(text: &str) -> Result<Config, ConfigError> {
    Config::load(&Sources::of_file("airwave.toml", text))
}

/// What is wrong with `text`, one line each.
fn refusals(text: &str) -> Vec<String> {
    match load(text) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(error) => error.problems().iter().map(ToString::to_string).collect(),
    }
}

#[track_caller]
fn refused(text: &str, expected: &str) {
    assert_eq!(refusals(text), [expected]);
}

fn with_env(text: Option<&str>, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::load(&Sources {
        file: text.map(|text| ("airwave.toml".into(), text.into())),
        environment: variables.iter().map(|(name, value)| (name.into(), value.into())).collect(),
        ..Sources::default()
    })
}

/// A file with a bit of everything.
const FULL: &str = r#"
        listen = "0.0.0.0:9000"
        origins = ["https://app.example"]
        trusted_proxies = ["10.0.0.0/8"]
        live_page = true
        drain = "3s"
        drain_delay = "4s"
        [broker]
        url = "memory:"
        [publish]
        token = "0123456789abcdef"
        [limits]
        connections = 5
        message_bytes = "32KiB"
        ring_bytes = 1_048_576
        idle = "2m"
        [log]
        format = "json"
        level = "debug"
        [[channels]]
        match = "chat/{room}"
        transport = ["websocket", "sse"]
        delivery = "latest"
        max_rate = 20
        history = { events = 5, age = "2m", bytes = "1MiB" }
        replay = "last"
        slow = "close"
        send = "publish"
        presence = true
"#;

#[test]
fn a_full_file_is_read() {
    let config = load(FULL).unwrap();
    assert_eq!(config.listen.to_string(), "0.0.0.0:9000");
    assert_eq!(config.origins, AllowedOrigins::Listed(vec!["https://app.example".into()]));
    assert!(config.trusts("10.2.3.4".parse().unwrap()) && !config.trusts("11.0.0.1".parse().unwrap()));
    assert!(config.live_page);
    assert_eq!(
        (config.drain, config.drain_delay),
        (Duration::from_secs(3), Duration::from_secs(4))
    );
    assert!(config.publish_token.as_ref().unwrap().matches(b"0123456789abcdef"));
    assert_eq!(
        config.limits,
        Limits::default().with(|limits| {
            limits.connections = 5;
            limits.message_bytes = 32 << 10;
            limits.ring_bytes = 1 << 20;
            limits.idle = Duration::from_secs(120);
        })
    );
    assert_eq!((config.log.format, config.log.level.as_str()), (LogFormat::Json, "debug"));
    let rule = config.rules.iter().next().unwrap();
    assert_eq!(rule.use_case, None);
    assert_eq!(rule.transports, [TransportName::WEBSOCKET, TransportName::SSE]);
    assert_eq!((rule.delivery, rule.max_rate.unwrap().get()), (Delivery::Latest, 20));
    assert_eq!(
        (rule.history.events, rule.history.age, rule.history.bytes),
        (5, Duration::from_secs(120), 1 << 20)
    );
    assert_eq!(
        (rule.replay, rule.slow, rule.send, rule.presence),
        (ReplayOnSubscribe::Last, SlowPolicy::Close, SendPolicy::Publish, true)
    );
}

#[test]
fn every_use_case_is_its_row_of_the_matrix() {
    for use_case in UseCase::ALL {
        let config = load(&format!(
            "[[channels]]\nmatch = \"x/{{id}}\"\nuse_case = \"{}\"\n",
            use_case.as_str()
        ))
        .unwrap();
        let rule = config.rules.iter().next().unwrap();
        assert_eq!(**rule, use_case.rule("x/{id}".parse().unwrap()));
    }
}

#[test]
fn a_preset_can_be_overridden_in_part() {
    let config = load(&format!(
        "{ONE_RULE}history = {{ events = 7 }}\nmax_rate = \"none\"\ntransport = \"websocket\"\n"
    ))
    .unwrap();
    let rule = config.rules.iter().next().unwrap();
    let preset = UseCase::JobStatus.rule(rule.pattern.clone());
    assert_eq!(rule.history.events, 7);
    assert_eq!(
        (rule.history.age, rule.history.bytes),
        (preset.history.age, preset.history.bytes)
    );
    assert_eq!(rule.transports, [TransportName::WEBSOCKET]);
    assert_eq!(rule.replay, preset.replay);
}

#[test]
fn every_value_knows_where_it_comes_from() {
    let sources = Sources {
        file: Some((
            "a.toml".into(),
            format!("drain = \"5s\"\n[limits]\nidle = \"2m\"\n{ONE_RULE}history.events = 7\n"),
        )),
        environment: vec![("AIRWAVE_LIMITS_CONNECTIONS".into(), "9".into())],
        flags: Flags {
            log_format: Some("json".into()),
            ..Flags::default()
        },
    };
    let config = Config::load(&sources).unwrap();
    let origin = |key: &str| config.origin(key).to_string();
    assert_eq!(origin("listen"), "default");
    assert_eq!(origin("drain"), "a.toml:1");
    assert_eq!(origin("limits.idle"), "a.toml:3");
    assert_eq!(origin("limits.connections"), "AIRWAVE_LIMITS_CONNECTIONS");
    assert_eq!(origin("log.format"), "--log-format");
    let of_rule: Vec<String> = config
        .rule_settings(0)
        .map(|(key, value, origin)| format!("{key} {value} {origin}"))
        .collect();
    assert_eq!(
        of_rule,
        [
            "transport sse use case job-status",
            "delivery every default",
            "max_rate none default",
            "history.events 7 a.toml:7",
            "history.age 1d use case job-status",
            "history.bytes 16MiB default",
            "replay all use case job-status",
            "slow refill default",
            "send handler default",
            "presence false default",
        ]
    );
    assert_eq!(config.rule_origin(0).to_string(), "a.toml:4");
    assert_eq!(config.settings().count(), SETTINGS.len());
}

#[test]
fn later_sources_win() {
    let mut sources = Sources::of_file("airwave.toml", format!("listen = \"127.0.0.1:1\"\n{ONE_RULE}"));
    assert_eq!(Config::load(&sources).unwrap().listen.port(), 1);
    sources.environment.push(("AIRWAVE_LISTEN".into(), "127.0.0.1:2".into()));
    assert_eq!(Config::load(&sources).unwrap().listen.port(), 2);
    sources.flags.listen = Some("127.0.0.1:3".into());
    let config = Config::load(&sources).unwrap();
    assert_eq!((config.listen.port(), config.origin("listen")), (3, Origin::Flag("--listen")));
}

#[test]
fn without_a_file_everything_goes_on_loopback_and_nothing_beyond() {
    let config = Config::load(&Sources::default()).unwrap();
    let (rule, _) = config.rules.find(&ChannelName::new("any/thing").unwrap()).unwrap();
    assert_eq!(rule.send, SendPolicy::Publish);
    assert!(config.is_local() && config.live_page && config.file().is_none());

    let mut sources = Sources::default();
    sources.flags.listen = Some("0.0.0.0:8080".into());
    let error = Config::load(&sources).unwrap_err().to_string();
    assert!(
        error.starts_with("--listen: 0.0.0.0:8080 can be reached from other machines, and without a configuration file")
            && error.contains("[[channels]]"),
        "{error}"
    );
    // A token does not help: every listener could publish through the rule.
    let error = with_env(
        None,
        &[("AIRWAVE_LISTEN", "[::]:80"), ("AIRWAVE_PUBLISH_TOKEN", "0123456789abcdef")],
    )
    .unwrap_err()
    .to_string();
    assert!(error.starts_with("AIRWAVE_LISTEN: [::]:80 can be reached"), "{error}");
    // The same rule is accepted when the user writes it.
    let written = "[publish]\ntoken = \"0123456789abcdef\"\n[[channels]]\nmatch = \"{*channel}\"\ntransport = [\"sse\", \"websocket\"]\n\
                   history = { events = 1000, age = \"1h\" }\nsend = \"publish\"\n";
    assert!(with_env(Some(written), &[("AIRWAVE_LISTEN", "[::]:80")]).is_ok());
    assert!(with_env(None, &[("AIRWAVE_LISTEN", "[::1]:80")]).unwrap().live_page);
    assert!(with_env(None, &[("AIRWAVE_LISTEN", "[::ffff:127.0.0.1]:80")]).is_ok());
}

#[test]
fn beyond_loopback_publishing_needs_a_token_or_a_word() {
    let open = format!("listen = \"0.0.0.0:80\"\n{ONE_RULE}");
    let [error] = &refusals(&open)[..] else { panic!() };
    assert!(
        error.starts_with(
            "airwave.toml:1:10: 0.0.0.0:80 can be reached from other machines, and anyone there could publish; write a token"
        ) && error.ends_with("or say it with [publish] open = true (anyone may publish over HTTP) or open = false (no one may)"),
        "{error}"
    );
    let config = with_env(Some(&open), &[("AIRWAVE_PUBLISH_TOKEN", "0123456789abcdef")]).unwrap();
    assert!(!config.live_page, "the live page is for loopback unless the user asks for it");
    assert_eq!(config.origin("live_page").to_string(), "other machines reach it");
    assert!(
        with_env(Some(&open), &[("AIRWAVE_PUBLISH_OPEN", "true")])
            .unwrap()
            .publish_open
    );
    let closed = with_env(Some(&open), &[("AIRWAVE_PUBLISH_OPEN", "false")]).unwrap();
    assert!(!closed.publish_open && closed.publish_token.is_none());
    refused(
        &format!("publish = {{ token = \"0123456789abcdef\", open = true }}\n{ONE_RULE}"),
        "airwave.toml:1:48: publish.open = true lets everybody publish, and publish.token asks for a token; remove one of them",
    );
}

/// On loopback behind a proxy, what comes through the proxy comes from anywhere.
#[test]
fn a_proxy_before_it_makes_a_loopback_server_public() {
    let behind = format!("trusted_proxies = [\"127.0.0.1\"]\n{ONE_RULE}");
    let [error] = &refusals(&behind)[..] else { panic!() };
    assert!(
        error.starts_with(
            "airwave.toml:1:19: 127.0.0.1:8080 can be reached from other machines through a proxy, and anyone there could publish"
        ),
        "{error}"
    );
    let config = with_env(Some(&behind), &[("AIRWAVE_PUBLISH_TOKEN", "0123456789abcdef")]).unwrap();
    assert!(!config.live_page && !config.is_local());
    let error = with_env(None, &[("AIRWAVE_TRUSTED_PROXIES", "127.0.0.1")])
        .unwrap_err()
        .to_string();
    assert!(error.contains("through a proxy, and without a configuration file"), "{error}");
}

#[test]
fn where_other_machines_reach_the_server_its_open_rules_are_warned_of() {
    let rules = "[[channels]]\nmatch = \"orders/{id}\"\nuse_case = \"job-status\"\n\
                 [[channels]]\nmatch = \"chat/{room}\"\nuse_case = \"chat\"\nsend = \"publish\"\n";
    let warnings = |before: &str| load(&format!("{before}\n{rules}")).unwrap().warnings();
    assert_eq!(warnings(""), [""; 0]);
    assert_eq!(warnings("hosts = [\"*\", \"localhost\"]"), [""; 0]);
    for (before, reached) in [
        ("listen = \"0.0.0.0:80\"", "0.0.0.0:80 can be reached from other machines"),
        (
            "trusted_proxies = [\"127.0.0.1\"]",
            "127.0.0.1:8080 can be reached from other machines through a proxy",
        ),
        (
            "hosts = [\"live.example\"]",
            "127.0.0.1:8080 can be reached from other machines through a proxy",
        ),
    ] {
        let [hear, say] = &warnings(&format!("{before}\npublish.open = false"))[..] else {
            panic!("{before}")
        };
        for (warning, part) in [
            (
                hear,
                "may listen to the channels of the rules \"orders/{id}\", \"chat/{room}\" and read their history",
            ),
            (hear, "docs/who-may-listen.md"),
            (say, "may publish to the channels of the rule \"chat/{room}\", because"),
            (say, "write send = \"refuse\""),
        ] {
            assert!(
                warning.starts_with(&format!("{reached}, and anyone there ")) && warning.contains(part),
                "{warning}"
            );
        }
    }
    let open = warnings("listen = \"[::]:80\"\npublish.open = true");
    assert!(open[2].contains("publish to every channel by POST /publish"), "{open:?}");

    // A handler that is asked about all channels of a rule decides, and one that is asked about
    // some does not.
    let config = load(&format!("listen = \"0.0.0.0:80\"\npublish.open = false\n{rules}")).unwrap();
    assert_eq!(config.warnings_beside(|_| true), [""; 0]);
    let beside = config.warnings_beside(|pattern| pattern.as_str().starts_with("chat"));
    assert_eq!(beside.len(), 1);
    assert!(beside[0].contains("of the rule \"orders/{id}\" and read"), "{beside:?}");
}

#[test]
fn a_warning_names_some_of_many_rules() {
    let rules: String = (0..12)
        .map(|n| format!("[[channels]]\nmatch = \"c{n}\"\nuse_case = \"feed\"\n"))
        .collect();
    let config = load(&format!("listen = \"0.0.0.0:80\"\npublish.open = false\n{rules}")).unwrap();
    let warnings = config.warnings();
    assert!(warnings[0].contains("\"c9\" and 2 more and read"), "{warnings:?}");
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn unknown_keys_are_refused_with_what_was_meant() {
    let mut all: Vec<&str> = Vec::new();
    for key in SETTINGS.iter().map(|setting| setting.key).chain(["channels"]) {
        let first = key.split('.').next().unwrap();
        if !all.contains(&first) {
            all.push(first);
        }
    }
    for (text, expected) in [
        (
            "lisen = \"127.0.0.1:1\"\n",
            "airwave.toml:1:1: \"lisen\" is unknown; did you mean \"listen\"?",
        ),
        (
            "connections = 5\n",
            "airwave.toml:1:1: \"connections\" is unknown; it belongs into [limits]",
        ),
        (
            "[log]\ndrain = \"1s\"\n",
            "airwave.toml:2:1: \"drain\" is unknown in [log]; it belongs at the top of the file, before the first [table]",
        ),
        (
            "[limits]\n  conections = 5\n",
            "airwave.toml:2:3: \"conections\" is unknown in [limits]; did you mean \"connections\"?",
        ),
        (
            "[broker]\nhost = \"h\"\n",
            "airwave.toml:2:1: \"host\" is unknown in [broker]; known here: url; the nearest elsewhere is \"hosts\" at the top of the file, before the first [table]",
        ),
        (
            "[limits]\nmax_connections = 5\nidle_timeout = \"1m\"\n",
            "airwave.toml:2:1: \"max_connections\" is unknown in [limits]; did you mean \"connections\"?\n\
             airwave.toml:3:1: \"idle_timeout\" is unknown in [limits]; did you mean \"idle\"?",
        ),
        (
            "heartbeet = \"5s\"\n",
            "airwave.toml:1:1: \"heartbeet\" is unknown; known here: {all}; the nearest elsewhere is \"heartbeat\" in [limits]",
        ),
        (
            "use_case = \"chat\"\n",
            "airwave.toml:1:1: \"use_case\" is unknown; it belongs into a [[channels]] rule",
        ),
        (
            "nonsense = 3\n",
            "airwave.toml:1:1: \"nonsense\" is unknown; known here: {all}",
        ),
        (
            "transport = \"sse\"\n",
            "airwave.toml:1:1: \"transport\" is unknown; it belongs into a [[channels]] rule",
        ),
        (
            "[[channel]]\nmatch = \"x\"\n",
            "airwave.toml:1:3: \"channel\" is unknown; did you mean \"channels\"?",
        ),
        ("é\u{301}x = 1\n", ""),
    ] {
        let problems = refusals(&format!("{text}{ONE_RULE}"));
        if expected.is_empty() {
            assert!(problems[0].starts_with("airwave.toml:1:1: this is not TOML"), "{problems:?}");
        } else {
            assert_eq!(problems.join("\n"), expected.replace("{all}", &all.join(", ")));
        }
    }
    refused(
        &format!("{ONE_RULE}use-case = \"feed\"\n"),
        "airwave.toml:4:1: \"use-case\" is unknown in [[channels]]; did you mean \"use_case\"?",
    );
    refused(
        &format!("{ONE_RULE}history = {{ max = 5 }}\n"),
        "airwave.toml:4:13: \"max\" is unknown in history of [[channels]]; known here: events, age, bytes",
    );
    refused(
        &format!("{ONE_RULE}age = \"1h\"\n"),
        "airwave.toml:4:1: \"age\" is unknown in [[channels]]; known here: match, use_case, transport, delivery, max_rate, history, \
         replay, slow, send, presence; the nearest elsewhere is \"age\" in history of a [[channels]] rule",
    );
    refused(
        &format!("{ONE_RULE}idle = \"1h\"\n"),
        "airwave.toml:4:1: \"idle\" is unknown in [[channels]]; known here: match, use_case, transport, delivery, max_rate, history, \
         replay, slow, send, presence; the nearest elsewhere is \"idle\" in [limits]",
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn bad_values_are_refused_with_what_to_write() {
    for (text, expected) in [
        (
            "listen = 8080\n",
            "airwave.toml:1:10: listen must be text in quotes, not a number",
        ),
        (
            "listen = \"\"\n",
            "airwave.toml:1:10: listen is empty; give it a value or leave it out",
        ),
        (
            "live_page = \"yes\"\n",
            "airwave.toml:1:13: live_page must be true or false, without quotes",
        ),
        (
            "drain = 10\n",
            "airwave.toml:1:9: drain needs its unit; write \"10s\" or \"10ms\"",
        ),
        (
            "origins = [1]\n",
            "airwave.toml:1:11: origins must be a list of texts in quotes",
        ),
        (
            "[limits]\nconnections = \"5\"\n",
            "airwave.toml:2:15: limits.connections must be a whole number, at least 1, without quotes",
        ),
        (
            "[limits]\nconnections = -5\n",
            "airwave.toml:2:15: limits.connections must be a whole number, at least 1",
        ),
        (
            "[limits]\nmessage_bytes = 1.5\n",
            "airwave.toml:2:17: limits.message_bytes must be a number of bytes, or text like \"64KiB\" or \"16MiB\", not a number with a decimal point",
        ),
        (
            "limits = 5\n",
            "airwave.toml:1:10: limits must be a table with connections, connections_per_address, channels_per_connection, channels, message_bytes, frames_per_second, requests_per_second, new_channels_per_minute, memory, idempotency_keys_per_client, idempotency_keys_per_channel, ring_events, ring_bytes, heartbeat, idle, keep_alive, stalled_write, linger, broker_timeout",
        ),
        (
            "broker.url = \"nats://me:s3cret@h?s3cret\"\n",
            "airwave.toml:1:14: broker.url has a parameter that is not known; write only prefix, replicas, storage, nkey, creds and ca (in a password \
             write %3F for '?')",
        ),
        (
            "[publish]\ntoken = 12345678901234567\n",
            "airwave.toml:2:9: publish.token must be text in quotes, not a number",
        ),
    ] {
        refused(&format!("{text}{ONE_RULE}"), expected);
    }
    for (line, expected) in [
        (
            "transport = []",
            "4:13: transport is an empty list, so no client could listen; write \"sse\" or \"websocket\"",
        ),
        (
            "transport = [\"sse\", \"websockets\"]",
            "4:13: transport names \"websockets\", which is unknown; did you mean \"websocket\"?",
        ),
        (
            "transport = \"carrier-pigeon\"",
            "4:13: transport names \"carrier-pigeon\", which is unknown; write \"sse\" or \"websocket\"",
        ),
        (
            "transport = \"http\"",
            "4:13: transport names \"http\", which every rule allows anyway; write \"sse\" or \"websocket\"",
        ),
        ("transport = [\"sse\", \"sse\"]", "4:13: transport names \"sse\" twice"),
        (
            "max_rate = 0",
            "4:12: max_rate must be a whole number from 1 to 1000 (deliveries to a listener per second), or \"none\"",
        ),
        (
            "delivery = \"lates\"",
            "4:12: delivery \"lates\" is unknown; did you mean \"latest\"?",
        ),
        (
            "slow = \"wait\"",
            "4:8: slow \"wait\" is unknown; write \"refill\", \"skip\" or \"close\"",
        ),
        (
            "replay = true",
            "4:10: replay must be text in quotes, not true or false; write \"none\", \"last\" or \"all\"",
        ),
        ("history = 5", "4:11: history must be a table with events, age, bytes"),
        ("history.age = \"0s\"", "4:15: history.age must be at least \"1ms\""),
        ("history.bytes = 0", "4:17: history.bytes must be at least 1B"),
    ] {
        refused(&format!("{ONE_RULE}{line}\n"), &format!("airwave.toml:{expected}"));
    }
}

#[test]
fn rules_that_say_too_little_are_refused() {
    refused(
        "",
        "airwave.toml:1:1: has no [[channels]], so every channel would be refused; write at least\n    [[channels]]\n    match = \"{*channel}\"\n    use_case = \"feed\"",
    );
    refused(
        "[[channels]]\nmatch = \"x\"\n",
        "airwave.toml:1:1: this rule says neither use_case nor transport; write for example use_case = \"feed\" or transport = \"sse\"",
    );
    refused(
        "\n[[channels]]\nuse_case = \"feed\"\n",
        "airwave.toml:2:1: this rule does not say which channels it is for; write for example match = \"orders/{id}\"",
    );
    refused(
        "[channels]\nmatch = \"x\"\n",
        "airwave.toml:1:1: channels must be a list of rules; write each as [[channels]], with two brackets",
    );
    refused(
        "[[channels]]\nmatch = \"a/\\u001b*\"\nuse_case = \"chat\"\n",
        "airwave.toml:2:9: pattern 'a/\\u{1b}*', segment '\\u{1b}*': a channel name is made of letters, digits, '-', '_', '.', '~', ':', '@', '=', '+' and '/'; a parameter is written {name}, the rest of a name {*name}",
    );
}

#[test]
fn combinations_that_cannot_be_are_refused() {
    for (rule, expected) in [
        (
            "transport = \"sse\"\nhistory.events = 0\nreplay = \"all\"",
            "5:10: replay = \"all\" needs history, and history.events = 0 keeps none; write replay = \"none\", or history.events of at least 1",
        ),
        (
            "use_case = \"dashboard\"\nhistory.events = 0",
            "1:1: replay = \"last\" (from use case dashboard) needs history, and history.events = 0 keeps none; write replay = \"none\", or history.events of at least 1",
        ),
        (
            "use_case = \"game\"\nslow = \"refill\"",
            "4:8: slow = \"refill\" needs history, and history.events = 0 (from use case game) keeps none; write slow = \"skip\" or \"close\", or history.events of at least 1",
        ),
        (
            "use_case = \"ai-tokens\"\ndelivery = \"latest\"",
            "4:12: replay = \"all\" (from use case ai-tokens) cannot be kept with delivery = \"latest\", which sends only the newest event of each key; write replay = \"last\" or delivery = \"every\"",
        ),
    ] {
        refused(
            &format!("[[channels]]\nmatch = \"x\"\n{rule}\n"),
            &format!("airwave.toml:{expected}"),
        );
    }
    // The user did not ask for refill here, so the rule takes what is possible instead.
    let config = load("[[channels]]\nmatch = \"x\"\ntransport = \"sse\"\nhistory.events = 0\n").unwrap();
    assert_eq!(config.rules.iter().next().unwrap().slow, SlowPolicy::Skip);
    assert_eq!(config.rule_field_origin(0, "slow").to_string(), "history keeps nothing");

    refused(
        &format!("[limits]\nheartbeat = \"1m\"\n{ONE_RULE}"),
        "airwave.toml:2:13: limits.idle = \"1m\" must be longer than limits.heartbeat = \"1m\", or healthy clients are cut before they are asked",
    );
    refused(
        &format!("[limits]\nmessage_bytes = \"32MiB\"\n{ONE_RULE}"),
        "airwave.toml:2:17: limits.ring_bytes = \"16MiB\" must be at least limits.message_bytes = \"32MiB\", or a message would not fit",
    );
}

#[test]
fn a_rule_that_can_never_match_is_refused_with_both_lines() {
    let rule = |pattern: &str| format!("[[channels]]\nmatch = \"{pattern}\"\nuse_case = \"feed\"\n");
    refused(
        &(rule("orders/{id}") + &rule("orders/{number}")),
        "airwave.toml:5:9: match = \"orders/{number}\" matches the same channels as \"orders/{id}\" in line 2, which comes first; remove one of them",
    );
    refused(
        &(rule("{*all}") + &rule("chat/{room}")),
        "airwave.toml:5:9: match = \"chat/{room}\" can never match: \"{*all}\" in line 2 comes first and takes all of its channels; put this rule above it",
    );
    assert!(load(&(rule("orders/special") + &rule("orders/{id}") + &rule("{*rest}"))).is_ok());
}

#[test]
fn everything_that_is_wrong_is_told_at_once_and_in_order() {
    let problems = refusals(
        "lisen = \"x\"\ndrain = 5\n[[channels]]\nmatch = \"a*\"\nuse_case = \"chatt\"\nslow = 3\n[limits]\nidle = \"x\"\n",
    );
    let places: Vec<&str> = problems.iter().map(|p| p.split(": ").next().unwrap()).collect();
    assert_eq!(
        places,
        [
            "airwave.toml:1:1",
            "airwave.toml:2:9",
            "airwave.toml:4:9",
            "airwave.toml:5:12",
            "airwave.toml:6:8",
            "airwave.toml:8:8"
        ]
    );
    assert!(problems[3].ends_with("did you mean \"chat\"?"), "{}", problems[3]);
    // Syntax is told first, alone: half a document would only give false alarms.
    let problems = refusals("listen = \nx = [\n");
    assert!(problems.iter().all(|p| p.contains("this is not TOML")), "{problems:?}");
    assert!(problems[0].starts_with("airwave.toml:1:"), "{problems:?}");
}

#[test]
fn variables_come_from_the_same_list() {
    let error = |name: &str, value: &str| with_env(Some(ONE_RULE), &[(name, value)]).unwrap_err().to_string();
    assert_eq!(
        error("AIRWAVE_LISTN", "x"),
        "AIRWAVE_LISTN: this variable is unknown; did you mean AIRWAVE_LISTEN?"
    );
    assert_eq!(
        error("AIRWAVE_LIMITS_CONECTIONS", "5"),
        "AIRWAVE_LIMITS_CONECTIONS: this variable is unknown; did you mean AIRWAVE_LIMITS_CONNECTIONS?"
    );
    let unknown = error("AIRWAVE_PORT", "8080");
    assert!(
        unknown.contains("known are AIRWAVE_LISTEN, AIRWAVE_BROKER_URL, AIRWAVE_PUBLISH_TOKEN"),
        "{unknown}"
    );
    assert_eq!(
        error("AIRWAVE_LISTEN", ""),
        "AIRWAVE_LISTEN: is empty; give it a value or leave it out"
    );
    assert_eq!(
        error("AIRWAVE_LIMITS_IDLE", "60"),
        "AIRWAVE_LIMITS_IDLE: needs its unit; write \"60s\" or \"60ms\""
    );
    let config = with_env(
        Some(ONE_RULE),
        &[
            ("AIRWAVE_ORIGINS", "https://a.example, https://b.example"),
            ("AIRWAVE_LIMITS_IDLE", "90s"),
            ("AIRWAVE_LIMITS_MESSAGE_BYTES", "1KiB"),
            ("AIRWAVE_LOG_FORMAT", "json"),
            ("AIRWAVE_LIVE_PAGE", "false"),
        ],
    )
    .unwrap();
    assert_eq!(
        config.origins,
        AllowedOrigins::Listed(vec!["https://a.example".into(), "https://b.example".into()])
    );
    assert_eq!(
        (config.limits.idle, config.limits.message_bytes),
        (Duration::from_secs(90), 1024)
    );
    assert!(!config.live_page);
    // Not settings of a server.
    let others = [
        ("AIRWAVE_URL", "http://h"),
        ("AIRWAVE_BIN", "x"),
        ("AIRWAVE_TEST_REDIS", "x"),
        ("PATH", "x"),
        ("AIRWAVE_SERVICE_HOST", "10.0.0.1"),
        ("AIRWAVE_SERVICE_PORT_HTTP", "80"),
        ("AIRWAVE_PORT", "tcp://10.0.0.1:80"),
        ("AIRWAVE_REDIS_PORT_6379_TCP_ADDR", "10.0.0.1"),
    ];
    assert!(with_env(Some(ONE_RULE), &others).is_ok());
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_no_text_is_refused() {
    use std::os::unix::ffi::OsStringExt;
    let sources = Sources {
        environment: vec![("AIRWAVE_LISTEN".into(), OsString::from_vec(vec![0xff]))],
        ..Sources::default()
    };
    assert_eq!(
        Config::load(&sources).unwrap_err().to_string(),
        "AIRWAVE_LISTEN: is not UTF-8 text"
    );
}

#[test]
fn secrets_are_never_shown() {
    const TOKEN: &str = "correct-horse-battery";
    let config = load(&format!("[publish]\ntoken = \"{TOKEN}\"\n{ONE_RULE}")).unwrap();
    assert!(!format!("{config:?}").contains(TOKEN));
    for (_, shown, _) in config.settings() {
        assert!(!shown.to_string().contains(TOKEN));
    }
    // Nor where the file is broken around it, wherever the mistake is.
    for broken in [
        format!("[publish]\ntoken = \"{TOKEN}\n{ONE_RULE}"),
        format!("[publish]\ntoken = {TOKEN}\n{ONE_RULE}"),
        format!("[publish]\ntoken = \"{TOKEN}\" \"x\"\n{ONE_RULE}"),
        format!("[publish]\ntoken = \"{TOKEN} with spaces\"\n{ONE_RULE}"),
        format!("[publish]\ntoken = [\"{TOKEN}\"]\n{ONE_RULE}"),
        format!("[broker]\nurl = \"nats://me:{TOKEN}@\"\n{ONE_RULE}"),
        format!("[broker]\nurl = \"redis://me:{TOKEN}@\"\n{ONE_RULE}"),
        format!("[broker]\nurl = \"{TOKEN}\"\n{ONE_RULE}"),
        format!("[broker]\nurl = \"memory:{TOKEN}\"\n{ONE_RULE}"),
    ] {
        let told = refusals(&broken).join("\n");
        assert!(!told.contains("correct") && !told.contains("battery"), "{told}");
    }
    let told = with_env(None, &[("AIRWAVE_PUBLISH_TOKEN", "horse battery")])
        .unwrap_err()
        .to_string();
    assert!(!told.contains("battery"), "{told}");
    let secret = config.publish_token.unwrap();
    assert!(secret.matches(TOKEN.as_bytes()) && !secret.matches(b"") && !secret.matches(b"correct-horse-batterx"));
    assert!(!secret.matches(&TOKEN.as_bytes()[..20]) && !secret.matches(format!("{TOKEN}x").as_bytes()));
}

#[test]
fn a_changed_configuration_is_checked_again() {
    let mut config = Config::default();
    assert!(config.check().is_ok());
    config.listen = "0.0.0.0:0".parse().unwrap();
    assert!(
        config
            .check()
            .unwrap_err()
            .to_string()
            .contains("without a configuration file")
    );
    config.rules = Rules::new([UseCase::Feed.rule("feed/{id}".parse().unwrap())]);
    assert!(config.check().unwrap_err().to_string().contains("anyone there could publish"));
    config.publish_token = Some(Secret::new("0123456789abcdef"));
    assert!(config.check().is_ok());
    config.rules = Rules::default();
    assert!(config.check().unwrap_err().to_string().contains("has no [[channels]]"));
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::from_file("/nowhere/airwave.toml").unwrap_err().to_string();
    assert!(error.starts_with("cannot read /nowhere/airwave.toml: "), "{error}");
}

#[test]
fn networks_hold_their_addresses() {
    let holds = |network: &str, address: &str| {
        let variables = [("AIRWAVE_TRUSTED_PROXIES", network), ("AIRWAVE_PUBLISH_OPEN", "false")];
        let config = with_env(Some(ONE_RULE), &variables).unwrap();
        config.trusts(address.parse().unwrap())
    };
    assert!(holds("10.0.0.0/8", "10.255.0.1") && !holds("10.0.0.0/8", "11.0.0.1"));
    assert!(holds("10.0.0.1", "10.0.0.1") && !holds("10.0.0.1", "10.0.0.2"));
    assert!(holds("10.0.0.1", "::ffff:10.0.0.1"), "IPv4 over an IPv6 socket");
    assert!(holds("::ffff:10.0.0.0/104", "10.9.9.9") && !holds("::ffff:10.0.0.0/104", "11.9.9.9"));
    assert!(holds("0.0.0.0/0", "1.2.3.4") && !holds("0.0.0.0/0", "::1"));
    assert!(holds("::/0", "fe80::1") && holds("fd00::/8", "fd12::1") && !holds("fd00::/8", "fe00::1"));
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(\\PC|\n|=|\\[|\\]|\"|\\{|\\}|\\.){0,120}") {
        let _ = load(&text);
    }

    /// Files that are nearly right, which reach further than noise does.
    #[test]
    fn no_key_and_value_make_it_panic(
        key in "(listen|origins|drain|limits\\.idle|broker|channels|publish\\.token|log\\.level|x)",
        value in "(1|-1|1\\.5|true|\"\"|\"é*\"|\\[\\]|\\[1, \"a\"\\]|\\{\\}|\\{ url = 1 \\}|1979-05-27|\\[\\{ match = \"a\", history = [0-9] \\}\\])",
    ) {
        let text = format!("{key} = {value}\n");
        if let Err(error) = load(&text) {
            for problem in error.problems() {
                prop_assert!(!problem.message.is_empty());
            }
        }
    }
}
