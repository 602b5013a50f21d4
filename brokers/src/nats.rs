//! NATS with JetStream, version 2.10 or newer, as the backbone of several nodes.
//!
//! **One stream holds the events of all channels**, each channel under a subject of its own, and
//! tells every message that it has stored once more to those who listen (`republish`). So there is
//! neither a stream nor a consumer per channel: a node has one connection, and a plain subscription
//! for each channel that it follows. One stream and not several, because a channel must never
//! change its stream: the numbers of two streams are not in one order, and nodes with older rules
//! would listen elsewhere.
//!
//! **An event's position is its sequence in the stream.** The stream begins to count at the clock
//! in microseconds, so a new one gives nothing that an older one gave. Sequences of one channel
//! have holes; so each message says which one was before it, and is stored only if that one still
//! is the channel's newest (`Nats-Expected-Last-Subject-Sequence`). The chain that is read is the
//! chain that was written, and nothing comes after an end. Publishes to one channel hence go one
//! after the other.
//!
//! **Only the stream's leader knows the newest message.** It is asked by a publish that it must
//! refuse, and which tells what the newest is. Events are then read from any replica, which may
//! lag: a page must be a chain up to where the leader said, or it is read again.
//!
//! Subjects, for the prefix `airwave`: `airwave.log.c.NAME` what is stored of a channel,
//! `airwave.live.c.NAME` the same as it is told, `airwave.log.epoch` where channels without events
//! begin, `airwave.log.probe.NODE` what a node says to itself. Who is in a channel is in a stream
//! of its own, which `members` tells of.

mod clock;
mod connection;
mod epoch;
mod in_turn;
mod kept;
mod members;
mod refresh;
mod settings;
mod stored;
mod sweep;

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use airwave_core::broker::{BrokerStats, FeedSender};
use airwave_core::event::Invalid;
use airwave_core::idempotency::Fingerprint;
use airwave_core::rule::History;
use airwave_core::shrink::shrink;
use airwave_core::{
    Append, Broker, BrokerError, BrokerErrorKind, ChannelName, Event, Feed, PageLimit, Position, Published, Replay, Rules,
};
use async_nats::{HeaderMap, Message, StatusCode, Subscriber};
use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

pub use self::connection::NatsConnectError;
use self::connection::{Answer, Connection, Link, PermissionWatch, code, is_status, lost, stored_at, unstored};
use self::in_turn::answer_to_the_first;
use self::refresh::{Followed, Follows};
use self::settings::Settings;
pub use self::settings::Tuning;
use self::stored::{Chain, Stored, token};
use self::sweep::{Generations, ToSweep, uptime};
use crate::silence::while_heard;

/// The head outlives the history by far, so that a quiet channel keeps its chain and a listener its
/// cursor.
const HEAD_LIVES: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long a call waits while nothing arrives on the connection. Below the two seconds within
/// which callers are promised an answer.
const DEADLINE: Duration = Duration::from_millis(1800);

/// What no call exceeds, although other things arrive.
const LONGEST: Duration = Duration::from_secs(5);

/// How long a page of history can be.
const MOST_AT_ONCE: usize = 100_000;

/// How much is asked for at once: messages and bytes. Below what a subscription holds.
const BATCH: (usize, usize) = (10_000, 8 << 20);

/// So often the newest page is begun again because trimming was faster, all the way up to the head.
const OVERTAKEN_TRIES: usize = 3;

/// So many questions for one message each go out at once, at most.
const WIDEST: u64 = 256;

/// Up to so many of the newest events are found one by one, from the newest back.
const FEW: usize = 8;

/// So many channels' newest messages are remembered for the next publish.
const REMEMBERED: usize = 100_000;

/// How long to wait for a replica that lags before it is asked again.
const LAG: Duration = Duration::from_millis(20);

/// A sequence that no stream of ours holds.
const NEVER: u64 = 1;

/// The status behind the last message of a batch.
const END_OF_BATCH: u16 = 204;

const EXPECTED: &str = "Nats-Expected-Last-Subject-Sequence";
const SEQUENCE: &str = "Nats-Sequence";

/// The header of a key. The stream stores the messages of a key once, whichever server leads.
const KEY: &str = "Nats-Msg-Id";

/// The header of a message with a key: the payload's fingerprint. Version 0.1 wrote none.
const FINGERPRINT: &str = "Airwave-Fingerprint";

/// The header by which a node finds a message of its own again that has no key: which node, and
/// which of its publishes.
const MADE_BY: &str = "Airwave-Publish";

/// What this node knows of a channel.
#[derive(Default)]
struct KnownChannel {
    /// What the next publish builds on. It may be old: the server knows better.
    chain: Option<Chain>,
    generations: Generations,
}

/// Locked while a publish is under way: they go one after the other.
type LockedChannel = Arc<tokio::sync::Mutex<KnownChannel>>;

type Remembered = Arc<Mutex<HashMap<ChannelName, LockedChannel>>>;

fn remembered(known: &Remembered) -> MutexGuard<'_, HashMap<ChannelName, LockedChannel>> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The broker. Dropping it ends its feeds and closes its connection.
pub struct Nats {
    rules: Rules,
    connection: Arc<Connection>,
    known: Remembered,
    epochs: epoch::Epochs,
    /// What is to be taken from the stream.
    due: mpsc::Sender<ToSweep>,
    members: members::MemberAccounts,
    followed: Followed,
    task: AbortHandle,
}

/// Checks a URL without asking anybody: what is wrong with it, and what to write.
///
/// # Errors
/// A sentence without its subject, and without any part of the URL.
pub fn check(url: &str) -> Result<(), Invalid> {
    Settings::new(url).map(|_| ()).map_err(Invalid::new)
}

/// Where a message may be stored.
enum Expected {
    /// Only if the channel's newest message is that one; zero: only if it has none.
    At(u64),
    /// Nowhere; its key may be known, though.
    Nothing,
}

/// What is known of the first message under a key.
enum First {
    Is(Fingerprint),
    /// Version 0.1 stored it, without a fingerprint.
    Old,
    /// It is not kept any more.
    Gone,
}

/// What became of a message that was to be stored.
enum Outcome {
    At(u64),
    KnownChannel(u64),
    /// Something else was stored meanwhile.
    Overtaken(Option<u64>),
}

impl Nats {
    /// Connects to one of the servers that `url` names,
    /// `nats://[user:password@]host[:port][,host…][?parameters]` or `tls://…`, makes or changes the
    /// stream, and keeps of each channel what `rules` say. Belongs to the tokio runtime that it is
    /// awaited in.
    ///
    /// Parameters: `prefix` (of stream and subjects: `airwave`), `replicas` (1 to 5: 1), `storage`
    /// (`file` or `memory`: `file`), `creds` and `nkey` (a file to log in with), `ca` (a file with
    /// the certificates that TLS trusts, instead of the system's). `token@` instead of
    /// `user:password@` is a token.
    ///
    /// # Errors
    /// The URL is wrong, or no server can be reached, or refuses us, or is one that we can use; the
    /// text says what to do. Later outages are no errors of this kind: they are waited for.
    pub async fn connect(url: &str, rules: Rules) -> Result<Nats, NatsConnectError> {
        Self::with(Settings::new(url).map_err(NatsConnectError::Url)?, rules).await
    }

    /// For tests: one with other sizes and another clock.
    #[doc(hidden)]
    pub async fn connect_tuned(url: &str, rules: Rules, tuning: Tuning) -> Result<Nats, NatsConnectError> {
        let mut settings = Settings::new(url).map_err(NatsConnectError::Url)?;
        settings.tuning = tuning;
        Self::with(settings, rules).await
    }

    async fn with(settings: Settings, rules: Rules) -> Result<Nats, NatsConnectError> {
        let (connection, keep) = Connection::connect(settings, rules.clone()).await?;
        let known = Remembered::default();
        let (due, sweeping) = sweep::queue();
        let followed = Followed::default();
        let task = {
            let (connection, rules, known) = (connection.clone(), rules.clone(), known.clone());
            let followed = followed.clone();
            async move {
                tokio::join!(
                    keep,
                    sweep::sweep(&connection, rules, known, sweeping),
                    refresh::refresh(&connection, followed)
                )
            }
        };
        Ok(Nats {
            rules,
            connection,
            known,
            epochs: epoch::Epochs::default(),
            due,
            members: members::MemberAccounts::default(),
            followed,
            task: tokio::spawn(task).abort_handle(),
        })
    }

    /// Carries out a call as long as anything arrives on the connection, and no longer than
    /// [`LONGEST`].
    async fn within<T>(&self, call: impl Future<Output = Result<T, BrokerError>>) -> Result<T, BrokerError> {
        let call = while_heard(DEADLINE, || self.connection.arrived(), call);
        match timeout(LONGEST, call).await {
            Ok(Some(answer)) => answer,
            Ok(None) | Err(_) => Err(late()),
        }
    }

    fn known(&self, channel: &ChannelName) -> LockedChannel {
        let mut known = remembered(&self.known);
        if known.len() >= REMEMBERED && !known.contains_key(channel) {
            // Those under way must stay: their publishes wait for each other there.
            known.retain(|_, memory| Arc::strong_count(memory) > 1);
            shrink(&mut *known);
        }
        known.entry(channel.clone()).or_default().clone()
    }

    /// Stores a message, if it may stand where it would.
    async fn store(
        &self,
        link: &Link,
        channel: &ChannelName,
        behind: Expected,
        payload: Bytes,
        ids: &[(&'static str, String)],
    ) -> Result<Outcome, BrokerError> {
        let mut headers = HeaderMap::new();
        match behind {
            Expected::At(sequence) => headers.insert(EXPECTED, sequence.to_string()),
            // No roll-up is called so, and that is looked at after the key. Expecting something
            // impossible is not as good: a single server looks at that before the key, and a stream
            // with replicas that refuses a message for the id before it never answers again
            // (nats-server 2.15).
            Expected::Nothing => headers.insert("Nats-Rollup", "none"),
        }
        let nowhere = matches!(behind, Expected::Nothing);
        for (header, id) in ids {
            headers.insert(*header, id.as_str());
        }
        let before = self.connection.highest();
        let call = link.call(self.log(channel), Some(headers), payload);
        let answer = if nowhere && link.is_2_10 {
            // It says nothing when there is no such roll-up.
            match answer_to_the_first(call, self.connection.says_something(link)).await? {
                Some(answer) => answer?,
                None => return Ok(Outcome::Overtaken(None)),
            }
        } else {
            call.await?
        };
        link.hears_the_leader();
        match answer {
            Answer::Done(ack) => {
                let Some(sequence) = ack["seq"].as_u64() else {
                    return Err(lost("an answer names no sequence"));
                };
                if ack["duplicate"] == true {
                    Ok(Outcome::KnownChannel(sequence))
                } else if self.connection.went_up(link, before, sequence) {
                    Ok(Outcome::At(sequence))
                } else {
                    Err(lost("the stream was lost"))
                }
            }
            Answer::Refused { code, text } if code::WRONG_LAST.contains(&code) => Ok(Outcome::Overtaken(
                text.rsplit(' ').next().and_then(|number| number.parse().ok()),
            )),
            Answer::Refused {
                code: code::NO_SUCH_ROLLUP,
                ..
            } => Ok(Outcome::Overtaken(None)),
            Answer::Refused {
                code: code::SAME_KEY_UNDER_WAY,
                ..
            } => Ok(Outcome::Overtaken(None)),
            Answer::Refused {
                code: code::TOO_LARGE,
                text,
            } => Err(BrokerError::rejected(format!("NATS: {text}"))),
            // Only a question what the newest is, to a stream that stores nothing: the leader can
            // be asked in another way.
            Answer::Refused { code, .. }
                if matches!(behind, Expected::At(NEVER)) && (code == code::SEALED || code::FULL.contains(&code)) =>
            {
                Ok(Outcome::Overtaken(None))
            }
            Answer::Refused { code, text } => Err(unstored(code, &text)),
        }
    }

    fn log(&self, channel: &ChannelName) -> String {
        subject_of(&self.connection, channel)
    }

    /// The channel's newest message, as the stream's leader knows it; `None`: it has none. A caller
    /// that has subscribed before hears all later messages: this request goes to the leader the
    /// same way as messages do, and so behind the subscription.
    async fn newest(&self, link: &Link, channel: &ChannelName) -> Result<Option<Stored>, BrokerError> {
        match self.store(link, channel, Expected::At(NEVER), Bytes::new(), &[]).await? {
            Outcome::Overtaken(Some(0)) => return Ok(None),
            Outcome::Overtaken(Some(sequence)) => {
                if let Some(stored) = self.at(link, channel, sequence).await? {
                    return Ok(Some(stored));
                }
            }
            _ => {}
        }
        newest_at_leader(&self.connection, link, channel).await
    }

    /// The message at a sequence, from any replica. `None`: it has it not, or not yet.
    async fn at(&self, link: &Link, channel: &ChannelName, sequence: u64) -> Result<Option<Stored>, BrokerError> {
        let subject = format!("$JS.API.DIRECT.GET.{}", self.connection.settings.prefix);
        let message = link.ask(subject, None, json!({ "seq": sequence }).to_string().into()).await?;
        match is_status(&message) {
            None => self.stored(channel, message).map(Some),
            Some(StatusCode::NOT_FOUND) => Ok(None),
            Some(status) => Err(lost(&format!("a message could not be read: {status}"))),
        }
    }

    async fn ask_leader(&self, link: &Link, channel: &ChannelName, which: &Value) -> Result<Option<Stored>, BrokerError> {
        ask_leader(&self.connection, link, channel, which).await
    }

    fn stored(&self, channel: &ChannelName, message: Message) -> Result<Stored, BrokerError> {
        let headers = message.headers.as_ref();
        let subject = headers.and_then(|headers| headers.get("Nats-Subject"));
        let ours = subject.is_some_and(|subject| subject.as_str() == self.log(channel));
        let sequence = sequence_of(&message).filter(|_| ours);
        let stored_at = stored_at(&message).unwrap_or(stored::UNKNOWN);
        sequence
            .and_then(|sequence| stored::read(sequence, message.payload))
            .map(|stored| Stored { stored_at, ..stored })
            .ok_or_else(|| not_ours(channel))
    }

    /// The channel's chain. One without a message begins with the epoch.
    async fn chain(&self, link: &Link, channel: &ChannelName) -> Result<Chain, BrokerError> {
        Ok(self.chain_and_newest(link, channel).await?.0)
    }

    /// The same with the message that it was read from.
    async fn chain_and_newest(&self, link: &Link, channel: &ChannelName) -> Result<(Chain, Option<Stored>), BrokerError> {
        if let Some(stored) = self.newest(link, channel).await? {
            return Ok((stored.chain, Some(stored)));
        }
        let epoch = self.epochs.newest(&self.connection, link).await?;
        let chain = Chain {
            head: epoch,
            base: epoch,
            ..Chain::NONE
        };
        Ok((chain, None))
    }

    async fn append(&self, channel: &ChannelName, append: &Append) -> Result<Published, BrokerError> {
        let memory = self.known(channel);
        let mut known = memory.lock().await;
        let link = self.connection.link().await?;
        // The name's token holds no slash, so no two names and keys make one text.
        let ids = match &append.idempotency_key {
            Some(key) => vec![
                (KEY, format!("{}/{}", token(channel), key.as_str())),
                (FINGERPRINT, append.fingerprint().to_string()),
            ],
            None if self.connection.settings.are_several() => vec![(MADE_BY, self.connection.number())],
            None => Vec::new(),
        };
        let and_end = append.end_behind().is_some();
        let last = |sequence| Position(sequence + u64::from(and_end));
        loop {
            // Takes the chain out, so that a publish that is dropped on the way leaves no old chain
            // behind.
            let chain = match known.chain.take() {
                Some(chain) => chain,
                None => self.chain(&link, channel).await?,
            };
            if chain.ended && append.idempotency_key.is_none() {
                return Err(BrokerError::ended());
            }
            // After an end it must be refused, unless its key is known: that is looked at first.
            let behind = if chain.ended {
                Expected::Nothing
            } else {
                Expected::At(chain.newest)
            };
            let payload = stored::event(&chain, &append.message, and_end, self.connection.now());
            match self.store(&link, channel, behind, payload.clone(), &ids).await? {
                Outcome::At(sequence) => {
                    // An end is asked for each time: a channel that was forgotten may begin anew.
                    let stored = stored::read(sequence, payload);
                    known.chain = stored.as_ref().map(|stored| stored.chain).filter(|chain| !chain.ended);
                    let history = self.connection.keeps(channel);
                    let passed = stored.and_then(|stored| known.generations.stored(&stored.chain, &history, uptime()));
                    if let Some(before) = passed {
                        // If there is no room, it is swept with what comes later.
                        let _ = self.due.try_send((channel.clone(), before));
                    }
                    return Ok(Published {
                        position: last(sequence),
                        duplicate: false,
                    });
                }
                Outcome::KnownChannel(sequence) => {
                    drop(known);
                    let position = match self.fingerprint_at(&link, sequence).await? {
                        First::Is(first) if first != append.fingerprint() => return Err(BrokerError::another_payload()),
                        // Its end was a publish of its own, and may be missing.
                        First::Old if and_end => match Box::pin(self.append(channel, &Append::end())).await {
                            Ok(end) => end.position,
                            Err(error) if error.kind == BrokerErrorKind::Ended => Position(sequence),
                            Err(error) => return Err(error),
                        },
                        First::Is(_) | First::Old | First::Gone => last(sequence),
                    };
                    return Ok(Published {
                        position,
                        duplicate: true,
                    });
                }
                Outcome::Overtaken(_) if chain.ended => return Err(BrokerError::ended()),
                Outcome::Overtaken(by) => {
                    if let Some((MADE_BY, id)) = ids.first()
                        && let Some(position) = self.stored_all_the_same(&link, channel, &chain, id).await?
                    {
                        return Ok(Published {
                            position,
                            duplicate: false,
                        });
                    }
                    // By that one, as who refused says. A replica that lags has it not yet: then
                    // the leader is asked.
                    if let Some(sequence @ 1..) = by {
                        let newest = self.at(&link, channel, sequence).await?.map(|stored| stored.chain);
                        known.chain = newest.filter(|chain| !chain.ended);
                    }
                }
            }
        }
    }

    /// What the first payload under a key was, whose message has that sequence.
    async fn fingerprint_at(&self, link: &Link, sequence: u64) -> Result<First, BrokerError> {
        let read = |headers: Option<&HeaderMap>| {
            let fingerprint = headers.and_then(|headers| headers.get(FINGERPRINT));
            match fingerprint.and_then(|text| Fingerprint::parse(text.as_str())) {
                Some(fingerprint) => First::Is(fingerprint),
                None => First::Old,
            }
        };
        let question = json!({ "seq": sequence });
        let subject = format!("$JS.API.DIRECT.GET.{}", self.connection.settings.prefix);
        let message = link.ask(subject, None, question.to_string().into()).await?;
        if is_status(&message).is_none() {
            return Ok(read(message.headers.as_ref()));
        }
        // It is trimmed, or a replica that lags has it not yet. The leader knows.
        let subject = format!("$JS.API.STREAM.MSG.GET.{}", self.connection.settings.prefix);
        match link.call(subject, None, question.to_string().into()).await? {
            Answer::Done(answer) => {
                let headers = BASE64_STANDARD.decode(answer["message"]["hdrs"].as_str().unwrap_or_default());
                let headers = String::from_utf8(headers.unwrap_or_default()).unwrap_or_default();
                let lines = headers.lines().filter_map(|line| line.split_once(':'));
                let fingerprint = lines
                    .filter(|(name, _)| *name == FINGERPRINT)
                    .find_map(|(_, text)| Fingerprint::parse(text.trim()));
                Ok(fingerprint.map_or(First::Old, First::Is))
            }
            Answer::Refused {
                code: code::NO_MESSAGE, ..
            } => Ok(First::Gone),
            Answer::Refused { text, .. } => Err(lost(&text)),
        }
    }

    /// Where a message stands that was refused because it did not come behind `chain`. While
    /// servers change their leader two may take themselves for it, and one refuses what the other
    /// one has stored. A message that is not what follows `chain` can never be stored any more, and
    /// may be sent again.
    async fn stored_all_the_same(
        &self,
        link: &Link,
        channel: &ChannelName,
        chain: &Chain,
        id: &str,
    ) -> Result<Option<Position>, BrokerError> {
        let subject = format!("$JS.API.DIRECT.GET.{}", self.connection.settings.prefix);
        let question = json!({ "seq": chain.newest + 1, "next_by_subj": self.log(channel) }).to_string();
        loop {
            let message = link.ask(subject.clone(), None, question.clone().into()).await?;
            match is_status(&message) {
                None => {
                    let made_by = message.headers.as_ref().and_then(|headers| headers.get(MADE_BY));
                    let ours = made_by.is_some_and(|made_by| made_by.as_str() == id);
                    let stored = self.stored(channel, message)?;
                    return match ours {
                        true => Ok(Some(stored.chain.head)),
                        false if stored.events_before() <= chain.events => Ok(None),
                        // What came in between is trimmed, and it may have been among that.
                        false => Err(lost("it is no longer known whether it was stored")),
                    };
                }
                // The server that answers lags, or nothing follows and the refusal was false. Then
                // the loop goes on until the caller's time is over.
                Some(StatusCode::NOT_FOUND) => sleep(LAG).await,
                Some(status) => return Err(lost(&format!("a message could not be read: {status}"))),
            }
        }
    }

    async fn read(&self, channel: &ChannelName, after: Option<Position>, limit: PageLimit) -> Result<Replay, BrokerError> {
        let link = self.connection.link().await?;
        let mut newest = self.chain_and_newest(&link, channel).await?;
        if after.is_some_and(|after| after > newest.0.head) && self.connection.settings.are_several() {
            // Lost, or told by one that is cut off from the others and does not know it yet. Such a
            // one cannot store anything.
            self.connection.store_something(&link).await?;
            newest = self.chain_and_newest(&link, channel).await?;
        }
        let mut page = self.page(channel, newest);
        let limit = PageLimit {
            events: limit.events.min(MOST_AT_ONCE),
            ..limit
        };
        if page.history.events == 0 || page.chain.head == page.chain.base {
            let complete = after.unwrap_or(page.chain.base) == page.chain.head;
            let replay = page.replay(Vec::new(), complete, false);
            return self.with_epochs(&link, &page, after, replay).await;
        }
        if let Some(position) = after {
            if position == page.chain.head {
                return Ok(page.replay(Vec::new(), true, false));
            }
            let replay = self.read_after(&link, channel, &page, position, limit).await?;
            return self.with_epochs(&link, &page, after, replay).await;
        }
        for _ in 0..OVERTAKEN_TRIES {
            // Where there were never more, the newest few are all.
            let few = limit.events <= FEW || page.chain.events <= FEW as u64;
            let read = match few {
                true => self.read_back(&link, channel, &page, limit).await?,
                false => self.read_newest(&link, channel, &page, limit).await?,
            };
            if let Some(events) = read {
                return Ok(page.newest(events));
            }
            // Everything up to that head has been trimmed since: there is a newer one.
            page = self.page(channel, self.chain_and_newest(&link, channel).await?);
        }
        Ok(page.newest(Vec::new()))
    }

    /// What may be shown of a channel that stands like this.
    fn page(&self, channel: &ChannelName, (chain, newest): (Chain, Option<Stored>)) -> Page {
        Page {
            history: self.rules.history(channel),
            now: self.connection.server_clock.now(),
            chain,
            newest,
        }
    }

    /// The replay, made complete if it begins with the channel's first event and was asked for
    /// after an epoch: what follows the first position follows every epoch.
    async fn with_epochs(
        &self,
        link: &Link,
        page: &Page,
        after: Option<Position>,
        mut replay: Replay,
    ) -> Result<Replay, BrokerError> {
        let follows = replay.events.first().map_or(replay.head, |first| first.previous);
        let Some(after) = after.filter(|_| !replay.complete && follows == page.chain.base) else {
            return Ok(replay);
        };
        if self.epochs.honours(&self.connection, link, after).await? {
            replay.complete = true;
            if let Some(first) = replay.events.first_mut() {
                let mut event = Event::clone(first);
                event.previous = after;
                *first = Arc::new(event);
            }
        }
        Ok(replay)
    }

    async fn read_after(
        &self,
        link: &Link,
        channel: &ChannelName,
        page: &Page,
        after: Position,
        limit: PageLimit,
    ) -> Result<Replay, BrokerError> {
        let mut events: Vec<Arc<Event>> = Vec::new();
        let (mut more, mut bytes) = (false, 0_usize);
        if after < page.chain.head {
            let most = limit.events.saturating_add(1).max(FEW);
            let scanned = self.scan(link, channel, page, after, most, |met| match met {
                Met::Event(event) if has_room(&events, bytes, &event, limit) => {
                    bytes = bytes.saturating_add(event.message.weight());
                    events.push(event);
                    true
                }
                // What was read so far is whole. Who asks for what comes after it is told of the
                // hole.
                Met::Event(_) | Met::Hole => {
                    more = true;
                    false
                }
            });
            let scanned = scanned.await?;
            more |= scanned == Scanned::UpToAHole && !events.is_empty();
        }
        let complete = after == page.chain.head || events.first().is_some_and(|first| first.previous == after);
        Ok(page.replay(events, complete, more))
    }

    /// The newest events. `None`: they were trimmed, up to the head.
    async fn read_newest(
        &self,
        link: &Link,
        channel: &ChannelName,
        page: &Page,
        limit: PageLimit,
    ) -> Result<Option<Vec<Arc<Event>>>, BrokerError> {
        let mut newest: VecDeque<Arc<Event>> = VecDeque::new();
        let mut bytes = 0_usize;
        let begin = Position(page.chain.base.0.saturating_sub(1));
        let scanned = self.scan(link, channel, page, begin, usize::MAX, |met| {
            match met {
                Met::Event(event) => {
                    bytes = bytes.saturating_add(event.message.weight());
                    newest.push_back(event);
                    while newest.len() > limit.events || (bytes > limit.bytes && newest.len() > 1) {
                        bytes -= newest.pop_front().map_or(0, |oldest| oldest.message.weight());
                    }
                }
                // Trimming has overtaken us. The page begins again behind the hole.
                Met::Hole => {
                    newest.clear();
                    bytes = 0;
                }
            }
            true
        });
        Ok(match scanned.await? {
            Scanned::ToTheEnd => Some(newest.into()),
            Scanned::UpToAHole => None,
        })
    }

    /// The newest events, found from the newest back. `None`: the newest one was trimmed.
    async fn read_back(
        &self,
        link: &Link,
        channel: &ChannelName,
        page: &Page,
        limit: PageLimit,
    ) -> Result<Option<Vec<Arc<Event>>>, BrokerError> {
        let (mut found, mut bytes) = (Vec::new(), 0_usize);
        let mut at = page.chain.head;
        while found.len() < limit.events && at > page.chain.base {
            let sequence = if at == page.chain.head {
                page.chain.head_message()
            } else {
                at.0
            };
            let mut stored = page.newest.clone().filter(|_| at == page.chain.head);
            if stored.is_none() {
                stored = self.at(link, channel, sequence).await?;
            }
            if stored.is_none() {
                stored = self.ask_leader(link, channel, &json!({ "seq": sequence })).await?;
            }
            // The end and the event before it may stand in one message.
            let stored = stored.and_then(|stored| stored.parts().find(|part| part.chain.newest == at.0));
            let Some(stored) = stored else {
                // A head without its event is a mark, and then its event was trimmed long ago.
                if found.is_empty() && page.chain.newest == page.chain.head_message() {
                    return Ok(None);
                }
                break;
            };
            match (page.judges(&stored), stored.event) {
                (age, Some(event)) if age != Age::Beyond => {
                    bytes = bytes.saturating_add(event.message.weight());
                    if bytes > limit.bytes && !found.is_empty() {
                        break;
                    }
                    at = event.previous;
                    found.push((age, event));
                }
                _ => break,
            }
        }
        found.reverse();
        let mut beginning = Beginning::default();
        Ok(Some(beginning.of_all(found)))
    }

    /// Shows the events after `after` up to the head, oldest first, as long as they are wanted: at
    /// most `most`, so no more are asked for at once.
    async fn scan(
        &self,
        link: &Link,
        channel: &ChannelName,
        page: &Page,
        after: Position,
        most: usize,
        mut show: impl FnMut(Met) -> bool,
    ) -> Result<Scanned, BrokerError> {
        let mut beginning = Beginning::default();
        let mut last_read: Option<Position> = None;
        let (mut read, mut reached) = (after.0, false);
        if page.chain.end_in_event && after.0 == page.chain.head_message() {
            // What comes next stands in the same message.
            read -= 1;
        }
        let mut skipped = false;
        let mut width = FEW as u64;
        loop {
            let batch = self.batch(link, channel, read + 1, most, &mut width).await?;
            let before = read;
            let last = batch.last().map(|stored| (stored.chain.newest, stored.chain.events));
            for stored in batch {
                if stored.chain.newest > page.chain.head.0 {
                    read = page.chain.head.0;
                    break;
                }
                read = stored.chain.newest;
                reached = read == page.chain.head.0;
                let age = page.judges(&stored);
                let Some(event) = stored.event.filter(|event| age != Age::Beyond && event.position > after) else {
                    continue;
                };
                let hole = last_read.is_some_and(|last| last != event.previous);
                last_read = Some(event.position);
                if hole && !beginning.forget() && !show(Met::Hole) {
                    return Ok(Scanned::ToTheEnd);
                }
                for event in beginning.next(age, event) {
                    if !show(Met::Event(event)) {
                        return Ok(Scanned::ToTheEnd);
                    }
                }
            }
            if read >= page.chain.head.0 {
                break;
            }
            if let Some(last) = last
                && beginning.is_open()
                && !std::mem::replace(&mut skipped, true)
            {
                read = self.skip(link, channel, page, last).await?;
                last_read = None;
            }
            if read == before {
                // The server that answers lags, or all that was left up to the head has been
                // trimmed. The leader knows; that there is a newer head meanwhile says nothing.
                let next = json!({ "seq": read + 1, "next_by_subj": self.log(channel) });
                let next = self.ask_leader(link, channel, &next).await?;
                if next.is_none_or(|next| next.chain.newest > page.chain.head.0) {
                    break;
                }
                sleep(LAG).await;
            }
        }
        for event in beginning.rest() {
            if !show(Met::Event(event)) {
                return Ok(Scanned::ToTheEnd);
            }
        }
        // Where a mark stands for the head, its event may have gone long ago.
        let whole = reached || (last_read.is_none() && page.chain.newest != page.chain.head_message());
        Ok(if whole { Scanned::ToTheEnd } else { Scanned::UpToAHole })
    }

    /// A place before which nothing is shown, at most [`FEW`] events before what is: the stream may
    /// keep far more of a channel than its rule shows, and reading past all that takes long. `low`
    /// is a message that is not shown: its sequence, and how many events there were with it.
    async fn skip(&self, link: &Link, channel: &ChannelName, page: &Page, low: (u64, u64)) -> Result<u64, BrokerError> {
        let (mut low, mut high) = (low, (page.chain.head.0, page.chain.events));
        while high.1.saturating_sub(low.1) > FEW as u64 && high.0.saturating_sub(low.0) > 1 {
            let middle = low.0 + (high.0 - low.0) / 2;
            let Some(stored) = self.first_from(link, channel, middle).await? else {
                break;
            };
            let at = (stored.chain.newest, stored.chain.events);
            if at.0 >= high.0 {
                high.0 = middle;
            } else if matches!(page.judges(&stored), Age::Young | Age::Unknown) {
                high = (middle, at.1);
            } else {
                low = at;
            }
        }
        // Not past a message that holds the head behind its event.
        Ok(low.0.min(page.chain.head_message() - 1))
    }

    /// The channel's first message from a sequence on.
    async fn first_from(&self, link: &Link, channel: &ChannelName, from: u64) -> Result<Option<Stored>, BrokerError> {
        let subject = format!("$JS.API.DIRECT.GET.{}", self.connection.settings.prefix);
        let question = json!({ "seq": from, "next_by_subj": self.log(channel) });
        let message = link.ask(subject, None, question.to_string().into()).await?;
        match is_status(&message) {
            None => self.stored(channel, message).map(Some),
            Some(StatusCode::NOT_FOUND) => Ok(None),
            Some(status) => Err(lost(&format!("history could not be read: {status}"))),
        }
    }

    /// Messages of the channel from a sequence on, as many as come at once.
    ///
    /// Version 2.10 gives one for a question, so many are asked at once, one for each of the next
    /// `width` sequences: more the next time, if they were close together, and fewer if not.
    async fn batch(
        &self,
        link: &Link,
        channel: &ChannelName,
        from: u64,
        most: usize,
        width: &mut u64,
    ) -> Result<Vec<Stored>, BrokerError> {
        if link.is_2_10 {
            let asked = (from..from + *width).map(|from| self.first_from(link, channel, from));
            let mut batch: Vec<Stored> = Vec::new();
            for answer in futures_util::future::join_all(asked).await {
                // Who answered that one lags. Another one may have answered the next, and what lies
                // between would be missing.
                let Some(stored) = answer? else { break };
                if batch.last().is_none_or(|last| last.chain.newest < stored.chain.newest) {
                    batch.push(stored);
                }
            }
            let dense = batch.len() as u64 == *width;
            *width = if dense {
                (*width * 2).min(WIDEST)
            } else {
                (*width / 2).max(1)
            };
            return Ok(batch.into_iter().flat_map(Stored::parts).collect());
        }
        let subject = format!("$JS.API.DIRECT.GET.{}", self.connection.settings.prefix);
        let mut question = json!({ "seq": from, "next_by_subj": self.log(channel) });
        question["batch"] = self.connection.settings.tuning.batch.unwrap_or(BATCH.0.min(most)).into();
        question["max_bytes"] = BATCH.1.into();
        let inbox = link.client.new_inbox();
        let broke = |error: &dyn std::fmt::Display| lost(&format!("history could not be read: {error}"));
        let mut answers = link.client.subscribe(inbox.clone()).await.map_err(|error| broke(&error))?;
        let mut watched = link.forbidden.watch("Publish", &subject);
        let asked = link
            .client
            .publish_with_reply(subject, inbox, question.to_string().into())
            .await;
        asked.map_err(|error| broke(&error))?;
        let mut batch = Vec::new();
        loop {
            let message = tokio::select! {
                message = answers.next() => message.ok_or_else(|| lost("the connection broke"))?,
                () = link.dead.wait() => return Err(lost("the connection broke")),
                forbidden = watched.wait() => return Err(forbidden),
            };
            match is_status(&message) {
                None => batch.extend(self.stored(channel, message)?.parts()),
                Some(StatusCode::NOT_FOUND) => return Ok(batch),
                Some(status) if status.as_u16() == END_OF_BATCH => return Ok(batch),
                Some(StatusCode::NO_RESPONDERS) => {
                    link.dead.tell();
                    return Err(lost("no server answers for the stream"));
                }
                Some(status) => return Err(broke(&status)),
            }
        }
    }

    /// Follows the channel. `page`: reads its newest events, too.
    async fn open_feed(&self, channel: &ChannelName, page: Option<PageLimit>) -> Result<(Feed, Option<Replay>), BrokerError> {
        let link = self.connection.link().await?;
        let subject = self.connection.live(&format!("c.{}", token(channel)));
        let mut forbidden = link.forbidden.watch("Subscription", &subject);
        let live = link.client.subscribe(subject).await;
        let live = live.map_err(|error| lost("the connection broke").caused_by(error))?;
        // Only now: what is stored after this answer is heard.
        let (head, replay) = match page {
            Some(limit) => {
                let replay = self.read(channel, None, limit).await?;
                (replay.head, Some(replay))
            }
            None => (self.chain(&link, channel).await?.head, None),
        };
        forbidden.look()?;
        let (stop, stopped) = oneshot::channel();
        let (sender, feed) = Feed::new(head, move || drop(stop));
        let follows = self.followed.add(channel, head);
        tokio::spawn(carry(link, live, forbidden, stopped, (sender, head), follows));
        Ok((feed, replay))
    }
}

/// Carries what the stream tells to a feed, until something is missing, the connection is dead, the
/// server takes the subscription away, or the feed is dropped.
async fn carry(
    link: Arc<Link>,
    mut live: Subscriber,
    mut forbidden: PermissionWatch,
    stopped: oneshot::Receiver<()>,
    (feed, feed_head): (FeedSender, Position),
    _follows: Follows,
) {
    let (dead, told) = (link.dead.clone(), link.told.clone());
    // Held by a quiet feed, it would keep a dead connection's client.
    drop(link);
    let (head, mut last) = (feed_head, feed_head);
    let carry = async {
        while let Some(message) = live.next().await {
            told.fetch_add(1, Ordering::Relaxed);
            let stored = sequence_of(&message).and_then(|sequence| stored::read(sequence, message.payload));
            let Some(stored) = stored else {
                tracing::warn!(subject = %message.subject, "a message is not one of ours: its feed ends");
                return;
            };
            // Others were told before the head was read.
            for event in stored.events().filter(|event| event.position > head) {
                let follows = event.previous == last;
                last = event.position;
                if !follows || !feed.push(event.clone()) {
                    return;
                }
            }
        }
    };
    tokio::select! {
        () = carry => {}
        _ = stopped => {}
        () = dead.wait() => {}
        _ = forbidden.wait() => {}
    }
}

/// What of a channel may be shown, and how it stands.
struct Page {
    history: History,
    now: u64,
    chain: Chain,
    /// The message that holds the head: most channels that are opened have few events, and this one
    /// is not asked for twice.
    newest: Option<Stored>,
}

impl Page {
    /// Whether the event is within what the rule keeps. The stream may keep more.
    fn judges(&self, stored: &Stored) -> Age {
        let newer = self.chain.events.saturating_sub(stored.chain.events) as usize;
        let bytes = self.chain.bytes.saturating_sub(stored.bytes_before);
        if stored.event.is_none() || newer >= self.history.events || bytes > self.history.bytes as u64 {
            return Age::Beyond;
        }
        match self.now.checked_sub(stored.stored_at) {
            None => Age::Unknown,
            Some(age) if Duration::from_micros(age) <= self.history.age => Age::Young,
            Some(_) => Age::TooOld,
        }
    }

    fn replay(&self, events: Vec<Arc<Event>>, complete: bool, more: bool) -> Replay {
        Replay {
            events,
            complete,
            more,
            head: self.chain.head,
            ended: self.chain.ended,
        }
    }

    fn newest(&self, events: Vec<Arc<Event>>) -> Replay {
        let begin = events.first().map_or(self.chain.head, |oldest| oldest.previous);
        self.replay(events, begin == self.chain.base, false)
    }
}

/// Whether a page that holds these events, so many bytes in all, takes another one.
fn has_room(events: &[Arc<Event>], bytes: usize, event: &Event, limit: PageLimit) -> bool {
    let bytes = bytes.saturating_add(event.message.weight());
    events.len() < limit.events && (events.is_empty() || bytes <= limit.bytes)
}

/// How an event stands to what the rule keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    /// Too many events or bytes have come after it, or it is none.
    Beyond,
    /// It was stored too long ago.
    TooOld,
    /// Stored at a time that is still to come: the server's clock was set. What came after it
    /// decides.
    Unknown,
    Young,
}

/// Where a page begins: with the first event that is young. From there on all are shown, whatever
/// their age: only the beginning of a history can be too old, and a clock that was set back makes
/// no hole.
#[derive(Debug, Default)]
struct Beginning {
    found: bool,
    /// Those of unknown age before it.
    undecided: Vec<Arc<Event>>,
}

impl Beginning {
    /// What is to be shown now that this event is next.
    fn next(&mut self, age: Age, event: Arc<Event>) -> impl Iterator<Item = Arc<Event>> + use<> {
        let found = self.found || age == Age::Young;
        let before = if found && !self.found { self.rest() } else { Vec::new() };
        self.found = found;
        let now = if found {
            Some(event)
        } else {
            match age {
                Age::Unknown => self.undecided.push(event),
                _ => self.undecided.clear(),
            }
            None
        };
        before.into_iter().chain(now)
    }

    /// Nothing came after those of unknown age that is too old.
    fn rest(&mut self) -> Vec<Arc<Event>> {
        std::mem::take(&mut self.undecided)
    }

    fn of_all(&mut self, events: Vec<(Age, Arc<Event>)>) -> Vec<Arc<Event>> {
        let mut shown: Vec<_> = events.into_iter().flat_map(|(age, event)| self.next(age, event)).collect();
        shown.append(&mut self.rest());
        shown
    }

    /// Behind a hole: what is undecided before it is not shown. True: nothing was shown yet.
    fn forget(&mut self) -> bool {
        self.undecided.clear();
        !self.found
    }

    /// Whether everything so far is left out.
    fn is_open(&self) -> bool {
        !self.found && self.undecided.is_empty()
    }
}

/// What a scan comes to.
enum Met {
    Event(Arc<Event>),
    /// Events before the next one are not there any more.
    Hole,
}

/// How a scan ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scanned {
    /// At the head, or where it was told to.
    ToTheEnd,
    /// All that was left up to the head has been trimmed meanwhile.
    UpToAHole,
}

async fn ask_leader(
    connection: &Connection,
    link: &Link,
    channel: &ChannelName,
    which: &Value,
) -> Result<Option<Stored>, BrokerError> {
    let subject = format!("$JS.API.STREAM.MSG.GET.{}", connection.settings.prefix);
    match link.call(subject, None, which.to_string().into()).await? {
        Answer::Done(answer) => {
            let message = &answer["message"];
            let data = BASE64_STANDARD.decode(message["data"].as_str().unwrap_or_default()).ok();
            let ours = message["subject"].as_str() == Some(&subject_of(connection, channel));
            let stored = message["seq"].as_u64().zip(data).filter(|_| ours);
            let stored = stored.and_then(|(sequence, data)| stored::read(sequence, data.into()));
            let at = message["time"].as_str().and_then(clock::time_of).unwrap_or(stored::UNKNOWN);
            let stored = stored.map(|stored| Stored { stored_at: at, ..stored });
            stored.map(Some).ok_or_else(|| not_ours(channel))
        }
        Answer::Refused {
            code: code::NO_MESSAGE, ..
        } => Ok(None),
        Answer::Refused { text, .. } => Err(lost(&text)),
    }
}

/// The channel's newest message, as the stream's leader knows it.
async fn newest_at_leader(connection: &Connection, link: &Link, channel: &ChannelName) -> Result<Option<Stored>, BrokerError> {
    let which = json!({ "last_by_subj": subject_of(connection, channel) });
    ask_leader(connection, link, channel, &which).await
}

/// Under what the stream holds the channel.
fn subject_of(connection: &Connection, channel: &ChannelName) -> String {
    connection.log(&format!("c.{}", token(channel)))
}

fn sequence_of(message: &Message) -> Option<u64> {
    message.headers.as_ref()?.get(SEQUENCE)?.as_str().parse().ok()
}

fn late() -> BrokerError {
    lost("no answer in time")
}

/// Something else writes to our subjects, or a later version of this program did.
fn not_ours(channel: &ChannelName) -> BrokerError {
    lost(&format!(
        "the stream holds for the channel {channel} what Airwave did not write there: give it a prefix or an account of its own"
    ))
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.task.abort();
        self.connection.close();
    }
}

#[async_trait]
impl Broker for Nats {
    fn name(&self) -> &'static str {
        "nats"
    }

    async fn publish(&self, channel: &ChannelName, append: Append) -> Result<Published, BrokerError> {
        self.within(self.append(channel, &append)).await
    }

    async fn follow(&self, channel: &ChannelName) -> Result<Feed, BrokerError> {
        let opened = self.within(self.open_feed(channel, None)).await;
        opened.map(|(feed, _)| feed)
    }

    async fn open(&self, channel: &ChannelName, limit: PageLimit) -> Result<(Feed, Replay), BrokerError> {
        let (feed, replay) = self.within(self.open_feed(channel, Some(limit))).await?;
        let replay = replay.ok_or_else(|| lost("the page was not read"))?;
        Ok((feed, replay))
    }

    async fn replay(&self, channel: &ChannelName, after: Option<Position>, limit: PageLimit) -> Result<Replay, BrokerError> {
        self.within(self.read(channel, after, limit)).await
    }

    async fn ping(&self) -> Result<(), BrokerError> {
        let ping = async {
            let link = self.connection.link().await?;
            self.connection.hears_itself(&link).await
        };
        self.within(ping).await
    }

    fn stats(&self) -> BrokerStats {
        self.connection.stats.clone()
    }
}
