//! A layer that makes a driver refuse calls for a while, as a broker in trouble would.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use polybus_core::{
    Address, Error, Outgoing, Receipt, Result, Source,
    driver::{
        Batching, Driver, DriverLayer, DriverToken, PreparedMessage, ReceivedMessage, Receiver, Sender, SettleRequest,
        Settler,
    },
    topology::Entity,
};
use tokio::{sync::watch, time::Instant};

/// Which calls of a driver are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CallKind {
    /// Opening a sender, and sending.
    Publish,
    /// Opening a receiver, and receiving. A `receive` that waits is answered at once.
    Receive,
    /// Settling, and extending locks.
    Settle,
}

/// The answer to refused calls, and which calls these are.
#[derive(Clone, Debug, Default)]
struct CurrentAnswer {
    answer: Option<Error>,
    calls: Vec<CallKind>,
}

/// A switch that makes a driver refuse calls: `cx.setup(topology).wrap(flaky.around())`.
///
/// A refused call does not reach the driver below. Clones share the switch: several connections refuse together.
///
/// ```
/// use polybus_conformance::{CallKind, FlakyBroker};
/// use polybus_core::{Error, ErrorKind};
///
/// let flaky = FlakyBroker::new();
/// flaky.answer(&[CallKind::Publish], Error::new(ErrorKind::Throttled, "too fast"));
/// flaky.well();
/// ```
#[derive(Clone)]
pub struct FlakyBroker {
    trouble: Arc<watch::Sender<CurrentAnswer>>,
    refused: Arc<AtomicUsize>,
}

impl Default for FlakyBroker {
    fn default() -> Self {
        Self { trouble: Arc::new(watch::Sender::new(CurrentAnswer::default())), refused: Arc::default() }
    }
}

impl FlakyBroker {
    /// A switch that refuses nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The layer with this switch, for [`BusSetup::wrap`](crate::BusSetup::wrap).
    pub fn around(&self) -> impl FnOnce(Arc<dyn Driver>) -> Arc<dyn Driver> + Send + 'static {
        let flaky = self.clone();
        move |inner| Arc::new(FlakyLayer { flaky, inner })
    }

    /// Answers these calls with an error from now on, also those that wait.
    pub fn answer(&self, calls: &[CallKind], with: Error) {
        self.trouble.send_replace(CurrentAnswer { answer: Some(with), calls: calls.to_vec() });
    }

    /// Answers all calls with an error from now on.
    pub fn answer_all(&self, with: Error) {
        self.answer(&[CallKind::Publish, CallKind::Receive, CallKind::Settle], with);
    }

    /// Lets all calls through again.
    pub fn well(&self) {
        self.trouble.send_replace(CurrentAnswer::default());
    }

    /// How many calls were refused so far.
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::SeqCst)
    }

    fn check(&self, call: CallKind) -> Result<()> {
        let trouble = self.trouble.borrow();
        match &trouble.answer {
            Some(e) if trouble.calls.contains(&call) => {
                self.refused.fetch_add(1, Ordering::SeqCst);
                Err(e.clone())
            }
            _ => Ok(()),
        }
    }
}

struct FlakyLayer<T> {
    flaky: FlakyBroker,
    inner: T,
}

#[async_trait]
impl DriverLayer for FlakyLayer<Arc<dyn Driver>> {
    fn inner(&self) -> &dyn Driver {
        &*self.inner
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        self.flaky.check(CallKind::Publish)?;
        let inner = self.inner.open_sender(to).await?;
        Ok(Arc::new(FlakyLayer { flaky: self.flaky.clone(), inner }))
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        self.flaky.check(CallKind::Receive)?;
        let (receiver, settler) = self.inner.open_receiver(from).await?;
        let receiver = FlakyLayer { flaky: self.flaky.clone(), inner: receiver };
        Ok((Box::new(receiver), Arc::new(FlakyLayer { flaky: self.flaky.clone(), inner: settler })))
    }
}

#[async_trait]
impl Sender for FlakyLayer<Arc<dyn Sender>> {
    fn batching(&self) -> Batching {
        self.inner.batching()
    }

    fn prepare(&self, message: Outgoing) -> Result<PreparedMessage> {
        self.inner.prepare(message)
    }

    fn held_back(&self) -> Option<Error> {
        self.inner.held_back()
    }

    async fn send(&self, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        match self.flaky.check(CallKind::Publish) {
            Ok(()) => self.inner.send(batch).await,
            Err(e) => e.for_each_of(batch.len()),
        }
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

#[async_trait]
impl Receiver for FlakyLayer<Box<dyn Receiver>> {
    async fn receive(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
        let mut trouble = self.flaky.trouble.subscribe();
        loop {
            self.flaky.check(CallKind::Receive)?;
            tokio::select! {
                biased;
                Ok(()) = trouble.changed() => {}
                received = self.inner.receive(max) => return received,
            }
        }
    }

    async fn close(&mut self) -> Result<()> {
        self.inner.close().await
    }
}

#[async_trait]
impl Settler for FlakyLayer<Arc<dyn Settler>> {
    fn batching(&self) -> Batching {
        self.inner.batching()
    }

    async fn settle(&self, batch: &[SettleRequest]) -> Vec<Result<()>> {
        match self.flaky.check(CallKind::Settle) {
            Ok(()) => self.inner.settle(batch).await,
            Err(e) => e.for_each_of(batch.len()),
        }
    }

    async fn extend(&self, tokens: &[DriverToken], by: Duration) -> Vec<Result<Instant>> {
        match self.flaky.check(CallKind::Settle) {
            Ok(()) => self.inner.extend(tokens, by).await,
            Err(e) => e.for_each_of(tokens.len()),
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
