//! Who reaches the server, and what a server without handlers lets strangers do.

use airwave_core::rule::{Pattern, Rule, SendPolicy};

use super::values::Config;

impl Config {
    /// How other machines reach the server: the key that says so, and a sentence's beginning.
    pub(super) fn reached(&self) -> Option<(&'static str, String)> {
        if self.is_local() {
            return None;
        }
        Some(if !self.listens_on_loopback() {
            ("listen", format!("{} can be reached from other machines", self.listen))
        } else {
            let key = if self.trusted_proxies.is_empty() {
                "hosts"
            } else {
                "trusted_proxies"
            };
            (
                key,
                format!("{} can be reached from other machines through a proxy", self.listen),
            )
        })
    }

    /// What a server without handlers logs as warnings when it starts: what strangers may do. Empty
    /// where no other machine reaches it.
    ///
    /// ```
    /// use airwave::config::{Config, Sources};
    ///
    /// let file = r#"
    ///     listen = "0.0.0.0:8080"
    ///     publish.open = false
    ///     [[channels]]
    ///     match = "news"
    ///     use_case = "feed"
    /// "#;
    /// let config = Config::load(&Sources::of_file("airwave.toml", file)).unwrap();
    /// assert!(config.warnings()[0].contains("may listen to the channels of the rule \"news\""));
    /// ```
    pub fn warnings(&self) -> Vec<String> {
        self.warnings_beside(|_| false)
    }

    /// The same where `handled` says which rules have a handler for all of their channels: the
    /// handler decides then.
    pub(crate) fn warnings_beside(&self, handled: impl Fn(&Pattern) -> bool) -> Vec<String> {
        let Some((_, reached)) = self.reached() else {
            return Vec::new();
        };
        let open: Vec<&Rule> = self
            .rules
            .iter()
            .map(AsRef::as_ref)
            .filter(|rule| !handled(&rule.pattern))
            .collect();
        let said: Vec<&Rule> = open.iter().copied().filter(|rule| rule.send == SendPolicy::Publish).collect();
        let mut warnings = Vec::new();
        if !open.is_empty() {
            warnings.push(format!(
                "{reached}, and anyone there may listen to the channels of the {} and read their history, because nothing here asks \
                 who it is; if they are not for everyone, let a proxy ask (docs/who-may-listen.md has the lines for nginx) or an \
                 application's handler (docs/handlers.md), or write listen = \"127.0.0.1:8080\" without trusted_proxies and hosts",
                named(&open)
            ));
        }
        if !said.is_empty() {
            warnings.push(format!(
                "{reached}, and anyone there may publish to the channels of the {}, because send = \"publish\" publishes what a client \
                 sends; if that is not meant, write send = \"refuse\" there, or let a proxy or a handler ask as docs/who-may-listen.md says",
                named(&said)
            ));
        }
        if self.publish_open {
            warnings.push(format!(
                "{reached}, and anyone there may publish to every channel by POST /publish, because publish.open = true; if that is not \
                 meant, write a token of at least 16 characters as publish.token or AIRWAVE_PUBLISH_TOKEN in its place, or \
                 publish.open = false"
            ));
        }
        warnings
    }
}

/// `rules "a/{id}", "b" and 7 more`: so many that a line of the log stays one that people read.
fn named(rules: &[&Rule]) -> String {
    const MOST: usize = 10;
    let shown: Vec<String> = rules.iter().take(MOST).map(|rule| format!("\"{}\"", rule.pattern)).collect();
    let more = match rules.len().saturating_sub(MOST) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("rule{} {}{more}", if rules.len() == 1 { "" } else { "s" }, shown.join(", "))
}
