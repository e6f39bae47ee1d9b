//! The polybus side.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use polybus_core::{Address, Bus, BusOptions, Delivery, Envelope, QueueSpec, Registry, Source, Subscription, Topology};
use polybus_servicebus::ServicebusConnector;
use tokio::task::JoinSet;

use crate::{BenchSetup, PAYLOAD, PREFETCH, PUBLISHERS, UNSETTLED, compare::RoundTimes};

pub(crate) struct PolybusSide(Bus);

/// A bus whose queue `bench` is the one measured.
pub(crate) async fn bus(setup: &BenchSetup) -> Bus {
    let driver = Registry::new().with(ServicebusConnector).connect(&setup.url).await.unwrap();
    let topology = Topology::new().queue("bench", QueueSpec::new().physical(&setup.queue));
    let bus = Bus::new(driver, BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();
    bus
}

impl PolybusSide {
    pub(crate) async fn open(setup: &BenchSetup) -> Self {
        Self(bus(setup).await)
    }

    /// Publishes from many tasks, each awaiting its own confirmation.
    pub(crate) async fn publish(&self, messages: usize) {
        let publisher = self.0.publisher(Address::queue("bench")).await.unwrap();
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

    /// Consumes with many acks under way, each awaited for itself.
    pub(crate) async fn consume(&self, messages: usize) -> RoundTimes {
        self.measured(messages, async |sub| {
            let mut acks = FuturesUnordered::new();
            for _ in 0..messages {
                let delivery = sub.next().await.unwrap().unwrap();
                acks.push(delivery.ack());
                if acks.len() >= UNSETTLED {
                    acks.next().await.unwrap().unwrap();
                }
                // The first poll of an ack hands it over.
                while let Some(Some(done)) = acks.next().now_or_never() {
                    done.unwrap();
                }
            }
            acks.map(Result::unwrap).collect::<()>().await;
        })
        .await
    }

    /// Consumes with a task for each delivery that awaits its own ack, so many at once.
    pub(crate) async fn consume_in_tasks(&self, messages: usize) -> RoundTimes {
        self.measured(messages, async |sub| {
            let mut handlers = JoinSet::new();
            for _ in 0..messages {
                if handlers.len() >= UNSETTLED {
                    handlers.join_next().await.unwrap().unwrap();
                }
                handlers.spawn(handle(sub.next().await.unwrap().unwrap()));
            }
            handlers.join_all().await;
        })
        .await
    }

    async fn measured(&self, messages: usize, consume: impl AsyncFnOnce(&mut Subscription)) -> RoundTimes {
        let mut opened = None;
        let measured = RoundTimes::of(messages, async {
            let mut sub = self.0.subscribe(Source::queue("bench")).prefetch(PREFETCH).open().await.unwrap();
            consume(&mut sub).await;
            opened = Some(sub);
        });
        let measured = measured.await;
        // The twins' clocks stop before their goodbyes as well.
        opened.unwrap().close().await.unwrap();
        measured
    }

    pub(crate) async fn purge(&self) {
        self.0.purge(Source::queue("bench")).await.unwrap();
    }

    pub(crate) async fn close(&self) {
        self.0.delete().await.unwrap();
        self.0.close().await.unwrap();
    }
}

/// Acknowledges one delivery.
async fn handle(delivery: Delivery) {
    delivery.ack().await.unwrap();
}
