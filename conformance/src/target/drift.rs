//! Entities that polybus did not declare, and that differ from what the topology says.

use std::time::Duration;

use async_trait::async_trait;
use polybus_core::{Bus, Result, Topology, driver::Capabilities};

use crate::{Need, Target};

/// How an entity that another tool declared differs from the topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Drift {
    /// The broker drops a message whose id it has seen within some minutes, and answers Ok.
    DuplicateDetection,
    /// The entity is ordered (sessions, message groups) and the topology does not say so.
    Sessions,
    /// Locks end after this time.
    Lock(Duration),
    /// After this many deliveries the broker itself acts as by default: it dead-letters the message, or does nothing.
    DeliveryLimit(u32),
    /// There is no place for dead letters: no queue, no policy.
    NoDeadLetters,
    /// The broker removes messages that are older than this.
    TimeToLive(Duration),
    /// A subscription also lets other types through than the topology says: `other.*`, and what is no CloudEvent.
    Routing,
}

/// Makes entities as another tool would.
///
/// The hook is optional: without it polybus makes from another topology those that its topologies can express.
#[async_trait]
pub trait RawEntities: Send + Sync {
    /// Whether this broker has entities that differ in this way, and this hook can make them.
    fn knows(&self, drift: Drift) -> bool;

    /// Makes each queue, topic and subscription of the bus's topology, under its physical name there, with this drift.
    ///
    /// Returns once they can be used. None of them is there before. The driver's `delete` for the same topology must
    /// remove them, else they stay at the broker.
    async fn declare(&self, bus: &Bus, drift: Drift) -> Result<()>;
}

/// The topology with which polybus itself makes such entities. `None`: no topology expresses the drift.
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
    /// Entities that differ in this way can be made, by the hook or by polybus.
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
