//! A bus over a broker of its own, and a driver whose renewals can be made to fail.

use std::{
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use polybus_core::{
    Address, Bus, BusOptions, Envelope, Error, ErrorKind, QueueSpec, Result, Source, Topology,
    clock::Clock,
    driver::{Capabilities, DeadLetter, Driver, DriverToken, Receiver, Sender, SettleRequest, Settler, async_trait},
    memory::MemoryDriver,
    topology::{DeclareMode, DeclarePlan, DeclareReport, Entity, SourceStats},
};
use tokio::{sync::Notify, time::Instant};

pub(crate) fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(crate) async fn bus(queue: QueueSpec) -> Bus {
    over(Arc::new(MemoryDriver::new()), queue).await
}

pub(crate) async fn over(driver: Arc<dyn Driver>, queue: QueueSpec) -> Bus {
    let topology = Topology::new().queue("q", queue).queue("other", QueueSpec::new());
    let bus = Bus::new(driver, BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();
    bus
}

pub(crate) fn q() -> Source {
    Source::queue("q")
}

/// Publishes messages with these ids; the key is what stands before a `/`.
pub(crate) async fn publish(bus: &Bus, ids: impl IntoIterator<Item = impl AsRef<str>>) {
    let message = |id: &str| match id.split_once('/') {
        Some((key, _)) => Envelope::new("t", "").id(id).key(key),
        None => Envelope::new("t", "").id(id),
    };
    let all: Vec<Envelope> = ids.into_iter().map(|id| message(id.as_ref())).collect();
    for result in bus.publish_all(Address::queue("q"), all).await {
        result.unwrap();
    }
}

/// Takes one message of a source, with its attempt and its dead-letter information, and acks it.
pub(crate) async fn take(bus: &Bus, source: Source) -> (String, u32, Option<DeadLetter>) {
    let mut sub = bus.subscribe(source).prefetch(1).open().await.unwrap();
    let delivery = tokio::time::timeout(secs(3600), sub.next()).await.expect("a message").unwrap().unwrap();
    let taken = (delivery.envelope().id.to_string(), delivery.attempt(), delivery.dead_letter_info().cloned());
    delivery.ack().await.unwrap();
    sub.close().await.unwrap();
    taken
}

pub(crate) async fn dead_letter(bus: &Bus) -> (String, DeadLetter) {
    let (id, _, info) = take(bus, q().dead_letters()).await;
    (id, info.expect("dead letters tell how they got there"))
}

/// Ready, in flight and delayed messages of `q`, and its dead letters.
pub(crate) async fn counts(bus: &Bus) -> [u64; 4] {
    let s = bus.stats(&q()).await.unwrap();
    [s.ready, s.in_flight, s.delayed, s.dead_lettered].map(|n| n.unwrap())
}

/// Counts to a goal that others wait for.
#[derive(Clone, Default)]
pub(crate) struct Counter(Arc<(AtomicUsize, Notify)>);

impl Counter {
    pub(crate) fn add(&self) -> usize {
        let n = self.0.0.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.1.notify_waiters();
        n
    }

    pub(crate) fn get(&self) -> usize {
        self.0.0.load(Ordering::SeqCst)
    }

    /// Owned, so that it can be a worker's shutdown.
    pub(crate) fn reaches(&self, goal: usize) -> impl Future<Output = ()> + Send + 'static {
        let this = self.clone();
        async move {
            loop {
                let changed = this.0.1.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if this.get() >= goal {
                    return;
                }
                changed.await;
            }
        }
    }
}

/// What handlers saw, in order, with the time since the start.
#[derive(Clone)]
pub(crate) struct Log(Arc<Mutex<Vec<(String, u32, Duration)>>>, Instant);

impl Log {
    pub(crate) fn new() -> Self {
        Self(Arc::default(), Instant::now())
    }

    pub(crate) fn add(&self, id: &str, attempt: u32) {
        self.0.lock().unwrap().push((id.to_owned(), attempt, self.1.elapsed()));
    }

    pub(crate) fn all(&self) -> Vec<(String, u32, Duration)> {
        self.0.lock().unwrap().clone()
    }
}

/// The in-process broker, with faults.
pub(crate) struct Faulty {
    inner: MemoryDriver,
    faults: Faults,
}

#[derive(Clone, Default)]
pub(crate) struct Faults {
    /// Renewals of locks fail while it is set.
    pub(crate) renewals_fail: Arc<AtomicBool>,
    /// So many of the next retries and dead letters fail. All of them take a while.
    pub(crate) copies_fail: Arc<AtomicUsize>,
    /// The same, with the copy made.
    pub(crate) copies_kept: Arc<AtomicUsize>,
    /// So many of the next settlements are never answered.
    pub(crate) unanswered: Arc<AtomicUsize>,
    /// Settlements may be done again.
    pub(crate) repeatable: Arc<AtomicBool>,
}

impl Faulty {
    pub(crate) fn new() -> (Arc<Self>, Faults) {
        let faults = Faults::default();
        (Arc::new(Self { inner: MemoryDriver::new(), faults: faults.clone() }), faults)
    }
}

#[async_trait]
impl Driver for Faulty {
    fn backend(&self) -> &'static str {
        self.inner.backend()
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    async fn declare(&self, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport> {
        self.inner.declare(plan, mode).await
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        self.inner.open_sender(to).await
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        let (receiver, settler) = self.inner.open_receiver(from).await?;
        Ok((receiver, Arc::new(FaultySettler { inner: settler, faults: self.faults.clone() })))
    }

    async fn stats(&self, of: &Entity<Source>) -> Result<SourceStats> {
        self.inner.stats(of).await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }

    fn clock(&self) -> Option<Arc<dyn Clock>> {
        self.inner.clock()
    }
}

struct FaultySettler {
    inner: Arc<dyn Settler>,
    faults: Faults,
}

#[async_trait]
impl Settler for FaultySettler {
    fn batching(&self) -> polybus_core::driver::Batching {
        match self.faults.repeatable.load(Ordering::SeqCst) {
            true => self.inner.batching().repeatable(),
            false => self.inner.batching(),
        }
    }

    async fn settle(&self, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let one_less = |n: usize| n.checked_sub(1);
        if self.faults.unanswered.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok() {
            return std::future::pending().await;
        }
        if batch.iter().any(|s| s.how.copies()) {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let fails = |n: usize| n.checked_sub(1);
            if self.faults.copies_kept.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fails).is_ok() {
                let e = Error::new(ErrorKind::Unavailable, "cut").may_duplicate().with_kept_copy();
                return e.for_each_of(batch.len());
            }
            if self.faults.copies_fail.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fails).is_ok() {
                return Error::new(ErrorKind::Unavailable, "cut").may_duplicate().for_each_of(batch.len());
            }
        }
        self.inner.settle(batch).await
    }

    async fn extend(&self, tokens: &[DriverToken], by: Duration) -> Vec<Result<Instant>> {
        match self.faults.renewals_fail.load(Ordering::SeqCst) {
            true => Error::new(ErrorKind::LockLost, "gone").for_each_of(tokens.len()),
            false => self.inner.extend(tokens, by).await,
        }
    }

    fn holds(&self, token: &DriverToken) -> bool {
        self.inner.holds(token)
    }

    fn forget(&self, token: &DriverToken) {
        self.inner.forget(token);
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}
