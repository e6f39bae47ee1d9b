//! A healthy `declare` logs nothing above debug. This is a test binary of its own, since the log is that of the
//! process.
#![allow(clippy::unwrap_used)]

mod broker;

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use broker::url;
use polybus_core::{Bus, BusOptions, QueueSpec, Registry, SubscriptionSpec, TopicSpec, Topology};
use polybus_rabbitmq::RabbitmqConnector;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declare_on_a_fresh_broker_logs_no_errors() {
    let Some(url) = url("rabbitmq") else { return };
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::INFO);
    tracing_subscriber::fmt::SubscriberBuilder::with_ansi(subscriber, false).with_writer(move || writer.clone()).init();
    let name = format!("quiet-{}", uuid::Uuid::now_v7().simple());
    let topic = TopicSpec::new().physical(format!("{name}-t")).subscription("s", SubscriptionSpec::new());
    let topology = Topology::new()
        .queue("q", QueueSpec::new().physical(&name))
        .queue("o", QueueSpec::new().physical(format!("{name}-o")).ordered(true))
        .topic("t", topic);
    let driver = Registry::new().with(RabbitmqConnector).connect(&url).await.unwrap();
    let bus = Bus::new(driver, BusOptions::topology(topology)).unwrap();
    for _ in 0..2 {
        bus.declare().await.unwrap();
    }
    bus.delete().await.unwrap();
    bus.close().await.unwrap();
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(!log.contains("ERROR") && !log.contains("WARN"), "{log}");
    // Errors that are no answers are told as before.
    tracing::error!("this one is");
}
