//! A message of somebody else's, with headers that fill a frame: its copy must not end the connection that all publish on.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use polybus_core::{Bus, BusOptions, QueueSpec, Registry, Source, Topology};
use polybus_rabbitmq::{
    Native, RabbitmqConnector,
    lapin::{
        BasicProperties,
        options::BasicPublishOptions,
        types::{AMQPValue, FieldTable},
    },
};
use tokio::time::timeout;

/// What a frame holds, less 600 bytes: room for the reason, not for the longest detail.
const HEADER: usize = 131_072 - 600;

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_does_not_fit_a_frame_loses_its_detail() {
    let Ok(url) = std::env::var("POLYBUS_RABBITMQ_URL") else {
        let required = std::env::var("POLYBUS_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|s| s.trim() == "rabbitmq"), "POLYBUS_RABBITMQ_URL is required, but not set");
        eprintln!("SKIPPED: POLYBUS_RABBITMQ_URL is not set");
        return;
    };
    let name = format!("headers-{}", uuid::Uuid::now_v7().simple());
    let driver = Registry::new().with(RabbitmqConnector).connect(&url).await.unwrap();
    let topology = Topology::new().queue("q", QueueSpec::new().physical(&name));
    let bus = Bus::new(driver, BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();

    let connection = bus.native::<Native>().unwrap().connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let mut headers = FieldTable::default();
    headers.insert("filler".into(), AMQPValue::LongString("x".repeat(HEADER).into()));
    let properties = BasicProperties::default().with_headers(headers);
    let publish =
        channel.basic_publish("".into(), (&*name).into(), BasicPublishOptions::default(), b"data", properties);
    publish.await.unwrap().await.unwrap();

    let q = Source::queue("q");
    let mut sub = bus.subscribe(q.clone()).open().await.unwrap();
    let foreign = timeout(Duration::from_secs(20), sub.next()).await.expect("it arrives").unwrap().unwrap();
    foreign.dead_letter("poison", "y".repeat(2048)).await.unwrap();

    let mut dead = bus.subscribe(q.dead_letters()).open().await.unwrap();
    let letter = timeout(Duration::from_secs(20), dead.next()).await.expect("it is there").unwrap().unwrap();
    let info = letter.dead_letter_info().unwrap();
    assert_eq!((info.reason.as_deref(), info.detail.as_deref()), (Some("poison"), None));
    assert_eq!(&letter.envelope().data[..], b"data");
    letter.ack().await.unwrap();
    bus.delete().await.unwrap();
    bus.close().await.unwrap();
}
