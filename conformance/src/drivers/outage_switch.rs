//! The target's driver with a switch for an outage, and a count of what core holds of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use polybus_core::{
    Address, Error, ErrorKind, Outgoing, Receipt, Result, Source,
    driver::{
        Batching, Driver, DriverLayer, DriverToken, PreparedMessage, ReceivedMessage, Receiver, Sender, SettleRequest,
        Settler,
    },
    topology::Entity,
};
use tokio::time::Instant;

/// Switches and counts. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Watch(Arc<Counts>);

#[derive(Default)]
struct Counts {
    down: AtomicBool,
    refused: AtomicUsize,
    encoded: Gauge,
    held: Gauge,
    receiving: Gauge,
}

/// How many there are, and the most there have been.
#[derive(Default)]
struct Gauge(AtomicUsize, AtomicUsize);

impl Gauge {
    fn up(&self) {
        let now = self.0.fetch_add(1, Ordering::SeqCst) + 1;
        self.1.fetch_max(now, Ordering::SeqCst);
    }

    fn down(&self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Watch {
    pub(super) fn around(&self) -> impl FnOnce(Arc<dyn Driver>) -> Arc<dyn Driver> + Send + 'static {
        let watch = self.clone();
        move |inner| Arc::new(Watched { watch, inner })
    }

    /// Begins or ends an outage: publishing and receiving are `Unavailable`, and nothing is sent.
    pub(super) fn down(&self, yes: bool) {
        self.0.down.store(yes, Ordering::SeqCst);
    }

    fn check(&self) -> Result<()> {
        match self.0.down.load(Ordering::SeqCst) {
            true => {
                self.0.refused.fetch_add(1, Ordering::SeqCst);
                Err(Error::new(ErrorKind::Unavailable, "an outage").safe())
            }
            false => Ok(()),
        }
    }

    /// How many calls were refused because of an outage.
    pub(super) fn refused(&self) -> usize {
        self.0.refused.load(Ordering::SeqCst)
    }

    /// Encoded messages that exist now, and the most there were.
    pub(super) fn encoded(&self) -> (usize, usize) {
        read(&self.0.encoded)
    }

    /// Received messages that core has not let go, and the most there were.
    pub(super) fn held(&self) -> (usize, usize) {
        read(&self.0.held)
    }

    /// Calls of `receive` that wait now, and the most there were.
    pub(super) fn receiving(&self) -> (usize, usize) {
        read(&self.0.receiving)
    }
}

/// A call of `receive`, however it ends.
struct Receiving<'a>(&'a Gauge);

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        self.0.down();
    }
}

fn read(gauge: &Gauge) -> (usize, usize) {
    (gauge.0.load(Ordering::SeqCst), gauge.1.load(Ordering::SeqCst))
}

/// The driver's own token, counted as long as anybody has it.
struct Counted {
    watch: Watch,
    encoded: bool,
    inner: Option<DriverToken>,
}

impl Counted {
    fn new(watch: &Watch, encoded: bool, inner: Option<DriverToken>) -> Self {
        let counted = Self { watch: watch.clone(), encoded, inner };
        counted.gauge().up();
        counted
    }

    fn gauge(&self) -> &Gauge {
        if self.encoded { &self.watch.0.encoded } else { &self.watch.0.held }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.gauge().down();
    }
}

/// The driver's own token, or one of nobody.
fn inner(token: &DriverToken) -> DriverToken {
    let counted = token.get::<Counted>().ok();
    counted.and_then(|c| c.inner.clone()).unwrap_or_else(|| DriverToken::new(()))
}

struct Watched<T> {
    watch: Watch,
    inner: T,
}

#[async_trait]
impl DriverLayer for Watched<Arc<dyn Driver>> {
    fn inner(&self) -> &dyn Driver {
        &*self.inner
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        self.watch.check()?;
        let inner = self.inner.open_sender(to).await?;
        Ok(Arc::new(Watched { watch: self.watch.clone(), inner }))
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        self.watch.check()?;
        let (receiver, settler) = self.inner.open_receiver(from).await?;
        let receiver = Watched { watch: self.watch.clone(), inner: receiver };
        Ok((Box::new(receiver), Arc::new(Watched { watch: self.watch.clone(), inner: settler })))
    }
}

#[async_trait]
impl Sender for Watched<Arc<dyn Sender>> {
    fn batching(&self) -> Batching {
        self.inner.batching()
    }

    fn prepare(&self, message: Outgoing) -> Result<PreparedMessage> {
        let prepared = self.inner.prepare(message)?;
        let counted = Counted::new(&self.watch, true, prepared.native);
        Ok(PreparedMessage::new(prepared.message, prepared.size).native(counted))
    }

    fn held_back(&self) -> Option<Error> {
        self.inner.held_back()
    }

    async fn send(&self, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        if let Err(e) = self.watch.check() {
            return e.for_each_of(batch.len());
        }
        let own = |p: &PreparedMessage| {
            let mut own = PreparedMessage::new(p.message.clone(), p.size);
            own.native = p.native.as_ref().and_then(|t| t.get::<Counted>().ok()).and_then(|c| c.inner.clone());
            own
        };
        let batch: Vec<PreparedMessage> = batch.iter().map(own).collect();
        self.inner.send(&batch).await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

#[async_trait]
impl Receiver for Watched<Box<dyn Receiver>> {
    async fn receive(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
        self.watch.check()?;
        self.watch.0.receiving.up();
        let receiving = Receiving(&self.watch.0.receiving);
        let mut batch = self.inner.receive(max).await?;
        drop(receiving);
        for received in &mut batch {
            received.token = DriverToken::new(Counted::new(&self.watch, false, Some(received.token.clone())));
        }
        Ok(batch)
    }

    async fn close(&mut self) -> Result<()> {
        self.inner.close().await
    }
}

#[async_trait]
impl Settler for Watched<Arc<dyn Settler>> {
    fn batching(&self) -> Batching {
        self.inner.batching()
    }

    async fn settle(&self, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let own = |s: &SettleRequest| s.with_token(inner(&s.token));
        let batch: Vec<SettleRequest> = batch.iter().map(own).collect();
        self.inner.settle(&batch).await
    }

    async fn extend(&self, tokens: &[DriverToken], by: Duration) -> Vec<Result<Instant>> {
        let tokens: Vec<DriverToken> = tokens.iter().map(inner).collect();
        self.inner.extend(&tokens, by).await
    }

    fn holds(&self, token: &DriverToken) -> bool {
        self.inner.holds(&inner(token))
    }

    fn forget(&self, token: &DriverToken) {
        self.inner.forget(&inner(token));
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}
