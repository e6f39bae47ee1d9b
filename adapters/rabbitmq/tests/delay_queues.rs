//! The delay queues that `declare` makes.
#![allow(clippy::unwrap_used)]

mod broker;

use std::time::Duration;

use broker::url;
use polybus_core::{Bus, BusOptions, QueueSpec, Registry, Topology};
use polybus_rabbitmq::{
    Native, RabbitmqConnector,
    lapin::{options::QueueDeclareOptions, types::FieldTable},
};

async fn bus(url: &str, spec: QueueSpec) -> Bus {
    let driver = Registry::new().with(RabbitmqConnector).connect(url).await.unwrap();
    Bus::new(driver, BusOptions::topology(Topology::new().queue("q", spec))).unwrap()
}

async fn exists(bus: &Bus, queue: &str) -> bool {
    let connection = bus.native::<Native>().unwrap().connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.into(), options, FieldTable::default()).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn declare_makes_those_that_the_topology_names() {
    let Some(url) = url("rabbitmq") else { return };
    let name = format!("delays-{}", uuid::Uuid::now_v7().simple());
    let spec = || QueueSpec::new().physical(&name);
    let delay = |ms: u64| format!("{name}.delay.{ms}");

    let unnamed = bus(&url, spec()).await;
    unnamed.declare().await.unwrap();
    assert!(exists(&unnamed, &name).await && !exists(&unnamed, &delay(1_000)).await);

    // Beside a queue that is there already, and twice.
    let named = bus(&url, spec().retry([1, 5].map(Duration::from_secs))).await;
    let report = named.declare().await.unwrap();
    assert!(report.created.is_empty() && report.differences.is_empty(), "{report:?}");
    assert_eq!(named.declare().await.unwrap(), report);
    assert!(exists(&named, &delay(1_000)).await && exists(&named, &delay(5_000)).await);
    assert!(!exists(&named, &delay(30_000)).await);

    named.delete().await.unwrap();
    assert!(!exists(&named, &delay(1_000)).await && !exists(&named, &name).await);
    named.close().await.unwrap();
    unnamed.close().await.unwrap();
}
