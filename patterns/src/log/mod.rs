//! The event log: streams of events in the application's database, as the record of what has happened.
//!
//! An event is appended to its stream in the transaction that decides it, if the stream is still what the decision was
//! made on. All events together are one log, which [subscriptions](Subscription) read in order and without a gap, each
//! with its effect and its checkpoint in one transaction.
//!
//! | file | what is there |
//! |---|---|
//! | `event_log.rs` | the handle: appending, in the caller's transaction |
//! | `append.rs` | what is appended, and what is expected of the stream |
//! | `event.rs` | an event that was read |
//! | `publish.rs` | publishing through the outbox what is appended |
//! | `read.rs` | reading a stream, forwards and backwards, and the whole log |
//! | `streams.rs` | archiving and deleting streams |
//! | `aggregate.rs` | a state that is made of the events of a stream |
//! | `snapshot.rs` | states that are kept as a cache |
//! | `subscription/` | runs a handler over the log |
//! | `admin.rs` | subscriptions by hand: list, stop, resume, skip, remove |
//!
//! ```text
//! transaction ─┬─ append: expectation, versions 4, 5   ──▶ stream order-7: 1 2 3 4 5
//!              └─ rows of the application                  log:   … 61 62 64 65 … ──▶ subscription ─┬─ checkpoint 65
//!                                                                                                   └─ its own rows
//! ```

mod admin;
mod aggregate;
mod append;
mod event;
mod event_log;
mod publish;
mod read;
mod snapshot;
mod streams;
mod subscription;

pub use self::{
    admin::LogAdmin,
    aggregate::{Aggregate, Loaded},
    append::{Append, Appended, Expect, MAX_APPEND_EVENTS, MAX_APPEND_SIZE, MAX_STREAM_NAME},
    event::LoggedEvent,
    event_log::EventLog,
    read::EventPage,
    snapshot::Snapshot,
    streams::STREAM_DELETED,
    subscription::{Subscription, SubscriptionReport},
};
