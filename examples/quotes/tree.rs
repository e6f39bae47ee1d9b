//! What the services saw, and the tree of one conversation: every message names what caused it.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use polybus::Envelope;
use tokio::time::Instant;

/// The messages that were seen, by the service that saw each.
#[derive(Clone, Default)]
pub struct MessageLog(Arc<Mutex<Vec<Seen>>>);

struct Seen {
    service: &'static str,
    id: Box<str>,
    kind: Box<str>,
    correlation: Box<str>,
    cause: Option<Box<str>>,
}

impl MessageLog {
    pub fn note(&self, service: &'static str, msg: &Envelope) {
        let correlation = msg.correlation_id.clone().unwrap_or_default();
        let (id, kind, cause) = (msg.id.clone(), msg.event_type.clone(), msg.causation_id.clone());
        self.0.lock().unwrap_or_else(|e| e.into_inner()).push(Seen { service, id, kind, correlation, cause });
    }

    /// Waits until a service has seen so many different messages, and answers how many it has.
    pub async fn settled(&self, patience: Duration, service: &str, wanted: usize) -> usize {
        let began = Instant::now();
        loop {
            let seen = {
                let log = self.0.lock().unwrap_or_else(|e| e.into_inner());
                let causes = log.iter().filter(|seen| seen.service == service).map(|seen| &seen.cause);
                causes.collect::<std::collections::BTreeSet<_>>().len()
            };
            if seen >= wanted || began.elapsed() >= patience {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The longest conversation as a tree. One that was repeated shows each message once.
    pub fn tree(&self) -> String {
        let log = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let mut conversations: BTreeMap<&str, BTreeMap<&str, &Seen>> = BTreeMap::new();
        for seen in log.iter().filter(|seen| !seen.correlation.is_empty()) {
            conversations.entry(&seen.correlation).or_default().insert(&seen.id, seen);
        }
        let of_all_services = |messages: &BTreeMap<&str, &Seen>| {
            ["shop", "quotes", "warehouse", "ledger"].iter().all(|s| messages.values().any(|seen| seen.service == *s))
        };
        let found = conversations.values().find(|messages| of_all_services(messages));
        let Some(messages) = found else { return String::new() };
        let mut text = String::new();
        let roots = messages.values().filter(|seen| seen.cause.as_deref().is_none_or(|id| !messages.contains_key(id)));
        for root in roots {
            branch(messages, root, 0, &mut text);
        }
        text
    }
}

fn branch(messages: &BTreeMap<&str, &Seen>, seen: &Seen, depth: usize, text: &mut String) {
    let _ = writeln!(text, "  {}{} → {}", "   ".repeat(depth), seen.kind, seen.service);
    for effect in messages.values().filter(|other| other.cause.as_deref() == Some(&*seen.id)) {
        branch(messages, effect, depth + 1, text);
    }
}
