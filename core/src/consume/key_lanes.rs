//! Deliveries between the receiver and the application, one key at a time where the client keeps the order.

use std::collections::{HashMap, VecDeque};

use crate::consume::unsettled::UnsettledMessage;

/// Received and not handed out.
#[derive(Default)]
pub(crate) struct KeyLanes {
    ready: VecDeque<UnsettledMessage>,
    /// With `KeyHolder::Client`: keys (or groups of the broker's) with an unsettled message, and their next ones.
    lanes: Option<HashMap<Box<str>, VecDeque<UnsettledMessage>>>,
}

impl KeyLanes {
    pub(crate) fn new(keeps_keys: bool) -> Self {
        Self { ready: VecDeque::new(), lanes: keeps_keys.then(HashMap::new) }
    }

    /// Takes in what was received.
    pub(crate) fn push(&mut self, parts: UnsettledMessage) {
        if let Some(lanes) = &mut self.lanes {
            let key = parts.lane();
            if let Some(lane) = lanes.get_mut(key) {
                lane.push_back(parts);
                return;
            }
            lanes.insert(key.into(), VecDeque::new());
        }
        self.ready.push_back(parts);
    }

    /// Hands out again what was released in place; its key stays taken.
    pub(crate) fn push_again(&mut self, parts: UnsettledMessage) {
        self.ready.push_front(parts);
    }

    pub(crate) fn pop(&mut self) -> Option<UnsettledMessage> {
        self.ready.pop_front()
    }

    /// How many can be handed out.
    pub(crate) fn len(&self) -> usize {
        self.ready.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }

    /// The message of this key was settled: its next one can go. True if there is one.
    pub(crate) fn free(&mut self, key: &str) -> bool {
        let Some(lanes) = &mut self.lanes else { return false };
        match lanes.get_mut(key).and_then(VecDeque::pop_front) {
            Some(next) => {
                self.ready.push_back(next);
                true
            }
            None => {
                lanes.remove(key);
                false
            }
        }
    }

    /// The message of this key was lost: takes out those that wait for it.
    pub(crate) fn discard(&mut self, key: &str) -> VecDeque<UnsettledMessage> {
        let lane = self.lanes.as_mut().and_then(|lanes| lanes.remove(key));
        lane.unwrap_or_default()
    }

    /// The keys that hold messages back, for the metric of a stalled source.
    pub(crate) fn blocked_keys(&self) -> Vec<&str> {
        let lanes = self.lanes.iter().flatten();
        lanes.filter(|(_, lane)| !lane.is_empty()).map(|(key, _)| &**key).collect()
    }

    /// Everything, in order of receipt per key.
    pub(crate) fn drain(&mut self) -> Vec<UnsettledMessage> {
        let mut all: Vec<UnsettledMessage> = self.ready.drain(..).collect();
        if let Some(lanes) = &mut self.lanes {
            all.extend(lanes.drain().flat_map(|(_, lane)| lane));
        }
        all
    }
}
