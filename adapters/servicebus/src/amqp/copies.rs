//! Settlements that copy: retries scheduled at the broker, and dead letters sent back.

use std::{sync::atomic::Ordering, time::Duration};

use futures_util::future::join_all;
use polybus_core::{
    ErrorKind, Result,
    driver::{SettleRequest, Settlement},
    message::cloudevents::CopyState,
};
use time::OffsetDateTime;

use crate::{
    amqp::{
        consumer::Held,
        locks::not_held,
        management::{Scheduled, Status},
        send_link::Parcel,
        settler::ServicebusSettler,
    },
    consume::in_place_hold,
    error,
    message::{
        envelope::{self, Postage},
        original::CopyFor,
    },
};

/// What a message takes beside its own bytes in a request that schedules several.
const IN_REQUEST: usize = 256;

impl ServicebusSettler {
    /// Schedules a copy of each, tells their numbers. What is too large for a copy is held in place instead.
    async fn schedule(
        &self,
        batch: &[SettleRequest],
        held: &[&Held],
        which: &[usize],
        results: &mut [Result<()>],
    ) -> Vec<(usize, i64)> {
        let limit = self.limit();
        let (mut groups, mut size) = (vec![Vec::new()], 0);
        for i in which {
            let Settlement::RetryAfter(delay) = &batch[*i].how else { continue };
            if !self.feed.holds(held[*i]) {
                results[*i] = Err(not_held());
                continue;
            }
            match self.later(&batch[*i], held[*i], *delay) {
                Ok(message) if message.encoded.len() + IN_REQUEST > limit => {
                    results[*i] = self.instead(held[*i], *delay);
                }
                Ok(message) => {
                    let full = size + message.encoded.len() > limit.min(envelope::LARGEST_BATCH);
                    if (full || self.singly.load(Ordering::Acquire)) && size > 0 {
                        groups.push(Vec::new());
                        size = 0;
                    }
                    size += message.encoded.len() + IN_REQUEST;
                    if let Some(group) = groups.last_mut() {
                        group.push((*i, *delay, message));
                    }
                }
                Err(e) => results[*i] = Err(e),
            }
        }
        let mut made = Vec::new();
        for group in groups.into_iter().filter(|g| !g.is_empty()) {
            let mut indices = Vec::with_capacity(group.len());
            let mut messages = Vec::with_capacity(group.len());
            for (i, delay, message) in group {
                indices.push((i, delay));
                messages.push(message);
            }
            match self.target.schedule(messages).await {
                Ok(numbers) => made.extend(indices.into_iter().map(|(i, _)| i).zip(numbers)),
                Err(e) if e.kind() == ErrorKind::PayloadTooLarge => {
                    indices.into_iter().for_each(|(i, delay)| results[i] = self.instead(held[i], delay));
                }
                // Partitions: one request is for one of them, and what chooses it differs from message to message.
                Err(e) if e.kind() == ErrorKind::InvalidArgument && indices.len() > 1 => {
                    self.singly.store(true, Ordering::Release);
                    let each = indices.iter().map(|(i, delay)| async move {
                        let message = self.later(&batch[*i], held[*i], *delay)?;
                        let numbers = self.target.schedule(vec![message]).await?;
                        numbers.first().copied().ok_or_else(|| error::new(ErrorKind::Unexpected, "settle", "no number"))
                    });
                    for ((i, _), number) in indices.iter().zip(join_all(each).await) {
                        match number {
                            Ok(number) => made.push((*i, number)),
                            Err(e) => results[*i] = Err(e),
                        }
                    }
                }
                Err(e) => indices.into_iter().for_each(|(i, _)| results[i] = Err(e.clone())),
            }
        }
        made
    }

    /// A copy of the message is too large for the broker: it stays where it is until its time has come.
    fn instead(&self, held: &Held, delay: Duration) -> Result<()> {
        if delay > self.max_hold {
            let text =
                "there is no room in the message for a copy's counters, so a retry holds it: longer than max_hold";
            return Err(error::new(ErrorKind::PayloadTooLarge, "settle", text));
        }
        in_place_hold::start(self.feed.clone(), held, delay)
    }

    fn limit(&self) -> usize {
        self.feed.wires.config.max_message_size
    }

    /// What this copy is called at the broker.
    fn copy_id(&self, held: &Held, hop: u32) -> String {
        envelope::copy_id(&self.feed.path, &held.original.sequence.to_string(), &held.lock.token.to_string(), hop)
    }

    fn carried(&self, settle: &SettleRequest, held: &Held) -> CopyState {
        held.original.carried.copied(settle, &self.feed.source)
    }

    fn postage(&self) -> Postage<'_> {
        Postage { ordered: self.ordered, target: self.place.target(), ..Postage::default() }
    }

    fn later(&self, settle: &SettleRequest, held: &Held, delay: Duration) -> Result<Scheduled> {
        let carried = self.carried(settle, held);
        let id = self.copy_id(held, carried.hop);
        let postage = Postage { enqueue_at: Some(OffsetDateTime::now_utc() + delay), ..self.postage() };
        let copy = CopyFor { id: &id, redrive: false, bare: false, instead: false };
        let encoded = held.original.copy(&settle.envelope, &carried, postage, copy)?;
        let session = held.original.session(&settle.envelope);
        Ok(Scheduled { message_id: id, session, encoded })
    }

    /// The copy that goes back to the live source: where there is no room for what polybus adds, without it.
    fn again(&self, settle: &SettleRequest, held: &Held) -> Result<Vec<u8>> {
        let carried = self.carried(settle, held);
        let id = self.copy_id(held, carried.hop);
        let (envelope, instead) = match &settle.how {
            Settlement::RedriveAs(other) => (&**other, true),
            _ => (&settle.envelope, false),
        };
        let copy = CopyFor { id: &id, redrive: true, bare: false, instead };
        let whole = held.original.copy(envelope, &carried, self.postage(), copy)?;
        if whole.len() <= self.limit() || instead {
            return Ok(whole);
        }
        // No longer than its own id was, but long enough to be the only one.
        let short = held.original.kept.as_ref().map_or(id.len(), |kept| kept.id_length().clamp(16, id.len()));
        held.original.copy(envelope, &carried, self.postage(), CopyFor { id: &id[..short], bare: true, ..copy })
    }

    /// Copies for later, then settles what was copied.
    pub(crate) async fn retry(
        &self,
        batch: &[SettleRequest],
        held: &[&Held],
        which: &[usize],
        results: &mut [Result<()>],
    ) {
        let made = self.schedule(batch, held, which, results).await;
        let copied: Vec<usize> = made.iter().map(|(i, _)| *i).collect();
        self.feed.settle_all(held, &copied, &Status::Completed, results).await;
        // The original comes back, so its copy must not; unless it was settled and only the answer was lost.
        let gone = |i: &usize| results[*i].as_ref().is_err_and(|e| e.kind() == ErrorKind::LockLost);
        let failed = made.into_iter().filter(|(i, _)| results[*i].is_err());
        let (back, unknown): (Vec<_>, Vec<_>) = failed.partition(|(i, _)| gone(i));
        let numbers: Vec<i64> = back.iter().map(|(_, n)| *n).collect();
        let withdrawn = self.withdraw(&numbers).await;
        let kept = unknown.into_iter().chain(back.into_iter().filter(|_| !withdrawn));
        for (i, _) in kept {
            if let Err(e) = &results[i] {
                results[i] = Err(e.clone().may_duplicate().with_context("copy", "kept"));
            }
        }
    }

    /// Takes scheduled copies back. Of several partitions, one by one.
    async fn withdraw(&self, numbers: &[i64]) -> bool {
        if numbers.is_empty() || self.target.cancel(numbers).await.is_ok() {
            return true;
        }
        let each = join_all(numbers.chunks(1).map(|one| self.target.cancel(one))).await;
        each.iter().all(Result::is_ok)
    }

    /// Copies to the live source, then settles what was copied.
    pub(crate) async fn redrive(
        &self,
        batch: &[SettleRequest],
        held: &[&Held],
        which: &[usize],
        results: &mut [Result<()>],
    ) {
        let (mut indices, mut copies) = (Vec::new(), Vec::new());
        for i in which {
            if !self.feed.holds(held[*i]) {
                results[*i] = Err(not_held());
                continue;
            }
            match self.again(&batch[*i], held[*i]) {
                Ok(copy) => {
                    indices.push(*i);
                    let session = held[*i].original.session(&batch[*i].envelope).map(Into::into);
                    copies.push(Parcel { bytes: copy.into(), session });
                }
                Err(e) => results[*i] = Err(e),
            }
        }
        let mut copied = Vec::new();
        for (indices, copies) in by_size(indices, copies, self.limit().min(envelope::LARGEST_BATCH)) {
            for (i, sent) in indices.into_iter().zip(self.outlet.send(copies).await) {
                match sent {
                    Ok(()) => copied.push(i),
                    Err(e) => results[i] = Err(e.with_operation("settle")),
                }
            }
        }
        self.feed.settle_all(held, &copied, &Status::Completed, results).await;
        for i in copied {
            if let Err(e) = &results[i] {
                results[i] = Err(e.clone().may_duplicate().with_context("copy", "kept"));
            }
        }
    }
}

fn by_size(indices: Vec<usize>, copies: Vec<Parcel>, limit: usize) -> Vec<(Vec<usize>, Vec<Parcel>)> {
    let mut groups: Vec<(Vec<usize>, Vec<Parcel>)> = Vec::new();
    let mut size = 0;
    for (i, copy) in indices.into_iter().zip(copies) {
        let own = copy.bytes.len() + envelope::IN_BATCH;
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
