//! A broker that refuses, throttles or is switched off for a while and comes back: a layer around any driver.

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

/// Which calls of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Calling {
    /// Opening a sender, and sending.
    Publish,
    /// Opening a receiver, and receiving. A call that waits is given up.
    Receive,
    /// Settling and renewing.
    Settle,
}

/// What goes wrong just now.
#[derive(Clone, Debug, Default)]
struct Trouble {
    answer: Option<Error>,
    calls: Vec<Calling>,
}

/// A switch for a broker in trouble: `cx.setup(topology).wrap(flaky.around())`. Nothing of a call that is refused reaches the driver
/// below. Clones share the switch, so that several connections can be in trouble together.
#[derive(Clone)]
pub struct Flaky {
    trouble: Arc<watch::Sender<Trouble>>,
    refused: Arc<AtomicUsize>,
}

impl Default for Flaky {
    fn default() -> Self {
        Self { trouble: Arc::new(watch::Sender::new(Trouble::default())), refused: Arc::default() }
    }
}

impl Flaky {
    /// A broker that is well.
    pub fn new() -> Self {
        Self::default()
    }

    /// For [`Setup::wrap`](crate::Setup::wrap).
    pub fn around(&self) -> impl FnOnce(Arc<dyn Driver>) -> Arc<dyn Driver> + Send + 'static {
        let flaky = self.clone();
        move |inner| Arc::new(Layer { flaky, inner })
    }

    /// From now on these calls are answered in this way, those included that wait.
    pub fn answer(&self, calls: &[Calling], with: Error) {
        self.trouble.send_replace(Trouble { answer: Some(with), calls: calls.to_vec() });
    }

    /// All calls are answered in this way.
    pub fn answer_all(&self, with: Error) {
        self.answer(&[Calling::Publish, Calling::Receive, Calling::Settle], with);
    }

    /// The broker is well again.
    pub fn well(&self) {
        self.trouble.send_replace(Trouble::default());
    }

    /// How many calls were refused so far.
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::SeqCst)
    }

    fn check(&self, call: Calling) -> Result<()> {
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

struct Layer<T> {
    flaky: Flaky,
    inner: T,
}

#[async_trait]
impl DriverLayer for Layer<Arc<dyn Driver>> {
    fn inner(&self) -> &dyn Driver {
        &*self.inner
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        self.flaky.check(Calling::Publish)?;
        let inner = self.inner.open_sender(to).await?;
        Ok(Arc::new(Layer { flaky: self.flaky.clone(), inner }))
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        self.flaky.check(Calling::Receive)?;
        let (receiver, settler) = self.inner.open_receiver(from).await?;
        let receiver = Layer { flaky: self.flaky.clone(), inner: receiver };
        Ok((Box::new(receiver), Arc::new(Layer { flaky: self.flaky.clone(), inner: settler })))
    }
}

#[async_trait]
impl Sender for Layer<Arc<dyn Sender>> {
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
        match self.flaky.check(Calling::Publish) {
            Ok(()) => self.inner.send(batch).await,
            Err(e) => e.for_each_of(batch.len()),
        }
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

#[async_trait]
impl Receiver for Layer<Box<dyn Receiver>> {
    async fn receive(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
        let mut trouble = self.flaky.trouble.subscribe();
        loop {
            self.flaky.check(Calling::Receive)?;
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
impl Settler for Layer<Arc<dyn Settler>> {
    fn batching(&self) -> Batching {
        self.inner.batching()
    }

    async fn settle(&self, batch: &[SettleRequest]) -> Vec<Result<()>> {
        match self.flaky.check(Calling::Settle) {
            Ok(()) => self.inner.settle(batch).await,
            Err(e) => e.for_each_of(batch.len()),
        }
    }

    async fn extend(&self, tokens: &[DriverToken], by: Duration) -> Vec<Result<Instant>> {
        match self.flaky.check(Calling::Settle) {
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
