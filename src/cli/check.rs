//! `airwave check`: the effective matrix, for people and as JSON.

use std::fmt::Write as _;
use std::io::Write as _;

use airwave::config::{self, Config, Origin, Shown};
use airwave_core::UseCase;
use serde_json::{Value, json};

use super::{ConfigArgs, Stop, colours, refused};

pub(super) const HELP: &str = "\
Takes the file, the variables and the flags that `airwave serve` takes, and says what they come to and where each value comes from.

Examples:
  airwave check
  airwave check --keys | less              every key there is: what it does, default, range, example
  airwave check --config airwave.toml --json | jq '.rules[0].history.age'
  AIRWAVE_LISTEN=0.0.0.0:8080 airwave check";

#[derive(clap::Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print every key that a file may have, in place of what is in force
    #[arg(long)]
    keys: bool,
}

pub(super) fn run(args: CheckArgs) -> Result<(), Stop> {
    let out = std::io::stdout();
    let style = Style { on: colours(&out) };
    let text = if args.keys {
        if args.json {
            format!("{:#}\n", keys_as_json())
        } else {
            keys(style)
        }
    } else {
        let config = effective(Config::load(&args.config.sources()?).map_err(|error| refused(&error))?)?;
        if args.json {
            format!("{:#}\n", as_json(&config))
        } else {
            report(&config, style)
        }
    };
    let mut out = out.lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(Stop::of_output)
}

/// As `airwave serve` has it: without a file it serves the examples, by their own rules.
#[cfg_attr(not(feature = "gallery"), allow(clippy::unnecessary_wraps, unused_mut))]
fn effective(mut config: Config) -> Result<Config, Stop> {
    #[cfg(feature = "gallery")]
    if config.file().is_none() {
        crate::gallery::add_rules(&mut config).map_err(|error| Stop::Failed(error.to_string()))?;
    }
    Ok(config)
}

/// Terminal attributes, or none.
#[derive(Clone, Copy)]
struct Style {
    on: bool,
}

impl Style {
    fn bold(self, text: &str) -> String {
        if self.on {
            format!("\x1b[1m{text}\x1b[0m")
        } else {
            text.into()
        }
    }

    fn dim(self, text: &str) -> String {
        if self.on {
            format!("\x1b[2m{text}\x1b[0m")
        } else {
            text.into()
        }
    }
}

/// Cells under each other; the last column ends where its text does.
fn aligned(rows: &[Vec<String>], mut paint: impl FnMut(usize, usize, &str) -> String) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|c| {
            rows.iter()
                .filter_map(|row| row.get(c))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for (r, row) in rows.iter().enumerate() {
        for (c, cell) in row.iter().enumerate() {
            // Padded by hand: the paint has no width.
            let room = if c + 1 == row.len() {
                0
            } else {
                widths[c] - cell.chars().count() + 2
            };
            let _ = write!(text, "{}{}", paint(r, c, cell), " ".repeat(room));
        }
        text.push('\n');
    }
    text
}

fn report(config: &Config, style: Style) -> String {
    let rules: Vec<_> = config.rules.iter().collect();
    let mut text = match config.file() {
        Some(file) => format!(
            "{}: {}; the first that matches a channel is its rule\n\n",
            style.bold(file),
            count(rules.len())
        ),
        None => format!(
            "{}: {}, this machine only\n\n",
            style.bold("no airwave.toml"),
            match rules.len() {
                1 => "one rule for every channel",
                _ => "the examples' rules, and one for every other channel",
            }
        ),
    };

    text.push_str(&table_of_rules(config, style));
    for (i, rule) in rules.iter().enumerate() {
        let place = match config.rule_origin(i) {
            Origin::Default => String::new(),
            origin => format!("  {}", style.dim(&origin.to_string())),
        };
        let _ = write!(text, "\n{} {}{place}\n", i + 1, style.bold(rule.pattern.as_str()));
        if let Some(use_case) = rule.use_case {
            let _ = writeln!(text, "  {}: {}", use_case.as_str(), use_case.why());
        }
        text.push_str(&details(config.rule_settings(i), style));
    }
    let _ = write!(text, "\n{}\n", style.bold("settings"));
    text.push_str(&details(config.settings(), style));
    text.push_str(&warnings(config, style));
    text
}

/// A line for each rule, below the names of the columns.
fn table_of_rules(config: &Config, style: Style) -> String {
    let mut table = vec![
        [
            "",
            "channels",
            "use case",
            "transport",
            "delivery",
            "history",
            "on subscribe",
            "slow",
            "send",
            "presence",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for (i, rule) in config.rules.iter().enumerate() {
        let value = |key: &str| {
            config
                .rule_settings(i)
                .find(|(name, ..)| *name == key)
                .map_or(String::new(), |(_, shown, _)| shown.to_string())
        };
        let delivery = match rule.max_rate {
            Some(rate) => format!("{}, {rate}/s", value("delivery")),
            None => value("delivery"),
        };
        let history = match rule.history.events {
            0 => "none".into(),
            events => format!("{events} events, {}", value("history.age")),
        };
        table.push(vec![
            (i + 1).to_string(),
            rule.pattern.to_string(),
            rule.use_case.map_or("-", UseCase::as_str).into(),
            value("transport"),
            delivery,
            history,
            value("replay"),
            value("slow"),
            value("send"),
            value("presence"),
        ]);
    }
    aligned(&table, |row, _, cell| if row == 0 { style.dim(cell) } else { cell.into() })
}

fn warnings(config: &Config, style: Style) -> String {
    let mut text = String::new();
    let warnings = config.warnings();
    if !warnings.is_empty() {
        let _ = write!(text, "\n{}, which the server logs when it starts\n", style.bold("warnings"));
        for warning in warnings {
            let _ = writeln!(text, "  {warning}");
        }
    }
    text
}

fn count(rules: usize) -> String {
    format!("{rules} {}", if rules == 1 { "rule" } else { "rules" })
}

/// Formats key, value and origin. Values that the user wrote stand out against the defaults.
fn details(settings: impl Iterator<Item = (&'static str, Shown, Origin)>, style: Style) -> String {
    let (rows, written): (Vec<_>, Vec<_>) = settings
        .map(|(key, shown, origin)| {
            let written = !matches!(origin, Origin::Default | Origin::Implied(_) | Origin::UseCase(_));
            (vec![format!("  {key}"), shown.to_string(), origin.to_string()], written)
        })
        .unzip();
    aligned(&rows, |row, column, cell| match (column, written[row]) {
        (1, true) => style.bold(cell),
        (2, false) => style.dim(cell),
        _ => cell.into(),
    })
}

fn as_json(config: &Config) -> Value {
    let rules: Vec<Value> = config
        .rules
        .iter()
        .enumerate()
        .map(|(i, rule)| {
            let mut object = json!({
                "match": rule.pattern.as_str(),
                "use_case": rule.use_case.map(UseCase::as_str),
                "from": config.rule_origin(i).to_string(),
            });
            for (key, shown, origin) in config.rule_settings(i) {
                insert(&mut object, key, &shown, &origin);
            }
            object
        })
        .collect();
    let mut settings = json!({});
    for (key, shown, origin) in config.settings() {
        insert(&mut settings, key, &shown, &origin);
    }
    json!({ "file": config.file(), "rules": rules, "settings": settings, "warnings": config.warnings() })
}

/// Every key that a file may have: what docs/configuration.md says, for a terminal.
fn keys(style: Style) -> String {
    let plain = |text: &str| text.replace('`', "");
    let mut text = String::new();
    let rules = config::rule_keys().map(|key| (format!("[[channels]] {}", key.name), key));
    for (name, key) in config::keys().map(|key| (key.name.to_owned(), key)).chain(rules) {
        let ways = key
            .variable
            .iter()
            .map(String::as_str)
            .chain(key.flag)
            .collect::<Vec<_>>()
            .join("  ");
        let _ = writeln!(text, "{}  {}", style.bold(&name), style.dim(&ways));
        let _ = writeln!(text, "  {}", plain(key.meaning));
        let _ = writeln!(text, "  takes    {}", plain(&key.range));
        let _ = writeln!(text, "  default  {}", plain(&key.default));
        let _ = writeln!(text, "  example  {} = {}\n", key.name, key.example);
    }
    text
}

fn keys_as_json() -> Value {
    let object = |key: config::Key, rule: bool| {
        json!({
            "key": key.name,
            "rule": rule,
            "meaning": key.meaning,
            "range": key.range,
            "default": key.default,
            "example": key.example,
            "variable": key.variable,
            "flag": key.flag,
        })
    };
    let settings = config::keys().map(|key| object(key, false));
    settings.chain(config::rule_keys().map(|key| object(key, true))).collect()
}

/// Puts `{"value", "from"}` at a dotted key.
fn insert(object: &mut Value, key: &str, shown: &Shown, origin: &Origin) {
    let place = key.split('.').fold(object, |object, part| &mut object[part]);
    *place = json!({ "value": Value::from(shown), "from": origin.to_string() });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use airwave::config::Sources;

    const FILE: &str = r#"
[publish]
token = "0123456789abcdef"
[limits]
idle = "90s"
[[channels]]
match = "orders/{id}"
use_case = "job-status"
history = { events = 200, age = "1h" }
[[channels]]
match = "chat/{room}"
transport = ["websocket", "sse"]
max_rate = 20
"#;

    fn config() -> Config {
        Config::load(&Sources::of_file("airwave.toml", FILE)).unwrap()
    }

    #[test]
    fn the_matrix_is_a_table_and_every_value_has_its_origin() {
        let text = report(&config(), Style { on: false });
        let (matrix, settings) = text.split_once("\nsettings\n").unwrap();
        assert_eq!(
            matrix,
            "\
airwave.toml: 2 rules; the first that matches a channel is its rule

   channels     use case    transport       delivery     history         on subscribe  slow    send     presence
1  orders/{id}  job-status  sse             every        200 events, 1h  all           refill  handler  false
2  chat/{room}  -           websocket, sse  every, 20/s  100 events, 1h  none          refill  handler  false

1 orders/{id}  airwave.toml:6
  job-status: the server tells how the job gets on; a late visitor wants all of it; it ends
  transport       sse      use case job-status
  delivery        every    default
  max_rate        none     default
  history.events  200      airwave.toml:9
  history.age     1h       airwave.toml:9
  history.bytes   16MiB    default
  replay          all      use case job-status
  slow            refill   default
  send            handler  default
  presence        false    default

2 chat/{room}  airwave.toml:10
  transport       websocket, sse  airwave.toml:12
  delivery        every           default
  max_rate        20              airwave.toml:13
  history.events  100             default
  history.age     1h              default
  history.bytes   16MiB           default
  replay          none            default
  slow            refill          default
  send            handler         default
  presence        false           default
"
        );
        assert!(
            settings.contains("  publish.token                        set, not shown   airwave.toml:3\n"),
            "{settings}"
        );
        assert!(
            settings.contains("  limits.idle                          90s              airwave.toml:5\n"),
            "{settings}"
        );
        assert!(!text.contains("0123456789abcdef") && !text.contains('\x1b'));
    }

    #[test]
    fn colours_change_nothing_but_colours() {
        let plain = report(&config(), Style { on: false });
        let mut painted = report(&config(), Style { on: true });
        assert!(painted.contains("\x1b[1m"));
        for code in ["\x1b[0m", "\x1b[1m", "\x1b[2m"] {
            painted = painted.replace(code, "");
        }
        assert_eq!(plain, painted);
    }

    #[test]
    fn every_key_is_listed_for_people_and_as_json() {
        let text = keys(Style { on: false });
        for part in [
            "limits.idle  AIRWAVE_LIMITS_IDLE\n  Silence of a WebSocket client",
            "  takes    a duration like \"15s\"; at least 1s\n  default  1m\n  example  limits.idle = \"90s\"\n",
            "\nlisten  AIRWAVE_LISTEN  --listen\n",
            "[[channels]] history.age",
        ] {
            assert!(format!("\n{text}").contains(part), "{part} in {text}");
        }
        let json = keys_as_json();
        let count = config::keys().count() + config::rule_keys().count();
        assert_eq!(json.as_array().map(Vec::len), Some(count));
        assert_eq!(json[0]["variable"], "AIRWAVE_LISTEN");
    }

    #[test]
    fn json_has_the_same() {
        let json = as_json(&config());
        assert_eq!(json["file"], "airwave.toml");
        assert_eq!(
            json["rules"][0]["history"]["events"],
            json!({ "value": 200, "from": "airwave.toml:9" })
        );
        assert_eq!(json["rules"][0]["use_case"], "job-status");
        assert_eq!(json["rules"][1]["transport"]["value"], json!(["websocket", "sse"]));
        assert_eq!(json["rules"][1]["use_case"], Value::Null);
        assert_eq!(
            json["settings"]["limits"]["idle"],
            json!({ "value": "90s", "from": "airwave.toml:5" })
        );
        assert_eq!(json["settings"]["publish"]["token"]["value"], true);
        assert!(!json.to_string().contains("0123456789abcdef"));
    }

    #[test]
    #[cfg(not(feature = "gallery"))]
    fn without_a_file_it_says_so() {
        let text = report(&effective(Config::default()).unwrap(), Style { on: false });
        assert!(
            text.starts_with("no airwave.toml: one rule for every channel, this machine only\n"),
            "{text}"
        );
    }

    #[test]
    #[cfg(feature = "gallery")]
    fn without_a_file_it_says_so_and_shows_the_rules_of_the_examples() {
        let config = effective(Config::default()).unwrap();
        let text = report(&config, Style { on: false });
        assert!(
            text.starts_with("no airwave.toml: the examples' rules, and one for every other channel, this machine only\n"),
            "{text}"
        );
        assert!(text.contains("chat/{room}/typing  examples/chat/airwave.toml:"), "{text}");
        let json = as_json(&config);
        let rules = json["rules"].as_array().unwrap();
        assert_eq!(rules[0]["match"], "dashboard/{machine}");
        assert_eq!(
            rules[0]["history"]["events"],
            json!({ "value": 2000, "from": "examples/dashboard/airwave.toml:6" })
        );
        assert_eq!(rules.last().unwrap()["match"], "{*channel}");
        assert_eq!(rules.last().unwrap()["from"], "default");
    }
}
