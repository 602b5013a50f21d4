//! The gallery: the decision matrix as a page at `/`, and its examples in one process. Only a server without a configuration file shows it, which
//! is one that this machine alone can reach.
//!
//! A new example is a folder (`examples/README.md`), a module and a line here.

use std::net::SocketAddr;

use airwave::config::Sources;
use airwave::server::Error;
use airwave::{Airwave, Builder, Config, Rule, Rules, UseCase};
use axum::Router;
use axum::routing::get;
use serde_json::{Value, json};

// Each is a program of its own, too: its `main` is not called here.
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

/// The gallery as a server, until `shutdown`. `ready` is called once, with the address that is listened on.
///
/// # Errors
/// As [`airwave::server::run`].
pub(crate) async fn run(
    mut config: Config,
    shutdown: impl Future<Output = ()>,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), Error> {
    config.rules = rules(&config)?;
    // `/` is the gallery's.
    let live_page = std::mem::replace(&mut config.live_page, false);
    let builder = EXAMPLES
        .iter()
        .fold(Airwave::from_config(config), |builder, example| (example.add)(builder));
    let airwave = builder.build().await?;
    let mut app = airwave.standalone_router().merge(page());
    for example in EXAMPLES {
        (example.start)(&airwave);
        app = app.merge((example.page)());
    }
    if live_page {
        app = app.merge(airwave.live_page("/live"));
    }
    airwave.serve_until(app, shutdown, ready).await
}

/// The examples' rules, and behind them the one for every other channel.
fn rules(config: &Config) -> Result<Rules, Error> {
    let mut rules = Vec::new();
    for example in EXAMPLES {
        let own = Config::load(&Sources::of_file(
            format!("examples/{}/airwave.toml", example.name),
            example.rules,
        ))?;
        rules.extend(own.rules.iter().map(|rule| Rule::clone(rule)));
    }
    rules.extend(config.rules.iter().map(|rule| Rule::clone(rule)));
    Ok(Rules::new(rules))
}

fn page() -> Router {
    airwave::pages(
        "/",
        &[
            ("index.html", include_str!("gallery/index.html")),
            ("gallery/gallery.css", include_str!("gallery/gallery.css")),
            ("gallery/gallery.js", include_str!("gallery/gallery.js")),
            ("gallery/style.css", include_str!("../examples/shared/style.css")),
            ("gallery/frame.js", include_str!("../examples/shared/frame.js")),
        ],
    )
    .route("/gallery/matrix", get(async || axum::Json(matrix())))
}

/// The decision matrix as the code has it, and which of its rows have an example here.
fn matrix() -> Value {
    let rows = UseCase::ALL.iter().map(|use_case| {
        // A pattern that is one.
        #[allow(clippy::unwrap_used)]
        let rule = use_case.rule("any/{id}".parse().unwrap());
        json!({
            "use_case": use_case.as_str(),
            "why": use_case.why(),
            "transport": rule.transports.first().map(|name| name.as_str()),
            "delivery": format!("{:?}", rule.delivery).to_lowercase(),
            "max_rate": rule.max_rate,
            "history": {"events": rule.history.events, "age_s": rule.history.age.as_secs()},
            "replay": format!("{:?}", rule.replay).to_lowercase(),
            "presence": rule.presence,
            "example": EXAMPLES.iter().any(|example| example.name == use_case.as_str()),
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
    fn a_channel_of_no_example_has_the_rule_for_everything() {
        let config = Config::default();
        let rules = rules(&config).unwrap();
        let last = rules.iter().last().unwrap();
        assert_eq!(last.pattern.as_str(), "{*channel}");
        assert!(rules.iter().count() > EXAMPLES.len());
    }
}
