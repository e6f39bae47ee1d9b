//! From a settlement that the application asks for to the broker's answer.
//!
//! 1. `rules.rs` decides what the settlement becomes: refused, kept in place, turned into a dead letter, or as it is.
//! 2. `batcher.rs` gives settlements to the driver's [`Settler`](crate::driver::Settler) in batches, and retries them.
//! 3. The answer goes to the caller, or, for a worker, to a record (`handling_record.rs`).

pub(crate) mod batcher;
pub(crate) mod handling_record;
pub(crate) mod rules;
