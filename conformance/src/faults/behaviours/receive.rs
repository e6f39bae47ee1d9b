//! Faults of receiving.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;

use async_trait::async_trait;
use polybus_core::{
    Error, ErrorKind, Outgoing, Result, Source,
    driver::{Driver, PreparedMessage, ReceivedMessage, Receiver, Settlement, Settler},
    topology::{Entity, TypeFilter},
};
use tokio::{sync::mpsc, task::JoinHandle};

use super::faulty_driver::{FaultBehaviour, ReceivePath, SendPath};

/// Changes received messages.
pub(crate) struct MisreadsMessage(pub(crate) fn(&ReceivePath, &mut ReceivedMessage));

#[async_trait]
impl FaultBehaviour for MisreadsMessage {
    async fn receive(&self, at: &ReceivePath, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        let mut batch = receiver.receive(max).await?;
        batch.iter_mut().for_each(|received| (self.0)(at, received));
        Ok(batch)
    }
}

pub(crate) fn edit(received: &mut ReceivedMessage, f: impl FnOnce(&mut polybus_core::message::EnvelopeFields)) {
    received.envelope = received.envelope.clone().edit(f);
}

/// Opens consumers with other settings.
pub(crate) struct OpensWith(pub(crate) fn(&mut Entity<Source>));

#[async_trait]
impl FaultBehaviour for OpensWith {
    async fn open_receiver(
        &self,
        driver: &dyn Driver,
        from: &Entity<Source>,
    ) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        let mut from = from.clone();
        (self.0)(&mut from);
        driver.open_receiver(&from).await
    }
}

/// Hands out more than the prefetch, and more than was asked for.
pub(crate) struct IgnoresPrefetch;

#[async_trait]
impl FaultBehaviour for IgnoresPrefetch {
    async fn open_receiver(
        &self,
        driver: &dyn Driver,
        from: &Entity<Source>,
    ) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        let mut from = from.clone();
        from.prefetch = from.prefetch.saturating_mul(3);
        driver.open_receiver(&from).await
    }

    async fn receive(&self, _: &ReceivePath, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        receiver.receive(max.saturating_mul(3)).await
    }
}

/// Hands out every message twice.
pub(crate) struct HandsOutTwice;

#[async_trait]
impl FaultBehaviour for HandsOutTwice {
    async fn receive(&self, _: &ReceivePath, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        let batch = receiver.receive(max).await?;
        Ok(batch.into_iter().flat_map(|r| [r.clone(), r]).collect())
    }
}

/// Keeps received messages in the future of the call: dropping the call loses them.
pub(crate) struct LosesWhenDropped;

struct LossOnDrop<'a>(&'a ReceivePath, Vec<ReceivedMessage>);

impl Drop for LossOnDrop<'_> {
    fn drop(&mut self) {
        let (settler, lost) = (self.0.settler.clone(), std::mem::take(&mut self.1));
        if !lost.is_empty() {
            tokio::spawn(async move {
                let acks = lost
                    .into_iter()
                    .map(|r| polybus_core::driver::SettleRequest::new(r.token, r.envelope, r.attempt, Settlement::Ack));
                settler.settle(&acks.collect::<Vec<_>>()).await;
            });
        }
    }
}

#[async_trait]
impl FaultBehaviour for LosesWhenDropped {
    async fn receive(&self, at: &ReceivePath, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        let mut bomb = LossOnDrop(at, receiver.receive(max).await?);
        tokio::time::sleep(Duration::from_millis(5)).await;
        Ok(std::mem::take(&mut bomb.1))
    }
}

/// Receives ahead of the calls, and keeps messages while their locks run out.
pub(crate) struct FetchesAhead;

struct AheadReceiver {
    inner: Arc<tokio::sync::Mutex<Box<dyn Receiver>>>,
    came: mpsc::UnboundedReceiver<Result<Vec<ReceivedMessage>>>,
    fetching: JoinHandle<()>,
}

#[async_trait]
impl Receiver for AheadReceiver {
    async fn receive(&mut self, _: usize) -> Result<Vec<ReceivedMessage>> {
        self.came.recv().await.unwrap_or_else(|| Err(Error::new(ErrorKind::Closed, "closed")))
    }

    async fn close(&mut self) -> Result<()> {
        self.fetching.abort();
        self.inner.lock().await.close().await
    }
}

#[async_trait]
impl FaultBehaviour for FetchesAhead {
    async fn open_receiver(
        &self,
        driver: &dyn Driver,
        from: &Entity<Source>,
    ) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        let (receiver, settler) = driver.open_receiver(from).await?;
        let inner = Arc::new(tokio::sync::Mutex::new(receiver));
        let (tell, came) = mpsc::unbounded_channel();
        let ahead = inner.clone();
        let fetching = tokio::spawn(async move {
            loop {
                let fetched = ahead.lock().await.receive(1).await;
                let ended = fetched.is_err();
                if tell.send(fetched).is_err() || ended {
                    return;
                }
            }
        });
        Ok((Box::new(AheadReceiver { inner, came, fetching }), settler))
    }
}

/// Returns messages only at the end of the poll.
pub(crate) struct PollsToTheEnd;

#[async_trait]
impl FaultBehaviour for PollsToTheEnd {
    async fn receive(&self, _: &ReceivePath, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        tokio::time::sleep(Duration::from_secs(5)).await;
        receiver.receive(max).await
    }
}

/// Gives each message to one subscription of the topic alone.
#[derive(Default)]
pub(crate) struct SiblingsCompete(Mutex<BTreeMap<Box<str>, Source>>);

#[async_trait]
impl FaultBehaviour for SiblingsCompete {
    async fn receive(&self, at: &ReceivePath, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        let batch = receiver.receive(max).await?;
        let mut kept = Vec::new();
        for received in batch {
            let owner = self
                .0
                .lock()
                .entry(received.envelope.id.clone())
                .or_insert_with(|| at.from.name.live().clone())
                .clone();
            if owner == *at.from.name.live() {
                kept.push(received);
            } else {
                at.settle_held(&received, Settlement::Ack).await?;
            }
        }
        Ok(kept)
    }
}

/// Drops messages that the type filter should let through.
pub(crate) struct FilterDrops(pub(crate) fn(&TypeFilter, &str) -> bool);

#[async_trait]
impl FaultBehaviour for FilterDrops {
    async fn receive(&self, at: &ReceivePath, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        let mut kept = Vec::new();
        for received in receiver.receive(max).await? {
            let (types, event_type) = (&at.from.settings.types, &received.envelope.event_type);
            if types.iter().any(|t| t.matches(event_type) && (self.0)(t, event_type)) {
                at.settle_held(&received, Settlement::Ack).await?;
            } else {
                kept.push(received);
            }
        }
        Ok(kept)
    }
}

/// Acks what the consumer's own list of types does not want.
pub(crate) struct AcksUnwanted;

#[async_trait]
impl FaultBehaviour for AcksUnwanted {
    async fn receive(&self, at: &ReceivePath, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        let types = &at.from.settings.types;
        let mut kept = Vec::new();
        for received in receiver.receive(max).await? {
            if types.is_empty() || types.iter().any(|t| t.matches(&received.envelope.event_type)) {
                kept.push(received);
            } else {
                at.settle_held(&received, Settlement::Ack).await?;
            }
        }
        Ok(kept)
    }
}

/// Gives every message a type that its filter wants.
pub(crate) fn wanted_type(at: &ReceivePath, received: &mut ReceivedMessage) {
    if let Some(wanted) = at.from.settings.types.first() {
        let wanted = match wanted {
            TypeFilter::Exact(t) => t.clone(),
            other => other.to_string().replace(".*", ".any").into(),
        };
        edit(received, |p| p.event_type = wanted);
    }
}

/// How a missing source is answered.
pub(crate) enum MissingSource {
    /// With a consumer that never gets anything.
    Silent,
    /// With another error.
    Answers(ErrorKind),
    /// By making the entity again.
    Recreated,
}

struct SilentConsumer;

#[async_trait]
impl Receiver for SilentConsumer {
    async fn receive(&mut self, _: usize) -> Result<Vec<ReceivedMessage>> {
        std::future::pending().await
    }

    async fn close(&mut self) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Settler for SilentConsumer {
    fn batching(&self) -> polybus_core::driver::Batching {
        polybus_core::driver::Batching::new(1, 1, 1)
    }

    async fn settle(&self, batch: &[polybus_core::driver::SettleRequest]) -> Vec<Result<()>> {
        batch.iter().map(|_| Ok(())).collect()
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// Answers wrongly for a missing source, at opening and later.
pub(crate) struct MisleadsAboutMissing(pub(crate) MissingSource);

impl MisleadsAboutMissing {
    fn missing(e: &polybus_core::Error) -> bool {
        e.kind() == ErrorKind::NotFound
    }
}

#[async_trait]
impl FaultBehaviour for MisleadsAboutMissing {
    async fn open_receiver(
        &self,
        driver: &dyn Driver,
        from: &Entity<Source>,
    ) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        match (driver.open_receiver(from).await, &self.0) {
            (Err(e), MissingSource::Silent) if Self::missing(&e) => {
                Ok((Box::new(SilentConsumer), Arc::new(SilentConsumer)))
            }
            (Err(e), MissingSource::Answers(kind)) if Self::missing(&e) => {
                Err(polybus_core::Error::new(*kind, "not there"))
            }
            (Err(e), MissingSource::Recreated) if Self::missing(&e) => {
                create(driver, from).await?;
                driver.open_receiver(from).await
            }
            (opened, _) => opened,
        }
    }

    async fn receive(&self, at: &ReceivePath, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        match (receiver.receive(max).await, &self.0) {
            (Err(e), MissingSource::Silent) if Self::missing(&e) => std::future::pending().await,
            (Err(e), MissingSource::Answers(kind)) if Self::missing(&e) => {
                Err(polybus_core::Error::new(*kind, "not there"))
            }
            (Err(e), MissingSource::Recreated) if Self::missing(&e) => {
                create(&*at.driver, &at.from).await?;
                std::future::pending().await
            }
            (received, _) => received,
        }
    }
}

async fn create(driver: &dyn Driver, from: &Entity<Source>) -> Result<()> {
    let mut plan = polybus_core::topology::DeclarePlan::new();
    let mut live = from.clone();
    live.name = from.name.live().clone();
    plan.sources.push(live);
    driver.declare(&plan, polybus_core::topology::DeclareMode::Create).await.map(|_| ())
}

/// Opens no new consumer of a source that was missing once.
#[derive(Default)]
pub(crate) struct StaysAway(Mutex<Vec<Source>>);

#[async_trait]
impl FaultBehaviour for StaysAway {
    async fn receive(&self, at: &ReceivePath, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        if self.0.lock().contains(&at.from.name) {
            return Err(Error::new(ErrorKind::NotFound, "it was deleted once"));
        }
        let received = receiver.receive(max).await;
        if received.as_ref().is_err_and(|e| e.kind() == ErrorKind::NotFound) {
            self.0.lock().push(at.from.name.clone());
        }
        received
    }
}

/// Stores all messages of an ordered source under one key, so that each waits for all others.
#[derive(Default)]
pub(crate) struct OneLane(Mutex<BTreeMap<Box<str>, Option<Box<str>>>>);

#[async_trait]
impl FaultBehaviour for OneLane {
    fn prepare(&self, at: &SendPath, mut message: Outgoing) -> Result<PreparedMessage> {
        if at.to.settings.ordered {
            self.0.lock().insert(message.envelope.id.clone(), message.envelope.key.clone());
            message.envelope = message.envelope.key("one");
        }
        at.sender.prepare(message)
    }

    async fn receive(&self, _: &ReceivePath, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        let mut batch = receiver.receive(max).await?;
        for received in &mut batch {
            if let Some(key) = self.0.lock().get(&received.envelope.id).cloned() {
                edit(received, |p| p.key = key);
            }
        }
        Ok(batch)
    }
}

/// Stores each message under a key of its own, so that several of one key are handed out at once.
#[derive(Default)]
pub(crate) struct ManyLanes(OneLane);

#[async_trait]
impl FaultBehaviour for ManyLanes {
    fn prepare(&self, at: &SendPath, mut message: Outgoing) -> Result<PreparedMessage> {
        if at.to.settings.ordered {
            self.0.0.lock().insert(message.envelope.id.clone(), message.envelope.key.clone());
            let id = message.envelope.id.clone();
            message.envelope = message.envelope.key(id);
        }
        at.sender.prepare(message)
    }

    async fn receive(&self, at: &ReceivePath, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        self.0.receive(at, receiver, max).await
    }
}

/// Reverses the messages that are handed out together.
pub(crate) struct HandsOutBackwards;

#[async_trait]
impl FaultBehaviour for HandsOutBackwards {
    async fn receive(&self, _: &ReceivePath, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        let mut batch = receiver.receive(max).await?;
        batch.reverse();
        Ok(batch)
    }
}

/// Hides when a message was dead-lettered, and how many dead letters there are.
pub(crate) struct HidesDeathTime;

#[async_trait]
impl FaultBehaviour for HidesDeathTime {
    async fn stats(&self, driver: &dyn Driver, of: &Entity<Source>) -> Result<polybus_core::topology::SourceStats> {
        let mut stats = driver.stats(of).await?;
        stats.dead_lettered = None;
        Ok(stats)
    }

    async fn receive(&self, _: &ReceivePath, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        let mut batch = receiver.receive(max).await?;
        for received in &mut batch {
            if let Some(letter) = &mut received.dead_letter {
                letter.time = None;
            }
        }
        Ok(batch)
    }
}
