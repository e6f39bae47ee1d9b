//! Settling deliveries: deletes and visibilities in batches, copies confirmed before their original is deleted.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use polybus_core::{
    Error, ErrorKind, Result, RetrySafety, Source,
    driver::{Batching, DriverToken, SettleRequest, Settlement, Settler, kit::names::copy_id, lock_margin},
    message::cloudevents::CopyState,
    topology::Entity,
};
use tokio::time::Instant;

use crate::{
    consume::{
        consumer::{Book, Held},
        copies::{self, Copy, NoRoom},
        crowding,
        timed_visibility::{self, Hidden},
    },
    error,
    message::{
        limits::{ENTRIES, IN_FLIGHT, MAX_VISIBILITY, QUEUE_BYTES, SMALL_QUEUE_BYTES},
        native_message::NativeMessage,
    },
    publish::batch_send::{self, Parcel, Place},
    topology::names,
};

/// How long acks wait for others to fill a call. A few handlers end about when one does; it is little beside a call.
const LINGER: Duration = Duration::from_millis(5);

pub(crate) struct AwsSettler {
    book: Arc<Book>,
    source: Source,
    live: String,
    dead_letters: String,
    ordered: bool,
}

impl AwsSettler {
    pub(crate) fn new(book: Arc<Book>, from: &Entity<Source>) -> Self {
        Self {
            book,
            source: from.name.clone(),
            live: names::queue(from),
            dead_letters: names::dead_letters(from),
            ordered: from.settings.ordered,
        }
    }

    /// The copy that this settlement is, and the queue it goes to.
    fn copy(&self, held: &Held, settle: &SettleRequest) -> Result<(&str, Parcel)> {
        let (native, dead) = (held.native()?, self.source.is_dead_letters());
        let carried = held.carried.copied(settle, &self.source);
        let hop = carried.hop;
        let (mut delay, mut no_room) = (None, NoRoom::MoveIn);
        let to = match &settle.how {
            Settlement::DeadLetter { .. } if !dead => &*self.dead_letters,
            Settlement::RetryAfter(by) if !dead && !self.ordered => {
                delay = Some(*by);
                &*self.live
            }
            Settlement::Redrive | Settlement::RedriveAs(_) if dead => {
                no_room = NoRoom::LeaveOut;
                &*self.live
            }
            Settlement::SetAside if dead => &*self.dead_letters,
            other => return Err(Error::unsupported(format!("{other:?} on {}", self.source)).with_operation("settle")),
        };
        let (copy, key) = match &settle.how {
            Settlement::RedriveAs(other) => (copies::anew(other, &carried)?, other.key.as_deref()),
            how => (self.exact(native, settle, carried, no_room, how)?, settle.envelope.key.as_deref()),
        };
        if copy.size > SMALL_QUEUE_BYTES && copy.size > self.room_beside(native) {
            return Err(copies::too_large(copy.size, self.room_beside(native)));
        }
        let group = match (&settle.how, &native.group) {
            // Another message has the place of its own key.
            (Settlement::RedriveAs(_), _) if self.ordered && key.is_some() => key.map(names::group),
            (_, Some(group)) => Some(group.clone()),
            (_, None) => self.ordered.then(|| names::group(key.unwrap_or_default())),
        };
        let dedup = self.ordered.then(|| copy_id(&self.book.queue, &native.id, hop));
        let place = group.map(|group| Place { group, dedup });
        let trace = native.trace.clone();
        let Copy { body, attributes, size } = copy;
        Ok((to, Parcel { body, attributes, size, delay, place, trace }))
    }

    /// What SQS takes here: less where the URL says that no message is large, and this one is not either.
    fn room_beside(&self, native: &NativeMessage) -> usize {
        let bytes = self.book.clients.config.queue_bytes();
        if copies::bare(native).size <= bytes { bytes } else { QUEUE_BYTES }
    }

    /// The message as it came, and beside it what it can carry: without the detail, or with nothing at all, where it is as large as SQS
    /// takes. But never without what the settlement is about.
    fn exact(
        &self,
        native: &NativeMessage,
        settle: &SettleRequest,
        mut carried: CopyState,
        no_room: NoRoom,
        how: &Settlement,
    ) -> Result<Copy> {
        let made = copies::copy(native, &settle.envelope, &carried, no_room)?;
        // Few are so large that their own size matters.
        if made.size <= SMALL_QUEUE_BYTES {
            return Ok(made);
        }
        let limit = self.room_beside(native);
        if made.size <= limit {
            return Ok(made);
        }
        if let Some(letter) = carried.dead_letter.as_mut() {
            letter.detail = None;
            let made = copies::copy(native, &settle.envelope, &carried, no_room)?;
            if made.size <= limit {
                return Ok(made);
            }
        }
        match how {
            Settlement::DeadLetter { .. } | Settlement::Redrive => {
                let id = &settle.envelope.id;
                tracing::warn!(source = %self.source, %id, "the message leaves no room: its copy tells no reason and has a new id");
                Ok(copies::bare(native))
            }
            _ => Ok(made),
        }
    }

    /// Sends the message as it came and nothing else, where its queue takes less than is configured and no copy fits: whether that was
    /// done.
    async fn send_bare(&self, held: &Held, settle: &SettleRequest) -> bool {
        let (Settlement::DeadLetter { .. } | Settlement::Redrive, Ok((to, parcel)), Ok(native)) =
            (&settle.how, self.copy(held, settle), held.native())
        else {
            return false;
        };
        let Copy { body, attributes, size } = copies::bare(native);
        if size >= parcel.size {
            return false;
        }
        let sent =
            batch_send::send(&self.book.clients, to, vec![Parcel { body, attributes, size, ..parcel }], "settle").await;
        let done = sent.iter().all(Result::is_ok) && !sent.is_empty();
        if done {
            let id = &settle.envelope.id;
            tracing::warn!(source = %self.source, %id, "the queue has no room for more than the message: its copy tells no reason and has a new id");
        }
        done
    }

    /// Copies, and then deletes what was copied.
    async fn move_all(&self, batch: &[SettleRequest], held: &[&Held], which: &[usize], results: &mut [Result<()>]) {
        let mut copies = Vec::new();
        for i in which {
            match self.copy(held[*i], &batch[*i]) {
                Ok((to, parcel)) => copies.push((*i, to, parcel)),
                Err(e) => results[*i] = Err(e),
            }
        }
        let mut made = Vec::new();
        let (down, back): (Vec<_>, Vec<_>) = copies.into_iter().partition(|(_, to, _)| *to == self.dead_letters);
        for (to, copies) in [(&self.dead_letters, down), (&self.live, back)] {
            let sizes: Vec<usize> = copies.iter().map(|(.., parcel)| parcel.size).collect();
            let mut copies = copies.into_iter();
            for call in batch_send::split(&sizes, self.book.clients.config.queue_bytes()) {
                let some = copies.by_ref().take(call.len());
                let (places, parcels): (Vec<usize>, Vec<Parcel>) = some.map(|(i, _, p)| (i, p)).unzip();
                let sent = batch_send::send(&self.book.clients, to, parcels, "settle").await;
                for (i, result) in places.into_iter().zip(sent) {
                    match result {
                        Ok(_) => made.push(i),
                        Err(e) => results[i] = Err(e),
                    }
                }
            }
        }
        for i in which {
            if results[*i].as_ref().is_err_and(|e| e.kind() == ErrorKind::PayloadTooLarge)
                && self.send_bare(held[*i], &batch[*i]).await
            {
                results[*i] = Ok(());
                made.push(*i);
            }
        }
        for (i, result) in made.iter().zip(self.delete(held, &made).await) {
            results[*i] = result.map_err(|e| match e.retry() {
                RetrySafety::Safe => e.may_duplicate().with_context("copy", "kept"),
                _ => e.with_context("copy", "kept"),
            });
        }
    }

    /// Hides retries that are no copies.
    async fn hide_instead(
        &self,
        batch: &[SettleRequest],
        held: &[&Held],
        which: Vec<usize>,
        results: &mut [Result<()>],
    ) {
        let mut hidden = Vec::with_capacity(which.len());
        for i in which {
            match batch[i].how {
                Settlement::RetryAfter(by) if by <= visibility_left(held[i]) => {
                    hidden.push((i, Hidden::for_at_least(by).at_first));
                }
                _ => results[i] = Err(hidden_too_long()),
            }
        }
        self.hide(batch, held, &hidden, results).await;
    }

    /// Sets the visibility of what is released or retried.
    async fn hide(
        &self,
        batch: &[SettleRequest],
        held: &[&Held],
        which: &[(usize, Duration)],
        results: &mut [Result<()>],
    ) {
        let changed = self.change_visibility(held, which).await;
        let changed_at = Instant::now();
        for ((i, _), result) in which.iter().zip(changed) {
            if let (Ok(()), Settlement::RetryAfter(by)) = (&result, &batch[*i].how)
                && let Some(after) = Hidden::for_at_least(*by).ends_after
            {
                timed_visibility::end_at(&self.book, held[*i].handle.clone(), changed_at + after);
            }
            results[*i] = result;
        }
    }

    async fn delete(&self, held: &[&Held], which: &[usize]) -> Vec<Result<()>> {
        let mut results = Vec::with_capacity(which.len());
        for some in which.chunks(ENTRIES) {
            let handles: Vec<Arc<str>> = some.iter().map(|i| held[*i].handle.clone()).collect();
            results.extend(self.book.delete(&handles).await);
        }
        self.note(held, which, &results);
        results
    }

    async fn change_visibility(&self, held: &[&Held], which: &[(usize, Duration)]) -> Vec<Result<()>> {
        let mut results = Vec::with_capacity(which.len());
        for some in which.chunks(ENTRIES) {
            let items: Vec<_> = some.iter().map(|(i, by)| (held[*i].handle.clone(), *by)).collect();
            results.extend(self.book.change_visibility(&items).await);
        }
        let which: Vec<usize> = which.iter().map(|(i, _)| *i).collect();
        self.note(held, &which, &results);
        results
    }

    /// What is settled or lost is no longer held.
    fn note(&self, held: &[&Held], which: &[usize], results: &[Result<()>]) {
        for (i, result) in which.iter().zip(results) {
            if result.as_ref().err().is_none_or(|e| e.kind() == ErrorKind::LockLost) {
                self.book.settled(held[*i].number);
            }
        }
    }
}

/// Whether SQS took no copy, and will not: nothing was changed.
fn is_no_copy(e: &Error) -> bool {
    let kinds =
        [ErrorKind::PermissionDenied, ErrorKind::NotFound, ErrorKind::PayloadTooLarge, ErrorKind::InvalidArgument];
    kinds.contains(&e.kind()) && e.context("copy").is_none()
}

fn hidden_too_long() -> Error {
    error::new(ErrorKind::Unsupported, "settle", "SQS hides a message for 12 hours from its receive at most")
}

/// Visibility counts from the receive, however often it is changed; in whole seconds.
fn visibility_left(held: &Held) -> Duration {
    Duration::from_secs(MAX_VISIBILITY.saturating_sub(held.since.elapsed()).as_secs())
}

#[async_trait]
impl Settler for AwsSettler {
    fn batching(&self) -> Batching {
        Batching::new(ENTRIES, self.book.clients.config.queue_bytes(), IN_FLIGHT).fuller(LINGER)
    }

    async fn settle(&self, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let held: Vec<&Held> = match SettleRequest::tokens(batch) {
            Ok(held) => held,
            Err(e) => return e.for_each_of(batch.len()),
        };
        let mut results: Vec<Result<()>> = batch.iter().map(|_| Ok(())).collect();
        let (mut deletes, mut visibilities, mut moves) = (Vec::new(), Vec::new(), Vec::new());
        let mut long = Vec::new();
        for (i, settle) in batch.iter().enumerate() {
            if !self.book.holds(held[i].number) {
                results[i] = Err(error::lock_lost("it was settled before, or given back"));
                continue;
            }
            match &settle.how {
                Settlement::Ack => deletes.push(i),
                Settlement::Release | Settlement::GiveBack => visibilities.push((i, Duration::ZERO)),
                Settlement::RetryAfter(by) if !self.ordered && crowding::could_be_copied(*by) => long.push(i),
                Settlement::RetryAfter(by) if *by <= visibility_left(held[i]) => {
                    visibilities.push((i, Hidden::for_at_least(*by).at_first));
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
            let crowded = crowding::is_crowded(&self.book, u32::try_from(long.len()).unwrap_or(u32::MAX)).await;
            let (copied, hidden): (Vec<usize>, Vec<usize>) =
                long.into_iter().partition(|i| crowded && self.copy(held[*i], &batch[*i]).is_ok());
            moves.extend(copied);
            self.hide_instead(batch, &held, hidden, &mut results).await;
        }
        if !moves.is_empty() {
            self.move_all(batch, &held, &moves, &mut results).await;
            // Whoever may not send to the queue, or has no room there for a copy, hides as where it is not crowded.
            let refused = |i: &usize| {
                matches!(batch[*i].how, Settlement::RetryAfter(_)) && results[*i].as_ref().is_err_and(is_no_copy)
            };
            let refused: Vec<usize> = moves.into_iter().filter(refused).collect();
            if !refused.is_empty() {
                crowding::cannot_copy(&self.book);
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
            results.push(match token.get::<Held>() {
                Err(e) => Err(e),
                Ok(held) if !self.book.holds(held.number) => Err(error::lock_lost("it was settled before")),
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
        for some in items.chunks(ENTRIES) {
            let calls: Vec<_> = some.iter().map(|(_, handle, by)| (handle.clone(), *by)).collect();
            for ((i, ..), result) in some.iter().zip(self.book.change_visibility(&calls).await) {
                if let Err(e) = result {
                    results[*i] = Err(e);
                }
            }
        }
        results
    }

    fn holds(&self, token: &DriverToken) -> bool {
        token.get::<Held>().is_ok_and(|held| self.book.holds(held.number))
    }

    fn forget(&self, token: &DriverToken) {
        if let Ok(held) = token.get::<Held>() {
            self.book.settled(held.number);
            // It comes again, before those of its group that wait here.
            if let Some(group) = held.group() {
                self.book.arrivals.lose(group);
            }
        }
    }

    async fn close(&self) -> Result<()> {
        self.book.close();
        let unsettled = self.book.take_unsettled();
        self.book.give_back(&unsettled).await;
        Ok(())
    }
}
