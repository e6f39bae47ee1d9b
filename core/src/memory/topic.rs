//! A topic: gives every subscription that wants a message its own copy.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{message::Message, message_store::Wakers, queue::Queue};
use crate::topology::TypeFilter;

pub(super) struct Topic {
    pub(super) ordered: bool,
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) deleted: bool,
    pub(super) subscriptions: BTreeMap<Arc<str>, Subscription>,
}

pub(super) struct Subscription {
    pub(super) queue: Arc<Queue>,
    pub(super) filter: Filter,
}

/// What the broker lets through to a subscription. It only ever widens.
pub(super) struct Filter {
    all: bool,
    types: Vec<TypeFilter>,
}

impl Filter {
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

/// As people read it, in one order, so that equal filters look equal.
impl std::fmt::Display for Filter {
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

impl Topic {
    pub(super) fn new(ordered: bool) -> Self {
        Self { ordered, state: Mutex::default() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies messages to the subscriptions, in the same order to each. False if the topic was deleted.
    pub(super) fn publish(&self, messages: &[(Message, Option<Duration>)], wakers: &mut Wakers) -> bool {
        let state = self.lock();
        if state.deleted {
            return false;
        }
        for Subscription { queue, filter } in state.subscriptions.values() {
            let wanted = messages.iter().filter(|(m, _)| filter.matches(m.routed_by()));
            queue.publish(wanted.map(|(m, delay)| (m.copy(), *delay)), wakers);
        }
        true
    }
}
