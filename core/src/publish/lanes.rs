//! The messages that wait to be published to one address, and the rule for which of them go into the next batch. When
//! that batch starts is the rule of `batching/`.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use parking_lot::Mutex;

use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use crate::{
    Envelope, Receipt, Result,
    driver::{Batching, PreparedMessage},
    runtime::oneshot::ReplySender,
};

/// What core knows of one message that is not published yet.
pub(crate) struct PendingPublish {
    pub(crate) deadline: Instant,
    /// An earlier attempt may have stored the message.
    pub(crate) ambiguous: bool,
    /// The failed keys of its `publish_all` call, if the address is ordered.
    pub(crate) failed_keys: Option<Arc<FailedKeys>>,
    pub(crate) reply: ReplySender<Result<Receipt>>,
    /// Its permits for the bytes that may wait. They are given back when the publish is answered.
    pub(crate) _permits: OwnedSemaphorePermit,
}

/// The keys of one `publish_all` on an ordered address that have failed: later messages of such a key are not sent.
#[derive(Default)]
pub(crate) struct FailedKeys(Mutex<HashMap<Box<str>, Box<str>>>);

impl FailedKeys {
    pub(crate) fn record(&self, message: &Envelope) {
        if let Some(key) = &message.key {
            let mut failed = self.0.lock();
            failed.entry(key.clone()).or_insert_with(|| message.id.clone());
        }
    }

    /// The id of the message of this key that failed before.
    pub(crate) fn failed_before(&self, message: &Envelope) -> Option<Box<str>> {
        let failed = self.0.lock();
        failed.get(message.key.as_deref()?).cloned()
    }
}

/// One batch, in two lists of the same order: what the driver gets, and what core knows of each message.
#[derive(Default)]
pub(crate) struct PublishBatch {
    pub(crate) prepared: Vec<PreparedMessage>,
    pub(crate) pending: Vec<PendingPublish>,
}

impl PublishBatch {
    pub(crate) fn of(prepared: PreparedMessage, pending: PendingPublish) -> Self {
        Self { prepared: vec![prepared], pending: vec![pending] }
    }

    pub(crate) fn push(&mut self, prepared: PreparedMessage, pending: PendingPublish) {
        self.prepared.push(prepared);
        self.pending.push(pending);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }
}

type LaneEntry = (PreparedMessage, PendingPublish);

/// The messages that wait: in one lane, or in a lane for each key of an ordered address.
///
/// On an ordered address a key has one message under way at a time, in whatever batch. With two of them in a batch, a
/// failure of the first could not be retried without reordering the key.
pub(crate) enum PublishLanes {
    Unordered(VecDeque<LaneEntry>),
    PerKey {
        /// A lane is present while its key has a message waiting or under way.
        lanes: HashMap<Box<str>, VecDeque<LaneEntry>>,
        /// The keys that have a message waiting and none under way.
        ready: VecDeque<Box<str>>,
    },
}

impl PublishLanes {
    pub(crate) fn new(ordered: bool) -> Self {
        if ordered {
            Self::PerKey { lanes: HashMap::new(), ready: VecDeque::new() }
        } else {
            Self::Unordered(VecDeque::new())
        }
    }

    /// Whether a message that comes now may be sent without being queued here.
    pub(crate) fn can_be_bypassed(&self) -> bool {
        matches!(self, Self::Unordered(all) if all.is_empty())
    }

    pub(crate) fn push(&mut self, prepared: PreparedMessage, pending: PendingPublish) {
        match self {
            Self::Unordered(all) => all.push_back((prepared, pending)),
            Self::PerKey { lanes, ready } => {
                let key = key_of(&prepared);
                match lanes.get_mut(key) {
                    Some(lane) => lane.push_back((prepared, pending)),
                    None => {
                        let key: Box<str> = key.into();
                        ready.push_back(key.clone());
                        lanes.insert(key, VecDeque::from([(prepared, pending)]));
                    }
                }
            }
        }
    }

    /// Takes the messages of the next batch, in order, as many as `limits` allows by count and bytes. A message larger
    /// than a batch goes alone. The batch is empty if no message may go now.
    pub(crate) fn take_batch(&mut self, limits: &Batching) -> PublishBatch {
        let mut batch = PublishBatch::default();
        let mut bytes = 0usize;
        while batch.pending.len() < limits.entries {
            let Some(size) = self.next_size() else { break };
            if !batch.is_empty() && bytes.saturating_add(size) > limits.bytes {
                break;
            }
            bytes = bytes.saturating_add(size);
            let Some((prepared, pending)) = self.pop() else { break };
            batch.push(prepared, pending);
        }
        batch
    }

    /// The message of this key is no longer under way: the next one of the key may go.
    pub(crate) fn free_key(&mut self, prepared: &PreparedMessage) {
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

    /// Whether a message may go now.
    pub(crate) fn is_ready(&self) -> bool {
        self.next_size().is_some()
    }

    fn next_size(&self) -> Option<usize> {
        let (prepared, _) = match self {
            Self::Unordered(all) => all.front()?,
            Self::PerKey { lanes, ready } => lanes.get(ready.front()?)?.front()?,
        };
        Some(prepared.size)
    }

    fn pop(&mut self) -> Option<LaneEntry> {
        match self {
            Self::Unordered(all) => all.pop_front(),
            Self::PerKey { lanes, ready } => lanes.get_mut(&ready.pop_front()?)?.pop_front(),
        }
    }
}

fn key_of(prepared: &PreparedMessage) -> &str {
    prepared.message.envelope.key.as_deref().unwrap_or("")
}
