//! Settlements that copy: retries scheduled at the broker, and dead letters sent back.

use std::time::Duration;

use bytes::Bytes;
use polybus_core::{Kind, Result, Settle, Settlement, cloudevents::Carried};
use time::OffsetDateTime;

use crate::{
    envelope::{self, Postage},
    feed::Held,
    locks::not_held,
    management::{Scheduled, Status},
    settler::ServicebusSettler,
};

impl ServicebusSettler {
    /// Schedules a copy of each, tells their numbers.
    async fn schedule(
        &self,
        batch: &[Settle],
        held: &[&Held],
        which: &[usize],
        results: &mut [Result<()>],
    ) -> Vec<(usize, i64)> {
        let limit = self.feed.wires.config.max_message_size;
        let (mut groups, mut size) = (vec![Vec::new()], 0);
        for i in which {
            let Settlement::RetryAfter(delay) = &batch[*i].how else { continue };
            if !self.feed.holds(held[*i]) {
                results[*i] = Err(not_held());
                continue;
            }
            match self.later(&batch[*i], held[*i], *delay) {
                Ok(message) => {
                    if size + message.encoded.len() > limit && size > 0 {
                        groups.push(Vec::new());
                        size = 0;
                    }
                    size += message.encoded.len() + 256;
                    if let Some(group) = groups.last_mut() {
                        group.push((*i, message));
                    }
                }
                Err(e) => results[*i] = Err(e),
            }
        }
        let mut made = Vec::new();
        for group in groups.into_iter().filter(|g| !g.is_empty()) {
            let (indices, messages): (Vec<usize>, Vec<Scheduled>) = group.into_iter().unzip();
            match self.target.schedule(messages).await {
                Ok(numbers) => made.extend(indices.into_iter().zip(numbers)),
                Err(e) => indices.into_iter().for_each(|i| results[i] = Err(e.clone())),
            }
        }
        made
    }

    fn later(&self, settle: &Settle, held: &Held, delay: Duration) -> Result<Scheduled> {
        let envelope = &settle.envelope;
        let postage = Postage {
            ordered: self.ordered,
            deduplicated: self.deduplicated,
            enqueue_at: Some(OffsetDateTime::now_utc() + delay),
            target: self.place.target(),
        };
        let carried = Carried::new(held.hop.saturating_add(1), settle.attempt);
        let message_id = envelope::message_id(envelope, &carried, &postage);
        let encoded = held.original.copy(envelope, &carried, &postage)?;
        Ok(Scheduled { message_id, session: None, encoded })
    }

    /// Copies for later, then settles what was copied.
    pub(crate) async fn retry(&self, batch: &[Settle], held: &[&Held], which: &[usize], results: &mut [Result<()>]) {
        let made = self.schedule(batch, held, which, results).await;
        let copied: Vec<usize> = made.iter().map(|(i, _)| *i).collect();
        self.feed.settle_all(held, &copied, &Status::Completed, results).await;
        // The original comes back, so its copy must not; unless it was settled and only the answer was lost.
        let gone = |i: &usize| results[*i].as_ref().is_err_and(|e| e.kind() == Kind::LockLost);
        let failed = made.into_iter().filter(|(i, _)| results[*i].is_err());
        let (back, unknown): (Vec<_>, Vec<_>) = failed.partition(|(i, _)| gone(i));
        let numbers: Vec<i64> = back.iter().map(|(_, n)| *n).collect();
        let withdrawn = back.is_empty() || self.target.cancel(&numbers).await.is_ok();
        let kept = unknown.into_iter().chain(back.into_iter().filter(|_| !withdrawn));
        for (i, _) in kept {
            if let Err(e) = &results[i] {
                results[i] = Err(e.clone().may_duplicate().with("copy", "kept"));
            }
        }
    }

    /// Copies to the live source, then settles what was copied.
    pub(crate) async fn redrive(&self, batch: &[Settle], held: &[&Held], which: &[usize], results: &mut [Result<()>]) {
        let postage = Postage {
            ordered: self.ordered,
            deduplicated: self.deduplicated,
            enqueue_at: None,
            target: self.place.target(),
        };
        let (mut indices, mut copies) = (Vec::new(), Vec::new());
        for i in which {
            if !self.feed.holds(held[*i]) {
                results[*i] = Err(not_held());
                continue;
            }
            let carried = Carried::new(held[*i].hop.saturating_add(1), 0);
            match held[*i].original.copy(&batch[*i].envelope, &carried, &postage) {
                Ok(copy) => {
                    indices.push(*i);
                    copies.push(Bytes::from(copy));
                }
                Err(e) => results[*i] = Err(e),
            }
        }
        let mut copied = Vec::new();
        for (indices, copies) in by_size(indices, copies, self.feed.wires.config.max_message_size) {
            for (i, sent) in indices.into_iter().zip(self.outlet.send(copies).await) {
                match sent {
                    Ok(()) => copied.push(i),
                    Err(e) => results[i] = Err(e.operation("settle")),
                }
            }
        }
        self.feed.settle_all(held, &copied, &Status::Completed, results).await;
        for i in copied {
            if let Err(e) = &results[i] {
                results[i] = Err(e.clone().may_duplicate().with("copy", "kept"));
            }
        }
    }
}

fn by_size(indices: Vec<usize>, copies: Vec<Bytes>, limit: usize) -> Vec<(Vec<usize>, Vec<Bytes>)> {
    let mut groups: Vec<(Vec<usize>, Vec<Bytes>)> = Vec::new();
    let mut size = 0;
    for (i, copy) in indices.into_iter().zip(copies) {
        let own = copy.len() + envelope::IN_BATCH;
        if groups.is_empty() || size + own > limit {
            groups.push(Default::default());
            size = 0;
        }
        size += own;
        if let Some((indices, copies)) = groups.last_mut() {
            indices.push(i);
            copies.push(copy);
        }
    }
    groups
}
