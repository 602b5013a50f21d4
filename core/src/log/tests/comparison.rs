//! The log and the naive one take the same steps, and must give the same answer at each.

use proptest::prelude::*;

use super::naive::{Naive, ReadText};
use super::*;

#[derive(Debug, Clone)]
enum Step {
    /// The log takes an event with this key, size and distance from the event before. The flag says
    /// whether that one is known.
    Append(u8, usize, u64, bool),
    /// The log refuses an event that does not follow: its chain is broken, or the log knows it.
    Offer(bool),
    /// The head moves forward where history has expired, or back where a tail was lost.
    Gap(i64),
    Show,
    /// This listener reads entries one by one, or as a batch.
    Read(usize, bool),
    /// The listener that has fallen off skips ahead, or receives what the log remembers of each
    /// key.
    GetUp(usize, bool),
    Age(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![8 => 0..50usize, 1 => 20_000..30_000usize, 1 => Just(70_000usize)];
    prop_oneof![
        10 => (0..4u8, size, 1..3u64, any::<bool>()).prop_map(|(key, size, far, known)| Step::Append(key, size, far, known)),
        1 => any::<bool>().prop_map(Step::Offer),
        1 => (-5..5i64).prop_map(Step::Gap),
        6 => Just(Step::Show),
        8 => (0..3usize, any::<bool>()).prop_map(|(who, batch)| Step::Read(who, batch)),
        2 => (0..3usize, any::<bool>()).prop_map(|(who, latest)| Step::GetUp(who, latest)),
        1 => (0..60u64).prop_map(Step::Age),
    ]
}

/// Returns what the log gives a listener at `from`, and the position where it then stands.
fn read(log: &Log, from: u64, batch: bool, slot: &FormatSlot) -> (ReadText, Option<Position>) {
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).unwrap().to_owned();
    if batch {
        return match log.read_batch(from, slot) {
            Read::Nothing => (ReadText::Nothing, None),
            Read::FellOff => (ReadText::FellOff, None),
            Read::Some(batch) => (
                ReadText::Text(text(&batch.bytes), batch.next),
                (batch.events > 0).then_some(batch.cursor),
            ),
        };
    }
    match log.read_entries(from) {
        Read::Nothing => (ReadText::Nothing, None),
        Read::FellOff => (ReadText::FellOff, None),
        Read::Some(Collected { entries, next, .. }) => {
            let all = entries.iter().map(|entry| text(entry.bytes(&log.name, slot))).collect();
            (ReadText::Text(all, next), entries.last().map(|entry| entry.position()))
        }
    }
}

fn positions(entries: &[Arc<Entry>]) -> Vec<u64> {
    entries.iter().map(|entry| entry.position().0).collect()
}

struct LogBesideNaive {
    log: Arc<Log>,
    naive: Naive,
    slot: FormatSlot,
    /// Each listener stands at this index and cursor.
    listeners: [(u64, Position); 3],
    /// Holds the index behind the last gap.
    last_gap: u64,
}

impl LogBesideNaive {
    fn new(rule: Arc<Rule>, max_events: usize, max_bytes: usize) -> Self {
        let latest = rule.delivery == Delivery::Latest;
        Self {
            log: log(rule, max_events, max_bytes),
            naive: Naive::new(latest, max_events, max_bytes),
            slot: slot(),
            listeners: [(0, Position(BASE)); 3],
            last_gap: 0,
        }
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Append(key, size, far, known) => self.append(key, size, far, known),
            Step::Offer(known) => self.offer(known),
            Step::Gap(far) => self.gap(far),
            Step::Show => self.show(),
            Step::Read(who, batch) => self.read(who, batch),
            Step::GetUp(who, latest) => self.get_up(who, latest),
            Step::Age(seconds) => {
                tokio::time::advance(Duration::from_secs(seconds)).await;
                self.log.trim();
                self.naive.drop_older_than(AGE);
            }
        }
    }

    fn append(&mut self, key: u8, size: usize, far: u64, known: bool) {
        // The broker never gives a position twice, not even where the head went back.
        let position = self.naive.highest + far;
        let previous = if known { self.naive.expected_previous } else { 0 };
        let event = event(position, previous, key, size);
        let weight = event.message.weight();
        assert_eq!(self.log.append(event), Appended::Yes);
        self.naive.push(position, position, Some(key), weight);
    }

    fn offer(&self, known: bool) {
        let (expected_previous, highest) = (self.naive.expected_previous, self.naive.highest);
        let (offered, answer) = match known {
            true => (event(expected_previous, expected_previous - 1, 0, 0), Appended::Known),
            false => (event(highest + 10, highest + 5, 0, 0), Appended::Broken),
        };
        assert_eq!(self.log.append(offered), answer);
    }

    fn gap(&mut self, far: i64) {
        let expected_previous = self.naive.expected_previous.saturating_add_signed(far).max(BASE);
        self.log.append_gap(Position(expected_previous), GapReason::HistoryExpired);
        let cursor = self.naive.head.max(expected_previous);
        self.naive.push(cursor, expected_previous, None, 0);
        self.last_gap = self.naive.all.len() as u64;
    }

    fn show(&mut self) {
        self.log.show();
        self.naive.visible = self.naive.all.len();
    }

    fn read(&mut self, who: usize, batch: bool) {
        let (index, cursor) = &mut self.listeners[who];
        let expected = self.naive.read(*index);
        // The test reads twice, as two listeners at the same index would. The second may receive
        // what the log kept of the first.
        assert_eq!(read(&self.log, *index, batch, &self.slot).0, expected);
        let (text, at) = read(&self.log, *index, batch, &self.slot);
        assert_eq!(text, expected);
        if let ReadText::Text(_, next) = text {
            *index = next;
            *cursor = at.unwrap_or(*cursor);
        }
    }

    fn get_up(&mut self, who: usize, latest: bool) {
        let (index, cursor) = &mut self.listeners[who];
        if self.naive.read(*index) != ReadText::FellOff {
            return;
        }
        let remembered = self.log.catch_up_latest(*cursor, *index);
        // The log may forget heavy events sooner, and must then say so. No event is that heavy
        // here.
        assert_eq!(remembered.is_some(), self.naive.latest && *index >= self.last_gap);
        match remembered.filter(|_| latest) {
            Some(start) => {
                assert_eq!(positions(&start.first), self.naive.newest(*index));
                *index = start.next;
                *cursor = start.first.last().map_or(*cursor, |entry| entry.position());
            }
            None => (*index, *cursor) = self.log.skip(),
        }
        assert_eq!(*index, self.naive.live());
    }

    /// Checks what every step must leave true.
    fn check(&self) {
        let Self { log, naive, .. } = self;
        assert_eq!(log.size(), (naive.kept().len(), naive.bytes(), false));
        assert_eq!(log.head().0, naive.head);
        for cursor in naive.head.saturating_sub(12)..naive.highest + 3 {
            let (found, expected) = (log.find(Position(cursor)), naive.find(cursor));
            assert_eq!(found, expected, "cursor {cursor}, head {}", naive.head);
        }
        let start = log.begin_fresh().unwrap();
        let (next, given) = (start.next, positions(&start.first));
        let (live, first) = (naive.live(), naive.first as u64);
        match log.rule.replay {
            ReplayOnSubscribe::None => {
                assert_eq!((next, start.cursor.0, given), (live, naive.position_before(live), vec![]));
            }
            ReplayOnSubscribe::All => {
                assert_eq!((next, start.cursor.0, given), (first, naive.position_before(first), vec![]));
            }
            ReplayOnSubscribe::Last => assert_eq!((next, given), (live, naive.newest(0))),
        }
    }

    /// Checks that a listener that reads on receives everything, or the newest event of each key.
    fn read_on(&self, from: u64) {
        let (mut text, mut index) = (String::new(), from);
        loop {
            let expected = self.naive.read(index);
            let (read, _) = read(&self.log, index, true, &self.slot);
            assert_eq!(read, expected);
            match read {
                ReadText::Nothing => break,
                ReadText::FellOff => return,
                ReadText::Text(more, next) => {
                    text += &more;
                    index = next;
                }
            }
        }
        for position in self.naive.newest(from) {
            let position = position.to_string();
            assert_eq!(text.split(' ').filter(|word| *word == position).count(), 1);
        }
    }
}

async fn compare(steps: Vec<Step>, rule: Arc<Rule>, max_events: usize, max_bytes: usize) {
    let mut comparison = LogBesideNaive::new(rule, max_events, max_bytes);
    for step in steps {
        comparison.take(step).await;
        comparison.check();
    }
    comparison.show();
    for (index, _) in comparison.listeners {
        comparison.read_on(index);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_ring_is_a_list_that_forgets(
        steps in prop::collection::vec(step(), 1..120),
        latest in any::<bool>(),
        replay in prop_oneof![Just(ReplayOnSubscribe::None), Just(ReplayOnSubscribe::Last), Just(ReplayOnSubscribe::All)],
        max_events in prop_oneof![Just(1usize), 2..6usize, Just(50usize)],
        max_bytes in prop_oneof![Just(1_000_000usize), Just(10_000_000usize)],
    ) {
        let delivery = if latest { Delivery::Latest } else { Delivery::Every };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(compare(steps, rule(delivery, replay), max_events, max_bytes));
    }
}
