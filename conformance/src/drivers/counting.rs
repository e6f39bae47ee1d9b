//! A layer that counts the calls that reach a driver, and can narrow its batches and slow it down.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use polybus_core::{
    Address, Error, Outgoing, Receipt, Result, Source,
    driver::{Batching, Driver, DriverLayer, DriverToken, PreparedMessage, Receiver, Sender, SettleRequest, Settler},
    topology::{DeclareMode, DeclarePlan, DeclareReport, Entity, SourceStats},
};
use tokio::time::Instant;

/// Counts the calls that reach a driver: `cx.setup(topology).counting(&calls)`. Clones share the counts.
///
/// It proves that a refusal came before any I/O: [`CallCounter::total`] is what it was.
#[derive(Clone, Default)]
pub struct CallCounter(Arc<CallCounts>);

#[derive(Default)]
struct CallCounts {
    entities: AtomicU64,
    opened: AtomicU64,
    sends: AtomicU64,
    sent: AtomicU64,
    settles: AtomicU64,
    settled: AtomicU64,
    extends: AtomicU64,
    limits: OnceLock<Batching>,
    hold: OnceLock<Duration>,
    entries: AtomicUsize,
    bytes: AtomicUsize,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
}

impl CallCounter {
    /// A counter that has counted nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives core these limits for publish batches in place of the driver's own. They must be narrower.
    pub fn narrow(self, limits: Batching) -> Self {
        let _ = self.0.limits.set(limits);
        self
    }

    /// Delays every `send` by this long before the driver sees it.
    pub fn slow(self, hold: Duration) -> Self {
        let _ = self.0.hold.set(hold);
        self
    }

    /// The largest `send` of more than one message, in messages and bytes, and the most that were under way at once.
    pub fn largest(&self) -> Batching {
        let of = |n: &AtomicUsize| n.load(Ordering::SeqCst);
        Batching::new(of(&self.0.entries), of(&self.0.bytes), of(&self.0.most_under_way))
    }

    pub(crate) fn around(&self, inner: Arc<dyn Driver>) -> Arc<dyn Driver> {
        Arc::new(CountingLayer { inner, calls: self.clone() })
    }

    /// All calls that make the driver do I/O, except `receive`: a consumer polls at any time.
    pub fn total(&self) -> u64 {
        let c = &self.0;
        [&c.entities, &c.opened, &c.sends, &c.settles, &c.extends].iter().map(|n| n.load(Ordering::SeqCst)).sum()
    }

    /// Calls of `send`.
    pub fn sends(&self) -> u64 {
        self.0.sends.load(Ordering::SeqCst)
    }

    /// Messages in all calls of `send`.
    pub fn sent(&self) -> u64 {
        self.0.sent.load(Ordering::SeqCst)
    }

    /// Calls of `settle`.
    pub fn settles(&self) -> u64 {
        self.0.settles.load(Ordering::SeqCst)
    }

    /// Settlements in all calls of `settle`.
    pub fn settled(&self) -> u64 {
        self.0.settled.load(Ordering::SeqCst)
    }

    /// Calls of `extend`.
    pub fn extends(&self) -> u64 {
        self.0.extends.load(Ordering::SeqCst)
    }
}

/// One `send` under way. It is off the count when the call ends or is dropped.
struct CallUnderWay<'a>(&'a CallCounts);

impl Drop for CallUnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

fn add(to: &AtomicU64, n: usize) {
    to.fetch_add(n as u64, Ordering::SeqCst);
}

struct CountingLayer<T: ?Sized> {
    calls: CallCounter,
    inner: T,
}

#[async_trait]
impl DriverLayer for CountingLayer<Arc<dyn Driver>> {
    fn inner(&self) -> &dyn Driver {
        &*self.inner
    }

    async fn declare(&self, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport> {
        add(&self.calls.0.entities, 1);
        self.inner.declare(plan, mode).await
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        add(&self.calls.0.opened, 1);
        let inner = self.inner.open_sender(to).await?;
        Ok(Arc::new(CountingLayer { calls: self.calls.clone(), inner }))
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        add(&self.calls.0.opened, 1);
        let (receiver, settler) = self.inner.open_receiver(from).await?;
        Ok((receiver, Arc::new(CountingLayer { calls: self.calls.clone(), inner: settler })))
    }

    async fn stats(&self, of: &Entity<Source>) -> Result<SourceStats> {
        add(&self.calls.0.entities, 1);
        self.inner.stats(of).await
    }

    async fn purge(&self, from: &Entity<Source>) -> Result<u64> {
        add(&self.calls.0.entities, 1);
        self.inner.purge(from).await
    }

    async fn delete(&self, plan: &DeclarePlan) -> Result<()> {
        add(&self.calls.0.entities, 1);
        self.inner.delete(plan).await
    }
}

#[async_trait]
impl Sender for CountingLayer<Arc<dyn Sender>> {
    fn batching(&self) -> Batching {
        self.calls.0.limits.get().copied().unwrap_or_else(|| self.inner.batching())
    }

    fn prepare(&self, message: Outgoing) -> Result<PreparedMessage> {
        self.inner.prepare(message)
    }

    fn held_back(&self) -> Option<Error> {
        self.inner.held_back()
    }

    async fn send(&self, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        let counts = &*self.calls.0;
        add(&counts.sends, 1);
        add(&counts.sent, batch.len());
        counts.most_under_way.fetch_max(1 + counts.under_way.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
        let _under_way = CallUnderWay(counts);
        if batch.len() > 1 {
            counts.entries.fetch_max(batch.len(), Ordering::SeqCst);
            counts.bytes.fetch_max(batch.iter().map(|p| p.size).sum(), Ordering::SeqCst);
        }
        if let Some(hold) = counts.hold.get() {
            tokio::time::sleep(*hold).await;
        }
        self.inner.send(batch).await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

#[async_trait]
impl Settler for CountingLayer<Arc<dyn Settler>> {
    fn batching(&self) -> Batching {
        self.inner.batching()
    }

    async fn settle(&self, batch: &[SettleRequest]) -> Vec<Result<()>> {
        add(&self.calls.0.settles, 1);
        add(&self.calls.0.settled, batch.len());
        self.inner.settle(batch).await
    }

    async fn extend(&self, tokens: &[DriverToken], by: Duration) -> Vec<Result<Instant>> {
        add(&self.calls.0.extends, 1);
        self.inner.extend(tokens, by).await
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
