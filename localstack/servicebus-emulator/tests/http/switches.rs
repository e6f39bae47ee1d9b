//! Faults and the clock, thrown over HTTP.

use std::time::Duration;

use polybus_servicebus_emulator::Emulator;
use polybus_servicebus_emulator::auth::AccessKey;
use polybus_servicebus_emulator::broker::QueueSettings;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::client::{START_MS, ask, emulator, receive, send, try_ask};

async fn with_message() -> Emulator {
    let emulator = emulator().await;
    emulator.broker().create_queue("q", QueueSettings::default()).expect("q");
    assert_eq!(ask(emulator.http_addr(), "POST", "/q/messages", &[], "hello").await.status, 201);
    emulator
}

async fn throw(emulator: &Emulator, faults: &str) {
    assert_eq!(ask(emulator.http_addr(), "POST", "/$emulator/faults", &[], faults).await.status, 200);
}

/// Locks the message and tells where it is settled.
async fn lock(emulator: &Emulator) -> String {
    let locked = ask(emulator.http_addr(), "POST", "/q/messages/head?timeout=0", &[], "").await;
    let url = locked.header("location").expect("Location");
    url.strip_prefix("http://localhost:5300").expect("the host").to_owned()
}

#[tokio::test]
async fn the_clock_moves_and_what_is_due_is_done() {
    let emulator = with_message().await;
    let at = emulator.http_addr();
    let settle = lock(&emulator).await;
    let moved = ask(at, "POST", "/$emulator/clock", &[], r#"{"advance_ms":60001}"#).await;
    let now: serde_json::Value = serde_json::from_str(&moved.body).unwrap();
    assert_eq!((moved.status, &now["now_ms"]), (200, &(START_MS + 60_001).into()));
    assert_eq!(ask(at, "DELETE", &settle, &[], "").await.status, 404);
    assert_eq!(ask(at, "GET", "/$emulator/clock", &[], "").await.body, moved.body);
}

#[tokio::test]
async fn a_lost_settlement_is_not_done_and_a_lost_answer_is() {
    let emulator = with_message().await;
    let at = emulator.http_addr();
    let settle = lock(&emulator).await;
    throw(&emulator, r#"{"lose_settlements":1}"#).await;
    assert!(try_ask(at, "DELETE", &settle, &[], "").await.is_none());
    throw(&emulator, r#"{"lose_answers":1}"#).await;
    assert!(try_ask(at, "DELETE", &settle, &[], "").await.is_none());
    assert_eq!(ask(at, "DELETE", &settle, &[], "").await.status, 404, "the second one was done");
}

#[tokio::test]
async fn requests_are_refused_until_that_ends() {
    let emulator = with_message().await;
    let at = emulator.http_addr();
    throw(&emulator, r#"{"refuse_connections":true}"#).await;
    assert!(try_ask(at, "GET", "/q", &[], "").await.is_none());
    assert!(try_ask(at, "POST", "/q/messages/head?timeout=0", &[], "").await.is_none());
    assert_eq!(ask(at, "GET", "/health", &[], "").await.status, 200);
    assert_eq!(ask(at, "DELETE", "/$emulator/faults", &[], "").await.status, 200);
    assert_eq!(ask(at, "GET", "/q", &[], "").await.status, 200);
}

#[tokio::test]
async fn connections_are_dropped_but_not_the_one_that_says_so() {
    let emulator = with_message().await;
    let at = emulator.http_addr();
    assert_eq!(ask(at, "DELETE", "/q/messages/head", &[], "").await.status, 200);
    let mut waiting = TcpStream::connect(at).await.unwrap();
    send(&mut waiting, "DELETE", "/q/messages/head", &[], "").await;
    assert!(timeout(Duration::from_millis(50), waiting.readable()).await.is_err(), "it waits");
    throw(&emulator, r#"{"drop_connections":true}"#).await;
    assert!(timeout(Duration::from_secs(300), receive(&mut waiting)).await.expect("dropped").is_none());
    assert_eq!(ask(at, "POST", "/q/messages", &[], "again").await.status, 201);
    assert_eq!(ask(at, "DELETE", "/q/messages/head", &[], "").await.body, "again");
}

#[tokio::test]
async fn a_request_counts_as_a_frame() {
    let emulator = with_message().await;
    let at = emulator.http_addr();
    throw(&emulator, r#"{"drop_after_frames":2}"#).await;
    assert_eq!(ask(at, "POST", "/q/messages", &[], "1").await.status, 201);
    assert!(try_ask(at, "POST", "/q/messages", &[], "2").await.is_none());
    assert_eq!(ask(at, "POST", "/q/messages", &[], "3").await.status, 201);
    let stored = emulator.broker().queue("q").unwrap().counts.active;
    assert_eq!(stored, 3);
}

#[tokio::test]
async fn keys_come_and_go() {
    let emulator = with_message().await;
    let at = emulator.http_addr();
    let rules = r#"[{"keyName":"own","primaryKey":"s3cret","rights":["Send"],"entity":"q"},
        {"keyName":"all","primaryKey":"s3cret","rights":["Manage"]}]"#;
    assert_eq!(ask(at, "POST", "/$emulator/keys", &[], rules).await.status, 200);
    assert_eq!(ask(at, "POST", "/q/messages", &[], "").await.status, 401);
    let token = AccessKey::new("own", "s3cret").token("https://localhost/q", START_MS / 1000 + 60);
    assert_eq!(ask(at, "POST", "/q/messages", &[("Authorization", &token)], "").await.status, 201);
    assert_eq!(ask(at, "DELETE", "/q/messages/head", &[("Authorization", &token)], "").await.status, 401);
    let gone = r#"{"keyName":"own","entity":"q"}"#;
    assert_eq!(ask(at, "DELETE", "/$emulator/keys", &[], gone).await.status, 200);
    assert_eq!(ask(at, "POST", "/q/messages", &[("Authorization", &token)], "").await.status, 401);
    let wrong = ask(at, "POST", "/$emulator/keys", &[], r#"{"keyName":"own","primaryKey":"s3cret"}"#).await;
    assert!(wrong.status == 400 && !wrong.body.contains("s3cret"), "{wrong:?}");
}

#[tokio::test]
async fn it_is_busy_for_a_while() {
    let emulator = with_message().await;
    let at = emulator.http_addr();
    throw(&emulator, r#"{"server_busy":{"answers":1,"of":["send"]}}"#).await;
    let busy = ask(at, "POST", "/q/messages", &[], "").await;
    assert_eq!(busy.status, 503);
    assert!(busy.body.contains("Error code: 50009. Please wait 10 seconds and try again."));
    assert_eq!(ask(at, "POST", "/q/messages", &[], "").await.status, 201);
    throw(&emulator, r#"{"server_busy":{"ms":1000}}"#).await;
    for (method, path) in
        [("GET", "/q"), ("POST", "/q/messages"), ("POST", "/q/messages/head?timeout=0"), ("GET", "/q")]
    {
        assert_eq!(ask(at, method, path, &[], "").await.status, 503, "{method} {path}");
    }
    emulator.clock().advance(Duration::from_secs(1));
    assert_eq!(ask(at, "GET", "/q", &[], "").await.status, 200);
}

#[tokio::test]
async fn what_the_cloud_does_is_asked_for() {
    let emulator = with_message().await;
    let at = emulator.http_addr();
    assert_eq!(ask(at, "POST", "/$emulator/cloud", &[], r#"{"idle_link_ms":600000}"#).await.status, 200);
    assert_eq!(ask(at, "POST", "/$emulator/cloud", &[], r#"{"typo":1}"#).await.status, 400);
    assert_eq!(ask(at, "GET", "/$emulator/cloud", &[], "").await.status, 405);
}
