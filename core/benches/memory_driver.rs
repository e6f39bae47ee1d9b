//! How fast the memory driver alone is: one producer and one consumer on the driver traits, 256 bytes a message.
//!
//! `cargo bench -p polybus-core --bench memory_driver [-- MESSAGES]`
#![allow(clippy::unwrap_used)]

use std::{sync::Arc, time::Instant};

use polybus_core::{
    Envelope, QueueSpec, Source, Topology,
    driver::{Driver, PreparedMessage, Receiver, Sender, SettleRequest, Settlement, Settler},
    memory::MemoryDriver,
    topology::DeclareMode,
};

const ROUNDS: usize = 5;

fn main() {
    let messages = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(1_000_000);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    println!("publish + deliver + ack, 256 B, one producer, one consumer, {messages} messages, {ROUNDS} rounds");
    for (what, batch, ordered) in
        [("one by one", 1, false), ("batches of 64", 64, false), ("one by one, ordered, 1000 keys", 1, true)]
    {
        let mut rates: Vec<f64> =
            (0..ROUNDS).map(|_| runtime.block_on(round(messages, batch, ordered)) / 1e6).collect();
        rates.sort_by(f64::total_cmp);
        println!("{what}: median {:.2} M/s, min {:.2}, max {:.2}", rates[ROUNDS / 2], rates[0], rates[ROUNDS - 1]);
    }
}

async fn round(messages: usize, batch: usize, ordered: bool) -> f64 {
    let driver = MemoryDriver::new();
    let topology = Topology::new().queue("q", QueueSpec::new().ordered(ordered));
    driver.declare(&topology.plan(), DeclareMode::Create).await.unwrap();
    let sender = driver.open_sender(&topology.address(&polybus_core::Address::queue("q"))).await.unwrap();
    let mut from = topology.source(&Source::queue("q"));
    from.prefetch = 1000;
    let (receiver, settler) = driver.open_receiver(&from).await.unwrap();
    let start = Instant::now();
    let producer = tokio::spawn(produce(sender, messages, batch));
    let consumer = tokio::spawn(consume(receiver, settler, messages, batch));
    producer.await.unwrap();
    consumer.await.unwrap();
    messages as f64 / start.elapsed().as_secs_f64()
}

async fn produce(sender: Arc<dyn Sender>, messages: usize, batch: usize) {
    let payload = bytes::Bytes::from(vec![b'x'; 256]);
    for first in (0..messages).step_by(batch) {
        let ids = first..(first + batch).min(messages);
        let message = |i: usize| Envelope::new("bench.message", payload.clone()).key(format!("key-{}", i % 1000));
        let batch: Vec<PreparedMessage> = ids.map(|i| sender.prepare(message(i).into()).unwrap()).collect();
        sender.send(&batch).await.into_iter().for_each(|r| drop(r.unwrap()));
        tokio::task::coop::consume_budget().await;
    }
}

async fn consume(mut receiver: Box<dyn Receiver>, settler: Arc<dyn Settler>, messages: usize, batch: usize) {
    let mut seen = 0;
    while seen < messages {
        let received = receiver.receive(256).await.unwrap();
        seen += received.len();
        let acks: Vec<SettleRequest> =
            received.into_iter().map(|r| SettleRequest::new(r.token, r.envelope, r.attempt, Settlement::Ack)).collect();
        for acks in acks.chunks(batch) {
            settler.settle(acks).await.into_iter().for_each(|r| r.unwrap());
            tokio::task::coop::consume_budget().await;
        }
    }
}
