//! The driver around another one: each call goes through a [`FaultBehaviour`], which changes one thing.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

use async_trait::async_trait;
use polybus_core::{
    Address, Error, ErrorKind, Outgoing, Receipt, Result, Source,
    driver::{
        Batching, Driver, DriverLayer, DriverToken, PreparedMessage, ReceivedMessage, Receiver, Sender, SettleRequest,
        Settlement, Settler,
    },
    topology::{DeclareMode, DeclarePlan, DeclareReport, Entity, SourceStats},
};
use tokio::time::Instant;

/// What a behaviour knows of the sender whose call it changes.
pub(crate) struct SendPath {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) to: Entity<Address>,
    pub(crate) sender: Arc<dyn Sender>,
}

impl SendPath {
    /// Sends these messages over the sender below, as new ones.
    pub(crate) async fn send(&self, messages: impl IntoIterator<Item = Outgoing> + Send) -> Vec<Result<Receipt>> {
        let batch: Result<Vec<PreparedMessage>> = messages.into_iter().map(|m| self.sender.prepare(m)).collect();
        match batch {
            Ok(batch) if batch.is_empty() => Vec::new(),
            Ok(batch) => self.sender.send(&batch).await,
            Err(e) => vec![Err(e)],
        }
    }
}

/// What a behaviour knows of the consumer whose call it changes.
pub(crate) struct ReceivePath {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) from: Entity<Source>,
    pub(crate) settler: Arc<dyn Settler>,
    held: Mutex<BTreeMap<u64, ReceivedMessage>>,
}

/// The token of the driver below under a number, by which a held message is found.
struct NumberedToken(u64, DriverToken);

impl ReceivePath {
    pub(crate) fn is_dead(&self) -> bool {
        self.from.name.is_dead_letters()
    }

    /// The messages that were handed out and are not settled, oldest first. During its settlement a message is not one.
    pub(crate) fn held(&self) -> Vec<ReceivedMessage> {
        self.held.lock().values().cloned().collect()
    }

    /// Settles a message in this way, whatever was asked for.
    pub(crate) async fn settle(&self, settle: &SettleRequest, how: Settlement) -> Result<()> {
        let mut settle = settle.clone();
        settle.how = how;
        let answer = self.settler.settle(std::slice::from_ref(&settle)).await.pop();
        answer.unwrap_or_else(|| Err(Error::new(ErrorKind::Unexpected, "no answer")))
    }

    /// Settles a held message that nobody asked to settle.
    pub(crate) async fn settle_held(&self, held: &ReceivedMessage, how: Settlement) -> Result<()> {
        let settle = SettleRequest::new(held.token.clone(), held.envelope.clone(), held.attempt, Settlement::Ack);
        self.settle(&settle, how).await
    }

    /// Publishes to the queue or topic from which this source gets its messages.
    pub(crate) async fn publish(&self, message: impl Into<Outgoing> + Send) -> Result<()> {
        let physical = self.from.parent.clone().unwrap_or_else(|| self.from.physical.clone());
        let mut to = Entity::new(self.from.name.address(), physical);
        to.settings.ordered = self.from.settings.ordered;
        let sender = self.driver.open_sender(&to).await?;
        let prepared = sender.prepare(message.into())?;
        sender
            .send(&[prepared])
            .await
            .pop()
            .unwrap_or_else(|| Err(Error::new(ErrorKind::Unexpected, "no answer")))
            .map(|_| ())
    }
}

/// What a faulty driver does in each call. What is not overridden forwards to the driver below.
#[async_trait]
pub(crate) trait FaultBehaviour: Send + Sync + 'static {
    async fn declare(&self, driver: &dyn Driver, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport> {
        driver.declare(plan, mode).await
    }

    async fn stats(&self, driver: &dyn Driver, of: &Entity<Source>) -> Result<SourceStats> {
        driver.stats(of).await
    }

    async fn purge(&self, driver: &dyn Driver, from: &Entity<Source>) -> Result<u64> {
        driver.purge(from).await
    }

    async fn delete(&self, driver: &dyn Driver, plan: &DeclarePlan) -> Result<()> {
        driver.delete(plan).await
    }

    async fn close(&self, driver: &dyn Driver) -> Result<()> {
        driver.close().await
    }

    async fn open_receiver(
        &self,
        driver: &dyn Driver,
        from: &Entity<Source>,
    ) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        driver.open_receiver(from).await
    }

    fn prepare(&self, at: &SendPath, message: Outgoing) -> Result<PreparedMessage> {
        at.sender.prepare(message)
    }

    async fn send(&self, at: &SendPath, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        at.sender.send(batch).await
    }

    async fn receive(
        &self,
        _at: &ReceivePath,
        receiver: &mut dyn Receiver,
        max: usize,
    ) -> Result<Vec<ReceivedMessage>> {
        receiver.receive(max).await
    }

    async fn settle(&self, at: &ReceivePath, batch: &[SettleRequest]) -> Vec<Result<()>> {
        at.settler.settle(batch).await
    }

    async fn extend(&self, at: &ReceivePath, tokens: &[DriverToken], by: Duration) -> Vec<Result<Instant>> {
        at.settler.extend(tokens, by).await
    }

    fn holds(&self, at: &ReceivePath, token: &DriverToken) -> bool {
        at.settler.holds(token)
    }

    async fn close_receiver(&self, _at: &ReceivePath, receiver: &mut dyn Receiver) -> Result<()> {
        receiver.close().await
    }

    async fn close_settler(&self, at: &ReceivePath) -> Result<()> {
        at.settler.close().await
    }
}

/// The driver with this behaviour around it. Connections that share `promise` share its state.
pub(crate) fn broken(inner: Arc<dyn Driver>, promise: Arc<dyn FaultBehaviour>) -> Arc<dyn Driver> {
    Arc::new(FaultyDriver { inner, promise, calls: Arc::default() })
}

struct FaultyDriver {
    inner: Arc<dyn Driver>,
    promise: Arc<dyn FaultBehaviour>,
    calls: Arc<AtomicU64>,
}

#[async_trait]
impl DriverLayer for FaultyDriver {
    fn inner(&self) -> &dyn Driver {
        &*self.inner
    }

    async fn declare(&self, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport> {
        self.promise.declare(&*self.inner, plan, mode).await
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        let sender = self.inner.open_sender(to).await?;
        let at = Arc::new(SendPath { driver: self.inner.clone(), to: to.clone(), sender });
        Ok(Arc::new(FaultySender { at, promise: self.promise.clone() }))
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        let (receiver, settler) = self.promise.open_receiver(&*self.inner, from).await?;
        let at =
            Arc::new(ReceivePath { driver: self.inner.clone(), from: from.clone(), settler, held: Mutex::default() });
        let settler = FaultySettler { at: at.clone(), promise: self.promise.clone() };
        Ok((
            Box::new(FaultyReceiver { calls: self.calls.clone(), at, receiver, promise: self.promise.clone() }),
            Arc::new(settler),
        ))
    }

    async fn stats(&self, of: &Entity<Source>) -> Result<SourceStats> {
        self.promise.stats(&*self.inner, of).await
    }

    async fn purge(&self, from: &Entity<Source>) -> Result<u64> {
        self.promise.purge(&*self.inner, from).await
    }

    async fn delete(&self, plan: &DeclarePlan) -> Result<()> {
        self.promise.delete(&*self.inner, plan).await
    }

    async fn close(&self) -> Result<()> {
        self.promise.close(&*self.inner).await
    }
}

struct FaultySender {
    at: Arc<SendPath>,
    promise: Arc<dyn FaultBehaviour>,
}

#[async_trait]
impl Sender for FaultySender {
    fn batching(&self) -> Batching {
        self.at.sender.batching()
    }

    fn prepare(&self, message: Outgoing) -> Result<PreparedMessage> {
        self.promise.prepare(&self.at, message)
    }

    fn held_back(&self) -> Option<Error> {
        self.at.sender.held_back()
    }

    async fn send(&self, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        self.promise.send(&self.at, batch).await
    }

    async fn close(&self) -> Result<()> {
        self.at.sender.close().await
    }
}

/// After so many calls of `receive` the driver sleeps before each.
const MANY_CALLS: u64 = 20_000;

struct FaultyReceiver {
    calls: Arc<AtomicU64>,
    at: Arc<ReceivePath>,
    receiver: Box<dyn Receiver>,
    promise: Arc<dyn FaultBehaviour>,
}

#[async_trait]
impl Receiver for FaultyReceiver {
    async fn receive(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        // A message that comes again without end would keep the paused clock from moving, and the scenario from ending.
        if self.calls.fetch_add(1, Ordering::Relaxed) > MANY_CALLS {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let batch = self.promise.receive(&self.at, &mut *self.receiver, max).await?;
        let mut held = self.at.held.lock();
        let tagged = batch.into_iter().map(|mut received| {
            let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
            held.insert(number, received.clone());
            received.token = DriverToken::new(NumberedToken(number, received.token.clone()));
            received
        });
        Ok(tagged.collect())
    }

    async fn close(&mut self) -> Result<()> {
        self.promise.close_receiver(&self.at, &mut *self.receiver).await
    }
}

struct FaultySettler {
    at: Arc<ReceivePath>,
    promise: Arc<dyn FaultBehaviour>,
}

impl FaultySettler {
    fn inner(&self, settle: &SettleRequest) -> Result<SettleRequest> {
        let tag = settle.token.get::<NumberedToken>()?;
        self.at.held.lock().remove(&tag.0);
        Ok(settle.with_token(tag.1.clone()))
    }
}

#[async_trait]
impl Settler for FaultySettler {
    fn batching(&self) -> Batching {
        self.at.settler.batching()
    }

    async fn settle(&self, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let inner: Result<Vec<SettleRequest>> = batch.iter().map(|s| self.inner(s)).collect();
        match inner {
            Ok(inner) => self.promise.settle(&self.at, &inner).await,
            Err(e) => e.for_each_of(batch.len()),
        }
    }

    async fn extend(&self, tokens: &[DriverToken], by: Duration) -> Vec<Result<Instant>> {
        let inner: Result<Vec<DriverToken>> = tokens.iter().map(|t| Ok(t.get::<NumberedToken>()?.1.clone())).collect();
        match inner {
            Ok(inner) => self.promise.extend(&self.at, &inner, by).await,
            Err(e) => e.for_each_of(tokens.len()),
        }
    }

    fn holds(&self, token: &DriverToken) -> bool {
        token.get::<NumberedToken>().is_ok_and(|tag| self.promise.holds(&self.at, &tag.1))
    }

    fn forget(&self, token: &DriverToken) {
        if let Ok(tag) = token.get::<NumberedToken>() {
            self.at.settler.forget(&tag.1);
        }
    }

    async fn close(&self) -> Result<()> {
        self.promise.close_settler(&self.at).await
    }
}
