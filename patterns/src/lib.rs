//! What teams build around a broker, once: the transactional outbox and the idempotent consumer.
//!
//! | chapter | what lives there |
//! |---|---|
//! | [`outbox`] | [`Outbox`]: messages written in the application's own transaction |
//! | [`relay`] | [`Relay`]: publishes what the outbox holds |
//! | [`inbox`] | [`Inbox`]: handles each message once, in the transaction of its effects |
//! | [`store`] | what a database must do for them |
//!
//! The tables live in a database of the application's: `polybus-sql` has them for PostgreSQL and SQLite. This crate knows
//! no database.
//!
//! ```text
//! business transaction ─┬─ rows of the application            the handler's transaction ─┬─ the mark (inbox)
//!                       └─ rows of the outbox ── relay ── broker ── worker ──────────────┴─ rows of the application
//! ```

#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod inbox;
pub mod outbox;
pub mod relay;
pub mod store;
mod telemetry;

pub use self::{
    inbox::Inbox,
    outbox::Outbox,
    relay::{Relay, RelayReport},
    store::Mark,
};
