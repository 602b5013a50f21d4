//! This module states the broker contract as tests: one public function for each clause. A broker
//! is finished when all clauses hold over it.
//!
//! # The contract
//!
//! [`Broker`], [`Feed`] and [`Replay`] state the contract method by method. This section sums it
//! up. A channel is a **chain**: a first position, then events, each of which names the one before
//! it.
//!
//! - **Positions** strictly increase. No position is given twice, whichever node publishes and
//!   whatever was lost. An acknowledged event stands before one whose publish began later. A
//!   channel without events has a first position to resume from. Brokers may give several of them
//!   out, and they are of equal worth: after each of them comes the first event, which names the
//!   one that the caller asked with. A first position is good for at least five minutes after the
//!   broker gave it out, and as long as a feed goes on from it.
//! - **`previous`** is the position before, or zero if the broker no longer knows it. It is never
//!   another position. A feed knows it at least while history holds the event before.
//! - **A feed** shows every event after its head, each once and in order. A replay can return what
//!   the feed has shown. A feed that may have missed something ends.
//! - **A replay** returns everything after the requested position, or says `complete: false`. A
//!   position that the channel never gave, zero among them, is never complete. A replay ends at the
//!   bound of its page, in events or in bytes, and says `more`. One event always comes, unless the
//!   page asks for none. Such a page says `complete` as every other, and `more` if an event is
//!   left.
//! - **History** holds at least what the rule says. After the event that stands before the newest
//!   `events` ones (or before those that fit `bytes`, or `age`) a replay is complete. History may
//!   hold more, within bounds: at most `2 * events + 200` events and `4 * bytes` bytes. Events
//!   older than `age` go within half a minute. Without history the chain still stands.
//! - **Reading stores nothing** for longer than five minutes: neither a replay nor a feed that is
//!   dropped.
//! - **An idempotency key** makes one event per channel. The number of publishes and nodes does not
//!   matter, nor whether they publish at once. With another payload the broker refuses the key
//!   while history holds the first event, and appends nothing. Keys are text; different texts are
//!   different keys.
//! - **An end** is the last event. A broker appends an event and the end that is published with it
//!   together, or neither.
//! - **Names** are literal, and different names are different channels. **Payloads** come back byte
//!   for byte, at least up to a mebibyte.
//!
//! # Running it
//!
//! A broker's tests give a [`Fixture`], whose brokers are made with [`rules`]. They call
//! [`conformance_tests!`](crate::conformance_tests), which makes a test of each clause, in a module
//! that bears the broker's name. [`table`] shows clauses against brokers. Names are new in every
//! run, so runs may share a server and use it again. Clauses that break things need a server of
//! their own. No clause depends on speed: a clause waits for an event, and [`PATIENCE`] only turns
//! a hang into a failure.

// A clause fails by panicking.
#![allow(clippy::unwrap_used)]

mod calls;
mod chain;
mod channels;
mod ends;
mod feeds;
mod fixture;
mod history;
mod idempotency;
mod order;
mod outage;
mod replays;
mod verdict;
mod versions;

use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;

pub use channels::*;
pub use ends::*;
pub use feeds::*;
pub use fixture::{Fault, Fixture, PATIENCE, rules};
pub use history::*;
pub use idempotency::*;
pub use order::*;
pub use outage::*;
pub use replays::*;
pub use verdict::{Clause, RECORD, Run, Verdict};
pub use versions::*;

/// Makes a test of each clause: `conformance_tests!(fixture);`, with
/// `async fn fixture(needs: &[Fault]) -> Option<impl Fixture>`. The function prints why and returns
/// `None` if there is no backbone. If a clause needs a fault, the function returns a backbone that
/// no other test uses. The calling crate needs tokio as a dependency.
#[macro_export]
macro_rules! conformance_tests {
    ($fixture:path) => { $crate::conformance_tests! { @each [tests $fixture] } };
    // This is the one list of clauses, in the order in which a reader wants to know about them.
    (@each $what:tt) => { $crate::conformance_tests! { @make $what
        a_broker_that_works_says_so;
        positions_strictly_increase_and_name_their_previous;
        positions_come_from_the_clock;
        a_listener_without_events_misses_nothing;
        an_acknowledged_event_stands_before_one_published_later;
        concurrent_publishers_are_put_into_one_order_that_every_feed_shows;
        two_nodes_share_one_channel;

        a_feed_shows_every_event_after_its_head;
        an_opened_channel_has_every_event_in_its_page_or_its_feed;
        a_feed_without_a_reader_delays_no_other;
        dropping_a_feed_unsubscribes;
        an_event_that_a_feed_has_shown_can_be_replayed;
        replay_is_what_the_feed_showed;
        names_that_are_only_asked_for_are_not_stored;

        replay_after_the_head_is_complete_and_empty;
        replay_without_a_position_gives_the_newest;
        replay_after_the_previous_of_the_oldest_is_complete;
        replay_after_a_position_that_was_trimmed_is_incomplete;
        replay_inside_the_range_but_not_there_is_incomplete;
        replay_after_a_position_that_was_never_given_is_incomplete;
        large_histories_come_in_pages;
        a_page_of_nothing_answers_as_a_page_of_one;
        a_page_ends_at_its_bytes;
        a_page_leads_to_the_head_or_says_that_there_is_more;

        history_is_trimmed_by_count;
        history_is_trimmed_by_bytes;
        history_is_trimmed_by_age;
        nodes_with_different_clocks_see_the_same_history;
        a_channel_without_history_keeps_its_chain;

        a_repeated_key_gives_the_first_position_and_no_second_event;
        a_repeated_key_among_concurrent_publishers_makes_one_event;
        a_repeated_key_is_recognised_after_its_event_was_trimmed;
        a_key_counts_for_its_channel_alone;
        a_key_with_another_payload_is_refused;
        keys_of_different_sources_do_not_meet;
        a_publish_that_was_given_up_may_be_repeated_with_its_key;
        a_publish_that_was_given_up_happened_or_did_not;

        an_ended_channel_takes_no_more_events;
        an_ended_channel_can_still_be_followed_and_replayed;
        a_repeated_end_with_its_key_gives_its_position;
        an_event_and_the_end_behind_it_are_one_append;
        an_event_with_its_end_that_was_given_up_happened_whole_or_not;

        any_valid_name_and_payload_survives;
        binary_payloads_of_one_mebibyte_survive;
        attributes_come_back_as_they_were;
        what_a_later_version_stored_takes_no_channel_down;
        channels_do_not_hear_each_other;
        names_that_look_alike_are_different_channels;
        ten_thousand_channels_work;
        any_sequence_of_calls_agrees_with_a_list;

        after_a_wipe_nothing_old_goes_on: Wipe;
        a_store_that_returns_behind_goes_on_above_what_it_gave: ReturnBehind;
        a_feed_that_was_cut_ends_or_misses_nothing: Cut;
        a_restart_loses_no_acknowledged_event: Restart;
    } };
    (@make [tests $fixture:path] $($name:ident $(: $fault:ident)?;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let clause = $crate::conformance::clause(stringify!($name));
            if let Some(fixture) = $fixture(clause.needs).await {
                let module = module_path!();
                clause.prove(module.rsplit("::").next().unwrap_or(module), &fixture).await;
            }
        }
    )*};
    (@make [list] $($name:ident $(: $fault:ident)?;)*) => {
        /// This list holds every clause of the contract.
        pub const CLAUSES: &[Clause] = &[$(
            Clause {
                name: stringify!($name),
                needs: &[$(Fault::$fault)?],
                run: |fixture| Box::pin($name(fixture)),
            },
        )*];
    };
}

conformance_tests! { @each [list] }

/// Returns the clause of that name.
///
/// # Panics
/// If there is none.
pub fn clause(name: &str) -> &'static Clause {
    CLAUSES
        .iter()
        .find(|clause| clause.name == name)
        .unwrap_or_else(|| panic!("no clause is named {name}"))
}

/// Runs every clause over every fixture and returns a Markdown table of the verdicts. The reasons
/// of the broken clauses follow the table.
pub async fn table(fixtures: &[(&str, &dyn Fixture)]) -> String {
    let mut verdicts = HashMap::new();
    let mut reasons = String::new();
    for clause in CLAUSES {
        for (broker, fixture) in fixtures {
            let verdict = clause.judge(*fixture).await;
            if let Verdict::Broken(why) = &verdict {
                let _ = write!(reasons, "\n{broker}: {}: {why}", clause.name); // writing to a String cannot fail
            }
            verdicts.insert((*broker, clause.name), verdict.to_string());
        }
    }
    let brokers: Vec<&str> = fixtures.iter().map(|(broker, _)| *broker).collect();
    markdown(&brokers, |broker, clause| verdicts[&(broker, clause)].clone()) + &reasons
}

/// Returns the table of the verdicts that the tests of these brokers wrote into this folder, with
/// [`RECORD`]. Each pair of `brokers` holds the name in the record and the name that readers know.
/// A clause that did not run shows as `not run`.
pub fn recorded_table(folder: &Path, brokers: &[(&str, &str)]) -> String {
    let titles: Vec<&str> = brokers.iter().map(|(_, title)| *title).collect();
    markdown(&titles, |title, clause| {
        let recorded = brokers.iter().find(|(_, known)| *known == title);
        recorded
            .and_then(|(broker, _)| std::fs::read_to_string(folder.join(broker).join(clause)).ok())
            .unwrap_or_else(|| "not run".into())
    })
}

fn markdown(brokers: &[&str], verdict: impl Fn(&str, &str) -> String) -> String {
    let mut table = format!(
        "| clause | {} |\n|---|{}\n",
        brokers.join(" | "),
        "---|".repeat(brokers.len())
    );
    for clause in CLAUSES {
        let verdicts: Vec<String> = brokers.iter().map(|broker| verdict(broker, clause.name)).collect();
        let _ = writeln!(table, "| {} | {} |", clause.name.replace('_', " "), verdicts.join(" | "));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clause_is_in_the_list() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/conformance");
        let mut written = Vec::new();
        for file in std::fs::read_dir(folder).unwrap() {
            let source = std::fs::read_to_string(file.unwrap().path()).unwrap();
            written.extend(source.lines().filter_map(|line| {
                let (name, _) = line.strip_prefix("pub async fn ")?.split_once("(fixture: &dyn Fixture)")?;
                Some(name.to_owned())
            }));
        }
        let mut listed: Vec<&str> = CLAUSES.iter().map(|clause| clause.name).collect();
        written.sort_unstable();
        listed.sort_unstable();
        assert_eq!(written, listed);
    }
}
