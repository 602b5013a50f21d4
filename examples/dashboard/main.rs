//! A dashboard of the machine that it runs on: processor, memory, network, disks. `cargo run --example dashboard`
//!
//! The figures are read once a second and published once, however many tabs look at them.

use std::time::Duration;

use airwave::config::Sources;
use airwave::{Airwave, Builder, Config, Key, Message, Refusal};
use axum::Router;
use axum::response::Redirect;
use axum::routing::get;
use serde_json::{Value, json};
use sysinfo::{Disks, Networks, ProcessRefreshKind, ProcessesToUpdate, System};

const CHANNEL: &str = "dashboard/machine";

/// Nobody is asked for anything: publishing needs no handler.
pub fn add(builder: Builder) -> Builder {
    builder
}

/// The work in the background: a reading a second.
pub fn start(airwave: &Airwave) {
    let airwave = airwave.clone();
    tokio::spawn(async move {
        let mut machine = Machine::new();
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            tick.tick().await;
            // Reading the system's files takes a few milliseconds, which belong to no thread that serves clients.
            let tabs = listeners(&airwave);
            let Ok((back, figures)) = tokio::task::spawn_blocking(move || machine.read(tabs)).await else {
                return;
            };
            machine = back;
            for (key, value) in figures {
                if let Err(error) = publish(&airwave, key, &value).await {
                    tracing::warn!(%error, key, "a figure was not published");
                }
            }
        }
    });
}

async fn publish(airwave: &Airwave, key: &str, value: &Value) -> Result<(), Refusal> {
    let message = Message::json_of(key, value)?.with_key(Key::new(key)?);
    airwave.channel(CHANNEL)?.publish_message(message).await?;
    Ok(())
}

fn listeners(airwave: &Airwave) -> usize {
    let channels = airwave.hub().channels(10_000);
    let own = channels.iter().find(|channel| channel.name.as_str() == CHANNEL);
    own.map_or(0, |channel| channel.listeners.iter().map(|(_, count)| count).sum())
}

struct Machine {
    system: System,
    networks: Networks,
    disks: Disks,
}

impl Machine {
    fn new() -> Self {
        Self {
            system: System::new_all(),
            networks: Networks::new_with_refreshed_list(),
            disks: Disks::new_with_refreshed_list(),
        }
    }

    /// Every figure since the last time that this was called.
    fn read(mut self, tabs: usize) -> (Self, [(&'static str, Value); 5]) {
        self.system.refresh_cpu_usage();
        self.system.refresh_memory();
        self.networks.refresh(true);
        self.disks.refresh(true);
        let own = sysinfo::get_current_pid().ok();
        if let Some(pid) = own {
            let what = ProcessRefreshKind::nothing().with_cpu().with_memory();
            self.system
                .refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, what);
        }
        let process = own.and_then(|pid| self.system.process(pid));
        let load = System::load_average();
        let cores: Vec<f32> = self.system.cpus().iter().map(|core| round(core.cpu_usage())).collect();
        let (down, up) = self
            .networks
            .values()
            .fold((0, 0), |(down, up), one| (down + one.received(), up + one.transmitted()));
        let (read, written) = self
            .disks
            .iter()
            .map(|disk| disk.usage())
            .fold((0, 0), |(read, written), one| {
                (read + one.read_bytes, written + one.written_bytes)
            });
        let spaces: Vec<Value> = self.disks.iter().take(4).map(|disk| {
            json!({"at": disk.mount_point().to_string_lossy(), "total": disk.total_space(), "free": disk.available_space()})
        }).collect();
        let figures = [
            (
                "cpu",
                json!({"all": round(self.system.global_cpu_usage()), "cores": cores, "load": round(load.one as f32), "up_s": System::uptime()}),
            ),
            (
                "memory",
                json!({"total": self.system.total_memory(), "used": self.system.used_memory(), "swap": self.system.used_swap()}),
            ),
            ("network", json!({"down": down, "up": up})),
            ("disk", json!({"read": read, "written": written, "spaces": spaces})),
            (
                "airwave",
                json!({
                    "tabs": tabs,
                    "cpu": process.map(|it| round(it.cpu_usage())),
                    "memory": process.map(|it| it.memory()),
                }),
            ),
        ];
        (self, figures)
    }
}

fn round(figure: f32) -> f32 {
    (figure * 10.0).round() / 10.0
}

/// The page, at `/dashboard/`.
pub fn page() -> Router {
    airwave::pages(
        "/dashboard/",
        &[
            ("index.html", include_str!("page/index.html")),
            ("page.js", include_str!("page/page.js")),
            ("preview.js", include_str!("page/preview.js")),
            ("page.css", include_str!("page/page.css")),
            ("frame.js", include_str!("../shared/frame.js")),
            ("style.css", include_str!("../shared/style.css")),
        ],
    )
}

#[tokio::main]
async fn main() -> airwave::Result<()> {
    let config = Config::load(&Sources::of_file("airwave.toml", include_str!("airwave.toml")).with_environment())?;
    let airwave = add(Airwave::from_config(config)).build().await?;
    start(&airwave);
    let front = Router::new().route("/", get(async || Redirect::temporary("/dashboard/")));
    airwave
        .serve_until(
            front.merge(page()).merge(airwave.router()),
            airwave::server::asked_to_end(),
            |address| {
                println!("open http://{address}/dashboard/");
            },
        )
        .await
}
