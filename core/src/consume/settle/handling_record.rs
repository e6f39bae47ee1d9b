//! What became of the messages a worker handled: counted and logged once the broker has answered, and by its answer.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tracing::Span;

use crate::{
    driver::Settlement,
    error::{Error, ErrorKind},
    topology::Source,
};

/// The counts behind a [`WorkerReport`](crate::worker::WorkerReport).
#[derive(Default)]
pub(crate) struct HandlingCounts {
    pub(crate) succeeded: AtomicU64,
    pub(crate) retried: AtomicU64,
    pub(crate) dead_lettered: AtomicU64,
    pub(crate) lock_lost: AtomicU64,
    pub(crate) unsettled: AtomicU64,
    pub(crate) dropped: AtomicU64,
}

impl HandlingCounts {
    /// A handler was dropped before it ended.
    pub(crate) fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the log tells of a handling that failed.
pub(crate) struct FailedHandling {
    pub(crate) source: Source,
    pub(crate) id: Box<str>,
    pub(crate) attempt: u32,
    pub(crate) error: String,
    /// Its retry waits in this process, ahead of its key.
    pub(crate) in_place: bool,
}

/// One handling whose settlement is under way. It is told once; dropped untold, nobody knows what became of it.
pub(crate) struct HandlingRecord {
    tally: Arc<HandlingCounts>,
    /// Most handlings succeed and are not traced.
    rest: Option<Box<(Option<FailedHandling>, Span)>>,
    told: bool,
}

impl HandlingRecord {
    pub(crate) fn new(tally: &Arc<HandlingCounts>, failed: Option<FailedHandling>, span: &Span) -> Self {
        let rest = (failed.is_some() || !span.is_disabled()).then(|| Box::new((failed, span.clone())));
        Self { tally: tally.clone(), rest, told: false }
    }

    /// It was settled in this way.
    pub(crate) fn done(mut self, how: &Settlement) {
        let (count, name) = match how {
            Settlement::Ack => (&self.tally.succeeded, "ack"),
            Settlement::DeadLetter { .. } => (&self.tally.dead_lettered, "dead_letter"),
            Settlement::RetryAfter(_) => (&self.tally.retried, "retry"),
            _ => (&self.tally.retried, "release"),
        };
        count.fetch_add(1, Ordering::Relaxed);
        self.told = true;
        self.record(name);
        let Some((Some(failed), _)) = self.rest.as_deref() else { return };
        let FailedHandling { source, id, attempt, error, in_place } = failed;
        match how {
            Settlement::DeadLetter { reason, .. } => {
                tracing::warn!(target: "polybus", %source, id, attempt, error, %reason, "handler failed; dead-lettered");
            }
            Settlement::RetryAfter(delay) if *in_place => {
                tracing::info!(target: "polybus", %source, id, attempt, error, ?delay, "handler failed; held in place for a retry");
            }
            Settlement::RetryAfter(delay) => {
                tracing::info!(target: "polybus", %source, id, attempt, error, ?delay, "handler failed; it comes again after a delay");
            }
            _ => tracing::info!(target: "polybus", %source, id, attempt, error, "handler failed; released"),
        }
    }

    /// It was not settled: the lock was lost, or the broker refused.
    pub(crate) fn failed(mut self, how: &Settlement, e: &Error) {
        let lost = e.kind() == ErrorKind::LockLost;
        let (count, name) = match lost {
            true => (&self.tally.lock_lost, "lock_lost"),
            false => (&self.tally.unsettled, "unsettled"),
        };
        count.fetch_add(1, Ordering::Relaxed);
        self.told = true;
        self.record(name);
        let Some((Some(failed), _)) = self.rest.as_deref() else { return };
        let FailedHandling { source, id, attempt, error, .. } = failed;
        let meant = match how {
            Settlement::DeadLetter { .. } => "dead-lettered",
            Settlement::RetryAfter(_) => "retried",
            _ => "released",
        };
        if e.context("copy") == Some("kept") {
            tracing::error!(target: "polybus", %source, id, attempt, error, settlement_error = %e, "handler failed; {meant}, and the original is still there: it comes again as well");
        } else if lost {
            tracing::warn!(target: "polybus", %source, id, attempt, error, "handler failed; its lock was lost, so it was not {meant}: the broker hands it out again");
        } else {
            tracing::error!(target: "polybus", %source, id, attempt, error, settlement_error = %e, "handler failed, and could not be {meant}; it comes again");
        }
    }

    fn record(&self, settled: &'static str) {
        if let Some((_, span)) = self.rest.as_deref() {
            span.record("polybus.settled", settled);
        }
    }
}

impl Drop for HandlingRecord {
    fn drop(&mut self) {
        if !self.told {
            self.tally.unsettled.fetch_add(1, Ordering::Relaxed);
            self.record("unsettled");
        }
    }
}
