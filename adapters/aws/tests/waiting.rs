//! The prefetch buffer: messages that a poll has brought and nobody has received yet. How they are renewed, and what
//! is done when they are lost.
#![allow(clippy::unwrap_used, dead_code)]

#[path = "wire/scripted_server.rs"]
mod scripted_server;

use std::{sync::Arc, time::Duration};

use polybus_aws::AwsConnector;
use polybus_core::{Bus, BusOptions, QueueSpec, Registry, Source, Subscription, Topology};
use scripted_server::{ScriptedAnswer, ScriptedServer, all_well, has_credentials, message};
use serde_json::{Value, json};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

const RENEWAL: &str = "ChangeMessageVisibilityBatch";
/// What comes at all comes within this, on any machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// What waits is renewed at half of it, and an answer to that may take an eighth.
const LOCK: Duration = Duration::from_secs(32);

/// A consumer that asked for messages and went away before they came.
async fn open(server: &ScriptedServer, gone: &Notify, queue: QueueSpec, renews: bool) -> (Bus, Subscription) {
    let driver = Registry::new().with(AwsConnector).connect(&server.url).await.unwrap();
    let bus = Bus::new(driver, BusOptions::topology(Topology::new().queue("q", queue))).unwrap();
    let builder = bus.subscribe(Source::queue("q")).prefetch(40).renew_locks(renews);
    let mut sub = builder.open().await.unwrap();
    while server.requests("ReceiveMessage").is_empty() {
        assert!(timeout(Duration::from_millis(20), sub.next()).await.is_err());
    }
    gone.notify_one();
    (bus, sub)
}

/// Ids and their groups.
fn messages(of: &[(&str, &str)]) -> Value {
    let messages = of.iter().map(|(id, group)| {
        let mut message = message(id);
        message["Attributes"]["MessageGroupId"] = json!(group);
        message
    });
    json!({ "Messages": messages.collect::<Vec<_>>() })
}

fn nothing() -> ScriptedAnswer {
    std::thread::sleep(Duration::from_millis(20));
    ScriptedAnswer::Ok(json!({}))
}

/// Refuses the renewal of this receipt.
fn refused(input: &Value, receipt: &str) -> ScriptedAnswer {
    let entries = input["Entries"].as_array().unwrap();
    let (lost, kept): (Vec<_>, Vec<_>) = entries.iter().partition(|entry| entry["ReceiptHandle"] == receipt);
    let failed = lost.iter().map(|e| json!({ "Id": e["Id"], "Code": "ReceiptHandleIsInvalid", "SenderFault": true }));
    let done = kept.iter().map(|e| json!({ "Id": e["Id"] }));
    ScriptedAnswer::Ok(json!({ "Successful": done.collect::<Vec<_>>(), "Failed": failed.collect::<Vec<_>>() }))
}

async fn next(sub: &mut Subscription) -> String {
    let next = timeout(PATIENCE, sub.next()).await.unwrap();
    let delivery = next.unwrap().unwrap();
    let id = delivery.envelope().id.to_string();
    delivery.ack().await.unwrap();
    id
}

/// Receipts whose visibility was changed, and to how much.
fn changed(server: &ScriptedServer) -> Vec<(String, u64)> {
    let changes = server.requests(RENEWAL).into_iter().flat_map(|input| input["Entries"].as_array().unwrap().clone());
    let change = |e: Value| (e["ReceiptHandle"].as_str().unwrap().to_owned(), e["VisibilityTimeout"].as_u64().unwrap());
    changes.map(change).collect()
}

/// Those that were given back.
fn given_back(server: &ScriptedServer) -> Vec<String> {
    changed(server).into_iter().filter(|(_, seconds)| *seconds == 0).map(|(receipt, _)| receipt).collect()
}

/// Waits for so many renewals. The second goes out once the first is answered, and what that said has been seen to.
async fn until_renewed(server: &ScriptedServer, times: usize) {
    let renewed = async {
        while server.requests(RENEWAL).len() < times {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, renewed).await.expect("what waits is renewed");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_lost_is_neither_handed_out_nor_given_back() {
    if !has_credentials("what_was_lost_is_neither_handed_out_nor_given_back") {
        return;
    }
    let gone = Arc::new(Notify::new());
    let gate = gone.clone();
    let server = ScriptedServer::new(move |operation, n, input| match (operation, n) {
        ("ReceiveMessage", 0) => ScriptedAnswer::After(gate.clone(), messages(&[("1", "g"), ("2", "g"), ("3", "h")])),
        ("ReceiveMessage", _) => nothing(),
        (RENEWAL, 0) => refused(input, "receipt-1"),
        _ => all_well(input),
    })
    .await;
    let (bus, mut sub) = open(&server, &gone, QueueSpec::new().lock(LOCK), true).await;
    until_renewed(&server, 2).await;
    assert_eq!(next(&mut sub).await, "2", "groups do not count on a standard queue");
    assert_eq!(next(&mut sub).await, "3");
    bus.close().await.unwrap();
    let renewed = ["1", "2", "3", "2", "3"].map(|id| (format!("receipt-{id}"), LOCK.as_secs()));
    assert_eq!(changed(&server), renewed, "what was lost is renewed no more, and nothing is given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_fifo_queue_what_follows_a_lost_message_waits_for_it() {
    if !has_credentials("on_a_fifo_queue_what_follows_a_lost_message_waits_for_it") {
        return;
    }
    let gone = Arc::new(Notify::new());
    let gate = gone.clone();
    let server = ScriptedServer::new(move |operation, n, input| match (operation, n) {
        ("ReceiveMessage", 0) => ScriptedAnswer::After(gate.clone(), messages(&[("1", "g"), ("2", "g"), ("3", "h")])),
        ("ReceiveMessage", 3) => ScriptedAnswer::Ok(messages(&[("1", "g"), ("2", "g")])),
        ("ReceiveMessage", _) => nothing(),
        (RENEWAL, 0) => refused(input, "receipt-1"),
        _ => all_well(input),
    })
    .await;
    let (bus, mut sub) = open(&server, &gone, QueueSpec::new().ordered(true).lock(LOCK), true).await;
    until_renewed(&server, 2).await;
    let order = [next(&mut sub).await, next(&mut sub).await, next(&mut sub).await];
    assert_eq!(order, ["3", "1", "2"]);
    bus.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_renewed_where_that_is_not_wanted() {
    if !has_credentials("nothing_is_renewed_where_that_is_not_wanted") {
        return;
    }
    let gone = Arc::new(Notify::new());
    let gate = gone.clone();
    let server = ScriptedServer::new(move |operation, n, input| match (operation, n) {
        ("ReceiveMessage", 0) => ScriptedAnswer::After(gate.clone(), messages(&[("1", "g")])),
        ("ReceiveMessage", 1) => ScriptedAnswer::Ok(messages(&[("2", "g")])),
        ("ReceiveMessage", _) => nothing(),
        _ => all_well(input),
    })
    .await;
    let lock = Duration::from_secs(8);
    let (bus, mut sub) = open(&server, &gone, QueueSpec::new().lock(lock), false).await;
    // Past the end of its lock, and so past any renewal. The lock counts from the answer's arrival, whenever that was.
    sleep(lock * 2).await;
    assert_eq!(next(&mut sub).await, "2");
    bus.close().await.unwrap();
    assert_eq!(changed(&server), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_when_the_consumer_ends_is_given_back() {
    if !has_credentials("what_waits_when_the_consumer_ends_is_given_back") {
        return;
    }
    for ordered in [false, true] {
        for dropped in [false, true] {
            let gone = Arc::new(Notify::new());
            let gate = gone.clone();
            let server = ScriptedServer::new(move |operation, n, input| match (operation, n) {
                ("ReceiveMessage", 0) => ScriptedAnswer::After(gate.clone(), messages(&[("1", "g"), ("2", "g")])),
                ("ReceiveMessage", _) => nothing(),
                _ => all_well(input),
            })
            .await;
            let queue = QueueSpec::new().ordered(ordered).lock(Duration::from_secs(10));
            let (bus, sub) = open(&server, &gone, queue, true).await;
            // What is renewed has come, and waits.
            until_renewed(&server, 1).await;
            let sub = (!dropped).then_some(sub);
            let back = ["receipt-1", "receipt-2"];
            timeout(PATIENCE, async {
                while dropped && given_back(&server) != back {
                    sleep(Duration::from_millis(10)).await;
                }
            })
            .await
            .unwrap();
            bus.close().await.unwrap();
            assert_eq!(given_back(&server), back, "ordered {ordered}, dropped {dropped}");
            drop(sub);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_given_back_at_once_though_another_is_in_hand() {
    if !has_credentials("what_waits_is_given_back_at_once_though_another_is_in_hand") {
        return;
    }
    let gate = Arc::new(Notify::new());
    let second = gate.clone();
    let server = ScriptedServer::new(move |operation, n, input| match (operation, n) {
        ("ReceiveMessage", 0) => ScriptedAnswer::Ok(messages(&[("1", "g")])),
        ("ReceiveMessage", 1) => ScriptedAnswer::After(second.clone(), messages(&[("2", "g")])),
        ("ReceiveMessage", _) => nothing(),
        _ => all_well(input),
    })
    .await;
    let driver = Registry::new().with(AwsConnector).connect(&server.url).await.unwrap();
    let bus = Bus::new(driver, BusOptions::topology(Topology::new().queue("q", QueueSpec::new()))).unwrap();
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(40).open().await.unwrap();
    let first = timeout(PATIENCE, sub.next()).await.unwrap().unwrap().unwrap();
    gate.notify_one();
    // Whether it has come yet or comes after the end makes no difference.
    drop(sub);
    timeout(PATIENCE, async {
        while given_back(&server) != ["receipt-2"] {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("given back while the first is in hand");
    first.ack().await.unwrap();
    bus.close().await.unwrap();
}
