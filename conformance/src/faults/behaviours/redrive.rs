//! Faults that only redrives notice.

use std::collections::BTreeSet;

use parking_lot::Mutex;

use async_trait::async_trait;
use polybus_core::{
    Error, ErrorKind, Result, Source,
    driver::{Driver, ReceivedMessage, Receiver, SettleRequest, Settlement},
    topology::{Entity, SourceStats},
};

use super::faulty_driver::{FaultBehaviour, ReceivePath};

/// Drops a redriven copy whose message id it has seen, and answers Ok.
#[derive(Default)]
pub(crate) struct DeduplicatesCopies {
    pub(crate) sources_matter: bool,
    pub(crate) seen: Mutex<BTreeSet<String>>,
}

#[async_trait]
impl FaultBehaviour for DeduplicatesCopies {
    async fn settle(&self, at: &ReceivePath, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let mut answers = Vec::new();
        for settle in batch {
            let e = &settle.envelope;
            let source = if self.sources_matter { &*e.source } else { "" };
            let seen = format!("{source} {}", e.id);
            let mut how = settle.how.clone();
            if how == Settlement::Redrive && !self.seen.lock().insert(seen) {
                how = Settlement::Ack;
            }
            answers.push(at.settle(settle, how).await);
        }
        answers
    }
}

/// Knows dead letters by the id of their message: it keeps no count and no mark of a redrive.
pub(crate) struct KnownById;

#[async_trait]
impl FaultBehaviour for KnownById {
    async fn receive(&self, at: &ReceivePath, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        let mut batch = receiver.receive(max).await?;
        for received in batch.iter_mut().filter(|_| at.is_dead()) {
            received.known_by = Some(received.envelope.id.clone());
        }
        Ok(batch)
    }
}

/// Loses the mark on redriven messages, and counts no dead letters.
pub(crate) struct LosesMark;

#[async_trait]
impl FaultBehaviour for LosesMark {
    async fn stats(&self, driver: &dyn Driver, of: &Entity<Source>) -> Result<SourceStats> {
        let mut stats = driver.stats(of).await?;
        stats.dead_lettered = None;
        Ok(stats)
    }

    async fn settle(&self, at: &ReceivePath, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let mut batch = batch.to_vec();
        batch.iter_mut().for_each(|settle| settle.mark = None);
        at.settler.settle(&batch).await
    }
}

/// Withholds letters that were dead-lettered later than now.
pub(crate) struct TrustsClocks;

#[async_trait]
impl FaultBehaviour for TrustsClocks {
    async fn receive(&self, at: &ReceivePath, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        let now = time::OffsetDateTime::now_utc() + time::Duration::minutes(1);
        loop {
            let batch = receiver.receive(max).await?;
            let later = |r: &ReceivedMessage| r.dead_letter.as_ref().and_then(|d| d.time).is_some_and(|at| at > now);
            let kept: Vec<ReceivedMessage> = batch.into_iter().filter(|r| !at.is_dead() || !later(r)).collect();
            if !kept.is_empty() {
                return Ok(kept);
            }
        }
    }
}

/// Withholds later dead letters of a key while one is held, and does not declare that.
#[derive(Default)]
pub(crate) struct HidesBehindHeld(Mutex<Vec<ReceivedMessage>>);

impl HidesBehindHeld {
    /// The first letter of each key of which none is held.
    fn free(&self, at: &ReceivePath) -> Vec<ReceivedMessage> {
        let mut keys: BTreeSet<_> = at.held().iter().map(|r| r.envelope.key.clone()).collect();
        let mut waiting = self.0.lock();
        let (free, rest) = std::mem::take(&mut *waiting).into_iter().partition(|r| keys.insert(r.envelope.key.clone()));
        *waiting = rest;
        free
    }
}

#[async_trait]
impl FaultBehaviour for HidesBehindHeld {
    async fn receive(&self, at: &ReceivePath, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        if !at.is_dead() || !at.from.settings.ordered {
            return receiver.receive(max).await;
        }
        loop {
            let free = self.free(at);
            if !free.is_empty() {
                return Ok(free);
            }
            let more = tokio::time::timeout(std::time::Duration::from_millis(50), receiver.receive(max)).await;
            if let Ok(more) = more {
                self.0.lock().extend(more?);
            }
        }
    }
}

/// Fails the neighbours of a message that is too large: its batch, and the next two.
#[derive(Default)]
pub(crate) struct CostsNeighbours(Mutex<u32>);

#[async_trait]
impl FaultBehaviour for CostsNeighbours {
    async fn settle(&self, at: &ReceivePath, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let size = |settle: &SettleRequest| match &settle.how {
            Settlement::RedriveAs(message) => message.data.len(),
            _ => 0,
        };
        let too_large = batch.iter().any(|settle| size(settle) > 64 << 10);
        let moves = batch.iter().any(|settle| settle.how.copies());
        let pays = {
            let mut costs = self.0.lock();
            *costs = if too_large { 3 } else { *costs };
            let pays = *costs > 0 && moves;
            *costs -= u32::from(pays);
            pays
        };
        if pays {
            return Error::new(ErrorKind::PayloadTooLarge, "too large").for_each_of(batch.len());
        }
        at.settler.settle(batch).await
    }
}

/// Redrives an edited letter wrongly.
pub(crate) enum EditsWrongly {
    Both,
    /// Sends the letter as it was.
    Ignored,
    /// Sends the edited message under the id of the letter.
    OldId,
    /// Sends the edited message under the key of the letter.
    OldKey,
    /// Publishes it to the topic, so that every subscription gets it.
    Published,
}

#[async_trait]
impl FaultBehaviour for EditsWrongly {
    async fn settle(&self, at: &ReceivePath, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let mut answers = Vec::new();
        for settle in batch {
            let Settlement::RedriveAs(message) = &settle.how else {
                answers.push(at.settle(settle, settle.how.clone()).await);
                continue;
            };
            let (message, old) = (polybus_core::Envelope::clone(message), settle.envelope.clone());
            let how = match self {
                Self::Both | Self::Published => {
                    let copied = match self {
                        Self::Both => at.publish(old).await,
                        _ => at.publish(message.clone()).await,
                    };
                    if let Err(e) = copied {
                        answers.push(Err(e));
                        continue;
                    }
                    if matches!(self, Self::Both) { settle.how.clone() } else { Settlement::Ack }
                }
                Self::Ignored => Settlement::Redrive,
                Self::OldId => Settlement::RedriveAs(Box::new(message.id(old.id.clone()))),
                Self::OldKey => {
                    let key = old.key.clone();
                    Settlement::RedriveAs(Box::new(message.edit(|p| p.key = key)))
                }
            };
            answers.push(at.settle(settle, how).await);
        }
        answers
    }
}
