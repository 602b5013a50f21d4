//! A node whose broker hangs ends when it is asked to, and its callers get answers before that.

use std::time::Duration;

use airwave_bench::chaos::clients::Sse;
use airwave_bench::chaos::world::{HANG, World};
use airwave_bench::chaos::{BrokerKind, LinkState};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::{airwave, is_here};

/// Publishes that the node has begun to read, so that they are under way whatever comes next.
async fn begin_to_publish(address: std::net::SocketAddr, publications: &Value) -> TcpStream {
    let body = publications.to_string();
    let mut caller = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /publish HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\nconnection: close\r\n\
         expect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    caller.write_all(head.as_bytes()).await.unwrap();
    let mut go_on = [0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
    caller.read_exact(&mut go_on).await.unwrap();
    assert_eq!(go_on, *b"HTTP/1.1 100 Continue\r\n\r\n");
    caller.write_all(body.as_bytes()).await.unwrap();
    caller
}

fn a_node_ends_while_its_broker_hangs(kind: BrokerKind) {
    if !is_here(kind) {
        return;
    }
    crate::run(async {
        // Nothing waits for the grace time: it is longer than the test.
        let config = |url: &str| {
            format!(
                "drain = \"{}s\"\n[broker]\nurl = \"{url}\"\n\
                 [[channels]]\nmatch = \"{{*all}}\"\ntransport = [\"sse\", \"websocket\"]\n",
                2 * HANG.as_secs()
            )
        };
        let world = World::start(kind, 1, airwave(), config).await.unwrap();
        let address = world.address(0).await;
        let mut listener = Sse::open(address, "/channels/c/0", Some("c/0"), None, false).await.unwrap();
        listener.next().await.unwrap();
        world.set_line(0, LinkState::Held);
        let one = begin_to_publish(address, &json!({"channel": "c/0", "data": 0})).await;
        let many: Vec<Value> = (0..20).map(|n| json!({"channel": format!("c/{n}"), "data": n})).collect();
        let many = begin_to_publish(address, &json!(many)).await;
        world.drain_node(0, HANG);
        for mut caller in [one, many] {
            let mut answer = String::new();
            timeout(HANG, caller.read_to_string(&mut answer)).await.unwrap().unwrap();
            assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
            assert!(answer.contains("\"unavailable\""), "{answer}");
        }
        timeout(HANG, async { while listener.next().await.is_ok() {} }).await.unwrap();
        while !world.addresses().is_empty() {
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(world.wrong(), Vec::<String>::new());
    });
}

#[test]
fn redis() {
    a_node_ends_while_its_broker_hangs(BrokerKind::Redis);
}

#[test]
fn nats() {
    a_node_ends_while_its_broker_hangs(BrokerKind::Nats);
}
