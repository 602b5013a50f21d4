//! What the log holds: Airwave's own lines at the level that was asked for, and of libraries little
//! enough that no client can fill a disk.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use tracing::Metadata;
use tracing_subscriber::filter::{EnvFilter, FilterExt, LevelFilter, ParseError, dynamic_filter_fn};
use tracing_subscriber::layer::{Filter, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

/// Lines of libraries at once, and the time after which there is room for one more. Some of their
/// warnings are one line for each frame that a client sends.
const BURST: u32 = 20;
const PER_LINE: Duration = Duration::from_secs(3);

/// The libraries whose every line is noise unless it is asked for. The one that speaks NATS logs
/// each try to connect; what counts of that we say ourselves, once an outage.
const SILENT: &str = "async_nats=off";

/// A filter for `text`: a level (`info`), or directives as `RUST_LOG` has them (`info,h2=debug`).
///
/// A level is Airwave's. Libraries that no directive names are heard from `warn` on, and not more
/// often than the bounds above allow. A directive that names a target has the last word on it.
pub(super) fn filter<S>(text: &str) -> Result<impl Filter<S> + use<S>, ParseError>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    let filter = EnvFilter::try_new(format!("{SILENT},{text}"))?;
    let named = named_targets(text);
    let bound = Bound::new();
    let libraries = dynamic_filter_fn(move |metadata: &Metadata<'_>, _| {
        let target = metadata.target();
        is_ours(target)
            || named.iter().any(|name| target.starts_with(name))
            || (metadata.is_event() && *metadata.level() <= tracing::Level::WARN && bound.admits(Instant::now()))
    })
    // The level is the other filter's, so that what it leaves out costs no more than without this
    // one.
    .with_max_level_hint(LevelFilter::TRACE);
    // The bound is asked last: it counts what would be written.
    Ok(filter.and(libraries))
}

/// Whether the log is to be JSON, as far as can be told without a configuration that is accepted:
/// by the words of the command line, the variable, or the file.
pub(super) fn is_json_wanted(words: &[String], file: Option<&str>) -> bool {
    let flag = words
        .iter()
        .enumerate()
        .find_map(|(index, word)| match word.strip_prefix("--log-format") {
            Some("") => words.get(index + 1).map(String::as_str),
            Some(value) => value.strip_prefix('='),
            None => None,
        });
    let variable = std::env::var("AIRWAVE_LOG_FORMAT").ok().filter(|value| !value.is_empty());
    let in_file = || {
        let table: toml::Table = file?.parse().ok()?;
        Some(table.get("log")?.get("format")?.as_str()?.to_owned())
    };
    let wanted = flag.map(str::to_owned).or(variable).or_else(in_file);
    wanted.is_some_and(|format| format == "json")
}

/// Writes an error as one line of a JSON log, whatever level is asked for: it ends the process.
pub(super) fn tell_json(message: &str) {
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .json()
        .flatten_event(true);
    tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
        tracing::error!(target: "airwave", "{message}");
    });
}

/// Whether a target is of Airwave's own crates: `airwave`, `airwave_core`, `airwave_core::hub`.
fn is_ours(target: &str) -> bool {
    target
        .strip_prefix("airwave")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("_") || rest.starts_with("::"))
}

/// The targets that directives name: `h2` and `hyper::proto` of
/// `info,h2=debug,hyper::proto[span]=trace`.
fn named_targets(text: &str) -> Vec<String> {
    let targets = text.split(',').filter_map(|directive| {
        let directive = directive.trim();
        let target = directive.split(['=', '[']).next()?.trim();
        let is_level = !directive.contains('=') && target.parse::<LevelFilter>().is_ok();
        (!is_level && !target.is_empty()).then(|| target.to_owned())
    });
    targets.collect()
}

/// At most [`BURST`] lines at once, and one more each [`PER_LINE`].
struct Bound(Mutex<(u32, Option<Instant>)>);

impl Bound {
    fn new() -> Self {
        Self(Mutex::new((BURST, None)))
    }

    fn admits(&self, now: Instant) -> bool {
        let mut bound = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, since) = &mut *bound;
        let from = *since.get_or_insert(now);
        let more = u32::try_from(now.saturating_duration_since(from).as_millis() / PER_LINE.as_millis()).unwrap_or(BURST);
        if more > 0 {
            *left = left.saturating_add(more).min(BURST);
            *since = Some(now);
        }
        let admits = *left > 0;
        *left = left.saturating_sub(1);
        admits
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;
    use std::sync::Arc;

    use tracing_subscriber::Layer;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What the log holds at `level` after `lines`.
    fn logged(level: &str, lines: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .with_filter(filter(level).unwrap());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), lines);
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_flood_of_warnings_of_libraries_is_bounded() {
        for level in ["info", "warn", "debug", "trace"] {
            let text = logged(level, || {
                for _ in 0..100_000 {
                    tracing::warn!(target: "h2::proto::ping_pong", "recv PING USER ack that we never sent");
                    tracing::error!(target: "some_library", "a frame");
                    tracing::debug!(target: "h2::codec", "a frame");
                }
                tracing::info!(target: "airwave_core::hub", "ours");
            });
            assert!(text.len() < 8 << 10, "{level}: {}", text.len());
            assert!(text.contains("never sent"));
            assert_eq!(text.contains("ours"), level != "warn");
        }
    }

    #[test]
    fn a_level_is_airwaves_own() {
        let lines = || {
            tracing::debug!(target: "airwave", "one of ours");
            tracing::debug!(target: "airwave_core::hub", "two of ours");
            tracing::debug!(target: "airwaves", "a library");
            tracing::info!(target: "hyper::proto", "another library");
            tracing::error!(target: "async_nats", "of NATS");
        };
        let text = logged("debug", lines);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("one of ours") && text.contains("two of ours"));
    }

    #[test]
    fn a_directive_that_names_a_library_has_the_last_word() {
        let lines = || {
            for _ in 0..1000 {
                tracing::debug!(target: "h2::codec", "a frame");
            }
            tracing::warn!(target: "hyper", "heard");
            tracing::info!(target: "async_nats", "of NATS");
        };
        let text = logged("info,h2=debug", lines);
        assert_eq!(text.lines().count(), 1001, "{text}");
        let text = logged("error,h2::codec=off,async_nats=info", lines);
        assert!(text.contains("of NATS") && text.lines().count() == 1, "{text}");
    }

    #[test]
    fn directives_that_are_none_are_refused() {
        let refused = |text: &str| filter::<tracing_subscriber::Registry>(text).is_err();
        assert!(refused("lo=ud=er"));
        assert!(!refused("info"));
    }

    #[test]
    fn the_bound_lets_more_in_with_time() {
        let bound = Bound::new();
        let start = Instant::now();
        let admitted = |now| (0..100).filter(|_| bound.admits(now)).count();
        assert_eq!(admitted(start), 20);
        assert_eq!(admitted(start + PER_LINE), 1);
        assert_eq!(admitted(start + 1000 * PER_LINE), 20);
    }

    #[test]
    fn the_format_is_known_before_the_configuration_is_accepted() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let file = Some("[log]\nformat = \"json\"\n[limits]\nconections = 1\n");
        assert!(is_json_wanted(&words(&["serve", "--log-format", "json", "--port"]), None));
        assert!(is_json_wanted(&words(&["--log-format=json"]), None));
        assert!(is_json_wanted(&[], file));
        assert!(!is_json_wanted(&words(&["--log-format=text"]), file));
        assert!(!is_json_wanted(&words(&["--log-format"]), None));
        assert!(!is_json_wanted(&[], Some("log = [")));
    }

    #[test]
    fn named_targets_are_found() {
        assert_eq!(
            named_targets("info,h2=debug, hyper::proto[span]=trace,warn,rustls"),
            ["h2", "hyper::proto", "rustls"]
        );
        assert!(named_targets("info").is_empty());
    }
}
