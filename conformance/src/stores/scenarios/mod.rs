//! The scenarios of the store suite. A group of them is a folder, and the first part of their names.

mod inbox;
mod leases;
mod outbox;
mod sequence;

use super::{scenario::StoreScenario, target::StoreUnderTest};

/// All scenarios, in the order in which a store makes them pass.
pub fn store_scenarios<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    let mut all = outbox::all();
    all.extend(leases::all());
    all.extend(inbox::all());
    all.extend(sequence::all());
    all
}
