//! The rules for a settlement before the driver sees it: it is refused, kept in place, or turned into a dead letter.

use std::{sync::Arc, time::Duration};

use crate::{
    Error, ErrorKind, Result,
    batching::StartedBatch,
    consume::{
        consumer::Consumer,
        handlings_by_message::times,
        settle::{
            batcher::{PendingSettlement, SettleOutcome},
            handling_record::HandlingRecord,
        },
        unsettled::{UnsettledDelivery, UnsettledMessage},
    },
    driver::Settlement,
    runtime::{
        oneshot::{ReplyWaiter, reply},
        poll_then_spawn::{BoxedRun, poll_then_spawn},
    },
};

/// The dead-letter reason of messages that were handed out too often.
pub(crate) const MAX_DELIVERIES: &str = "max-deliveries-exceeded";

/// The longest reason and detail in bytes. They travel as headers, which every broker limits.
const MAX_REASON: usize = 128;
const MAX_DETAIL: usize = 2048;

/// A message that could not be dead-lettered is released after this pause.
const RELEASE_PAUSE: Duration = Duration::from_secs(1);

/// A settlement under way. It does not hold the delivery, so the caller's future stays small.
pub(crate) enum StartedSettlement {
    Answered(Box<SettleOutcome>),
    Queued {
        /// The batch to run, if this settlement has started one.
        run: Option<BoxedRun>,
        answer: ReplyWaiter<SettleOutcome>,
    },
}

impl StartedSettlement {
    fn answered(outcome: SettleOutcome) -> Self {
        Self::Answered(Box::new(outcome))
    }
}

impl Consumer {
    /// Begins a settlement. The caller passes the returned value to [`await_settlement`](Self::await_settlement).
    ///
    /// A release or retry of the last attempt becomes a dead letter, which `detail` explains.
    pub(crate) fn settle(
        self: &Arc<Self>,
        mut delivery: UnsettledDelivery,
        how: Settlement,
        detail: Option<Box<str>>,
    ) -> StartedSettlement {
        let failure = detail.clone();
        let how = match self.decide(delivery.message(), how, detail) {
            Ok(how) => self.with_handled_count(&mut delivery, how),
            Err(e) => return StartedSettlement::answered(Err((self.located(e, "settle"), Some(delivery)))),
        };
        if let Some(e) = self.lock_lost_error(&mut delivery, &how) {
            return StartedSettlement::answered(Err((e, None)));
        }
        let (delivery, how) = match self.keep_in_place(delivery, how) {
            InPlace::No(delivery, how) => (delivery, how),
            InPlace::Done(_) => return StartedSettlement::answered(Ok(())),
        };
        let (reply, answer) = reply();
        let mut pending = PendingSettlement::new(delivery, how, Some(reply));
        pending.failure = failure;
        let batch = self.settlements.enqueue(pending);
        StartedSettlement::Queued { run: batch.map(StartedBatch::run), answer }
    }

    /// Settles for a worker, which does not wait for the answer: `record` gets it. If a batch is returned, the caller
    /// must run it.
    pub(crate) fn settle_recorded(
        self: &Arc<Self>,
        mut delivery: UnsettledDelivery,
        how: Settlement,
        detail: Option<Box<str>>,
        record: HandlingRecord,
    ) -> Option<BoxedRun> {
        let failure = detail.clone();
        let how = match self.decide(delivery.message(), how.clone(), detail) {
            Ok(how) => self.with_handled_count(&mut delivery, how),
            Err(e) => {
                record.failed(&how, &self.located(e, "settle"));
                delivery.record_handled();
                self.release_later(delivery);
                return None;
            }
        };
        if let Some(e) = self.lock_lost_error(&mut delivery, &how) {
            record.failed(&how, &e);
            return None;
        }
        let (delivery, how) = match self.keep_in_place(delivery, how) {
            InPlace::No(delivery, how) => (delivery, how),
            InPlace::Done(done) => {
                record.settled(&done);
                return None;
            }
        };
        let mut job = PendingSettlement::new(delivery, how, None);
        job.record = Some(record);
        job.failure = failure;
        self.settlements.enqueue(job).map(StartedBatch::run)
    }

    /// The error of a settlement for a message that this consumer no longer holds; `None` while it does.
    fn lock_lost_error(&self, delivery: &mut UnsettledDelivery, how: &Settlement) -> Option<Error> {
        if delivery.is_held() {
            return None;
        }
        let text = "this consumer no longer holds the message; the broker hands it out again";
        let e = self.located(Error::new(ErrorKind::LockLost, text), "settle");
        self.metrics.settled(how, Err(&e));
        delivery.record_handled();
        Some(e)
    }

    /// Counts a handling of a message that comes again. Only [`UnsettledDelivery::record_handled`] calls it, once for
    /// each handling.
    pub(crate) fn record_handled(&self, message: &UnsettledMessage) {
        if self.is_live() {
            self.consumers.handled_counts.record(&self.entity.name, message);
        }
    }

    /// Counts the handling of a message that is to come again. Where the message is given up instead, adds to the
    /// detail how often it was handled here, if that is less than the attempt says.
    fn with_handled_count(&self, delivery: &mut UnsettledDelivery, how: Settlement) -> Settlement {
        match how {
            Settlement::Release | Settlement::RetryAfter(_) => {
                delivery.record_handled();
                how
            }
            Settlement::DeadLetter { reason, detail } if &*reason == MAX_DELIVERIES => {
                let message = delivery.message();
                // `hand_out.rs` has told the count of a message that it does not hand out.
                if !message.was_handed_out() {
                    return Settlement::DeadLetter { reason, detail };
                }
                let before = self.consumers.handled_counts.count(&self.entity.name, message);
                let handled = before.saturating_add(message.has_uncounted_handling().into());
                if handled >= message.attempt {
                    return Settlement::DeadLetter { reason, detail };
                }
                let note = format!(" (attempt {}, handled {} by this process)", message.attempt, times(handled));
                let detail = format!("{}{note}", truncate(detail, MAX_DETAIL - note.len())).into();
                Settlement::DeadLetter { reason, detail }
            }
            how => how,
        }
    }

    /// Runs the batch that the settlement has started, if any, and waits for the answer.
    pub(crate) async fn await_settlement(self: &Arc<Self>, settlement: StartedSettlement) -> SettleOutcome {
        let answer = match settlement {
            StartedSettlement::Answered(outcome) => return *outcome,
            StartedSettlement::Queued { run, answer } => {
                if let Some(run) = run {
                    poll_then_spawn(run).await;
                }
                answer
            }
        };
        answer.await.unwrap_or_else(|| {
            let e = Error::new(ErrorKind::Unexpected, "the driver ended without an answer").may_duplicate();
            Err((self.located(e, "settle"), None))
        })
    }

    /// Settles a message when no caller waits for the answer: its delivery was dropped, or it is not handed out.
    pub(crate) fn settle_detached(self: &Arc<Self>, mut delivery: UnsettledDelivery, how: Settlement) {
        if !delivery.is_held() {
            return self.give_up_lost(delivery);
        }
        let how = match self.decide(delivery.message(), how, None) {
            Ok(how) => self.with_handled_count(&mut delivery, how),
            Err(_) => return delivery.record_handled(),
        };
        let InPlace::No(delivery, how) = self.keep_in_place(delivery, how) else { return };
        if let Some(started) = self.settlements.enqueue(PendingSettlement::new(delivery, how, None)) {
            self.runtime.spawn(started.run());
        }
    }

    /// Drops a delivery that is no longer held and that nobody settles. A consumer that has finished gave its messages
    /// back, so it has lost no lock.
    pub(crate) fn give_up_lost(&self, mut delivery: UnsettledDelivery) {
        delivery.record_handled();
        if !self.is_finished() {
            self.metrics.lock_lost();
        }
    }

    /// Releases, after a pause, a message that could not be dead-lettered. It comes back only to be dead-lettered
    /// again. Without the pause, a consumer that lacks the right to dead-letter would do nothing else.
    pub(crate) fn release_later(self: &Arc<Self>, delivery: UnsettledDelivery) {
        let this = self.clone();
        self.runtime.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(RELEASE_PAUSE) => {}
                // This drops the delivery unsettled. The settler gives the message back when it closes.
                () = this.until_stopping() => return,
            }
            let InPlace::No(delivery, how) = this.keep_in_place(delivery, Settlement::Release) else { return };
            if let Some(started) = this.settlements.enqueue(PendingSettlement::new(delivery, how, None)) {
                started.run().await;
            }
        });
    }

    /// Refuses what this source or broker cannot do, and turns the last attempt's release or retry into a dead letter.
    /// No other place decides what the last attempt of a settlement becomes. `hand_out.rs` dead-letters what comes
    /// after it all the same.
    fn decide(&self, message: &UnsettledMessage, how: Settlement, detail: Option<Box<str>>) -> Result<Settlement> {
        let can = self.connection.driver.capabilities();
        if !self.is_live() {
            return match how {
                Settlement::RetryAfter(_) => {
                    Err(Error::unsupported("retry_after on dead letters: ack, release or redrive"))
                }
                Settlement::DeadLetter { .. } => Err(Error::unsupported("dead_letter on dead letters: ack or release")),
                how => Ok(how),
            };
        }
        match how {
            Settlement::Release | Settlement::RetryAfter(_)
                if can.dead_letters && message.attempt >= self.max_deliveries(message) =>
            {
                let n = self.max_deliveries(message);
                let detail =
                    detail.unwrap_or_else(|| format!("not acknowledged at attempt {} of {n}", message.attempt).into());
                Ok(Settlement::DeadLetter { reason: MAX_DELIVERIES.into(), detail: truncate(detail, MAX_DETAIL) })
            }
            Settlement::RetryAfter(delay) => {
                let settings = &self.entity.settings;
                let max = if settings.ordered { Some(settings.max_hold) } else { can.max_retry_delay };
                match max {
                    None => Err(Error::unsupported("this broker has no delayed retry: use release")),
                    Some(max) if delay > max => {
                        let [delay, max] = [delay, max].map(crate::runtime::duration::format);
                        Err(Error::unsupported(format!("a retry after {delay}: the longest here is {max}")))
                    }
                    Some(_) => Ok(if delay.is_zero() { Settlement::Release } else { how }),
                }
            }
            Settlement::DeadLetter { .. } if !can.dead_letters => {
                Err(Error::unsupported("this broker has no dead letters"))
            }
            Settlement::DeadLetter { reason, detail } => Ok(Settlement::DeadLetter {
                reason: truncate(reason, MAX_REASON),
                detail: truncate(detail, MAX_DETAIL),
            }),
            how => Ok(how),
        }
    }

    /// Keeps a released or retried message in this process, on ordered sources of brokers that deliver a key's messages
    /// without waiting (`KeyHolder::Client`).
    ///
    /// There such a message never goes to the driver. It waits here, in front of the later messages of its key. Any
    /// other settlement is returned, to be sent to the driver.
    fn keep_in_place(self: &Arc<Self>, delivery: UnsettledDelivery, how: Settlement) -> InPlace {
        let delay = match how {
            Settlement::Release if self.holds_keys => Duration::ZERO,
            Settlement::RetryAfter(delay) if self.holds_keys => delay,
            _ => return InPlace::No(delivery, how),
        };
        let held = match delay.is_zero() {
            true => self.requeue(delivery),
            false if self.is_stopping() => false,
            false => {
                self.runtime.spawn(async move {
                    let this = delivery.consumer.clone();
                    tokio::select! {
                        () = tokio::time::sleep(delay) => drop(this.requeue(delivery)),
                        // The settler gives the message back when it closes.
                        () = this.until_stopping() => drop(delivery),
                    }
                });
                true
            }
        };
        if held {
            self.metrics.held_in_place(!delay.is_zero());
            return InPlace::Done(how);
        }
        // Nobody is handed the message here any more, so it is not reported as held: it goes back to the broker.
        self.metrics.settled(&Settlement::GiveBack, Ok(()));
        InPlace::Done(Settlement::GiveBack)
    }

    /// Puts a message back in front of the buffer, for its next attempt. False if the consumer is stopping: then the
    /// message is given up here, and the settler gives it back when it closes.
    fn requeue(&self, delivery: UnsettledDelivery) -> bool {
        let mut buffer = self.buffer();
        // Checked under the buffer's lock. `stop_by` marks the consumer as stopping before it empties the buffer, once:
        // a message that is put in after that would stay unsettled for ever.
        if self.is_stopping() {
            // Dropping the delivery takes the lock of the buffer, too.
            drop(buffer);
            return false;
        }
        let mut message = delivery.into_message();
        message.begin_next_attempt();
        buffer.push_front(message);
        drop(buffer);
        self.wake_waiters();
        true
    }
}

/// What [`Consumer::keep_in_place`] has done.
enum InPlace {
    /// Nothing: the driver is to be asked for this settlement.
    No(UnsettledDelivery, Settlement),
    /// The message is held here for this settlement, or goes back to the broker (`GiveBack`) since the consumer is
    /// stopping.
    Done(Settlement),
}

fn truncate(text: Box<str>, limit: usize) -> Box<str> {
    if text.len() <= limit { text } else { text[..text.floor_char_boundary(limit)].into() }
}
