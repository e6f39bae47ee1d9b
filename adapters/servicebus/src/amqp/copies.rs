//! Settlements that need a copy: retries are scheduled at the broker, dead letters are sent back to their source.

use std::{sync::atomic::Ordering, time::Duration};

use futures_util::future::join_all;
use polybus_core::{
    Error, ErrorKind, Result,
    driver::{SettleRequest, Settlement},
    message::cloudevents::CopyState,
};
use time::OffsetDateTime;

use crate::{
    amqp::{
        consumer::AmqpDelivery,
        management::{ScheduledMessage, SettleStatus},
        send_link::EncodedMessage,
        settler::ServicebusSettler,
    },
    consume::in_place_hold::batched,
    error,
    message::{
        envelope::{self, SendOptions},
        original::CopyRequest,
    },
};

/// In bytes: what a message takes beside its own bytes in a request that schedules several.
const SCHEDULE_OVERHEAD: usize = 256;

impl ServicebusSettler {
    /// Schedules a copy of each message, and returns the sequence numbers of the copies. A message that leaves no room
    /// for a copy is held in place instead, or for long delays tried all the same: the broker may allow more than was
    /// configured.
    async fn schedule(
        &self,
        batch: &[SettleRequest],
        held: &[&AmqpDelivery],
        which: &[usize],
        results: &mut [Result<()>],
    ) -> Vec<(usize, i64)> {
        let limit = self.limit();
        let (mut groups, mut size) = (vec![Vec::new()], 0);
        for i in which {
            let Settlement::RetryAfter(delay) = &batch[*i].how else { continue };
            if !self.consumer.holds(held[*i]) {
                results[*i] = Err(error::not_held());
                continue;
            }
            match self.retry_copy(&batch[*i], held[*i], *delay) {
                Ok(message) if *delay <= self.max_hold && self.leaves_no_room(&batch[*i], held[*i], &message) => {
                    results[*i] = self.hold_in_place(held[*i], *delay);
                }
                Ok(message) => {
                    let full = size + message.encoded.len() > limit.min(envelope::MAX_BATCH_BYTES);
                    if (full || self.one_copy_per_request.load(Ordering::Acquire)) && size > 0 {
                        groups.push(Vec::new());
                        size = 0;
                    }
                    size += message.encoded.len() + SCHEDULE_OVERHEAD;
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
            match self.target_node.schedule(messages).await {
                Ok(numbers) => made.extend(indices.into_iter().map(|(i, _)| i).zip(numbers)),
                Err(e) if e.kind() == ErrorKind::PayloadTooLarge => {
                    indices.into_iter().for_each(|(i, delay)| results[i] = self.hold_in_place(held[i], delay));
                }
                // On a partitioned entity a request may name messages of one partition only, and each message chooses
                // its partition by its own id.
                Err(e) if e.kind() == ErrorKind::InvalidArgument && indices.len() > 1 => {
                    self.one_copy_per_request.store(true, Ordering::Release);
                    let each = indices.iter().map(|(i, delay)| async move {
                        let message = self.retry_copy(&batch[*i], held[*i], *delay)?;
                        let numbers = self.target_node.schedule(vec![message]).await?;
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

    /// Where a copy of the message is too large for the broker, the message stays where it is until its time has come.
    fn hold_in_place(&self, held: &AmqpDelivery, delay: Duration) -> Result<()> {
        if delay > self.max_hold {
            let text =
                "there is no room in the message for a copy's counters, so a retry holds it: longer than max_hold";
            return Err(error::new(ErrorKind::PayloadTooLarge, "settle", text));
        }
        batched::start(self.consumer.clone(), held, delay)
    }

    /// Whether a retry's copy is larger than is allowed for this message.
    fn leaves_no_room(&self, settle: &SettleRequest, held: &AmqpDelivery, copy: &ScheduledMessage) -> bool {
        let size = copy.encoded.len() + SCHEDULE_OVERHEAD;
        size > self.limit() && size > self.copy_limit(settle, held)
    }

    /// The limit for a copy of this message. To learn the message's own size it is encoded, so this is asked only where
    /// a copy exceeds the configured limit.
    fn copy_limit(&self, settle: &SettleRequest, held: &AmqpDelivery) -> usize {
        let copy = CopyRequest { id: "", redrive: false, bare: true, replacement: None };
        let plain = held.original.copy(&settle.envelope, &CopyState::default(), SendOptions::default(), copy);
        envelope::copy_limit(self.limit(), plain.map_or(0, |plain| plain.len()))
    }

    fn limit(&self) -> usize {
        self.consumer.namespace.config.max_message_size
    }

    /// The message id of this copy.
    fn copy_id(&self, held: &AmqpDelivery, hop: u32) -> String {
        envelope::copy_id(&self.consumer.path, &held.original.sequence.to_string(), &held.lock.token.to_string(), hop)
    }

    fn copy_state(&self, settle: &SettleRequest, held: &AmqpDelivery) -> CopyState {
        held.original.carried.copied(settle, &self.consumer.source)
    }

    fn options(&self) -> SendOptions<'_> {
        SendOptions { ordered: self.ordered, target: self.place.target(), ..SendOptions::default() }
    }

    fn retry_copy(&self, settle: &SettleRequest, held: &AmqpDelivery, delay: Duration) -> Result<ScheduledMessage> {
        let carried = self.copy_state(settle, held);
        let id = self.copy_id(held, carried.hop);
        let options = SendOptions { enqueue_at: Some(OffsetDateTime::now_utc() + delay), ..self.options() };
        let copy = CopyRequest { id: &id, redrive: false, bare: false, replacement: None };
        let encoded = held.original.copy(&settle.envelope, &carried, options, copy)?;
        let session = held.original.session(&settle.envelope);
        Ok(ScheduledMessage { message_id: id, session, encoded })
    }

    /// The copy that goes back to the live source. It goes without what polybus adds where there is no room for that.
    fn redrive_copy(&self, settle: &SettleRequest, held: &AmqpDelivery) -> Result<EncodedMessage> {
        let carried = self.copy_state(settle, held);
        let id = self.copy_id(held, carried.hop);
        let replacement = match &settle.how {
            Settlement::RedriveAs(other) => Some(&**other),
            _ => None,
        };
        let copy = CopyRequest { id: &id, redrive: true, bare: false, replacement };
        let whole = held.original.copy(&settle.envelope, &carried, self.options(), copy)?;
        if whole.len() > self.limit() {
            let limit = self.copy_limit(settle, held);
            match replacement {
                Some(_) if whole.len() > limit => return Err(envelope::replacement_too_large(whole.len(), limit)),
                None if whole.len() > limit => return self.bare_redrive_copy(settle, held),
                _ => {}
            }
        }
        Ok(self.encoded(settle, held, copy, whole))
    }

    /// The message as it came and nothing else, where there is no room for more.
    fn bare_redrive_copy(&self, settle: &SettleRequest, held: &AmqpDelivery) -> Result<EncodedMessage> {
        let carried = self.copy_state(settle, held);
        let id = self.copy_id(held, carried.hop);
        // No longer than the original's id, so that the copy fits, but long enough to be unique.
        let short = held.original.native.as_ref().map_or(id.len(), |native| native.id_length().clamp(16, id.len()));
        let copy = CopyRequest { id: &id[..short], redrive: true, bare: true, replacement: None };
        let bare = held.original.copy(&settle.envelope, &carried, self.options(), copy)?;
        Ok(self.encoded(settle, held, copy, bare))
    }

    fn encoded(
        &self,
        settle: &SettleRequest,
        held: &AmqpDelivery,
        copy: CopyRequest<'_>,
        bytes: Vec<u8>,
    ) -> EncodedMessage {
        let session = held.original.session_of_copy(&settle.envelope, copy, self.ordered).map(Into::into);
        EncodedMessage { bytes: bytes.into(), session }
    }

    /// Sends the message as it came and nothing else, after the broker has refused a copy of `size` bytes as too large.
    async fn redrive_bare(
        &self,
        settle: &SettleRequest,
        held: &AmqpDelivery,
        size: usize,
        refused: Error,
    ) -> Result<()> {
        let bare = self.bare_redrive_copy(settle, held)?;
        if bare.bytes.len() >= size {
            return Err(refused);
        }
        self.send_link.send(vec![bare]).await.pop().unwrap_or(Err(refused))?;
        let id = &settle.envelope.id;
        tracing::warn!(source = %self.consumer.source, %id, "no room at the broker: the copy carries nothing");
        Ok(())
    }

    /// Schedules copies, then completes the originals. In this order: a message is stored twice at worst, never lost.
    pub(crate) async fn retry(
        &self,
        batch: &[SettleRequest],
        held: &[&AmqpDelivery],
        which: &[usize],
        results: &mut [Result<()>],
    ) {
        let made = self.schedule(batch, held, which, results).await;
        let copied: Vec<usize> = made.iter().map(|(i, _)| *i).collect();
        self.consumer.settle_all(held, &copied, &SettleStatus::Completed, results).await;
        // An original whose lock was lost comes back, so its copy is withdrawn. Other errors leave open whether the
        // original was completed, so its copy stays.
        let gone = |i: &usize| results[*i].as_ref().is_err_and(|e| e.kind() == ErrorKind::LockLost);
        let failed = made.into_iter().filter(|(i, _)| results[*i].is_err());
        let (back, unknown): (Vec<_>, Vec<_>) = failed.partition(|(i, _)| gone(i));
        let numbers: Vec<i64> = back.iter().map(|(_, n)| *n).collect();
        let withdrawn = self.withdraw(&numbers).await;
        let kept = unknown.into_iter().chain(back.into_iter().filter(|_| !withdrawn));
        for (i, _) in kept {
            if let Err(e) = &results[i] {
                results[i] = Err(e.clone().with_kept_copy());
            }
        }
    }

    /// Withdraws scheduled copies. On a partitioned entity that takes a request for each.
    async fn withdraw(&self, numbers: &[i64]) -> bool {
        if numbers.is_empty() || self.target_node.cancel(numbers).await.is_ok() {
            return true;
        }
        let each = join_all(numbers.chunks(1).map(|one| self.target_node.cancel(one))).await;
        each.iter().all(Result::is_ok)
    }

    /// Sends copies to the live source, then completes the dead letters, in this order for the same reason.
    pub(crate) async fn redrive(
        &self,
        batch: &[SettleRequest],
        held: &[&AmqpDelivery],
        which: &[usize],
        results: &mut [Result<()>],
    ) {
        let (mut indices, mut copies) = (Vec::new(), Vec::new());
        for i in which {
            if !self.consumer.holds(held[*i]) {
                results[*i] = Err(error::not_held());
                continue;
            }
            match self.redrive_copy(&batch[*i], held[*i]) {
                Ok(copy) => {
                    indices.push(*i);
                    copies.push(copy);
                }
                Err(e) => results[*i] = Err(e),
            }
        }
        let (mut copied, mut refused) = (Vec::new(), Vec::new());
        for (indices, copies) in by_size(indices, copies, self.limit().min(envelope::MAX_BATCH_BYTES)) {
            let sizes: Vec<usize> = copies.iter().map(|copy| copy.bytes.len()).collect();
            for ((i, size), sent) in indices.into_iter().zip(sizes).zip(self.send_link.send(copies).await) {
                match sent {
                    Ok(()) => copied.push(i),
                    Err(e) if e.kind() == ErrorKind::PayloadTooLarge && batch[i].how == Settlement::Redrive => {
                        refused.push((i, size, e));
                    }
                    Err(e) => results[i] = Err(e.with_operation("settle")),
                }
            }
        }
        for (i, size, e) in refused {
            match self.redrive_bare(&batch[i], held[i], size, e).await {
                Ok(()) => copied.push(i),
                Err(e) => results[i] = Err(e.with_operation("settle")),
            }
        }
        self.consumer.settle_all(held, &copied, &SettleStatus::Completed, results).await;
        for i in copied {
            if let Err(e) = &results[i] {
                results[i] = Err(e.clone().with_kept_copy());
            }
        }
    }
}

fn by_size(indices: Vec<usize>, copies: Vec<EncodedMessage>, limit: usize) -> Vec<(Vec<usize>, Vec<EncodedMessage>)> {
    let mut groups: Vec<(Vec<usize>, Vec<EncodedMessage>)> = Vec::new();
    let mut size = 0;
    for (i, copy) in indices.into_iter().zip(copies) {
        let own = copy.bytes.len() + envelope::BATCH_OVERHEAD;
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
