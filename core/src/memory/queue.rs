//! A queue or subscription with its dead letters. Both are under one lock, so that a message moves between them in one
//! step.

use std::{task::Context, time::Duration};

use parking_lot::{Mutex, MutexGuard};

use tokio::time::Instant;

use super::{
    fail,
    message_store::{ConsumerId, LockToken, MessageStore, TakeOutcome, WakeList},
    stored_message::StoredMessage,
};
use crate::{
    Envelope, Error, ErrorKind, Result,
    driver::{DeadLetter, SettleRequest, Settlement, lock_margin},
    runtime::duration::after,
    topology::SourceStats,
};

/// Which of a queue's two stores is meant.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum StoreKind {
    /// Live messages.
    Live,
    /// Dead letters.
    Dead,
}

pub(super) struct MemoryQueue(Mutex<MemoryQueueState>);

pub(super) struct MemoryQueueState {
    live: MessageStore,
    dead_letters: MessageStore,
    deleted: bool,
}

impl MemoryQueue {
    /// `fifo`: the dead letters of an ordered queue keep the order per key too.
    pub(super) fn new(ordered: bool, fifo: bool) -> Self {
        let (live, dead_letters) = (MessageStore::new(ordered), MessageStore::new(ordered && fifo));
        Self(Mutex::new(MemoryQueueState { live, dead_letters, deleted: false }))
    }

    fn lock(&self) -> MutexGuard<'_, MemoryQueueState> {
        self.0.lock()
    }

    pub(super) fn ordered(&self) -> bool {
        self.lock().live.waiting.ordered()
    }

    /// Adds messages at the end, in order, each once its delay is over. False if the queue was deleted.
    pub(super) fn publish(
        &self,
        messages: impl Iterator<Item = (StoredMessage, Option<Duration>)>,
        wakers: &mut WakeList,
    ) -> bool {
        let mut state = self.lock();
        if state.deleted {
            return false;
        }
        let live = &mut state.live;
        for (message, delay) in messages {
            match delay.filter(|d| !d.is_zero()) {
                None => live.waiting.publish(message),
                Some(delay) => {
                    let due = after(Instant::now(), delay);
                    live.waiting.publish_at(due, message);
                    live.new_deadline(due, wakers);
                }
            }
        }
        live.wake_for_ready(wakers);
        true
    }

    /// Adds a consumer. `None` if the queue was deleted.
    pub(super) fn enter(&self, kind: StoreKind, prefetch: usize, lock: Duration) -> Option<ConsumerId> {
        let mut state = self.lock();
        if state.deleted { None } else { Some(state.store(kind).enter(prefetch, lock)) }
    }

    /// Hands out up to `max` messages, or registers the task of `cx`. `NotFound` if the queue was deleted.
    pub(super) fn take(&self, kind: StoreKind, id: ConsumerId, max: usize, cx: &Context<'_>) -> Result<TakeOutcome> {
        let mut wakers = WakeList::default();
        let mut state = self.lock();
        if state.deleted {
            return Err(fail(ErrorKind::NotFound, "the source was deleted"));
        }
        let now = Instant::now();
        let store = state.store(kind);
        store.advance(now);
        let taken = store.take(id, max, now, cx, &mut wakers);
        store.wake_for_ready(&mut wakers);
        drop(state);
        wakers.wake();
        Ok(taken)
    }

    /// Settles deliveries, one after the other. An item is the token, or why it is none of this queue, and how to
    /// settle. `origin` is the source as text, for new dead letters.
    pub(super) fn settle<'a>(
        &self,
        kind: StoreKind,
        items: impl Iterator<Item = (Result<&'a LockToken>, &'a SettleRequest)>,
        origin: &str,
    ) -> Vec<Result<()>> {
        let mut wakers = WakeList::default();
        let mut state = self.lock();
        let now = Instant::now();
        state.store(kind).advance(now);
        let results = items.map(|(token, what)| state.settle(kind, token?, what, now, origin, &mut wakers)).collect();
        state.live.wake_for_ready(&mut wakers);
        state.dead_letters.wake_for_ready(&mut wakers);
        drop(state);
        wakers.wake();
        results
    }

    /// Extends locks: each is held for `by` from now. Returns the new deadlines, with the margin taken off.
    pub(super) fn extend<'a>(
        &self,
        kind: StoreKind,
        tokens: impl Iterator<Item = Result<&'a LockToken>>,
        by: Duration,
    ) -> Vec<Result<Instant>> {
        self.with(kind, |store, wakers| {
            let now = Instant::now();
            store.advance(now);
            let until = after(now, by);
            let extend = |token: Result<&LockToken>| {
                if store.extend(token?, until) { Ok(until - lock_margin(by)) } else { Err(lock_lost()) }
            };
            let results: Vec<Result<Instant>> = tokens.map(extend).collect();
            store.new_deadline(until, wakers);
            results
        })
    }

    pub(super) fn holds(&self, kind: StoreKind, token: &LockToken) -> bool {
        self.lock().store(kind).holds(token, Instant::now())
    }

    pub(super) fn stop(&self, kind: StoreKind, id: ConsumerId) {
        self.with(kind, |store, wakers| store.stop(id, wakers));
    }

    pub(super) fn leave(&self, kind: StoreKind, id: ConsumerId) {
        self.with(kind, |store, wakers| store.leave(id, wakers));
    }

    /// Ends the wait of a `receive` that was dropped. If it had been woken for a message, another consumer is woken.
    pub(super) fn stop_waiting(&self, kind: StoreKind, id: ConsumerId) {
        self.with(kind, |store, _| store.forget_waker(id));
    }

    /// Changes a store. Wakes consumers for what is ready then, once the lock is released.
    fn with<R>(&self, kind: StoreKind, change: impl FnOnce(&mut MessageStore, &mut WakeList) -> R) -> R {
        let mut wakers = WakeList::default();
        let mut state = self.lock();
        let store = state.store(kind);
        let result = change(store, &mut wakers);
        store.wake_for_ready(&mut wakers);
        drop(state);
        wakers.wake();
        result
    }

    pub(super) fn stats(&self, kind: StoreKind) -> SourceStats {
        let mut state = self.lock();
        let now = Instant::now();
        state.live.advance(now);
        state.dead_letters.advance(now);
        let mut stats = state.store(kind).stats();
        if kind == StoreKind::Live {
            stats.dead_lettered = Some(state.dead_letters.len());
        }
        stats
    }

    pub(super) fn purge(&self, kind: StoreKind) -> u64 {
        let mut state = self.lock();
        let store = state.store(kind);
        store.advance(Instant::now());
        store.waiting.purge() as u64
    }

    /// Deletes all messages. From then on consumers get `NotFound`, and settlements `LockLost`.
    pub(super) fn delete(&self) {
        let mut wakers = WakeList::default();
        let mut state = self.lock();
        state.deleted = true;
        state.live.clear(&mut wakers);
        state.dead_letters.clear(&mut wakers);
        drop(state);
        wakers.wake();
    }
}

fn unsupported(what: &str) -> Error {
    fail(ErrorKind::Unsupported, what)
}

fn lock_lost() -> Error {
    fail(ErrorKind::LockLost, "the delivery is no longer held by this consumer")
}

impl MemoryQueueState {
    fn store(&mut self, kind: StoreKind) -> &mut MessageStore {
        match kind {
            StoreKind::Live => &mut self.live,
            StoreKind::Dead => &mut self.dead_letters,
        }
    }

    fn settle(
        &mut self,
        kind: StoreKind,
        token: &LockToken,
        what: &SettleRequest,
        now: Instant,
        origin: &str,
        wakers: &mut WakeList,
    ) -> Result<()> {
        let (how, mark) = (&what.how, what.mark.as_deref());
        match (kind, how) {
            (StoreKind::Dead, Settlement::RetryAfter(_)) => return Err(unsupported("retry_after on dead letters")),
            (StoreKind::Dead, Settlement::DeadLetter { .. }) => return Err(unsupported("dead_letter on dead letters")),
            (StoreKind::Live, Settlement::Redrive | Settlement::RedriveAs(_) | Settlement::SetAside) => {
                return Err(unsupported("redrive of a live delivery"));
            }
            _ => {}
        }
        let store = self.store(kind);
        let mut message = store.take_locked(token).ok_or_else(lock_lost)?;
        match how {
            Settlement::Ack => store.waiting.release_key_of(&message),
            Settlement::Release => store.waiting.put_back(message),
            Settlement::GiveBack => {
                message.attempts = message.attempts.saturating_sub(1);
                store.waiting.put_back(message);
            }
            Settlement::RetryAfter(delay) if delay.is_zero() => store.waiting.put_back(message),
            Settlement::RetryAfter(delay) => {
                let due = after(now, *delay);
                store.waiting.put_back_at(due, message);
                store.new_deadline(due, wakers);
            }
            Settlement::DeadLetter { reason, detail } => {
                store.waiting.release_key_of(&message);
                message.dead_letter = Some(Box::new(DeadLetter {
                    reason: Some(reason.clone()),
                    detail: Some(detail.clone()),
                    attempt: Some(message.attempts),
                    origin: Some(origin.into()),
                    time: Some(what.time),
                    redriven: message.redriven,
                }));
                message.attempts = 0;
                self.dead_letters.waiting.publish(message);
            }
            Settlement::Redrive => {
                store.waiting.release_key_of(&message);
                message.redrive(mark);
                self.live.waiting.publish(message);
            }
            Settlement::RedriveAs(other) => {
                store.waiting.release_key_of(&message);
                message.redrive(mark);
                (message.envelope, message.malformed) = (Envelope::clone(other), None);
                self.live.waiting.publish(message);
            }
            // Published anew, so it goes to the end.
            Settlement::SetAside => {
                store.waiting.release_key_of(&message);
                message.mark = mark.map(Into::into).or(message.mark);
                store.waiting.publish(message);
            }
        }
        Ok(())
    }
}
