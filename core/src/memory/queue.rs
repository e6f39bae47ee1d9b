//! A queue or subscription with its dead letters, under one lock.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    task::Context,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    fail,
    message::Message,
    message_store::{ConsumerId, Half, Taken, Ticket, Wakers},
};
use crate::{
    driver::{DeadLetter, SettleRequest, Settlement, lock_margin},
    error::{Error, ErrorKind, Result},
    message::Envelope,
    runtime::duration::after,
    topology::SourceStats,
};

/// Which half of a source.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Live,
    Dead,
}

pub(super) struct Queue(Mutex<State>);

pub(super) struct State {
    live: Half,
    dead: Half,
    deleted: bool,
}

impl Queue {
    /// `fifo`: its dead letters keep the order per key too.
    pub(super) fn new(ordered: bool, fifo: bool) -> Self {
        Self(Mutex::new(State { live: Half::new(ordered), dead: Half::new(ordered && fifo), deleted: false }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ordered(&self) -> bool {
        self.lock().live.backlog.ordered()
    }

    /// Adds messages at the end, in order, each after its delay. False if the queue was deleted.
    pub(super) fn publish(
        &self,
        messages: impl Iterator<Item = (Message, Option<Duration>)>,
        wakers: &mut Wakers,
    ) -> bool {
        let mut state = self.lock();
        if state.deleted {
            return false;
        }
        let live = &mut state.live;
        for (message, delay) in messages {
            match delay.filter(|d| !d.is_zero()) {
                None => live.backlog.publish(message),
                Some(delay) => {
                    let due = after(Instant::now(), delay);
                    live.backlog.publish_at(due, message);
                    live.alarm(due, wakers);
                }
            }
        }
        live.rouse(wakers);
        true
    }

    pub(super) fn enter(&self, side: Side, prefetch: usize, lock: Duration) -> Option<ConsumerId> {
        let mut state = self.lock();
        if state.deleted { None } else { Some(state.half(side).enter(prefetch, lock)) }
    }

    pub(super) fn take(&self, side: Side, id: ConsumerId, max: usize, cx: &Context<'_>) -> Result<Taken> {
        let mut wakers = Wakers::default();
        let mut state = self.lock();
        if state.deleted {
            return Err(fail(ErrorKind::NotFound, "the source was deleted"));
        }
        let now = Instant::now();
        let half = state.half(side);
        half.tick(now);
        let taken = half.take(id, max, now, cx, &mut wakers);
        half.rouse(&mut wakers);
        drop(state);
        wakers.wake();
        Ok(taken)
    }

    /// Settles one delivery after the other. `items` yields what to settle and how.
    pub(super) fn settle<'a>(
        &self,
        side: Side,
        items: impl Iterator<Item = (Result<&'a Ticket>, &'a SettleRequest)>,
        origin: &str,
    ) -> Vec<Result<()>> {
        let mut wakers = Wakers::default();
        let mut state = self.lock();
        let now = Instant::now();
        state.half(side).tick(now);
        let results = items.map(|(ticket, what)| state.settle(side, ticket?, what, now, origin, &mut wakers)).collect();
        state.live.rouse(&mut wakers);
        state.dead.rouse(&mut wakers);
        drop(state);
        wakers.wake();
        results
    }

    pub(super) fn extend<'a>(
        &self,
        side: Side,
        tickets: impl Iterator<Item = Result<&'a Ticket>>,
        by: Duration,
    ) -> Vec<Result<Instant>> {
        let mut wakers = Wakers::default();
        let mut state = self.lock();
        let now = Instant::now();
        let half = state.half(side);
        half.tick(now);
        let until = after(now, by);
        let extend = |ticket: Result<&Ticket>| {
            if half.extend(ticket?, until) { Ok(until - lock_margin(by)) } else { Err(lock_lost()) }
        };
        let results = tickets.map(extend).collect();
        half.alarm(until, &mut wakers);
        half.rouse(&mut wakers);
        drop(state);
        wakers.wake();
        results
    }

    pub(super) fn holds(&self, side: Side, ticket: &Ticket) -> bool {
        self.lock().half(side).holds(ticket, Instant::now())
    }

    pub(super) fn stop(&self, side: Side, id: ConsumerId) {
        self.with(side, |half, wakers| half.stop(id, wakers));
    }

    pub(super) fn leave(&self, side: Side, id: ConsumerId) {
        self.with(side, |half, wakers| half.leave(id, wakers));
    }

    /// A `receive` was given up while it waited: if it had been woken, another consumer must be.
    pub(super) fn give_up(&self, side: Side, id: ConsumerId) {
        self.with(side, |half, _| half.forget_waker(id));
    }

    fn with(&self, side: Side, f: impl FnOnce(&mut Half, &mut Wakers)) {
        let mut wakers = Wakers::default();
        let mut state = self.lock();
        let half = state.half(side);
        f(half, &mut wakers);
        half.rouse(&mut wakers);
        drop(state);
        wakers.wake();
    }

    pub(super) fn stats(&self, side: Side) -> SourceStats {
        let mut state = self.lock();
        let now = Instant::now();
        state.live.tick(now);
        state.dead.tick(now);
        let mut stats = state.half(side).stats();
        if side == Side::Live {
            stats.dead_lettered = Some(state.dead.len());
        }
        stats
    }

    pub(super) fn purge(&self, side: Side) -> u64 {
        let mut state = self.lock();
        let half = state.half(side);
        half.tick(Instant::now());
        half.backlog.purge() as u64
    }

    /// Deletes the messages; consumers learn `NotFound`, their tokens `LockLost`.
    pub(super) fn delete(&self) {
        let mut wakers = Wakers::default();
        let mut state = self.lock();
        state.deleted = true;
        state.live.clear(&mut wakers);
        state.dead.clear(&mut wakers);
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

impl State {
    fn half(&mut self, side: Side) -> &mut Half {
        match side {
            Side::Live => &mut self.live,
            Side::Dead => &mut self.dead,
        }
    }

    fn settle(
        &mut self,
        side: Side,
        ticket: &Ticket,
        what: &SettleRequest,
        now: Instant,
        origin: &str,
        wakers: &mut Wakers,
    ) -> Result<()> {
        let (how, mark) = (&what.how, what.mark.as_deref());
        match (side, how) {
            (Side::Dead, Settlement::RetryAfter(_)) => return Err(unsupported("retry_after on dead letters")),
            (Side::Dead, Settlement::DeadLetter { .. }) => return Err(unsupported("dead_letter on dead letters")),
            (Side::Live, Settlement::Redrive | Settlement::RedriveAs(_) | Settlement::SetAside) => {
                return Err(unsupported("redrive of a live delivery"));
            }
            _ => {}
        }
        let half = self.half(side);
        let mut message = half.settle(ticket).ok_or_else(lock_lost)?;
        match how {
            Settlement::Ack => half.backlog.gone(&message),
            Settlement::Release => half.backlog.put_back(message),
            Settlement::GiveBack => {
                message.attempts = message.attempts.saturating_sub(1);
                half.backlog.put_back(message);
            }
            Settlement::RetryAfter(delay) if delay.is_zero() => half.backlog.put_back(message),
            Settlement::RetryAfter(delay) => {
                let due = after(now, *delay);
                half.backlog.put_back_at(due, message);
                half.alarm(due, wakers);
            }
            Settlement::DeadLetter { reason, detail } => {
                half.backlog.gone(&message);
                message.dead_letter = Some(Box::new(DeadLetter {
                    reason: Some(reason.clone()),
                    detail: Some(detail.clone()),
                    attempt: Some(message.attempts),
                    origin: Some(origin.into()),
                    time: Some(what.time),
                    redriven: message.redriven,
                }));
                message.attempts = 0;
                self.dead.backlog.publish(message);
            }
            Settlement::Redrive => {
                half.backlog.gone(&message);
                message.redriven(mark);
                self.live.backlog.publish(message);
            }
            Settlement::RedriveAs(other) => {
                half.backlog.gone(&message);
                message.redriven(mark);
                (message.envelope, message.malformed) = (Envelope::clone(other), None);
                self.live.backlog.publish(message);
            }
            Settlement::SetAside => {
                half.backlog.gone(&message);
                message.mark = mark.map(Into::into).or(message.mark);
                half.backlog.publish(message);
            }
        }
        Ok(())
    }
}
