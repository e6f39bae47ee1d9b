//! How often this process has handled each message that came again. A dead letter's detail tells it beside the attempt.
//!
//! The two may differ: a broker that counts hand-overs also counts prefetched messages that came back unhandled.

use std::collections::{HashMap, VecDeque};

use parking_lot::{Mutex, MutexGuard};

use crate::{Source, consume::unsettled::UnsettledMessage};

/// How many messages are remembered. The oldest is forgotten first.
const MAX_REMEMBERED: usize = 4096;

#[derive(Default)]
pub(crate) struct HandlingsByMessage(Mutex<CountsByName>);

#[derive(Default)]
struct CountsByName {
    by_name: HashMap<Box<str>, u32>,
    order: VecDeque<Box<str>>,
}

/// The name under which a message is counted: the broker's own id of it, else its producer's.
fn name_of(source: &Source, message: &UnsettledMessage) -> Box<str> {
    match message.rare().and_then(|rare| rare.known_by.as_deref()) {
        Some(known_by) => format!("{source}\0{known_by}").into(),
        None => format!("{source}\0{}\0{}", message.envelope.source, message.envelope.id).into(),
    }
}

impl HandlingsByMessage {
    fn lock(&self) -> MutexGuard<'_, CountsByName> {
        self.0.lock()
    }

    /// Counts one handling of a message that comes again.
    pub(crate) fn record(&self, source: &Source, message: &UnsettledMessage) {
        let name = name_of(source, message);
        let mut counts = self.lock();
        if let Some(count) = counts.by_name.get_mut(&name) {
            // At attempt 1, a message of this name was redriven, or is another message.
            *count = if message.attempt <= 1 { 1 } else { *count + 1 };
            return;
        }
        if counts.order.len() >= MAX_REMEMBERED
            && let Some(oldest) = counts.order.pop_front()
        {
            counts.by_name.remove(&oldest);
        }
        counts.order.push_back(name.clone());
        counts.by_name.insert(name, 1);
    }

    /// How often the message was handled, as far as is remembered.
    pub(crate) fn count(&self, source: &Source, message: &UnsettledMessage) -> u32 {
        self.lock().by_name.get(&name_of(source, message)).copied().unwrap_or(0)
    }
}

/// The count as text: `once`, `3 times`.
pub(crate) fn times(n: u32) -> String {
    if n == 1 { "once".into() } else { format!("{n} times") }
}
