//! How a message enters a store, becomes available, expires and leaves.

use std::sync::Arc;

use super::partitions::partition_of;
use super::{DueRoute, Effects, MessageLock, StoreState, StoredMessage, TimedEvent};
use crate::broker::dispatch::{DeadLetter, MessageMove};
use crate::message::Message;

/// A message that is to be stored.
pub(crate) struct NewMessage {
    pub(crate) message: Arc<Message>,
    pub(crate) size: u64,
    pub(crate) scheduled_for: Option<i64>,
    /// `None` where this is the first entity the message comes to.
    pub(crate) enqueued_sequence_number: Option<i64>,
    pub(crate) dead_letter_source: Option<Arc<str>>,
    pub(crate) hops: u8,
}

impl NewMessage {
    pub(crate) fn new(message: Arc<Message>) -> Self {
        let size = message.encoded_size.max(message.body.len()) as u64;
        Self { message, size, scheduled_for: None, enqueued_sequence_number: None, dead_letter_source: None, hops: 0 }
    }

    /// A topic's scheduled message that is due. It reaches the subscriptions as if it had been sent now.
    pub(crate) fn routed(entry: StoredMessage) -> Self {
        Self { hops: entry.hops, ..Self::forwarded(entry) }
    }

    /// The same message on to the next entity.
    pub(crate) fn forwarded(entry: StoredMessage) -> Self {
        Self {
            message: entry.message,
            size: entry.size,
            scheduled_for: None,
            enqueued_sequence_number: Some(entry.enqueued_sequence_number),
            dead_letter_source: entry.dead_letter_source,
            hops: entry.hops.saturating_add(1),
        }
    }
}

impl StoreState {
    /// Stores a message under a new sequence number, which is returned.
    pub(crate) fn insert(&mut self, incoming: NewMessage, now: i64, changes: &mut Effects) -> i64 {
        let number = self.number(&incoming.message);
        let scheduled_for = incoming.scheduled_for.filter(|at| *at > now);
        let session = self.session_of(&incoming.message);
        let entry = StoredMessage {
            size: incoming.size,
            session,
            enqueued_sequence_number: incoming.enqueued_sequence_number.unwrap_or(number),
            enqueued_elsewhere: incoming.enqueued_sequence_number.is_some(),
            enqueued_at: now,
            expires_at: None,
            delivery_count: 0,
            scheduled_for,
            deferred: false,
            lock: None,
            dead_letter_source: incoming.dead_letter_source,
            hops: incoming.hops,
            message: incoming.message,
        };
        self.store(number, entry);
        match scheduled_for {
            Some(at) => {
                self.tally.scheduled += 1;
                self.due.insert((at, TimedEvent::Activate(number)));
            }
            None => self.enqueue(number, now, changes),
        }
        number
    }

    /// Stores a dead letter, which keeps its number and its delivery count and does not expire.
    pub(crate) fn insert_dead(&mut self, number: i64, mut entry: StoredMessage, now: i64, changes: &mut Effects) {
        (entry.session, entry.expires_at, entry.deferred, entry.lock) = (None, None, false, None);
        self.store(number, entry);
        self.make_ready(number, now, changes);
    }

    /// Stores a message on which a filter failed, and dead-letters it at once.
    pub(crate) fn insert_failed(&mut self, incoming: NewMessage, why: DeadLetter, now: i64, changes: &mut Effects) {
        // It is stored as scheduled, so that no receiver gets it before it is moved.
        let number = self.insert(NewMessage { scheduled_for: Some(i64::MAX), ..incoming }, now, changes);
        self.bury(number, why, changes);
    }

    /// Enqueues a scheduled message that is due, as if it had been sent now, under a new sequence number.
    pub(super) fn activate(&mut self, number: i64, now: i64, changes: &mut Effects) {
        let Some(mut entry) = self.remove(number) else { return };
        let new = self.number_in(partition_of(number));
        entry.scheduled_for = None;
        if entry.enqueued_sequence_number == number {
            entry.enqueued_sequence_number = new;
        }
        entry.enqueued_at = now;
        self.store(new, entry);
        self.enqueue(new, now, changes);
    }

    /// Starts the time to live and makes the message available.
    fn enqueue(&mut self, number: i64, now: i64, changes: &mut Effects) {
        let default = self.policy.default_ttl_ms;
        let Some(entry) = self.entries.get_mut(&number) else { return };
        let own = entry.message.header.ttl_ms.map(i64::from);
        // A time to live above the entity's default is reduced to it, as on the service.
        let ttl = own.into_iter().chain(default).min();
        if let Some(at) = ttl.and_then(|ttl| now.checked_add(ttl))
            && self.policy.flow == DueRoute::Keep
        {
            entry.expires_at = Some(at);
            self.due.insert((at, TimedEvent::Expire(number)));
        }
        self.make_ready(number, now, changes);
    }

    /// Makes a message available to receivers, or sends it on when the entity forwards or routes.
    pub(super) fn make_ready(&mut self, number: i64, now: i64, changes: &mut Effects) {
        let Some(entry) = self.entries.get(&number) else { return };
        if entry.expires_at.is_some_and(|at| at <= now) {
            return self.drop_expired(number, changes);
        }
        if self.policy.flow != DueRoute::Keep {
            return self.move_on(number, changes);
        }
        match entry.session.clone() {
            Some(session) => self.make_ready_in(&session, number, changes),
            None => {
                self.ready.insert(number);
                self.wake(None, changes);
            }
        }
    }

    pub(super) fn move_all_ready(&mut self, changes: &mut Effects) {
        let ready: Vec<i64> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.lock.is_none() && !entry.deferred && entry.scheduled_for.is_none())
            .map(|(number, _)| *number)
            .collect();
        for number in ready {
            self.move_on(number, changes);
        }
    }

    fn move_on(&mut self, number: i64, changes: &mut Effects) {
        let route = self.policy.flow == DueRoute::Route;
        if let Some(entry) = self.remove(number) {
            changes.moves.push(if route { MessageMove::Route(entry) } else { MessageMove::Forward { number, entry } });
        }
    }

    /// Expires a message. A locked or deferred message stays; its expiry is checked again when it would become
    /// available.
    pub(super) fn expire(&mut self, number: i64, changes: &mut Effects) {
        if self.entries.get(&number).is_some_and(|entry| entry.lock.is_none() && !entry.deferred) {
            self.drop_expired(number, changes);
        }
    }

    pub(super) fn drop_expired(&mut self, number: i64, changes: &mut Effects) {
        if self.policy.dead_letter_expired {
            self.bury(number, DeadLetter::expired(), changes);
        } else {
            self.remove(number);
        }
    }

    pub(super) fn bury(&mut self, number: i64, why: DeadLetter, changes: &mut Effects) {
        if let Some(entry) = self.remove(number) {
            changes.moves.push(MessageMove::DeadLetter { number, entry, why });
        }
    }

    /// Counts a failed delivery. The message becomes available again unless it reached the maximum delivery count.
    pub(super) fn count_failure(&mut self, number: i64, now: i64, changes: &mut Effects) {
        let Some(entry) = self.entries.get_mut(&number) else { return };
        // A dead letter keeps the delivery count with which it was dead-lettered.
        if self.policy.max_delivery_count.is_some() {
            entry.delivery_count = entry.delivery_count.saturating_add(1);
        }
        match self.policy.max_delivery_count {
            Some(max) if entry.delivery_count >= max => {
                self.bury(number, DeadLetter::delivered_too_often(max), changes);
            }
            _ if entry.deferred => {}
            _ => self.make_ready(number, now, changes),
        }
    }

    pub(super) fn lose_lock(&mut self, number: i64, now: i64, changes: &mut Effects) {
        if self.unlock(number).is_some() {
            self.count_failure(number, now, changes);
        }
    }

    pub(super) fn unlock(&mut self, number: i64) -> Option<MessageLock> {
        let entry = self.entries.get_mut(&number)?;
        let lock = entry.lock.take()?;
        self.locks.remove(&lock.token);
        if let Some(until) = lock.until {
            self.due.remove(&(until, TimedEvent::Unlock(number)));
        }
        if let Some(session) = entry.session.as_ref().and_then(|id| self.sessions.get_mut(id)) {
            session.locked.remove(&number);
        }
        Some(lock)
    }

    fn store(&mut self, number: i64, entry: StoredMessage) {
        self.tally.bytes += entry.size;
        if let Some(id) = &entry.session {
            self.sessions.entry(id.clone()).or_default().all.insert(number);
        }
        self.entries.insert(number, entry);
    }

    /// Removes a message in any state.
    pub(super) fn remove(&mut self, number: i64) -> Option<StoredMessage> {
        self.unlock(number);
        let entry = self.entries.remove(&number)?;
        self.tally.bytes -= entry.size;
        if let Some(at) = entry.scheduled_for {
            self.tally.scheduled -= 1;
            self.due.remove(&(at, TimedEvent::Activate(number)));
        }
        if let Some(at) = entry.expires_at {
            self.due.remove(&(at, TimedEvent::Expire(number)));
        }
        match &entry.session {
            Some(id) => self.forget_in(id, number),
            None => {
                self.ready.remove(&number);
            }
        }
        Some(entry)
    }

    fn session_of(&self, message: &Message) -> Option<Arc<str>> {
        if !self.policy.sessions {
            return None;
        }
        message.properties.group_id.as_deref().map(|id| match self.sessions.get_key_value(id) {
            Some((known, _)) => known.clone(),
            None => Arc::from(id),
        })
    }
}
