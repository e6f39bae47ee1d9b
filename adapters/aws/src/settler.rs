//! Settling deliveries: deletes and visibilities in batches, copies confirmed before their original is deleted.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use polybus_core::{
    Batching, Entity, Error, Kind, Result, Retry, Settle, Settlement, Settler, Source, Token, cloudevents::Carried,
    lock_margin, names::dedup_id,
};
use tokio::time::Instant;

use crate::{
    book::{Book, Held},
    envelope, error,
    hidden::{self, Hidden},
    limits::{ENTRIES, IN_FLIGHT, MAX_VISIBILITY, QUEUE_BYTES},
    names,
    parcel::{self, Parcel, Place},
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
    fn copy(&self, held: &Held, settle: &Settle) -> Result<(&str, Parcel)> {
        let mut carried = Carried::new(held.hop.saturating_add(1), 0);
        let to = match &settle.how {
            Settlement::DeadLetter { .. } if !self.source.is_dead_letters() => {
                carried.dead_letter = settle.dead_letter(&self.source);
                &*self.dead_letters
            }
            Settlement::Redrive if self.source.is_dead_letters() => &*self.live,
            other => return Err(Error::unsupported(format!("{other:?} on {}", self.source)).operation("settle")),
        };
        let (mut native, mut size) = envelope::copy(&held.native, &settle.envelope, &carried)?;
        if let (true, Some(letter)) = (size > QUEUE_BYTES, carried.dead_letter.as_mut()) {
            letter.detail = None;
            (native, size) = envelope::copy(&held.native, &settle.envelope, &carried)?;
        }
        if size > QUEUE_BYTES {
            let text = format!("a copy of {size} bytes: SQS takes {QUEUE_BYTES}");
            return Err(error::new(Kind::PayloadTooLarge, "settle", text)
                .with("size", size)
                .with("limit", QUEUE_BYTES));
        }
        let e = &settle.envelope;
        let place = self.ordered.then(|| Place {
            group: native.group.unwrap_or_else(|| names::group(e.key.as_deref().unwrap_or_default())),
            dedup: dedup_id(&e.source, &e.id, carried.hop),
        });
        Ok((to, Parcel { body: native.body, attributes: native.attributes, size, delay: None, place }))
    }

    /// Copies, and then deletes what was copied.
    async fn move_all(&self, batch: &[Settle], held: &[&Held], which: &[usize], results: &mut [Result<()>]) {
        let mut copies = Vec::new();
        for i in which {
            match self.copy(held[*i], &batch[*i]) {
                Ok((to, parcel)) => copies.push((*i, to, parcel)),
                Err(e) => results[*i] = Err(e),
            }
        }
        let sizes: Vec<usize> = copies.iter().map(|(.., parcel)| parcel.size).collect();
        let mut made = Vec::new();
        let mut copies = copies.into_iter();
        for call in parcel::split(&sizes) {
            let some: Vec<_> = copies.by_ref().take(call.len()).collect();
            // All copies of one consumer go the same way: down to the dead letters, or back up.
            let Some(to) = some.first().map(|(_, to, _)| *to) else { continue };
            let (places, parcels): (Vec<usize>, Vec<Parcel>) = some.into_iter().map(|(i, _, p)| (i, p)).unzip();
            let sent = parcel::send(&self.book.clients, to, parcels, "settle").await;
            for (i, result) in places.into_iter().zip(sent) {
                match result {
                    Ok(_) => made.push(i),
                    Err(e) => results[i] = Err(e),
                }
            }
        }
        for (i, result) in made.iter().zip(self.delete(held, &made).await) {
            results[*i] = result.map_err(|e| match e.retry() {
                Retry::Safe => e.may_duplicate().with("copy", "kept"),
                _ => e.with("copy", "kept"),
            });
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
            if result.as_ref().err().is_none_or(|e| e.kind() == Kind::LockLost) {
                self.book.settled(held[*i].number);
            }
        }
    }
}

/// Visibility counts from the receive, however often it is changed; in whole seconds.
fn visibility_left(held: &Held) -> Duration {
    Duration::from_secs(MAX_VISIBILITY.saturating_sub(held.since.elapsed()).as_secs())
}

#[async_trait]
impl Settler for AwsSettler {
    fn batching(&self) -> Batching {
        Batching::new(ENTRIES, QUEUE_BYTES, IN_FLIGHT).fuller(LINGER)
    }

    async fn settle(&self, batch: &[Settle]) -> Vec<Result<()>> {
        let held: Vec<&Held> = match Settle::tokens(batch) {
            Ok(held) => held,
            Err(e) => return e.for_each_of(batch.len()),
        };
        let mut results: Vec<Result<()>> = batch.iter().map(|_| Ok(())).collect();
        let (mut deletes, mut visibilities, mut moves) = (Vec::new(), Vec::new(), Vec::new());
        for (i, settle) in batch.iter().enumerate() {
            if !self.book.holds(held[i].number) {
                results[i] = Err(error::lock_lost("it was settled before, or given back"));
                continue;
            }
            match &settle.how {
                Settlement::Ack => deletes.push(i),
                Settlement::Release | Settlement::GiveBack => visibilities.push((i, Duration::ZERO)),
                Settlement::RetryAfter(by) if *by <= visibility_left(held[i]) => {
                    visibilities.push((i, Hidden::for_at_least(*by).at_first));
                }
                Settlement::RetryAfter(_) => {
                    let text = "SQS hides a message for 12 hours from its receive at most";
                    results[i] = Err(error::new(Kind::Unsupported, "settle", text));
                }
                _ => moves.push(i),
            }
        }
        let (deleted, changed) =
            tokio::join!(self.delete(&held, &deletes), self.change_visibility(&held, &visibilities));
        let changed_at = Instant::now();
        for (i, result) in deletes.into_iter().zip(deleted) {
            results[i] = result;
        }
        for ((i, _), result) in visibilities.into_iter().zip(changed) {
            if let (Ok(()), Settlement::RetryAfter(by)) = (&result, &batch[i].how)
                && let Some(after) = Hidden::for_at_least(*by).ends_after
            {
                hidden::end_at(&self.book, held[i].handle.clone(), changed_at + after);
            }
            results[i] = result;
        }
        if !moves.is_empty() {
            self.move_all(batch, &held, &moves, &mut results).await;
        }
        results
    }

    async fn extend(&self, tokens: &[Token], by: Duration) -> Vec<Result<Instant>> {
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

    fn holds(&self, token: &Token) -> bool {
        token.get::<Held>().is_ok_and(|held| self.book.holds(held.number))
    }

    fn forget(&self, token: &Token) {
        if let Ok(held) = token.get::<Held>() {
            self.book.settled(held.number);
            // It comes again, before those of its group that wait here.
            if let Some(group) = &held.native.group {
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
