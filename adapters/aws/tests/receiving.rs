//! Receives that fail in ways that no emulator shows: a lost answer, a queue with too much in flight.
#![allow(clippy::unwrap_used, dead_code)]

#[path = "wire/scripted_server.rs"]
mod scripted_server;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use metrics::{Counter, CounterFn, Gauge, Histogram, Key, KeyName, Metadata, SharedString, Unit};
use polybus_aws::AwsConnector;
use polybus_core::{Bus, BusOptions, QueueSpec, Registry, Source, Subscription, Topology};
use scripted_server::{ScriptedAnswer, ScriptedServer, all_well, has_credentials, message};
use serde_json::{Value, json};

async fn open(server: &ScriptedServer, ordered: bool) -> (Bus, Subscription) {
    let driver = Registry::new().with(AwsConnector).connect(&server.url).await.unwrap();
    let topology = Topology::new().queue("q", QueueSpec::new().ordered(ordered));
    let bus = Bus::new(driver, BusOptions::topology(topology)).unwrap();
    let sub = bus.subscribe(Source::queue("q")).prefetch(40).open().await.unwrap();
    (bus, sub)
}

async fn next(sub: &mut Subscription) -> String {
    let next = tokio::time::timeout(Duration::from_secs(120), sub.next()).await.unwrap();
    let delivery = next.unwrap().unwrap();
    let id = delivery.envelope().id.to_string();
    delivery.ack().await.unwrap();
    id
}

fn messages(of: &[&str]) -> ScriptedAnswer {
    ScriptedAnswer::Ok(json!({ "Messages": of.iter().map(|id| message(id)).collect::<Vec<_>>() }))
}

/// As a long poll does, though sooner.
fn nothing() -> ScriptedAnswer {
    std::thread::sleep(Duration::from_millis(20));
    ScriptedAnswer::Ok(json!({}))
}

fn id(receive: &Value) -> Option<&str> {
    receive["ReceiveRequestAttemptId"].as_str()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_asked_for_again_by_its_id() {
    if !has_credentials("a_lost_answer_is_asked_for_again_by_its_id") {
        return;
    }
    let server = ScriptedServer::new(|operation, n, input| match (operation, n) {
        ("ReceiveMessage", 0) => ScriptedAnswer::Lost,
        ("ReceiveMessage", 1) => ScriptedAnswer::Error(500, "InternalFailure", "who knows"),
        ("ReceiveMessage", 2) => messages(&["1"]),
        ("ReceiveMessage", 3) => ScriptedAnswer::Error(403, "RequestThrottled", "slower"),
        ("ReceiveMessage", 4) => messages(&["2"]),
        ("ReceiveMessage", _) => nothing(),
        _ => all_well(input),
    })
    .await;
    let (bus, mut sub) = open(&server, true).await;
    assert_eq!(next(&mut sub).await, "1");
    assert_eq!(next(&mut sub).await, "2");
    bus.close().await.unwrap();
    let receives = server.requests("ReceiveMessage");
    let same = |a: usize, b: usize| id(&receives[a]).is_some() && id(&receives[a]) == id(&receives[b]);
    assert!(same(0, 1) && same(1, 2), "what was lost is asked for as it was: {receives:#?}");
    assert_eq!(receives[0], receives[2]);
    assert!(!same(2, 3) && !same(3, 4), "what was answered, or surely not done, is not: {receives:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standard_queue_takes_no_id() {
    if !has_credentials("a_standard_queue_takes_no_id") {
        return;
    }
    let server = ScriptedServer::new(|operation, n, input| match (operation, n) {
        ("ReceiveMessage", 0) => ScriptedAnswer::Lost,
        ("ReceiveMessage", 1) => messages(&["1"]),
        ("ReceiveMessage", _) => nothing(),
        _ => all_well(input),
    })
    .await;
    let (bus, mut sub) = open(&server, false).await;
    assert_eq!(next(&mut sub).await, "1");
    bus.close().await.unwrap();
    assert!(server.requests("ReceiveMessage").iter().all(|receive| id(receive).is_none()));
}

#[tokio::test]
async fn too_much_in_flight_makes_receives_pause_and_is_counted() {
    if !has_credentials("too_much_in_flight_makes_receives_pause_and_is_counted") {
        return;
    }
    let counts = CounterRecorder::default();
    let _installed = metrics::set_default_local_recorder(&counts);
    let server = ScriptedServer::new(|operation, n, input| match (operation, n) {
        ("ReceiveMessage", 0..3) => ScriptedAnswer::Error(403, "OverLimit", "Too many messages in flight"),
        ("ReceiveMessage", 3) => messages(&["1"]),
        ("ReceiveMessage", _) => nothing(),
        _ => all_well(input),
    })
    .await;
    let (bus, mut sub) = open(&server, false).await;
    let began = Instant::now();
    assert_eq!(next(&mut sub).await, "1");
    assert!(began.elapsed() >= Duration::from_millis(25 + 50 + 100), "{:?}", began.elapsed());
    bus.close().await.unwrap();
    assert_eq!(counts.failed("in-flight"), 3);
}

#[tokio::test]
async fn too_much_in_flight_is_noticed_where_sqs_says_nothing() {
    if !has_credentials("too_much_in_flight_is_noticed_where_sqs_says_nothing") {
        return;
    }
    let counts = CounterRecorder::default();
    let _installed = metrics::set_default_local_recorder(&counts);
    let server = ScriptedServer::new(|operation, n, input| match (operation, n) {
        ("ReceiveMessage", 0 | 8) => messages(&[if n == 0 { "held" } else { "1" }]),
        ("ReceiveMessage", _) => nothing(),
        ("GetQueueAttributes", _) => ScriptedAnswer::Ok(json!({ "Attributes": {
            "ApproximateNumberOfMessages": "5", "ApproximateNumberOfMessagesNotVisible": "119900" } })),
        _ => all_well(input),
    })
    .await;
    let (bus, mut sub) = open(&server, false).await;
    let held = sub.next().await.unwrap().unwrap();
    assert_eq!(next(&mut sub).await, "1");
    assert_eq!(counts.failed("in-flight"), 1);
    assert_eq!(server.requests("GetQueueAttributes").len(), 1, "looking costs little");
    drop(held);
    bus.close().await.unwrap();
}

#[tokio::test]
async fn an_empty_queue_is_no_fault() {
    if !has_credentials("an_empty_queue_is_no_fault") {
        return;
    }
    let counts = CounterRecorder::default();
    let _installed = metrics::set_default_local_recorder(&counts);
    let server = ScriptedServer::new(|operation, n, input| match (operation, n) {
        ("ReceiveMessage", 0 | 8) => messages(&[if n == 0 { "held" } else { "1" }]),
        ("ReceiveMessage", _) => nothing(),
        // Nothing waits; later the right to look is missing.
        ("GetQueueAttributes", 0) => ScriptedAnswer::Ok(json!({ "Attributes": {
            "ApproximateNumberOfMessages": "0", "ApproximateNumberOfMessagesNotVisible": "120000" } })),
        ("GetQueueAttributes", _) => ScriptedAnswer::Error(403, "AccessDenied", "no"),
        _ => all_well(input),
    })
    .await;
    let (bus, mut sub) = open(&server, false).await;
    let held = sub.next().await.unwrap().unwrap();
    assert_eq!(next(&mut sub).await, "1");
    assert_eq!(counts.0.lock().unwrap().keys().filter(|name| name.contains("failed")).count(), 0);
    drop(held);
    bus.close().await.unwrap();
}

/// Counters by name and labels.
#[derive(Clone, Default)]
struct CounterRecorder(Arc<Mutex<BTreeMap<String, u64>>>);

struct RecordedCounter(CounterRecorder, String);

impl CounterRecorder {
    fn failed(&self, reason: &str) -> u64 {
        let name = format!("polybus_receive_failed_total backend=aws source=queue:q reason={reason}");
        self.0.lock().unwrap().get(&name).copied().unwrap_or_default()
    }
}

impl CounterFn for RecordedCounter {
    fn increment(&self, by: u64) {
        *self.0.0.lock().unwrap().entry(self.1.clone()).or_default() += by;
    }

    fn absolute(&self, to: u64) {
        self.0.0.lock().unwrap().insert(self.1.clone(), to);
    }
}

impl metrics::Recorder for CounterRecorder {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let labels = key.labels().map(|label| format!(" {}={}", label.key(), label.value()));
        Counter::from_arc(Arc::new(RecordedCounter(self.clone(), key.name().to_owned() + &labels.collect::<String>())))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
