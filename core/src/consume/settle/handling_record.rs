//! The record of one handling by a worker: counted and logged once the broker has answered the settlement, by its
//! answer.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tracing::Span;

use crate::{Error, ErrorKind, Source, driver::Settlement};

/// The counts behind a [`WorkerReport`](crate::worker::WorkerReport).
#[derive(Default)]
pub(crate) struct WorkerCounts {
    pub(crate) succeeded: AtomicU64,
    pub(crate) retried: AtomicU64,
    pub(crate) dead_lettered: AtomicU64,
    pub(crate) lock_lost: AtomicU64,
    pub(crate) unsettled: AtomicU64,
    pub(crate) dropped: AtomicU64,
}

impl WorkerCounts {
    /// Counts a handler that was dropped before it ended.
    pub(crate) fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

/// A handling that failed, for the log.
pub(crate) struct FailedHandling {
    pub(crate) source: Source,
    pub(crate) id: Box<str>,
    pub(crate) attempt: u32,
    pub(crate) error: String,
    /// A retry of the message waits in this process, ahead of its key.
    pub(crate) in_place: bool,
}

/// One handling whose settlement is under way. It is recorded once. Dropped before that, it counts as unsettled, since
/// nobody knows what became of the message.
pub(crate) struct HandlingRecord {
    counts: Arc<WorkerCounts>,
    /// `None` for most handlings: they succeed and are not traced.
    details: Option<Box<(Option<FailedHandling>, Span)>>,
    recorded: bool,
}

impl HandlingRecord {
    pub(crate) fn new(counts: &Arc<WorkerCounts>, failed: Option<FailedHandling>, span: &Span) -> Self {
        let details = (failed.is_some() || !span.is_disabled()).then(|| Box::new((failed, span.clone())));
        Self { counts: counts.clone(), details, recorded: false }
    }

    /// Records that the message was settled.
    pub(crate) fn settled(mut self, how: &Settlement) {
        let (count, name) = match how {
            Settlement::Ack => (&self.counts.succeeded, "ack"),
            Settlement::DeadLetter { .. } => (&self.counts.dead_lettered, "dead_letter"),
            Settlement::RetryAfter(_) => (&self.counts.retried, "retry"),
            _ => (&self.counts.retried, "release"),
        };
        count.fetch_add(1, Ordering::Relaxed);
        self.recorded = true;
        self.record_on_span(name);
        let Some((Some(failed), _)) = self.details.as_deref() else { return };
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

    /// Records that the message was not settled: its lock was lost, or the broker refused.
    pub(crate) fn failed(mut self, how: &Settlement, e: &Error) {
        let lost = e.kind() == ErrorKind::LockLost;
        let (count, name) = match lost {
            true => (&self.counts.lock_lost, "lock_lost"),
            false => (&self.counts.unsettled, "unsettled"),
        };
        count.fetch_add(1, Ordering::Relaxed);
        self.recorded = true;
        self.record_on_span(name);
        let Some((Some(failed), _)) = self.details.as_deref() else { return };
        let FailedHandling { source, id, attempt, error, .. } = failed;
        let intended = match how {
            Settlement::DeadLetter { .. } => "dead-lettered",
            Settlement::RetryAfter(_) => "retried",
            _ => "released",
        };
        if e.is_copy_kept() {
            tracing::error!(target: "polybus", %source, id, attempt, error, settlement_error = %e, "handler failed; {intended}, and the original is still there: it comes again as well");
        } else if lost {
            tracing::warn!(target: "polybus", %source, id, attempt, error, "handler failed; its lock was lost, so it was not {intended}: the broker hands it out again");
        } else {
            tracing::error!(target: "polybus", %source, id, attempt, error, settlement_error = %e, "handler failed, and could not be {intended}; it comes again");
        }
    }

    fn record_on_span(&self, settled: &'static str) {
        if let Some((_, span)) = self.details.as_deref() {
            span.record("polybus.settled", settled);
        }
    }
}

impl Drop for HandlingRecord {
    fn drop(&mut self) {
        if !self.recorded {
            self.counts.unsettled.fetch_add(1, Ordering::Relaxed);
            self.record_on_span("unsettled");
        }
    }
}
