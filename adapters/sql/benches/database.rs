//! What is measured, on any of the databases.

use std::{
    future::Future,
    ops::DerefMut,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use polybus_core::{Address, Bus, Handler, HandlerContext, Source};
use polybus_patterns::{
    Inbox, Outbox, Relay, SequenceGuard,
    store::{InboxStore, OutboxStore, SequenceStore},
};
use tokio::task::JoinSet;

use crate::{
    CLIENTS, QUEUE,
    measure::{message, rate},
};

/// The keys of messages that have one.
const KEYS: usize = 5_000;

/// A store in a place of its own, with a table of the application's.
pub(crate) trait Tables: OutboxStore + InboxStore + SequenceStore {
    /// A transaction of the client's own, as it is without polybus.
    type PlainTx: DerefMut<Target = Self::Conn> + Send + 'static;
    fn plain(&self) -> impl Future<Output = Self::PlainTx> + Send;
    fn commit_plain(tx: Self::PlainTx) -> impl Future<Output = ()> + Send;
    /// Writes a row of the application's.
    fn effect(conn: &mut Self::Conn, id: &str) -> impl Future<Output = ()> + Send;
    /// Empties the tables.
    fn clear(&self) -> impl Future<Output = ()> + Send;
    /// Whether nothing waits for the queue, by the index: a scan would measure dead rows.
    fn is_published(&self, queue: &str) -> impl Future<Output = bool> + Send;
    /// The bytes of log that were written so far, where the database tells.
    fn log_bytes(&self) -> impl Future<Output = Option<f64>> + Send;
    /// Connections that go from one message to the next, where the store can.
    fn handing_over(&self) -> Option<Self>;
    fn remove(self) -> impl Future<Output = ()> + Send;
}

/// What writes a message beside the application's row.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum MessageBy {
    Nobody,
    Outbox,
    /// An outbox that numbers its messages.
    Sequenced,
}

/// How a row of the application's is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum EffectBy {
    Transaction,
    Inbox,
    /// An inbox whose connections go from one message to the next.
    InboxHandingOver,
    /// An inbox that follows the numbers of keys.
    InboxWithGuard,
}

pub(crate) struct Database<S> {
    pub(crate) store: S,
}

impl<S: Tables> Database<S> {
    pub(crate) fn outbox(&self) -> Outbox<S> {
        Outbox::new(&self.store, "/bench")
    }

    /// Writes business rows, one a transaction, with or without a message. Commits a second.
    pub(crate) async fn business_rows(&self, rows: usize, by: MessageBy) -> f64 {
        let left = Arc::new(AtomicUsize::new(rows));
        let outbox = match by {
            MessageBy::Sequenced => self.outbox().sequenced(),
            _ => self.outbox(),
        };
        let started = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..CLIENTS {
            let (left, store, outbox) = (left.clone(), self.store.clone(), outbox.clone());
            tasks.spawn(async move {
                while let Some(n) = take(&left) {
                    let message = message();
                    let mut tx = store.plain().await;
                    S::effect(&mut tx, &message.id).await;
                    if by != MessageBy::Nobody {
                        let message = message.key(format!("k{}", n % KEYS));
                        outbox.enqueue(&mut tx, Address::queue(QUEUE), message).await.unwrap();
                    }
                    S::commit_plain(tx).await;
                }
            });
        }
        tasks.join_all().await;
        rate(rows, started)
    }

    /// Fills the outbox, 1,000 rows a transaction.
    pub(crate) async fn fill(&self, rows: usize) {
        self.store.clear().await;
        self.add(rows).await;
    }

    /// Adds rows to those that are there.
    pub(crate) async fn add(&self, rows: usize) {
        for _ in 0..rows / 1_000 {
            let mut tx = self.store.plain().await;
            let messages = (0..1_000).map(|_| message());
            self.outbox().enqueue_all(&mut tx, Address::queue(QUEUE), messages).await.unwrap();
            S::commit_plain(tx).await;
        }
    }

    async fn is_empty(&self) -> bool {
        self.store.is_published(QUEUE).await
    }

    /// Publishes what is there. Rows a second, from the start of the relay until the table is empty.
    pub(crate) async fn drain(&self, bus: &Bus, rows: usize) -> f64 {
        let started = Instant::now();
        let store = self.store.clone();
        let empty = async move {
            while !store.is_published(QUEUE).await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let report = Relay::new(bus, &self.store).run(empty).await.unwrap();
        let rate = rate(rows, started);
        assert_eq!(report.published, rows as u64);
        rate
    }

    /// From the commit until the row is gone, with one row at a time. The median of 200.
    pub(crate) async fn latency(&self, bus: &Bus, wake: bool) -> Duration {
        self.store.clear().await;
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let relay = Relay::new(bus, &self.store);
        let relaying = tokio::spawn(relay.run(async move { drop(stopped.await) }));
        let outbox = self.outbox();
        let mut took = Vec::new();
        for _ in 0..210 {
            let mut tx = self.store.plain().await;
            outbox.enqueue(&mut tx, Address::queue(QUEUE), message()).await.unwrap();
            S::commit_plain(tx).await;
            let started = Instant::now();
            if wake {
                outbox.wake();
            }
            while !self.is_empty().await {
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
            took.push(started.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(stop);
        relaying.await.unwrap().unwrap();
        // The first ones wait for the relay's start.
        took.drain(..10);
        took.sort();
        took[took.len() / 2]
    }

    /// Handles messages that each write one row, by the inbox' handler or in a plain transaction. Rates a second, and
    /// bytes of log for each.
    pub(crate) async fn effects(&self, rows: usize, by: EffectBy) -> (f64, f64) {
        let source = Source::queue(QUEUE);
        let store = match by {
            EffectBy::InboxHandingOver => self.store.handing_over().unwrap(),
            _ => self.store.clone(),
        };
        let inbox = match by {
            EffectBy::InboxWithGuard => Inbox::new(&store, "bench").sequence_guard(SequenceGuard::new()),
            _ => Inbox::new(&store, "bench"),
        };
        let handler = Arc::new(inbox.handler((), async |(), mut tx: S::Tx, _cx, msg| {
            S::effect(&mut tx, &msg.id).await;
            Ok(tx)
        }));
        // The consumer's name is written before the clock runs.
        handler.handle(HandlerContext::detached(&source, 1), message().source("/bench")).await.unwrap();
        let numbers = Arc::new((0..KEYS).map(|_| AtomicUsize::new(1)).collect::<Vec<_>>());
        let left = Arc::new(AtomicUsize::new(rows));
        let before = self.store.log_bytes().await;
        let started = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..CLIENTS {
            let (left, store, handler, source) = (left.clone(), self.store.clone(), handler.clone(), source.clone());
            let numbers = numbers.clone();
            tasks.spawn(async move {
                while let Some(n) = take(&left) {
                    let message = message().source("/bench");
                    if by == EffectBy::Transaction {
                        let mut tx = store.plain().await;
                        S::effect(&mut tx, &message.id).await;
                        S::commit_plain(tx).await;
                        continue;
                    }
                    let number = numbers[n % KEYS].fetch_add(1, Ordering::Relaxed) as u64;
                    let message = message.key(format!("k{}", n % KEYS)).sequence(number);
                    handler.handle(HandlerContext::detached(&source, 1), message).await.unwrap();
                }
            });
        }
        tasks.join_all().await;
        let rate = rate(rows, started);
        let written = self.store.log_bytes().await.zip(before).map(|(after, before)| after - before);
        (rate, written.unwrap_or_default() / rows as f64)
    }
}

fn take(left: &AtomicUsize) -> Option<usize> {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).ok()
}
