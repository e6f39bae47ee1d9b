//! A topic: gives a copy of each message to every subscription whose filter matches.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};

use super::{message_store::WakeList, queue::MemoryQueue, stored_message::StoredMessage};
use crate::topology::TypeFilter;

pub(super) struct MemoryTopic {
    pub(super) ordered: bool,
    state: Mutex<TopicState>,
}

#[derive(Default)]
pub(super) struct TopicState {
    pub(super) deleted: bool,
    pub(super) subscriptions: BTreeMap<Arc<str>, TopicSubscription>,
}

pub(super) struct TopicSubscription {
    pub(super) queue: Arc<MemoryQueue>,
    pub(super) filter: SubscriptionFilter,
}

/// The event types that a subscription gets. A filter is only ever widened.
pub(super) struct SubscriptionFilter {
    all: bool,
    types: Vec<TypeFilter>,
}

impl SubscriptionFilter {
    pub(super) fn new(types: &[TypeFilter]) -> Self {
        Self { all: types.is_empty(), types: types.to_vec() }
    }

    pub(super) fn widen(&mut self, types: &[TypeFilter]) {
        self.all |= types.is_empty();
        let new: Vec<TypeFilter> = types.iter().filter(|t| !self.types.contains(t)).cloned().collect();
        self.types.extend(new);
    }

    fn matches(&self, event_type: &str) -> bool {
        self.all || self.types.iter().any(|t| t.matches(event_type))
    }
}

/// The types in alphabetical order, so that equal filters have equal texts.
impl std::fmt::Display for SubscriptionFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.all {
            return f.write_str("all");
        }
        let mut types: Vec<String> = self.types.iter().map(ToString::to_string).collect();
        types.sort_unstable();
        types.dedup();
        f.write_str(&types.join(", "))
    }
}

impl MemoryTopic {
    pub(super) fn new(ordered: bool) -> Self {
        Self { ordered, state: Mutex::default() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, TopicState> {
        self.state.lock()
    }

    /// Copies messages to the subscriptions, to each in the same order. False if the topic was deleted.
    pub(super) fn publish(&self, messages: &[(StoredMessage, Option<Duration>)], wakers: &mut WakeList) -> bool {
        let state = self.lock();
        if state.deleted {
            return false;
        }
        for TopicSubscription { queue, filter } in state.subscriptions.values() {
            let wanted = messages.iter().filter(|(m, _)| filter.matches(m.routing_type()));
            queue.publish(wanted.map(|(m, delay)| (m.copy(), *delay)), wakers);
        }
        true
    }
}
