//! Schedules: jobs that are written at their times, in any number of processes and without a leader.
//!
//! A [`Cron`] is given to [`JobWorker::cron`](crate::jobs::JobWorker::cron). The time that comes next is in a row of the
//! database. Whoever finds it due writes the job and the next time in one transaction: so each time fires once, across
//! processes, crashes and restarts.
//!
//! | file | what is there |
//! |---|---|
//! | `schedule.rs` | a schedule as a program defines it |
//! | `spec.rs`, `wall_clock.rs` | the times of a pattern in a zone, with its changes of the clock |
//! | `tick.rs` | what one look at a schedule decides: what fires, what was missed, what waits |
//! | `runner.rs` | looks, in each process that has schedules |
//! | `admin.rs` | lists, pauses, fires by hand |
//!
//! # Daylight saving
//! | the pattern | in the gap of spring | in the repeated hour of autumn |
//! |---|---|---|
//! | at fixed times: `30 2 * * *`, `30 2,14 * * 1-5` | fires at the end of the gap | fires once, the first time |
//! | by the clock's hands: `*/15 * * * *`, `0 * * * *` | its times are skipped with the gap | fires in both |
//!
//! A pattern is at fixed times if its seconds, minutes and hours have neither `*` nor `/`.

mod admin;
pub(crate) mod runner;
mod schedule;
mod spec;
mod tick;
mod wall_clock;

pub use self::{
    admin::ScheduleAdmin,
    schedule::Cron,
    spec::{CronSpec, CronTime},
    tick::{Missed, Overlap},
};
