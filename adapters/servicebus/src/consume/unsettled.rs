//! The deliveries of one consumer, from when core receives them until the broker has settled them.

use std::{collections::HashMap, hash::Hash};

use parking_lot::{Mutex, MutexGuard};

use tokio::time::Instant;

/// Deliveries `D` by their keys `K`, such as lock tokens.
pub(crate) struct UnsettledDeliveries<K, D>(Mutex<HashMap<K, UnsettledDelivery<D>>>);

struct UnsettledDelivery<D> {
    delivery: D,
    /// When its lock was given or renewed last.
    from: Instant,
    /// Core takes it for settled. This side holds it in place until it is to come again.
    held_in_place: bool,
}

impl<K, D> Default for UnsettledDeliveries<K, D> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, D> UnsettledDeliveries<K, D> {
    fn table(&self) -> MutexGuard<'_, HashMap<K, UnsettledDelivery<D>>> {
        self.0.lock()
    }

    pub(crate) fn len(&self) -> usize {
        self.table().len()
    }

    /// Adds a delivery whose lock began at `from`.
    pub(crate) fn insert(&self, key: K, delivery: D, from: Instant) {
        self.table().insert(key, UnsettledDelivery { delivery, from, held_in_place: false });
    }

    /// Whether core is still to settle a delivery.
    pub(crate) fn awaits_core(&self, key: &K) -> bool {
        self.table().get(key).is_some_and(|entry| !entry.held_in_place)
    }

    /// Whether a delivery is not settled at the broker yet; it may be held in place.
    pub(crate) fn contains(&self, key: &K) -> bool {
        self.table().contains_key(key)
    }

    pub(crate) fn get(&self, key: &K) -> Option<D>
    where
        D: Clone,
    {
        self.table().get(key).map(|entry| entry.delivery.clone())
    }

    /// Notes that a lock was renewed by a request that was sent at `from`.
    pub(crate) fn renewed(&self, key: &K, from: Instant) {
        if let Some(entry) = self.table().get_mut(key) {
            entry.from = from;
        }
    }

    /// Marks a delivery as held in place, which core then takes for settled. Returns when its lock began; `None` if
    /// core has settled it before, or its lock was lost.
    pub(crate) fn hold_in_place(&self, key: &K) -> Option<Instant> {
        let mut table = self.table();
        let entry = table.get_mut(key).filter(|entry| !entry.held_in_place)?;
        entry.held_in_place = true;
        Some(entry.from)
    }

    /// Removes deliveries that are settled or lost, and returns those that were there.
    pub(crate) fn remove(&self, keys: impl IntoIterator<Item = K>) -> Vec<D> {
        let mut table = self.table();
        keys.into_iter().filter_map(|key| table.remove(&key)).map(|entry| entry.delivery).collect()
    }

    /// Removes a delivery whose lock core takes for lost, unless it is held in place: then core has settled it before.
    pub(crate) fn remove_lost(&self, key: &K) -> Option<D> {
        let mut table = self.table();
        table.get(key).filter(|entry| !entry.held_in_place)?;
        table.remove(key).map(|entry| entry.delivery)
    }

    /// Removes all deliveries.
    pub(crate) fn take(&self) -> Vec<(K, D)> {
        std::mem::take(&mut *self.table()).into_iter().map(|(key, entry)| (key, entry.delivery)).collect()
    }
}
