//! The slots of the outbox that this relay holds, and how they are shared out among relays.
//!
//! Every relay is a member of a group and says so at each third of the lease's term. Its fair share is the number of
//! slots divided by the number of members, rounded up. It takes free slots up to its share, and gives back what is
//! above it, so a relay that comes later gets its part within about one term.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use polybus_core::Result;
use tokio::{sync::Notify, time::Instant};

use super::RelayShared;
use crate::{
    store::{
        Lease, SLOTS,
        calls::{in_time, is_final},
    },
    telemetry,
};

const GROUP: &str = "outbox";

/// How soon a relay that has less than its share looks for free slots again.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
pub(super) struct SlotTable {
    held: Mutex<BTreeMap<i16, HeldSlot>>,
    takings: AtomicU64,
    /// Told when slots were taken.
    pub(super) taken: Notify,
    /// Told when a slot that is to be given back is no longer in use.
    freed: Notify,
}

#[derive(Debug)]
struct HeldSlot {
    lease: Lease,
    /// Which taking of a slot in this process it is. Tokens may come twice, after a failover that lost the last ones.
    taking: u64,
    /// Until when this process may begin to publish from it: four fifths of the term, counted from before the request.
    usable_until: Instant,
    /// How many lanes use it now.
    users: usize,
    /// It is to be given back, and no lane may take it again.
    leaving: bool,
}

/// Slots in the use of one lane. They are not given back before it is dropped.
pub(super) struct SlotsInUse<'a> {
    table: &'a SlotTable,
    pub(super) slots: Vec<i16>,
    /// The taking of each: a slot that was lost and taken again has other users.
    takings: Vec<u64>,
    usable_until: Instant,
}

impl SlotsInUse<'_> {
    /// Whether the leases still last long enough to begin a publish.
    pub(super) fn may_publish(&self) -> bool {
        Instant::now() < self.usable_until
    }
}

impl Drop for SlotsInUse<'_> {
    fn drop(&mut self) {
        let mut held = self.table.held.lock();
        for (slot, taking) in self.slots.iter().zip(&self.takings) {
            if let Some(slot) = held.get_mut(slot).filter(|slot| slot.taking == *taking) {
                slot.users -= 1;
                if slot.leaving && slot.users == 0 {
                    self.table.freed.notify_one();
                }
            }
        }
    }
}

impl SlotTable {
    /// The slots that may be used now.
    pub(super) fn usable(&self) -> Vec<i16> {
        let now = Instant::now();
        let held = self.held.lock();
        held.iter().filter(|(_, slot)| !slot.leaving && slot.usable_until > now).map(|(n, _)| *n).collect()
    }

    /// Takes those of these slots into use that may be used now; `None` if none may.
    pub(super) fn enter(&self, wanted: impl Fn(i16) -> bool) -> Option<SlotsInUse<'_>> {
        let now = Instant::now();
        let mut held = self.held.lock();
        let usable = held.iter_mut().filter(|(n, slot)| wanted(**n) && !slot.leaving && slot.usable_until > now);
        let (mut slots, mut takings) = (Vec::new(), Vec::new());
        let mut usable_until = None;
        for (n, slot) in usable {
            slot.users += 1;
            slots.push(*n);
            takings.push(slot.taking);
            usable_until = usable_until.into_iter().chain([slot.usable_until]).min();
        }
        Some(SlotsInUse { table: self, slots, takings, usable_until: usable_until? })
    }

    fn leases(&self) -> Vec<Lease> {
        self.held.lock().values().map(|slot| slot.lease.clone()).collect()
    }

    fn take(&self, leases: Vec<Lease>, usable_until: Instant) {
        let mut held = self.held.lock();
        for lease in leases {
            if let Some(slot) = slot_of(&lease.name) {
                let taking = self.takings.fetch_add(1, Ordering::Relaxed);
                held.insert(slot, HeldSlot { lease, taking, usable_until, users: 0, leaving: false });
            }
        }
    }

    /// Notes which leases were renewed; the others are lost. Answers how many those are.
    fn renewed(&self, renewed: &[Lease], asked: &[Lease], usable_until: Instant) -> u64 {
        let mut held = self.held.lock();
        let before = held.len();
        held.retain(|_, slot| {
            let is_kept = renewed.contains(&slot.lease) || !asked.contains(&slot.lease);
            if renewed.contains(&slot.lease) {
                slot.usable_until = usable_until;
            }
            is_kept
        });
        (before - held.len()) as u64
    }

    /// Marks slots above the share as leaving, and takes out those that no lane uses.
    fn surplus(&self, share: usize) -> Vec<Lease> {
        let mut held = self.held.lock();
        let staying = held.values().filter(|slot| !slot.leaving).count();
        let idle_first: Vec<i16> = {
            let mut slots: Vec<_> = held.iter().filter(|(_, s)| !s.leaving).map(|(n, s)| (s.users, *n)).collect();
            slots.sort_unstable();
            slots.into_iter().map(|(_, n)| n).collect()
        };
        for n in idle_first.into_iter().take(staying.saturating_sub(share)) {
            if let Some(slot) = held.get_mut(&n) {
                slot.leaving = true;
            }
        }
        let gone: Vec<i16> = held.iter().filter(|(_, s)| s.leaving && s.users == 0).map(|(n, _)| *n).collect();
        gone.iter().filter_map(|n| held.remove(n)).map(|slot| slot.lease).collect()
    }

    fn take_all(&self) -> Vec<Lease> {
        std::mem::take(&mut *self.held.lock()).into_values().map(|slot| slot.lease).collect()
    }
}

fn lease_name(slot: i16) -> String {
    format!("{GROUP}/{slot}")
}

fn slot_of(lease: &str) -> Option<i16> {
    lease.strip_prefix(GROUP)?.strip_prefix('/')?.parse().ok()
}

/// Renews, takes and gives back slots until it is dropped. It returns only with an error that ends the relay.
pub(super) async fn keep(shared: &Arc<RelayShared>) -> polybus_core::Error {
    let term = shared.options.lease;
    let mut failing = false;
    loop {
        let wait = match keep_once(shared).await {
            Ok(has_share) => {
                if std::mem::take(&mut failing) {
                    tracing::info!(target: "polybus", "the outbox' leases are renewed again");
                }
                if has_share { term / 3 } else { LOOK_AGAIN.min(term / 3) }
            }
            Err(e) if is_final(&e) => return e,
            Err(e) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(target: "polybus", error = %e, "the outbox' leases cannot be renewed; trying again");
                }
                (term / 10).min(Duration::from_secs(1))
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shared.slots.freed.notified() => {}
        }
    }
}

/// One round. Answers whether this relay has its share.
async fn keep_once(shared: &RelayShared) -> Result<bool> {
    let (slots, owner, term) = (&shared.slots, &*shared.owner, shared.options.lease);
    let leases = shared.control.leases();
    let limit = shared.lease_limit();
    let asked = slots.leases();
    if !asked.is_empty() {
        let usable_until = Instant::now() + term * 4 / 5;
        let renewed = in_time(limit, leases.renew(&asked, owner, term)).await?;
        let lost = slots.renewed(&renewed, &asked, usable_until);
        if lost > 0 {
            shared.counts.leases_lost.fetch_add(lost, Ordering::Relaxed);
            telemetry::lease_lost(shared.control.system(), lost);
            tracing::warn!(
                target: "polybus", lost,
                "leases of the outbox ran out; another relay has the slots, and some messages may be published twice"
            );
        }
    }
    let members = in_time(limit, leases.join(GROUP, owner, term)).await?.max(1);
    let share = (SLOTS as usize).div_ceil(members as usize);
    let have = slots.leases();
    if have.len() < share {
        let free: Vec<String> =
            (0..SLOTS).map(lease_name).filter(|name| !have.iter().any(|lease| lease.name == *name)).collect();
        let usable_until = Instant::now() + term * 4 / 5;
        let mut taken = in_time(limit, leases.acquire(&free, owner, term)).await?;
        // All that were free came; what is above the share goes back before it was used.
        let above = taken.split_off(taken.len().min(share - have.len()));
        if !taken.is_empty() {
            slots.take(taken, usable_until);
            slots.taken.notify_one();
        }
        if !above.is_empty() {
            in_time(limit, leases.release(&above, owner)).await?;
        }
    }
    let surplus = slots.surplus(share);
    if !surplus.is_empty() {
        in_time(limit, leases.release(&surplus, owner)).await?;
    }
    Ok(slots.leases().len() >= share)
}

/// Gives everything back, within one term: after it the leases have run out anyhow.
pub(super) async fn leave(shared: &RelayShared) -> Result<()> {
    let leases = shared.control.leases();
    let held = shared.slots.take_all();
    let leave = async {
        if !held.is_empty() {
            leases.release(&held, &shared.owner).await?;
        }
        leases.leave(GROUP, &shared.owner).await
    };
    in_time(shared.options.lease, leave).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(slot: i16) -> Lease {
        Lease { name: lease_name(slot), token: 1 }
    }

    fn table(slots: i16) -> SlotTable {
        let table = SlotTable::default();
        table.take((0..slots).map(lease).collect(), Instant::now() + Duration::from_secs(8));
        table
    }

    #[tokio::test(start_paused = true)]
    async fn a_slot_in_use_is_given_back_only_after_its_use() {
        let table = table(4);
        let in_use = table.enter(|slot| slot < 2).into_iter().next();
        assert_eq!(table.surplus(1), vec![lease(2), lease(3)], "the idle ones go first");
        let mut left = table.usable();
        assert_eq!(left.len(), 1, "one of those in use is leaving, so no lane takes it again");
        drop(in_use);
        assert_eq!(table.surplus(1).len(), 1);
        left.retain(|slot| !table.usable().contains(slot));
        assert!(left.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slot_is_usable_for_four_fifths_and_lost_if_it_was_not_renewed() {
        let table = table(2);
        let Some(in_use) = table.enter(|_| true) else { panic!("two slots are usable") };
        assert!(in_use.may_publish());
        tokio::time::advance(Duration::from_secs(8)).await;
        assert!(!in_use.may_publish() && table.usable().is_empty() && table.enter(|_| true).is_none());
        let asked = table.leases();
        let lost = table.renewed(&asked[..1], &asked, Instant::now() + Duration::from_secs(8));
        assert_eq!((lost, table.usable()), (1, vec![0]));
        drop(in_use);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slot_that_was_lost_and_taken_again_counts_its_own_users() {
        let table = table(1);
        let before = table.enter(|_| true);
        let asked = table.leases();
        assert_eq!(table.renewed(&[], &asked, Instant::now()), 1);
        // With the same token, as from a standby that had not yet heard of the first.
        table.take(vec![lease(0)], Instant::now() + Duration::from_secs(8));
        let now = table.enter(|_| true);
        drop(before);
        assert!(table.surplus(0).is_empty(), "the new user still has it");
        drop(now);
        assert_eq!(table.surplus(0).len(), 1);
    }
}
