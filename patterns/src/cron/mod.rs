//! stub
mod admin;
pub(crate) mod runner;
mod schedule;
mod stub;
mod tick {
    pub(super) use super::stub::{tick, with_pending};
}
pub use self::{
    admin::ScheduleAdmin,
    schedule::Cron,
    stub::{CronSpec, CronTime, Missed, Overlap},
};
