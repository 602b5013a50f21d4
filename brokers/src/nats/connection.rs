//! The connection to a server: opening it, judging what answers there, finding out when it is dead.
//!
//! The client library would connect again by itself, and would then send what was waiting:
//! publishes whose callers have given up. So a connection here lives once. When it breaks, or this
//! node does not hear itself through the stream, all that hangs on it ends, and another one is
//! made, at one of the servers.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use airwave_core::broker::BrokerStats;
use airwave_core::rule::History;
use airwave_core::{BrokerError, ChannelName, Rules};
use async_nats::{ConnectErrorKind, ConnectOptions, HeaderMap};
use futures_util::StreamExt;
use serde_json::Value;
use tokio::sync::{Mutex, Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use super::clock::ServerClock;
use super::errors::{NatsConnectError, lost, unstored};
use super::kept::KeptByOthers;
use super::link::{Answer, Forbidden, LONGEST, Link, SERVER_TIME, stored_at};
use super::settings::{Login, Settings};
use super::stored;
use crate::reconnect::{Backoff, Disconnected, random_bits};

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

/// The way to the server, kept open by a task.
pub(super) struct Connection {
    pub(super) settings: Settings,
    pub(super) rules: Rules,
    current: watch::Sender<Option<Arc<Link>>>,
    /// The highest sequence that this node knows of. The stream never counts from below it again.
    pub(super) highest: AtomicU64,
    /// The last token of the subjects of this node's probes.
    pub(super) node: String,
    asked: AtomicU64,
    /// How long the stream keeps a message at most, in ns; zero: for ever.
    pub(super) keeps: AtomicU64,
    pub(super) stats: BrokerStats,
    /// Whether the server has refused to store this node's newest probe.
    refuses: AtomicBool,
    /// By which the age of what is stored is judged.
    pub(super) server_clock: Arc<ServerClock>,
    pub(super) kept_by_others: KeptByOthers,
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
        let pinned = timeout(CONNECT_WITHIN, client.set_server_pool(vec![nowhere])).await;
        if !matches!(pinned, Ok(Ok(()))) {
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
            last_probe: watch::Sender::new(0),
            from_leader: Arc::default(),
        });
        let ready = async {
            self.examine(&link).await?;
            // Later, the first call that needs it examines it: events flow without it.
            if first && self.rules.iter().any(|rule| rule.presence) {
                self.examine_members(&link, first).await?;
            }
            self.listen_to_itself(&link).await?;
            if first {
                let probed = timeout(LONGEST, self.probe_itself(&link)).await;
                match probed.unwrap_or_else(|_| Err(lost("this node does not hear itself"))) {
                    // What is stored is served, and the rest is an outage like any other.
                    Err(_) if self.refuses() => {}
                    probed => probed.map_err(|error| self.unreachable(error.message))?,
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
        let (last_probe, dead, server_clock) = (link.last_probe.clone(), link.dead.clone(), self.server_clock.clone());
        tokio::spawn(async move {
            loop {
                let probe = tokio::select! {
                    probe = probes.next() => probe,
                    () = dead.wait() => return,
                };
                let Some(probe) = probe else { return dead.tell() };
                if let Some(stored_at) = stored_at(&probe) {
                    server_clock.set(stored_at);
                }
                let number = std::str::from_utf8(&probe.payload)
                    .ok()
                    .and_then(|text| text.trim_end().parse::<u64>().ok());
                if let Some(number) = number {
                    last_probe.send_modify(|last| *last = number.max(*last));
                }
            }
        });
        Ok(())
    }

    /// Publishes to itself through the stream, as events go, and waits until it hears that.
    pub(super) async fn probe_itself(&self, link: &Link) -> Result<(), BrokerError> {
        let mut last_probe = link.last_probe.subscribe();
        let number = self.says_something(link).await?;
        let begin = Instant::now();
        let returned = loop {
            let before = link.arrived();
            let returned = tokio::select! {
                waited = timeout(PROBE_WITHIN, last_probe.wait_for(|last| *last >= number)) => waited.map(|waited| waited.is_ok()),
                () = link.dead.wait() => Ok(false),
            };
            match returned {
                Ok(returned) => break returned,
                Err(_) if link.arrived() > before && begin.elapsed() < PROBE_BEHIND => {}
                Err(_) => break false,
            }
        };
        if !returned {
            // It was stored and not told: so may have been an event.
            link.dead.tell();
            return Err(lost("this node does not hear itself"));
        }
        self.stats.record_activity();
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
            let before = link.from_leader.load(Ordering::Relaxed);
            match timeout(PROBE_WITHIN, self.probe_itself(link)).await {
                Ok(Ok(())) => unanswered = 0,
                // A refusal is an answer. Another connection would be refused, too.
                Ok(Err(_)) if self.refuses() && !link.dead.is() => unanswered = 0,
                _ if link.dead.is() => return "it broke, or this node does not hear itself any more",
                // The stream's leader is heard, and the probe's answer stands behind that. Replicas
                // answer, too, when they are cut off from their leader: they prove nothing.
                Err(_) if link.from_leader.load(Ordering::Relaxed) > before => unanswered = 0,
                _ => unanswered += 1,
            }
            if unanswered >= PROBES_UNANSWERED {
                return "this node does not hear itself any more";
            }
        }
    }
}

fn version_of(text: &str) -> (u64, u64) {
    let mut parts = text.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}
