//! One consumable half of a source: its live messages or its dead letters, with the consumers of it.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Waker},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    backlog::Backlog,
    lock_deadlines::{Deadlines, Due},
    message::Message,
    slab::Slab,
};
use crate::{
    driver::{DriverToken, ReceivedMessage, lock_margin},
    runtime::duration::after,
    topology::SourceStats,
};

/// What a delivery is settled by. The number tells it from an earlier delivery that had the same place.
pub(super) struct Ticket {
    pub(super) consumer: ConsumerId,
    pub(super) place: u32,
    pub(super) number: u64,
}

/// A consumer's place, and a number that no other consumer in the process has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct ConsumerId {
    pub(super) place: u32,
    pub(super) number: u64,
}

/// A message that a consumer holds.
pub(super) struct Held {
    pub(super) message: Message,
    number: u64,
    consumer: u32,
    until: Instant,
}

struct Consumer {
    number: u64,
    prefetch: usize,
    lock: Duration,
    held: usize,
    taking: bool,
    waker: Option<Waker>,
}

pub(super) struct Half {
    pub(super) backlog: Backlog,
    held: Slab<Held>,
    deadlines: Deadlines,
    consumers: Slab<Consumer>,
    /// How many consumers have a waker.
    waiting: usize,
    /// The deadline that those will wake for by themselves.
    armed: Option<Instant>,
    /// Where the search for a consumer to wake begins, so that each has its turn.
    turn: u32,
    numbers: u64,
}

/// What a consumer that asks for messages gets.
pub(super) enum Taken {
    Messages(Vec<ReceivedMessage>),
    /// Nothing yet; look again at this time at the latest.
    Wait(Option<Instant>),
    /// The consumer has stopped or ended.
    Closed,
}

/// Tasks to wake once no lock is held.
#[derive(Default)]
pub(super) struct Wakers(Vec<Waker>);

impl Wakers {
    pub(super) fn wake(self) {
        self.0.into_iter().for_each(Waker::wake);
    }
}

fn until_of(held: &Slab<Held>) -> impl Fn(Due) -> Option<Instant> {
    |due| held.get(due.place).filter(|h| h.number == due.number).map(|h| h.until)
}

impl Half {
    pub(super) fn new(ordered: bool) -> Self {
        Self {
            backlog: Backlog::new(ordered),
            held: Slab::new(),
            deadlines: Deadlines::new(),
            consumers: Slab::new(),
            waiting: 0,
            armed: None,
            turn: 0,
            numbers: 0,
        }
    }

    pub(super) fn enter(&mut self, prefetch: usize, lock: Duration) -> ConsumerId {
        static CONSUMERS: AtomicU64 = AtomicU64::new(0);
        let number = CONSUMERS.fetch_add(1, Ordering::Relaxed);
        let consumer = Consumer { number, prefetch: prefetch.max(1), lock, held: 0, taking: true, waker: None };
        ConsumerId { place: self.consumers.insert(consumer), number }
    }

    fn consumer(&mut self, id: ConsumerId) -> Option<&mut Consumer> {
        self.consumers.get_mut(id.place).filter(|c| c.number == id.number)
    }

    /// Lets time pass: locks run out, delays end.
    pub(super) fn tick(&mut self, now: Instant) {
        while let Some(due) = self.deadlines.pop_expired(now, until_of(&self.held)) {
            if let Some(held) = self.remove(due.place) {
                self.backlog.put_back(held.message);
            }
        }
        self.backlog.mature(now);
    }

    fn remove(&mut self, place: u32) -> Option<Held> {
        let held = self.held.remove(place)?;
        if let Some(consumer) = self.consumers.get_mut(held.consumer) {
            consumer.held -= 1;
        }
        Some(held)
    }

    /// Hands out up to `max` messages, or remembers whom to wake.
    pub(super) fn take(
        &mut self,
        id: ConsumerId,
        max: usize,
        now: Instant,
        cx: &Context<'_>,
        wakers: &mut Wakers,
    ) -> Taken {
        self.forget_waker(id);
        let ready = self.backlog.ready();
        let Some(consumer) = self.consumer(id).filter(|c| c.taking) else { return Taken::Closed };
        let (room, lock) = (consumer.prefetch.saturating_sub(consumer.held), consumer.lock);
        let count = max.max(1).min(room).min(ready);
        if count == 0 {
            consumer.waker = Some(cx.waker().clone());
            self.waiting += 1;
            self.armed =
                [self.deadlines.next(until_of(&self.held)), self.backlog.next_due()].into_iter().flatten().min();
            return Taken::Wait(self.armed);
        }
        consumer.held += count;
        let until = after(now, lock);
        let mut out = Vec::with_capacity(count);
        while out.len() < count
            && let Some(message) = self.backlog.take()
        {
            out.push(self.hand_out(id, message, until, lock));
        }
        self.alarm(until, wakers);
        Taken::Messages(out)
    }

    fn hand_out(&mut self, id: ConsumerId, mut message: Message, until: Instant, lock: Duration) -> ReceivedMessage {
        message.attempts = message.attempts.saturating_add(1);
        let (envelope, attempt) = (message.envelope.clone(), message.attempts);
        let (malformed, dead_letter, mark) =
            (message.malformed.clone(), message.dead_letter.clone(), message.mark.clone());
        // Only dead letters are asked for it.
        let known_by = dead_letter.as_ref().map(|_| message.place.to_string().into());
        self.numbers += 1;
        let number = self.numbers;
        let place = self.held.insert(Held { message, number, consumer: id.place, until });
        let due = Due { until, place, number };
        self.deadlines.add(lock, due, self.held.len(), until_of(&self.held));
        let mut received =
            ReceivedMessage::new(DriverToken::new(Ticket { consumer: id, place, number }), envelope, attempt);
        received.locked_until = Some(until - lock_margin(lock));
        received.malformed = malformed;
        received.dead_letter = dead_letter;
        (received.known_by, received.mark) = (known_by, mark);
        received
    }

    fn holds_number(&self, ticket: &Ticket) -> Option<&Held> {
        self.held.get(ticket.place).filter(|held| held.number == ticket.number)
    }

    pub(super) fn holds(&self, ticket: &Ticket, now: Instant) -> bool {
        self.holds_number(ticket).is_some_and(|held| held.until > now)
    }

    /// Takes a held message away from its consumer.
    pub(super) fn settle(&mut self, ticket: &Ticket) -> Option<Message> {
        self.holds_number(ticket)?;
        Some(self.remove(ticket.place)?.message)
    }

    pub(super) fn extend(&mut self, ticket: &Ticket, until: Instant) -> bool {
        if self.holds_number(ticket).is_none() {
            return false;
        }
        let Some(held) = self.held.get_mut(ticket.place) else { return false };
        let sooner = until < held.until;
        held.until = until;
        if sooner {
            let due = Due { until, place: ticket.place, number: ticket.number };
            self.deadlines.add_moved(due, self.held.len(), until_of(&self.held));
        }
        true
    }

    /// The consumer takes no more. What it holds stays with it.
    pub(super) fn stop(&mut self, id: ConsumerId, wakers: &mut Wakers) {
        if let Some(consumer) = self.consumer(id) {
            consumer.taking = false;
            if let Some(waker) = self.take_waker(id.place) {
                wakers.0.push(waker);
            }
        }
    }

    /// The consumer is gone: what it holds goes back to its place.
    pub(super) fn leave(&mut self, id: ConsumerId, wakers: &mut Wakers) {
        self.stop(id, wakers);
        if self.consumer(id).is_none_or(|c| c.held == 0) {
            if self.consumer(id).is_some() {
                self.consumers.remove(id.place);
            }
            return;
        }
        for place in 0..self.held.places() {
            if self.held.get(place).is_some_and(|held| held.consumer == id.place)
                && let Some(held) = self.held.remove(place)
            {
                self.backlog.put_back(held.message);
            }
        }
        self.consumers.remove(id.place);
    }

    fn take_waker(&mut self, place: u32) -> Option<Waker> {
        let waker = self.consumers.get_mut(place)?.waker.take()?;
        self.waiting -= 1;
        Some(waker)
    }

    /// A consumer no longer waits.
    pub(super) fn forget_waker(&mut self, id: ConsumerId) {
        if self.consumer(id).is_some() {
            self.take_waker(id.place);
        }
    }

    /// Collects whom to wake for what is ready: one consumer with room for each message, at most.
    pub(super) fn rouse(&mut self, wakers: &mut Wakers) {
        let mut ready = self.backlog.ready();
        let places = self.consumers.places();
        for _ in 0..places {
            if self.waiting == 0 || ready == 0 {
                return;
            }
            self.turn = (self.turn + 1) % places;
            let has_room = self.consumers.get(self.turn).is_some_and(|c| c.held < c.prefetch);
            if has_room && let Some(waker) = self.take_waker(self.turn) {
                wakers.0.push(waker);
                ready -= 1;
            }
        }
    }

    /// A deadline is new: those who wait for a later one must look again.
    pub(super) fn alarm(&mut self, deadline: Instant, wakers: &mut Wakers) {
        if self.waiting > 0 && self.armed.is_none_or(|armed| deadline < armed) {
            self.rouse_all(wakers);
        }
    }

    pub(super) fn rouse_all(&mut self, wakers: &mut Wakers) {
        for place in 0..self.consumers.places() {
            wakers.0.extend(self.take_waker(place));
        }
    }

    pub(super) fn stats(&self) -> SourceStats {
        SourceStats {
            ready: Some(self.backlog.waiting() as u64),
            in_flight: Some(self.held.len() as u64),
            delayed: Some(self.backlog.delayed() as u64),
            dead_lettered: None,
            approximate: false,
        }
    }

    /// How many messages there are in all.
    pub(super) fn len(&self) -> u64 {
        (self.backlog.waiting() + self.held.len() + self.backlog.delayed()) as u64
    }

    /// Drops all messages and lets nobody in any more.
    pub(super) fn clear(&mut self, wakers: &mut Wakers) {
        self.rouse_all(wakers);
        self.backlog.clear();
        self.held.clear();
        self.deadlines.clear();
        for place in 0..self.consumers.places() {
            if let Some(consumer) = self.consumers.get_mut(place) {
                consumer.held = 0;
            }
        }
    }
}
