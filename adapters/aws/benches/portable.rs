//! The polybus side.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use polybus_aws::{AwsConnector, Native};
use polybus_core::{Address, Bus, BusOptions, Context, Envelope, HandlerError, QueueSpec, Registry, Source, Topology};
use tokio::{sync::Notify, task::JoinSet};

use crate::{HANDLERS, PAYLOAD, PREFETCH, PUBLISHERS, Setup, rate};

pub(crate) struct Portable {
    setup: Setup,
    pub(crate) bus: Bus,
}

impl Portable {
    pub(crate) async fn open(setup: &Setup) -> Self {
        let driver = Registry::new().with(AwsConnector).connect(&setup.url).await.unwrap();
        let topology = Topology::new().queue("bench", QueueSpec::new().physical(&setup.queue));
        let bus = Bus::new(driver, BusOptions::topology(topology)).unwrap();
        bus.declare().await.unwrap();
        Self { setup: setup.clone(), bus }
    }

    pub(crate) fn calls(&self) -> u64 {
        self.bus.native::<Native>().unwrap().calls()
    }

    /// Publishes a round's messages from many tasks, each awaiting its own confirm.
    pub(crate) async fn publish(&self) -> f64 {
        let publisher = self.bus.publisher(&Address::queue("bench")).await.unwrap();
        let left = Arc::new(AtomicUsize::new(self.setup.messages));
        let started = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..PUBLISHERS {
            let (publisher, left) = (publisher.clone(), left.clone());
            tasks.spawn(async move {
                let take = |n: usize| n.checked_sub(1);
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
                    let message = Envelope::new("bench.message", "x".repeat(PAYLOAD)).content_type("text/plain");
                    publisher.publish(message).await.unwrap();
                }
            });
        }
        tasks.join_all().await;
        rate(self.setup.messages, started)
    }

    /// Fills the queue, then runs a worker whose handler does nothing. Publishing is not measured, nor is shutting down.
    pub(crate) async fn consume(&self) -> f64 {
        self.publish().await;
        let (handled, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let (count, all, wanted) = (handled.clone(), done.clone(), self.setup.messages);
        let last = Arc::new(OnceLock::new());
        let ended = last.clone();
        let handler = move |_: Context, _: Envelope| {
            if count.fetch_add(1, Ordering::Relaxed) + 1 == wanted {
                let _ = ended.set(Instant::now());
                all.notify_one();
            }
            async { Ok::<(), HandlerError>(()) }
        };
        let started = Instant::now();
        let worker = self.bus.worker(Source::queue("bench")).concurrency(HANDLERS).prefetch(PREFETCH);
        let shutdown = async move { done.notified().await };
        worker.drain_timeout(Duration::from_secs(30)).run(shutdown, handler).await.unwrap();
        let took: Duration = last.get().copied().unwrap_or_else(Instant::now) - started;
        self.setup.messages as f64 / took.as_secs_f64()
    }

    pub(crate) async fn close(&self) {
        self.bus.delete().await.unwrap();
        self.bus.close().await.unwrap();
    }
}
