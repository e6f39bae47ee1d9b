//! What becomes of a settlement before a driver sees it: refused, kept in place, or turned into a dead letter.

use std::{sync::Arc, time::Duration};

use crate::{
    batching::StartedBatch,
    consume::settle::handling_record::HandlingRecord,
    consume::{
        consumer::Consumer,
        handled_counts::times,
        settle::batcher::{PendingSettlement, SettleOutcome},
        unsettled::{UnsettledDelivery, UnsettledMessage},
    },
    driver::Settlement,
    error::{Error, ErrorKind, Result},
    runtime::{
        oneshot::{ReplyWaiter, reply},
        poll_then_spawn::{BoxedRun, here_or_spawned},
    },
};

/// The reason of messages that were handed out too often.
pub(crate) const MAX_DELIVERIES: &str = "max-deliveries-exceeded";

/// Reason and detail travel as headers, which every broker limits.
const MAX_REASON: usize = 128;
const MAX_DETAIL: usize = 2048;

/// How long a message waits that could not be dead-lettered, before it is released.
const UNBURIED_PAUSE: Duration = Duration::from_secs(1);

/// A settlement under way, apart from the delivery, so that who awaits it holds little.
pub(crate) enum StartedSettlement {
    Over(Box<SettleOutcome>),
    Queued {
        /// The batch that it goes with, if it is the first of it.
        run: Option<BoxedRun>,
        answer: ReplyWaiter<SettleOutcome>,
    },
}

impl StartedSettlement {
    fn over(outcome: SettleOutcome) -> Self {
        Self::Over(Box::new(outcome))
    }
}

impl Consumer {
    /// Settles; `detail` explains a dead letter that this becomes at the last attempt. What comes back must be awaited.
    pub(crate) fn settle(
        self: &Arc<Self>,
        held: UnsettledDelivery,
        how: Settlement,
        detail: Option<Box<str>>,
    ) -> StartedSettlement {
        let how = match self.decide(held.parts(), how, detail) {
            Ok(how) => self.after_handling(held.parts(), how),
            Err(e) => return StartedSettlement::over(Err((self.located(e, "settle"), Some(held)))),
        };
        if let Some(e) = self.lost(&held, &how) {
            return StartedSettlement::over(Err((e, None)));
        }
        let Some((held, how)) = self.keep_in_place(held, how) else { return StartedSettlement::over(Ok(())) };
        let (reply, answer) = reply();
        let batch = self.settlements.enqueue(PendingSettlement::new(held, how, Some(reply)));
        StartedSettlement::Queued { run: batch.map(StartedBatch::run), answer }
    }

    /// Settles for a worker, which does not wait: `told` learns what became of it. What comes back must be run.
    pub(crate) fn hand_in(
        self: &Arc<Self>,
        held: UnsettledDelivery,
        how: Settlement,
        detail: Option<Box<str>>,
        told: HandlingRecord,
    ) -> Option<BoxedRun> {
        let how = match self.decide(held.parts(), how.clone(), detail) {
            Ok(how) => self.after_handling(held.parts(), how),
            Err(e) => {
                told.failed(&how, &self.located(e, "settle"));
                return None;
            }
        };
        if let Some(e) = self.lost(&held, &how) {
            told.failed(&how, &e);
            return None;
        }
        let kept = how.clone();
        let Some((held, how)) = self.keep_in_place(held, how) else {
            told.done(&kept);
            return None;
        };
        let mut job = PendingSettlement::new(held, how, None);
        job.told = Some(told);
        self.settlements.enqueue(job).map(StartedBatch::run)
    }

    /// The error of a settlement for a message that this consumer holds no longer.
    fn lost(&self, held: &UnsettledDelivery, how: &Settlement) -> Option<Error> {
        if held.is_held() {
            return None;
        }
        let text = "this consumer no longer holds the message; the broker hands it out again";
        let e = self.located(Error::new(ErrorKind::LockLost, text), "settle");
        self.metrics.settled(how, Err(&e));
        self.note_handled(held.parts());
        Some(e)
    }

    /// It was handed out and comes again.
    pub(crate) fn note_handled(&self, parts: &UnsettledMessage) {
        if self.is_live() {
            self.consumers.handled.note(&self.entity.name, parts);
        }
    }

    /// Remembers a handling that is to come again; and where a message is given up, says how often it was handled, if the broker's count says
    /// something else.
    fn after_handling(&self, parts: &UnsettledMessage, how: Settlement) -> Settlement {
        match how {
            Settlement::Release | Settlement::RetryAfter(_) => {
                self.note_handled(parts);
                how
            }
            Settlement::DeadLetter { reason, detail } if &*reason == MAX_DELIVERIES => {
                let handled = self.consumers.handled.count(&self.entity.name, parts).saturating_add(1);
                if handled >= parts.attempt {
                    return Settlement::DeadLetter { reason, detail };
                }
                let note = format!(" (attempt {}, handled {} by this process)", parts.attempt, times(handled));
                let detail = format!("{}{note}", cut(detail, MAX_DETAIL - note.len())).into();
                Settlement::DeadLetter { reason, detail }
            }
            how => how,
        }
    }

    pub(crate) async fn settled(self: &Arc<Self>, settling: StartedSettlement) -> SettleOutcome {
        let answer = match settling {
            StartedSettlement::Over(outcome) => return *outcome,
            StartedSettlement::Queued { run, answer } => {
                if let Some(run) = run {
                    here_or_spawned(run).await;
                }
                answer
            }
        };
        answer.await.unwrap_or_else(|| {
            let e = Error::new(ErrorKind::Unexpected, "the driver ended without an answer").may_duplicate();
            Err((self.located(e, "settle"), None))
        })
    }

    /// Settles without anybody waiting: a dropped delivery, or one that no handler may see.
    pub(crate) fn settle_detached(self: &Arc<Self>, held: UnsettledDelivery, how: Settlement) {
        if !held.is_held() {
            return;
        }
        let how = match self.decide(held.parts(), how, None) {
            Ok(how) => how,
            Err(_) => return,
        };
        let Some((held, how)) = self.keep_in_place(held, how) else { return };
        if let Some(started) = self.settlements.enqueue(PendingSettlement::new(held, how, None)) {
            self.runtime.spawn(started.run());
        }
    }

    /// Releases what could not be dead-lettered, after a pause: it comes back only to be dead-lettered, and without the
    /// right to do that it would spin.
    pub(crate) fn release_later(self: &Arc<Self>, held: UnsettledDelivery) {
        let this = self.clone();
        self.runtime.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(UNBURIED_PAUSE) => {}
                // What is held goes back to the broker when the settler closes.
                () = this.until_stopping() => return,
            }
            let Some((held, how)) = this.keep_in_place(held, Settlement::Release) else { return };
            if let Some(started) = this.settlements.enqueue(PendingSettlement::new(held, how, None)) {
                started.run().await;
            }
        });
    }

    /// Refuses what cannot be done here, and turns the last attempt's release or retry into a dead letter.
    fn decide(&self, parts: &UnsettledMessage, how: Settlement, detail: Option<Box<str>>) -> Result<Settlement> {
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
                if can.dead_letters && parts.attempt >= self.entity.settings.max_deliveries =>
            {
                let n = self.entity.settings.max_deliveries;
                let detail =
                    detail.unwrap_or_else(|| format!("not acknowledged at attempt {} of {n}", parts.attempt).into());
                Ok(Settlement::DeadLetter { reason: MAX_DELIVERIES.into(), detail: cut(detail, MAX_DETAIL) })
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
            Settlement::DeadLetter { reason, detail } => {
                Ok(Settlement::DeadLetter { reason: cut(reason, MAX_REASON), detail: cut(detail, MAX_DETAIL) })
            }
            how => Ok(how),
        }
    }

    /// Where the client keeps the order, a released or retried message stays here, ahead of its key.
    fn keep_in_place(
        self: &Arc<Self>,
        held: UnsettledDelivery,
        how: Settlement,
    ) -> Option<(UnsettledDelivery, Settlement)> {
        let delay = match how {
            Settlement::Release if self.holds_keys => Duration::ZERO,
            Settlement::RetryAfter(delay) if self.holds_keys => delay,
            _ => return Some((held, how)),
        };
        self.metrics.held_in_place(!delay.is_zero());
        let again = |held: UnsettledDelivery| {
            let this = held.consumer.clone();
            let mut buffer = this.buffer();
            // Under the buffer's lock, since stopping empties it once: what came later would stay unsettled for ever.
            if this.is_stopping() {
                drop(buffer);
                return;
            }
            let mut parts = held.into_parts();
            parts.attempt += 1;
            buffer.push_again(parts);
            drop(buffer);
            this.wake();
        };
        if delay.is_zero() {
            again(held);
            return None;
        }
        self.runtime.spawn(async move {
            let this = held.consumer.clone();
            tokio::select! {
                () = tokio::time::sleep(delay) => again(held),
                // What is held goes back to the broker when the settler closes.
                () = this.until_stopping() => drop(held),
            }
        });
        None
    }
}

fn cut(text: Box<str>, limit: usize) -> Box<str> {
    if text.len() <= limit { text } else { text[..text.floor_char_boundary(limit)].into() }
}
