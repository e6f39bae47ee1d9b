//! Messages by the REST data plane.

use std::time::Duration;

use polybus_servicebus_emulator::Emulator;
use polybus_servicebus_emulator::broker::{QueueSettings, SubscriptionSettings, TopicSettings};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::client::{Answer, ask, emulator, receive, send};

const JSON_BATCH: (&str, &str) = ("Content-Type", "application/vnd.microsoft.servicebus.json");

async fn with_queue() -> Emulator {
    let emulator = emulator().await;
    emulator.broker().create_queue("q", QueueSettings::default()).expect("q");
    emulator
}

async fn post(emulator: &Emulator, address: &str, body: &str) {
    let sent = ask(emulator.http_addr(), "POST", &format!("/{address}/messages"), &[], body).await;
    assert_eq!((sent.status, sent.body.as_str()), (201, ""));
}

async fn lock(emulator: &Emulator, address: &str) -> Answer {
    ask(emulator.http_addr(), "POST", &format!("/{address}/messages/head?timeout=0"), &[], "").await
}

async fn take(emulator: &Emulator, address: &str) -> Answer {
    ask(emulator.http_addr(), "DELETE", &format!("/{address}/messages/head?timeout=0"), &[], "").await
}

/// The path of a `Location`.
fn location(answer: &Answer) -> String {
    let url = answer.header("location").expect("Location");
    url.strip_prefix("http://localhost:5300").expect("the host the client called").to_owned()
}

#[tokio::test]
async fn a_message_is_locked_and_completed() {
    let emulator = with_queue().await;
    let at = emulator.http_addr();
    let headers = [
        ("Content-Type", "text/plain"),
        ("BrokerProperties", r#"{"MessageId":"m1","Label":"l","CorrelationId":"c","TimeToLive":90}"#),
        ("colour", r#""r\u00e9d""#),
        ("size", "5"),
    ];
    assert_eq!(ask(at, "POST", "/q/messages", &headers, "hello").await.status, 201);

    let locked = lock(&emulator, "q").await;
    assert_eq!((locked.status, locked.body.as_str()), (201, "hello"));
    assert_eq!(locked.header("content-type"), Some("text/plain"));
    assert_eq!((locked.header("colour"), locked.header("size")), (Some(r#""r\u00e9d""#), Some("5")));
    let properties = locked.broker_properties();
    assert_eq!(properties["MessageId"], "m1");
    assert_eq!((&properties["Label"], &properties["CorrelationId"]), (&"l".into(), &"c".into()));
    assert_eq!((&properties["DeliveryCount"], &properties["SequenceNumber"]), (&1.into(), &1.into()));
    assert_eq!((&properties["TimeToLive"], &properties["State"]), (&90.0.into(), &"Active".into()));
    assert_eq!(properties["EnqueuedTimeUtc"], "Tue, 14 Nov 2023 22:13:20 GMT");
    assert_eq!(properties["LockedUntilUtc"], "Tue, 14 Nov 2023 22:14:20 GMT");
    let token = properties["LockToken"].as_str().expect("a token");
    assert_eq!(location(&locked), format!("/q/messages/1/{token}"));

    assert_eq!(lock(&emulator, "q").await.status, 204);
    assert_eq!(ask(at, "DELETE", &location(&locked), &[], "").await.status, 200);
    let twice = ask(at, "DELETE", &location(&locked), &[], "").await;
    assert_eq!((twice.status, twice.count("The lock supplied is invalid")), (404, 1));
    assert_eq!(ask(at, "PUT", &location(&locked), &[], "").await.status, 404);
    assert_eq!(ask(at, "POST", &location(&locked), &[], "").await.status, 404);
}

#[tokio::test]
async fn an_unlocked_message_comes_again() {
    let emulator = with_queue().await;
    post(&emulator, "q", "hello").await;
    let locked = lock(&emulator, "q").await;
    assert_eq!(ask(emulator.http_addr(), "PUT", &location(&locked), &[], "").await.status, 200);
    let again = lock(&emulator, "q").await;
    assert_eq!((again.status, &again.broker_properties()["DeliveryCount"]), (201, &2.into()));
}

#[tokio::test]
async fn a_lock_is_renewed_and_lost() {
    let emulator = with_queue().await;
    let at = emulator.http_addr();
    post(&emulator, "q", "hello").await;
    let locked = lock(&emulator, "q").await;
    emulator.clock().advance(Duration::from_secs(50));
    let renewed = ask(at, "POST", &location(&locked), &[], "").await;
    assert_eq!(renewed.status, 200);
    assert_eq!(renewed.broker_properties()["LockedUntilUtc"], "Tue, 14 Nov 2023 22:15:10 GMT");
    emulator.clock().advance(Duration::from_secs(50));
    assert_eq!(lock(&emulator, "q").await.status, 204);
    emulator.clock().advance(Duration::from_secs(20));
    assert_eq!(ask(at, "DELETE", &location(&locked), &[], "").await.status, 404);
    assert_eq!(lock(&emulator, "q").await.status, 201);
}

#[tokio::test]
async fn what_is_taken_is_gone() {
    let emulator = with_queue().await;
    post(&emulator, "q", "hello").await;
    let taken = take(&emulator, "q").await;
    assert_eq!((taken.status, taken.body.as_str(), taken.header("location")), (200, "hello", None));
    assert!(taken.broker_properties().get("LockToken").is_none());
    assert_eq!(take(&emulator, "q").await.status, 204);
}

#[tokio::test]
async fn a_waiting_client_is_woken_by_a_message() {
    let emulator = with_queue().await;
    let mut waiting = TcpStream::connect(emulator.http_addr()).await.unwrap();
    send(&mut waiting, "POST", "/q/messages/head?timeout=60", &[], "").await;
    assert!(timeout(Duration::from_millis(50), waiting.readable()).await.is_err(), "it waits");
    post(&emulator, "q", "hello").await;
    let answer = timeout(Duration::from_secs(300), receive(&mut waiting)).await.expect("woken").expect("an answer");
    assert_eq!((answer.status, answer.body.as_str()), (201, "hello"));
}

#[tokio::test]
async fn a_client_that_left_while_it_waited_takes_nothing() {
    let emulator = with_queue().await;
    let mut waiting = TcpStream::connect(emulator.http_addr()).await.unwrap();
    send(&mut waiting, "DELETE", "/q/messages/head?timeout=60", &[], "").await;
    assert!(timeout(Duration::from_millis(50), waiting.readable()).await.is_err(), "it waits");
    drop(waiting);
    // The server hears of it some time after it happened, but has by the time another connection was served three
    // times.
    for _ in 0..3 {
        assert_eq!(take(&emulator, "q").await.status, 204);
    }
    post(&emulator, "q", "hello").await;
    assert_eq!(take(&emulator, "q").await.body, "hello");
}

#[tokio::test]
async fn a_batch_is_all_or_nothing() {
    let emulator = with_queue().await;
    let at = emulator.http_addr();
    let batch = r#"[{"Body":"one","UserProperties":{"Colour":"red"}},{"Body":"two","BrokerProperties":{"Label":"l"}}]"#;
    assert_eq!(ask(at, "POST", "/q/messages", &[JSON_BATCH], batch).await.status, 201);
    let first = take(&emulator, "q").await;
    assert_eq!((first.body.as_str(), first.header("Colour")), ("one", Some("\"red\"")));
    let second = take(&emulator, "q").await;
    assert_eq!((second.body.as_str(), &second.broker_properties()["Label"]), ("two", &"l".into()));

    let half = r#"[{"Body":"one"},{"Body":2}]"#;
    assert_eq!(ask(at, "POST", "/q/messages", &[JSON_BATCH], half).await.status, 400);
    let large = serde_json::json!([{ "Body": "x".repeat(200_000) }, { "Body": "y".repeat(200_000) }]).to_string();
    assert_eq!(ask(at, "POST", "/q/messages", &[JSON_BATCH], &large).await.status, 413);
    assert_eq!(take(&emulator, "q").await.status, 204);
}

#[tokio::test]
async fn topics_subscriptions_and_dead_letters_have_messages() {
    let emulator = emulator().await;
    let at = emulator.http_addr();
    let broker = emulator.broker();
    broker.create_topic("t", TopicSettings::default()).unwrap();
    let once = SubscriptionSettings { max_delivery_count: 1, ..SubscriptionSettings::default() };
    broker.create_subscription("t", "s", once, None).unwrap();
    post(&emulator, "t", "hello").await;
    let locked = lock(&emulator, "t/subscriptions/s").await;
    assert_eq!(locked.status, 201);
    assert!(location(&locked).starts_with("/t/Subscriptions/s/messages/1/"), "{}", location(&locked));
    assert_eq!(ask(at, "PUT", &location(&locked), &[], "").await.status, 200);

    let dead = lock(&emulator, "t/Subscriptions/s/$DeadLetterQueue").await;
    assert_eq!((dead.status, dead.body.as_str()), (201, "hello"));
    assert_eq!(dead.header("DeadLetterReason"), Some("\"MaxDeliveryCountExceeded\""));
    assert_eq!(ask(at, "DELETE", &location(&dead), &[], "").await.status, 200);
    assert_eq!(lock(&emulator, "t/Subscriptions/s/$DeadLetterQueue").await.status, 204);
}

#[tokio::test]
async fn what_cannot_be_is_refused() {
    let emulator = with_queue().await;
    let at = emulator.http_addr();
    let sessions = QueueSettings { requires_session: true, ..QueueSettings::default() };
    emulator.broker().create_queue("sessions", sessions).unwrap();
    emulator.broker().create_topic("t", TopicSettings::default()).unwrap();
    for (status, method, path) in [
        (404, "POST", "/none/messages"),
        (404, "POST", "/none/messages/head"),
        (404, "DELETE", "/none/messages/head"),
        (400, "POST", "/sessions/messages"),
        (400, "POST", "/sessions/messages/head"),
        (400, "POST", "/t/messages/head"),
        (400, "POST", "/q/$DeadLetterQueue/messages"),
        (400, "POST", "/q/messages/head?timeout=soon"),
        (400, "POST", "/q/messages/head?timeout=-1"),
        (400, "POST", "/q/messages/1/no-token"),
        (404, "DELETE", "/q/messages/1/7da9cfd5-40d5-4bb1-8d64-ec5a52e1c547"),
    ] {
        assert_eq!(ask(at, method, path, &[], "").await.status, status, "{method} {path}");
    }
    for properties in ["x", "[]", r#"{"TimeToLive":"soon"}"#, "{"] {
        let answer = ask(at, "POST", "/q/messages", &[("BrokerProperties", properties)], "").await;
        assert_eq!(answer.status, 400, "{properties}");
    }
    let large = "x".repeat(300_000);
    assert_eq!(ask(at, "POST", "/q/messages", &[], &large).await.status, 413);
    assert_eq!(take(&emulator, "q").await.status, 204);
}
