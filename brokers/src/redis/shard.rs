//! A server that has events: its connections, and the tasks that keep them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use airwave_core::broker::BrokerStats;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::commands::Commands;
use super::errors::RedisConnectError;
use super::listening::Listening;
use super::loading::Loading;
use super::marks::Marks;
use super::naming::Naming;
use super::scripts::Script;
use super::server::Server;

/// A server that channels are at: its connections, and the tasks that keep them. Dropping it ends
/// its feeds.
pub(super) struct Shard {
    pub(super) commands: Arc<Commands>,
    /// For pages of history, so that nothing else waits behind them.
    pages: Arc<Commands>,
    pub(super) listening: Arc<Listening>,
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Shard {
    fn new(server: Server, naming: Naming, stats: BrokerStats, marks: Arc<Marks>, home: u16, astray: Arc<Notify>) -> Shard {
        let commands = Commands::new(server.clone(), stats.clone());
        // What becomes of it is no matter of the node's.
        let pages = Commands::new(server.clone(), BrokerStats::default());
        let listening = Listening::new(server, commands.clone(), naming, stats, marks, home, astray);
        Shard {
            commands,
            pages,
            listening,
            tasks: Mutex::default(),
        }
    }

    /// One that could be connected to, and is kept connected.
    pub(super) async fn connect(
        server: Server,
        naming: Naming,
        stats: BrokerStats,
        marks: Arc<Marks>,
        home: u16,
        astray: Arc<Notify>,
    ) -> Result<Shard, RedisConnectError> {
        let shard = Self::new(server, naming, stats, marks, home, astray);
        let mut loading = Loading::default();
        while loading.judge(shard.commands.first().await).await.transpose()?.is_none() {}
        let first = loop {
            if let Some(first) = loading.judge(shard.listening.first().await).await {
                break first?;
            }
        };
        shard.keep(&Handle::current(), shard.listening.clone().keep(Some(first)));
        Ok(shard)
    }

    /// One that will be connected to.
    pub(super) fn begin(
        server: Server,
        stats: BrokerStats,
        marks: Arc<Marks>,
        home: u16,
        astray: Arc<Notify>,
        runtime: &Handle,
    ) -> Shard {
        let shard = Self::new(server, Naming::Partitions, stats, marks, home, astray);
        shard.keep(runtime, shard.listening.clone().keep(None));
        shard
    }

    fn tasks(&self) -> MutexGuard<'_, Vec<AbortHandle>> {
        // Nothing that is done under this lock can be left half done.
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, runtime: &Handle, listening: impl Future<Output = ()> + Send + 'static) {
        let commands = runtime.spawn(self.commands.clone().keep()).abort_handle();
        let pages = runtime.spawn(self.pages.clone().keep_for_pages()).abort_handle();
        let listening = runtime.spawn(listening).abort_handle();
        self.tasks().extend([commands, pages, listening]);
    }

    /// Over which connection the script is called. Until there is one for pages, that is the one
    /// for all else.
    pub(super) fn commands_for(&self, script: Script) -> &Commands {
        match script.pages && self.pages.is_beside(&self.commands) {
            true => &self.pages,
            false => &self.commands,
        }
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        for task in self.tasks().drain(..) {
            task.abort();
        }
        self.listening.close();
    }
}
