//! The polybus side.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use polybus_aws::AwsConnector;
use polybus_core::{Address, Bus, BusOptions, Context, Envelope, HandlerError, QueueSpec, Registry, Source, Topology};
use tokio::{sync::Notify, task::JoinSet};

use crate::{
    HANDLERS, PAYLOAD, PREFETCH, PUBLISHERS, Setup,
    compare::{Clock, Measured},
};

/// A consumer that has closed leaves long polls behind, which would take from the next round and give back.
const LAST_POLLS: Duration = Duration::from_secs(9);

pub(crate) struct Portable(Bus);

impl Portable {
    pub(crate) async fn open(setup: &Setup) -> Self {
        let driver = Registry::new().with(AwsConnector).connect(&setup.url).await.unwrap();
        let topology = Topology::new().queue("bench", QueueSpec::new().physical(&setup.queue));
        let bus = Bus::new(driver, BusOptions::topology(topology)).unwrap();
        bus.declare().await.unwrap();
        Self(bus)
    }

    /// Publishes from many tasks, each awaiting its own confirmation.
    pub(crate) async fn publish(&self, messages: usize) {
        let publisher = self.0.publisher(&Address::queue("bench")).await.unwrap();
        let left = Arc::new(AtomicUsize::new(messages));
        let mut tasks = JoinSet::new();
        for _ in 0..PUBLISHERS {
            let (publisher, left) = (publisher.clone(), left.clone());
            tasks.spawn(async move {
                let take = |n: usize| n.checked_sub(1);
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
                    publisher.publish(Envelope::new("bench.message", vec![b'x'; PAYLOAD])).await.unwrap();
                }
            });
        }
        tasks.join_all().await;
    }

    /// Runs a worker whose handler does nothing. The clock stops when the last message is acknowledged and deleted.
    pub(crate) async fn consume(&self, messages: usize) -> Measured {
        let (handled, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let (count, all) = (handled.clone(), done.clone());
        let handler = move |_: Context, _: Envelope| {
            if count.fetch_add(1, Ordering::Relaxed) + 1 == messages {
                all.notify_one();
            }
            async { Ok::<(), HandlerError>(()) }
        };
        let clock = Clock::start();
        let worker = self.0.worker(Source::queue("bench")).concurrency(HANDLERS).prefetch(PREFETCH);
        let run = worker.drain_timeout(Duration::from_secs(30)).run(async move { done.notified().await }, handler);
        let report = run.await.unwrap();
        let measured = clock.stop(messages);
        assert_eq!(report.succeeded, messages as u64, "{report:?}");
        tokio::time::sleep(LAST_POLLS).await;
        measured
    }

    pub(crate) async fn close(&self) {
        self.0.delete().await.unwrap();
        self.0.close().await.unwrap();
    }
}
