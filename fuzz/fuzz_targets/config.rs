//! `airwave.toml`, as people write it.
#![no_main]

use airwave::Config;
use airwave::config::Sources;
use libfuzzer_sys::fuzz_target;

const SECRET: &str = "fuzz-8f1c2a-secret";

fuzz_target!(|text: &str| {
    if text.contains(SECRET) {
        return;
    }
    load(text);
    // The same with a secret, which may be in neither what is shown nor in what is wrong.
    load(&format!("publish.token = \"{SECRET}\"\n{text}"));
});

fn load(text: &str) {
    let load = || Config::load(&Sources::of_file("fuzz.toml", text));
    let told = match load() {
        Ok(config) => {
            let again = load().expect("it was taken before");
            assert_eq!(shown(&config), shown(&again));
            config.check().expect("what is loaded goes together");
            format!("{config:?} {:?}", shown(&config))
        }
        Err(error) => {
            assert!(!error.problems().is_empty());
            assert!(error.problems().iter().all(|problem| !problem.message.trim().is_empty()));
            format!("{error} {error:?}")
        }
    };
    assert!(!told.contains(SECRET), "{told}");
}

fn shown(config: &Config) -> Vec<String> {
    let rules = 0..config.rules.iter().count();
    let rules = rules.flat_map(|rule| config.rule_settings(rule).map(|(key, value, origin)| format!("{key} {value} {origin}")));
    let settings = config.settings().map(|(key, value, origin)| format!("{key} {value} {origin}"));
    settings.chain(rules).collect()
}
