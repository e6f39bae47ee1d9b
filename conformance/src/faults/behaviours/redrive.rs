//! Promises of redrives, broken.

use std::{collections::BTreeSet, sync::Mutex};

use async_trait::async_trait;
use polybus_core::{
    Error, ErrorKind, Result, Source,
    driver::{Driver, ReceivedMessage, Receiver, SettleRequest, Settlement},
    topology::{Entity, SourceStats},
};

use super::wrapper::{Break, In, lock};

/// Drops redriven copies whose message's id it has seen, and says that they were made.
#[derive(Default)]
pub(super) struct DeduplicatesCopies {
    pub(super) sources_matter: bool,
    pub(super) seen: Mutex<BTreeSet<String>>,
}

#[async_trait]
impl Break for DeduplicatesCopies {
    async fn settle(&self, at: &In, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let mut answers = Vec::new();
        for settle in batch {
            let e = &settle.envelope;
            let source = if self.sources_matter { &*e.source } else { "" };
            let seen = format!("{source} {}", e.id);
            let mut how = settle.how.clone();
            if how == Settlement::Redrive && !lock(&self.seen).insert(seen) {
                how = Settlement::Ack;
            }
            answers.push(at.settle(settle, how).await);
        }
        answers
    }
}

/// Nothing but the message tells what it is: no count, no mark, and letters are known by their id.
pub(super) struct KnownById;

#[async_trait]
impl Break for KnownById {
    async fn receive(&self, at: &In, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
        let mut batch = receiver.receive(max).await?;
        for received in batch.iter_mut().filter(|_| at.is_dead()) {
            received.known_by = Some(received.envelope.id.clone());
        }
        Ok(batch)
    }
}

/// Redriven messages do not carry the mark, and nobody counts dead letters.
pub(super) struct LosesMark;

#[async_trait]
impl Break for LosesMark {
    async fn stats(&self, driver: &dyn Driver, of: &Entity<Source>) -> Result<SourceStats> {
        let mut stats = driver.stats(of).await?;
        stats.dead_lettered = None;
        Ok(stats)
    }

    async fn settle(&self, at: &In, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let mut batch = batch.to_vec();
        batch.iter_mut().for_each(|settle| settle.mark = None);
        at.settler.settle(&batch).await
    }
}

/// Letters that died later than now are kept back.
pub(super) struct TrustsClocks;

#[async_trait]
impl Break for TrustsClocks {
    async fn receive(&self, at: &In, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
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

/// A dead letter that is held hides all later ones of its key, and the driver does not say so.
#[derive(Default)]
pub(super) struct HidesBehindHeld(Mutex<Vec<ReceivedMessage>>);

impl HidesBehindHeld {
    /// The first of each key of which none is held.
    fn free(&self, at: &In) -> Vec<ReceivedMessage> {
        let mut keys: BTreeSet<_> = at.held().iter().map(|r| r.envelope.key.clone()).collect();
        let mut waiting = lock(&self.0);
        let (free, rest) = std::mem::take(&mut *waiting).into_iter().partition(|r| keys.insert(r.envelope.key.clone()));
        *waiting = rest;
        free
    }
}

#[async_trait]
impl Break for HidesBehindHeld {
    async fn receive(&self, at: &In, receiver: &mut dyn Receiver, max: usize) -> Result<Vec<ReceivedMessage>> {
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
                lock(&self.0).extend(more?);
            }
        }
    }
}

/// One message that is too large costs those that go with it: its batch, and the two that come next.
#[derive(Default)]
pub(super) struct CostsNeighbours(Mutex<u32>);

#[async_trait]
impl Break for CostsNeighbours {
    async fn settle(&self, at: &In, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let size = |settle: &SettleRequest| match &settle.how {
            Settlement::RedriveAs(message) => message.data.len(),
            _ => 0,
        };
        let too_large = batch.iter().any(|settle| size(settle) > 64 << 10);
        let moves = batch.iter().any(|settle| settle.how.copies());
        let pays = {
            let mut costs = lock(&self.0);
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

/// Sends the edited message, and the letter as it was as well, or in its place.
pub(super) enum Edits {
    Both,
    /// The letter as it was.
    Ignored,
    /// Under the id that the letter had.
    OldId,
    /// Under the key that the letter had.
    OldKey,
    /// To where everybody gets it.
    Published,
}

#[async_trait]
impl Break for Edits {
    async fn settle(&self, at: &In, batch: &[SettleRequest]) -> Vec<Result<()>> {
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
