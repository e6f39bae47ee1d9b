//! The broker: queues and topics by their physical names.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use super::{
    queue::Queue,
    topic::{Filter, Subscription, Topic},
};
use crate::{
    message::Envelope,
    topology::{Address, DeclareMode, DeclarePlan, DeclareReport, Entity, EntityDifference, Source},
};

/// Everything that outlives a connection.
#[derive(Default)]
pub(super) struct Broker {
    state: Mutex<State>,
    /// What was published, by logical address, while somebody wants to know.
    published: Mutex<Option<HashMap<Address, Vec<Envelope>>>>,
}

#[derive(Default)]
struct State {
    queues: HashMap<Arc<str>, Arc<Queue>>,
    topics: HashMap<Arc<str>, Arc<Topic>>,
}

/// The brokers that live as long as the process.
static NAMED: OnceLock<Mutex<HashMap<String, Arc<Broker>>>> = OnceLock::new();

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A subscription is found by its topic's physical name and its own.
fn names(source: &Entity<Source>) -> (Option<&Arc<str>>, &Arc<str>) {
    (source.parent.as_ref(), &source.physical)
}

impl Broker {
    pub(super) fn named(name: &str) -> Arc<Self> {
        guard(NAMED.get_or_init(Mutex::default)).entry(name.to_owned()).or_default().clone()
    }

    pub(super) fn queue(&self, physical: &str) -> Option<Arc<Queue>> {
        guard(&self.state).queues.get(physical).cloned()
    }

    pub(super) fn topic(&self, physical: &str) -> Option<Arc<Topic>> {
        guard(&self.state).topics.get(physical).cloned()
    }

    pub(super) fn source(&self, source: &Entity<Source>) -> Option<Arc<Queue>> {
        match names(source) {
            (None, name) => self.queue(name),
            (Some(topic), name) => {
                let topic = self.topic(topic)?;
                let state = topic.lock();
                state.subscriptions.get(name).map(|s| s.queue.clone())
            }
        }
    }

    /// `fifo`: dead letters of ordered sources keep the order per key.
    pub(super) fn declare(&self, plan: &DeclarePlan, mode: DeclareMode, fifo: bool) -> DeclareReport {
        let mut report = DeclareReport::default();
        if mode == DeclareMode::Off {
            return report;
        }
        let create = mode == DeclareMode::Create;
        let mut state = guard(&self.state);
        for topic in &plan.topics {
            let ordered = topic.settings.ordered;
            let found = state.topics.get(&topic.physical).map(|t| t.ordered);
            look(&topic.name, ordered, found, create, &mut report);
            if create && found.is_none() {
                state.topics.insert(topic.physical.clone(), Arc::new(Topic::new(ordered)));
            }
        }
        for source in &plan.sources {
            match names(source) {
                (None, name) => {
                    let ordered = source.settings.ordered;
                    let found = state.queues.get(name).map(|q| q.ordered());
                    look(&source.name, ordered, found, create, &mut report);
                    if create && found.is_none() {
                        state.queues.insert(name.clone(), Arc::new(Queue::new(ordered, fifo)));
                    }
                }
                (Some(topic), _) => subscription(state.topics.get(topic), source, create, fifo, &mut report),
            }
        }
        report
    }

    pub(super) fn delete(&self, plan: &DeclarePlan) {
        let mut state = guard(&self.state);
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

    pub(super) fn record(&self, yes: bool) {
        let mut published = guard(&self.published);
        match yes {
            true => drop(published.get_or_insert_default()),
            false => *published = None,
        }
    }

    pub(super) fn recorded(&self, address: &Address, messages: impl Iterator<Item = Envelope>) {
        if let Some(published) = &mut *guard(&self.published) {
            published.entry(address.clone()).or_default().extend(messages);
        }
    }

    pub(super) fn published(&self, address: &Address) -> Vec<Envelope> {
        let published = guard(&self.published);
        published.as_ref().and_then(|p| p.get(address)).cloned().unwrap_or_default()
    }
}

/// Compares whether an entity exists and is ordered.
fn look(name: &impl ToString, ordered: bool, found: Option<bool>, create: bool, report: &mut DeclareReport) {
    match found {
        None if create => report.created.push(name.to_string()),
        None => report.differences.push(EntityDifference::new(name.to_string(), "exists", true, false)),
        Some(found) if found != ordered => {
            report.differences.push(EntityDifference::new(name.to_string(), "ordered", ordered, found));
        }
        Some(_) => {}
    }
}

fn subscription(
    topic: Option<&Arc<Topic>>,
    source: &Entity<Source>,
    create: bool,
    fifo: bool,
    report: &mut DeclareReport,
) {
    let (name, types) = (&source.name, &source.settings.types);
    let Some(topic) = topic else {
        report.differences.push(EntityDifference::new(source.name.address(), "exists", true, false));
        return look(name, source.settings.ordered, None, false, report);
    };
    let mut state = topic.lock();
    let existing = state.subscriptions.get_mut(&source.physical);
    // Subscriptions are as ordered as their topic, whatever the plan says of them.
    look(name, source.settings.ordered, existing.is_some().then_some(topic.ordered), create, report);
    match existing {
        None if create => {
            let new = Subscription { queue: Arc::new(Queue::new(topic.ordered, fifo)), filter: Filter::new(types) };
            state.subscriptions.insert(source.physical.clone(), new);
        }
        None => {}
        Some(existing) => {
            if create {
                existing.filter.widen(types);
            }
            let (wanted, found) = (Filter::new(types).to_string(), existing.filter.to_string());
            if wanted != found {
                report.differences.push(EntityDifference::new(name, "types", wanted, found));
            }
        }
    }
}
