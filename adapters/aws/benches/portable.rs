//! The polybus side.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use polybus_aws::AwsConnector;
use polybus_core::{Address, Bus, BusOptions, Delivery, Envelope, QueueSpec, Registry, Source, Topology};
use tokio::{
    sync::{Mutex, mpsc::Receiver},
    task::JoinSet,
};

use crate::{
    HANDLERS, PAYLOAD, PREFETCH, PUBLISHERS, Setup,
    compare::{Clock, Measured},
};

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

    /// Consumes with many handlers that each await their own ack. The clock stops when the last message is deleted.
    pub(crate) async fn consume(&self, messages: usize) -> Measured {
        let clock = Clock::start();
        let mut sub = self.0.subscribe(Source::queue("bench")).prefetch(PREFETCH).open().await.unwrap();
        let (send, receive) = tokio::sync::mpsc::channel::<Delivery>(HANDLERS);
        let receive = Arc::new(Mutex::new(receive));
        let mut handlers = JoinSet::new();
        for _ in 0..HANDLERS {
            let receive = receive.clone();
            handlers.spawn(async move { while handle(&receive).await {} });
        }
        for _ in 0..messages {
            send.send(sub.next().await.unwrap().unwrap()).await.unwrap();
        }
        drop(send);
        handlers.join_all().await;
        let measured = clock.stop(messages);
        sub.close().await.unwrap();
        measured
    }

    pub(crate) async fn close(&self) {
        self.0.delete().await.unwrap();
        self.0.close().await.unwrap();
    }
}

/// Acknowledges one delivery; false at the end.
async fn handle(deliveries: &Mutex<Receiver<Delivery>>) -> bool {
    let Some(delivery) = deliveries.lock().await.recv().await else { return false };
    delivery.ack().await.unwrap();
    true
}
