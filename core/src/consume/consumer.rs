//! The consumer that a subscription and its deliveries share: it receives, buffers, and closes.
//!
//! | part | its state |
//! |---|---|
//! | `lifecycle` | open, stopping, finished |
//! | `receiver` | the driver's receiver, its backoff and its refusals; receiving and closing hold its lock |
//! | `window` | how many deliveries are unsettled, and whether the stream waits |
//! | `buffer` | the messages that are received and not handed out |
//! | `locks` | the locks of the unsettled messages |
//! | `settlements` | the settlements that are queued or under way |

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};

use tokio::{runtime::Handle, time::Instant};

use crate::{
    Delivery, Error, ErrorKind, Result, Source,
    connection::{
        BusConnection,
        close_timeout::{CLOSE_TIMEOUT, close_until},
    },
    consume::{
        blocked_keys::StallReport,
        broker_refusals::{BrokerRefusals, RefusalStage, is_refusal},
        consumers::Consumers,
        key_lanes::KeyLanes,
        lifecycle::ConsumerLifecycle,
        lock_renewal::LockTable,
        next_future::NextFuture,
        prefetch_window::PrefetchWindow,
        settle::batcher::SettlementBatcher,
        unsettled::{UnsettledDelivery, UnsettledMessage},
    },
    driver::{KeyHolder, ReceivedMessage, Receiver, Settlement, Settler},
    runtime::{backoff::Backoff, duration},
    telemetry::ConsumeMetrics,
    topology::Entity,
};

pub(crate) struct Consumer {
    pub(crate) connection: Arc<BusConnection>,
    pub(crate) consumers: Arc<Consumers>,
    pub(crate) entity: Entity<Source>,
    pub(crate) locks: LockTable,
    pub(crate) metrics: ConsumeMetrics,
    pub(crate) settler: Arc<dyn Settler>,
    pub(crate) settlements: SettlementBatcher,
    receiver: tokio::sync::Mutex<ReceiverState>,
    buffer: Mutex<KeyLanes>,
    /// Core keeps the order per key, and holds a retried message in place, since the broker does not.
    pub(crate) holds_keys: bool,
    window: PrefetchWindow,
    lifecycle: ConsumerLifecycle,
    settler_closed: tokio::sync::Mutex<bool>,
    stall: StallReport,
    /// The error of the receiver's last call; `None` once a later call has succeeded.
    receive_error: Mutex<Option<Error>>,
    /// The future behind `Subscription::next`.
    pub(crate) next_future: NextFuture<Option<Result<Delivery>>>,
    pub(crate) runtime: Handle,
}

struct ReceiverState {
    receiver: Box<dyn Receiver>,
    backoff: Backoff,
    /// The end of the pause after an error.
    not_before: Option<Instant>,
    refusals: BrokerRefusals,
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
            locks: LockTable::new(settler.batching()),
            metrics: ConsumeMetrics::new(connection.driver.backend(), &entity.name),
            settlements: SettlementBatcher::new(&settler),
            settler,
            receiver: tokio::sync::Mutex::new(ReceiverState {
                receiver,
                backoff: Backoff::default(),
                not_before: None,
                refusals: BrokerRefusals::new(give_up_after),
                closed: false,
            }),
            buffer: Mutex::new(KeyLanes::new(holds_keys)),
            holds_keys,
            window: PrefetchWindow::new(entity.prefetch),
            lifecycle: ConsumerLifecycle::default(),
            settler_closed: tokio::sync::Mutex::new(false),
            stall: StallReport::default(),
            receive_error: Mutex::default(),
            next_future: NextFuture::default(),
            runtime: Handle::current(),
            connection,
            consumers,
            entity,
        }
    }

    pub(crate) fn buffer(&self) -> MutexGuard<'_, KeyLanes> {
        self.buffer.lock()
    }

    pub(crate) fn is_live(&self) -> bool {
        !self.entity.name.is_dead_letters()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.lifecycle.is_stopping()
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.lifecycle.is_finished()
    }

    /// Hands out a message of the buffer, if there is one.
    pub(crate) fn take_buffered(self: &Arc<Self>) -> Option<Delivery> {
        loop {
            let message = {
                let mut buffer = self.buffer();
                // On a stopping consumer the first message of a key may be on its way back to the broker. Those behind
                // it in the buffer must not overtake it.
                if self.holds_keys && self.is_stopping() {
                    return None;
                }
                buffer.pop()?
            };
            if let Some(delivery) = self.hand_out(message) {
                return Some(delivery);
            }
        }
    }

    /// The next delivery; an error only as the last item. Cancel safe, since all state lives in `self`.
    ///
    /// Only [`poll_next`](Self::poll_next) runs it. Its future holds the receiver, so `stop` must be able to drop it
    /// wherever it is.
    async fn next(self: &Arc<Self>) -> Option<Result<Delivery>> {
        loop {
            // With a full buffer, or a driver that answers at once, this loop would never yield.
            tokio::task::coop::consume_budget().await;
            if let Some(delivery) = self.take_buffered() {
                return Some(Ok(delivery));
            }
            // The order matters. The mark comes before the checks, so that a change after a check wakes the stream. The
            // end is checked before the receiver's lock is taken: `stop` may hold that lock for as long as the receiver
            // closes.
            self.window.mark_stream_waiting();
            if self.lifecycle.stream_has_ended() {
                return self.last_item();
            }
            if !self.buffer().is_empty() {
                continue;
            }
            let capacity = self.window.capacity(|| self.buffer().len());
            if capacity == 0 {
                self.report_stall();
                self.window.woken().await;
                continue;
            }
            if self.holds_keys {
                self.stall.report_capacity(&self.metrics);
            }
            let mut state = self.receiver.lock().await;
            if self.is_stopping() {
                continue;
            }
            if let Some(at) = state.not_before.filter(|at| *at > Instant::now()) {
                tokio::select! {
                    () = tokio::time::sleep_until(at) => {}
                    () = self.window.woken() => {}
                }
                continue;
            }
            let Some(received) = self.receive(&mut state, capacity).await else { continue };
            self.window.mark_stream_running();
            match received {
                Ok(batch) => {
                    *self.receive_error() = None;
                    state.backoff.reset();
                    state.not_before = None;
                    let was_refused = state.refusals.success();
                    self.report_refusals_ended(was_refused);
                    drop(state);
                    self.buffer_received(batch);
                }
                Err(e) => {
                    if let Some(last) = self.after_failed_receive(&mut state, e) {
                        self.lifecycle.mark_last_item();
                        return Some(Err(self.located(last, "receive")));
                    }
                }
            }
        }
    }

    /// Calls the receiver once. `None` if the call was dropped because the stream was woken: the caller checks
    /// everything anew.
    async fn receive(&self, state: &mut ReceiverState, max: usize) -> Option<Result<Vec<ReceivedMessage>>> {
        let Some(still_waits_at) = state.refusals.begin_call(Instant::now()) else {
            return tokio::select! {
                biased;
                received = state.receiver.receive(max) => Some(received),
                () = self.window.woken() => None,
            };
        };
        tokio::select! {
            biased;
            received = state.receiver.receive(max) => return Some(received),
            () = self.window.woken() => {}
            () = tokio::time::sleep_until(still_waits_at) => {
                let was_refused = state.refusals.still_waits();
                self.report_refusals_ended(was_refused);
            }
        }
        None
    }

    pub(crate) fn receive_error(&self) -> MutexGuard<'_, Option<Error>> {
        self.receive_error.lock()
    }

    /// Reports that the broker no longer refuses this consumer, if it did before.
    fn report_refusals_ended(&self, was_refused: bool) {
        if was_refused {
            self.metrics.refused(false);
            tracing::info!(source = %self.entity.name, "the broker no longer refuses this consumer");
        }
    }

    /// Handles an error of the receiver. Sets the pause before the next call, or answers with the error that ends the
    /// subscription.
    fn after_failed_receive(&self, state: &mut ReceiverState, e: Error) -> Option<Error> {
        let (source, now) = (&self.entity.name, Instant::now());
        let mut wait = state.backoff.next_wait();
        if e.kind() == ErrorKind::Closed {
            return Some(e);
        }
        if !is_refusal(&e) {
            state.refusals.record_other_error(now);
            tracing::warn!(%source, error = %e, "receiving failed; trying again");
        } else {
            let limit = duration::format(state.refusals.limit());
            match state.refusals.record_refusal(now) {
                RefusalStage::Over(lasted, reported) => {
                    let lasted = duration::format(lasted);
                    if reported {
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
            wait = state.refusals.pause(wait);
        }
        self.metrics.receive_failed(&e);
        *self.receive_error() = Some(e);
        state.not_before = Some(now + wait);
        None
    }

    /// The stream's last item: `Closed`, once, if the bus was closed; else `None`.
    fn last_item(&self) -> Option<Result<Delivery>> {
        if !self.lifecycle.mark_last_item() {
            return None;
        }
        let closed_by_bus = self.connection.ensure_open("receive").err();
        closed_by_bus.map(|e| Err(e.with_context("source", &self.entity.name)))
    }

    /// Limits what is fetched to the number of free handlers.
    pub(crate) fn set_free_handlers(&self, free: usize) {
        self.window.set_free_handlers(free);
    }

    pub(crate) fn poll_next(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Delivery>>> {
        self.next_future.poll(cx, || {
            let this = self.clone();
            Box::pin(async move { this.next().await })
        })
    }

    /// Puts received messages into the buffer, and their locks into the table.
    fn buffer_received(self: &Arc<Self>, batch: Vec<ReceivedMessage>) {
        self.window.add_unsettled(batch.len());
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
            self.start_renewing();
        }
    }

    /// Whether this consumer still holds the message, as far as is known without I/O.
    pub(crate) fn holds(&self, message: &UnsettledMessage) -> bool {
        if self.lifecycle.is_finished() {
            return false;
        }
        let in_time = message.lock.is_none_or(|id| self.locks.until(id).is_some_and(|until| Instant::now() < until));
        in_time && self.settler.holds(&message.token)
    }

    /// How often this message is delivered at most.
    pub(crate) fn max_deliveries(&self, message: &UnsettledMessage) -> u32 {
        let own = message.rare().and_then(|rare| rare.max_deliveries);
        own.unwrap_or(self.entity.settings.max_deliveries)
    }

    pub(crate) async fn until_stopping(&self) {
        self.lifecycle.until_stopping().await;
    }

    /// A message has left the buffer.
    pub(crate) fn add_handed_out(&self) {
        self.window.add_handed_out();
    }

    /// A message that had left the buffer is settled, given up, or back in the buffer.
    pub(crate) fn remove_handed_out(&self) {
        self.window.remove_handed_out();
    }

    /// How many messages have left the buffer and are being handled or settled.
    pub(crate) fn handed_out(&self) -> usize {
        self.window.handed_out()
    }

    /// Frees what a message holds (its lock, its place and its key), and wakes the stream.
    pub(crate) fn free_and_wake(&self, message: UnsettledMessage) {
        self.free_without_waking(message);
        self.wake_waiters();
    }

    /// Frees what a message holds, and wakes nobody. A caller that frees several wakes the stream once, by
    /// [`wake_waiters`](Self::wake_waiters); otherwise the stream would check as often as messages are freed.
    pub(crate) fn free_without_waking(&self, message: UnsettledMessage) {
        let lost = message.lock.is_some_and(|id| self.locks.remove(id).is_none_or(|until| until <= Instant::now()));
        if lost {
            self.settler.forget(&message.token);
        }
        if self.holds_keys {
            let lane = message.lane();
            if lost {
                self.discard_later(lane);
            } else {
                self.buffer().free_key(lane);
            }
        }
        // What the driver keeps for the message goes before its place: else one more than the prefetch is held for a
        // moment.
        drop(message);
        self.window.remove_unsettled();
    }

    /// A lost message comes again, and the later ones of its key must not be handed out before it: they are discarded,
    /// and come again as well.
    fn discard_later(&self, lane: &str) {
        let later = self.buffer().discard_key(lane);
        for UnsettledMessage { lock, token, .. } in later {
            lock.map(|id| self.locks.remove(id));
            // Their locks may hold. They are given up with that of the first, before they were settled.
            self.metrics.lock_lost();
            self.settler.forget(&token);
            drop(token);
            self.window.remove_unsettled();
        }
    }

    /// Room was made in the window, or a message was put into the buffer: wakes the stream, and whoever waits for the
    /// last settlement.
    pub(crate) fn wake_waiters(&self) {
        self.window.wake_stream();
        self.lifecycle.notify_settled();
    }

    /// The window is full. If the backlog of blocked keys fills it, the log names them.
    fn report_stall(&self) {
        if self.holds_keys {
            let keys: Vec<String> = self.buffer().blocked_keys().into_iter().map(ToOwned::to_owned).collect();
            self.stall.report_full(&keys, &self.entity.name, &self.metrics);
        }
    }

    pub(crate) async fn extend(&self, message: &UnsettledMessage, by: Duration) -> Result<()> {
        let Some(lock) = message.lock.filter(|_| self.connection.driver.capabilities().locks) else {
            let e = Error::unsupported("extend: this broker's hold on a delivery cannot be renewed");
            return Err(self.located(e, "extend"));
        };
        if !self.holds(message) {
            return Err(self.located(Error::new(ErrorKind::LockLost, "the lock has run out"), "extend"));
        }
        let token = [message.token.clone()];
        let answer = self.settler.extend(&token, by).await.pop();
        match answer.unwrap_or_else(|| Err(Error::new(ErrorKind::Unexpected, "the driver gave no answer"))) {
            Ok(until) => {
                self.locks.extended(lock, until);
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

    /// Stops receiving and gives back what was not handed out. A broker that does not answer is waited for about 5 s.
    /// Idempotent.
    pub(crate) async fn stop(self: &Arc<Self>) -> Result<()> {
        self.stop_by(Instant::now() + CLOSE_TIMEOUT).await
    }

    pub(crate) async fn stop_by(self: &Arc<Self>, until: Instant) -> Result<()> {
        // The order matters. The state changes first, so that everyone who is woken sees it. The future behind `next`
        // is dropped before the receiver's lock is taken, since that future may hold it with nobody polling it.
        self.lifecycle.stop();
        self.window.wake_stream_or_its_next_wait();
        self.next_future.cancel_and_wake();
        let mut state = self.receiver.lock().await;
        let closed = match state.closed {
            true => Ok(()),
            false => self.close_step(until, state.receiver.close()).await,
        };
        state.closed = true;
        if state.refusals.success() {
            self.metrics.refused(false);
        }
        drop(state);
        let rest = self.buffer().drain();
        let ordered = self.entity.settings.ordered && self.is_live();
        for message in rest {
            let delivery = UnsettledDelivery::new(self.clone(), message);
            // On an ordered source the delivery is dropped here, and the settler's close gives its message back: only
            // that keeps the order.
            if !ordered {
                self.settle_detached(delivery, Settlement::GiveBack);
            }
        }
        closed.map_err(|e| self.located(e, "close"))
    }

    /// Stops, finishes the settlements under way, and gives all other messages back. Idempotent. A broker that does not
    /// answer is waited for about 5 s in all. Messages that are still unsettled then come again once their lock or the
    /// connection ends.
    pub(crate) async fn finish(self: &Arc<Self>) -> Result<()> {
        self.finish_by(Instant::now() + CLOSE_TIMEOUT).await
    }

    pub(crate) async fn finish_by(self: &Arc<Self>, until: Instant) -> Result<()> {
        let stopped = self.stop_by(until).await;
        self.settlements.finish_by(until).await;
        self.lifecycle.finish();
        let mut settler_closed = self.settler_closed.lock().await;
        let closed = match *settler_closed {
            true => Ok(()),
            false => self.close_step(until, self.settler.close()).await.map_err(|e| self.located(e, "close")),
        };
        *settler_closed = true;
        stopped.and(closed)
    }

    async fn close_step(&self, until: Instant, step: impl Future<Output = Result<()>>) -> Result<()> {
        close_until(until, step, || {
            tracing::warn!(source = %self.entity.name, "the broker does not answer the close of a consumer; what it holds comes again later");
        })
        .await
    }

    /// Closes the consumer of a dropped subscription: stops it, waits until all deliveries are settled or dropped, and
    /// finishes. One that is finished already waits for no delivery, since none can be settled any more.
    pub(crate) fn close_after_drop(self: &Arc<Self>) {
        let this = self.clone();
        self.runtime.spawn(async move {
            let stopped = this.stop().await;
            this.lifecycle.until(|| this.lifecycle.is_finished() || this.window.unsettled() == 0).await;
            if let Err(e) = stopped.and(this.finish().await) {
                tracing::debug!(source = %this.entity.name, error = %e, "closing a dropped subscription failed");
            }
        });
    }

    /// Adds the operation, the backend and the source to an error that does not name them yet.
    pub(crate) fn located(&self, e: Error, operation: &'static str) -> Error {
        let e = self.connection.located(e, operation);
        if e.context("source").is_some() { e } else { e.with_context("source", &self.entity.name) }
    }
}
