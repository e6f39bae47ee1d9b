//! Promises of publishing, broken.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use polybus_core::{
    Address, Error, ErrorKind, Outgoing, Receipt, Result, Source,
    driver::{Driver, PreparedMessage},
    message::EnvelopeFields,
    topology::{DeclareMode, DeclarePlan, DeclareReport, Entity},
};

use super::wrapper::{Break, Out, lock};

fn ok(n: usize) -> Vec<Result<Receipt>> {
    (0..n).map(|_| Ok(Receipt::default())).collect()
}

/// Changes every message on its way to the broker.
pub(super) struct Corrupt(pub(super) fn(&mut EnvelopeFields));

#[async_trait]
impl Break for Corrupt {
    fn prepare(&self, at: &Out, mut message: Outgoing) -> Result<PreparedMessage> {
        message.envelope = message.envelope.edit(self.0);
        at.sender.prepare(message)
    }
}

/// Changes the options of every publish.
pub(super) struct Options(pub(super) fn(&mut Outgoing));

#[async_trait]
impl Break for Options {
    fn prepare(&self, at: &Out, mut message: Outgoing) -> Result<PreparedMessage> {
        (self.0)(&mut message);
        at.sender.prepare(message)
    }
}

/// Stores something else than the batch, and answers Ok for all of it.
pub(super) struct Stores(pub(super) fn(Vec<Outgoing>) -> Vec<Outgoing>);

#[async_trait]
impl Break for Stores {
    async fn send(&self, at: &Out, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        let stored = (self.0)(batch.iter().map(|p| p.message.clone()).collect());
        match at.send(stored).await.into_iter().find_map(Result::err) {
            Some(e) => e.for_each_of(batch.len()),
            None => ok(batch.len()),
        }
    }
}

/// Changes the answers to a batch.
pub(super) struct Answers(pub(super) fn(Vec<Result<Receipt>>) -> Vec<Result<Receipt>>);

#[async_trait]
impl Break for Answers {
    async fn send(&self, at: &Out, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        (self.0)(at.sender.send(batch).await)
    }
}

/// What is not there answers Ok to publishers.
pub(super) fn lies(answers: Vec<Result<Receipt>>) -> Vec<Result<Receipt>> {
    let lie = |r: Result<Receipt>| {
        r.or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(Receipt::default()) } else { Err(e) })
    };
    answers.into_iter().map(lie).collect()
}

/// What is not there answers as an outage that may pass.
pub(super) fn seems_unavailable(answers: Vec<Result<Receipt>>) -> Vec<Result<Receipt>> {
    let change = |r: Result<Receipt>| {
        r.map_err(|e| {
            if e.kind() == ErrorKind::NotFound { Error::new(ErrorKind::Unavailable, "no answer").safe() } else { e }
        })
    };
    answers.into_iter().map(change).collect()
}

/// Answers Ok and stores later; what is not stored when the connection ends is lost.
pub(super) struct ConfirmsEarly;

#[async_trait]
impl Break for ConfirmsEarly {
    async fn send(&self, at: &Out, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
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

/// After one address was not found, the next send to another one fails as well.
#[derive(Default)]
pub(super) struct FailsNeighbours(Mutex<Option<Address>>);

#[async_trait]
impl Break for FailsNeighbours {
    async fn send(&self, at: &Out, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        let struck = lock(&self.0).take_if(|missing| *missing != at.to.name);
        if struck.is_some() {
            return Error::new(ErrorKind::NotFound, "the channel was closed").for_each_of(batch.len());
        }
        let answers = at.sender.send(batch).await;
        if answers.iter().any(|r| r.as_ref().is_err_and(|e| e.kind() == ErrorKind::NotFound)) {
            *lock(&self.0) = Some(at.to.name.clone());
        }
        answers
    }
}

/// Loses the first batch's answer and says nothing was stored.
#[derive(Default)]
pub(super) struct SaysSafe(AtomicBool);

#[async_trait]
impl Break for SaysSafe {
    async fn send(&self, at: &Out, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        let answers = at.sender.send(batch).await;
        if answers.iter().all(Result::is_ok) && !self.0.swap(true, Ordering::SeqCst) {
            return Error::new(ErrorKind::Unavailable, "connection lost").safe().for_each_of(batch.len());
        }
        answers
    }
}

/// Keeps the first message of a key back until the next one of it is stored.
#[derive(Default)]
pub(super) struct SwapsKeys(Mutex<BTreeMap<Box<str>, Outgoing>>);

#[async_trait]
impl Break for SwapsKeys {
    async fn send(&self, at: &Out, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        let mut answers = Vec::new();
        for prepared in batch {
            let message = prepared.message.clone();
            let key = message.envelope.key.clone().filter(|_| at.to.settings.ordered);
            let Some(key) = key else {
                answers.extend(at.send([message]).await);
                continue;
            };
            let kept = lock(&self.0).remove(&key);
            match kept {
                Some(kept) => answers.extend(at.send([message, kept]).await.into_iter().take(1)),
                None => {
                    lock(&self.0).insert(key, message);
                    answers.push(Ok(Receipt::default()));
                }
            }
        }
        answers
    }
}

/// Never answers a batch of more than one.
pub(super) struct HangsOnBatches;

#[async_trait]
impl Break for HangsOnBatches {
    async fn send(&self, at: &Out, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        let answers = at.sender.send(batch).await;
        if batch.len() > 1 {
            std::future::pending::<()>().await;
        }
        answers
    }
}

/// Takes messages of any size.
pub(super) struct TakesOversize;

#[async_trait]
impl Break for TakesOversize {
    fn prepare(&self, at: &Out, message: Outgoing) -> Result<PreparedMessage> {
        match at.sender.prepare(message.clone()) {
            Err(e) if e.kind() == ErrorKind::PayloadTooLarge => {
                let size = message.envelope.data.len();
                Ok(PreparedMessage::new(message, size))
            }
            prepared => prepared,
        }
    }
}

/// Refuses what is more than half as large as is allowed.
pub(super) struct LimitHalved;

#[async_trait]
impl Break for LimitHalved {
    fn prepare(&self, at: &Out, message: Outgoing) -> Result<PreparedMessage> {
        let prepared = at.sender.prepare(message)?;
        let can = at.driver.capabilities();
        let limit = if at.to.name.is_topic() { can.max_topic_payload } else { can.max_queue_payload };
        if limit.is_some_and(|limit| prepared.size > limit / 2) {
            return Err(Error::new(ErrorKind::PayloadTooLarge, "more than half the limit"));
        }
        Ok(prepared)
    }
}

/// Says of a message that is too large that its argument is wrong.
pub(super) struct WrongSizeKind;

#[async_trait]
impl Break for WrongSizeKind {
    fn prepare(&self, at: &Out, message: Outgoing) -> Result<PreparedMessage> {
        at.sender.prepare(message).map_err(|e| match e.kind() {
            ErrorKind::PayloadTooLarge => Error::new(ErrorKind::InvalidArgument, "frame error"),
            _ => e,
        })
    }
}

/// Finds out only in the batch that a message is too large.
pub(super) enum OversizeInBatch {
    /// And refuses all of it.
    FailsAll,
    /// And gives the next message this one's answer.
    Shifted,
}

#[async_trait]
impl Break for OversizeInBatch {
    fn prepare(&self, at: &Out, message: Outgoing) -> Result<PreparedMessage> {
        TakesOversize.prepare(at, message)
    }

    async fn send(&self, at: &Out, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
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

/// A topic's messages come to every other topic, too.
#[derive(Default)]
pub(super) struct LeaksAcrossTopics(Mutex<Vec<Entity<Address>>>);

#[async_trait]
impl Break for LeaksAcrossTopics {
    async fn declare(&self, driver: &dyn Driver, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport> {
        lock(&self.0).extend(plan.topics.iter().cloned());
        driver.declare(plan, mode).await
    }

    async fn send(&self, at: &Out, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        let others: Vec<_> = lock(&self.0).iter().filter(|t| t.physical != at.to.physical).cloned().collect();
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

/// A topic that no subscription would get anything from refuses messages.
#[derive(Default)]
pub(super) struct NeedsSubscriptions(Mutex<BTreeSet<String>>);

#[async_trait]
impl Break for NeedsSubscriptions {
    async fn declare(&self, driver: &dyn Driver, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport> {
        let parents = plan.sources.iter().filter_map(|s| s.parent.as_deref().map(str::to_owned));
        lock(&self.0).extend(parents);
        driver.declare(plan, mode).await
    }

    async fn send(&self, at: &Out, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        if at.to.name.is_topic() && !lock(&self.0).contains(&*at.to.physical) {
            return Error::new(ErrorKind::NotFound, "no route").for_each_of(batch.len());
        }
        at.sender.send(batch).await
    }
}

/// A subscription that is declared gets what was published to its topic before, again.
#[derive(Default)]
pub(super) struct ReplaysToLate(Mutex<Vec<(Entity<Address>, Outgoing)>>);

#[async_trait]
impl Break for ReplaysToLate {
    async fn declare(&self, driver: &dyn Driver, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport> {
        let report = driver.declare(plan, mode).await?;
        let created = |s: &&Entity<Source>| s.parent.is_some() && report.created.contains(&s.name.to_string());
        let parents: BTreeSet<_> = plan.sources.iter().filter(created).filter_map(|s| s.parent.clone()).collect();
        let again: Vec<_> = lock(&self.0).iter().filter(|(to, _)| parents.contains(&to.physical)).cloned().collect();
        for (to, message) in again {
            let sender = driver.open_sender(&to).await?;
            let prepared = sender.prepare(message)?;
            sender.send(&[prepared]).await;
        }
        Ok(report)
    }

    async fn send(&self, at: &Out, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        if at.to.name.is_topic() {
            lock(&self.0).extend(batch.iter().map(|p| (at.to.clone(), p.message.clone())));
        }
        at.sender.send(batch).await
    }
}
