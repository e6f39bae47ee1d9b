//! Settling deliveries: deletes and visibility changes in batches. A copy is confirmed before its original is deleted.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use polybus_core::{
    Error, ErrorKind, Result, Source,
    driver::{Batching, DriverToken, SettleRequest, Settlement, Settler, kit::names::copy_id, lock_margin},
    message::cloudevents::CopyState,
    topology::Entity,
};
use tokio::time::Instant;

use crate::{
    consume::{
        consumer::{HeldMessage, QueueConsumer},
        copies::{self, AttributeOverflow, MessageCopy},
        retry_placement,
        timed_visibility::{self, RetryVisibility},
    },
    error,
    message::{
        limits::{ENTRIES, IN_FLIGHT, MAX_VISIBILITY, QUEUE_BYTES, SMALL_QUEUE_BYTES},
        native_message::NativeMessage,
    },
    publish::batch_send::{self, FifoIds, QueueMessage},
    topology::names,
};

/// How long acks wait for others to fill a call. That is little beside a call's own time, and enough for handlers that
/// end at about the same time.
const LINGER: Duration = Duration::from_millis(5);

pub(crate) struct AwsSettler {
    consumer: Arc<QueueConsumer>,
    source: Source,
    /// The live queue's name at SQS.
    live: String,
    /// The name of its dead letters' queue.
    dead_letters: String,
    ordered: bool,
}

impl AwsSettler {
    pub(crate) fn new(consumer: Arc<QueueConsumer>, from: &Entity<Source>) -> Self {
        Self {
            consumer,
            source: from.name.clone(),
            live: names::queue(from),
            dead_letters: names::dead_letters(from),
            ordered: from.settings.ordered,
        }
    }

    /// The copy that this settlement makes, and the queue it goes to.
    fn copy(&self, held: &HeldMessage, settle: &SettleRequest) -> Result<(&str, QueueMessage)> {
        let (native, dead) = (held.native()?, self.source.is_dead_letters());
        let carried = held.carried.copied(settle, &self.source);
        let hop = carried.hop;
        let (mut delay, mut overflow) = (None, AttributeOverflow::MoveInside);
        let to = match &settle.how {
            Settlement::DeadLetter { .. } if !dead => &*self.dead_letters,
            // Ordered queues have no retries here: see `settle`.
            Settlement::RetryAfter(by) if !dead && !self.ordered => {
                delay = Some(*by);
                &*self.live
            }
            Settlement::Redrive | Settlement::RedriveAs(_) if dead => {
                overflow = AttributeOverflow::LeaveOut;
                &*self.live
            }
            Settlement::SetAside if dead => &*self.dead_letters,
            other => return Err(Error::unsupported(format!("{other:?} on {}", self.source)).with_operation("settle")),
        };
        let (copy, key) = match &settle.how {
            Settlement::RedriveAs(other) => (copies::replacement(other, &carried)?, other.key.as_deref()),
            how => (self.fitting_copy(native, settle, carried, overflow, how)?, settle.envelope.key.as_deref()),
        };
        if copy.size > SMALL_QUEUE_BYTES && copy.size > self.size_limit(native) {
            return Err(copies::too_large(copy.size, self.size_limit(native)));
        }
        let group = match (&settle.how, &native.group) {
            // A replacement belongs to the group of its own key.
            (Settlement::RedriveAs(_), _) if self.ordered && key.is_some() => key.map(names::group),
            (_, Some(group)) => Some(group.clone()),
            (_, None) => self.ordered.then(|| names::group(key.unwrap_or_default())),
        };
        let dedup = self.ordered.then(|| copy_id(&self.consumer.queue, &native.id, hop));
        let fifo = group.map(|group| FifoIds { group, dedup });
        let trace = native.trace.clone();
        let MessageCopy { body, attributes, size } = copy;
        Ok((to, QueueMessage { body, attributes, size, delay, fifo, trace }))
    }

    /// The largest size of a copy of this message, in bytes: the configured one, or SQS' own where the message itself
    /// is larger than the configured one.
    fn size_limit(&self, native: &NativeMessage) -> usize {
        let bytes = self.consumer.clients.config.queue_bytes();
        if copies::plain_copy(native).size <= bytes { bytes } else { QUEUE_BYTES }
    }

    /// A copy of the message with as much of `carried` as fits: everything, or everything but the detail, or nothing.
    /// Dead letters and redrives alone may carry nothing. The copies of other settlements are too large then.
    fn fitting_copy(
        &self,
        native: &NativeMessage,
        settle: &SettleRequest,
        mut carried: CopyState,
        overflow: AttributeOverflow,
        how: &Settlement,
    ) -> Result<MessageCopy> {
        let made = copies::copy(native, &settle.envelope, &carried, overflow)?;
        // The limit is never below this, and few messages are above: their own size need not be computed.
        if made.size <= SMALL_QUEUE_BYTES {
            return Ok(made);
        }
        let limit = self.size_limit(native);
        if made.size <= limit {
            return Ok(made);
        }
        if let Some(letter) = carried.dead_letter.as_mut() {
            letter.detail = None;
            let made = copies::copy(native, &settle.envelope, &carried, overflow)?;
            if made.size <= limit {
                return Ok(made);
            }
        }
        match how {
            Settlement::DeadLetter { .. } | Settlement::Redrive => {
                let id = &settle.envelope.id;
                tracing::warn!(source = %self.source, %id, "the message leaves no room: its copy tells no reason and has a new id");
                Ok(copies::plain_copy(native))
            }
            _ => Ok(made),
        }
    }

    /// Sends the message as it came and nothing else, after its queue has refused a copy with more as too large. True
    /// if that was done. Only dead letters and redrives are sent that way.
    async fn send_plain_copy(&self, held: &HeldMessage, settle: &SettleRequest) -> bool {
        let (Settlement::DeadLetter { .. } | Settlement::Redrive, Ok((to, message)), Ok(native)) =
            (&settle.how, self.copy(held, settle), held.native())
        else {
            return false;
        };
        let MessageCopy { body, attributes, size } = copies::plain_copy(native);
        if size >= message.size {
            return false;
        }
        let message = QueueMessage { body, attributes, size, ..message };
        let sent = batch_send::send(&self.consumer.clients, to, vec![message], "settle").await;
        let done = sent.iter().all(Result::is_ok) && !sent.is_empty();
        if done {
            let id = &settle.envelope.id;
            tracing::warn!(source = %self.source, %id, "the queue has no room for more than the message: its copy tells no reason and has a new id");
        }
        done
    }

    /// Sends the copies, and then deletes the originals of those that SQS has confirmed. An original whose delete fails
    /// has its copy already, which [`Error::is_copy_kept`] tells core.
    async fn move_all(
        &self,
        batch: &[SettleRequest],
        held: &[&HeldMessage],
        which: &[usize],
        results: &mut [Result<()>],
    ) {
        let mut copies = Vec::new();
        for i in which {
            match self.copy(held[*i], &batch[*i]) {
                Ok((to, message)) => copies.push((*i, to, message)),
                Err(e) => results[*i] = Err(e),
            }
        }
        let mut sent = Vec::new();
        let (dead, live): (Vec<_>, Vec<_>) = copies.into_iter().partition(|(_, to, _)| *to == self.dead_letters);
        for (to, copies) in [(&self.dead_letters, dead), (&self.live, live)] {
            let sizes: Vec<usize> = copies.iter().map(|(.., message)| message.size).collect();
            let mut copies = copies.into_iter();
            for call in batch_send::split(&sizes, self.consumer.clients.config.queue_bytes()) {
                let chunk = copies.by_ref().take(call.len());
                let (indices, messages): (Vec<usize>, Vec<QueueMessage>) = chunk.map(|(i, _, m)| (i, m)).unzip();
                let receipts = batch_send::send(&self.consumer.clients, to, messages, "settle").await;
                for (i, result) in indices.into_iter().zip(receipts) {
                    match result {
                        Ok(_) => sent.push(i),
                        Err(e) => results[i] = Err(e),
                    }
                }
            }
        }
        for i in which {
            if results[*i].as_ref().is_err_and(|e| e.kind() == ErrorKind::PayloadTooLarge)
                && self.send_plain_copy(held[*i], &batch[*i]).await
            {
                results[*i] = Ok(());
                sent.push(*i);
            }
        }
        // Only now: a message whose copy is not confirmed must stay.
        for (i, result) in sent.iter().zip(self.delete(held, &sent).await) {
            results[*i] = result.map_err(Error::with_kept_copy);
        }
    }

    /// Hides the messages of retries that do not wait as copies.
    async fn hide_instead(
        &self,
        batch: &[SettleRequest],
        held: &[&HeldMessage],
        which: Vec<usize>,
        results: &mut [Result<()>],
    ) {
        let mut hidden = Vec::with_capacity(which.len());
        for i in which {
            match batch[i].how {
                Settlement::RetryAfter(by) if by <= visibility_left(held[i]) => {
                    hidden.push((i, RetryVisibility::of_delay(by).timeout));
                }
                _ => results[i] = Err(hidden_too_long()),
            }
        }
        self.hide(batch, held, &hidden, results).await;
    }

    /// Sets the visibility timeout of what is released or retried, and arranges the end of short delays.
    async fn hide(
        &self,
        batch: &[SettleRequest],
        held: &[&HeldMessage],
        which: &[(usize, Duration)],
        results: &mut [Result<()>],
    ) {
        let changed = self.change_visibility(held, which).await;
        let changed_at = Instant::now();
        for ((i, _), result) in which.iter().zip(changed) {
            if let (Ok(()), Settlement::RetryAfter(by)) = (&result, &batch[*i].how)
                && let Some(after) = RetryVisibility::of_delay(*by).release_after
            {
                timed_visibility::release_at(&self.consumer, held[*i].handle.clone(), changed_at + after);
            }
            results[*i] = result;
        }
    }

    async fn delete(&self, held: &[&HeldMessage], which: &[usize]) -> Vec<Result<()>> {
        let mut results = Vec::with_capacity(which.len());
        for chunk in which.chunks(ENTRIES) {
            let handles: Vec<Arc<str>> = chunk.iter().map(|i| held[*i].handle.clone()).collect();
            results.extend(self.consumer.delete(&handles).await);
        }
        self.remove_settled(held, which, &results);
        results
    }

    async fn change_visibility(&self, held: &[&HeldMessage], which: &[(usize, Duration)]) -> Vec<Result<()>> {
        let mut results = Vec::with_capacity(which.len());
        for chunk in which.chunks(ENTRIES) {
            let items: Vec<_> = chunk.iter().map(|(i, by)| (held[*i].handle.clone(), *by)).collect();
            results.extend(self.consumer.change_visibility(&items).await);
        }
        let which: Vec<usize> = which.iter().map(|(i, _)| *i).collect();
        self.remove_settled(held, &which, &results);
        results
    }

    /// Removes what is settled or lost from the consumer.
    fn remove_settled(&self, held: &[&HeldMessage], which: &[usize], results: &[Result<()>]) {
        for (i, result) in which.iter().zip(results) {
            if result.as_ref().err().is_none_or(|e| e.kind() == ErrorKind::LockLost) {
                self.consumer.remove(held[*i].number);
            }
        }
    }
}

/// Whether SQS has refused the copy and will refuse it again. Then nothing was changed.
fn is_copy_refused(e: &Error) -> bool {
    let kinds =
        [ErrorKind::PermissionDenied, ErrorKind::NotFound, ErrorKind::PayloadTooLarge, ErrorKind::InvalidArgument];
    kinds.contains(&e.kind()) && !e.is_copy_kept()
}

fn hidden_too_long() -> Error {
    error::new(ErrorKind::Unsupported, "settle", "SQS hides a message for 12 hours from its receive at most")
}

/// How long the message can still be hidden, in whole seconds. SQS counts its limit from the receive, however often the
/// timeout is changed.
fn visibility_left(held: &HeldMessage) -> Duration {
    Duration::from_secs(MAX_VISIBILITY.saturating_sub(held.since.elapsed()).as_secs())
}

#[async_trait]
impl Settler for AwsSettler {
    fn batching(&self) -> Batching {
        Batching::new(ENTRIES, self.consumer.clients.config.queue_bytes(), IN_FLIGHT).fuller(LINGER)
    }

    async fn settle(&self, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let held: Vec<&HeldMessage> = match SettleRequest::tokens(batch) {
            Ok(held) => held,
            Err(e) => return e.for_each_of(batch.len()),
        };
        let mut results: Vec<Result<()>> = batch.iter().map(|_| Ok(())).collect();
        let (mut deletes, mut visibilities, mut moves) = (Vec::new(), Vec::new(), Vec::new());
        let mut long = Vec::new();
        for (i, settle) in batch.iter().enumerate() {
            if !self.consumer.holds(held[i].number) {
                results[i] = Err(error::lock_lost("it was settled before, or given back"));
                continue;
            }
            // On ordered queues core holds a released or retried message itself (`core/src/consume/settle/rules.rs`,
            // `keep_in_place`), because the capabilities say `KeyHolder::Client`. So `Release` and `RetryAfter` never
            // come here for their live messages. `GiveBack` does, and a release of their dead letters.
            match &settle.how {
                Settlement::Ack => deletes.push(i),
                Settlement::Release | Settlement::GiveBack => visibilities.push((i, Duration::ZERO)),
                Settlement::RetryAfter(by) if !self.ordered && retry_placement::may_be_copied(*by) => long.push(i),
                Settlement::RetryAfter(by) if *by <= visibility_left(held[i]) => {
                    visibilities.push((i, RetryVisibility::of_delay(*by).timeout));
                }
                Settlement::RetryAfter(_) => results[i] = Err(hidden_too_long()),
                _ => moves.push(i),
            }
        }
        let (deleted, ()) =
            tokio::join!(self.delete(&held, &deletes), self.hide(batch, &held, &visibilities, &mut results));
        for (i, result) in deletes.into_iter().zip(deleted) {
            results[i] = result;
        }
        if !long.is_empty() {
            let crowded =
                retry_placement::is_crowded(&self.consumer, u32::try_from(long.len()).unwrap_or(u32::MAX)).await;
            let (copied, hidden): (Vec<usize>, Vec<usize>) =
                long.into_iter().partition(|i| crowded && self.copy(held[*i], &batch[*i]).is_ok());
            moves.extend(copied);
            self.hide_instead(batch, &held, hidden, &mut results).await;
        }
        if !moves.is_empty() {
            self.move_all(batch, &held, &moves, &mut results).await;
            // A consumer that may not send to the queue, or whose copies are too large for it, hides its retries
            // instead.
            let refused = |i: &usize| {
                matches!(batch[*i].how, Settlement::RetryAfter(_)) && results[*i].as_ref().is_err_and(is_copy_refused)
            };
            let refused: Vec<usize> = moves.into_iter().filter(refused).collect();
            if !refused.is_empty() {
                retry_placement::note_copies_refused(&self.consumer);
                self.hide_instead(batch, &held, refused, &mut results).await;
            }
        }
        results
    }

    async fn extend(&self, tokens: &[DriverToken], by: Duration) -> Vec<Result<Instant>> {
        let mut results: Vec<Result<Instant>> = Vec::with_capacity(tokens.len());
        let mut items = Vec::new();
        let began = Instant::now();
        for (i, token) in tokens.iter().enumerate() {
            results.push(match token.get::<HeldMessage>() {
                Err(e) => Err(e),
                Ok(held) if !self.consumer.holds(held.number) => Err(error::lock_lost("it was settled before")),
                Ok(held) => {
                    let by = by.min(visibility_left(held));
                    if by.is_zero() {
                        Err(error::lock_lost("SQS hides a message for 12 hours from its receive at most"))
                    } else {
                        items.push((i, held.handle.clone(), by));
                        Ok(began + by - lock_margin(by))
                    }
                }
            });
        }
        for chunk in items.chunks(ENTRIES) {
            let calls: Vec<_> = chunk.iter().map(|(_, handle, by)| (handle.clone(), *by)).collect();
            for ((i, ..), result) in chunk.iter().zip(self.consumer.change_visibility(&calls).await) {
                if let Err(e) = result {
                    results[*i] = Err(e);
                }
            }
        }
        results
    }

    fn holds(&self, token: &DriverToken) -> bool {
        token.get::<HeldMessage>().is_ok_and(|held| self.consumer.holds(held.number))
    }

    fn forget(&self, token: &DriverToken) {
        if let Ok(held) = token.get::<HeldMessage>() {
            self.consumer.remove(held.number);
            // SQS hands it out again before those of its group that are in the prefetch buffer, so these must not come
            // first.
            if let Some(group) = held.group() {
                self.consumer.prefetched.lose(group);
            }
        }
    }

    async fn close(&self) -> Result<()> {
        self.consumer.close();
        let unsettled = self.consumer.take_unsettled();
        self.consumer.give_back(&unsettled).await;
        Ok(())
    }
}
