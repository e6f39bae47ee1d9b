//! Settles, renews, cancels and purges messages.

use std::sync::Arc;

use uuid::Uuid;

use super::{DueRoute, Effects, StoreState, TimedEvent, partitions};
use crate::broker::delivery::Outcome;
use crate::broker::dispatch::DeadLetter;
use crate::message::MapPairs;
use crate::refusal::{Condition, Refusal};

impl StoreState {
    /// Settles all of these locks or, if one is lost, none.
    pub(crate) fn settle(
        &mut self,
        tokens: &[Uuid],
        outcome: &Outcome,
        now: i64,
        changes: &mut Effects,
    ) -> Result<(), Refusal> {
        if matches!(outcome, Outcome::DeadLetter { .. }) && self.policy.max_delivery_count.is_none() {
            return Err(Refusal::new(Condition::NotAllowed, "A dead letter cannot be dead-lettered again."));
        }
        let numbers = self.locked(tokens)?;
        for number in numbers {
            self.settle_one(number, outcome, now, changes);
        }
        Ok(())
    }

    fn settle_one(&mut self, number: i64, outcome: &Outcome, now: i64, changes: &mut Effects) {
        // The same token twice in one request settles once.
        if self.unlock(number).is_none() {
            return;
        }
        match outcome {
            Outcome::Complete => {
                self.remove(number);
            }
            Outcome::Release => {
                if self.entries.get(&number).is_some_and(|entry| !entry.deferred) {
                    self.make_ready(number, now, changes);
                }
            }
            Outcome::Abandon(properties) => {
                self.merge(number, properties);
                self.count_failure(number, now, changes);
            }
            Outcome::Defer(properties) => {
                self.merge(number, properties);
                if let Some(entry) = self.entries.get_mut(&number) {
                    entry.deferred = true;
                }
            }
            Outcome::DeadLetter { reason, description, properties } => {
                self.merge(number, properties);
                let why = DeadLetter { reason: reason.clone(), description: description.clone() };
                self.bury(number, why, changes);
            }
        }
    }

    /// The new ends of these locks or, if one is lost, none is renewed.
    pub(crate) fn renew(&mut self, tokens: &[Uuid], now: i64) -> Result<Vec<i64>, Refusal> {
        if self.policy.sessions {
            return Err(Refusal::new(
                Condition::NotAllowed,
                "A message of a session is held by the lock on its session, which is what to renew.",
            ));
        }
        let until = now + self.policy.lock_ms;
        for number in self.locked(tokens)? {
            let Some(lock) = self.entries.get_mut(&number).and_then(|entry| entry.lock.as_mut()) else { continue };
            if let Some(old) = lock.until.replace(until) {
                self.due.remove(&(old, TimedEvent::Unlock(number)));
            }
            self.due.insert((until, TimedEvent::Unlock(number)));
        }
        Ok(vec![until; tokens.len()])
    }

    fn locked(&self, tokens: &[Uuid]) -> Result<Vec<i64>, Refusal> {
        if self.policy.partitioned {
            let known: Vec<i64> = tokens.iter().filter_map(|token| self.locks.get(token).copied()).collect();
            partitions::check_locks(&known)?;
        }
        tokens.iter().map(|token| self.locks.get(token).copied().ok_or_else(|| self.lost())).collect()
    }

    fn lost(&self) -> Refusal {
        if !self.policy.sessions {
            return Refusal::lock_lost();
        }
        Refusal::new(
            Condition::SessionLockLost,
            "The session lock was lost, or the message was settled before. Request a new session receiver.",
        )
    }

    fn merge(&mut self, number: i64, properties: &MapPairs) {
        let Some(entry) = self.entries.get_mut(&number).filter(|_| !properties.is_empty()) else { return };
        let message = Arc::make_mut(&mut entry.message);
        for (key, value) in properties {
            if let Some(key) = key.as_text() {
                message.set_application_property(key, value.clone());
            }
        }
    }

    /// Cancels scheduled messages: all of them or none.
    pub(crate) fn cancel(&mut self, numbers: &[i64]) -> Result<(), Refusal> {
        if self.policy.partitioned {
            partitions::check_numbers(numbers)?;
        }
        for number in numbers {
            if self.entries.get(number).is_none_or(|entry| entry.scheduled_for.is_none()) {
                return Err(Refusal::new(
                    Condition::MessageNotFound,
                    format!("The scheduled message with sequence number {number} does not exist."),
                ));
            }
        }
        for number in numbers {
            self.remove(*number);
        }
        Ok(())
    }

    /// Removes up to `max` messages that were enqueued before `before`. Locked messages stay.
    pub(crate) fn purge(&mut self, max: usize, before: i64) -> usize {
        let numbers: Vec<i64> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.lock.is_none() && entry.enqueued_at < before)
            .map(|(number, _)| *number)
            .take(max)
            .collect();
        for number in &numbers {
            self.remove(*number);
        }
        numbers.len()
    }

    pub(crate) fn forwards(&self) -> bool {
        self.policy.flow != DueRoute::Keep
    }
}
