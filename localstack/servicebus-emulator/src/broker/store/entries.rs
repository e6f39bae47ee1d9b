//! How messages come into a store, become available, expire and leave.

use std::sync::Arc;

use super::dispatch::{DeadLetter, Move};
use super::partitions::partition_of;
use super::store::{Changes, Due, Entry, Flow, Lock, State};
use crate::message::Message;

/// A message on its way into a store.
pub(super) struct Incoming {
    pub(super) message: Arc<Message>,
    pub(super) size: u64,
    pub(super) scheduled_for: Option<i64>,
    /// `None` where this is the first entity the message comes to.
    pub(super) enqueued_sequence_number: Option<i64>,
    pub(super) dead_letter_source: Option<Arc<str>>,
    pub(super) hops: u8,
}

impl Incoming {
    pub(super) fn new(message: Arc<Message>) -> Self {
        let size = message.encoded_size.max(message.body.len()) as u64;
        Self { message, size, scheduled_for: None, enqueued_sequence_number: None, dead_letter_source: None, hops: 0 }
    }

    /// A scheduled message of a topic that is due: it comes to the subscriptions as if it had been sent now.
    pub(super) fn routed(entry: Entry) -> Self {
        Self { hops: entry.hops, ..Self::forwarded(entry) }
    }

    /// The same message on to the next entity.
    pub(super) fn forwarded(entry: Entry) -> Self {
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

impl State {
    /// Stores a message under a new sequence number, which is returned.
    pub(super) fn insert(&mut self, incoming: Incoming, now: i64, changes: &mut Changes) -> i64 {
        let number = self.number(&incoming.message);
        let scheduled_for = incoming.scheduled_for.filter(|at| *at > now);
        let session = self.session_of(&incoming.message);
        let entry = Entry {
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
                self.due.insert((at, Due::Activate(number)));
            }
            None => self.enqueue(number, now, changes),
        }
        number
    }

    /// Stores a dead letter, which keeps its number and its delivery count and does not expire.
    pub(super) fn insert_dead(&mut self, number: i64, mut entry: Entry, now: i64, changes: &mut Changes) {
        (entry.session, entry.expires_at, entry.deferred, entry.lock) = (None, None, false, None);
        self.store(number, entry);
        self.make_ready(number, now, changes);
    }

    /// A message that no rule could be asked about becomes a dead letter at once.
    pub(super) fn insert_failed(&mut self, incoming: Incoming, why: DeadLetter, now: i64, changes: &mut Changes) {
        // Scheduled for ever, so that nobody sees it before it is moved.
        let number = self.insert(Incoming { scheduled_for: Some(i64::MAX), ..incoming }, now, changes);
        self.bury(number, why, changes);
    }

    /// The time of a scheduled message has come: it is appended as if it had been sent now, under a new number.
    pub(super) fn activate(&mut self, number: i64, now: i64, changes: &mut Changes) {
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

    /// Counts the time to live from now and lets receivers have it.
    fn enqueue(&mut self, number: i64, now: i64, changes: &mut Changes) {
        let default = self.policy.default_ttl_ms;
        let Some(entry) = self.entries.get_mut(&number) else { return };
        let own = entry.message.header.ttl_ms.map(i64::from);
        // The service cuts what is above the entity's default down to it.
        let ttl = own.into_iter().chain(default).min();
        if let Some(at) = ttl.and_then(|ttl| now.checked_add(ttl))
            && self.policy.flow == Flow::Keep
        {
            entry.expires_at = Some(at);
            self.due.insert((at, Due::Expire(number)));
        }
        self.make_ready(number, now, changes);
    }

    /// Available to receivers, or on its way to where this store sends everything.
    pub(super) fn make_ready(&mut self, number: i64, now: i64, changes: &mut Changes) {
        let Some(entry) = self.entries.get(&number) else { return };
        if entry.expires_at.is_some_and(|at| at <= now) {
            return self.drop_expired(number, changes);
        }
        if self.policy.flow != Flow::Keep {
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

    pub(super) fn move_all_ready(&mut self, changes: &mut Changes) {
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

    fn move_on(&mut self, number: i64, changes: &mut Changes) {
        let route = self.policy.flow == Flow::Route;
        if let Some(entry) = self.remove(number) {
            changes.moves.push(if route { Move::Route(entry) } else { Move::Forward { number, entry } });
        }
    }

    /// A message that is locked or set aside stays; when it would become available it is looked at again.
    pub(super) fn expire(&mut self, number: i64, changes: &mut Changes) {
        if self.entries.get(&number).is_some_and(|entry| entry.lock.is_none() && !entry.deferred) {
            self.drop_expired(number, changes);
        }
    }

    pub(super) fn drop_expired(&mut self, number: i64, changes: &mut Changes) {
        if self.policy.dead_letter_expired {
            self.bury(number, DeadLetter::expired(), changes);
        } else {
            self.remove(number);
        }
    }

    pub(super) fn bury(&mut self, number: i64, why: DeadLetter, changes: &mut Changes) {
        if let Some(entry) = self.remove(number) {
            changes.moves.push(Move::DeadLetter { number, entry, why });
        }
    }

    /// A delivery has failed: the message comes back, unless that was its last.
    pub(super) fn count_failure(&mut self, number: i64, now: i64, changes: &mut Changes) {
        let Some(entry) = self.entries.get_mut(&number) else { return };
        // A dead letter's count stays what it died with.
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

    pub(super) fn lose_lock(&mut self, number: i64, now: i64, changes: &mut Changes) {
        if self.unlock(number).is_some() {
            self.count_failure(number, now, changes);
        }
    }

    pub(super) fn unlock(&mut self, number: i64) -> Option<Lock> {
        let entry = self.entries.get_mut(&number)?;
        let lock = entry.lock.take()?;
        self.locks.remove(&lock.token);
        if let Some(until) = lock.until {
            self.due.remove(&(until, Due::Unlock(number)));
        }
        if let Some(session) = entry.session.as_ref().and_then(|id| self.sessions.get_mut(id)) {
            session.locked.remove(&number);
        }
        Some(lock)
    }

    fn store(&mut self, number: i64, entry: Entry) {
        self.tally.bytes += entry.size;
        if let Some(id) = &entry.session {
            self.sessions.entry(id.clone()).or_default().all.insert(number);
        }
        self.entries.insert(number, entry);
    }

    /// Takes a message out, whatever state it is in.
    pub(super) fn remove(&mut self, number: i64) -> Option<Entry> {
        self.unlock(number);
        let entry = self.entries.remove(&number)?;
        self.tally.bytes -= entry.size;
        if let Some(at) = entry.scheduled_for {
            self.tally.scheduled -= 1;
            self.due.remove(&(at, Due::Activate(number)));
        }
        if let Some(at) = entry.expires_at {
            self.due.remove(&(at, Due::Expire(number)));
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
