//! A broker that is there and does not answer: `/readyz` says so, and does not wait for it.

use std::net::SocketAddr;
use std::time::Duration;

use airwave_bench::chaos::BrokerKind;
use airwave_bench::chaos::world::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::{airwave, is_here};

/// Far longer than anything here takes; only what hangs meets it.
const AGES: Duration = Duration::from_secs(120);

async fn readiness(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn wait_for(address: SocketAddr, status: &str) {
    let waiting = async {
        while !readiness(address).await.starts_with(status) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(AGES, waiting)
        .await
        .unwrap_or_else(|_| panic!("/readyz never answers {status}"));
}

fn a_frozen_broker_is_told_of(kind: BrokerKind) {
    if !is_here(kind) {
        return;
    }
    crate::run(async {
        let config = |url: &str| {
            // No answer of the broker's is waited for: a request that did would take this long.
            format!(
                "[broker]\nurl = \"{url}\"\n[limits]\nbroker_timeout = \"100s\"\n[[channels]]\nmatch = \"{{*all}}\"\nuse_case = \"feed\"\n"
            )
        };
        let world = World::start(kind, 1, airwave(), config).await.unwrap();
        let address = world.address(0).await;
        wait_for(address, "HTTP/1.1 200").await;
        tokio::select! {
            () = world.pause_broker(AGES) => panic!("/readyz hangs as its broker does"),
            () = wait_for(address, "HTTP/1.1 503") => {}
        }
        assert!(readiness(address).await.contains("broker"));
    });
}

#[test]
fn redis() {
    a_frozen_broker_is_told_of(BrokerKind::Redis);
}

#[test]
fn nats() {
    a_frozen_broker_is_told_of(BrokerKind::Nats);
}
