//! Request and reply on the in-process broker.
#![allow(clippy::unwrap_used, missing_docs)]

mod calls;
mod crowd;
mod opening;
mod replies;
mod responders;
mod trees;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use polybus_core::{
    Address, Bus, BusOptions, Event, Handler, QueueSpec, Result, Source, Topology, memory::MemoryDriver,
    worker::WorkerReport,
};
use polybus_patterns::Requests;
use serde::{Deserialize, Serialize};
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    pub n: u64,
}

impl Event for Ask {
    const TYPE: &'static str = "square.wanted";
    const VERSION: u32 = 1;
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Square {
    pub n: u64,
}

impl Event for Square {
    const TYPE: &'static str = "square.made";
    const VERSION: u32 = 1;
}

/// A bus with the queues `squares`, `replies` and `other`.
pub struct Desk {
    pub bus: Bus,
    pub memory: Arc<MemoryDriver>,
}

pub const SQUARES: &str = "squares";

impl Desk {
    pub async fn new() -> Self {
        Self::with(|spec| spec).await
    }

    pub async fn with(change: impl Fn(QueueSpec) -> QueueSpec) -> Self {
        let queues = [SQUARES, "replies", "other"].into_iter();
        let spec = || change(QueueSpec::new().retry([Duration::from_millis(100)]).max_deliveries(3));
        let topology = Topology::new().queue("ordered", QueueSpec::new().ordered(true));
        let topology = queues.fold(topology, |all, queue| all.queue(queue, spec()));
        let memory = Arc::new(MemoryDriver::new().max_message_size(64 * 1024));
        memory.record(true);
        let bus = Bus::new(memory.clone(), BusOptions::topology(topology)).unwrap();
        bus.declare().await.unwrap();
        Self { bus, memory }
    }

    pub async fn requests(&self) -> Requests {
        Requests::open(&self.bus, Source::queue("replies")).await.unwrap()
    }

    /// A worker on `squares` that is stopped by the sender's drop.
    pub fn work(&self, handler: impl Handler) -> (oneshot::Sender<()>, JoinHandle<Result<WorkerReport>>) {
        let (stop, stopped) = oneshot::channel::<()>();
        let worker = self.bus.worker(Source::queue(SQUARES)).with_graceful_shutdown(async { drop(stopped.await) });
        (stop, tokio::spawn(worker.run(handler)))
    }

    /// The dead letters of a queue by their reasons.
    pub async fn dead_reasons(&self, queue: &str) -> Vec<String> {
        let mut dead = self.bus.subscribe(Source::queue(queue).dead_letters()).open().await.unwrap();
        let mut reasons = Vec::new();
        let count = self.bus.stats(Source::queue(queue)).await.unwrap().dead_lettered.unwrap();
        for _ in 0..count {
            let letter = dead.next().await.unwrap().unwrap();
            reasons.push(letter.dead_letter_info().unwrap().reason.as_deref().unwrap().to_owned());
            letter.ack().await.unwrap();
        }
        reasons
    }
}

/// Waits until a condition holds.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(Instant::now() < give_up, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn squares() -> Address {
    Address::queue(SQUARES)
}

/// What a handler saw.
pub type Seen<T> = Arc<Mutex<Vec<T>>>;
