//! The gallery: the decision matrix as a page at `/`, and its examples in one process. Only a
//! server without a configuration file shows it, which is one that this machine alone can reach.
//!
//! A new example is a folder (`examples/README.md`), a module and a line here.

#![allow(clippy::duplicate_mod)]

use std::net::SocketAddr;
use std::sync::Arc;

use airwave::config::Sources;
use airwave::server::Error;
use airwave::{Airwave, Builder, Config, UseCase};
use axum::Router;
use axum::routing::get;
use serde_json::{Value, json};

// Each is a program of its own, too: its `main` is not called here, and what they share is in each
// of them.
#[allow(dead_code)]
#[path = "../examples/ai-tokens/main.rs"]
mod ai_tokens;
#[allow(dead_code)]
#[path = "../examples/chat/main.rs"]
mod chat;
#[allow(dead_code)]
#[path = "../examples/collab/main.rs"]
mod collab;
#[allow(dead_code)]
#[path = "../examples/dashboard/main.rs"]
mod dashboard;
#[allow(dead_code)]
#[path = "../examples/feed/main.rs"]
mod feed;
#[allow(dead_code)]
#[path = "../examples/game/main.rs"]
mod game;
#[allow(dead_code)]
#[path = "../examples/job-status/main.rs"]
mod job_status;
#[allow(dead_code)]
#[path = "../examples/trading/main.rs"]
mod trading;

struct Example {
    name: &'static str,
    rules: &'static str,
    add: fn(Builder) -> Builder,
    start: fn(&Airwave),
    page: fn() -> Router,
}

macro_rules! example {
    ($module:ident, $folder:literal) => {
        Example {
            name: $folder,
            rules: include_str!(concat!("../examples/", $folder, "/airwave.toml")),
            add: $module::add,
            start: $module::start,
            page: $module::page,
        }
    };
}

/// In the order of the matrix.
const EXAMPLES: &[Example] = &[
    example!(dashboard, "dashboard"),
    example!(job_status, "job-status"),
    example!(ai_tokens, "ai-tokens"),
    example!(feed, "feed"),
    example!(chat, "chat"),
    example!(collab, "collab"),
    example!(game, "game"),
    example!(trading, "trading"),
];

/// The gallery as a server, until `shutdown`. `ready` is called once, with the address that is
/// listened on.
///
/// # Errors
/// As [`airwave::server::run`].
pub(crate) async fn run(
    mut config: Config,
    shutdown: impl Future<Output = ()>,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), Error> {
    add_rules(&mut config)?;
    // `/` is the gallery's.
    let live_page = std::mem::replace(&mut config.live_page, false);
    let matrix = matrix(&config);
    let builder = EXAMPLES
        .iter()
        .fold(Airwave::from_config(config), |builder, example| (example.add)(builder));
    let airwave = builder.build().await?;
    let mut app = airwave.standalone_router().merge(page(matrix));
    for example in EXAMPLES {
        (example.start)(&airwave);
        app = app.merge((example.page)());
    }
    if live_page {
        app = app.merge(airwave.live_page("/live"));
    }
    // The handlers start programs and name files for every client.
    airwave.serve_until(airwave::local_only(app), shutdown, ready).await
}

/// Puts the examples' rules before the one for every other channel.
///
/// # Errors
/// [`Error::Config`]: none that a test has not met.
pub(crate) fn add_rules(config: &mut Config) -> Result<(), Error> {
    for example in EXAMPLES.iter().rev() {
        let name = format!("examples/{}/airwave.toml", example.name);
        config.put_rules_first(&Config::load(&Sources::of_file(name, example.rules))?);
    }
    Ok(())
}

fn page(matrix: Value) -> Router {
    airwave::pages(
        "/",
        &[
            ("index.html", include_str!("gallery/index.html")),
            ("gallery/gallery.css", include_str!("gallery/gallery.css")),
            ("gallery/gallery.js", include_str!("gallery/gallery.js")),
            ("gallery/style.css", include_str!("../examples/shared/style.css")),
            ("gallery/frame.js", include_str!("../examples/shared/frame.js")),
            // What works without a network.
            ("gallery/source/gallery.rs", include_str!("gallery.rs")),
            ("gallery/docs/README.md", include_str!("../README.md")),
            ("gallery/docs/brokers.md", include_str!("../docs/brokers.md")),
            ("gallery/docs/configuration.md", include_str!("../docs/configuration.md")),
            ("gallery/docs/using.md", include_str!("../docs/using.md")),
            ("gallery/docs/who-may-listen.md", include_str!("../docs/who-may-listen.md")),
            ("gallery/docs/deploying.md", include_str!("../docs/deploying.md")),
            ("gallery/docs/guarantees.md", include_str!("../docs/guarantees.md")),
            ("gallery/docs/performance.md", include_str!("../docs/performance.md")),
            ("gallery/docs/protocol.md", include_str!("../docs/protocol.md")),
        ],
    )
    .route("/gallery/matrix", get(async move || axum::Json(matrix)))
}

/// The decision matrix, each row with the rule that is in force for its example. A row without an
/// example has the preset.
fn matrix(config: &Config) -> Value {
    let rows = UseCase::ALL.iter().map(|use_case| {
        let example = EXAMPLES.iter().find(|example| example.name == use_case.as_str());
        // Another example may have a rule of the same use case: a list of its jobs is a feed, too.
        let file = format!("examples/{}/airwave.toml:", use_case.as_str());
        let mut rules = config.rules.iter().enumerate();
        let own = rules
            .find(|(index, rule)| rule.use_case == Some(*use_case) && config.rule_origin(*index).to_string().starts_with(&file));
        // A pattern that is one.
        #[allow(clippy::unwrap_used)]
        let preset = || Arc::new(use_case.rule("any/{id}".parse().unwrap()));
        let rule = own.map_or_else(preset, |(_, rule)| rule.clone());
        json!({
            "use_case": use_case.as_str(),
            "why": use_case.why(),
            "transport": rule.transports.first().map(|name| name.as_str()),
            "delivery": format!("{:?}", rule.delivery).to_lowercase(),
            "max_rate": rule.max_rate,
            "history": {"events": rule.history.events, "age_s": rule.history.age.as_secs()},
            "replay": format!("{:?}", rule.replay).to_lowercase(),
            "presence": rule.presence,
            "example": example.is_some(),
            // A model that costs money is asked by people alone.
            "plays": *use_case != UseCase::AiTokens || std::env::var_os("OPENAI_BASE_URL").is_none(),
        })
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use airwave_core::rule::TransportName;

    #[test]
    fn every_example_offers_both_transports_the_matrix_first_and_keeps_to_its_own_channels() {
        let mut prefixes: Vec<String> = Vec::new();
        for example in EXAMPLES {
            let config = Config::load(&Sources::of_file(example.name, example.rules)).unwrap();
            let use_case: UseCase = example.name.parse().unwrap();
            let preset = use_case.rule("any/{id}".parse().unwrap());
            let mut own: Vec<String> = Vec::new();
            for rule in config.rules.iter() {
                let prefix = rule.pattern.as_str().split('/').next().unwrap();
                assert!(!prefix.contains('{'), "{}: {}", example.name, rule.pattern);
                own.push(prefix.to_owned());
                assert_eq!(rule.transports[0], preset.transports[0], "{}", rule.pattern);
                for name in [TransportName::SSE, TransportName::WEBSOCKET] {
                    assert!(rule.transports.contains(&name), "{}: {name} cannot be compared", rule.pattern);
                }
            }
            assert!(
                own.iter().all(|prefix| !prefixes.contains(prefix)),
                "{} takes another's channels",
                example.name
            );
            prefixes.extend(own);
        }
    }

    #[test]
    fn the_matrix_shows_the_rules_in_force() {
        let mut config = Config::default();
        add_rules(&mut config).unwrap();
        let matrix = matrix(&config);
        let row = |name: &str| {
            let mut rows = matrix.as_array().unwrap().iter();
            rows.find(|row| row["use_case"] == name).unwrap()
        };
        // As examples/dashboard/airwave.toml says, and not as the preset does.
        assert_eq!(row("dashboard")["history"], json!({"events": 2000, "age_s": 600}));
        // And no list of another example, whose rule is a feed as well.
        let preset = UseCase::Feed.rule("any/{id}".parse().unwrap());
        assert_eq!(row("feed")["history"]["events"], preset.history.events);
        assert!(matrix.as_array().unwrap().iter().all(|row| row["example"] == true));
    }

    #[test]
    fn a_channel_of_no_example_has_the_rule_for_everything() {
        let mut config = Config::default();
        add_rules(&mut config).unwrap();
        let last = config.rules.iter().last().unwrap();
        assert_eq!(last.pattern.as_str(), "{*channel}");
        let count = config.rules.iter().count();
        assert!(count > EXAMPLES.len());
        // And every rule knows where it stands, the last one in no file.
        let places: Vec<String> = (0..count).map(|index| config.rule_origin(index).to_string()).collect();
        assert_eq!(places[0], "examples/dashboard/airwave.toml:2");
        assert_eq!(places[count - 1], "default");
        let (_, transport, from) = config.rule_settings(0).next().unwrap();
        assert_eq!(
            (transport.to_string(), from.to_string()),
            ("sse, websocket".to_owned(), "examples/dashboard/airwave.toml:5".to_owned())
        );
    }
}
