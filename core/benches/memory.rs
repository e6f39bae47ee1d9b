//! Publish + deliver + ack through the whole of core on the memory driver: one producer, one consumer, 256 bytes.
//!
//! `cargo bench -p polybus-core --bench memory`; `-- N` sets the messages of a round.
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Registry, Source, Topology};

const ROUNDS: usize = 5;

async fn round(bus: &Bus, n: usize) -> f64 {
    let publisher = bus.publisher(Address::queue("q")).await.unwrap();
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(256).open().await.unwrap();
    let payload = bytes::Bytes::from(vec![b'x'; 256]);
    let started = Instant::now();
    let producer = tokio::spawn(async move {
        for _ in 0..n {
            publisher.publish(Envelope::new("bench.message", payload.clone())).await.unwrap();
        }
    });
    for _ in 0..n {
        sub.next().await.unwrap().unwrap().ack().await.unwrap();
    }
    let took = started.elapsed();
    producer.await.unwrap();
    sub.close().await.unwrap();
    n as f64 / took.as_secs_f64()
}

fn main() {
    let n = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(500_000);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let driver = Registry::new().connect("memory://").await.unwrap();
        let topology = Topology::new().queue("q", QueueSpec::new());
        let bus = Bus::new(driver, BusOptions::topology(topology)).unwrap();
        bus.declare().await.unwrap();
        let mut rates = Vec::new();
        for i in 0..=ROUNDS {
            let rate = round(&bus, n).await;
            if i > 0 {
                println!("round {i}: {rate:.0} messages/s");
                rates.push(rate);
            }
        }
        rates.sort_by(f64::total_cmp);
        println!("median: {:.0} messages/s published, delivered and acked", rates[ROUNDS / 2]);
    });
}
