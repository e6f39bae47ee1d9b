//! The outbox and its relay: committed is published, in order, and nothing else is.

mod administration;
mod broken_addresses;
mod delays;
mod enqueueing;
mod held_keys;
mod lost_leases;
mod poison;
mod reads;
mod refused_writes;
mod relay_troubles;
mod relays;
mod unreadable;
mod waking;
mod writing;

use polybus_patterns::store::{OutboxTable, ReadRows, SLOTS, StoredRow};

use crate::{
    Outcome,
    stores::{scenario::StoreScenario, target::StoreUnderTest},
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    let mut all = writing::all();
    all.extend(enqueueing::all());
    all.extend(delays::all());
    all.extend(reads::all());
    all.extend(relays::all());
    all.extend(broken_addresses::all());
    all.extend(held_keys::all());
    all.extend(poison::all());
    all.extend(unreadable::all());
    all.extend(refused_writes::all());
    all.extend(relay_troubles::all());
    all.extend(lost_leases::all());
    all.extend(administration::all());
    all.extend(waking::all());
    all
}

/// A read of the whole address.
fn whole<'a>(slots: &'a [i16], address: &'a str) -> ReadRows<'a> {
    ReadRows { slots, address, held_keys: &[], held_rows: &[], rows_per_slot: 10_000, max_bytes: 1 << 30 }
}

fn all_slots() -> Vec<i16> {
    (0..SLOTS).collect()
}

/// All rows of an address that are ready.
async fn rows_of(table: &dyn OutboxTable, address: &str) -> Outcome<Vec<StoredRow>> {
    Ok(table.read(&whole(&all_slots(), address)).await?)
}
