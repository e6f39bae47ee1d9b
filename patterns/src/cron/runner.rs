//! Fires schedules: in every process that has them, without a leader.
//!
//! The time that comes next is in the schedule's row. Whoever finds it due writes the jobs and the next time in one
//! transaction, if the row is still as it was read: of several processes one does, and a crash leaves either both or
//! nothing.

use std::{collections::HashMap, sync::Arc, time::Duration};

use polybus_core::{Result, driver::kit::backoff::Backoff};
use tokio::time::Instant;
use uuid::Uuid;

use super::{Cron, CronSpec, tick::tick};
use crate::{
    jobs::{self, DEFAULT_MAX_JOB},
    store::{
        NewJobRow, ScheduleTable, StoreControl, StoredSchedule,
        calls::{MAX_DATABASE_BACKOFF, in_time, rows_limit},
    },
    telemetry,
};

/// How often schedules are looked at, if none is due before.
const INTERVAL: Duration = Duration::from_secs(1);

/// How soon they are looked at after something was written in this process.
const AFTER_CHANGE: Duration = Duration::from_millis(100);

/// How soon they are looked at again at the earliest.
const SHORTEST: Duration = Duration::from_millis(10);

/// How often a process says that it has a definition, and for how long that holds.
const SAY_INTERVAL: Duration = Duration::from_secs(5);
const SAY_TERM: Duration = Duration::from_secs(20);

/// How many replaced definitions are remembered.
const MAX_REPLACED: usize = 20;

pub(crate) struct CronRunner {
    crons: Vec<DefinedCron>,
    table: Arc<dyn ScheduleTable>,
    control: Arc<dyn StoreControl>,
    /// This process, among those that have a definition.
    member: String,
}

struct DefinedCron {
    cron: Cron,
    spec: CronSpec,
    hash: String,
}

/// What a look changes: the row as it is to be written, and its jobs.
struct Step {
    row: StoredSchedule,
    jobs: Vec<NewJobRow>,
    missed: u64,
    skipped: u64,
}

impl Step {
    fn without_jobs(row: StoredSchedule) -> Self {
        Self { row, jobs: Vec::new(), missed: 0, skipped: 0 }
    }

    fn tell(&self) {
        let name = &*self.row.name;
        if !self.jobs.is_empty() {
            tracing::debug!(target: "polybus", schedule = name, fired = self.jobs.len(), "a schedule has fired");
            telemetry::cron_times(name, "fired", self.jobs.len() as u64);
        }
        for (outcome, times) in [("missed", self.missed), ("skipped", self.skipped)] {
            if times > 0 {
                telemetry::cron_times(name, outcome, times);
                tracing::info!(target: "polybus", schedule = name, times, outcome, "times of a schedule did not fire");
            }
        }
    }
}

/// When this process said last that it has a definition, or asked whether others have theirs.
type LastSaid = HashMap<String, Instant>;

impl CronRunner {
    /// # Errors
    /// `InvalidArgument` for a schedule that cannot be one.
    pub(crate) fn new(crons: Vec<Cron>, table: Arc<dyn ScheduleTable>, control: Arc<dyn StoreControl>) -> Result<Self> {
        let defined = |cron: Cron| {
            let defined = DefinedCron { spec: cron.check()?, hash: cron.hash()?, cron };
            // Arguments that no row can hold are told now, and not at the first time.
            defined.job_row(0).map_err(|e| e.with_context("schedule", defined.cron.name()))?;
            Ok(defined)
        };
        let crons = crons.into_iter().map(defined).collect::<Result<_>>()?;
        Ok(Self { crons, table, control, member: Uuid::now_v7().to_string() })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.crons.is_empty()
    }

    /// Fires until it is dropped.
    pub(crate) async fn run(&self) {
        let mut backoff = Backoff::up_to(MAX_DATABASE_BACKOFF);
        let (mut said, mut changes) = (LastSaid::new(), self.control.changes().listen());
        loop {
            let wait = match self.look(&mut said).await {
                Ok(wait) => {
                    backoff.reset();
                    wait
                }
                Err(e) => {
                    tracing::warn!(target: "polybus", error = %e, "schedules cannot be looked at; trying again");
                    // After an outage nobody is known to live, and all need a moment to say so.
                    said.clear();
                    backoff.next_wait()
                }
            };
            // What was changed by hand is seen soon.
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = changes.changed() => tokio::time::sleep(wait.min(AFTER_CHANGE)).await,
            }
        }
    }

    /// Looks at all schedules once, and answers when to look again.
    async fn look(&self, said: &mut LastSaid) -> Result<Duration> {
        let limit = rows_limit(&*self.control);
        let stored = in_time(limit, self.table.list()).await?;
        let mut wait = INTERVAL;
        for defined in &self.crons {
            let row = stored.rows.iter().find(|row| row.name == defined.cron.name());
            let step = match row {
                None => Step::without_jobs(defined.row(None, stored.now)),
                Some(row) if row.hash == defined.hash => {
                    self.say(row, said).await?;
                    match defined.step(row, stored.now)? {
                        Some(step) => step,
                        None => {
                            wait = wait.min(until(row, stored.now));
                            continue;
                        }
                    }
                }
                Some(row) if self.may_replace(defined, row, said).await? => {
                    tracing::info!(
                        target: "polybus", schedule = row.name, spec = defined.cron.spec_text(), zone = defined.cron.zone(),
                        before = row.spec, "a schedule has changed: its new definition counts from now"
                    );
                    Step::without_jobs(defined.row(Some(row), stored.now))
                }
                Some(_) => continue,
            };
            // Where another process came before, it has told what became of the times.
            if in_time(limit, self.table.write(&step.row, &step.jobs)).await?.is_some() {
                step.tell();
                if !step.jobs.is_empty() {
                    self.control.changes().committed();
                }
            }
            wait = wait.min(until(&step.row, stored.now));
        }
        Ok(wait.max(SHORTEST))
    }

    /// Says that a process with the current definition lives, where it has replaced another one.
    async fn say(&self, row: &StoredSchedule, said: &mut LastSaid) -> Result<()> {
        if replaced(row).is_empty() || said.get(&row.name).is_some_and(|at| at.elapsed() < SAY_INTERVAL) {
            return Ok(());
        }
        let leases = self.control.leases();
        in_time(rows_limit(&*self.control), leases.join(&group(row), &self.member, SAY_TERM)).await?;
        said.insert(row.name.clone(), Instant::now());
        Ok(())
    }

    /// Whether this process' definition takes the place of the stored one: if it is new, or if no process lives any
    /// more that has the stored one. So old and new processes do not take turns while a new version is rolled out, and
    /// a version that is rolled back has its schedule again.
    async fn may_replace(&self, defined: &DefinedCron, row: &StoredSchedule, said: &mut LastSaid) -> Result<bool> {
        if !replaced(row).contains(&defined.hash) {
            return Ok(true);
        }
        // Those that have it may need a moment to say so.
        let Some(asked) = said.get(&row.hash) else {
            said.insert(row.hash.clone(), Instant::now());
            return Ok(false);
        };
        if asked.elapsed() < SAY_INTERVAL * 2 {
            return Ok(false);
        }
        said.insert(row.hash.clone(), Instant::now());
        let (leases, limit, group) = (self.control.leases(), rows_limit(&*self.control), group(row));
        // Whoever asks is counted.
        let members = in_time(limit, leases.join(&group, &self.member, SAY_TERM)).await?;
        in_time(limit, leases.leave(&group, &self.member)).await?;
        Ok(members <= 1)
    }
}

fn group(row: &StoredSchedule) -> String {
    format!("cron/{}", row.hash)
}

fn until(row: &StoredSchedule, now: i64) -> Duration {
    let waits = row.next_at.map_or(i64::MAX, |next| next.saturating_sub(now));
    Duration::from_micros(u64::try_from(waits).unwrap_or_default())
}

/// The definitions that the stored one has replaced. What a newer version wrote otherwise counts as none.
fn replaced(row: &StoredSchedule) -> Vec<String> {
    serde_json::from_str(&row.replaced).unwrap_or_default()
}

impl DefinedCron {
    /// The row of this definition, in place of another one.
    fn row(&self, before: Option<&StoredSchedule>, now: i64) -> StoredSchedule {
        let mut gone = before.map(replaced).unwrap_or_default();
        if let Some(before) = before {
            gone.retain(|hash| *hash != self.hash && *hash != before.hash);
            gone.push(before.hash.clone());
            gone.drain(..gone.len().saturating_sub(MAX_REPLACED));
        }
        StoredSchedule {
            name: self.cron.name().to_owned(),
            hash: self.hash.clone(),
            spec: self.cron.spec_text().to_owned(),
            zone: self.cron.zone().to_owned(),
            kind: self.cron.kind().to_owned(),
            queue: self.cron.queue().to_owned(),
            missed: format!("{:?}", self.cron.missed_policy()),
            overlap: format!("{:?}", self.cron.overlap_policy()),
            // A clock that was set back fires nothing again, whatever definition it is.
            next_at: self.spec.next_after(before.and_then(|before| before.last_at).map_or(now, |last| last.max(now))),
            replaced: serde_json::to_string(&gone).unwrap_or_default(),
            ..before.cloned().unwrap_or_default()
        }
    }

    fn job_row(&self, at: i64) -> Result<NewJobRow> {
        jobs::row(self.cron.job_at(at), "polybus", DEFAULT_MAX_JOB)
    }

    /// What this look changes; `None` where nothing is due.
    fn step(&self, row: &StoredSchedule, now: i64) -> Result<Option<Step>> {
        let is_due = row.next_at.is_some_and(|next| next <= now);
        if row.paused {
            // Its times pass.
            let next_at = self.spec.next_after(now);
            return Ok(is_due.then(|| Step::without_jobs(StoredSchedule { next_at, ..row.clone() })));
        }
        let decision = tick(row, now, &self.spec, self.cron.missed_policy(), self.cron.overlap_policy());
        if decision.next_at == row.next_at && decision.fire.is_empty() && decision.pending == row.pending {
            return Ok(None);
        }
        let jobs = decision.fire.iter().map(|at| self.job_row(*at));
        let jobs = jobs.collect::<Result<Vec<_>>>()?;
        let changed = StoredSchedule {
            next_at: decision.next_at,
            last_at: decision.last_at,
            pending: decision.pending,
            ..row.clone()
        };
        Ok(Some(Step { row: changed, jobs, missed: decision.missed, skipped: decision.skipped }))
    }
}
