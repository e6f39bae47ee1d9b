//! What a subscription and its deliveries share.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{runtime::Handle, time::Instant};

use crate::{
    connection::{
        Connection,
        patience::{MOST_AT_CLOSE, closed_by},
    },
    consume::{
        Delivery,
        consumers::Consumers,
        key_lanes::KeyLanes,
        lifecycle::ConsumerLifecycle,
        lock_renewal::{LockTable, renew},
        next_future::NextFuture,
        prefetch_window::PrefetchWindow,
        refusals::{RefusalStage, RefusalStreak, is_refusal},
        settle::batcher::SettlementBatcher,
        stall::StallReport,
        unsettled::{UnsettledDelivery, UnsettledMessage},
    },
    driver::{KeyHolder, ReceivedMessage, Receiver, Settlement, Settler},
    error::{Error, ErrorKind, Result},
    runtime::{backoff::Backoff, duration},
    telemetry::ConsumeMetrics,
    topology::{Entity, Source},
};

pub(crate) struct Consumer {
    pub(crate) connection: Arc<Connection>,
    pub(crate) consumers: Arc<Consumers>,
    pub(crate) entity: Entity<Source>,
    pub(crate) locks: LockTable,
    pub(crate) metrics: ConsumeMetrics,
    pub(crate) settler: Arc<dyn Settler>,
    pub(crate) settlements: SettlementBatcher,
    receiver: tokio::sync::Mutex<ReceiverState>,
    buffer: Mutex<KeyLanes>,
    /// Core keeps the order per key, and holds a retried message in place.
    pub(crate) holds_keys: bool,
    window: PrefetchWindow,
    lifecycle: ConsumerLifecycle,
    settler_closed: tokio::sync::Mutex<bool>,
    stall: StallReport,
    /// Why the last call of the receiver failed, if no later one has brought anything.
    trouble: Mutex<Option<Error>>,
    /// What waits in `next`.
    pub(crate) polled: NextFuture<Option<Result<Delivery>>>,
    pub(crate) runtime: Handle,
}

struct ReceiverState {
    receiver: Box<dyn Receiver>,
    backoff: Backoff,
    not_before: Option<Instant>,
    refusals: RefusalStreak,
    closed: bool,
}

impl Consumer {
    pub(crate) fn new(
        consumers: Arc<Consumers>,
        entity: Entity<Source>,
        receiver: Box<dyn Receiver>,
        settler: Arc<dyn Settler>,
        give_up_after: Duration,
    ) -> Self {
        let ordered = entity.settings.ordered && !entity.name.is_dead_letters();
        let connection = consumers.connection.clone();
        let hold = connection.driver.capabilities().ordered.as_ref().map(|o| o.hold);
        let holds_keys = ordered && hold == Some(KeyHolder::Client);
        Self {
            locks: LockTable::new(),
            metrics: ConsumeMetrics::new(connection.driver.backend(), &entity.name),
            settlements: SettlementBatcher::new(&settler),
            settler,
            receiver: tokio::sync::Mutex::new(ReceiverState {
                receiver,
                backoff: Backoff::default(),
                not_before: None,
                refusals: RefusalStreak::new(give_up_after),
                closed: false,
            }),
            buffer: Mutex::new(KeyLanes::new(holds_keys)),
            holds_keys,
            window: PrefetchWindow::new(entity.prefetch),
            lifecycle: ConsumerLifecycle::default(),
            settler_closed: tokio::sync::Mutex::new(false),
            stall: StallReport::default(),
            trouble: Mutex::default(),
            polled: NextFuture::default(),
            runtime: Handle::current(),
            connection,
            consumers,
            entity,
        }
    }

    pub(crate) fn buffer(&self) -> MutexGuard<'_, KeyLanes> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_live(&self) -> bool {
        !self.entity.name.is_dead_letters()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.lifecycle.is_stopping()
    }

    /// A delivery that is here already.
    pub(crate) fn at_hand(self: &Arc<Self>) -> Option<Delivery> {
        loop {
            let parts = {
                let mut buffer = self.buffer();
                // A head that gives way to a close goes back to the broker, and what is behind it in its key must not overtake it.
                if self.holds_keys && self.is_stopping() {
                    return None;
                }
                buffer.pop()?
            };
            if let Some(delivery) = self.admit(parts) {
                return Some(delivery);
            }
        }
    }

    /// The next delivery; an error only as the last item. Cancel safe: everything under way lives in `self`.
    ///
    /// Only [`poll_next`](Self::poll_next) runs it: its future holds the receiver, and `stop` must be able to end it wherever it is.
    async fn next(self: &Arc<Self>) -> Option<Result<Delivery>> {
        loop {
            // Neither a full buffer nor a driver that answers at once would ever yield.
            tokio::task::coop::consume_budget().await;
            if let Some(delivery) = self.at_hand() {
                return Some(Ok(delivery));
            }
            self.window.stream_waits();
            // Before the receiver is asked for: `stop` has it from then on, and what has come since goes back.
            if self.lifecycle.hands_out_nothing() {
                return self.last_item();
            }
            if !self.buffer().is_empty() {
                continue;
            }
            let free = self.window.room(|| self.buffer().len());
            if free == 0 {
                self.tell_stall();
                self.window.woken().await;
                continue;
            }
            if self.holds_keys {
                self.stall.room(&self.metrics);
            }
            let mut intake = self.receiver.lock().await;
            if self.is_stopping() {
                continue;
            }
            if let Some(at) = intake.not_before.filter(|at| *at > Instant::now()) {
                tokio::select! {
                    () = tokio::time::sleep_until(at) => {}
                    () = self.window.woken() => {}
                }
                continue;
            }
            let Some(received) = self.receive(&mut intake, free).await else { continue };
            self.window.stream_goes_on();
            match received {
                Ok(batch) => {
                    *self.trouble() = None;
                    intake.backoff.reset();
                    intake.not_before = None;
                    self.let_in(&mut intake);
                    drop(intake);
                    self.take_in(batch);
                }
                Err(e) => {
                    if let Some(last) = self.failed(&mut intake, e) {
                        self.lifecycle.tell_last_item();
                        return Some(Err(self.located(last, "receive")));
                    }
                }
            }
        }
    }

    /// One call of the receiver; `None` if something else is to be looked at first.
    async fn receive(&self, intake: &mut ReceiverState, free: usize) -> Option<Result<Vec<ReceivedMessage>>> {
        let Some(well) = intake.refusals.asks(Instant::now()) else {
            return tokio::select! {
                biased;
                received = intake.receiver.receive(free) => Some(received),
                () = self.window.woken() => None,
            };
        };
        tokio::select! {
            biased;
            received = intake.receiver.receive(free) => return Some(received),
            () = self.window.woken() => {}
            () = tokio::time::sleep_until(well) => self.let_in(intake),
        }
        None
    }

    pub(crate) fn trouble(&self) -> MutexGuard<'_, Option<Error>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The broker lets this consumer in.
    fn let_in(&self, intake: &mut ReceiverState) {
        if intake.refusals.success() {
            self.metrics.refused(false);
            tracing::info!(source = %self.entity.name, "the broker lets this consumer in again");
        }
    }

    /// A receive failed: the pause before the next, or the error with which the subscription ends.
    fn failed(&self, intake: &mut ReceiverState, e: Error) -> Option<Error> {
        let (source, now) = (&self.entity.name, Instant::now());
        let mut wait = intake.backoff.next();
        if e.kind() == ErrorKind::Closed {
            return Some(e);
        }
        if !is_refusal(&e) {
            intake.refusals.passing(now);
            tracing::warn!(%source, error = %e, "receiving failed; trying again");
        } else {
            let limit = duration::format(intake.refusals.limit());
            match intake.refusals.refusal(now) {
                RefusalStage::Over(lasted, told) => {
                    let lasted = duration::format(lasted);
                    if told {
                        self.metrics.refused(false);
                    }
                    tracing::error!(%source, error = %e, lasted, "the broker has refused this consumer for too long; the subscription ends");
                    return Some(e.with_context("refused_for", lasted));
                }
                RefusalStage::First => {
                    self.metrics.refused(true);
                    tracing::warn!(%source, error = %e, "the broker refuses this consumer; it is asked again, and the subscription ends if that lasts for {limit}");
                }
                RefusalStage::Again => tracing::debug!(%source, error = %e, "the broker still refuses this consumer"),
            }
            wait = intake.refusals.wait(wait);
        }
        self.metrics.receive_failed(&e);
        *self.trouble() = Some(e);
        intake.not_before = Some(now + wait);
        None
    }

    /// What comes after the last delivery: why, if the bus was closed, once.
    fn last_item(&self) -> Option<Result<Delivery>> {
        if !self.lifecycle.tell_last_item() {
            return None;
        }
        let closed_by_bus = self.connection.ensure_open("receive").err();
        closed_by_bus.map(|e| Err(e.with_context("source", &self.entity.name)))
    }

    /// So many handlers are free now: no more is fetched than they take.
    pub(crate) fn set_free_handlers(&self, free: usize) {
        self.window.set_free_handlers(free);
    }

    pub(crate) fn poll_next(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Delivery>>> {
        self.polled.poll(cx, || {
            let this = self.clone();
            Box::pin(async move { this.next().await })
        })
    }

    fn take_in(self: &Arc<Self>, batch: Vec<ReceivedMessage>) {
        self.window.received(batch.len());
        let mut start_renewing = false;
        let now = Instant::now();
        let mut buffer = self.buffer();
        for received in batch {
            let lock = received.locked_until.map(|until| {
                let (id, start) = self.locks.add(received.token.clone(), until, now);
                start_renewing |= start;
                id
            });
            buffer.push(UnsettledMessage::new(received, lock));
        }
        drop(buffer);
        if start_renewing && self.entity.renew_locks {
            let lock = self.entity.settings.lock;
            tokio::spawn(renew(Arc::downgrade(self), self.settler.clone(), lock));
        }
    }

    /// Whether a delivery is still this consumer's, as far as is known without I/O.
    pub(crate) fn holds(&self, parts: &UnsettledMessage) -> bool {
        if self.lifecycle.is_finished() {
            return false;
        }
        let in_time = parts.lock.is_none_or(|id| self.locks.until(id).is_some_and(|until| Instant::now() < until));
        in_time && self.settler.holds(&parts.token)
    }

    pub(crate) async fn until_stopping(&self) {
        self.lifecycle.until_stopping().await;
    }

    /// A delivery has left the buffer.
    pub(crate) fn enter_hand(&self) {
        self.window.enter_hand();
    }

    /// It is over, or back in the buffer.
    pub(crate) fn leave_hand(&self) {
        self.window.leave_hand();
    }

    /// How many deliveries are being handled or settled.
    pub(crate) fn in_hand(&self) -> usize {
        self.window.in_hand()
    }

    /// A delivery is over, one way or another: its lock, its place and its key are free.
    pub(crate) fn let_go(&self, parts: UnsettledMessage) {
        self.free(parts);
        self.wake();
    }

    /// Frees what a delivery held without waking anybody: who frees several wakes once, by [`wake`](Self::wake), or the one
    /// that waits in `next` would look as often.
    pub(crate) fn free(&self, parts: UnsettledMessage) {
        let lost = parts.lock.is_some_and(|id| self.locks.remove(id).is_none_or(|until| until <= Instant::now()));
        if lost {
            self.settler.forget(&parts.token);
        }
        self.window.free_place();
        if !self.holds_keys {
            return;
        }
        let lane = parts.lane();
        if !lost {
            self.buffer().free(lane);
            return;
        }
        // It comes again, and must come before those of its key that wait here.
        let later = self.buffer().discard(lane);
        for UnsettledMessage { lock, token, .. } in later {
            lock.map(|id| self.locks.remove(id));
            self.settler.forget(&token);
            self.window.free_place();
        }
    }

    /// Room was made, or something was put into the buffer.
    pub(crate) fn wake(&self) {
        self.window.wake_stream();
        self.lifecycle.settled();
    }

    /// The window is full. Where the backlog of blocked keys fills it, the operator must know which.
    fn tell_stall(&self) {
        if self.holds_keys {
            let keys: Vec<String> = self.buffer().blocked_keys().into_iter().map(ToOwned::to_owned).collect();
            self.stall.full(&keys, &self.entity.name, &self.metrics);
        }
    }

    pub(crate) async fn extend(&self, parts: &UnsettledMessage, by: Duration) -> Result<()> {
        let Some(lock) = parts.lock.filter(|_| self.connection.driver.capabilities().locks) else {
            let e = Error::unsupported("extend: this broker's hold on a delivery cannot be renewed");
            return Err(self.located(e, "extend"));
        };
        if !self.holds(parts) {
            return Err(self.located(Error::new(ErrorKind::LockLost, "the lock has run out"), "extend"));
        }
        let token = [parts.token.clone()];
        let answer = self.settler.extend(&token, by).await.pop();
        match answer.unwrap_or_else(|| Err(Error::new(ErrorKind::Unexpected, "the driver gave no answer"))) {
            Ok(until) => {
                self.locks.set(lock, until);
                Ok(())
            }
            Err(e) => {
                if e.kind() == ErrorKind::LockLost {
                    self.locks.set_lost(lock);
                }
                Err(self.located(e, "extend"))
            }
        }
    }

    /// Stops receiving and gives back what was not handed out. Idempotent.
    pub(crate) async fn stop(self: &Arc<Self>) -> Result<()> {
        self.stop_by(Instant::now() + MOST_AT_CLOSE).await
    }

    pub(crate) async fn stop_by(self: &Arc<Self>, until: Instant) -> Result<()> {
        self.lifecycle.stop();
        self.window.wake_stream_surely();
        self.polled.end();
        let mut intake = self.receiver.lock().await;
        let closed = match intake.closed {
            true => Ok(()),
            false => self.bounded(until, intake.receiver.close()).await,
        };
        intake.closed = true;
        if intake.refusals.success() {
            self.metrics.refused(false);
        }
        drop(intake);
        let rest = self.buffer().drain();
        let ordered = self.entity.settings.ordered && self.is_live();
        for parts in rest {
            let held = UnsettledDelivery::new(self.clone(), parts);
            // On an ordered source only the settler's close can give back without reordering.
            if !ordered {
                self.settle_detached(held, Settlement::GiveBack);
            }
        }
        closed.map_err(|e| self.located(e, "close"))
    }

    /// Stops, finishes what is under way, gives everything back. Idempotent. A broker that does not answer is waited for about 5 s in all;
    /// what it still holds then comes again once the lock or the connection ends.
    pub(crate) async fn finish(self: &Arc<Self>) -> Result<()> {
        self.finish_by(Instant::now() + MOST_AT_CLOSE).await
    }

    pub(crate) async fn finish_by(self: &Arc<Self>, until: Instant) -> Result<()> {
        let stopped = self.stop_by(until).await;
        self.settlements.end(until).await;
        self.lifecycle.finish();
        let mut settler_closed = self.settler_closed.lock().await;
        let closed = match *settler_closed {
            true => Ok(()),
            false => self.bounded(until, self.settler.close()).await.map_err(|e| self.located(e, "close")),
        };
        *settler_closed = true;
        stopped.and(closed)
    }

    async fn bounded(&self, until: Instant, step: impl Future<Output = Result<()>>) -> Result<()> {
        closed_by(until, step, || {
            tracing::warn!(source = %self.entity.name, "the broker does not answer the close of a consumer; what it holds comes again later");
        })
        .await
    }

    /// For a subscription that was dropped: what was handed out can still be settled, then everything ends.
    pub(crate) fn abandon(self: &Arc<Self>) {
        let this = self.clone();
        self.runtime.spawn(async move {
            let stopped = this.stop().await;
            this.lifecycle.until(|| this.window.unsettled() == 0).await;
            if let Err(e) = stopped.and(this.finish().await) {
                tracing::debug!(source = %this.entity.name, error = %e, "closing a dropped subscription failed");
            }
        });
    }

    pub(crate) fn located(&self, e: Error, operation: &'static str) -> Error {
        let e = self.connection.located(e, operation);
        if e.context("source").is_some() { e } else { e.with_context("source", &self.entity.name) }
    }
}
