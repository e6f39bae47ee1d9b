//! Delivers messages: the next available ones, deferred ones by number, or peeked ones.

use std::sync::Arc;

use uuid::Uuid;

use super::{Effects, MessageLock, StoreState, StoredMessage, TimedEvent, partitions};
use crate::broker::delivery::{DeliveredMessage, MessageState, ReceiveMode};
use crate::refusal::{Condition, Refusal};

impl StoreState {
    /// Up to `max` messages that are available now, from the session that is held or, without sessions, from all.
    pub(crate) fn take(
        &mut self,
        mode: ReceiveMode,
        session: Option<(&Arc<str>, u64)>,
        max: usize,
        now: i64,
    ) -> Result<Vec<DeliveredMessage>, Refusal> {
        let until = match session {
            Some((id, epoch)) => self.holder(id, Some(epoch))?.until,
            None => now + self.policy.lock_ms,
        };
        let mut taken = Vec::with_capacity(max.min(self.ready.len().max(1)));
        while taken.len() < max {
            let next = match session {
                Some((id, _)) => self.sessions.get_mut(id).and_then(|session| session.ready.pop_first()),
                None => self.next_ready(),
            };
            let Some(number) = next else { break };
            taken.extend(self.hand_out(number, mode, until));
        }
        Ok(taken)
    }

    fn hand_out(&mut self, number: i64, mode: ReceiveMode, until: i64) -> Option<DeliveredMessage> {
        if mode == ReceiveMode::ReceiveAndDelete {
            return self.remove(number).map(|entry| DeliveredMessage::of(number, &entry));
        }
        let entry = self.entries.get_mut(&number)?;
        let token = Uuid::new_v4();
        let timed = entry.session.is_none();
        entry.lock = Some(MessageLock { token, until: timed.then_some(until) });
        let mut delivered = DeliveredMessage::of(number, entry);
        delivered.lock_token = Some(token);
        delivered.locked_until = Some(until);
        if timed {
            self.due.insert((until, TimedEvent::Unlock(number)));
        } else if let Some(session) = entry.session.as_ref().and_then(|id| self.sessions.get_mut(id)) {
            session.locked.insert(number);
        }
        self.locks.insert(token, number);
        Some(delivered)
    }

    /// Deferred messages by their numbers: all of them or none.
    pub(crate) fn take_deferred(
        &mut self,
        numbers: &[i64],
        mode: ReceiveMode,
        session: Option<&str>,
        now: i64,
        changes: &mut Effects,
    ) -> Result<Vec<DeliveredMessage>, Refusal> {
        let until = match session {
            Some(id) if self.policy.sessions => self.holder(id, None)?.until,
            None if self.policy.sessions => return Err(session_needed()),
            _ => now + self.policy.lock_ms,
        };
        if self.policy.partitioned {
            partitions::check_numbers(numbers)?;
        }
        for number in numbers {
            let known = self.entries.get(number).filter(|entry| {
                entry.deferred && entry.lock.is_none() && (!self.policy.sessions || entry.session.as_deref() == session)
            });
            match known {
                None => return Err(no_message(*number)),
                Some(entry) if entry.expires_at.is_some_and(|at| at <= now) => {
                    self.drop_expired(*number, changes);
                    return Err(no_message(*number));
                }
                Some(_) => {}
            }
        }
        Ok(numbers.iter().filter_map(|number| self.hand_out(*number, mode, until)).collect())
    }

    /// Up to `max` messages from a number on, whatever their state, which stays as it is.
    pub(crate) fn peek(&self, from: i64, max: usize, session: Option<&str>) -> Vec<DeliveredMessage> {
        match session {
            None => self.entries.range(from..).take(max).map(DeliveredMessage::at).collect(),
            Some(id) => self
                .sessions
                .get(id)
                .into_iter()
                .flat_map(|session| session.all.range(from..))
                .filter_map(|number| self.entries.get_key_value(number).map(DeliveredMessage::at))
                .take(max)
                .collect(),
        }
    }
}

impl DeliveredMessage {
    /// A peeked message.
    fn at((number, entry): (&i64, &StoredMessage)) -> Self {
        Self { peeked: true, ..Self::of(*number, entry) }
    }

    fn of(number: i64, entry: &StoredMessage) -> Self {
        let state = match entry {
            StoredMessage { deferred: true, .. } => MessageState::Deferred,
            StoredMessage { scheduled_for: Some(_), .. } => MessageState::Scheduled,
            _ => MessageState::Active,
        };
        Self {
            message: entry.message.clone(),
            sequence_number: number,
            enqueued_sequence_number: entry.enqueued_sequence_number,
            enqueued_elsewhere: entry.enqueued_elsewhere,
            peeked: false,
            enqueued_at: entry.enqueued_at,
            delivery_count: entry.delivery_count,
            lock_token: None,
            locked_until: None,
            state,
            scheduled_for: entry.scheduled_for,
            dead_letter_source: entry.dead_letter_source.clone(),
        }
    }
}

fn no_message(number: i64) -> Refusal {
    Refusal::new(
        Condition::MessageNotFound,
        format!(
            "Failed to lock one or more specified messages. The message with sequence number {number} does not exist."
        ),
    )
}

pub(crate) fn session_needed() -> Refusal {
    Refusal::new(
        Condition::NotAllowed,
        "It is not possible for an entity that requires sessions to create a non-sessionful message receiver.",
    )
}
