//! A layer with a switch for an outage, which counts the messages that core holds of the driver.

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

/// The switch and the counts. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct OutageSwitch(Arc<SwitchCounts>);

#[derive(Default)]
struct SwitchCounts {
    down: AtomicBool,
    refused: AtomicUsize,
    encoded: PeakGauge,
    held: PeakGauge,
    receiving: PeakGauge,
}

/// How many of something exist now, and the most that have existed at once.
#[derive(Default)]
struct PeakGauge(AtomicUsize, AtomicUsize);

impl PeakGauge {
    fn up(&self) {
        let now = self.0.fetch_add(1, Ordering::SeqCst) + 1;
        self.1.fetch_max(now, Ordering::SeqCst);
    }

    fn down(&self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl OutageSwitch {
    /// The layer with this switch, for [`BusSetup::wrap`](crate::BusSetup::wrap).
    pub(crate) fn around(&self) -> impl FnOnce(Arc<dyn Driver>) -> Arc<dyn Driver> + Send + 'static {
        let switch = self.clone();
        move |inner| Arc::new(SwitchLayer { switch, inner })
    }

    /// Begins or ends an outage: publishing and receiving are `Unavailable`, and nothing is sent.
    pub(crate) fn down(&self, yes: bool) {
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
    pub(crate) fn refused(&self) -> usize {
        self.0.refused.load(Ordering::SeqCst)
    }

    /// How many encoded messages exist now, and the most that existed at once.
    pub(crate) fn encoded(&self) -> (usize, usize) {
        read(&self.0.encoded)
    }

    /// How many received messages core holds now, and the most that it held at once.
    pub(crate) fn held(&self) -> (usize, usize) {
        read(&self.0.held)
    }

    /// How many calls of `receive` wait now, and the most that waited at once.
    pub(crate) fn receiving(&self) -> (usize, usize) {
        read(&self.0.receiving)
    }
}

/// One call of `receive`. It is off the count when the call ends or is dropped.
struct ReceiveCall<'a>(&'a PeakGauge);

impl Drop for ReceiveCall<'_> {
    fn drop(&mut self) {
        self.0.down();
    }
}

fn read(gauge: &PeakGauge) -> (usize, usize) {
    (gauge.0.load(Ordering::SeqCst), gauge.1.load(Ordering::SeqCst))
}

/// The driver's own token. It is counted as long as a clone of it exists.
struct CountedToken {
    switch: OutageSwitch,
    encoded: bool,
    inner: Option<DriverToken>,
}

impl CountedToken {
    fn new(switch: &OutageSwitch, encoded: bool, inner: Option<DriverToken>) -> Self {
        let counted = Self { switch: switch.clone(), encoded, inner };
        counted.gauge().up();
        counted
    }

    fn gauge(&self) -> &PeakGauge {
        if self.encoded { &self.switch.0.encoded } else { &self.switch.0.held }
    }
}

impl Drop for CountedToken {
    fn drop(&mut self) {
        self.gauge().down();
    }
}

/// The token of the driver below. A token that this layer did not make becomes one that no driver knows.
fn inner(token: &DriverToken) -> DriverToken {
    let counted = token.get::<CountedToken>().ok();
    counted.and_then(|c| c.inner.clone()).unwrap_or_else(|| DriverToken::new(()))
}

struct SwitchLayer<T> {
    switch: OutageSwitch,
    inner: T,
}

#[async_trait]
impl DriverLayer for SwitchLayer<Arc<dyn Driver>> {
    fn inner(&self) -> &dyn Driver {
        &*self.inner
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        self.switch.check()?;
        let inner = self.inner.open_sender(to).await?;
        Ok(Arc::new(SwitchLayer { switch: self.switch.clone(), inner }))
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        self.switch.check()?;
        let (receiver, settler) = self.inner.open_receiver(from).await?;
        let receiver = SwitchLayer { switch: self.switch.clone(), inner: receiver };
        Ok((Box::new(receiver), Arc::new(SwitchLayer { switch: self.switch.clone(), inner: settler })))
    }
}

#[async_trait]
impl Sender for SwitchLayer<Arc<dyn Sender>> {
    fn batching(&self) -> Batching {
        self.inner.batching()
    }

    fn prepare(&self, message: Outgoing) -> Result<PreparedMessage> {
        let prepared = self.inner.prepare(message)?;
        let counted = CountedToken::new(&self.switch, true, prepared.native);
        Ok(PreparedMessage::new(prepared.message, prepared.size).native(counted))
    }

    fn held_back(&self) -> Option<Error> {
        self.inner.held_back()
    }

    async fn send(&self, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        if let Err(e) = self.switch.check() {
            return e.for_each_of(batch.len());
        }
        let own = |p: &PreparedMessage| {
            let mut own = PreparedMessage::new(p.message.clone(), p.size);
            own.native = p.native.as_ref().and_then(|t| t.get::<CountedToken>().ok()).and_then(|c| c.inner.clone());
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
impl Receiver for SwitchLayer<Box<dyn Receiver>> {
    async fn receive(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
        self.switch.check()?;
        self.switch.0.receiving.up();
        let receiving = ReceiveCall(&self.switch.0.receiving);
        let mut batch = self.inner.receive(max).await?;
        drop(receiving);
        for received in &mut batch {
            received.token = DriverToken::new(CountedToken::new(&self.switch, false, Some(received.token.clone())));
        }
        Ok(batch)
    }

    async fn close(&mut self) -> Result<()> {
        self.inner.close().await
    }
}

#[async_trait]
impl Settler for SwitchLayer<Arc<dyn Settler>> {
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
