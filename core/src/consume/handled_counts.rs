//! How often this process has handled a message that came again: what its dead letter tells, beside the broker's own count.
//!
//! A broker that counts hand-overs also counts those that no handler saw: prefetched messages that came back.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{consume::unsettled::UnsettledMessage, topology::Source};

/// So many messages are remembered; the oldest go first.
const MOST: usize = 4096;

#[derive(Default)]
pub(crate) struct HandledCounts(Mutex<Memory>);

#[derive(Default)]
struct Memory {
    counts: HashMap<Box<str>, u32>,
    order: VecDeque<Box<str>>,
}

/// What the broker knows it by, else what its producer calls it.
fn name(source: &Source, parts: &UnsettledMessage) -> Box<str> {
    match parts.rare().and_then(|rare| rare.known_by.as_deref()) {
        Some(known_by) => format!("{source}\0{known_by}").into(),
        None => format!("{source}\0{}\0{}", parts.envelope.source, parts.envelope.id).into(),
    }
}

impl HandledCounts {
    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It was handed out and comes again.
    pub(crate) fn note(&self, source: &Source, parts: &UnsettledMessage) {
        let name = name(source, parts);
        let mut memory = self.lock();
        if let Some(count) = memory.counts.get_mut(&name) {
            // A message of this name that starts anew was redriven, or is another.
            *count = if parts.attempt <= 1 { 1 } else { *count + 1 };
            return;
        }
        if memory.order.len() >= MOST
            && let Some(oldest) = memory.order.pop_front()
        {
            memory.counts.remove(&oldest);
        }
        memory.order.push_back(name.clone());
        memory.counts.insert(name, 1);
    }

    /// How often it was, as far as is known.
    pub(crate) fn count(&self, source: &Source, parts: &UnsettledMessage) -> u32 {
        self.lock().counts.get(&name(source, parts)).copied().unwrap_or(0)
    }
}

/// As people write it.
pub(crate) fn times(n: u32) -> String {
    if n == 1 { "once".into() } else { format!("{n} times") }
}
