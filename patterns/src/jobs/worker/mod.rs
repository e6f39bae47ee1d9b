//! The worker of jobs: claims them, runs the handlers of their kinds, and writes down how they ended.
//!
//! It is core's worker on a driver of its own (`driver.rs`): claims are deliveries, leases are locks, discarded jobs are
//! dead letters. So timeouts, panics, retries, drain, spans and metrics are those of every worker.
//!
//! The way of a job, and the order in which to read the files:
//!
//! 1. `builder.rs` has the settings, and `running.rs` runs them: a worker of core for each queue.
//! 2. `gate.rs` says how many jobs a queue may claim, and `receiver.rs` claims them. `run.rs` is one run.
//! 3. `service.rs` finds the handler by the kind, `context.rs` is what it gets. `transaction.rs` runs those that have
//!    the transaction.
//! 4. `settler.rs` writes the ends in batches, and renews leases. `report.rs` counts.
//! 5. `upkeep.rs` does what any worker does for all: due jobs, lost jobs, old rows, counts.

mod builder;
mod context;
mod driver;
mod gate;
mod receiver;
mod report;
mod run;
mod running;
mod service;
mod settler;
mod transaction;
mod upkeep;

pub(in crate::jobs) use self::upkeep::COUNT_CAP;
pub use self::{
    builder::{JobWorker, NoStore},
    context::JobContext,
    report::JobReport,
    service::JobService,
};
