//! The side of polybus.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use polybus_core::{
    Address, Bus, BusOptions, Envelope, HandlerContext, HandlerError, QueueSpec, Registry, Source, Topology,
};
use polybus_rabbitmq::RabbitmqConnector;
use tokio::{sync::Notify, task::JoinSet};

use crate::{HANDLERS, PAYLOAD, PREFETCH, PUBLISHERS, Setup, rate};

pub(crate) struct PolybusClient {
    setup: Setup,
    bus: Bus,
}

impl PolybusClient {
    pub(crate) async fn open(setup: &Setup) -> Self {
        let joint = if setup.url.contains('?') { '&' } else { '?' };
        let kind = if setup.classic { "classic" } else { "quorum" };
        let url = format!("{}{joint}queue_type={kind}", setup.url);
        let driver = Registry::new().with(RabbitmqConnector).connect(&url).await.unwrap();
        let topology = Topology::new().queue("bench", QueueSpec::new().physical(&setup.queue));
        let bus = Bus::new(driver, BusOptions::topology(topology)).unwrap();
        bus.declare().await.unwrap();
        Self { setup: setup.clone(), bus }
    }

    fn message() -> Envelope {
        Envelope::new("bench.message", vec![b'x'; PAYLOAD])
    }

    /// Publishes a round's messages from many tasks, each awaiting its own confirm.
    pub(crate) async fn publish(&self) -> f64 {
        let publisher = self.bus.publisher(Address::queue("bench")).await.unwrap();
        let left = Arc::new(AtomicUsize::new(self.setup.messages));
        let started = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..PUBLISHERS {
            let (publisher, left) = (publisher.clone(), left.clone());
            tasks.spawn(async move {
                let take = |n: usize| n.checked_sub(1);
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
                    publisher.publish(Self::message()).await.unwrap();
                }
            });
        }
        tasks.join_all().await;
        rate(self.setup.messages, started)
    }

    /// Consumes the messages that are there with many handlers that each await their own ack.
    pub(crate) async fn ack_each(&self) -> f64 {
        let started = Instant::now();
        let source = Source::queue("bench");
        let mut sub = self.bus.subscribe(source).prefetch(PREFETCH.into()).open().await.unwrap();
        let (send, receive) = async_channel(HANDLERS);
        let mut tasks = JoinSet::new();
        for _ in 0..HANDLERS {
            let receive = receive.clone();
            tasks.spawn(async move {
                while let Some(delivery) = next(&receive).await {
                    polybus_core::Delivery::ack(delivery).await.unwrap();
                }
            });
        }
        for _ in 0..self.setup.messages {
            send.send(sub.next().await.unwrap().unwrap()).await.unwrap();
        }
        drop(send);
        tasks.join_all().await;
        let rate = rate(self.setup.messages, started);
        sub.close().await.unwrap();
        rate
    }

    /// Runs a worker whose handler does nothing on the messages that are there.
    pub(crate) async fn worker(&self) -> f64 {
        let (handled, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let (count, all, wanted) = (handled.clone(), done.clone(), self.setup.messages);
        // The clock stops at the last handling: shutting down is not what is measured, and lapin's side has none.
        let last = Arc::new(OnceLock::new());
        let ended = last.clone();
        let handler = move |_: HandlerContext, _: Envelope| {
            if count.fetch_add(1, Ordering::Relaxed) + 1 == wanted {
                let _ = ended.set(Instant::now());
                all.notify_one();
            }
            async { Ok::<(), HandlerError>(()) }
        };
        let started = Instant::now();
        let worker = self.bus.worker(Source::queue("bench")).concurrency(HANDLERS).prefetch(PREFETCH.into());
        let shutdown = async move { done.notified().await };
        let run = worker.drain_timeout(Duration::from_secs(30)).with_graceful_shutdown(shutdown).run(handler);
        run.await.unwrap();
        let took: Duration = last.get().copied().unwrap_or_else(Instant::now) - started;
        self.setup.messages as f64 / took.as_secs_f64()
    }

    pub(crate) async fn close(&self) {
        self.bus.delete().await.unwrap();
        self.bus.close().await.unwrap();
    }
}

type SharedReceiver<T> = Arc<tokio::sync::Mutex<tokio::sync::mpsc::Receiver<T>>>;

/// A channel that many handlers take from.
fn async_channel<T>(n: usize) -> (tokio::sync::mpsc::Sender<T>, SharedReceiver<T>) {
    let (send, receive) = tokio::sync::mpsc::channel(n);
    (send, Arc::new(tokio::sync::Mutex::new(receive)))
}

async fn next<T>(receive: &SharedReceiver<T>) -> Option<T> {
    receive.lock().await.recv().await
}
