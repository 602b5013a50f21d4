//! Pages of history that a client asks for and does not read: what others publish is not disturbed.

use std::net::SocketAddr;
use std::time::Duration;

use airwave_bench::chaos::BrokerKind;
use airwave_bench::chaos::world::World;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::{airwave, is_here};

/// Far longer than anything here takes; only what hangs meets it.
const AGES: Duration = Duration::from_secs(120);

/// How much more memory a node may take for pages that are not read. They are 100 of 256 KiB.
const PAGES_TAKE_KIB: u64 = 32 << 10;

struct Client {
    node: SocketAddr,
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    /// `window`: how much of each answer may come unread.
    async fn new(node: SocketAddr, window: u32) -> Self {
        let stream = TcpStream::connect(node).await.unwrap();
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(window);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { node, sender }
    }

    fn ask(&self, method: &str, path: &str, body: String) -> impl Future<Output = Response<Incoming>> + use<> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.node))
            .header("content-type", "application/json")
            .body(Full::from(body))
            .unwrap();
        let mut sender = self.sender.clone();
        async move {
            timeout(AGES, sender.send_request(request))
                .await
                .expect("a request is never answered")
                .unwrap()
        }
    }

    async fn publish(&self, channel: &str, data: &str) -> String {
        let body = format!(r#"{{"channel":"{channel}","data":"{data}"}}"#);
        let answer = self.ask("POST", "/publish", body).await;
        let status = answer.status();
        let answer = answer.into_body().collect().await.unwrap().to_bytes();
        let answer = String::from_utf8(answer.to_vec()).unwrap();
        assert!(status == 200, "{status}: {answer}");
        answer
    }

    async fn cursor(&self, channel: &str) -> String {
        let page = self.ask("GET", &format!("/channels/{channel}?limit=1"), String::new()).await;
        let page = page.into_body().collect().await.unwrap().to_bytes();
        let page: serde_json::Value = serde_json::from_slice(&page).unwrap();
        page["cursor"].as_str().unwrap().to_owned()
    }
}

fn unread_pages_disturb_no_publish(kind: BrokerKind) {
    if !is_here(kind) {
        return;
    }
    crate::run(async {
        let config = |url: &str| {
            format!(
                "[broker]\nurl = \"{url}\"\n[[channels]]\nmatch = \"{{*all}}\"\nuse_case = \"feed\"\nhistory = {{ events = 1000, bytes = \"64MiB\" }}\n"
            )
        };
        let world = World::start(kind, 1, airwave(), config).await.unwrap();
        let node = world.address(0).await;
        let (reader, publisher) = (Client::new(node, 0).await, Client::new(node, 1 << 20).await);
        publisher.publish("a", "first").await;
        let first = publisher.cursor("a").await;
        for _ in 0..40 {
            publisher.publish("a", &"x".repeat(60_000)).await;
        }
        // One of each, so that what they need once is there.
        publisher.publish("others", "before").await;
        let before = world.peak_memory();
        let path = format!("/channels/a?limit=1000&after={first}");
        let asked: Vec<_> = (0..100)
            .map(|_| tokio::spawn(reader.ask("GET", &path, String::new())))
            .collect();
        for _ in 0..200 {
            publisher.publish("others", "meanwhile").await;
            assert_eq!(publisher.ask("GET", "/readyz", String::new()).await.status(), 200);
        }
        let mut answers = Vec::new();
        for asked in asked {
            answers.push(asked.await.unwrap());
        }
        let given = answers.iter().filter(|answer| answer.status() == 200).count();
        let refused = answers.iter().filter(|answer| answer.status() == 429).count();
        assert_eq!(
            (given, refused),
            (4, 96),
            "a few at a time, and the others are told to come again"
        );
        let more = world.peak_memory() - before;
        println!("{kind}: 100 unread pages take {more} KiB");
        assert!(more < PAGES_TAKE_KIB, "{more} KiB");
    });
}

#[test]
fn redis() {
    unread_pages_disturb_no_publish(BrokerKind::Redis);
}

#[test]
fn nats() {
    unread_pages_disturb_no_publish(BrokerKind::Nats);
}
