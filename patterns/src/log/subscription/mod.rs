//! Runs a handler over the log, in order, with a checkpoint.
//!
//! | file | what is there |
//! |---|---|
//! | `builder.rs` | the settings, and the two ways to run |
//! | `engine.rs` | reads, forms batches, and decides what becomes of a failure |
//! | `attempt.rs` | one try of one batch |
//! | `holder.rs` | which process runs it |
//! | `floor_watch.rs` | tells of a transaction that holds readers back |

mod attempt;
mod builder;
mod engine;
mod floor_watch;
mod holder;

pub use self::builder::{Subscription, SubscriptionReport};
