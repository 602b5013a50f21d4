//! More clients than open files: a node that is full of them still reaches its broker when that has
//! been away.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use airwave_bench::chaos::BrokerKind;
use airwave_bench::chaos::world::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{airwave, is_here};

/// The program with at most so many open files, as a script that is gone with the test.
struct WithFewFiles(PathBuf);

impl WithFewFiles {
    fn new(kind: BrokerKind, files: u32) -> Self {
        let name = format!("files-{}-{}.sh", kind.name(), std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let script = format!("#!/bin/sh\nulimit -n {files} && exec '{}' \"$@\"\n", airwave().display());
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self(path)
    }
}

impl Drop for WithFewFiles {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn a_crowded_node_reaches_its_broker_again(kind: BrokerKind) {
    if !is_here(kind) {
        return;
    }
    crate::run(async {
        let program = WithFewFiles::new(kind, 96);
        let config = |url: &str| format!("[broker]\nurl = \"{url}\"\n[[channels]]\nmatch = \"{{*all}}\"\nuse_case = \"feed\"\n");
        let world = World::start(kind, 1, &program.0, config).await.unwrap();
        let address = world.address(0).await;
        // Kept open between two requests, each of them, as far as the node takes them in.
        let mut crowd = Vec::new();
        for _ in 0..300 {
            let mut client = TcpStream::connect(address).await.unwrap();
            let request = client.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
            if request.is_ok() {
                crowd.push(client);
            }
        }
        let mut taken = 0;
        for client in &mut crowd {
            let mut answer = [0; 12];
            taken += usize::from(client.read_exact(&mut answer).await.is_ok() && answer == *b"HTTP/1.1 200");
        }
        assert!(taken >= 20, "{taken} connections were taken in");
        world.kill_broker(Duration::from_secs(1), |_| {}).await.unwrap();
        world.settle().await.unwrap();
        drop(crowd);
        assert_eq!(world.wrong(), Vec::<String>::new());
    });
}

#[test]
fn redis() {
    a_crowded_node_reaches_its_broker_again(BrokerKind::Redis);
}

#[test]
fn nats() {
    a_crowded_node_reaches_its_broker_again(BrokerKind::Nats);
}
