//! stub
#![allow(missing_docs, clippy::todo, unused)]
use crate::store::StoredSchedule;
#[derive(Clone, Debug)]
pub struct CronSpec;
#[derive(Clone, Debug)]
pub struct CronTime {
    pub at: i64,
    pub local: String,
}
impl CronSpec {
    pub fn parse(_s: &str, _z: &str) -> polybus_core::Result<Self> {
        Ok(Self)
    }
    pub fn next_after(&self, now: i64) -> Option<i64> {
        Some((now / 1_000_000 + 1) * 1_000_000)
    }
    pub fn upcoming(&self, _a: i64, _n: usize) -> Vec<CronTime> {
        vec![]
    }
}
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Missed {
    #[default]
    RunOnce,
    All(u32),
    Skip,
}
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Overlap {
    #[default]
    Allow,
    Skip,
    Queue,
}
pub(super) struct TickDecision {
    pub fire: Vec<i64>,
    pub next_at: Option<i64>,
    pub last_at: Option<i64>,
    pub pending: String,
    pub skipped: u64,
    pub missed: u64,
}
pub(super) fn tick(row: &StoredSchedule, now: i64, spec: &CronSpec, m: Missed, o: Overlap) -> TickDecision {
    let due = row.next_at.filter(|n| *n <= now);
    TickDecision {
        fire: due.into_iter().collect(),
        next_at: if due.is_some() { spec.next_after(now) } else { row.next_at },
        last_at: due.or(row.last_at),
        pending: row.pending.clone(),
        skipped: 0,
        missed: 0,
    }
}
pub(super) fn with_pending(p: &str, at: i64) -> String {
    format!("{p}{at}")
}
