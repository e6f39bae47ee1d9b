//! Faults of publishing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use parking_lot::Mutex;

use async_trait::async_trait;
use polybus_core::{
    Address, Error, ErrorKind, Outgoing, Receipt, Result, Source,
    driver::{Driver, PreparedMessage},
    message::EnvelopeFields,
    topology::{DeclareMode, DeclarePlan, DeclareReport, Entity},
};

use super::faulty_driver::{FaultBehaviour, SendPath};

fn ok(n: usize) -> Vec<Result<Receipt>> {
    (0..n).map(|_| Ok(Receipt::default())).collect()
}

/// Changes every message on its way to the broker.
pub(crate) struct CorruptsEnvelope(pub(crate) fn(&mut EnvelopeFields));

#[async_trait]
impl FaultBehaviour for CorruptsEnvelope {
    fn prepare(&self, at: &SendPath, mut message: Outgoing) -> Result<PreparedMessage> {
        message.envelope = message.envelope.edit(self.0);
        at.sender.prepare(message)
    }
}

/// Changes the options of every publish.
pub(crate) struct ChangesOptions(pub(crate) fn(&mut Outgoing));

#[async_trait]
impl FaultBehaviour for ChangesOptions {
    fn prepare(&self, at: &SendPath, mut message: Outgoing) -> Result<PreparedMessage> {
        (self.0)(&mut message);
        at.sender.prepare(message)
    }
}

/// Stores something else than the batch, and answers Ok for all of it.
pub(crate) struct StoresAnother(pub(crate) fn(Vec<Outgoing>) -> Vec<Outgoing>);

#[async_trait]
impl FaultBehaviour for StoresAnother {
    async fn send(&self, at: &SendPath, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        let stored = (self.0)(batch.iter().map(|p| p.message.clone()).collect());
        match at.send(stored).await.into_iter().find_map(Result::err) {
            Some(e) => e.for_each_of(batch.len()),
            None => ok(batch.len()),
        }
    }
}

/// Changes the answers to a batch.
pub(crate) struct ChangesAnswers(pub(crate) fn(Vec<Result<Receipt>>) -> Vec<Result<Receipt>>);

#[async_trait]
impl FaultBehaviour for ChangesAnswers {
    async fn send(&self, at: &SendPath, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        (self.0)(at.sender.send(batch).await)
    }
}

/// Answers NotFound as Ok.
pub(crate) fn not_found_is_ok(answers: Vec<Result<Receipt>>) -> Vec<Result<Receipt>> {
    let lie = |r: Result<Receipt>| {
        r.or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(Receipt::default()) } else { Err(e) })
    };
    answers.into_iter().map(lie).collect()
}

/// Answers NotFound as an outage that may pass.
pub(crate) fn seems_unavailable(answers: Vec<Result<Receipt>>) -> Vec<Result<Receipt>> {
    let change = |r: Result<Receipt>| {
        r.map_err(|e| {
            if e.kind() == ErrorKind::NotFound { Error::new(ErrorKind::Unavailable, "no answer").safe() } else { e }
        })
    };
    answers.into_iter().map(change).collect()
}

/// Answers Ok and stores later. What is not stored when the connection ends is lost.
pub(crate) struct ConfirmsEarly;

#[async_trait]
impl FaultBehaviour for ConfirmsEarly {
    async fn send(&self, at: &SendPath, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        let Ok(sender) = at.driver.open_sender(&at.to).await else { return at.sender.send(batch).await };
        let later: Result<Vec<PreparedMessage>> = batch.iter().map(|p| sender.prepare(p.message.clone())).collect();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if let Ok(later) = later {
                sender.send(&later).await;
            }
        });
        ok(batch.len())
    }
}

/// Fails the next send to another address after one address was not found.
#[derive(Default)]
pub(crate) struct FailsNeighbours(Mutex<Option<Address>>);

#[async_trait]
impl FaultBehaviour for FailsNeighbours {
    async fn send(&self, at: &SendPath, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        let struck = self.0.lock().take_if(|missing| *missing != at.to.name);
        if struck.is_some() {
            return Error::new(ErrorKind::NotFound, "the channel was closed").for_each_of(batch.len());
        }
        let answers = at.sender.send(batch).await;
        if answers.iter().any(|r| r.as_ref().is_err_and(|e| e.kind() == ErrorKind::NotFound)) {
            *self.0.lock() = Some(at.to.name.clone());
        }
        answers
    }
}

/// Loses the first batch's answer and says nothing was stored.
#[derive(Default)]
pub(crate) struct SaysSafe(AtomicBool);

#[async_trait]
impl FaultBehaviour for SaysSafe {
    async fn send(&self, at: &SendPath, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        let answers = at.sender.send(batch).await;
        if answers.iter().all(Result::is_ok) && !self.0.swap(true, Ordering::SeqCst) {
            return Error::new(ErrorKind::Unavailable, "connection lost").safe().for_each_of(batch.len());
        }
        answers
    }
}

/// Stores the first message of a key only after the next one.
#[derive(Default)]
pub(crate) struct SwapsKeys(Mutex<BTreeMap<Box<str>, Outgoing>>);

#[async_trait]
impl FaultBehaviour for SwapsKeys {
    async fn send(&self, at: &SendPath, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        let mut answers = Vec::new();
        for prepared in batch {
            let message = prepared.message.clone();
            let key = message.envelope.key.clone().filter(|_| at.to.settings.ordered);
            let Some(key) = key else {
                answers.extend(at.send([message]).await);
                continue;
            };
            let kept = self.0.lock().remove(&key);
            match kept {
                Some(kept) => answers.extend(at.send([message, kept]).await.into_iter().take(1)),
                None => {
                    self.0.lock().insert(key, message);
                    answers.push(Ok(Receipt::default()));
                }
            }
        }
        answers
    }
}

/// Never answers a batch of more than one.
pub(crate) struct HangsOnBatches;

#[async_trait]
impl FaultBehaviour for HangsOnBatches {
    async fn send(&self, at: &SendPath, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        let answers = at.sender.send(batch).await;
        if batch.len() > 1 {
            std::future::pending::<()>().await;
        }
        answers
    }
}

/// Takes messages of any size.
pub(crate) struct TakesOversize;

#[async_trait]
impl FaultBehaviour for TakesOversize {
    fn prepare(&self, at: &SendPath, message: Outgoing) -> Result<PreparedMessage> {
        match at.sender.prepare(message.clone()) {
            Err(e) if e.kind() == ErrorKind::PayloadTooLarge => {
                let size = message.envelope.data.len();
                Ok(PreparedMessage::new(message, size))
            }
            prepared => prepared,
        }
    }
}

/// Refuses messages of more than half the allowed size.
pub(crate) struct LimitHalved;

#[async_trait]
impl FaultBehaviour for LimitHalved {
    fn prepare(&self, at: &SendPath, message: Outgoing) -> Result<PreparedMessage> {
        let prepared = at.sender.prepare(message)?;
        let can = at.driver.capabilities();
        let limit = if at.to.name.is_topic() { can.max_topic_payload } else { can.max_queue_payload };
        if limit.is_some_and(|limit| prepared.size > limit / 2) {
            return Err(Error::new(ErrorKind::PayloadTooLarge, "more than half the limit"));
        }
        Ok(prepared)
    }
}

/// Answers InvalidArgument for a message that is too large.
pub(crate) struct WrongSizeKind;

#[async_trait]
impl FaultBehaviour for WrongSizeKind {
    fn prepare(&self, at: &SendPath, message: Outgoing) -> Result<PreparedMessage> {
        at.sender.prepare(message).map_err(|e| match e.kind() {
            ErrorKind::PayloadTooLarge => Error::new(ErrorKind::InvalidArgument, "frame error"),
            _ => e,
        })
    }
}

/// Notices only in the batch that a message is too large.
pub(crate) enum OversizeInBatch {
    /// Refuses the whole batch.
    FailsAll,
    /// Gives the answer of the large message to the next one.
    Shifted,
}

#[async_trait]
impl FaultBehaviour for OversizeInBatch {
    fn prepare(&self, at: &SendPath, message: Outgoing) -> Result<PreparedMessage> {
        TakesOversize.prepare(at, message)
    }

    async fn send(&self, at: &SendPath, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        let mut answers: Vec<Result<Receipt>> = Vec::new();
        for prepared in batch {
            answers.push(match at.sender.prepare(prepared.message.clone()) {
                Ok(fits) => at.sender.send(&[fits]).await.pop().unwrap_or_else(|| Ok(Receipt::default())),
                Err(e) => Err(e),
            });
        }
        match (self, answers.iter().find_map(|r| r.as_ref().err())) {
            (Self::FailsAll, Some(e)) => e.clone().for_each_of(batch.len()),
            (Self::Shifted, Some(_)) => {
                answers.rotate_right(1);
                answers
            }
            (_, None) => answers,
        }
    }
}

/// Publishes a topic's messages to every other topic as well.
#[derive(Default)]
pub(crate) struct LeaksAcrossTopics(Mutex<Vec<Entity<Address>>>);

#[async_trait]
impl FaultBehaviour for LeaksAcrossTopics {
    async fn declare(&self, driver: &dyn Driver, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport> {
        self.0.lock().extend(plan.topics.iter().cloned());
        driver.declare(plan, mode).await
    }

    async fn send(&self, at: &SendPath, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        let others: Vec<_> = self.0.lock().iter().filter(|t| t.physical != at.to.physical).cloned().collect();
        for other in others.iter().filter(|_| at.to.name.is_topic()) {
            let Ok(sender) = at.driver.open_sender(other).await else { continue };
            let copies: Result<Vec<_>> = batch.iter().map(|p| sender.prepare(p.message.clone())).collect();
            if let Ok(copies) = copies {
                sender.send(&copies).await;
            }
        }
        at.sender.send(batch).await
    }
}

/// Refuses messages to a topic without subscriptions.
#[derive(Default)]
pub(crate) struct NeedsSubscriptions(Mutex<BTreeSet<String>>);

#[async_trait]
impl FaultBehaviour for NeedsSubscriptions {
    async fn declare(&self, driver: &dyn Driver, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport> {
        let parents = plan.sources.iter().filter_map(|s| s.parent.as_deref().map(str::to_owned));
        self.0.lock().extend(parents);
        driver.declare(plan, mode).await
    }

    async fn send(&self, at: &SendPath, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        if at.to.name.is_topic() && !self.0.lock().contains(&*at.to.physical) {
            return Error::new(ErrorKind::NotFound, "no route").for_each_of(batch.len());
        }
        at.sender.send(batch).await
    }
}

/// Publishes again, to a subscription that is declared later, what its topic got before.
#[derive(Default)]
pub(crate) struct ReplaysToLate(Mutex<Vec<(Entity<Address>, Outgoing)>>);

#[async_trait]
impl FaultBehaviour for ReplaysToLate {
    async fn declare(&self, driver: &dyn Driver, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport> {
        let report = driver.declare(plan, mode).await?;
        let created = |s: &&Entity<Source>| s.parent.is_some() && report.created.contains(&s.name.to_string());
        let parents: BTreeSet<_> = plan.sources.iter().filter(created).filter_map(|s| s.parent.clone()).collect();
        let again: Vec<_> = self.0.lock().iter().filter(|(to, _)| parents.contains(&to.physical)).cloned().collect();
        for (to, message) in again {
            let sender = driver.open_sender(&to).await?;
            let prepared = sender.prepare(message)?;
            sender.send(&[prepared]).await;
        }
        Ok(report)
    }

    async fn send(&self, at: &SendPath, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        if at.to.name.is_topic() {
            self.0.lock().extend(batch.iter().map(|p| (at.to.clone(), p.message.clone())));
        }
        at.sender.send(batch).await
    }
}
