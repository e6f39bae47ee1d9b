//! The warning that the backlog of blocked keys fills the prefetch window, with the names of the keys.

use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use tokio::time::Instant;

use crate::{Source, telemetry::ConsumeMetrics};

/// The shortest time between two warnings about one source.
const WARNING_INTERVAL: Duration = Duration::from_secs(30);
/// How many blocked keys a warning names at most.
const MAX_KEYS_NAMED: usize = 20;

/// Whether a source stalls, and when the last warning about it was logged.
#[derive(Default)]
pub(crate) struct StallReport(Mutex<Option<Instant>>);

impl StallReport {
    fn last_warning(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock()
    }

    /// Reports that the window is full while these keys hold messages back in it. Without any, the source does not
    /// stall.
    pub(crate) fn report_full(&self, keys: &[String], source: &Source, metrics: &ConsumeMetrics) {
        if keys.is_empty() {
            return self.report_capacity(metrics);
        }
        metrics.blocked_keys(keys.len());
        let mut last_warning = self.last_warning();
        if last_warning.is_none_or(|at| at.elapsed() >= WARNING_INTERVAL) {
            *last_warning = Some(Instant::now());
            let (count, some) = (keys.len(), &keys[..keys.len().min(MAX_KEYS_NAMED)]);
            let text = "the backlog of blocked keys fills the prefetch window; the source stalls until they go on";
            tracing::warn!(%source, keys = ?some, count, "{text}");
        }
    }

    /// Reports that the window is no longer full.
    pub(crate) fn report_capacity(&self, metrics: &ConsumeMetrics) {
        if self.last_warning().take().is_some() {
            metrics.blocked_keys(0);
        }
    }
}
