//! The machine that this runs on, as figures.

use serde_json::{Value, json};
use sysinfo::{Disks, Networks, ProcessRefreshKind, ProcessesToUpdate, System};

/// What is read. Rates are since the last reading.
pub struct Machine {
    system: System,
    networks: Networks,
    disks: Disks,
}

impl Machine {
    /// Reads everything once, so that the next reading has something to compare with.
    pub fn new() -> Self {
        // The library keeps a file open for each process and thread that it has read, up to half of
        // this process's limit. They are the places of connections.
        sysinfo::set_open_files_limit(0);
        let mut system = System::new();
        system.refresh_cpu_usage();
        system.refresh_memory();
        Self {
            system,
            networks: Networks::new_with_refreshed_list(),
            disks: Disks::new_with_refreshed_list(),
        }
    }

    /// Every figure since the last time that this was called.
    pub fn read(mut self, tabs: usize) -> (Self, [(&'static str, Value); 5]) {
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
