//! Promises of receiving, broken.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use polybus_core::{
    Error, ErrorKind, Outgoing, Result, Source,
    driver::{Driver, PreparedMessage, ReceivedMessage, Receiver, Settlement, Settler},
    topology::{Entity, TypeFilter},
};
use tokio::{sync::mpsc, task::JoinHandle};

use super::wrapper::{Break, In, Out, lock};

/// Changes what was received.
pub(super) struct Misread(pub(super) fn(&In, &mut ReceivedMessage));

#[async_trait]
impl Break for Misread {
    async fn receive(&self, at: &In, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        let mut batch = receiver.receive(max).await?;
        batch.iter_mut().for_each(|received| (self.0)(at, received));
        Ok(batch)
    }
}

pub(super) fn edit(received: &mut ReceivedMessage, f: impl FnOnce(&mut polybus_core::message::EnvelopeFields)) {
    received.envelope = received.envelope.clone().edit(f);
}

/// Opens consumers with other settings.
pub(super) struct OpensWith(pub(super) fn(&mut Entity<Source>));

#[async_trait]
impl Break for OpensWith {
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
pub(super) struct IgnoresPrefetch;

#[async_trait]
impl Break for IgnoresPrefetch {
    async fn open_receiver(
        &self,
        driver: &dyn Driver,
        from: &Entity<Source>,
    ) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        let mut from = from.clone();
        from.prefetch = from.prefetch.saturating_mul(3);
        driver.open_receiver(&from).await
    }

    async fn receive(&self, _: &In, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        receiver.receive(max.saturating_mul(3)).await
    }
}

/// Hands out every message twice.
pub(super) struct HandsOutTwice;

#[async_trait]
impl Break for HandsOutTwice {
    async fn receive(&self, _: &In, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        let batch = receiver.receive(max).await?;
        Ok(batch.into_iter().flat_map(|r| [r.clone(), r]).collect())
    }
}

/// Keeps received messages in the future, not in the receiver: a dropped call loses them.
pub(super) struct LosesWhenDropped;

struct Bomb<'a>(&'a In, Vec<ReceivedMessage>);

impl Drop for Bomb<'_> {
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
impl Break for LosesWhenDropped {
    async fn receive(&self, at: &In, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        let mut bomb = Bomb(at, receiver.receive(max).await?);
        tokio::time::sleep(Duration::from_millis(5)).await;
        Ok(std::mem::take(&mut bomb.1))
    }
}

/// Takes messages before they are asked for, and keeps them while their locks run out.
pub(super) struct FetchesAhead;

struct Ahead {
    inner: Arc<tokio::sync::Mutex<Box<dyn Receiver>>>,
    came: mpsc::UnboundedReceiver<Result<Vec<ReceivedMessage>>>,
    fetching: JoinHandle<()>,
}

#[async_trait]
impl Receiver for Ahead {
    async fn receive(&mut self, _: usize) -> Result<Vec<ReceivedMessage>> {
        self.came.recv().await.unwrap_or_else(|| Err(Error::new(ErrorKind::Closed, "closed")))
    }

    async fn close(&mut self) -> Result<()> {
        self.fetching.abort();
        self.inner.lock().await.close().await
    }
}

#[async_trait]
impl Break for FetchesAhead {
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
        Ok((Box::new(Ahead { inner, came, fetching }), settler))
    }
}

/// Waits for its poll to end before it returns anything.
pub(super) struct PollsToTheEnd;

#[async_trait]
impl Break for PollsToTheEnd {
    async fn receive(&self, _: &In, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        tokio::time::sleep(Duration::from_secs(5)).await;
        receiver.receive(max).await
    }
}

/// One subscription's message is not seen by its siblings.
#[derive(Default)]
pub(super) struct SiblingsCompete(Mutex<BTreeMap<Box<str>, Source>>);

#[async_trait]
impl Break for SiblingsCompete {
    async fn receive(&self, at: &In, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        let batch = receiver.receive(max).await?;
        let mut kept = Vec::new();
        for received in batch {
            let owner = lock(&self.0)
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

/// Drops what a filter in use should let through.
pub(super) struct FilterDrops(pub(super) fn(&TypeFilter, &str) -> bool);

#[async_trait]
impl Break for FilterDrops {
    async fn receive(&self, at: &In, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
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
pub(super) struct AcksUnwanted;

#[async_trait]
impl Break for AcksUnwanted {
    async fn receive(&self, at: &In, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
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

/// Says that every message is of the type its filter wants.
pub(super) fn wanted_type(at: &In, received: &mut ReceivedMessage) {
    if let Some(wanted) = at.from.settings.types.first() {
        let wanted = match wanted {
            TypeFilter::Exact(t) => t.clone(),
            other => other.to_string().replace(".*", ".any").into(),
        };
        edit(received, |p| p.event_type = wanted);
    }
}

/// What to do with a source that is not there.
pub(super) enum Missing {
    /// A consumer that never gets anything.
    Silent,
    /// Another error.
    Answers(ErrorKind),
    /// The entity, made again.
    Recreated,
}

struct Nothing;

#[async_trait]
impl Receiver for Nothing {
    async fn receive(&mut self, _: usize) -> Result<Vec<ReceivedMessage>> {
        std::future::pending().await
    }

    async fn close(&mut self) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Settler for Nothing {
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

/// Misleads about sources that are not there, at opening and later.
pub(super) struct Misleads(pub(super) Missing);

impl Misleads {
    fn missing(e: &polybus_core::Error) -> bool {
        e.kind() == ErrorKind::NotFound
    }
}

#[async_trait]
impl Break for Misleads {
    async fn open_receiver(
        &self,
        driver: &dyn Driver,
        from: &Entity<Source>,
    ) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        match (driver.open_receiver(from).await, &self.0) {
            (Err(e), Missing::Silent) if Self::missing(&e) => Ok((Box::new(Nothing), Arc::new(Nothing))),
            (Err(e), Missing::Answers(kind)) if Self::missing(&e) => Err(polybus_core::Error::new(*kind, "not there")),
            (Err(e), Missing::Recreated) if Self::missing(&e) => {
                create(driver, from).await?;
                driver.open_receiver(from).await
            }
            (opened, _) => opened,
        }
    }

    async fn receive(&self, at: &In, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        match (receiver.receive(max).await, &self.0) {
            (Err(e), Missing::Silent) if Self::missing(&e) => std::future::pending().await,
            (Err(e), Missing::Answers(kind)) if Self::missing(&e) => Err(polybus_core::Error::new(*kind, "not there")),
            (Err(e), Missing::Recreated) if Self::missing(&e) => {
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

/// Does not attach anew once its source was gone.
#[derive(Default)]
pub(super) struct StaysAway(Mutex<Vec<Source>>);

#[async_trait]
impl Break for StaysAway {
    async fn receive(&self, at: &In, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        if lock(&self.0).contains(&at.from.name) {
            return Err(Error::new(ErrorKind::NotFound, "it was deleted once"));
        }
        let received = receiver.receive(max).await;
        if received.as_ref().is_err_and(|e| e.kind() == ErrorKind::NotFound) {
            lock(&self.0).push(at.from.name.clone());
        }
        received
    }
}

/// All keys of an ordered source share one lane.
#[derive(Default)]
pub(super) struct OneLane(Mutex<BTreeMap<Box<str>, Option<Box<str>>>>);

#[async_trait]
impl Break for OneLane {
    fn prepare(&self, at: &Out, mut message: Outgoing) -> Result<PreparedMessage> {
        if at.to.settings.ordered {
            lock(&self.0).insert(message.envelope.id.clone(), message.envelope.key.clone());
            message.envelope = message.envelope.key("one");
        }
        at.sender.prepare(message)
    }

    async fn receive(&self, _: &In, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        let mut batch = receiver.receive(max).await?;
        for received in &mut batch {
            if let Some(key) = lock(&self.0).get(&received.envelope.id).cloned() {
                edit(received, |p| p.key = key);
            }
        }
        Ok(batch)
    }
}

/// Every message has a lane of its own: several of a key are handed out at once.
#[derive(Default)]
pub(super) struct ManyLanes(OneLane);

#[async_trait]
impl Break for ManyLanes {
    fn prepare(&self, at: &Out, mut message: Outgoing) -> Result<PreparedMessage> {
        if at.to.settings.ordered {
            lock(&self.0.0).insert(message.envelope.id.clone(), message.envelope.key.clone());
            let id = message.envelope.id.clone();
            message.envelope = message.envelope.key(id);
        }
        at.sender.prepare(message)
    }

    async fn receive(&self, at: &In, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        self.0.receive(at, receiver, max).await
    }
}

/// Swaps messages that are handed out together.
pub(super) struct HandsOutBackwards;

#[async_trait]
impl Break for HandsOutBackwards {
    async fn receive(&self, _: &In, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        let mut batch = receiver.receive(max).await?;
        batch.reverse();
        Ok(batch)
    }
}

/// Dead letters do not tell when they died, nor how many there are.
pub(super) struct Timeless;

#[async_trait]
impl Break for Timeless {
    async fn stats(&self, driver: &dyn Driver, of: &Entity<Source>) -> Result<polybus_core::topology::SourceStats> {
        let mut stats = driver.stats(of).await?;
        stats.dead_lettered = None;
        Ok(stats)
    }

    async fn receive(&self, _: &In, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        let mut batch = receiver.receive(max).await?;
        for received in &mut batch {
            if let Some(letter) = &mut received.dead_letter {
                letter.time = None;
            }
        }
        Ok(batch)
    }
}
