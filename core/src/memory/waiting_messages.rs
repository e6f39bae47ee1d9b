//! The messages of a source that no consumer holds.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BinaryHeap, HashMap, VecDeque},
};

use tokio::time::Instant;

use super::message::Message;

/// Ready, delayed and held-back messages. On an ordered source at most one message of a key is outside its lane.
pub(super) struct Backlog {
    next_place: u64,
    fresh: VecDeque<Message>,
    /// Given back, or let go on by the one before: handed out by place, which may be before or between the fresh ones.
    returned: BTreeMap<u64, Message>,
    delayed: BinaryHeap<Delayed>,
    /// On an ordered source, by key: what waits behind the key's first message. A lane exists while that one does.
    lanes: Option<HashMap<Box<str>, VecDeque<Message>>>,
    in_lanes: usize,
}

struct Delayed {
    due: Instant,
    /// Whether it has its place already, so that its key waits for it. A delayed publish gets its place when it is due.
    placed: bool,
    message: Message,
    turn: u64,
}

impl Backlog {
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

    fn place(&mut self) -> u64 {
        self.next_place += 1;
        self.next_place
    }

    /// Adds a message at the end.
    pub(super) fn publish(&mut self, mut message: Message) {
        message.place = self.place();
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
    pub(super) fn publish_at(&mut self, due: Instant, message: Message) {
        let turn = self.place();
        self.delayed.push(Delayed { due, placed: false, message, turn });
    }

    /// Puts a message that was handed out back in its place.
    pub(super) fn put_back(&mut self, message: Message) {
        self.returned.insert(message.place, message);
    }

    /// The same, once it is due. On an ordered source its key waits.
    pub(super) fn put_back_at(&mut self, due: Instant, message: Message) {
        let turn = message.place;
        self.delayed.push(Delayed { due, placed: true, message, turn });
    }

    /// A message that was handed out is gone: the next one of its key may go.
    pub(super) fn gone(&mut self, message: &Message) {
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

    /// The next message to hand out.
    pub(super) fn take(&mut self) -> Option<Message> {
        if !self.returned.is_empty() {
            let first = self.fresh.front().map_or(u64::MAX, |m| m.place);
            if self.returned.first_key_value().is_some_and(|(place, _)| *place < first) {
                return self.returned.pop_first().map(|(_, message)| message);
            }
        }
        self.fresh.pop_front()
    }

    /// Makes ready what is due.
    pub(super) fn mature(&mut self, now: Instant) {
        while self.delayed.peek().is_some_and(|d| d.due <= now) {
            match self.delayed.pop() {
                Some(Delayed { placed: true, message, .. }) => self.put_back(message),
                Some(Delayed { message, .. }) => self.publish(message),
                None => return,
            }
        }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.delayed.peek().map(|d| d.due)
    }

    /// How many messages could be handed out now.
    pub(super) fn ready(&self) -> usize {
        self.fresh.len() + self.returned.len()
    }

    /// How many wait to be handed out, those that wait for their key included.
    pub(super) fn waiting(&self) -> usize {
        self.ready() + self.in_lanes
    }

    pub(super) fn delayed(&self) -> usize {
        self.delayed.len()
    }

    /// Drops all that wait to be handed out, and tells how many. Delayed ones stay.
    pub(super) fn purge(&mut self) -> usize {
        let count = self.waiting();
        if let Some(lanes) = &mut self.lanes {
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

    /// Drops everything.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.ordered());
    }
}

/// The heap's greatest is the one due first; among those due at once, the one that came first.
impl Ord for Delayed {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.due, other.turn).cmp(&(self.due, self.turn))
    }
}

impl PartialOrd for Delayed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Delayed {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Delayed {}
