//! What waits to be published to one address, and how it forms batches.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use crate::{
    driver::{Batching, PreparedMessage},
    error::Result,
    message::{Envelope, Receipt},
    runtime::oneshot::ReplySender,
};

/// One message on its way.
pub(crate) struct PendingPublish {
    pub(crate) deadline: Instant,
    /// An earlier attempt may have stored it.
    pub(crate) ambiguous: bool,
    pub(crate) call: Option<Arc<FailedKeys>>,
    pub(crate) reply: ReplySender<Result<Receipt>>,
    /// Its share of the bytes that may wait.
    pub(crate) _room: OwnedSemaphorePermit,
}

/// The messages of one `publish_all` on an ordered address: after a failure, later ones of that key are not sent.
#[derive(Default)]
pub(crate) struct FailedKeys(Mutex<HashMap<Box<str>, Box<str>>>);

impl FailedKeys {
    pub(crate) fn fail(&self, message: &Envelope) {
        if let Some(key) = &message.key {
            let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            failed.entry(key.clone()).or_insert_with(|| message.id.clone());
        }
    }

    /// The id of the message of this key that failed before.
    pub(crate) fn failed_before(&self, message: &Envelope) -> Option<Box<str>> {
        let failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failed.get(message.key.as_deref()?).cloned()
    }
}

/// A batch: what the driver sees, and beside it what core knows of each message.
#[derive(Default)]
pub(crate) struct PublishBatch {
    pub(crate) prepared: Vec<PreparedMessage>,
    pub(crate) items: Vec<PendingPublish>,
}

impl PublishBatch {
    pub(crate) fn of(prepared: PreparedMessage, item: PendingPublish) -> Self {
        Self { prepared: vec![prepared], items: vec![item] }
    }

    pub(crate) fn push(&mut self, prepared: PreparedMessage, item: PendingPublish) {
        self.prepared.push(prepared);
        self.items.push(item);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

type BacklogEntry = (PreparedMessage, PendingPublish);

/// Waiting messages. On an ordered address a key has one message under way at a time, whatever the batch: a failure in
/// the middle of a batch could not be mended otherwise without reordering the key.
pub(crate) enum PublishBacklog {
    Any(VecDeque<BacklogEntry>),
    PerKey {
        /// Present while the key has a message waiting or under way.
        lanes: HashMap<Box<str>, VecDeque<BacklogEntry>>,
        /// Keys with a message waiting and none under way.
        ready: VecDeque<Box<str>>,
    },
}

impl PublishBacklog {
    pub(crate) fn new(ordered: bool) -> Self {
        if ordered {
            Self::PerKey { lanes: HashMap::new(), ready: VecDeque::new() }
        } else {
            Self::Any(VecDeque::new())
        }
    }

    /// Whether a message that comes now need not wait behind another.
    pub(crate) fn is_free(&self) -> bool {
        matches!(self, Self::Any(all) if all.is_empty())
    }

    pub(crate) fn push(&mut self, prepared: PreparedMessage, item: PendingPublish) {
        match self {
            Self::Any(all) => all.push_back((prepared, item)),
            Self::PerKey { lanes, ready } => {
                let key = key_of(&prepared);
                match lanes.get_mut(key) {
                    Some(lane) => lane.push_back((prepared, item)),
                    None => {
                        let key: Box<str> = key.into();
                        ready.push_back(key.clone());
                        lanes.insert(key, VecDeque::from([(prepared, item)]));
                    }
                }
            }
        }
    }

    /// The next batch, by count and bytes. A message larger than a batch goes alone. Empty if nothing can go now.
    pub(crate) fn take(&mut self, limits: &Batching) -> PublishBatch {
        let mut batch = PublishBatch::default();
        let mut bytes = 0usize;
        while batch.items.len() < limits.entries {
            let Some(size) = self.next_size() else { break };
            if !batch.is_empty() && bytes.saturating_add(size) > limits.bytes {
                break;
            }
            bytes = bytes.saturating_add(size);
            let Some((prepared, item)) = self.pop() else { break };
            batch.push(prepared, item);
        }
        batch
    }

    /// A message of this key is no longer under way.
    pub(crate) fn free(&mut self, prepared: &PreparedMessage) {
        if let Self::PerKey { lanes, ready } = self {
            let key = key_of(prepared);
            match lanes.get(key) {
                Some(lane) if lane.is_empty() => {
                    lanes.remove(key);
                }
                Some(_) => ready.push_back(key.into()),
                None => {}
            }
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.next_size().is_some()
    }

    fn next_size(&self) -> Option<usize> {
        let (prepared, _) = match self {
            Self::Any(all) => all.front()?,
            Self::PerKey { lanes, ready } => lanes.get(ready.front()?)?.front()?,
        };
        Some(prepared.size)
    }

    fn pop(&mut self) -> Option<BacklogEntry> {
        match self {
            Self::Any(all) => all.pop_front(),
            Self::PerKey { lanes, ready } => lanes.get_mut(&ready.pop_front()?)?.pop_front(),
        }
    }
}

fn key_of(prepared: &PreparedMessage) -> &str {
    prepared.message.envelope.key.as_deref().unwrap_or("")
}
