//! Our own accept loop: time-outs of heads and waits, `TCP_NODELAY`, connection caps, HTTP/1.1 and
//! HTTP/2 by preface, tracked tasks, drain.
//!
//! `axum::serve` has none of these. And it keeps about 12 KB for each connection that streams:
//! here, once the routes have admitted an SSE or WebSocket listener over HTTP/1.1, the socket is
//! taken back from hyper ([`Detach`](airwave_transports::socket::Detach)) and a bare task goes on
//! with it.
//!
//! `admission` is who gets a place, `connection` serves one, `answer` is one request on it, `drain`
//! waits aloud at the end, `files` is what open files leave room for, `forwarded` who the client is
//! behind proxies, `idle` how long a connection may wait.

mod admission;
mod answer;
mod connection;
mod drain;
mod files;
mod forwarded;
mod idle;
mod node;
mod serving;

use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use airwave_core::Hub;
use axum::Router;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;

use admission::Admission;
use connection::Served;
use files::{Outage, Spare, is_out_of_files};
use node::Node;

pub use forwarded::ClientIpHeader;
pub use serving::{HEAD_TIMEOUT, Refuses, Serving};

/// Connections that the kernel may hold until they are accepted. With fewer, a storm of clients
/// that come back loses SYNs, each for a second or more.
pub const BACKLOG: u32 = 4096;

/// Listens on `address` with room for a storm of clients ([`BACKLOG`]).
///
/// # Errors
/// The address cannot be listened on.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A restart must not wait for connections of the process before. On Windows it means another
    // thing.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?;
    #[cfg(target_os = "linux")]
    if let Some(allowed) = std::fs::read_to_string("/proc/sys/net/core/somaxconn")
        .ok()
        .and_then(|text| text.trim().parse::<u32>().ok())
        && allowed < BACKLOG
    {
        tracing::info!(
            backlog = BACKLOG,
            allowed,
            "the kernel cuts the listen backlog: many clients that come at once may wait a second or more; raise it with sysctl net.core.somaxconn={BACKLOG}"
        );
    }
    Ok(listener)
}

/// Serves `app` until `shutdown` and [`Serving::drain_delay`] longer, then drains.
///
/// Nothing new is taken in, requests under way finish, every session is told to end, and what is
/// not done within [`Serving::drain`] is cut.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    hub: Hub,
    serving: Serving,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let (begin_drain, draining) = watch::channel(false);
    let (cut, cutting) = watch::channel(false);
    let mut admission = Admission::new(&serving);
    hub.bound_connections(admission.listeners());
    let drain_delay = serving.drain_delay;
    let node = Arc::new(Node {
        hub: hub.clone(),
        refusing: admission::refusing(app.clone(), serving.refuses.clone(), hub.clone()),
        app,
        serving,
        tasks: TaskTracker::new(),
        draining,
        cutting,
    });
    let tasks = &node.tasks;
    let mut trouble = Trouble {
        told: Outage::default(),
        spare: Spare::new(),
    };
    let shutdown = async {
        shutdown.await;
        leave(&hub, drain_delay).await;
    };
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => tokio::select! {
                () = trouble.pass(&error, &listener) => continue,
                () = &mut shutdown => break,
            },
        };
        // Without a place, not even for a refusal, a connection is closed without an answer: an
        // EventSource comes back after that.
        let Some(place) = admission.place(peer.ip()) else {
            continue;
        };
        let connection = Served {
            node: node.clone(),
            peer,
            accepted: Instant::now(),
            place,
        };
        tasks.spawn(connection.run(stream));
    }
    drop(listener);
    hub.drain();
    begin_drain.send_replace(true);
    if !everything_ends(&node).await {
        hub.cut();
        cut.send_replace(true);
        let _ = timeout(Duration::from_millis(500), tasks.wait()).await;
    }
    Ok(())
}

/// Waits for all connections and sessions within the grace time. False: some are left.
async fn everything_ends(node: &Node) -> bool {
    let (tasks, hub) = (&node.tasks, &node.hub);
    tasks.close();
    let everything = async {
        tasks.wait().await;
        // Sessions over HTTP/2 or behind an upgrade have tasks that hyper started.
        while hub.sessions() > 0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    drain::wait(everything, node.serving.drain, hub, tasks).await
}

/// What is done while connections cannot be accepted.
struct Trouble {
    told: Outage,
    spare: Spare,
}

impl Trouble {
    /// Comes back when it is worth another try.
    async fn pass(&mut self, error: &io::Error, listener: &TcpListener) {
        // The client was gone before we looked.
        if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) {
            return;
        }
        if self.told.begins() {
            tracing::warn!(%error, "cannot accept connections: clients are turned away; raise the limit of open files (ulimit -n)");
        }
        if is_out_of_files(error) {
            self.spare.turn_away(listener).await;
        } else {
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Lets `/readyz` say that this node is about to drain, and gives load balancers `delay` to send
/// their clients elsewhere.
async fn leave(hub: &Hub, delay: Duration) {
    if !delay.is_zero() {
        tracing::info!(
            ?delay,
            "a drain is about to begin: /readyz fails, everything else goes on for drain_delay"
        );
        hub.announce_drain();
        sleep(delay).await;
    }
}

/// Drains a node whose connections are another server's: see [`crate::Airwave::shutdown`].
pub(crate) async fn drain(hub: &Hub, delay: Duration, drain: Duration) {
    leave(hub, delay).await;
    hub.drain();
    let no_sessions = async || {
        while hub.sessions() > 0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    if timeout(drain, no_sessions()).await.is_err() {
        tracing::warn!(
            sessions = hub.sessions(),
            "the grace time is over: cutting the listeners that are left"
        );
        hub.cut();
        let _ = timeout(Duration::from_millis(500), no_sessions()).await;
    }
}
