//! Who is let in by a NATS server, and which server is let be: logins of every kind, TLS,
//! permissions, versions. Real servers.

#![cfg(feature = "nats")]
#![allow(clippy::unwrap_used)]

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/nats.rs"]
mod support;

use std::path::Path;
use std::time::Duration;

use airwave_brokers::Nats;
use airwave_brokers::nats::NatsConnectError;
use airwave_core::{Append, Broker, ChannelName, Data, EventName, Message, PageLimit, Position, Rules};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use certificates::Certificates;
use nkeys::KeyPair;
use serde_json::{Value, json};
use support::{JETSTREAM, NatsServer, Release};
use tokio::time::{sleep, timeout};

/// How long a test waits for anything. It decides nothing but when a hang is called one.
const PATIENCE: Duration = Duration::from_secs(60);

fn name(text: &str) -> ChannelName {
    ChannelName::new(text).unwrap()
}

fn say(text: &str) -> Append {
    Append::new(Message::new(EventName::new("said").unwrap(), Data::text(text)))
}

async fn publish(broker: &Nats, channel: &str) -> Position {
    broker.publish(&name(channel), say("text")).await.unwrap().position
}

/// A user that is let in can do everything that a node does.
async fn works(url: &str) {
    let broker = Nats::connect(url, Rules::default()).await.unwrap();
    let mut feed = broker.follow(&name("a")).await.unwrap();
    let position = publish(&broker, "a").await;
    assert_eq!(feed.next().await.unwrap().position, position);
    assert_eq!(
        broker.replay(&name("a"), None, PageLimit::events(10)).await.unwrap().head,
        position
    );
    broker.ping().await.unwrap();
}

/// Returns the refusal's text, and asserts that it holds none of these secrets.
async fn refused(url: &str, secrets: &[&str]) -> String {
    let told = match timeout(PATIENCE, Nats::connect(url, Rules::default())).await.unwrap() {
        Ok(_) => panic!("connected to {url}"),
        Err(error) => {
            assert!(matches!(error, NatsConnectError::Unusable { .. }), "{error}");
            format!("{error} {error:?}")
        }
    };
    for secret in secrets {
        assert!(!told.contains(secret), "{told}");
    }
    told
}

fn written(server: &NatsServer, file: &str, text: &str) -> String {
    let path = server.dir().join(file);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_and_password_or_a_token_let_in_and_nothing_else_does() {
    let with_user = format!("{JETSTREAM}authorization {{ user: me, password: \"s3cr@t\" }}");
    let Some(server) = NatsServer::configured(&with_user) else {
        return;
    };
    let at = format!("127.0.0.1:{}", server.port);
    works(&format!("nats://me:s3cr%40t@{at}")).await;
    for url in [
        format!("nats://{at}"),
        format!("nats://me:wr0ng@{at}"),
        format!("nats://wr0ng@{at}"),
    ] {
        let told = refused(&url, &["wr0ng", "s3cr"]).await;
        assert!(
            told.contains("does not accept this user") && told.contains("write user:password@"),
            "{told}"
        );
    }
    let Some(server) = NatsServer::configured(&format!("{JETSTREAM}authorization {{ token: s3cret }}")) else {
        return;
    };
    works(&format!("nats://s3cret@127.0.0.1:{}", server.port)).await;
    let told = refused(&format!("nats://wr0ng@127.0.0.1:{}", server.port), &["wr0ng"]).await;
    assert!(told.contains("does not accept this user"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_nkey_lets_in_whose_it_is() {
    let (mine, other) = (KeyPair::new_user(), KeyPair::new_user());
    let configuration = format!("{JETSTREAM}authorization {{ users: [{{ nkey: {} }}] }}", mine.public_key());
    let Some(server) = NatsServer::configured(&configuration) else {
        return;
    };
    let url = |file: &str| format!("nats://127.0.0.1:{}?nkey={file}", server.port);
    let (mine, other) = (mine.seed().unwrap(), other.seed().unwrap());
    works(&url(&written(&server, "mine", &format!("{mine}\n")))).await;
    let between = format!("-----BEGIN USER NKEY SEED-----\n{mine}\n------END USER NKEY SEED------\n");
    works(&url(&written(&server, "between", &between))).await;
    let told = refused(&url(&written(&server, "other", &other)), &[&other]).await;
    assert!(told.contains("does not accept this user"), "{told}");
    for file in [
        "/nowhere".to_owned(),
        written(&server, "none", "s3cret"),
        written(&server, "half", &mine[..50]),
    ] {
        let told = refused(&url(&file), &["s3cret", &mine[..50]]).await;
        assert!(told.contains("names in nkey cannot be read as one; correct it"), "{told}");
    }
}

/// A claim as NATS wants it: a JSON web token with a signature of its own kind.
fn token(by: &KeyPair, of: &KeyPair, name: &str, what: Value) -> String {
    let part = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let claims =
        json!({ "jti": name, "iat": 1_700_000_000, "iss": by.public_key(), "name": name, "sub": of.public_key(), "nats": what });
    let said = format!("{}.{}", part(json!({ "typ": "JWT", "alg": "ed25519-nkey" })), part(claims));
    let signature = BASE64_URL_SAFE_NO_PAD.encode(by.sign(said.as_bytes()).unwrap());
    format!("{said}.{signature}")
}

/// A server that belongs to an operator, who vouches for accounts, which vouch for users.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_let_in_users_that_the_account_signed() {
    let (operator, system, account, user) = (
        KeyPair::new_operator(),
        KeyPair::new_account(),
        KeyPair::new_account(),
        KeyPair::new_user(),
    );
    let of_account = |jetstream: bool| {
        let room = if jetstream { -1 } else { 0 };
        json!({
            "type": "account", "version": 2,
            "limits": {
                "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
                "mem_storage": room, "disk_storage": room, "streams": room, "consumer": room,
            },
        })
    };
    let configuration = format!(
        "{JETSTREAM}operator: {}\nsystem_account: {system}\nresolver: MEMORY\nresolver_preload: {{ {system}: {}, {account}: {} }}",
        token(
            &operator,
            &operator,
            "operator",
            json!({ "type": "operator", "version": 2, "system_account": system.public_key() })
        ),
        token(&operator, &system, "system", of_account(false)),
        token(&operator, &account, "app", of_account(true)),
        system = system.public_key(),
        account = account.public_key(),
    );
    let Some(server) = NatsServer::configured(&configuration) else {
        return;
    };
    let of_user = json!({ "type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1 });
    let seed = user.seed().unwrap();
    let file = |name: &str, by: &KeyPair| {
        let token = token(by, &user, "user", of_user.clone());
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        written(&server, name, &text)
    };
    let url = |file: &str| format!("nats://127.0.0.1:{}?creds={file}", server.port);
    works(&url(&file("mine", &account))).await;
    let told = refused(&url(&file("forged", &KeyPair::new_account())), &[&seed]).await;
    assert!(told.contains("does not accept this user"), "{told}");
    for file in ["/nowhere".to_owned(), written(&server, "none", &format!("s3cret {seed}"))] {
        let told = refused(&url(&file), &["s3cret", &seed]).await;
        assert!(told.contains("names in creds cannot be read as one; correct it"), "{told}");
    }
    let told = refused(&format!("nats://127.0.0.1:{}", server.port), &[]).await;
    assert!(told.contains("creds=FILE"), "{told}");
    // One that the operator knows, and to which it gives no room.
    let told = refused(&url(&file("system", &system)), &[&seed]).await;
    assert!(told.contains("JetStream is not enabled for this account"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_needs_a_server_that_proves_its_name() {
    let Some(certificates) = Certificates::make() else { return };
    let path = |name: &str| certificates.path(name).display().to_string();
    let configuration = format!(
        "{JETSTREAM}tls {{ cert_file: \"{}\", key_file: \"{}\" }}",
        path("server.crt"),
        path("server.key")
    );
    let Some(server) = NatsServer::configured(&configuration) else {
        return;
    };
    let url = |scheme: &str, host: &str, ca: &Path| format!("{scheme}://{host}:{}?ca={}", server.port, ca.display());
    let (ours, other) = (certificates.path("authority.crt"), certificates.path("other.crt"));
    works(&url("tls", "127.0.0.1", &ours)).await;
    // The server asks for it.
    works(&url("nats", "127.0.0.1", &ours)).await;
    for url in [
        url("tls", "127.0.0.1", &other),
        url("tls", "localhost", &ours),
        url("nats", "127.0.0.1", &other),
        // The system's authorities do not know it.
        format!("tls://127.0.0.1:{}", server.port),
    ] {
        let told = refused(&url, &[]).await;
        assert!(
            told.contains("its TLS certificate is not accepted") && told.contains("ca=FILE"),
            "{url}: {told}"
        );
    }
    for file in [Path::new("/nowhere"), &certificates.path("server.key")] {
        let told = refused(&url("tls", "127.0.0.1", file), &[]).await;
        assert!(told.contains("names in ca cannot be read as one; correct it"), "{told}");
    }
    let Some(plain) = NatsServer::start() else { return };
    let told = refused(&format!("tls://127.0.0.1:{}?ca={}", plain.port, ours.display()), &[]).await;
    assert!(told.contains("it does not speak TLS; write nats://"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_of_several_that_answers_is_enough() {
    let Some(server) = NatsServer::start() else { return };
    let dead = [support::free_port(), support::free_port()];
    // They are tried from a random one on: so often that a dead one comes first.
    for _ in 0..8 {
        works(&format!(
            "nats://127.0.0.1:{},127.0.0.1:{},127.0.0.1:{}",
            dead[0], dead[1], server.port
        ))
        .await;
    }
}

/// Each thing that a node does may be forbidden, and it says which one it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_may_too_little_is_told_what_is_missing() {
    let may = |publish: &str, subscribe: &str| {
        format!(
            "{JETSTREAM}authorization {{ users: [{{ user: me, password: s3cret, permissions: {{ publish: {publish}, subscribe: {subscribe} }} }}] }}"
        )
    };
    let all = r#"["airwave.>", "$JS.API.>"]"#;
    let heard = r#"["airwave.>", "_INBOX.>"]"#;
    let Some(server) = NatsServer::configured(&may(all, heard)) else {
        return;
    };
    let url = format!("nats://me:s3cret@127.0.0.1:{}", server.port);
    // What the text says is what it takes.
    works(&url).await;
    for (publish, subscribe, missing) in [
        (r#"["airwave.>"]"#, heard, "$JS.API.INFO"),
        (r#"["$JS.API.>"]"#, heard, "airwave.log.probe."),
        (all, r#"["_INBOX.>"]"#, "airwave.live.probe."),
        (all, r#"["airwave.>"]"#, "_INBOX."),
    ] {
        server.kill();
        let Some(server) = NatsServer::configured(&may(publish, subscribe)) else {
            return;
        };
        let told = refused(&format!("nats://me:s3cret@127.0.0.1:{}", server.port), &["s3cret"]).await;
        assert!(told.contains(missing) && told.contains("allow that"), "{missing}: {told}");
    }
}

/// An operator changes what the node's user may do while it runs. One subscription dies, on a
/// connection that goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_that_the_server_takes_away_ends_its_feed_and_no_other() {
    let may = |forbidden: &str| {
        format!(
            "{JETSTREAM}authorization {{ users: [{{ user: me, password: s3cret, permissions: {{ publish: {{ deny: [{forbidden}] }}, \
             subscribe: {{ deny: [{forbidden}] }} }} }}] }}"
        )
    };
    let Some(server) = NatsServer::configured(&may("none")) else {
        return;
    };
    let broker = Nats::connect(&format!("nats://me:s3cret@127.0.0.1:{}", server.port), Rules::default())
        .await
        .unwrap();
    let mut taken = broker.follow(&name("a")).await.unwrap();
    let mut left = broker.follow(&name("b")).await.unwrap();
    server.reconfigure(&may("\"airwave.live.c.a\", \"airwave.log.c.d\""));
    let end = timeout(PATIENCE, taken.next()).await.expect("the feed is silent for ever");
    assert_eq!(end, None);
    let told = broker.follow(&name("a")).await.err().unwrap().to_string();
    assert!(told.contains("forbids") && told.contains("airwave.live.c.a"), "{told}");
    let told = broker.publish(&name("d"), say("text")).await.unwrap_err().to_string();
    assert!(told.contains("forbids") && told.contains("airwave.log.c.d"), "{told}");
    // The connection is the same one, and lives.
    broker.ping().await.unwrap();
    let position = publish(&broker, "b").await;
    assert_eq!(left.next().await.unwrap().position, position);
    assert!(publish(&broker, "a").await > position, "publishing there is allowed");

    server.reconfigure(&may("none"));
    let again = async {
        loop {
            match broker.follow(&name("a")).await {
                Ok(feed) => return feed,
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let mut again = timeout(PATIENCE, again).await.expect("what is allowed again does not work");
    let position = publish(&broker, "a").await;
    assert_eq!(again.next().await.unwrap().position, position);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_too_old_is_refused() {
    let Some(server) = NatsServer::of(Release::TooOld) else {
        return;
    };
    let told = refused(&server.url(), &[]).await;
    assert!(
        told.contains("it is version 2.9") && told.contains("install 2.10 or newer"),
        "{told}"
    );
}
