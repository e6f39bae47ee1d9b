//! Publishing: each result is true, a batch keeps to its limits, and nothing is lost or called stored that is not.
//!
//! A message goes from [`Bus::publish`](polybus_core::Bus::publish) to a queue or topic, and is read back from there.

mod batches;
mod missing;
mod outages;
mod results;

use polybus_core::{Error, Receipt};

use crate::{Outcome, Scenario, fail};

/// The scenarios of this group.
pub fn all() -> Vec<Scenario> {
    [results::all(), missing::all(), batches::all(), outages::all()].concat()
}

fn is_ok(result: &Result<Receipt, Error>) -> Outcome {
    match result {
        Ok(_) => Ok(()),
        Err(e) => fail!("expected Ok, got {e:?}"),
    }
}
