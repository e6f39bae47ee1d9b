//! The messages of a store that no consumer holds: ready, delayed, or waiting for an earlier message of their key.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BinaryHeap, HashMap, VecDeque},
};

use tokio::time::Instant;

use super::stored_message::StoredMessage;

/// Messages in the order in which they are handed out.
///
/// On an ordered source at most one message of a key is outside its lane: ready, delayed by a retry, or handed out. The
/// others wait in the lane until it is gone, so a key's messages are handed out one after the other.
pub(super) struct WaitingMessages {
    next_place: u64,
    fresh: VecDeque<StoredMessage>,
    /// Messages that are ready again, or whose turn in their lane has come, by place. Places are in the order of
    /// publishing, so these may be before or between the fresh ones.
    returned: BTreeMap<u64, StoredMessage>,
    delayed: BinaryHeap<DelayedMessage>,
    /// On an ordered source: by key, what waits behind the key's first message. A lane exists while that one does.
    lanes: Option<HashMap<Box<str>, VecDeque<StoredMessage>>>,
    /// How many messages all lanes hold.
    in_lanes: usize,
}

struct DelayedMessage {
    due: Instant,
    /// True for a retry, which keeps its place and makes its key wait. A delayed publish gets its place when it is due.
    placed: bool,
    message: StoredMessage,
    /// Orders messages that are due at once.
    turn: u64,
}

impl WaitingMessages {
    pub(super) fn new(ordered: bool) -> Self {
        Self {
            next_place: 0,
            fresh: VecDeque::new(),
            returned: BTreeMap::new(),
            delayed: BinaryHeap::new(),
            lanes: ordered.then(HashMap::new),
            in_lanes: 0,
        }
    }

    pub(super) fn ordered(&self) -> bool {
        self.lanes.is_some()
    }

    fn new_place(&mut self) -> u64 {
        self.next_place += 1;
        self.next_place
    }

    /// Adds a message at the end.
    pub(super) fn publish(&mut self, mut message: StoredMessage) {
        message.place = self.new_place();
        if let Some(lanes) = &mut self.lanes {
            match lanes.get_mut(message.key()) {
                Some(lane) => {
                    lane.push_back(message);
                    self.in_lanes += 1;
                    return;
                }
                None => lanes.insert(message.key().into(), VecDeque::new()),
            };
        }
        self.fresh.push_back(message);
    }

    /// Adds a message at the end once it is due.
    pub(super) fn publish_at(&mut self, due: Instant, message: StoredMessage) {
        let turn = self.new_place();
        self.delayed.push(DelayedMessage { due, placed: false, message, turn });
    }

    /// Puts a message that was handed out back in its place.
    pub(super) fn put_back(&mut self, message: StoredMessage) {
        self.returned.insert(message.place, message);
    }

    /// Puts a message that was handed out back in its place once it is due. On an ordered source its key waits until
    /// then.
    pub(super) fn put_back_at(&mut self, due: Instant, message: StoredMessage) {
        let turn = message.place;
        self.delayed.push(DelayedMessage { due, placed: true, message, turn });
    }

    /// Lets the next message of a key go on, after this one was handed out and has left the store.
    pub(super) fn release_key_of(&mut self, message: &StoredMessage) {
        let Some(lanes) = &mut self.lanes else { return };
        let key = message.key();
        match lanes.get_mut(key).map(VecDeque::pop_front) {
            Some(Some(next)) => {
                self.in_lanes -= 1;
                self.returned.insert(next.place, next);
            }
            Some(None) => drop(lanes.remove(key)),
            None => {}
        }
    }

    /// Takes the next message to hand out.
    pub(super) fn take(&mut self) -> Option<StoredMessage> {
        if !self.returned.is_empty() {
            let first = self.fresh.front().map_or(u64::MAX, |m| m.place);
            if self.returned.first_key_value().is_some_and(|(place, _)| *place < first) {
                return self.returned.pop_first().map(|(_, message)| message);
            }
        }
        self.fresh.pop_front()
    }

    /// Makes the delayed messages ready that are due.
    pub(super) fn end_delays(&mut self, now: Instant) {
        while self.delayed.peek().is_some_and(|d| d.due <= now) {
            match self.delayed.pop() {
                Some(DelayedMessage { placed: true, message, .. }) => self.put_back(message),
                Some(DelayedMessage { message, .. }) => self.publish(message),
                None => return,
            }
        }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.delayed.peek().map(|d| d.due)
    }

    /// How many messages may be handed out now.
    pub(super) fn ready(&self) -> usize {
        self.fresh.len() + self.returned.len()
    }

    /// How many messages are ready or wait for their key. Delayed ones do not count.
    pub(super) fn undelayed(&self) -> usize {
        self.ready() + self.in_lanes
    }

    pub(super) fn delayed(&self) -> usize {
        self.delayed.len()
    }

    /// Drops all messages but the delayed ones, and returns how many.
    pub(super) fn purge(&mut self) -> usize {
        let count = self.undelayed();
        if let Some(lanes) = &mut self.lanes {
            // The first messages of these keys go, so their lanes do too. The lanes of keys whose first message is
            // handed out or delayed stay, empty.
            for head in self.fresh.iter().chain(self.returned.values()) {
                lanes.remove(head.key());
            }
            lanes.values_mut().for_each(VecDeque::clear);
        }
        self.fresh.clear();
        self.returned.clear();
        self.in_lanes = 0;
        count
    }

    /// Drops all messages.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.ordered());
    }
}

/// The greatest of a heap is the message that is due first, and among those due at once the one that came first.
impl Ord for DelayedMessage {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.due, other.turn).cmp(&(self.due, self.turn))
    }
}

impl PartialOrd for DelayedMessage {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for DelayedMessage {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for DelayedMessage {}
