//! The buffer between the receiver and the application. Where the client keeps the order, it hands out one message of a
//! key at a time.

use std::collections::{HashMap, VecDeque};

use crate::consume::unsettled::UnsettledMessage;

/// The messages that are received and not handed out.
#[derive(Default)]
pub(crate) struct KeyLanes {
    ready: VecDeque<UnsettledMessage>,
    /// With `KeyHolder::Client`: a lane for each key (or group of the broker) that has an unsettled message. It holds
    /// the messages that follow that one. `None` on other sources.
    lanes: Option<HashMap<Box<str>, VecDeque<UnsettledMessage>>>,
}

impl KeyLanes {
    pub(crate) fn new(keeps_keys: bool) -> Self {
        Self { ready: VecDeque::new(), lanes: keeps_keys.then(HashMap::new) }
    }

    /// Adds a message that was received.
    pub(crate) fn push(&mut self, message: UnsettledMessage) {
        if let Some(lanes) = &mut self.lanes {
            let key = message.lane();
            if let Some(lane) = lanes.get_mut(key) {
                lane.push_back(message);
                return;
            }
            lanes.insert(key.into(), VecDeque::new());
        }
        self.ready.push_back(message);
    }

    /// Adds a message that was released in place, ahead of all others. Its key stays blocked.
    pub(crate) fn push_front(&mut self, message: UnsettledMessage) {
        self.ready.push_front(message);
    }

    pub(crate) fn pop(&mut self) -> Option<UnsettledMessage> {
        self.ready.pop_front()
    }

    /// How many messages can be handed out now.
    pub(crate) fn len(&self) -> usize {
        self.ready.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }

    /// The message of this key was settled, so the key's next one can be handed out.
    pub(crate) fn free_key(&mut self, key: &str) {
        let Some(lanes) = &mut self.lanes else { return };
        match lanes.get_mut(key).and_then(VecDeque::pop_front) {
            Some(next) => self.ready.push_back(next),
            None => drop(lanes.remove(key)),
        }
    }

    /// The message of this key was lost: takes out the messages that wait behind it.
    pub(crate) fn discard_key(&mut self, key: &str) -> VecDeque<UnsettledMessage> {
        let lane = self.lanes.as_mut().and_then(|lanes| lanes.remove(key));
        lane.unwrap_or_default()
    }

    /// The keys that hold messages back, for the report of a stalled source.
    pub(crate) fn blocked_keys(&self) -> Vec<&str> {
        let lanes = self.lanes.iter().flatten();
        lanes.filter(|(_, lane)| !lane.is_empty()).map(|(key, _)| &**key).collect()
    }

    /// Takes out all messages, those of a key in the order of their receipt.
    pub(crate) fn drain(&mut self) -> Vec<UnsettledMessage> {
        let mut all: Vec<UnsettledMessage> = self.ready.drain(..).collect();
        if let Some(lanes) = &mut self.lanes {
            all.extend(lanes.drain().flat_map(|(_, lane)| lane));
        }
        all
    }
}
