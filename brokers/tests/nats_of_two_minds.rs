//! What the servers of a NATS cluster say while they are not of one mind: a proxy between node and
//! server says it now and then.

#![cfg(feature = "nats")]
#![allow(clippy::unwrap_used)]

#[path = "support/nats.rs"]
mod support;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use airwave_brokers::Nats;
use airwave_core::{Append, Broker, ChannelName, Data, EventName, Message, PageLimit, Position, Replay, Rules};
use support::NatsServer;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

/// How long a test waits for anything. It decides nothing but when a hang is called one.
const PATIENCE: Duration = Duration::from_secs(60);

fn name(text: &str) -> ChannelName {
    ChannelName::new(text).unwrap()
}

fn say(text: &str) -> Append {
    Append::new(Message::new(EventName::new("said").unwrap(), Data::text(text.to_owned())))
}

/// What is answered before the server is asked, if it is asked at all.
struct Lie {
    answer: Vec<u8>,
    /// The server is asked, too.
    pass: bool,
}

/// Of a message's subject and payload; `None`: nothing but the truth.
type Judge = dyn Fn(String, String) -> Pin<Box<dyn Future<Output = Option<Lie>> + Send>> + Send + Sync;

/// The address of a proxy to this server.
async fn liar(server: &NatsServer, judge: Arc<Judge>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, port) = (listener.local_addr().unwrap(), server.port);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else {
                return;
            };
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            let to_client = Arc::new(tokio::sync::Mutex::new(to_client));
            tokio::spawn(pass_answers(from_server, to_client.clone()));
            tokio::spawn(judge_questions(from_client, to_server, to_client, judge.clone()));
        }
    });
    address
}

/// What both directions of a connection write to.
type ToClient = Arc<tokio::sync::Mutex<OwnedWriteHalf>>;

async fn pass_answers(from_server: OwnedReadHalf, to_client: ToClient) {
    let mut from_server = BufReader::new(from_server);
    while let Some((_, unit)) = unit(&mut from_server).await {
        if to_client.lock().await.write_all(&unit).await.is_err() {
            return;
        }
    }
    // An error says that it is closed already.
    let _ = to_client.lock().await.shutdown().await;
}

/// Passes on what the client writes. A question may be answered with a lie, and may then not reach
/// the server.
async fn judge_questions(from_client: OwnedReadHalf, mut to_server: OwnedWriteHalf, to_client: ToClient, judge: Arc<Judge>) {
    let mut from_client = BufReader::new(from_client);
    let mut subscribed: Vec<(String, String)> = Vec::new();
    while let Some((line, unit)) = unit(&mut from_client).await {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["SUB", subject, .., number] => subscribed.push((subject.to_owned(), number.to_owned())),
            ["PUB" | "HPUB", subject, reply, .., _] if reply.starts_with("_INBOX") => {
                let payload = String::from_utf8_lossy(&unit[line.len()..]).into_owned();
                let lie = judge(subject.to_owned(), payload).await;
                if let Some(lie) = &lie {
                    tell(&mut *to_client.lock().await, reply, &subscribed, &lie.answer).await;
                }
                if lie.is_some_and(|lie| !lie.pass) {
                    continue;
                }
            }
            _ => {}
        }
        if to_server.write_all(&unit).await.is_err() {
            return;
        }
    }
}

/// One message of the protocol with its payload, and its first line.
async fn unit(from: &mut BufReader<impl AsyncRead + Unpin>) -> Option<(String, Vec<u8>)> {
    let mut line = String::new();
    if from.read_line(&mut line).await.ok()? == 0 {
        return None;
    }
    let mut unit = line.clone().into_bytes();
    if ["PUB ", "HPUB ", "MSG ", "HMSG "].iter().any(|verb| line.starts_with(verb)) {
        let length: usize = line.trim().rsplit(' ').next()?.parse().ok()?;
        let begin = unit.len();
        unit.resize(begin + length + 2, 0);
        from.read_exact(&mut unit[begin..]).await.ok()?;
    }
    Some((line, unit))
}

/// Answers as the server would.
async fn tell(client: &mut OwnedWriteHalf, reply: &str, subscribed: &[(String, String)], answer: &[u8]) {
    let hears = |subject: &str| subject == reply || subject.strip_suffix('*').is_some_and(|begin| reply.starts_with(begin));
    let (_, number) = subscribed.iter().rev().find(|(subject, _)| hears(subject)).unwrap();
    let (verb, lengths) = match answer.starts_with(b"NATS/1.0") {
        true => ("HMSG", format!("{0} {0}", answer.len())),
        false => ("MSG", answer.len().to_string()),
    };
    let head = format!("{verb} {reply} {number} {lengths}\r\n");
    client.write_all(&[head.as_bytes(), answer, b"\r\n"].concat()).await.unwrap();
}

fn refused(code: u64, text: &str) -> Vec<u8> {
    serde_json::json!({ "error": { "code": 400, "err_code": code, "description": text } })
        .to_string()
        .into_bytes()
}

/// As a node that is told of several servers: it has to reckon with several minds.
async fn connect_by(liar: SocketAddr) -> Nats {
    let url = format!("nats://{liar},{liar}");
    timeout(PATIENCE, Nats::connect(&url, Rules::default()))
        .await
        .unwrap()
        .unwrap()
}

fn texts(replay: &Replay) -> Vec<String> {
    let text = |event: &Arc<airwave_core::Event>| String::from_utf8_lossy(event.message.data.as_bytes()).into_owned();
    replay.events.iter().map(text).collect()
}

/// Two servers that take themselves for the leader: one refuses what the other one stores. Chaos
/// found three events of one publish.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_leader_refused_and_another_one_stored_is_not_published_again() {
    let Some(server) = NatsServer::start() else { return };
    let other = Arc::new(Nats::connect(&server.url(), Rules::default()).await.unwrap());
    let (lies, between) = (Arc::new(Mutex::new(0)), other.clone());
    let judge = move |subject: String, payload: String| {
        let (lies, between) = (lies.clone(), between.clone());
        let answer: Pin<Box<dyn Future<Output = Option<Lie>> + Send>> = Box::pin(async move {
            if subject != "airwave.log.c.a" {
                return None;
            }
            if payload.ends_with("refused\r\n") {
                *lies.lock().unwrap() += 1;
                assert_eq!(*lies.lock().unwrap(), 1, "it is published again");
                let answer = refused(10071, "wrong last sequence: 5");
                return Some(Lie { answer, pass: true });
            }
            // Here the refusal is a true one, and comes from the server itself.
            if payload.ends_with("overtaken\r\n")
                && between
                    .replay(&name("b"), None, PageLimit::events(1))
                    .await
                    .unwrap()
                    .events
                    .is_empty()
            {
                between.publish(&name("b"), say("done")).await.unwrap();
                between.publish(&name("a"), say("faster")).await.unwrap();
            }
            None
        });
        answer
    };
    let broker = connect_by(liar(&server, Arc::new(judge)).await).await;
    let channel = name("a");
    let first = broker.publish(&channel, say("first")).await.unwrap().position;
    let refused = broker.publish(&channel, say("refused")).await.unwrap();
    let overtaken = broker.publish(&channel, say("overtaken")).await.unwrap();
    let replay = other.replay(&channel, Some(first), PageLimit::events(10)).await.unwrap();
    assert_eq!(texts(&replay), ["refused", "faster", "overtaken"]);
    let positions: Vec<Position> = replay.events.iter().map(|event| event.position).collect();
    assert_eq!([positions[0], positions[2]], [refused.position, overtaken.position]);
    assert!(!refused.duplicate);
}

/// A server that was cut off, or has just been chosen to lead, tells of an older state than was
/// acknowledged. Chaos found all of a stream lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_which_an_older_state_is_told_is_not_emptied() {
    let Some(server) = NatsServer::start() else { return };
    let server = Arc::new(server);
    let told = Arc::new(Mutex::new((false, 0, 0)));
    let (counted, asked) = (told.clone(), server.clone());
    let judge = move |subject: String, _: String| {
        let (counted, asked) = (counted.clone(), asked.clone());
        let answer: Pin<Box<dyn Future<Output = Option<Lie>> + Send>> = Box::pin(async move {
            let lies = counted.lock().unwrap().0;
            match &*subject {
                "$JS.API.STREAM.PURGE.airwave" if lies => counted.lock().unwrap().2 += 1,
                "$JS.API.STREAM.INFO.airwave" if lies => {
                    let mut info = asked.ask("STREAM.INFO.airwave", serde_json::Value::Null).await;
                    info["state"]["last_seq"] = (info["state"]["last_seq"].as_u64().unwrap() - 2).into();
                    counted.lock().unwrap().1 += 1;
                    let answer = info.to_string().into_bytes();
                    return Some(Lie { answer, pass: false });
                }
                _ => {}
            }
            None
        });
        answer
    };
    let broker = connect_by(liar(&server, Arc::new(judge)).await).await;
    let channel = name("a");
    let mut last = Position::ZERO;
    for text in ["first", "second", "third", "fourth"] {
        last = broker.publish(&channel, say(text)).await.unwrap().position;
    }
    told.lock().unwrap().0 = true;
    server.cut().await;
    let back = async {
        loop {
            let back = told.lock().unwrap().1 > 0;
            match broker.replay(&channel, None, PageLimit::events(10)).await {
                Ok(replay) if back => return replay,
                _ => sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let replay = timeout(PATIENCE, back).await.unwrap();
    assert_eq!(told.lock().unwrap().2, 0, "it is emptied");
    assert_eq!((texts(&replay).len(), replay.head), (4, last));
}

/// A server that is cut off from the others does not know what they stored since. Chaos found gaps
/// where nothing was lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_of_old_is_not_taken_for_a_loss() {
    let Some(server) = NatsServer::start() else { return };
    let told = Arc::new(Mutex::new(None));
    let old = told.clone();
    let judge = move |subject: String, payload: String| {
        let asks = subject == "airwave.log.c.a" && payload.ends_with("\r\n\r\n\r\n");
        let old: Option<Position> = asks.then(|| old.lock().unwrap().take()).flatten();
        let lie = old.map(|old| Lie {
            answer: refused(10071, &format!("wrong last sequence: {old}")),
            pass: false,
        });
        let answer: Pin<Box<dyn Future<Output = Option<Lie>> + Send>> = Box::pin(async move { lie });
        answer
    };
    let broker = connect_by(liar(&server, Arc::new(judge)).await).await;
    let channel = name("a");
    let first = broker.publish(&channel, say("first")).await.unwrap().position;
    let last = broker.publish(&channel, say("last")).await.unwrap().position;
    *told.lock().unwrap() = Some(first);
    let replay = broker.replay(&channel, Some(last), PageLimit::events(10)).await.unwrap();
    assert_eq!(*told.lock().unwrap(), None, "the fake server has not lied");
    assert!(replay.complete && replay.head == last, "{replay:?}");
}

/// A replica that has not got yet what the leader tells of, while more is published. Chaos found
/// gaps over events that were there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_lags_is_not_taken_for_a_history_that_was_trimmed() {
    let Some(server) = NatsServer::start() else { return };
    let other = Arc::new(Nats::connect(&server.url(), Rules::default()).await.unwrap());
    let (lies, between) = (Arc::new(Mutex::new(0)), other.clone());
    let judge = move |subject: String, payload: String| {
        let (lies, between) = (lies.clone(), between.clone());
        let answer: Pin<Box<dyn Future<Output = Option<Lie>> + Send>> = Box::pin(async move {
            let reads = subject == "$JS.API.DIRECT.GET.airwave" && payload.contains("next_by_subj");
            if !reads || std::mem::replace(&mut *lies.lock().unwrap(), 1) == 1 {
                return None;
            }
            between.publish(&name("a"), say("newer")).await.unwrap();
            let answer = b"NATS/1.0 404 Message Not Found\r\n\r\n".to_vec();
            Some(Lie { answer, pass: false })
        });
        answer
    };
    let broker = connect_by(liar(&server, Arc::new(judge)).await).await;
    let channel = name("a");
    let first = other.publish(&channel, say("first")).await.unwrap().position;
    for text in ["second", "third"] {
        other.publish(&channel, say(text)).await.unwrap();
    }
    let replay = broker.replay(&channel, Some(first), PageLimit::events(10)).await.unwrap();
    assert!(replay.complete, "{replay:?}");
    assert_eq!(texts(&replay), ["second", "third"]);
}
