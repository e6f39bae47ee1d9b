//! Tells of a transaction that has appended and stays open: nobody reads what came behind it.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    store::{
        LogTable, StoreControl,
        calls::{in_time, rows_limit},
    },
    telemetry,
};

/// How long readers may be held back before somebody looks by whom.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often the log tells of it.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// How often the gauges are written.
const GAUGE: Duration = Duration::from_secs(5);

pub(super) struct FloorWatch {
    table: Arc<dyn LogTable>,
    control: Arc<dyn StoreControl>,
    /// Since when the same position cannot be passed.
    since: Option<(i64, Instant)>,
    said: Option<Instant>,
    gauged: Option<Instant>,
}

impl FloorWatch {
    pub(super) fn new(table: Arc<dyn LogTable>, control: Arc<dyn StoreControl>) -> Self {
        Self { table, control, since: None, said: None, gauged: None }
    }

    /// A look has found this many positions behind what it could read, which ended at this one.
    pub(super) async fn looked(&mut self, held_back: i64, at: i64) {
        if held_back == 0 {
            if self.since.take().is_some() && self.gauged.take().is_some() {
                telemetry::log_floor(self.control.system(), 0, Duration::ZERO);
            }
            self.said = None;
            return;
        }
        let now = Instant::now();
        let since = match self.since {
            Some((position, since)) if position == at => since,
            _ => {
                self.since = Some((at, now));
                return;
            }
        };
        if since.elapsed() < PATIENCE || self.gauged.is_some_and(|at| at.elapsed() < GAUGE) {
            return;
        }
        self.gauged = Some(now);
        let Ok(Some(floor)) = in_time(rows_limit(&*self.control), self.table.floor()).await else { return };
        let age = floor.age.unwrap_or(since.elapsed());
        telemetry::log_floor(self.control.system(), floor.behind, age);
        if self.said.is_none_or(|at| at.elapsed() >= SAY_AGAIN) {
            self.said = Some(now);
            tracing::warn!(
                target: "polybus", system = self.control.system(), who = floor.who, ?age, positions = floor.behind,
                "a transaction has appended to the event log and stays open: nobody reads what came behind it. Append last, \
                 and commit; or end that session"
            );
        }
    }
}
