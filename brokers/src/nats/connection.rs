//! The connection to a server: opening it, judging what answers there, making the stream, finding
//! out when it is dead.
//!
//! The client library would connect again by itself, and would then send what was waiting:
//! publishes whose callers have given up. So a connection here lives once. When it breaks, or this
//! node does not hear itself through the stream, all that hangs on it ends, and another one is
//! made, at one of the servers.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use airwave_core::broker::{BrokerStats, IDEMPOTENCY_WINDOW};
use airwave_core::rule::History;
use airwave_core::{BrokerError, ChannelName, Rules};
use async_nats::client::RequestErrorKind;
use async_nats::{Client, ConnectErrorKind, ConnectOptions, HeaderMap, Message, Request, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::sync::{Mutex, Notify, broadcast, watch};
use tokio::time::{Instant, sleep, timeout};

use super::clock::{ServerClock, time_of};
use super::kept::{self, KeptByOthers};
use super::settings::{Login, Settings};
use super::stored;
use super::{DEADLINE, HEAD_LIVES, LONGEST, late};
use crate::reconnect::{Backoff, Disconnected, random_bits};
use crate::silence::while_heard;

/// For the way to one server and its greeting.
const CONNECT_WITHIN: Duration = Duration::from_millis(1500);

/// How long a call waits for a connection before it says that there is none. Nothing has been sent
/// then.
const WAIT_FOR_CONNECTION: Duration = Duration::from_secs(1);

/// How long it waits while the last try to connect has failed.
const WAIT_WHILE_GONE: Duration = Duration::from_millis(400);

/// How often this node publishes to itself, through the stream.
const PROBE_EVERY: Duration = Duration::from_millis(750);

/// How long a probe is waited for.
const PROBE_WITHIN: Duration = Duration::from_secs(1);

/// How large a probe is: as an event of the smaller sort, or there would be room for probes where
/// there is none for events.
const PROBE_BYTES: usize = 1024;

/// So many probes in a row unanswered, and the connection is dead: after three and a half seconds.
/// More than one, so that a process that stood still itself does not take its server for dead.
const PROBES_UNANSWERED: u32 = 2;

/// How long a stored probe is waited for while other things arrive on the connection. The stream
/// tells what it stores before it answers, so one that is not there long after the answer was not
/// told to this node.
const PROBE_BEHIND: Duration = Duration::from_secs(10);

/// What the server gives as reasons (`err_code`).
pub(super) mod code {
    pub(in crate::nats) const NOT_ENABLED: [u64; 2] = [10039, 10076];
    pub(in crate::nats) const NO_SUCH_STREAM: u64 = 10059;
    pub(in crate::nats) const NO_MESSAGE: u64 = 10037;
    pub(in crate::nats) const NAME_TAKEN: u64 = 10058;
    pub(in crate::nats) const SUBJECTS_TAKEN: u64 = 10065;
    pub(in crate::nats) const WRONG_LAST: [u64; 2] = [10071, 10164];
    pub(in crate::nats) const NO_SUCH_ROLLUP: u64 = 10111;
    pub(in crate::nats) const SAME_KEY_UNDER_WAY: u64 = 10158;
    pub(in crate::nats) const TOO_LARGE: u64 = 10054;
    pub(in crate::nats) const SEALED: u64 = 10109;
    /// The account's limit, the server's, its memory's, its disk's; and what the store itself says
    /// (`max_bytes`, a write that fails).
    pub(in crate::nats) const FULL: [u64; 5] = [10002, 10023, 10028, 10047, 10077];
}

/// Why no broker could be made. The text says what to do, and holds no credentials.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum NatsConnectError {
    /// The URL is not one.
    #[error("the broker's URL {0}")]
    Url(String),
    /// No server answers there.
    #[error("NATS at {address} cannot be reached: {reason}; start it, or correct the broker's URL")]
    Unreachable {
        /// Hosts and ports.
        address: String,
        /// What happened.
        reason: String,
    },
    /// A server answers, but will not have us or cannot serve us.
    #[error("NATS at {address} cannot be used: {reason}")]
    Unusable {
        /// Hosts and ports.
        address: String,
        /// What happened, and what to do.
        reason: String,
    },
}

pub(super) fn lost(what: &str) -> BrokerError {
    BrokerError::unavailable(format!("NATS: {what}"))
}

/// Why the server stores no message, in words for operators.
pub(super) fn unstored(code: u64, text: &str) -> BrokerError {
    if code::FULL.contains(&code) {
        lost(&format!(
            "JetStream is full ({text}): give it more room (max_file_store, the account's limits, the stream's max_bytes), or keep less history"
        ))
    } else if code == code::SEALED {
        lost(&format!(
            "the stream is sealed ({text}), which cannot be undone: choose another prefix (?prefix=NAME in the broker's URL)"
        ))
    } else {
        lost(text)
    }
}

/// What the server forbids, in its own words. It says so beside the answers, and answers nothing.
#[derive(Clone)]
pub(super) struct Forbidden(broadcast::Sender<Arc<str>>);

impl Forbidden {
    fn new() -> Forbidden {
        // Who has missed some may have missed the one that was meant.
        Forbidden(broadcast::Sender::new(64))
    }

    fn tell(&self, text: &str) {
        // The send fails if no call watches.
        let _ = self.0.send(text.into());
    }

    /// From now on.
    pub(super) fn watch(&self, doing: &str, subject: &str) -> PermissionWatch {
        PermissionWatch {
            told: self.0.subscribe(),
            what: format!("{doing} to \"{subject}\""),
        }
    }
}

/// Whether one thing is forbidden.
pub(super) struct PermissionWatch {
    told: broadcast::Receiver<Arc<str>>,
    what: String,
}

impl PermissionWatch {
    /// Comes back when it is.
    pub(super) async fn wait(&mut self) -> BrokerError {
        loop {
            match self.told.recv().await {
                Ok(text) if text.contains(&self.what) => return forbidden(&text),
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(_)) => return lost("the server forbids much"),
                Err(broadcast::error::RecvError::Closed) => return std::future::pending().await,
            }
        }
    }

    /// Whether it was said until now.
    pub(super) fn look(&mut self) -> Result<(), BrokerError> {
        loop {
            match self.told.try_recv() {
                Ok(text) if text.contains(&self.what) => return Err(forbidden(&text)),
                Ok(_) => {}
                Err(broadcast::error::TryRecvError::Lagged(_)) => return Err(lost("the server forbids much")),
                Err(_) => return Ok(()),
            }
        }
    }
}

fn forbidden(text: &str) -> BrokerError {
    lost(&format!("the server forbids this user what it needs ({text})"))
}

/// One connection.
pub(super) struct Link {
    pub(super) client: Client,
    pub(super) dead: Arc<Disconnected>,
    pub(super) forbidden: Forbidden,
    /// The server is of version 2.10: it gives one message for a question, and refuses some things
    /// without a word.
    pub(super) is_2_10: bool,
    /// There once the stream of members was seen; dead when it is gone or has no leader, which is
    /// no matter of the events.
    pub(super) members: Mutex<Option<Arc<Disconnected>>>,
    heard: watch::Sender<u64>,
    /// How much was heard of the stream's leader: its answers, and what it tells of events.
    pub(super) told: Arc<AtomicU64>,
}

/// What a server's refusal or answer is, as JSON says it.
pub(super) enum Answer {
    Done(Value),
    Refused { code: u64, text: String },
}

impl Link {
    /// How many bytes have arrived on this connection. As long as there are more and more of them,
    /// the server lives.
    pub(super) fn arrived(&self) -> u64 {
        self.client.statistics().in_bytes.load(Ordering::Relaxed)
    }

    /// The stream's leader has answered.
    pub(super) fn hears_the_leader(&self) {
        self.told.fetch_add(1, Ordering::Relaxed);
    }

    /// Asks and waits for one answer, as long as the connection lives.
    pub(super) async fn ask(&self, subject: String, headers: Option<HeaderMap>, payload: Bytes) -> Result<Message, BrokerError> {
        self.ask_of(&self.dead, subject, headers, payload).await
    }

    /// Tells `gone` if no server answers there.
    async fn ask_of(
        &self,
        gone: &Disconnected,
        subject: String,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<Message, BrokerError> {
        let mut request = Request::new().payload(payload).timeout(None);
        if let Some(headers) = headers {
            request = request.headers(headers);
        }
        let mut watched = self.forbidden.watch("Publish", &subject);
        let answered = while_heard(DEADLINE, || self.arrived(), self.client.send_request(subject, request));
        let answer = tokio::select! {
            answer = answered => answer.ok_or_else(late)?,
            () = self.dead.wait() => return Err(lost("the connection broke")),
            forbidden = watched.wait() => return Err(forbidden),
        };
        answer.map_err(|error| match error.kind() {
            RequestErrorKind::MaxPayloadExceeded => BrokerError::rejected(format!(
                "the message is larger than NATS takes ({} bytes with what is written beside it): raise max_payload in its configuration",
                self.client.max_payload()
            )),
            RequestErrorKind::NoResponders => {
                // The stream is gone or has no leader: the next connection checks for it, and makes
                // it anew.
                gone.tell();
                lost("no server answers for the stream")
            }
            _ => lost("no answer in time").caused_by(error),
        })
    }

    /// The same of JetStream, which answers in JSON.
    pub(super) async fn call(&self, subject: String, headers: Option<HeaderMap>, payload: Bytes) -> Result<Answer, BrokerError> {
        self.call_of(&self.dead, subject, headers, payload).await
    }

    /// Does the same with another stream than that of the events. Tells `gone` if no server answers
    /// for it.
    pub(super) async fn call_of(
        &self,
        gone: &Disconnected,
        subject: String,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<Answer, BrokerError> {
        let message = self.ask_of(gone, subject, headers, payload).await?;
        let answer: Value =
            serde_json::from_slice(&message.payload).map_err(|error| lost("an answer is no JSON").caused_by(error))?;
        Ok(match answer.get("error") {
            Some(error) => Answer::Refused {
                code: error["err_code"].as_u64().unwrap_or(0),
                text: error["description"].as_str().unwrap_or("no reason given").to_owned(),
            },
            None => Answer::Done(answer),
        })
    }

    pub(super) async fn api(&self, what: String, body: &Value) -> Result<Answer, BrokerError> {
        let payload = if body.is_null() {
            Bytes::new()
        } else {
            body.to_string().into()
        };
        self.call(format!("$JS.API.{what}"), None, payload).await
    }
}

/// The way to the server, kept open by a task.
pub(super) struct Connection {
    pub(super) settings: Settings,
    rules: Rules,
    current: watch::Sender<Option<Arc<Link>>>,
    /// The highest sequence that this node knows of. The stream never counts from below it again.
    highest: AtomicU64,
    /// The last token of the subjects of this node's probes.
    node: String,
    asked: AtomicU64,
    /// How long the stream keeps a message at most, in ns; zero: for ever.
    keeps: AtomicU64,
    pub(super) stats: BrokerStats,
    /// Whether the server has refused to store this node's newest probe.
    refuses: AtomicBool,
    /// By which the age of what is stored is judged.
    pub(super) server_clock: Arc<ServerClock>,
    kept_by_others: KeptByOthers,
    /// The last try to connect has failed.
    gone: AtomicBool,
    /// A call finds no connection.
    wanted: Notify,
}

impl Connection {
    /// The first connection, and the task that keeps one open.
    pub(super) async fn connect(
        settings: Settings,
        rules: Rules,
    ) -> Result<(Arc<Connection>, impl Future<Output = ()>), NatsConnectError> {
        let connection = Arc::new(Connection {
            settings,
            rules,
            current: watch::Sender::new(None),
            highest: AtomicU64::new(0),
            node: format!("{:016x}", random_bits()),
            asked: AtomicU64::new(0),
            keeps: AtomicU64::new(0),
            stats: BrokerStats::default(),
            refuses: AtomicBool::new(false),
            server_clock: Arc::default(),
            kept_by_others: KeptByOthers::default(),
            gone: AtomicBool::new(false),
            wanted: Notify::new(),
        });
        let first = connection.open(true).await?;
        connection.current.send_replace(Some(first.clone()));
        Ok((connection.clone(), connection.keep(first)))
    }

    /// The subject of a channel's messages in the stream.
    pub(super) fn log(&self, what: &str) -> String {
        format!("{}.log.{what}", self.settings.prefix)
    }

    /// How much of a channel must be left in the stream, for the rules of all nodes.
    pub(super) fn keeps(&self, channel: &ChannelName) -> History {
        self.kept_by_others.at_least(channel, self.rules.history(channel))
    }

    /// Asks the stream what other nodes keep. True: that is something else than was known.
    pub(super) async fn learn_what_others_keep(&self, link: &Link) -> Result<bool, BrokerError> {
        match link
            .api(format!("STREAM.INFO.{}", self.settings.prefix), &Value::Null)
            .await?
        {
            Answer::Done(info) => Ok(self.kept_by_others.learn(&info["config"]["metadata"], &self.rules)),
            Answer::Refused { text, .. } => Err(lost(&text)),
        }
    }

    /// This node's own clock, in µs since 1970. Nothing is compared with it but what is to be above
    /// all that was given.
    pub(super) fn now(&self) -> u64 {
        stored::now().saturating_add_signed(self.settings.tuning.clock_ahead)
    }

    /// Returns a number that no other publish has.
    pub(super) fn number(&self) -> String {
        format!("{}-{}", self.node, self.asked.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// The subject under which the stream tells them again.
    pub(super) fn live(&self, what: &str) -> String {
        format!("{}.live.{what}", self.settings.prefix)
    }

    /// The connection, if there is one soon.
    pub(super) async fn link(&self) -> Result<Arc<Link>, BrokerError> {
        let mut current = self.current.subscribe();
        let wanted = current.wait_for(|now| now.as_ref().is_some_and(|now| !now.dead.is()));
        let limit = if self.gone.load(Ordering::Relaxed) {
            self.wanted.notify_one();
            WAIT_WHILE_GONE
        } else {
            WAIT_FOR_CONNECTION
        };
        match timeout(limit, wanted).await {
            Ok(Ok(now)) => now.clone().ok_or_else(|| lost("there is no connection")),
            _ => Err(lost("there is no connection")),
        }
    }

    /// Ends all that hangs on the connection.
    pub(super) fn close(&self) {
        if let Some(link) = self.current.send_replace(None) {
            link.dead.tell();
        }
    }

    /// A number that changes whenever anything arrives.
    pub(super) fn arrived(&self) -> u64 {
        self.current.borrow().as_ref().map_or(0, |link| link.arrived())
    }

    /// The stream's sequences go up. One that does not, says that the stream has begun anew at an
    /// old number.
    pub(super) fn went_up(&self, link: &Link, before: u64, sequence: u64) -> bool {
        self.highest.fetch_max(sequence, Ordering::AcqRel);
        if sequence <= before {
            tracing::error!(server = %self.settings, "the stream gave a number again: it was lost or set back; it goes on above all it gave");
            link.dead.tell();
        }
        sequence > before
    }

    /// How long the stream keeps a message.
    pub(super) fn stream_keeps(&self) -> Duration {
        match self.keeps.load(Ordering::Acquire) {
            0 => Duration::MAX,
            nanos => Duration::from_nanos(nanos),
        }
    }

    pub(super) fn highest(&self) -> u64 {
        self.highest.load(Ordering::Acquire)
    }

    async fn open(self: &Arc<Self>, first: bool) -> Result<Arc<Link>, NatsConnectError> {
        let mut servers = self.settings.servers.clone();
        // So that not all nodes go to the same one.
        let turn = random_bits() % servers.len() as u64;
        servers.rotate_left(usize::try_from(turn).unwrap_or(0));
        let mut failure = None;
        for server in &servers {
            match self.open_at(server, first).await {
                Ok(link) => return Ok(link),
                // What a server says of itself is worth more than that another one does not answer.
                Err(error @ NatsConnectError::Unusable { .. }) => failure = Some(error),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        Err(failure.unwrap_or_else(|| self.unreachable("no server is named")))
    }

    async fn open_at(self: &Arc<Self>, server: &str, first: bool) -> Result<Arc<Link>, NatsConnectError> {
        let (dead, forbidden) = (Arc::new(Disconnected::default()), Forbidden::new());
        let mut complaints = forbidden.0.subscribe();
        let options = self.options(dead.clone(), forbidden.clone()).await?;
        let scheme = if self.settings.tls { "tls" } else { "nats" };
        let connecting = options.connect(format!("{scheme}://{server}"));
        let client = match timeout(2 * CONNECT_WITHIN, connecting).await {
            Ok(client) => client.map_err(|error| self.explain(&error))?,
            Err(_) => return Err(self.unreachable("no answer in time")),
        };
        // With nowhere to go, the library gives up a broken connection at once, and all that still
        // waits in it.
        let nowhere: async_nats::ServerAddr = "nats://127.0.0.1:0".parse().map_err(|_| self.unreachable("no address"))?;
        let told = timeout(CONNECT_WITHIN, client.set_server_pool(vec![nowhere])).await;
        if !matches!(told, Ok(Ok(()))) {
            return Err(self.unreachable("the connection broke"));
        }
        let info = client.server_info();
        let version = version_of(&info.version);
        if version < (2, 10) {
            return Err(self.unusable(format!("it is version {}; install 2.10 or newer", info.version)));
        }
        let link = Arc::new(Link {
            client,
            dead,
            forbidden,
            is_2_10: version < (2, 11),
            members: Mutex::default(),
            heard: watch::Sender::new(0),
            told: Arc::default(),
        });
        let ready = async {
            self.examine(&link).await?;
            // Later, the first call that needs it examines it: events flow without it.
            if first && self.rules.iter().any(|rule| rule.presence) {
                self.examine_members(&link, first).await?;
            }
            self.listen_to_itself(&link).await?;
            if first {
                let heard = timeout(LONGEST, self.hears_itself(&link)).await;
                match heard.unwrap_or_else(|_| Err(lost("this node does not hear itself"))) {
                    // What is stored is served, and the rest is an outage like any other.
                    Err(_) if self.refuses() => {}
                    heard => heard.map_err(|error| self.unreachable(error.message))?,
                }
            }
            Ok(())
        };
        let outcome = ready.await;
        let needed = std::iter::from_fn(|| complaints.try_recv().ok()).find(|text| !text.contains(SERVER_TIME));
        match (outcome, needed) {
            (Ok(()), _) => Ok(link),
            // Whatever came of it.
            (Err(_), Some(text)) => Err(self.unusable(format!(
                "it forbids this user what Airwave does ({text}); allow that, and all else that docs/deploying.md lists under Permissions"
            ))),
            (Err(error), None) => Err(error),
        }
    }

    async fn options(&self, dead: Arc<Disconnected>, forbidden: Forbidden) -> Result<ConnectOptions, NatsConnectError> {
        let settings = &self.settings;
        // Rustls wants one provider for the process. An application that has chosen its own keeps
        // it.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // Fails only if other code has installed one first, which is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let server = self.settings.to_string();
        let mut options = ConnectOptions::new()
            .name("airwave")
            .require_tls(settings.tls)
            .connection_timeout(CONNECT_WITHIN)
            .ignore_discovered_servers()
            .max_reconnects(1)
            .reconnect_delay_callback(|_| Duration::ZERO)
            .event_callback(move |event| {
                let (dead, forbidden, server) = (dead.clone(), forbidden.clone(), server.clone());
                async move {
                    use async_nats::Event;
                    if let Event::ServerError(says) = &event {
                        let says = says.to_string();
                        if says.contains("Permissions Violation") {
                            forbidden.tell(&says);
                        }
                        tracing::warn!(%server, says, "the server complains");
                    }
                    // A slow consumer has lost messages, and which one it was cannot be told.
                    if !matches!(event, Event::Connected | Event::ServerError(_) | Event::ClientError(_)) {
                        dead.tell();
                    }
                }
            });
        if let Some(held) = settings.tuning.held {
            options = options.subscription_capacity(held);
        }
        // The library's errors might quote what the file holds.
        let unread = |what: &str| {
            self.unusable(format!(
                "the file that the broker's URL names in {what} cannot be read as one; correct it"
            ))
        };
        if let Some(ca) = &settings.ca {
            let pem = std::fs::read_to_string(ca).ok();
            if !pem.is_some_and(|pem| pem.contains("BEGIN CERTIFICATE")) {
                return Err(unread("ca"));
            }
            options = options.add_root_certificates(ca.clone());
        }
        Ok(match &settings.login {
            Login::None => options,
            Login::Token(token) => options.token(token.clone()),
            Login::Password(user, password) => options.user_and_password(user.clone(), password.clone()),
            Login::Nkey(file) => {
                let text = std::fs::read_to_string(file).map_err(|_| unread("nkey"))?;
                // A user's seed, bare or between lines that say what it is.
                let seed = text
                    .split_whitespace()
                    .find(|word| word.len() == 58 && word.starts_with("SU"));
                options.nkey(seed.ok_or_else(|| unread("nkey"))?.to_owned())
            }
            Login::Credentials(file) => options.credentials_file(file).await.map_err(|_| unread("creds"))?,
        })
    }

    /// Whether JetStream is there and our stream is what it must be; makes it if it is missing.
    async fn examine(&self, link: &Link) -> Result<(), NatsConnectError> {
        match link.api("INFO".into(), &Value::Null).await {
            Ok(Answer::Done(_)) => {}
            Ok(Answer::Refused { code, text }) if code::NOT_ENABLED.contains(&code) => {
                return Err(self.unusable(format!(
                    "JetStream is not enabled for this account ({text}); enable it in the account's configuration"
                )));
            }
            Ok(Answer::Refused { text, .. }) => return Err(self.unreachable(text)),
            Err(_) if link.dead.is() && !link.client.server_info().jetstream => {
                return Err(
                    self.unusable("it has no JetStream; start it with -js, or write jetstream {} into its configuration".into())
                );
            }
            Err(error) => return Err(self.unreachable(error.message)),
        }
        let name = &self.settings.prefix;
        for _ in 0..3 {
            match self.info(link).await? {
                Some(info) => return self.judge(link, &info).await,
                None => {
                    let mut wanted = self.wanted();
                    let now = server_time(link).await.unwrap_or_else(|| self.now());
                    wanted["first_seq"] = now.max(self.highest() + 1).into();
                    tracing::info!(server = %self.settings, stream = name, "making the stream");
                    match self.reached(link.api(format!("STREAM.CREATE.{name}"), &wanted).await)? {
                        // Or another node was faster.
                        Answer::Done(_)
                        | Answer::Refused {
                            code: code::NAME_TAKEN, ..
                        } => {}
                        Answer::Refused {
                            code: code::SUBJECTS_TAKEN,
                            ..
                        } => {
                            return Err(self.unusable(format!(
                                "another stream takes the subjects {name}.log.>; delete that one, or choose another prefix (?prefix=NAME in the broker's URL)"
                            )));
                        }
                        Answer::Refused { text, .. } => return Err(self.not_made(&text)),
                    }
                }
            }
        }
        Err(self.unreachable("the stream comes and goes"))
    }

    async fn info(&self, link: &Link) -> Result<Option<Value>, NatsConnectError> {
        match self.reached(link.api(format!("STREAM.INFO.{}", self.settings.prefix), &Value::Null).await)? {
            Answer::Done(info) => Ok(Some(info)),
            Answer::Refused {
                code: code::NO_SUCH_STREAM,
                ..
            } => Ok(None),
            Answer::Refused { text, .. } => Err(self.unreachable(text)),
        }
    }

    fn not_made(&self, text: &str) -> NatsConnectError {
        let (name, replicas, storage) = (&self.settings.prefix, self.settings.replicas, self.settings.storage);
        self.unusable(format!(
            "it does not make or change the stream {name} with replicas={replicas} and storage={storage} ({text}); give it as many servers \
             and as much room as that takes, or write other replicas into the broker's URL"
        ))
    }

    /// The stream as the rules want it. What differs between channels is done by us; this is the
    /// most that any of them keeps.
    fn wanted(&self) -> Value {
        let histories = self.rules.iter().map(|rule| rule.history).chain([Default::default()]);
        let (events, age) = histories.fold((0, Duration::ZERO), |(events, age), history| {
            (history.events.max(events), history.age.max(age))
        });
        let century = Duration::from_secs(100 * 365 * 24 * 3600);
        let nanos = |duration: Duration| u64::try_from(duration.min(century).as_nanos()).unwrap_or(u64::MAX);
        let settings = &self.settings;
        // The newest of a channel is its head: that outlives its history.
        let lives = HEAD_LIVES.max(age.saturating_mul(2));
        let lives = settings.tuning.head_lives.unwrap_or(lives);
        let prefix = &settings.prefix;
        let mut metadata = json!({ "airwave-format": "1" });
        if let Some(kept) = kept::with_ours(&Value::Null, &self.rules) {
            metadata[kept::KEPT] = kept.into();
        }
        json!({
            "name": prefix,
            "description": "Airwave: the events of all channels",
            "subjects": [self.log(">")],
            "retention": "limits",
            "discard": "old",
            "max_consumers": -1,
            "max_msgs": -1,
            "max_bytes": -1,
            "max_msg_size": -1,
            // One more for a mark.
            "max_msgs_per_subject": events.min(1 << 40) + 1,
            "max_age": nanos(lives),
            "duplicate_window": nanos(IDEMPOTENCY_WINDOW.min(lives)),
            "storage": settings.storage,
            "num_replicas": settings.replicas,
            "allow_direct": true,
            "allow_rollup_hdrs": true,
            "republish": { "src": self.log(">"), "dest": self.live(">") },
            "metadata": metadata,
        })
    }

    async fn judge(&self, link: &Link, info: &Value) -> Result<(), NatsConnectError> {
        let (name, config, wanted) = (&self.settings.prefix, &info["config"], self.wanted());
        self.keeps.store(config["max_age"].as_u64().unwrap_or(0), Ordering::Release);
        let other_format = config["metadata"]["airwave-format"] != wanted["metadata"]["airwave-format"];
        // How much the stream may hold, and what it does when that is reached, is the operator's to
        // say.
        let shape = ["subjects", "retention", "allow_direct", "republish"];
        let foreign = shape.into_iter().find(|what| match *what {
            "republish" => ["src", "dest"]
                .iter()
                .any(|side| config["republish"][side] != wanted["republish"][side]),
            what => config[what] != wanted[what],
        });
        let foreign = foreign.or((other_format).then_some("metadata"));
        if let Some(what) = foreign {
            return Err(self.unusable(format!(
                "its stream {name} is not as Airwave makes it ({what} differs); choose another prefix (?prefix=NAME in the broker's URL), or \
                 delete the stream and all it holds (nats stream rm {name})"
            )));
        }
        if config["storage"] != wanted["storage"] {
            return Err(self.unusable(format!(
                "its stream {name} has the storage {}, which cannot be changed; write storage={} into the broker's URL, or delete the stream \
                 and all it holds (nats stream rm {name})",
                config["storage"].as_str().unwrap_or("?"),
                config["storage"].as_str().unwrap_or("?"),
            )));
        }
        self.kept_by_others.learn(&config["metadata"], &self.rules);
        let sealed = config["sealed"] == true;
        let changed = grown(config, &wanted, kept::with_ours(&config["metadata"], &self.rules));
        if let Some(changed) = changed.filter(|_| !sealed) {
            tracing::info!(server = %self.settings, stream = name, "the stream keeps more from now on, as the rules of this node say");
            match self.reached(link.api(format!("STREAM.UPDATE.{name}"), &changed).await)? {
                Answer::Done(_) => {}
                Answer::Refused { code, text } if code::FULL.contains(&code) => {
                    tracing::warn!(server = %self.settings, stream = name, text, "the stream stays as it is: JetStream is full");
                }
                Answer::Refused { text, .. } => return Err(self.not_made(&text)),
            }
        }
        if sealed {
            return Ok(());
        }
        self.set_forward(link, info).await
    }

    /// A stream in memory begins again at its first number when its servers restart, and gave all
    /// numbers from there before. So one that never held anything since is sent ahead to the clock
    /// ([`count_of_now`]), and so is one that is behind what this node has seen.
    ///
    /// A new one gives its first number away unused. Servers before 2.11.11 that are killed read a
    /// file stream that still begins where it was made as an empty one, and lose all that it held.
    /// Every node that finds it new does so, to the same number: nothing can have been stored below
    /// it.
    async fn set_forward(&self, link: &Link, info: &Value) -> Result<(), NatsConnectError> {
        let (first, last) = (
            info["config"]["first_seq"].as_u64().unwrap_or(0),
            info["state"]["last_seq"].as_u64().unwrap_or(0),
        );
        let new = last < first.max(1);
        let now = count_of_now(info).unwrap_or_else(|| self.now());
        let again = new && info["config"]["storage"] == "memory" && now.saturating_sub(first) > 1_000_000;
        let ahead = if again || last < self.highest() {
            if self.goes_on(link).await? {
                return Ok(());
            }
            tracing::warn!(server = %self.settings, stream = self.settings.prefix, "the stream has lost what it held; it goes on above all it gave");
            now.max(self.highest() + 1)
        } else if new {
            first + 1
        } else {
            return Ok(());
        };
        let subject = format!("STREAM.PURGE.{}", self.settings.prefix);
        match self.reached(link.api(subject, &json!({ "seq": ahead })).await)? {
            Answer::Done(_) => Ok(()),
            Answer::Refused { text, .. } => Err(self.not_made(&text)),
        }
    }

    /// Whether the stream goes on above all that this node knows of, whatever is said of it. A
    /// server that was cut off from the others, or has just been chosen to lead, tells of an older
    /// state than was acknowledged; and to purge the stream then is to lose all that it holds. What
    /// is stored now is stored by most of them, and has its place behind all the rest.
    async fn goes_on(&self, link: &Link) -> Result<bool, NatsConnectError> {
        let before = self.highest();
        if before == 0 {
            return Ok(false);
        }
        let sequence = self.reached(self.store_something(link).await)?;
        Ok(sequence > before)
    }

    /// Stores a message without meaning, and returns its sequence. Most of the servers have it
    /// then. A server that is cut off from them cannot store it.
    pub(super) async fn store_something(&self, link: &Link) -> Result<u64, BrokerError> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Rollup", "sub");
        let subject = self.log(&format!("probe.{}", self.node));
        match link.call(subject, Some(headers), "0".into()).await? {
            Answer::Done(ack) => {
                let sequence = ack["seq"].as_u64().unwrap_or(0);
                self.highest.fetch_max(sequence, Ordering::AcqRel);
                Ok(sequence)
            }
            Answer::Refused { code, text } => Err(unstored(code, &text)),
        }
    }

    pub(super) fn reached<T>(&self, answer: Result<T, BrokerError>) -> Result<T, NatsConnectError> {
        answer.map_err(|error| self.unreachable(error.message))
    }

    pub(super) fn unreachable(&self, reason: impl Into<String>) -> NatsConnectError {
        NatsConnectError::Unreachable {
            address: self.settings.to_string(),
            reason: reason.into(),
        }
    }

    pub(super) fn unusable(&self, reason: String) -> NatsConnectError {
        NatsConnectError::Unusable {
            address: self.settings.to_string(),
            reason,
        }
    }

    fn explain(&self, error: &async_nats::ConnectError) -> NatsConnectError {
        let text = format!("{error:?}").to_lowercase();
        match error.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => self.unusable(
                "it does not accept this user, or wants one; write user:password@, token@, nkey=FILE or creds=FILE into the broker's URL".into(),
            ),
            ConnectErrorKind::Tls | ConnectErrorKind::Io if text.contains("certificate") || text.contains("unknownissuer") => self.unusable(
                "its TLS certificate is not accepted; name a host that it is for, and its authority's certificate with ca=FILE in the broker's URL"
                    .into(),
            ),
            ConnectErrorKind::Tls | ConnectErrorKind::Io if text.contains("invalidcontenttype") => {
                self.unusable("it does not speak TLS; write nats:// instead of tls:// into the broker's URL, or give it certificates".into())
            }
            kind => self.unreachable(match kind {
                ConnectErrorKind::TimedOut => "no answer in time".to_owned(),
                _ => error.to_string(),
            }),
        }
    }

    /// Subscribes to this node's own probes.
    async fn listen_to_itself(&self, link: &Arc<Link>) -> Result<(), NatsConnectError> {
        let subscribing = link.client.subscribe(self.live(&format!("probe.{}", self.node)));
        let Ok(Ok(mut probes)) = timeout(CONNECT_WITHIN, subscribing).await else {
            return Err(self.unreachable("the connection broke"));
        };
        let (heard, dead, server_clock) = (link.heard.clone(), link.dead.clone(), self.server_clock.clone());
        tokio::spawn(async move {
            loop {
                let probe = tokio::select! {
                    probe = probes.next() => probe,
                    () = dead.wait() => return,
                };
                let Some(probe) = probe else { return dead.tell() };
                if let Some(stored_at) = stored_at(&probe) {
                    server_clock.heard(stored_at);
                }
                let number = std::str::from_utf8(&probe.payload)
                    .ok()
                    .and_then(|text| text.trim_end().parse::<u64>().ok());
                if let Some(number) = number {
                    heard.send_modify(|heard| *heard = number.max(*heard));
                }
            }
        });
        Ok(())
    }

    /// Publishes to itself through the stream, as events go, and waits until it hears that.
    pub(super) async fn hears_itself(&self, link: &Link) -> Result<(), BrokerError> {
        let mut heard = link.heard.subscribe();
        let number = self.says_something(link).await?;
        let begin = Instant::now();
        let heard = loop {
            let before = link.arrived();
            let heard = tokio::select! {
                heard = timeout(PROBE_WITHIN, heard.wait_for(|heard| *heard >= number)) => heard.map(|heard| heard.is_ok()),
                () = link.dead.wait() => Ok(false),
            };
            match heard {
                Ok(heard) => break heard,
                Err(_) if link.arrived() > before && begin.elapsed() < PROBE_BEHIND => {}
                Err(_) => break false,
            }
        };
        if !heard {
            // It was stored and not told: so may have been an event.
            link.dead.tell();
            return Err(lost("this node does not hear itself"));
        }
        self.stats.heard();
        Ok(())
    }

    /// Stores a probe; comes back when that is answered, with its number. What was sent to the
    /// stream before on this connection has been answered then, too.
    pub(super) async fn says_something(&self, link: &Link) -> Result<u64, BrokerError> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let mut headers = HeaderMap::new();
        // Only the newest is kept.
        headers.insert("Nats-Rollup", "sub");
        let before = self.highest();
        let subject = self.log(&format!("probe.{}", self.node));
        let probe = format!("{number:<PROBE_BYTES$}");
        match link.call(subject, Some(headers), probe.into()).await? {
            Answer::Done(ack) => {
                if self.refuses.swap(false, Ordering::AcqRel) {
                    tracing::info!(server = %self.settings, "JetStream stores events again");
                }
                match self.went_up(link, before, ack["seq"].as_u64().unwrap_or(0)) {
                    true => Ok(number),
                    false => Err(lost("the stream was lost")),
                }
            }
            Answer::Refused { code, text } => {
                let error = unstored(code, &text);
                if !self.refuses.swap(true, Ordering::AcqRel) {
                    tracing::warn!(server = %self.settings, %error, "JetStream stores nothing; what it holds is served");
                }
                Err(error)
            }
        }
    }

    /// Whether the server has refused to store this node's newest probe: it lives, and serves what
    /// it holds.
    pub(super) fn refuses(&self) -> bool {
        self.refuses.load(Ordering::Acquire)
    }

    async fn keep(self: Arc<Self>, mut link: Arc<Link>) {
        let mut backoff = Backoff::new();
        loop {
            let why = self.watch(&link).await;
            link.dead.tell();
            self.current.send_replace(None);
            drop(link);
            tracing::warn!(server = %self.settings, why, "the connection is lost");
            backoff.broke();
            link = loop {
                backoff.pause(&self.wanted).await;
                match self.open(false).await {
                    Ok(opened) => break opened,
                    Err(error) => {
                        self.gone.store(true, Ordering::Relaxed);
                        backoff.failed(&error);
                    }
                }
            };
            self.gone.store(false, Ordering::Relaxed);
            backoff.opened();
            self.stats.reconnected();
            tracing::info!(server = %self.settings, "connected again");
            self.current.send_replace(Some(link.clone()));
        }
    }

    /// Comes back when the connection is dead; says why.
    async fn watch(&self, link: &Link) -> &'static str {
        let mut unanswered = 0;
        loop {
            tokio::select! {
                () = link.dead.wait() => return "it broke",
                () = sleep(PROBE_EVERY) => {}
            }
            let before = link.told.load(Ordering::Relaxed);
            match timeout(PROBE_WITHIN, self.hears_itself(link)).await {
                Ok(Ok(())) => unanswered = 0,
                // A refusal is an answer. Another connection would be refused, too.
                Ok(Err(_)) if self.refuses() && !link.dead.is() => unanswered = 0,
                _ if link.dead.is() => return "it broke, or this node does not hear itself any more",
                // The stream's leader is heard, and the probe's answer stands behind that. Replicas
                // answer, too, when they are cut off from their leader: they prove nothing.
                Err(_) if link.told.load(Ordering::Relaxed) > before => unanswered = 0,
                _ => unanswered += 1,
            }
            if unanswered >= PROBES_UNANSWERED {
                return "this node does not hear itself any more";
            }
        }
    }
}

/// The stream's configuration with room for what this node wants, too. `None`: it has that. Limits
/// only grow by themselves: a node with older rules must not take away what newer ones promise. To
/// make them smaller is the operator's part.
fn grown(config: &Value, wanted: &Value, kept: Option<String>) -> Option<Value> {
    let mut changed = config.clone();
    // Below one means without a limit.
    for (what, unlimited) in [
        ("max_msgs_per_subject", true),
        ("max_age", true),
        ("duplicate_window", false),
        ("num_replicas", false),
    ] {
        let (has, wants) = (config[what].as_i64().unwrap_or(0), wanted[what].as_i64().unwrap_or(0));
        if has < wants && !(unlimited && has < 1) {
            changed[what] = wanted[what].clone();
        }
    }
    changed["allow_rollup_hdrs"] = true.into();
    if let Some(kept) = kept {
        changed["metadata"][kept::KEPT] = kept.into();
    }
    (changed != *config).then_some(changed)
}

/// Asks for the server's time. A node does without where this is forbidden.
const SERVER_TIME: &str = "$SYS.REQ.USER.INFO";

/// The server's time, so that what one node makes begins above all that another one made before. A
/// node's own clock may be minutes behind that of the node whose stream was lost. `None`: this user
/// may not ask.
async fn server_time(link: &Link) -> Option<u64> {
    // Not to be answered is no sign of a dead connection here.
    let gone = Disconnected::default();
    let asked = link.ask_of(&gone, SERVER_TIME.into(), None, Bytes::new());
    let answer: Value = serde_json::from_slice(&asked.await.ok()?.payload).ok()?;
    time_of(answer["server"]["time"].as_str()?)
}

/// How far the stream would have counted by now if it gave a number each microsecond since it was
/// made, by the server's clock: so every node comes to the same number, above all that the stream
/// gave, whatever its own clock says, and also if a clock that was ahead made it. `None`: the
/// server does not tell the times.
fn count_of_now(info: &Value) -> Option<u64> {
    let time = |what: &str| time_of(info[what].as_str()?);
    let (made, now) = (time("created")?, time("ts")?);
    let first = info["config"]["first_seq"].as_u64().unwrap_or(0);
    Some(first.saturating_add(now.saturating_sub(made)).max(now))
}

fn version_of(text: &str) -> (u64, u64) {
    let mut parts = text.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// When the server stored this message, as it says itself.
pub(super) fn stored_at(message: &Message) -> Option<u64> {
    time_of(message.headers.as_ref()?.get("Nats-Time-Stamp")?.as_str())
}

/// Whether a message is only about the answer: its end, or that there is none.
pub(super) fn is_status(message: &Message) -> Option<StatusCode> {
    message.status.filter(|status| *status != StatusCode::OK)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_stream_counts_on_from_its_first_number_by_the_servers_clock() {
        let info = |first: u64, now: &str| {
            json!({
                "config": { "first_seq": first },
                "created": "2026-11-29T16:16:40.000001Z",
                "ts": now,
            })
        };
        let made = time_of("2026-11-29T16:16:40.000001Z").unwrap();
        let (behind, right, ahead) = (made - 120_000_000, made, made + 120_000_000);
        for (first, counted) in [(behind, made + 9), (right, made + 9), (ahead, ahead + 9)] {
            let info = info(first, "2026-11-29T16:16:40.00001Z");
            assert_eq!(count_of_now(&info), Some(counted));
        }
        // The server's clock was set back.
        let info = info(ahead, "2026-11-29T16:16:39Z");
        assert_eq!(count_of_now(&info), Some(ahead));
        assert_eq!(count_of_now(&json!({ "config": { "first_seq": right } })), None);
    }
}
