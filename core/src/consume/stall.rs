//! Telling the operator that the backlog of blocked keys fills the prefetch window, and of which keys.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{telemetry::ConsumeMetrics, topology::Source};

/// How often the log is told of a source that blocked keys hold up, and how many of them by name.
const STALL_TOLD_EVERY: Duration = Duration::from_secs(30);
const MOST_KEYS_TOLD: usize = 20;

/// Whether a source stalls, and when the log was told last.
#[derive(Default)]
pub(crate) struct StallReport(Mutex<Option<Instant>>);

impl StallReport {
    fn told(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The window is full, and these keys hold messages back in it. Without any, the source does not stall.
    pub(crate) fn full(&self, keys: &[String], source: &Source, metrics: &ConsumeMetrics) {
        if keys.is_empty() {
            return self.room(metrics);
        }
        metrics.blocked_keys(keys.len());
        let mut told = self.told();
        if told.is_none_or(|told| told.elapsed() >= STALL_TOLD_EVERY) {
            *told = Some(Instant::now());
            let (count, some) = (keys.len(), &keys[..keys.len().min(MOST_KEYS_TOLD)]);
            let text = "the backlog of blocked keys fills the prefetch window; the source stalls until they go on";
            tracing::warn!(%source, keys = ?some, count, "{text}");
        }
    }

    /// There is room again.
    pub(crate) fn room(&self, metrics: &ConsumeMetrics) {
        if self.told().take().is_some() {
            metrics.blocked_keys(0);
        }
    }
}
