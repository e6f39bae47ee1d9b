//! A table of the deliveries that a consumer holds, for drivers whose client library keeps none.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{Error, ErrorKind, Result};

/// Deliveries by number, in the order in which they came, each with its lock's end and what the broker settles it by.
///
/// The number is what goes into the [`DriverToken`](crate::driver::DriverToken). It is never given twice, so a
/// token of a delivery that is over finds nothing, least of all another delivery.
///
/// ```
/// use std::time::Duration;
/// use polybus_core::driver::kit::held_deliveries::HeldDeliveries;
/// use tokio::time::Instant;
///
/// let held = HeldDeliveries::default();
/// let number = held.add(Some(Instant::now() + Duration::from_secs(30)), "receipt handle");
/// assert_eq!(held.get(number).unwrap(), "receipt handle");
/// held.remove(number);
/// assert!(!held.holds(number));
/// ```
pub struct HeldDeliveries<T>(Mutex<NumberedDeliveries<T>>);

struct NumberedDeliveries<T> {
    next: u64,
    held: BTreeMap<u64, (Option<Instant>, T)>,
}

impl<T> Default for HeldDeliveries<T> {
    fn default() -> Self {
        Self(Mutex::new(NumberedDeliveries { next: 0, held: BTreeMap::new() }))
    }
}

impl<T> HeldDeliveries<T> {
    /// Adds a delivery. `until` is the end of its lock, `None` where something else ends it.
    pub fn add(&self, until: Option<Instant>, by: T) -> u64 {
        let mut deliveries = self.0.lock();
        deliveries.next += 1;
        let number = deliveries.next;
        deliveries.held.insert(number, (until, by));
        number
    }

    /// Whether the delivery is held, for [`Settler::holds`](crate::driver::Settler::holds).
    pub fn holds(&self, number: u64) -> bool {
        self.0.lock().held.get(&number).is_some_and(|(until, _)| until.is_none_or(|until| Instant::now() < until))
    }

    /// What settles the delivery; `LockLost` if it is not held. It stays in the table until
    /// [`remove`](Self::remove): a settlement may fail.
    pub fn get(&self, number: u64) -> Result<T>
    where
        T: Clone,
    {
        let deliveries = self.0.lock();
        let held = deliveries.held.get(&number).filter(|(until, _)| until.is_none_or(|until| Instant::now() < until));
        held.map(|(_, by)| by.clone()).ok_or_else(|| Error::new(ErrorKind::LockLost, "the delivery is no longer held"))
    }

    /// The lock was renewed.
    pub fn renewed(&self, number: u64, until: Instant) {
        if let Some((held, _)) = self.0.lock().held.get_mut(&number) {
            *held = Some(until);
        }
    }

    /// The delivery is settled, or core has let go of it ([`Settler::forget`](crate::driver::Settler::forget)).
    pub fn remove(&self, number: u64) -> Option<T> {
        self.0.lock().held.remove(&number).map(|(_, by)| by)
    }

    /// Takes out everything, in the order in which it came: to give it back at the close, or to drop it
    /// with a lost connection.
    pub fn drain(&self) -> Vec<T> {
        std::mem::take(&mut self.0.lock().held).into_values().map(|(_, by)| by).collect()
    }

    /// How many deliveries are held here.
    pub fn len(&self) -> usize {
        self.0.lock().held.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_number_finds_its_own_delivery_until_the_lock_ends() {
        let held = HeldDeliveries::default();
        let [a, b] = ["a", "b"].map(|by| held.add(Some(Instant::now() + Duration::from_secs(1)), by));
        assert_eq!((held.get(a).ok(), held.remove(a), held.get(a).is_err()), (Some("a"), Some("a"), true));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!held.holds(b) && held.get(b).is_err_and(|e| e.kind() == ErrorKind::LockLost));
        held.renewed(b, Instant::now() + Duration::from_secs(1));
        assert!(held.holds(b) && held.drain() == ["b"] && held.is_empty());
    }
}
