//! What a subscription and its deliveries share.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{runtime::Handle, sync::Notify, time::Instant};

use crate::{
    Delivery, Entity, Error, Hold, Kind, Received, Receiver, Result, Settlement, Settler, Source,
    backoff::Backoff,
    buffer::Buffer,
    bus::BusInner,
    consumer_settling::MAX_DELIVERIES,
    held::{Held, Parts},
    locks::{Locks, renew},
    polled::Polled,
    settle_queue::SettleQueue,
    telemetry::ConsumeMetrics,
    types::any_matches,
};

pub(crate) struct Consumer {
    pub(crate) bus: Arc<BusInner>,
    pub(crate) entity: Entity<Source>,
    pub(crate) locks: Locks,
    pub(crate) metrics: ConsumeMetrics,
    pub(crate) settler: Arc<dyn Settler>,
    pub(crate) settlements: Arc<SettleQueue>,
    receiver: tokio::sync::Mutex<Intake>,
    buffer: Mutex<Buffer>,
    prefetch: usize,
    /// Core keeps the order per key, and holds a retried message in place.
    pub(crate) holds_keys: bool,
    unsettled: AtomicUsize,
    /// Those of the unsettled that are out of the buffer.
    in_hand: AtomicUsize,
    /// Wakes the one that waits in `next`; only if `waiting` says so, since it happens at every settlement.
    wake: Notify,
    waiting: AtomicBool,
    /// Who will wake it soon: until then nobody else needs to.
    hushed: AtomicUsize,
    stopping: AtomicBool,
    /// Notified at stop, and whenever something was settled after it.
    stopped: Notify,
    finished: AtomicBool,
    settler_closed: tokio::sync::Mutex<bool>,
    /// The subscription as a stream.
    pub(crate) polled: Polled<Option<Result<Delivery>>>,
    pub(crate) runtime: Handle,
}

/// Wakes at its end.
pub(crate) struct Hush<'a>(&'a Consumer);

impl Drop for Hush<'_> {
    fn drop(&mut self) {
        self.0.hushed.fetch_sub(1, Ordering::SeqCst);
        self.0.poke();
    }
}

struct Intake {
    receiver: Box<dyn Receiver>,
    backoff: Backoff,
    not_before: Option<Instant>,
    ended: bool,
    closed: bool,
}

impl Consumer {
    pub(crate) fn new(
        bus: Arc<BusInner>,
        entity: Entity<Source>,
        receiver: Box<dyn Receiver>,
        settler: Arc<dyn Settler>,
    ) -> Self {
        let ordered = entity.settings.ordered && !entity.name.is_dead_letters();
        let hold = bus.driver.capabilities().ordered.as_ref().map(|o| o.hold);
        let holds_keys = ordered && hold == Some(Hold::Client);
        Self {
            locks: Locks::new(entity.settings.lock),
            metrics: ConsumeMetrics::new(bus.driver.backend(), &entity.name),
            settlements: Arc::new(SettleQueue::new(settler.clone())),
            settler,
            receiver: tokio::sync::Mutex::new(Intake {
                receiver,
                backoff: Backoff::default(),
                not_before: None,
                ended: false,
                closed: false,
            }),
            buffer: Mutex::new(Buffer::new(holds_keys)),
            prefetch: entity.prefetch,
            holds_keys,
            unsettled: AtomicUsize::new(0),
            in_hand: AtomicUsize::new(0),
            wake: Notify::new(),
            waiting: AtomicBool::new(false),
            hushed: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            stopped: Notify::new(),
            finished: AtomicBool::new(false),
            settler_closed: tokio::sync::Mutex::new(false),
            polled: Polled::default(),
            runtime: Handle::current(),
            bus,
            entity,
        }
    }

    pub(crate) fn buffer(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_live(&self) -> bool {
        !self.entity.name.is_dead_letters()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// The next delivery; an error only as the last item. Cancel safe: everything under way lives in `self`.
    pub(crate) async fn next(self: &Arc<Self>) -> Option<Result<Delivery>> {
        loop {
            // Neither a full buffer nor a driver that answers at once would ever yield.
            tokio::task::coop::consume_budget().await;
            let parts = self.buffer().pop();
            if let Some(parts) = parts {
                match self.admit(parts) {
                    Some(delivery) => return Some(Ok(delivery)),
                    None => continue,
                }
            }
            self.waiting.store(true, Ordering::SeqCst);
            if !self.buffer().is_empty() {
                continue;
            }
            let free = self.prefetch.saturating_sub(self.unsettled.load(Ordering::SeqCst));
            if free == 0 && !self.is_stopping() {
                self.tell_stall();
                self.wake.notified().await;
                continue;
            }
            let mut intake = self.receiver.lock().await;
            if intake.ended {
                return None;
            }
            if self.is_stopping() {
                intake.ended = true;
                let closed_by_bus = self.bus.open("receive").err();
                return closed_by_bus.map(|e| Err(e.with("source", &self.entity.name)));
            }
            if let Some(at) = intake.not_before.filter(|at| *at > Instant::now()) {
                tokio::select! {
                    () = tokio::time::sleep_until(at) => {}
                    () = self.wake.notified() => {}
                }
                continue;
            }
            let received = tokio::select! {
                biased;
                received = intake.receiver.receive(free) => received,
                () = self.wake.notified() => continue,
            };
            self.waiting.store(false, Ordering::SeqCst);
            match received {
                Ok(batch) => {
                    intake.backoff.reset();
                    intake.not_before = None;
                    drop(intake);
                    self.take_in(batch);
                }
                Err(e) if !is_terminal(&e) => {
                    tracing::warn!(source = %self.entity.name, error = %e, "receiving failed; trying again");
                    self.metrics.receive_failed(&e);
                    intake.not_before = Some(Instant::now() + intake.backoff.next());
                }
                Err(e) => {
                    intake.ended = true;
                    return Some(Err(self.located(e, "receive")));
                }
            }
        }
    }

    pub(crate) fn poll_next(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Delivery>>> {
        self.polled.poll(cx, || {
            let this = self.clone();
            Box::pin(async move { this.next().await })
        })
    }

    fn take_in(self: &Arc<Self>, batch: Vec<Received>) {
        self.unsettled.fetch_add(batch.len(), Ordering::SeqCst);
        let mut start_renewing = false;
        let now = Instant::now();
        let mut buffer = self.buffer();
        for received in batch {
            let lock = received.locked_until.map(|until| {
                let (id, start) = self.locks.add(received.token.clone(), until, now);
                start_renewing |= start;
                id
            });
            buffer.push(Parts::new(received, lock));
        }
        drop(buffer);
        if start_renewing && self.entity.renew_locks {
            let lock = self.entity.settings.lock;
            tokio::spawn(renew(Arc::downgrade(self), self.settler.clone(), lock));
        }
    }

    /// What is decided at hand-over, on every broker alike. `None`: it was settled without any handler seeing it.
    fn admit(self: &Arc<Self>, parts: Parts) -> Option<Delivery> {
        let held = Held::new(self.clone(), parts);
        if !held.is_held() {
            self.metrics.lock_lost();
            tracing::debug!(source = %self.entity.name, "a buffered delivery is no longer held; the broker has it");
            return None;
        }
        let parts = held.parts();
        if !self.is_live() {
            self.metrics.received(1);
            return Some(Delivery::new(held));
        }
        let settings = &self.entity.settings;
        let buries = self.bus.driver.capabilities().dead_letters;
        let bury =
            |reason: &str, detail: String| Settlement::DeadLetter { reason: reason.into(), detail: detail.into() };
        let how = if let (Some(why), true) = (&parts.malformed, buries) {
            Some(bury("malformed", why.to_string()))
        } else if parts.attempt > settings.max_deliveries && buries {
            let detail = format!("delivered {} times, allowed {}", parts.attempt - 1, settings.max_deliveries);
            Some(bury(MAX_DELIVERIES, detail))
        } else if let Some(at) = parts.envelope.expires_at.filter(|at| *at <= self.bus.clock.now()) {
            self.metrics.expired();
            let keep = settings.dead_letter_expired && buries;
            Some(if keep { bury("expired", format!("expired at {at}")) } else { Settlement::Ack })
        } else if !any_matches(&settings.types, &parts.envelope.event_type) {
            self.metrics.filtered();
            Some(Settlement::Ack)
        } else {
            None
        };
        match how {
            None => {
                self.metrics.received(1);
                Some(Delivery::new(held))
            }
            Some(how) => {
                self.settle_detached(held, how);
                None
            }
        }
    }

    /// Whether a delivery is still this consumer's, as far as is known without I/O.
    pub(crate) fn holds(&self, parts: &Parts) -> bool {
        if self.finished.load(Ordering::SeqCst) {
            return false;
        }
        let in_time = parts.lock.is_none_or(|id| self.locks.until(id).is_some_and(|until| Instant::now() < until));
        in_time && self.settler.holds(&parts.token)
    }

    pub(crate) async fn until_stopping(&self) {
        loop {
            let stopped = self.stopped.notified();
            tokio::pin!(stopped);
            stopped.as_mut().enable();
            if self.is_stopping() {
                return;
            }
            stopped.await;
        }
    }

    /// A delivery has left the buffer.
    pub(crate) fn taken(&self) {
        self.in_hand.fetch_add(1, Ordering::Relaxed);
    }

    /// It is over, or back in the buffer.
    pub(crate) fn put_back(&self) {
        self.in_hand.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many deliveries are being handled or settled.
    pub(crate) fn in_hand(&self) -> usize {
        self.in_hand.load(Ordering::Relaxed)
    }

    /// A delivery is over, one way or another.
    pub(crate) fn let_go(&self, parts: Parts) {
        let lost = parts.lock.is_some_and(|id| self.locks.remove(id).is_none_or(|until| until <= Instant::now()));
        if lost {
            self.settler.forget(&parts.token);
        }
        self.unsettled.fetch_sub(1, Ordering::SeqCst);
        if self.holds_keys {
            let key = parts.envelope.key.as_deref();
            if lost {
                // It comes again, and must come before those of its key that wait here.
                let later = self.buffer().discard(key);
                for Parts { lock, token, .. } in later {
                    lock.map(|id| self.locks.remove(id));
                    self.settler.forget(&token);
                    self.unsettled.fetch_sub(1, Ordering::SeqCst);
                }
            } else {
                self.buffer().free(key);
            }
        }
        self.poke();
        if self.is_stopping() {
            self.stopped.notify_waiters();
        }
    }

    pub(crate) fn poke(&self) {
        if self.hushed.load(Ordering::SeqCst) == 0 && self.waiting.swap(false, Ordering::SeqCst) {
            self.wake.notify_one();
        }
    }

    /// While a batch of settlements is told: with a wake for each, the one that waits in `next` would look as often.
    pub(crate) fn hush(&self) -> Hush<'_> {
        self.hushed.fetch_add(1, Ordering::SeqCst);
        Hush(self)
    }

    fn tell_stall(&self) {
        if self.holds_keys {
            let buffer = self.buffer();
            let keys = buffer.blocked_keys();
            if !keys.is_empty() {
                tracing::debug!(source = %self.entity.name, ?keys, "the backlog of blocked keys fills the prefetch window");
            }
        }
    }

    pub(crate) async fn extend(&self, parts: &Parts, by: Duration) -> Result<()> {
        let Some(lock) = parts.lock.filter(|_| self.bus.driver.capabilities().locks) else {
            let e = Error::unsupported("extend: this broker's hold on a delivery cannot be renewed");
            return Err(self.located(e, "extend"));
        };
        if !self.holds(parts) {
            return Err(self.located(Error::new(Kind::LockLost, "the lock has run out"), "extend"));
        }
        let token = [parts.token.clone()];
        let answer = self.settler.extend(&token, by).await.pop();
        match answer.unwrap_or_else(|| Err(Error::new(Kind::Unexpected, "the driver gave no answer"))) {
            Ok(until) => {
                self.locks.set(lock, until);
                Ok(())
            }
            Err(e) => {
                if e.kind() == Kind::LockLost {
                    self.locks.set_lost(lock);
                }
                Err(self.located(e, "extend"))
            }
        }
    }

    /// Stops receiving and gives back what was not handed out. Idempotent.
    pub(crate) async fn stop(self: &Arc<Self>) -> Result<()> {
        self.stopping.store(true, Ordering::SeqCst);
        self.stopped.notify_waiters();
        self.wake.notify_one();
        self.polled.end();
        let mut intake = self.receiver.lock().await;
        let closed = match intake.closed {
            true => Ok(()),
            false => intake.receiver.close().await,
        };
        intake.closed = true;
        drop(intake);
        let rest = self.buffer().drain();
        let ordered = self.entity.settings.ordered && self.is_live();
        for parts in rest {
            let held = Held::new(self.clone(), parts);
            // On an ordered source only the settler's close can give back without reordering.
            if !ordered {
                self.settle_detached(held, Settlement::GiveBack);
            }
        }
        closed.map_err(|e| self.located(e, "close"))
    }

    /// Stops, finishes what is under way, gives everything back. Idempotent.
    pub(crate) async fn finish(self: &Arc<Self>) -> Result<()> {
        let stopped = self.stop().await;
        self.settlements.idle().await;
        self.finished.store(true, Ordering::SeqCst);
        let mut settler_closed = self.settler_closed.lock().await;
        let closed = match *settler_closed {
            true => Ok(()),
            false => self.settler.close().await.map_err(|e| self.located(e, "close")),
        };
        *settler_closed = true;
        stopped.and(closed)
    }

    /// For a subscription that was dropped: what was handed out can still be settled, then everything ends.
    pub(crate) fn abandon(self: &Arc<Self>) {
        let this = self.clone();
        self.runtime.spawn(async move {
            let stopped = this.stop().await;
            loop {
                let settled = this.stopped.notified();
                tokio::pin!(settled);
                settled.as_mut().enable();
                if this.unsettled.load(Ordering::SeqCst) == 0 {
                    break;
                }
                settled.await;
            }
            if let Err(e) = stopped.and(this.finish().await) {
                tracing::debug!(source = %this.entity.name, error = %e, "closing a dropped subscription failed");
            }
        });
    }

    pub(crate) fn located(&self, e: Error, operation: &'static str) -> Error {
        let e = self.bus.located(e, operation);
        if e.context("source").is_some() { e } else { e.with("source", &self.entity.name) }
    }
}

/// What no later attempt can mend. Anything else a consumer must live through.
fn is_terminal(e: &Error) -> bool {
    matches!(e.kind(), Kind::NotFound | Kind::PermissionDenied | Kind::Unauthenticated | Kind::Closed)
}
