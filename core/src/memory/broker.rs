//! The in-process broker: queues and topics by their physical names.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use parking_lot::{Mutex, MutexGuard};

use super::{
    queue::MemoryQueue,
    topic::{MemoryTopic, SubscriptionFilter, TopicSubscription},
};
use crate::{
    Address, Envelope, Source,
    topology::{DeclareMode, DeclarePlan, DeclareReport, Entity, EntityDifference},
};

/// What the connections to one broker share. It outlives each of them.
#[derive(Default)]
pub(super) struct MemoryBroker {
    entities: Mutex<BrokerEntities>,
    /// The messages published by logical address, while recording is on.
    published: Mutex<Option<HashMap<Address, Vec<Envelope>>>>,
}

#[derive(Default)]
struct BrokerEntities {
    queues: HashMap<Arc<str>, Arc<MemoryQueue>>,
    topics: HashMap<Arc<str>, Arc<MemoryTopic>>,
}

/// The brokers of `memory://name`. They live as long as the process.
static NAMED: OnceLock<Mutex<HashMap<String, Arc<MemoryBroker>>>> = OnceLock::new();

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

/// The physical names by which a source is found: a subscription's topic, if it is one, and its own.
fn names(source: &Entity<Source>) -> (Option<&Arc<str>>, &Arc<str>) {
    (source.parent.as_ref(), &source.physical)
}

impl MemoryBroker {
    pub(super) fn named(name: &str) -> Arc<Self> {
        guard(NAMED.get_or_init(Mutex::default)).entry(name.to_owned()).or_default().clone()
    }

    pub(super) fn queue(&self, physical: &str) -> Option<Arc<MemoryQueue>> {
        guard(&self.entities).queues.get(physical).cloned()
    }

    pub(super) fn topic(&self, physical: &str) -> Option<Arc<MemoryTopic>> {
        guard(&self.entities).topics.get(physical).cloned()
    }

    pub(super) fn source(&self, source: &Entity<Source>) -> Option<Arc<MemoryQueue>> {
        match names(source) {
            (None, name) => self.queue(name),
            (Some(topic), name) => {
                let topic = self.topic(topic)?;
                let state = topic.lock();
                state.subscriptions.get(name).map(|s| s.queue.clone())
            }
        }
    }

    /// Creates or verifies a plan. `fifo`: dead letters of ordered sources keep the order per key.
    pub(super) fn declare(&self, plan: &DeclarePlan, mode: DeclareMode, fifo: bool) -> DeclareReport {
        let mut report = DeclareReport::default();
        if mode == DeclareMode::Off {
            return report;
        }
        let create = mode == DeclareMode::Create;
        let mut state = guard(&self.entities);
        for topic in &plan.topics {
            let ordered = topic.settings.ordered;
            let found = state.topics.get(&topic.physical).map(|t| t.ordered);
            compare(&topic.name, ordered, found, create, &mut report);
            if create && found.is_none() {
                state.topics.insert(topic.physical.clone(), Arc::new(MemoryTopic::new(ordered)));
            }
        }
        for source in &plan.sources {
            match names(source) {
                (None, name) => {
                    let ordered = source.settings.ordered;
                    let found = state.queues.get(name).map(|q| q.ordered());
                    compare(&source.name, ordered, found, create, &mut report);
                    if create && found.is_none() {
                        state.queues.insert(name.clone(), Arc::new(MemoryQueue::new(ordered, fifo)));
                    }
                }
                (Some(topic), _) => declare_subscription(state.topics.get(topic), source, create, fifo, &mut report),
            }
        }
        report
    }

    pub(super) fn delete(&self, plan: &DeclarePlan) {
        let mut state = guard(&self.entities);
        for source in &plan.sources {
            let queue = match names(source) {
                (None, name) => state.queues.remove(name),
                (Some(topic), name) => {
                    let topic = state.topics.get(topic);
                    topic.and_then(|t| t.lock().subscriptions.remove(name)).map(|s| s.queue)
                }
            };
            queue.inspect(|q| q.delete());
        }
        for topic in &plan.topics {
            let Some(topic) = state.topics.remove(&topic.physical) else { continue };
            let mut topic = topic.lock();
            topic.deleted = true;
            std::mem::take(&mut topic.subscriptions).values().for_each(|s| s.queue.delete());
        }
    }

    /// Switches recording on, or off, which drops what was recorded.
    pub(super) fn record(&self, yes: bool) {
        let mut published = guard(&self.published);
        match yes {
            true => drop(published.get_or_insert_default()),
            false => *published = None,
        }
    }

    /// Adds published messages, if recording is on.
    pub(super) fn add_published(&self, address: &Address, messages: impl Iterator<Item = Envelope>) {
        if let Some(published) = &mut *guard(&self.published) {
            published.entry(address.clone()).or_default().extend(messages);
        }
    }

    pub(super) fn published(&self, address: &Address) -> Vec<Envelope> {
        let published = guard(&self.published);
        published.as_ref().and_then(|p| p.get(address)).cloned().unwrap_or_default()
    }
}

/// Reports an entity that is missing, or whose setting of `ordered` differs. `found` is that setting at the broker.
fn compare(name: &impl ToString, ordered: bool, found: Option<bool>, create: bool, report: &mut DeclareReport) {
    match found {
        None if create => report.created.push(name.to_string()),
        None => report.differences.push(EntityDifference::new(name.to_string(), "exists", true, false)),
        Some(found) if found != ordered => {
            report.differences.push(EntityDifference::new(name.to_string(), "ordered", ordered, found));
        }
        Some(_) => {}
    }
}

/// Creates or verifies one subscription.
fn declare_subscription(
    topic: Option<&Arc<MemoryTopic>>,
    source: &Entity<Source>,
    create: bool,
    fifo: bool,
    report: &mut DeclareReport,
) {
    let (name, types) = (&source.name, &source.settings.types);
    let Some(topic) = topic else {
        report.differences.push(EntityDifference::new(source.name.address(), "exists", true, false));
        return compare(name, source.settings.ordered, None, false, report);
    };
    let mut state = topic.lock();
    let existing = state.subscriptions.get_mut(&source.physical);
    // A subscription is as ordered as its topic, whatever the plan says.
    compare(name, source.settings.ordered, existing.is_some().then_some(topic.ordered), create, report);
    match existing {
        None if create => {
            let (queue, filter) = (Arc::new(MemoryQueue::new(topic.ordered, fifo)), SubscriptionFilter::new(types));
            state.subscriptions.insert(source.physical.clone(), TopicSubscription { queue, filter });
        }
        None => {}
        Some(existing) => {
            if create {
                existing.filter.widen(types);
            }
            let (wanted, found) = (SubscriptionFilter::new(types).to_string(), existing.filter.to_string());
            if wanted != found {
                report.differences.push(EntityDifference::new(name, "types", wanted, found));
            }
        }
    }
}
