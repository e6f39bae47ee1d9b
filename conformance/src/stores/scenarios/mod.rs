//! The scenarios of the store suite. A group of them is a folder, and the first part of their names.

mod inbox;
mod jobs;
mod leases;
mod outbox;
mod sequence;

use super::{
    scenario::StoreScenario,
    target::{JobsUnderTest, StoreUnderTest},
};

/// All scenarios but those of jobs, in the order in which a store makes them pass.
pub fn store_scenarios<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    let mut all = outbox::all();
    all.extend(leases::all());
    all.extend(inbox::all());
    all.extend(sequence::all());
    all
}

/// The scenarios of jobs and schedules, for stores that have them.
pub fn job_scenarios<T: JobsUnderTest>() -> Vec<StoreScenario<T>> {
    jobs::all()
}
