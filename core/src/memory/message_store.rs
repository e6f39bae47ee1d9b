//! The messages of a queue or subscription, or its dead letters, with the consumers of them.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Waker},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    lock_deadlines::{LockDeadlines, LockEnd},
    slot_table::SlotTable,
    stored_message::StoredMessage,
    waiting_messages::WaitingMessages,
};
use crate::{
    driver::{DriverToken, ReceivedMessage, lock_margin},
    runtime::duration::after,
    topology::SourceStats,
};

/// What a delivery is settled by: the slot of the locked message, and a number that tells it from an earlier delivery
/// in that slot.
pub(super) struct LockToken {
    pub(super) consumer: ConsumerId,
    pub(super) slot: u32,
    pub(super) number: u64,
}

/// A consumer's slot, and a number that no other consumer in the process has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct ConsumerId {
    pub(super) slot: u32,
    pub(super) number: u64,
}

/// A message that was handed out and is not settled.
pub(super) struct LockedMessage {
    pub(super) message: StoredMessage,
    number: u64,
    /// The slot of its consumer.
    consumer: u32,
    until: Instant,
}

struct StoreConsumer {
    number: u64,
    prefetch: usize,
    lock: Duration,
    /// How many locked messages it has.
    locked: usize,
    /// False once it was stopped.
    taking: bool,
    /// Its task, while that waits for messages.
    waker: Option<Waker>,
}

pub(super) struct MessageStore {
    pub(super) waiting: WaitingMessages,
    locked: SlotTable<LockedMessage>,
    deadlines: LockDeadlines,
    consumers: SlotTable<StoreConsumer>,
    /// How many consumers have a waker.
    wakers: usize,
    /// The next deadline when the last consumer began to wait: all that wait look again by then, by their own timers.
    armed: Option<Instant>,
    /// The slot after which the search for a consumer to wake begins, so that each has its turn.
    turn: u32,
    /// How many messages were handed out.
    handed_out: u64,
}

/// What a consumer that asks for messages gets.
pub(super) enum TakeOutcome {
    Messages(Vec<ReceivedMessage>),
    /// Nothing yet. Look again at this time at the latest.
    Wait(Option<Instant>),
    /// The consumer was stopped or has left.
    Closed,
}

/// Tasks to wake after the queue's lock is released, since a woken task takes that lock at once.
#[derive(Default)]
pub(super) struct WakeList(Vec<Waker>);

impl WakeList {
    pub(super) fn wake(self) {
        self.0.into_iter().for_each(Waker::wake);
    }
}

/// Looks up the current deadline of a lock; `None` if it was settled.
fn until_of(locked: &SlotTable<LockedMessage>) -> impl Fn(LockEnd) -> Option<Instant> {
    |due| locked.get(due.slot).filter(|l| l.number == due.number).map(|l| l.until)
}

impl MessageStore {
    pub(super) fn new(ordered: bool) -> Self {
        Self {
            waiting: WaitingMessages::new(ordered),
            locked: SlotTable::new(),
            deadlines: LockDeadlines::new(),
            consumers: SlotTable::new(),
            wakers: 0,
            armed: None,
            turn: 0,
            handed_out: 0,
        }
    }

    /// Adds a consumer.
    pub(super) fn enter(&mut self, prefetch: usize, lock: Duration) -> ConsumerId {
        static CONSUMERS: AtomicU64 = AtomicU64::new(0);
        let number = CONSUMERS.fetch_add(1, Ordering::Relaxed);
        let consumer = StoreConsumer { number, prefetch: prefetch.max(1), lock, locked: 0, taking: true, waker: None };
        ConsumerId { slot: self.consumers.insert(consumer), number }
    }

    fn consumer(&mut self, id: ConsumerId) -> Option<&mut StoreConsumer> {
        self.consumers.get_mut(id.slot).filter(|c| c.number == id.number)
    }

    /// Puts back the messages whose locks have ended by now, and ends the delays that are over.
    pub(super) fn advance(&mut self, now: Instant) {
        while let Some(due) = self.deadlines.pop_expired(now, until_of(&self.locked)) {
            if let Some(locked) = self.unlock(due.slot) {
                self.waiting.put_back(locked.message);
            }
        }
        self.waiting.end_delays(now);
    }

    fn unlock(&mut self, slot: u32) -> Option<LockedMessage> {
        let locked = self.locked.remove(slot)?;
        if let Some(consumer) = self.consumers.get_mut(locked.consumer) {
            consumer.locked -= 1;
        }
        Some(locked)
    }

    /// Hands out up to `max` messages, or registers the task to wake.
    pub(super) fn take(
        &mut self,
        id: ConsumerId,
        max: usize,
        now: Instant,
        cx: &Context<'_>,
        wakers: &mut WakeList,
    ) -> TakeOutcome {
        self.forget_waker(id);
        let ready = self.waiting.ready();
        let Some(consumer) = self.consumer(id).filter(|c| c.taking) else { return TakeOutcome::Closed };
        let (room, lock) = (consumer.prefetch.saturating_sub(consumer.locked), consumer.lock);
        let count = max.max(1).min(room).min(ready);
        if count == 0 {
            consumer.waker = Some(cx.waker().clone());
            self.wakers += 1;
            self.armed =
                [self.deadlines.next(until_of(&self.locked)), self.waiting.next_due()].into_iter().flatten().min();
            return TakeOutcome::Wait(self.armed);
        }
        consumer.locked += count;
        let until = after(now, lock);
        let mut out = Vec::with_capacity(count);
        while out.len() < count
            && let Some(message) = self.waiting.take()
        {
            out.push(self.hand_out(id, message, until, lock));
        }
        self.new_deadline(until, wakers);
        TakeOutcome::Messages(out)
    }

    fn hand_out(
        &mut self,
        id: ConsumerId,
        mut message: StoredMessage,
        until: Instant,
        lock: Duration,
    ) -> ReceivedMessage {
        message.attempts = message.attempts.saturating_add(1);
        let (envelope, attempt) = (message.envelope.clone(), message.attempts);
        let (malformed, dead_letter, mark) =
            (message.malformed.clone(), message.dead_letter.clone(), message.mark.clone());
        // A redrive recognizes dead letters by it; nobody asks a live message for it.
        let known_by = dead_letter.as_ref().map(|_| message.place.to_string().into());
        self.handed_out += 1;
        let number = self.handed_out;
        let slot = self.locked.insert(LockedMessage { message, number, consumer: id.slot, until });
        let due = LockEnd { until, slot, number };
        self.deadlines.add(lock, due, self.locked.len(), until_of(&self.locked));
        let mut received =
            ReceivedMessage::new(DriverToken::new(LockToken { consumer: id, slot, number }), envelope, attempt);
        received.locked_until = Some(until - lock_margin(lock));
        received.malformed = malformed;
        received.dead_letter = dead_letter;
        (received.known_by, received.mark) = (known_by, mark);
        received
    }

    fn find(&self, token: &LockToken) -> Option<&LockedMessage> {
        self.locked.get(token.slot).filter(|locked| locked.number == token.number)
    }

    pub(super) fn holds(&self, token: &LockToken, now: Instant) -> bool {
        self.find(token).is_some_and(|locked| locked.until > now)
    }

    /// Takes a locked message away from its consumer.
    pub(super) fn take_locked(&mut self, token: &LockToken) -> Option<StoredMessage> {
        self.find(token)?;
        Some(self.unlock(token.slot)?.message)
    }

    pub(super) fn extend(&mut self, token: &LockToken, until: Instant) -> bool {
        let found = self.locked.get_mut(token.slot).filter(|locked| locked.number == token.number);
        let Some(locked) = found else { return false };
        let sooner = until < locked.until;
        locked.until = until;
        // A later deadline is found when the noted one has come. A sooner one must be noted.
        if sooner {
            let due = LockEnd { until, slot: token.slot, number: token.number };
            self.deadlines.add_unsorted(due, self.locked.len(), until_of(&self.locked));
        }
        true
    }

    /// Hands no more messages to the consumer. It keeps those that it has.
    pub(super) fn stop(&mut self, id: ConsumerId, wakers: &mut WakeList) {
        if let Some(consumer) = self.consumer(id) {
            consumer.taking = false;
            if let Some(waker) = self.take_waker(id.slot) {
                wakers.0.push(waker);
            }
        }
    }

    /// Removes a consumer, and puts the messages that it has back in their places.
    pub(super) fn leave(&mut self, id: ConsumerId, wakers: &mut WakeList) {
        self.stop(id, wakers);
        let Some(locked) = self.consumer(id).map(|c| c.locked) else { return };
        // Most consumers leave with nothing, and there may be many slots.
        let slots = if locked == 0 { 0 } else { self.locked.slots() };
        for slot in 0..slots {
            if self.locked.get(slot).is_some_and(|locked| locked.consumer == id.slot)
                && let Some(locked) = self.locked.remove(slot)
            {
                self.waiting.put_back(locked.message);
            }
        }
        self.consumers.remove(id.slot);
    }

    fn take_waker(&mut self, slot: u32) -> Option<Waker> {
        let waker = self.consumers.get_mut(slot)?.waker.take()?;
        self.wakers -= 1;
        Some(waker)
    }

    /// Drops the waker of a consumer that no longer waits.
    pub(super) fn forget_waker(&mut self, id: ConsumerId) {
        if self.consumer(id).is_some() {
            self.take_waker(id.slot);
        }
    }

    /// Collects the tasks to wake for what is ready: for each message one consumer with room, at most.
    pub(super) fn wake_for_ready(&mut self, wakers: &mut WakeList) {
        let mut ready = self.waiting.ready();
        let slots = self.consumers.slots();
        for _ in 0..slots {
            if self.wakers == 0 || ready == 0 {
                return;
            }
            self.turn = (self.turn + 1) % slots;
            let has_room = self.consumers.get(self.turn).is_some_and(|c| c.locked < c.prefetch);
            if has_room && let Some(waker) = self.take_waker(self.turn) {
                wakers.0.push(waker);
                ready -= 1;
            }
        }
    }

    /// Wakes all consumers that wait for a later deadline than this new one, so that they look again in time.
    pub(super) fn new_deadline(&mut self, deadline: Instant, wakers: &mut WakeList) {
        if self.wakers > 0 && self.armed.is_none_or(|armed| deadline < armed) {
            self.wake_all(wakers);
        }
    }

    pub(super) fn wake_all(&mut self, wakers: &mut WakeList) {
        for slot in 0..self.consumers.slots() {
            wakers.0.extend(self.take_waker(slot));
        }
    }

    pub(super) fn stats(&self) -> SourceStats {
        SourceStats {
            ready: Some(self.waiting.undelayed() as u64),
            in_flight: Some(self.locked.len() as u64),
            delayed: Some(self.waiting.delayed() as u64),
            dead_lettered: None,
            approximate: false,
        }
    }

    /// How many messages there are in all.
    pub(super) fn len(&self) -> u64 {
        (self.waiting.undelayed() + self.locked.len() + self.waiting.delayed()) as u64
    }

    /// Drops all messages, and wakes all consumers that wait.
    pub(super) fn clear(&mut self, wakers: &mut WakeList) {
        self.wake_all(wakers);
        self.waiting.clear();
        self.locked.clear();
        self.deadlines.clear();
        for slot in 0..self.consumers.slots() {
            if let Some(consumer) = self.consumers.get_mut(slot) {
                consumer.locked = 0;
            }
        }
    }
}
