//! The same event in three versions, a bus for it, and workers.

use std::sync::{Arc, Mutex};

use polybus_core::{
    Address, Bus, BusOptions, Envelope, Event, Handler, QueueSpec, Result, Source, Topology, memory::MemoryDriver,
    worker::WorkerReport,
};
use polybus_patterns::types::{Types, UpcastError};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What no log, error or dead letter may show.
pub(crate) const SECRET: &str = "hush-4711";

macro_rules! event {
    ($name:ident, $event_type:literal, $version:literal, $($field:ident: $of:ty),*) => {
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub(crate) struct $name {
            $(pub(crate) $field: $of),*
        }

        impl Event for $name {
            const TYPE: &'static str = $event_type;
            const VERSION: u32 = $version;
        }
    };
}

event!(PlacedV1, "order.placed", 1, order: String, euros: u64);
event!(PlacedV2, "order.placed", 2, order: String, cents: u64);
event!(PlacedV3, "order.placed", 3, order: String, cents: u64, currency: String);
event!(Paid, "order.paid", 1, order: String);

pub(crate) fn v1(order: &str) -> PlacedV1 {
    PlacedV1 { order: order.into(), euros: 12 }
}

pub(crate) fn v2(order: &str) -> PlacedV2 {
    PlacedV2 { order: order.into(), cents: 1200 }
}

pub(crate) fn v3(order: &str) -> PlacedV3 {
    PlacedV3 { order: order.into(), cents: 1200, currency: "EUR".into() }
}

pub(crate) fn cents(mut json: Value, _: &Envelope) -> Result<Value, UpcastError> {
    let euros = json["euros"].as_u64().and_then(|euros| euros.checked_mul(100)).ok_or("no euros")?;
    json["cents"] = euros.into();
    Ok(json)
}

pub(crate) fn currency(mut json: Value, _: &Envelope) -> Result<Value, UpcastError> {
    json["currency"] = "EUR".into();
    Ok(json)
}

/// What the code of version 2 knows.
pub(crate) fn types_v2() -> Types {
    Types::new().event::<PlacedV2>().upcast::<PlacedV2>(1, cents)
}

/// What the code of version 3 knows.
pub(crate) fn types_v3() -> Types {
    Types::new().event::<PlacedV3>().upcast::<PlacedV3>(1, cents).upcast::<PlacedV3>(2, currency)
}

pub(crate) fn orders() -> Source {
    Source::queue("orders")
}

pub(crate) async fn bus(queue: QueueSpec) -> (Bus, Arc<MemoryDriver>) {
    let driver = Arc::new(MemoryDriver::new());
    let topology = Topology::new().queue("orders", queue);
    let bus = Bus::new(driver.clone(), BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();
    (bus, driver)
}

pub(crate) async fn publish(bus: &Bus, message: Envelope) {
    bus.publish(Address::queue("orders"), message).await.unwrap();
}

/// Lets a worker handle all there is.
pub(crate) async fn work(bus: &Bus, handler: impl Handler) -> WorkerReport {
    let idle = idle(bus.clone());
    bus.worker(orders()).with_graceful_shutdown(idle).run(handler).await.unwrap()
}

/// Starts a worker that stops by itself, if it starts.
pub(crate) async fn start(bus: &Bus, handler: impl Handler) -> Result<WorkerReport> {
    let later = tokio::time::sleep(std::time::Duration::from_secs(60));
    bus.worker(orders()).with_graceful_shutdown(later).run(handler).await
}

async fn idle(bus: Bus) {
    let began = tokio::time::Instant::now();
    loop {
        assert!(began.elapsed() < std::time::Duration::from_secs(24 * 3600), "the bus is never idle");
        // The clock is paused: this is no time but a turn of everybody else.
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        let stats = bus.stats(orders()).await.unwrap();
        if [stats.ready, stats.in_flight, stats.delayed].into_iter().all(|n| n == Some(0)) {
            return;
        }
    }
}

/// Reasons and details of all dead letters, which are taken away.
pub(crate) async fn dead_letters(bus: &Bus) -> Vec<(String, String)> {
    let dead = bus.stats(orders()).await.unwrap().dead_lettered.unwrap();
    let mut letters = bus.subscribe(orders().dead_letters()).open().await.unwrap();
    let mut all = Vec::new();
    for _ in 0..dead {
        let letter = letters.next().await.unwrap().unwrap();
        let info = letter.dead_letter_info().unwrap();
        all.push((
            info.reason.as_deref().unwrap_or_default().into(),
            info.detail.as_deref().unwrap_or_default().into(),
        ));
        letter.ack().await.unwrap();
    }
    all
}

/// What handlers have seen, in order.
pub(crate) type Seen = Arc<Mutex<Vec<String>>>;

pub(crate) fn see(seen: &Seen, text: impl Into<String>) {
    seen.lock().unwrap().push(text.into());
}

pub(crate) fn seen(seen: &Seen) -> Vec<String> {
    std::mem::take(&mut *seen.lock().unwrap())
}

/// Redrives all dead letters. Answers how many.
pub(crate) async fn redrive(bus: &Bus) -> u64 {
    bus.redrive(orders(), |_| true, usize::MAX).await.unwrap().moved
}
