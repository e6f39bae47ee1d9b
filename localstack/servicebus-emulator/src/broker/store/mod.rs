//! The store of one queue of messages: an entity's own, its dead letters, or a topic's scheduled messages.
//!
//! Its state is guarded by one mutex, which is held for one operation on memory and never across a wait. Moves to other
//! stores and wakes that an operation causes are collected as [`Effects`] and done after the mutex is released, so two
//! stores are never locked at once and no deadlock is possible.
//!
//! `entries.rs` stores messages, makes them available, expires and removes them. `receive.rs` hands them out,
//! `settle.rs` settles and renews, `sessions.rs` locks message sessions, `partitions.rs` and `duplicates.rs` hold the
//! rules of partitioned entities and of duplicate detection.

mod duplicates;
mod entries;
pub(super) mod partitions;
mod receive;
mod sessions;
mod settle;

pub(super) use duplicates::DuplicateHistory;
pub(super) use entries::NewMessage;
pub(super) use receive::session_needed;
use sessions::MessageSession;
pub use sessions::SessionLock;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;
use uuid::Uuid;

use super::dispatch::{MessageMove, StoreOwner};
use super::entities::EntityStatus;
use super::receiver::Wake;
use super::timers::{StoreTimers, TimerKey};
use crate::clock::Clock;
use crate::message::Message;
use crate::refusal::{Condition, Refusal};

pub(super) struct MessageStore {
    pub(super) path: Arc<str>,
    pub(super) clock: Clock,
    state: Mutex<StoreState>,
    /// Notified when a session may have become available.
    pub(super) session_ready: Notify,
    bytes: AtomicU64,
    owner: StoreOwner,
    timers: Arc<StoreTimers>,
    this: Weak<MessageStore>,
}

/// The entity's settings that a store acts on.
#[derive(Clone, Debug)]
pub(super) struct StorePolicy {
    pub(super) lock_ms: i64,
    /// `None` in a dead-letter queue: deliveries are not limited.
    pub(super) max_delivery_count: Option<u32>,
    pub(super) default_ttl_ms: Option<i64>,
    pub(super) dead_letter_expired: bool,
    pub(super) sessions: bool,
    pub(super) flow: DueRoute,
    pub(super) status: EntityStatus,
    pub(super) partitioned: bool,
    /// Ids choose the partition where nothing else does.
    pub(super) detects_duplicates: bool,
}

/// Where a message goes when it is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DueRoute {
    /// To receivers.
    Keep,
    /// To the entity this one forwards to.
    Forward,
    /// To the topic's subscriptions.
    Route,
}

/// Waiting receivers, by registration.
type WaitingReceivers = Vec<(u64, Arc<dyn Wake>)>;

pub(super) struct StoreState {
    pub(super) policy: StorePolicy,
    pub(super) entries: BTreeMap<i64, StoredMessage>,
    pub(super) ready: BTreeSet<i64>,
    pub(super) locks: HashMap<Uuid, i64>,
    pub(super) sessions: HashMap<Arc<str>, MessageSession>,
    /// Sessions that can be accepted, the longest waiting first.
    pub(super) free_sessions: BTreeMap<u64, Arc<str>>,
    pub(super) waiting: HashMap<Option<Arc<str>>, WaitingReceivers>,
    pub(super) due: BTreeSet<(i64, TimedEvent)>,
    pub(super) tally: StoreTotals,
    pub(super) counter: u64,
    next_sequence_number: i64,
    /// The partition whose turn it is to take the next message without a key, and to deliver the next message.
    turn_in: i64,
    turn_out: i64,
    armed: Option<TimerKey>,
    gone: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StoreTotals {
    pub(super) bytes: u64,
    pub(super) scheduled: u64,
}

pub(super) struct StoredMessage {
    pub(super) message: Arc<Message>,
    pub(super) size: u64,
    pub(super) session: Option<Arc<str>>,
    pub(super) enqueued_sequence_number: i64,
    /// The number was given by another entity, from which the message came.
    pub(super) enqueued_elsewhere: bool,
    pub(super) enqueued_at: i64,
    pub(super) expires_at: Option<i64>,
    pub(super) delivery_count: u32,
    pub(super) scheduled_for: Option<i64>,
    pub(super) deferred: bool,
    pub(super) lock: Option<MessageLock>,
    pub(super) dead_letter_source: Option<Arc<str>>,
    pub(super) hops: u8,
}

#[derive(Clone, Copy)]
pub(super) struct MessageLock {
    pub(super) token: Uuid,
    /// `None`: as long as the session is held.
    pub(super) until: Option<i64>,
}

/// A timed event in a store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TimedEvent {
    Activate(i64),
    Unlock(i64),
    Expire(i64),
    LoseSession(Arc<str>),
    TellLoss(Arc<str>),
}

/// The effects of an operation outside the store, which are done after its mutex is released.
#[derive(Default)]
pub(super) struct Effects {
    pub(super) moves: Vec<MessageMove>,
    pub(super) wakes: Vec<Arc<dyn Wake>>,
    pub(super) session_ready: bool,
}

impl MessageStore {
    pub(super) fn new(
        path: Arc<str>,
        policy: StorePolicy,
        owner: StoreOwner,
        clock: Clock,
        timers: Arc<StoreTimers>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            path,
            clock,
            state: Mutex::new(StoreState::new(policy)),
            session_ready: Notify::new(),
            bytes: AtomicU64::new(0),
            owner,
            timers,
            this: this.clone(),
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// Brings the state up to date, runs one operation on it, then does the operation's effects.
    pub(super) fn with<T>(&self, operation: impl FnOnce(&mut StoreState, i64, &mut Effects) -> T) -> T {
        let now = self.clock.now_ms();
        let mut changes = Effects::default();
        let mut state = self.lock();
        state.run_due(now, &mut changes);
        let result = operation(&mut state, now, &mut changes);
        self.bytes.store(state.tally.bytes, Ordering::Release);
        if let Some(at) = state.next_due()
            && state.armed.is_none_or(|armed| at < armed.0)
        {
            state.armed = Some(self.timers.arm(state.armed, at, self.this.clone()));
        }
        drop(state);
        self.finish(changes);
        result
    }

    /// The same, refused after the entity was deleted.
    pub(super) fn try_with<T>(
        &self,
        operation: impl FnOnce(&mut StoreState, i64, &mut Effects) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        self.with(|state, now, changes| {
            if state.gone {
                return Err(Refusal::no_entity(&self.path));
            }
            operation(state, now, changes)
        })
    }

    /// Called by the timers, which have forgotten this store's alarm.
    pub(super) fn tick(&self, alarm: TimerKey) {
        let mut state = self.lock();
        if state.armed == Some(alarm) {
            state.armed = None;
        }
        drop(state);
        self.with(|_, _, _| ());
    }

    /// Marks the entity as deleted, and wakes its receivers so that they learn of it.
    pub(super) fn close(&self) {
        self.with(|state, _, changes| {
            state.gone = true;
            state.wake_all(changes);
            changes.session_ready = true;
        });
    }

    pub(super) fn set_policy(&self, policy: StorePolicy) {
        self.with(|state, _, changes| {
            state.policy = policy;
            if state.policy.flow != DueRoute::Keep {
                state.move_all_ready(changes);
            }
            state.wake_all(changes);
            changes.session_ready = true;
        });
    }

    fn finish(&self, changes: Effects) {
        for wake in changes.wakes {
            wake.wake();
        }
        if changes.session_ready {
            self.session_ready.notify_waiters();
        }
        if !changes.moves.is_empty() {
            self.owner.dispatch(changes.moves);
        }
    }

    fn lock(&self) -> MutexGuard<'_, StoreState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoreState {
    fn new(policy: StorePolicy) -> Self {
        Self {
            policy,
            entries: BTreeMap::new(),
            ready: BTreeSet::new(),
            locks: HashMap::new(),
            sessions: HashMap::new(),
            free_sessions: BTreeMap::new(),
            waiting: HashMap::new(),
            due: BTreeSet::new(),
            tally: StoreTotals::default(),
            counter: 0,
            next_sequence_number: 1,
            turn_in: 0,
            turn_out: 0,
            armed: None,
            gone: false,
        }
    }

    /// The next sequence number, in the partition of this message where there are partitions.
    pub(super) fn number(&mut self, message: &Message) -> i64 {
        if !self.policy.partitioned {
            return self.number_in(0);
        }
        let chosen = partitions::chosen(message, self.policy.detects_duplicates);
        let partition = chosen.unwrap_or_else(|| {
            self.turn_in = (self.turn_in + 1) % partitions::PARTITIONS;
            self.turn_in
        });
        self.number_in(partition)
    }

    /// The next sequence number in a partition.
    pub(super) fn number_in(&mut self, partition: i64) -> i64 {
        let count = self.next_sequence_number;
        self.next_sequence_number += 1;
        partitions::numbered(partition, count)
    }

    /// Takes the message to deliver next: the oldest one, or in a partitioned entity the oldest of each partition in
    /// turn.
    pub(super) fn next_ready(&mut self) -> Option<i64> {
        if !self.policy.partitioned {
            return self.ready.pop_first();
        }
        let first = (0..partitions::PARTITIONS).find_map(|step| {
            let partition = (self.turn_out + step) % partitions::PARTITIONS;
            let range = partitions::numbered(partition, 0)..partitions::numbered(partition + 1, 0);
            self.ready.range(range).next().copied()
        })?;
        self.turn_out = (partitions::partition_of(first) + 1) % partitions::PARTITIONS;
        self.ready.remove(&first);
        Some(first)
    }

    /// A number that this store has not given out before, for tickets, epochs and registrations.
    pub(super) fn count(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    pub(super) fn check_receives(&self, path: &str) -> Result<(), Refusal> {
        if self.policy.status.receives() {
            return Ok(());
        }
        Err(Refusal::new(
            Condition::EntityDisabled,
            format!("Messaging entity '{path}' is currently disabled for receive operations."),
        ))
    }

    fn next_due(&self) -> Option<i64> {
        self.due.first().map(|(at, _)| *at)
    }

    fn run_due(&mut self, now: i64, changes: &mut Effects) {
        while self.next_due().is_some_and(|at| at <= now) {
            let Some((at, due)) = self.due.pop_first() else { break };
            match due {
                TimedEvent::Activate(number) => self.activate(number, now, changes),
                TimedEvent::Unlock(number) => self.lose_lock(number, now, changes),
                TimedEvent::Expire(number) => self.expire(number, changes),
                // The time when the lock expired counts, not the time when it was noticed.
                TimedEvent::LoseSession(id) => self.lose_session(&id, at, now, changes),
                TimedEvent::TellLoss(id) => self.wake(Some(&id), changes),
            }
        }
    }

    pub(super) fn wake(&mut self, session: Option<&Arc<str>>, changes: &mut Effects) {
        // A fast path, because most sends find no receiver waiting.
        if self.waiting.is_empty() {
            return;
        }
        if let Some(waiting) = self.waiting.remove(&session.cloned()) {
            changes.wakes.extend(waiting.into_iter().map(|(_, wake)| wake));
        }
    }

    pub(super) fn stop_waiting(&mut self, session: &Option<Arc<str>>, registration: u64) {
        if let Some(waiting) = self.waiting.get_mut(session) {
            waiting.retain(|(id, _)| *id != registration);
            if waiting.is_empty() {
                self.waiting.remove(session);
            }
        }
    }

    fn wake_all(&mut self, changes: &mut Effects) {
        for (_, waiting) in self.waiting.drain() {
            changes.wakes.extend(waiting.into_iter().map(|(_, wake)| wake));
        }
    }
}
