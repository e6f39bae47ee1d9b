//! Calls of a working bus that fail as a whole, in part, or without an answer.
#![allow(clippy::unwrap_used, dead_code)]

#[path = "wire/scripted_server.rs"]
mod scripted_server;

use std::time::Duration;

use polybus_aws::AwsConnector;
use polybus_core::{Address, Bus, BusOptions, Envelope, ErrorKind, QueueSpec, Registry, RetrySafety, Source, Topology};
use scripted_server::{ScriptedAnswer, ScriptedServer, all_well, has_credentials, message};
use serde_json::{Value, json};

async fn bus(server: &ScriptedServer, ordered: bool) -> Bus {
    let driver = Registry::new().with(AwsConnector).connect(&server.url).await.unwrap();
    let topology = Topology::new().queue("q", QueueSpec::new().ordered(ordered));
    Bus::new(driver, BusOptions::topology(topology)).unwrap()
}

fn sent(input: &Value) -> ScriptedAnswer {
    let done = input["Entries"].as_array().unwrap().iter();
    let done = done.map(|e| json!({ "Id": e["Id"], "MessageId": "m", "MD5OfMessageBody": "" }));
    ScriptedAnswer::Ok(json!({ "Successful": done.collect::<Vec<_>>(), "Failed": [] }))
}

fn envelopes(n: usize) -> impl Iterator<Item = Envelope> {
    (0..n).map(|i| Envelope::new("a.b", i.to_string()).id(i.to_string()).key(format!("k{i}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_that_are_withdrawn_end_a_subscription_and_fail_publishes() {
    if !has_credentials("rights_that_are_withdrawn_end_a_subscription_and_fail_publishes") {
        return;
    }
    for (status, code, kind, word) in [
        (403, "AccessDenied", ErrorKind::PermissionDenied, "policies"),
        (400, "QueueDoesNotExist", ErrorKind::NotFound, "the region"),
        (400, "KmsAccessDenied", ErrorKind::PermissionDenied, "key"),
    ] {
        let server = ScriptedServer::new(move |operation, n, input| match (operation, n) {
            ("ReceiveMessage" | "SendMessageBatch", 1..) => ScriptedAnswer::Error(status, code, "no longer"),
            ("ReceiveMessage", 0) => ScriptedAnswer::Ok(json!({ "Messages": [message("1")] })),
            ("SendMessageBatch", 0) => sent(input),
            _ => all_well(input),
        })
        .await;
        let bus = bus(&server, false).await;
        let to = Address::queue("q");
        bus.publish(&to, Envelope::new("a.b", "1")).await.unwrap();
        let e = bus.publish(&to, Envelope::new("a.b", "2")).await.unwrap_err();
        assert!((e.kind(), e.retry()) == (kind, RetrySafety::Never) && e.to_string().contains(word), "{code}: {e}");
        let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
        drop(sub.next().await.unwrap().unwrap());
        let ended = tokio::time::timeout(Duration::from_secs(60), sub.next()).await.unwrap().unwrap();
        let e = ended.map(|_| ()).unwrap_err();
        assert!(e.kind() == kind && e.context("source") == Some("queue:q"), "{code}: {e}");
        assert!(sub.next().await.is_none(), "once, and then the end");
        assert!(!format!("{e:?}").contains("AKID"));
        bus.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_entry_of_a_batch_has_its_own_result() {
    if !has_credentials("each_entry_of_a_batch_has_its_own_result") {
        return;
    }
    let server = ScriptedServer::new(|operation, _, input| match operation {
        "SendMessageBatch" => {
            let mut successful = Vec::new();
            let mut failed = Vec::new();
            for entry in input["Entries"].as_array().unwrap() {
                let id = &entry["Id"];
                let is = |n: usize| entry["MessageBody"].as_str().unwrap().contains(&format!("\"id\":\"{n}\""));
                let refused = |code: &str| json!({ "Id": id, "SenderFault": true, "Code": code, "Message": "no" });
                if is(1) {
                    failed.push(refused("InvalidMessageContents"));
                } else if is(2) {
                    failed.push(refused("AccessDenied"));
                } else if !is(3) {
                    successful.push(json!({ "Id": id, "MessageId": "m", "MD5OfMessageBody": "" }));
                }
            }
            ScriptedAnswer::Ok(json!({ "Successful": successful, "Failed": failed }))
        }
        _ => all_well(input),
    })
    .await;
    let bus = bus(&server, false).await;
    let results = bus.publish_all(Address::queue("q"), envelopes(5)).await;
    let kinds: Vec<_> = results.iter().map(|r| r.as_ref().err().map(|e| (e.kind(), e.retry()))).collect();
    let wanted = [
        None,
        Some((ErrorKind::InvalidArgument, RetrySafety::Never)),
        Some((ErrorKind::PermissionDenied, RetrySafety::Never)),
        // The answer says nothing of it.
        Some((ErrorKind::Unexpected, RetrySafety::MayDuplicate)),
        None,
    ];
    assert_eq!(kinds, wanted);
    bus.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_without_an_answer_is_made_again_with_the_same_ids() {
    if !has_credentials("a_publish_without_an_answer_is_made_again_with_the_same_ids") {
        return;
    }
    let server = ScriptedServer::new(|operation, n, input| match (operation, n) {
        ("SendMessageBatch", 0) => ScriptedAnswer::Lost,
        ("SendMessageBatch", 1) => ScriptedAnswer::Error(503, "ServiceUnavailable", "later"),
        ("SendMessageBatch", _) => sent(input),
        _ => all_well(input),
    })
    .await;
    let bus = bus(&server, true).await;
    for result in bus.publish_all(Address::queue("q"), envelopes(3)).await {
        result.unwrap();
    }
    bus.close().await.unwrap();
    let sends = server.requests("SendMessageBatch");
    // SQS FIFO drops what it had stored: all that it goes by is the same.
    let ids = |send: &Value| {
        let entries = send["Entries"].as_array().unwrap().iter();
        let mut ids: Vec<_> = entries
            .map(|e| ["MessageGroupId", "MessageDeduplicationId", "MessageBody"].map(|n| e[n].clone()))
            .collect();
        ids.sort_by_key(|[group, ..]| group.to_string());
        ids
    };
    assert!(sends.len() == 3 && ids(&sends[0]).len() == 3);
    assert_eq!(ids(&sends[0]), ids(&sends[1]));
    assert_eq!(ids(&sends[0]), ids(&sends[2]));
}

#[tokio::test(flavor = "multi_thread")]
async fn acks_without_an_answer_are_made_again_and_each_is_told_its_own() {
    if !has_credentials("acks_without_an_answer_are_made_again_and_each_is_told_its_own") {
        return;
    }
    let server = ScriptedServer::new(|operation, n, input| match (operation, n) {
        ("ReceiveMessage", 0) => ScriptedAnswer::Ok(json!({ "Messages": [message("1"), message("2")] })),
        ("ReceiveMessage", _) => ScriptedAnswer::Ok(json!({})),
        ("DeleteMessageBatch", 0) => ScriptedAnswer::Lost,
        ("DeleteMessageBatch", _) => {
            let entries = input["Entries"].as_array().unwrap();
            let (lost, done): (Vec<_>, Vec<_>) = entries.iter().partition(|e| e["ReceiptHandle"] == "receipt-2");
            let lost =
                lost.iter().map(|e| json!({ "Id": e["Id"], "SenderFault": true, "Code": "ReceiptHandleIsInvalid" }));
            let done = done.iter().map(|e| json!({ "Id": e["Id"] }));
            ScriptedAnswer::Ok(json!({ "Successful": done.collect::<Vec<_>>(), "Failed": lost.collect::<Vec<_>>() }))
        }
        _ => all_well(input),
    })
    .await;
    let bus = bus(&server, false).await;
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    let (one, two) = (sub.next().await.unwrap().unwrap(), sub.next().await.unwrap().unwrap());
    let (one, two) = tokio::join!(one.ack(), two.ack());
    one.unwrap();
    let (e, back) = two.unwrap_err().into_parts();
    assert!(e.kind() == ErrorKind::LockLost && back.is_none(), "{e}");
    sub.close().await.unwrap();
    bus.close().await.unwrap();
    let deletes = server.requests("DeleteMessageBatch");
    assert_eq!(deletes[0]["Entries"].as_array().unwrap().len(), 2, "one call for both: {deletes:?}");
    assert_eq!(deletes[0], deletes[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_whose_delete_fails_is_copied_once() {
    if !has_credentials("a_dead_letter_whose_delete_fails_is_copied_once") {
        return;
    }
    let server = ScriptedServer::new(|operation, n, input| match (operation, n) {
        ("ReceiveMessage", 0) => ScriptedAnswer::Ok(json!({ "Messages": [message("1")] })),
        ("ReceiveMessage", _) => ScriptedAnswer::Ok(json!({})),
        ("SendMessageBatch", _) => sent(input),
        ("DeleteMessageBatch", 0) => ScriptedAnswer::Lost,
        ("DeleteMessageBatch", 1 | 2) => ScriptedAnswer::Error(503, "ServiceUnavailable", "later"),
        _ => all_well(input),
    })
    .await;
    let bus = bus(&server, false).await;
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    sub.next().await.unwrap().unwrap().dead_letter("poison", "").await.unwrap();
    sub.close().await.unwrap();
    bus.close().await.unwrap();
    assert_eq!(server.requests("SendMessageBatch").len(), 1);
    assert_eq!(server.requests("DeleteMessageBatch").len(), 4);
}
