//! What teams build around a broker, once: the transactional outbox, the idempotent consumer, the order of keys, requests
//! and replies, versions of messages, large payloads, alerts, background jobs and schedules.
//!
//! | chapter | what lives there |
//! |---|---|
//! | [`outbox`] | [`Outbox`]: messages written in the application's own transaction |
//! | [`relay`] | [`Relay`]: publishes what the outbox holds |
//! | [`inbox`] | [`Inbox`]: handles each message once, in the transaction of its effects |
//! | [`requests`] | [`Requests`]: calls another service over a queue, and gets its answer |
//! | [`sequence`] | [`SequenceGuard`]: follows the numbers of each key, and tells what is missing |
//! | [`types`] | [`Types`]: versions of event types, upcasters, and a router to typed handlers |
//! | [`claim`] | [`ClaimReference`](claim::ClaimReference): large payloads elsewhere; `polybus-claims` has the store |
//! | [`monitor`] | [`Monitor`](monitor::Monitor): tells somebody when messages pile up, wait too long, or are dead |
//! | [`jobs`] | [`Jobs`](jobs::Jobs) and [`JobWorker`](jobs::JobWorker): work in the background, without a broker |
//! | [`cron`] | [`Cron`](cron::Cron): jobs at their times, in time zones |
//! | [`log`] | [`EventLog`](log::EventLog): streams of events, and subscriptions that read them in order |
//! | [`store`] | what a database must do for them |
//!
//! In an application these are `polybus::patterns::…`, and what examples take from `polybus_core` is in `polybus`.
//!
//! The tables live in a database of the application's: `polybus-sql` has them for PostgreSQL, MySQL and SQLite. This
//! crate knows no database.
//!
//! ```text
//! business transaction ─┬─ rows of the application            the handler's transaction ─┬─ the mark (inbox)
//!                       └─ rows of the outbox ── relay ── broker ── worker ──────────────┴─ rows of the application
//! ```

#![cfg_attr(docsrs, feature(doc_cfg))]

mod catch_panic;
pub mod claim;
pub mod cron;
mod hash;
pub mod inbox;
pub mod jobs;
pub mod log;
pub mod monitor;
pub mod outbox;
mod patience;
pub mod relay;
pub mod requests;
mod reruns;
pub mod sequence;
pub mod store;
mod stored_head;
mod sweeper;
mod telemetry;
pub mod types;

pub use self::{
    inbox::Inbox,
    outbox::Outbox,
    relay::{Relay, RelayReport},
    requests::Requests,
    sequence::SequenceGuard,
    store::Mark,
    types::Types,
};
