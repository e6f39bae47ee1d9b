//! Background jobs: work that is written in the transaction of its cause, and done later by any process.
//!
//! A job is a row with the arguments of its kind. [`Jobs`] writes it, alone or in the application's transaction, and a
//! [`JobWorker`] claims it and runs the handler of its kind. It needs no broker, only a database; where there is one,
//! [`BrokerJobs`] puts the same jobs into its queues.
//!
//! | file | what is there |
//! |---|---|
//! | `job.rs` | the trait of arguments, and a job that is about to be written |
//! | `enqueue.rs` | writes jobs |
//! | `worker/` | claims, runs and settles them |
//! | `admin.rs` | lists, retries, cancels, counts |
//! | `broker.rs` | jobs in queues of a broker |
//!
//! ```text
//! enqueue ──▶ scheduled ──▶ available ──▶ running ──▶ completed
//!                 ▲                          │  │
//!                 └──── fails, tries left ───┘  └───▶ discarded, cancelled ──▶ by hand: available again
//! ```
//!
//! Times are the database's. A claim is a lease, which the worker renews as long as it lives; a job whose lease has run
//! out runs again elsewhere, and whoever had it settles nothing any more.

mod admin;
mod broker;
mod enqueue;
mod job;
mod worker;

pub(crate) use self::enqueue::row;
pub use self::{
    admin::JobAdmin,
    broker::BrokerJobs,
    enqueue::{DEFAULT_MAX_JOB, Enqueued, Jobs},
    job::{DEFAULT_MAX_ATTEMPTS, DEFAULT_QUEUE, Job, NewJob, Unique},
    worker::{JobContext, JobReport, JobService, JobWorker, NoStore},
};
