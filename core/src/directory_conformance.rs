//! This module holds the contract of [`Directory`] as tests. Each clause is one public function,
//! and every broker that has a directory runs it.
//!
//! A broker's tests give a [`DirectoryFixture`] and call
//! [`directory_conformance_tests!`](crate::directory_conformance_tests). Names are new in every
//! run. No clause depends on speed: a wait is for an event, and [`PATIENCE`] only turns a hang into
//! a failure. One clause waits until a node expires, which takes a quarter of a minute.

// A clause fails by panicking.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::{sleep, timeout};

use crate::conformance::{Fault, Run};
use crate::directory::{Directory, MAX_MEMBER, MemberEntry, NodeId, Watch};
use crate::event::{ChannelName, Position};

/// Bounds how long a clause waits for anything. It decides only when a clause counts as hung.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A fixture gives the clauses one backbone to run over.
#[async_trait]
pub trait DirectoryFixture: Send + Sync {
    /// Returns the directory as another node has it. A directory of one process returns the same
    /// each time.
    async fn node(&self) -> Arc<dyn Directory>;

    /// Returns the faults that this fixture can inflict on its backbone. A clause that needs more
    /// prints that it is skipped.
    fn faults(&self) -> &[Fault];

    /// Inflicts `fault`, and returns when it has happened.
    async fn inflict(&self, fault: Fault);
}

/// A clause is one test of the contract.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct DirectoryClause {
    /// Names the clause's function.
    pub name: &'static str,
    /// Names the faults of the backbone that the clause needs.
    pub needs: &'static [Fault],
    /// Runs the clause; panics if the directory breaks it.
    pub run: for<'a> fn(&'a dyn DirectoryFixture) -> Run<'a>,
}

impl DirectoryClause {
    /// Runs the clause as a test. A skip is printed.
    ///
    /// # Panics
    /// Panics if the directory breaks the clause.
    pub async fn prove(&self, fixture: &dyn DirectoryFixture) {
        if let Some(fault) = self.needs.iter().find(|fault| !fixture.faults().contains(fault)) {
            eprintln!("skipped: {}, because this fixture makes no {fault:?}", self.name);
            return;
        }
        let run = timeout(3 * PATIENCE, (self.run)(fixture)).await;
        assert!(run.is_ok(), "{}: not done within {:?}", self.name, 3 * PATIENCE);
    }
}

/// Returns the clause with that name.
///
/// # Panics
/// Panics if no clause has that name.
pub fn clause(name: &str) -> &'static DirectoryClause {
    CLAUSES
        .iter()
        .find(|clause| clause.name == name)
        .unwrap_or_else(|| panic!("no clause is named {name}"))
}

/// Makes a test of each clause: `directory_conformance_tests!(fixture);`, with
/// `async fn fixture(needs: &[Fault]) -> Option<impl DirectoryFixture>`.
///
/// That function returns `None`, after printing why, where there is no backbone. Where a fault is
/// needed, it returns a backbone that no other test uses.
#[macro_export]
macro_rules! directory_conformance_tests {
    ($fixture:path) => { $crate::directory_conformance_tests! { @each [tests $fixture] } };
    (@each $what:tt) => { $crate::directory_conformance_tests! { @make $what
        a_node_is_unknown_once_and_then_known;
        what_is_set_is_seen_on_another_node;
        what_is_cleared_is_gone_on_another_node;
        an_entry_that_is_set_again_takes_the_place_of_the_first;
        clearing_what_is_not_there_is_no_error;
        each_node_has_its_own_entry_of_a_member;
        a_watch_shows_every_entry_in_the_order_of_its_node;
        dropping_a_watch_ends_no_other;
        a_node_that_leaves_is_gone_at_once;
        a_node_that_stops_beating_is_dead_for_everybody_and_does_not_come_back;
        channels_do_not_hear_each_other;
        a_member_may_be_any_text;
        ten_thousand_members_are_listed;

        a_watch_that_was_cut_ends_or_misses_nothing: Cut;
        after_a_wipe_no_member_is_known: Wipe;
    } };
    (@make [tests $fixture:path] $($name:ident $(: $fault:ident)?;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let clause = $crate::directory_conformance::clause(stringify!($name));
            if let Some(fixture) = $fixture(clause.needs).await {
                clause.prove(&fixture).await;
            }
        }
    )*};
    (@make [list] $($name:ident $(: $fault:ident)?;)*) => {
        /// Lists every clause of the contract.
        pub const CLAUSES: &[DirectoryClause] = &[$(
            DirectoryClause {
                name: stringify!($name),
                needs: &[$(Fault::$fault)?],
                run: |fixture| Box::pin($name(fixture)),
            },
        )*];
    };
}
directory_conformance_tests! { @each [list] }

/// Returns a channel that no other run and no other call names.
fn channel() -> ChannelName {
    static CALL: AtomicU64 = AtomicU64::new(0);
    let call = CALL.fetch_add(1, Ordering::Relaxed);
    ChannelName::new(&format!("members/{}-{call}", Position::now())).unwrap()
}

/// A living node has sent a heartbeat and has a directory of its own.
struct Living {
    directory: Arc<dyn Directory>,
    node: NodeId,
    stamp: AtomicU64,
}

impl Living {
    async fn on(fixture: &dyn DirectoryFixture) -> Self {
        let living = Self {
            directory: fixture.node().await,
            node: NodeId::draw(),
            stamp: AtomicU64::new(Position::now().0),
        };
        assert!(!living.directory.heartbeat(living.node).await.unwrap().known);
        living
    }

    fn entry(&self, member: &str, value: Option<&str>) -> MemberEntry {
        MemberEntry {
            node: self.node,
            member: member.into(),
            stamp: self.stamp.fetch_add(1, Ordering::Relaxed),
            value: value.map(|value| Bytes::copy_from_slice(value.as_bytes())),
        }
    }

    async fn set(&self, channel: &ChannelName, member: &str, value: &str) {
        let entry = self.entry(member, Some(value));
        self.directory.set(channel, &[entry]).await.unwrap();
    }

    async fn clear(&self, channel: &ChannelName, member: &str) {
        let entry = self.entry(member, None);
        self.directory.set(channel, &[entry]).await.unwrap();
    }

    async fn list(&self, channel: &ChannelName) -> BTreeMap<(NodeId, String), String> {
        let entries = self.directory.list(channel).await.unwrap();
        let count = entries.len();
        let listed: BTreeMap<_, _> = entries
            .into_iter()
            .map(|entry| {
                let value = entry.value.expect("only what is set is listed");
                (
                    (entry.node, entry.member.to_string()),
                    String::from_utf8(value.to_vec()).unwrap(),
                )
            })
            .collect();
        assert_eq!(listed.len(), count, "each entry once");
        listed
    }

    fn is(&self, member: &str, value: &str) -> ((NodeId, String), String) {
        ((self.node, member.to_owned()), value.to_owned())
    }
}

async fn shown(watch: &mut Watch) -> Option<MemberEntry> {
    let next = timeout(PATIENCE, watch.next()).await;
    next.unwrap_or_else(|_| panic!("nothing was shown within {PATIENCE:?}"))
}

async fn shown_value(watch: &mut Watch) -> (String, Option<String>) {
    let entry = shown(watch).await.expect("the watch goes on");
    let value = entry.value.map(|value| String::from_utf8(value.to_vec()).unwrap());
    (entry.member.to_string(), value)
}

/// A node's first heartbeat makes it known, and its next heartbeat finds it known.
pub async fn a_node_is_unknown_once_and_then_known(fixture: &dyn DirectoryFixture) {
    let (one, other) = (Living::on(fixture).await, Living::on(fixture).await);
    for living in [&one, &other] {
        let heartbeat = living.directory.heartbeat(living.node).await.unwrap();
        assert!(heartbeat.known);
        assert!(heartbeat.living.contains(&one.node) && heartbeat.living.contains(&other.node));
        assert!(
            !heartbeat.living.contains(&one.node.next()),
            "another incarnation is another node"
        );
    }
}

/// A watch on another node shows the entry that a node sets. The other node lists it with its
/// stamp.
pub async fn what_is_set_is_seen_on_another_node(fixture: &dyn DirectoryFixture) {
    let (one, other, channel) = (Living::on(fixture).await, Living::on(fixture).await, channel());
    let mut watch = other.directory.watch(&channel).await.unwrap();
    let entry = one.entry("ann", Some("here"));
    one.directory.set(&channel, std::slice::from_ref(&entry)).await.unwrap();
    assert_eq!(shown(&mut watch).await, Some(entry.clone()));
    assert_eq!(other.directory.list(&channel).await.unwrap(), [entry]);
}

/// A watch shows the entry that a node clears, and no node lists it any more.
pub async fn what_is_cleared_is_gone_on_another_node(fixture: &dyn DirectoryFixture) {
    let (one, other, channel) = (Living::on(fixture).await, Living::on(fixture).await, channel());
    one.set(&channel, "ann", "here").await;
    one.set(&channel, "bob", "here").await;
    let mut watch = other.directory.watch(&channel).await.unwrap();
    one.clear(&channel, "ann").await;
    // The watch may also show entries that were set before it began.
    while shown_value(&mut watch).await != ("ann".to_owned(), None) {}
    assert_eq!(other.list(&channel).await, BTreeMap::from([one.is("bob", "here")]));
}

/// The newest value counts.
pub async fn an_entry_that_is_set_again_takes_the_place_of_the_first(fixture: &dyn DirectoryFixture) {
    let (one, channel) = (Living::on(fixture).await, channel());
    one.set(&channel, "ann", "1").await;
    one.set(&channel, "ann", "2").await;
    assert_eq!(one.list(&channel).await, BTreeMap::from([one.is("ann", "2")]));
}

/// Clearing an entry that is not there, or in an unknown channel, succeeds like any other clearing.
pub async fn clearing_what_is_not_there_is_no_error(fixture: &dyn DirectoryFixture) {
    let (one, channel) = (Living::on(fixture).await, channel());
    one.clear(&channel, "ann").await;
    assert_eq!(one.list(&channel).await, BTreeMap::new());
    one.set(&channel, "ann", "1").await;
    one.clear(&channel, "bob").await;
    assert_eq!(one.list(&channel).await, BTreeMap::from([one.is("ann", "1")]));
}

/// Two nodes may have the same member. A change of one node's entry does not change the other's.
pub async fn each_node_has_its_own_entry_of_a_member(fixture: &dyn DirectoryFixture) {
    let (one, other, channel) = (Living::on(fixture).await, Living::on(fixture).await, channel());
    one.set(&channel, "ann", "1").await;
    other.set(&channel, "ann", "2").await;
    let both = BTreeMap::from([one.is("ann", "1"), other.is("ann", "2")]);
    assert_eq!((one.list(&channel).await, other.list(&channel).await), (both.clone(), both));
    one.clear(&channel, "ann").await;
    assert_eq!(one.list(&channel).await, BTreeMap::from([other.is("ann", "2")]));
}

/// A watch shows every change after it began, each once, and those of one node in their order. It
/// also shows the changes of its own node.
pub async fn a_watch_shows_every_entry_in_the_order_of_its_node(fixture: &dyn DirectoryFixture) {
    let (one, other, channel) = (Living::on(fixture).await, Living::on(fixture).await, channel());
    let mut watch = one.directory.watch(&channel).await.unwrap();
    for n in 0..200 {
        for living in [&one, &other] {
            // No node may expire, however long all of it takes.
            if n % 20 == 0 {
                living.directory.heartbeat(living.node).await.unwrap();
            }
            let entries = [living.entry("ann", Some(&n.to_string())), living.entry("bob", None)];
            living.directory.set(&channel, &entries).await.unwrap();
        }
    }
    let mut stamps: BTreeMap<NodeId, Vec<u64>> = BTreeMap::new();
    for _ in 0..800 {
        let entry = shown(&mut watch).await.unwrap();
        stamps.entry(entry.node).or_default().push(entry.stamp);
    }
    for living in [&one, &other] {
        let stamps = &stamps[&living.node];
        assert_eq!(stamps.len(), 400);
        assert!(stamps.is_sorted_by(|a, b| a < b));
    }
}

/// A dropped watch ends, and those beside it go on.
pub async fn dropping_a_watch_ends_no_other(fixture: &dyn DirectoryFixture) {
    let (one, channel) = (Living::on(fixture).await, channel());
    let mut stays = one.directory.watch(&channel).await.unwrap();
    for n in 0..20 {
        let goes = one.directory.watch(&channel).await.unwrap();
        one.set(&channel, "ann", &n.to_string()).await;
        drop(goes);
        assert_eq!(shown_value(&mut stays).await, ("ann".to_owned(), Some(n.to_string())));
    }
}

/// A directory lists no entry of a node that has left, and the node is not among the living.
pub async fn a_node_that_leaves_is_gone_at_once(fixture: &dyn DirectoryFixture) {
    let (one, other, channel) = (Living::on(fixture).await, Living::on(fixture).await, channel());
    one.set(&channel, "ann", "1").await;
    other.set(&channel, "bob", "2").await;
    one.directory.leave(one.node).await.unwrap();
    assert_eq!(other.list(&channel).await, BTreeMap::from([other.is("bob", "2")]));
    let heartbeat = other.directory.heartbeat(other.node).await.unwrap();
    assert!(!heartbeat.living.contains(&one.node));
    // Leaving twice is no error, and leaving is none for a node that never was there.
    one.directory.leave(one.node).await.unwrap();
    one.directory.leave(one.node.next()).await.unwrap();
}

/// The directory lists no entry of a node that sends no heartbeat for a while. If the node sends a
/// heartbeat again, it is unknown, and its entries do not come back.
pub async fn a_node_that_stops_beating_is_dead_for_everybody_and_does_not_come_back(fixture: &dyn DirectoryFixture) {
    let (one, other, channel) = (Living::on(fixture).await, Living::on(fixture).await, channel());
    one.set(&channel, "ann", "1").await;
    other.set(&channel, "bob", "2").await;
    let only = BTreeMap::from([other.is("bob", "2")]);
    let died = async {
        while other.list(&channel).await != only {
            assert!(other.directory.heartbeat(other.node).await.unwrap().known, "who beats lives");
            sleep(Duration::from_millis(500)).await;
        }
    };
    timeout(PATIENCE, died).await.expect("the dead are missed");
    let heartbeat = other.directory.heartbeat(other.node).await.unwrap();
    assert!(heartbeat.known && !heartbeat.living.contains(&one.node));
    assert!(!one.directory.heartbeat(one.node).await.unwrap().known);
    let reborn = one.node.next();
    assert!(!one.directory.heartbeat(reborn).await.unwrap().known);
    assert_eq!(other.list(&channel).await, only);
}

/// Channels with similar names are different channels.
pub async fn channels_do_not_hear_each_other(fixture: &dyn DirectoryFixture) {
    let (one, channel) = (Living::on(fixture).await, channel());
    let mut watch = one.directory.watch(&channel).await.unwrap();
    for suffix in ["x", "/x", ":members", "=", "~"] {
        let other = ChannelName::new(&format!("{channel}{suffix}")).unwrap();
        one.set(&other, "ann", "elsewhere").await;
        assert_eq!(one.list(&other).await.len(), 1);
    }
    let upper = ChannelName::new(&channel.as_str().to_uppercase()).unwrap();
    one.set(&upper, "ann", "elsewhere").await;
    assert_eq!(one.list(&channel).await, BTreeMap::new());
    one.set(&channel, "ann", "here").await;
    assert_eq!(shown_value(&mut watch).await, ("ann".to_owned(), Some("here".to_owned())));
}

/// A broker might take these ids for a pattern, a part of a key, or each other.
const ODD_IDS: &[&str] = &[
    "",
    " ",
    "*",
    ">",
    "a",
    "A",
    "a*",
    "a?",
    "a.b",
    "a b",
    "[a-z]*",
    "{a}",
    "a}:{b",
    "a|b",
    "a:b",
    "a/b",
    "\0",
    "a\0",
    "\r\n",
    "\n",
    "\u{7f}",
    "é",
    "e\u{301}",
    "\u{2028}",
    "\u{10ffff}",
    "\"",
    "\\",
    "%2A",
    "$KV",
    "0",
    "null",
];

/// The directory gives the id of a member no meaning: an id may hold patterns, separators and line
/// ends.
pub async fn a_member_may_be_any_text(fixture: &dyn DirectoryFixture) {
    let (one, other, channel) = (Living::on(fixture).await, Living::on(fixture).await, channel());
    let mut ids: Vec<String> = ODD_IDS.iter().copied().map(String::from).collect();
    ids.push("é".repeat(MAX_MEMBER / 2) + "!");
    ids.push("\0".repeat(MAX_MEMBER));
    ids.push(one.node.to_string());
    let mut watch = other.directory.watch(&channel).await.unwrap();
    let entries: Vec<MemberEntry> = ids.iter().map(|id| one.entry(id, Some(id))).collect();
    one.directory.set(&channel, &entries).await.unwrap();
    for id in &ids {
        assert_eq!(shown_value(&mut watch).await, (id.clone(), Some(id.clone())));
    }
    let mut all: BTreeMap<_, _> = ids.iter().map(|id| one.is(id, id)).collect();
    assert_eq!(all.len(), ids.len());
    assert_eq!(other.list(&channel).await, all);
    for id in ids.iter().step_by(2) {
        one.clear(&channel, id).await;
        all.remove(&(one.node, id.clone()));
        assert_eq!(shown_value(&mut watch).await, (id.clone(), None));
    }
    assert_eq!(other.list(&channel).await, all);
    // A value may hold any bytes, and up to two kibibytes.
    let value = Bytes::from((0..2048).map(|n| n as u8).collect::<Vec<_>>());
    let entry = MemberEntry {
        value: Some(value),
        ..one.entry("bytes", None)
    };
    one.directory.set(&channel, std::slice::from_ref(&entry)).await.unwrap();
    assert_eq!(shown(&mut watch).await, Some(entry.clone()));
    assert!(other.directory.list(&channel).await.unwrap().contains(&entry));
}

/// The directory lists a large channel completely, and shows it completely to a watch.
pub async fn ten_thousand_members_are_listed(fixture: &dyn DirectoryFixture) {
    let (one, other, channel) = (Living::on(fixture).await, Living::on(fixture).await, channel());
    let mut watch = other.directory.watch(&channel).await.unwrap();
    let ids: Vec<String> = (0..10_000).map(|n| format!("user-{n}")).collect();
    for ids in ids.chunks(500) {
        let entries: Vec<MemberEntry> = ids.iter().map(|id| one.entry(id, Some("here"))).collect();
        one.directory.set(&channel, &entries).await.unwrap();
        one.directory.heartbeat(one.node).await.unwrap();
    }
    let listed: BTreeSet<String> = other.list(&channel).await.into_keys().map(|(_, id)| id).collect();
    assert_eq!(listed.len(), 10_000);
    for _ in 0..10_000 {
        assert!(shown(&mut watch).await.is_some());
    }
    one.directory.leave(one.node).await.unwrap();
    assert_eq!(other.list(&channel).await.len(), 0);
}

/// A watch whose connection breaks ends, unless it still shows everything.
pub async fn a_watch_that_was_cut_ends_or_misses_nothing(fixture: &dyn DirectoryFixture) {
    let (one, other, channel) = (Living::on(fixture).await, Living::on(fixture).await, channel());
    let mut watch = other.directory.watch(&channel).await.unwrap();
    one.set(&channel, "ann", "before").await;
    assert!(shown(&mut watch).await.is_some());
    fixture.inflict(Fault::Cut).await;
    let set = async {
        let entry = one.entry("bob", Some("after"));
        while one.directory.set(&channel, std::slice::from_ref(&entry)).await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, set).await.expect("it works again");
    if let Some(entry) = shown(&mut watch).await {
        assert_eq!(&*entry.member, "bob", "nothing is left out");
        return;
    }
    let again = async {
        loop {
            match other.directory.watch(&channel).await {
                Ok(watch) => break watch,
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let _watch = timeout(PATIENCE, again).await.expect("it can be watched again");
    let listed: Vec<String> = other.list(&channel).await.into_keys().map(|(_, id)| id).collect();
    assert_eq!(listed, ["ann", "bob"]);
}

/// After the broker loses everything, it lists no entry and knows no node.
pub async fn after_a_wipe_no_member_is_known(fixture: &dyn DirectoryFixture) {
    let (one, channel) = (Living::on(fixture).await, channel());
    one.set(&channel, "ann", "1").await;
    fixture.inflict(Fault::Wipe).await;
    assert_eq!(one.list(&channel).await, BTreeMap::new());
    assert!(!one.directory.heartbeat(one.node).await.unwrap().known);
    let reborn = Living {
        node: one.node.next(),
        ..one
    };
    assert!(!reborn.directory.heartbeat(reborn.node).await.unwrap().known);
    reborn.set(&channel, "ann", "2").await;
    assert_eq!(reborn.list(&channel).await, BTreeMap::from([reborn.is("ann", "2")]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clause_is_in_the_list() {
        let source = include_str!("directory_conformance.rs");
        let clauses = source.lines().filter_map(|line| {
            let (name, _) = line
                .strip_prefix("pub async fn ")?
                .split_once("(fixture: &dyn DirectoryFixture)")?;
            Some(name)
        });
        let mut written: Vec<&str> = clauses.collect();
        let mut listed: Vec<&str> = CLAUSES.iter().map(|clause| clause.name).collect();
        written.sort_unstable();
        listed.sort_unstable();
        assert_eq!(written, listed);
    }
}
