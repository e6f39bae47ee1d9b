//! Messages of the AWS extended client libraries as they come from SQS and SNS, with a folder in the bucket's place.
#![allow(clippy::unwrap_used)]

mod support;

use std::{sync::Arc, time::Duration};

use polybus_aws::{AwsConnector, Native, aws_sdk_sns, aws_sdk_sqs};
use polybus_claims::object_store::local::LocalFileSystem;
use polybus_core::{
    Bus, BusOptions, Envelope, HandlerContext, HandlerError, QueueSpec, Registry, Source, SubscriptionSpec, TopicSpec,
    Topology,
};
use support::*;
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(120);
const POINTER: &str =
    r#"["software.amazon.payloadoffloading.PayloadS3Pointer",{"s3BucketName":"large","s3Key":"k/1"}]"#;
const BODY: &str = "a body of more than 256 KiB, größer";

#[tokio::test(flavor = "multi_thread")]
async fn a_large_message_of_an_extended_client_is_redeemed() {
    let Some(url) = polybus_conformance::broker_url("aws", "POLYBUS_AWS_URL") else { return };
    let prefix = format!("claims-{}", std::process::id());
    let topic = TopicSpec::new().subscription("s", SubscriptionSpec::new());
    let topology = Topology::new().prefix(&prefix).queue("q", QueueSpec::new()).topic("t", topic);
    let driver = Registry::new().with(AwsConnector).connect(&url).await.unwrap();
    let bus = Bus::new(driver, BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();

    let bucket = tempfile::tempdir().unwrap();
    std::fs::create_dir(bucket.path().join("k")).unwrap();
    std::fs::write(bucket.path().join("k/1"), BODY).unwrap();
    let bucket_store = Arc::new(LocalFileSystem::new_with_prefix(bucket.path()).unwrap());
    let claims = claims().0.redeem_foreign("large", "k/", bucket_store);

    send(&bus, &prefix).await;
    for (source, wanted) in [(Source::queue("q"), 2), (Source::subscription("t", "s"), 1)] {
        let (came, mut coming) = mpsc::unbounded_channel();
        let handler = claims.handler(move |_cx: HandlerContext, msg: Envelope| {
            came.send(msg).unwrap();
            std::future::ready(Ok::<_, HandlerError>(()))
        });
        let all = async {
            for _ in 0..wanted {
                let msg = tokio::time::timeout(PATIENCE, coming.recv()).await.unwrap().unwrap();
                assert_eq!(std::str::from_utf8(&msg.data).unwrap(), BODY, "{source}");
                assert_eq!(msg.headers.get("tenant"), Some("acme"), "{source}");
                assert_eq!(msg.headers.get("ExtendedPayloadSize"), None, "{source}");
            }
        };
        let report = bus.worker(&source).with_graceful_shutdown(all).run(handler).await.unwrap();
        assert_eq!(report.succeeded, wanted, "{source}");
    }
    bus.delete().await.unwrap();
    bus.close().await.unwrap();
}

/// To the queue as the library does, and as SNS does without raw delivery; to the topic as the library does.
async fn send(bus: &Bus, prefix: &str) {
    let native = bus.native::<Native>().unwrap();
    let queue = native.queue_url(&format!("{prefix}_q")).await.unwrap();
    let sqs = |kind: &str, value: &str| {
        let attribute = aws_sdk_sqs::types::MessageAttributeValue::builder().data_type(kind).string_value(value);
        attribute.build().unwrap()
    };
    let call = native.sqs().send_message().queue_url(&queue).message_body(POINTER);
    let call = call.message_attributes("ExtendedPayloadSize", sqs("Number", "300000"));
    call.message_attributes("tenant", sqs("String", "acme")).send().await.unwrap();

    let notification = serde_json::json!({
        "Type": "Notification", "MessageId": "sns-1", "TopicArn": "arn:aws:sns:us-east-1:1:t", "Message": POINTER,
        "Timestamp": "2026-03-01T10:00:00.123Z",
        "MessageAttributes": {
            "ExtendedPayloadSize": { "Type": "Number", "Value": "300000" },
            "tenant": { "Type": "String", "Value": "acme" },
        },
    });
    native.sqs().send_message().queue_url(&queue).message_body(notification.to_string()).send().await.unwrap();

    let sns = |kind: &str, value: &str| {
        let attribute = aws_sdk_sns::types::MessageAttributeValue::builder().data_type(kind).string_value(value);
        attribute.build().unwrap()
    };
    let topic = native.topic_arn(&format!("{prefix}_t")).await.unwrap();
    let call = native.sns().publish().topic_arn(topic).message(POINTER);
    let call = call.message_attributes("ExtendedPayloadSize", sns("Number", "300000"));
    call.message_attributes("tenant", sns("String", "acme")).send().await.unwrap();
}
