//! Entities that polybus did not make: they are there already, and differ from what the topology says.

use std::time::Duration;

use async_trait::async_trait;
use polybus_core::{Bus, Result, Topology, driver::Capabilities};

use crate::{Need, Target};

/// In what an entity that others declared differs from the topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Drift {
    /// The broker drops a message whose id it has seen within some minutes, and answers Ok.
    DuplicateDetection,
    /// It is ordered: of sessions, of message groups; the topology does not say so.
    Sessions,
    /// Locks end after this much.
    Lock(Duration),
    /// After this many deliveries the broker itself does what it does by default: its dead letters, or nothing.
    DeliveryLimit(u32),
    /// There is nowhere to put dead letters: no queue, no policy.
    NoDeadLetters,
    /// Messages older than this are the broker's to remove.
    TimeToLive(Duration),
    /// A subscription lets other types through than the topology says: `other.*`, and all that is not CloudEvents.
    Routing,
}

/// Makes entities as another tool would. Optional: without it, what polybus' own topologies can express is made by polybus, from
/// another topology.
#[async_trait]
pub trait RawEntities: Send + Sync {
    /// Whether this broker has entities that differ in this way, and the suite can make them.
    fn knows(&self, drift: Drift) -> bool;

    /// Makes every queue, topic and subscription of the bus's topology, under the physical names it has there, with this drift. None
    /// of them is there before; the driver's `delete` for the same topology must remove them, or they are left behind.
    /// Done once they can be used.
    async fn declare(&self, bus: &Bus, drift: Drift) -> Result<()>;
}

/// The topology with which polybus itself would make such entities.
pub(crate) fn declared_by_polybus(drift: Drift, topology: &Topology) -> Option<Topology> {
    let mut other = topology.clone();
    match drift {
        Drift::Sessions => {
            other.queues.values_mut().for_each(|q| q.ordered = true);
            other.topics.values_mut().for_each(|t| t.ordered = true);
        }
        Drift::Lock(lock) => {
            other.queues.values_mut().for_each(|q| q.lock = Some(lock));
            let subscriptions = other.topics.values_mut().flat_map(|t| t.subscriptions.values_mut());
            subscriptions.for_each(|s| s.lock = Some(lock));
        }
        Drift::Routing => {
            let subscriptions = other.topics.values_mut().flat_map(|t| t.subscriptions.values_mut());
            for subscription in subscriptions {
                subscription.types.extend("other.*".parse());
            }
        }
        _ => return None,
    }
    Some(other)
}

impl Need {
    /// Entities that differ in this way can be made.
    pub fn drift(t: &Target, c: &Capabilities, drift: Drift) -> Self {
        let by_hook = t.entities.as_ref().is_some_and(|made| made.knows(drift));
        let by_polybus = c.declare
            && match drift {
                Drift::Sessions => c.ordered.is_some(),
                Drift::Lock(_) => c.locks && c.lock_range.is_some(),
                Drift::Routing => c.topics,
                _ => false,
            };
        Self::when(by_hook || by_polybus, "no way to make such entities")
    }
}
