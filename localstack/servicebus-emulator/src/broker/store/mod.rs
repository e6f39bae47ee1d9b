//! One queue of messages: an entity's own, its dead letters, or what a topic has scheduled.
//!
//! All of it stands under one mutex that is held for the length of an operation on memory and never across a wait. What an operation
//! causes elsewhere (moves to other stores, wakes) is collected and done after the mutex is free, so two stores are never locked
//! at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;
use uuid::Uuid;

use super::dispatch::{Move, Owner};
use super::partitions;
use super::receiver::Wake;
use super::session::Session;
use super::settings::Status;
use super::timers::{Alarm, Timers};
use crate::clock::Clock;
use crate::message::Message;
use crate::refusal::{Condition, Refusal};

pub(super) struct Store {
    pub(super) path: Arc<str>,
    pub(super) clock: Clock,
    state: Mutex<State>,
    /// Told when a session may have become available.
    pub(super) session_ready: Notify,
    bytes: AtomicU64,
    owner: Owner,
    timers: Arc<Timers>,
    this: Weak<Store>,
}

/// What of an entity's settings a store acts on.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    pub(super) lock_ms: i64,
    /// `None`: may be delivered for ever, and never expires.
    pub(super) max_delivery_count: Option<u32>,
    pub(super) default_ttl_ms: Option<i64>,
    pub(super) dead_letter_expired: bool,
    pub(super) sessions: bool,
    pub(super) flow: Flow,
    pub(super) status: Status,
    pub(super) partitioned: bool,
    /// Ids choose the partition where nothing else does.
    pub(super) detects_duplicates: bool,
}

/// Where a message goes once it is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// To receivers.
    Keep,
    /// To the entity this one forwards to.
    Forward,
    /// To the topic's subscriptions.
    Route,
}

/// Who waits for messages, by registration.
type Waiting = Vec<(u64, Arc<dyn Wake>)>;

pub(super) struct State {
    pub(super) policy: Policy,
    pub(super) entries: BTreeMap<i64, Entry>,
    pub(super) ready: BTreeSet<i64>,
    pub(super) locks: HashMap<Uuid, i64>,
    pub(super) sessions: HashMap<Arc<str>, Session>,
    /// Sessions that can be accepted, the longest waiting first.
    pub(super) free_sessions: BTreeMap<u64, Arc<str>>,
    pub(super) waiting: HashMap<Option<Arc<str>>, Waiting>,
    pub(super) due: BTreeSet<(i64, Due)>,
    pub(super) tally: Tally,
    pub(super) counter: u64,
    next_sequence_number: i64,
    /// The partition whose turn it is, to take in what has no key and to hand out.
    turn_in: i64,
    turn_out: i64,
    armed: Option<Alarm>,
    gone: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) bytes: u64,
    pub(super) scheduled: u64,
}

pub(super) struct Entry {
    pub(super) message: Arc<Message>,
    pub(super) size: u64,
    pub(super) session: Option<Arc<str>>,
    pub(super) enqueued_sequence_number: i64,
    /// It came from another entity, which gave it that number.
    pub(super) enqueued_elsewhere: bool,
    pub(super) enqueued_at: i64,
    pub(super) expires_at: Option<i64>,
    pub(super) delivery_count: u32,
    pub(super) scheduled_for: Option<i64>,
    pub(super) deferred: bool,
    pub(super) lock: Option<Lock>,
    pub(super) dead_letter_source: Option<Arc<str>>,
    pub(super) hops: u8,
}

#[derive(Clone, Copy)]
pub(super) struct Lock {
    pub(super) token: Uuid,
    /// `None`: as long as the session is held.
    pub(super) until: Option<i64>,
}

/// What happens by itself at some time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    Activate(i64),
    Unlock(i64),
    Expire(i64),
    LoseSession(Arc<str>),
    TellLoss(Arc<str>),
}

/// What is left to do when the mutex is free.
#[derive(Default)]
pub(super) struct Changes {
    pub(super) moves: Vec<Move>,
    pub(super) wakes: Vec<Arc<dyn Wake>>,
    pub(super) session_ready: bool,
}

impl Store {
    pub(super) fn new(path: Arc<str>, policy: Policy, owner: Owner, clock: Clock, timers: Arc<Timers>) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            path,
            clock,
            state: Mutex::new(State::new(policy)),
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

    /// Runs one operation on the state as it is now, then does what it caused elsewhere.
    pub(super) fn with<T>(&self, operation: impl FnOnce(&mut State, i64, &mut Changes) -> T) -> T {
        let now = self.clock.now_ms();
        let mut changes = Changes::default();
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

    /// The same for what only makes sense while the entity is there.
    pub(super) fn try_with<T>(
        &self,
        operation: impl FnOnce(&mut State, i64, &mut Changes) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        self.with(|state, now, changes| {
            if state.gone {
                return Err(Refusal::no_entity(&self.path));
            }
            operation(state, now, changes)
        })
    }

    /// Called by the timers, which have forgotten this store's alarm.
    pub(super) fn tick(&self, alarm: Alarm) {
        let mut state = self.lock();
        if state.armed == Some(alarm) {
            state.armed = None;
        }
        drop(state);
        self.with(|_, _, _| ());
    }

    /// The entity was deleted: who waits for it is told.
    pub(super) fn close(&self) {
        self.with(|state, _, changes| {
            state.gone = true;
            state.wake_all(changes);
            changes.session_ready = true;
        });
    }

    pub(super) fn set_policy(&self, policy: Policy) {
        self.with(|state, _, changes| {
            state.policy = policy;
            if state.policy.flow != Flow::Keep {
                state.move_all_ready(changes);
            }
            state.wake_all(changes);
            changes.session_ready = true;
        });
    }

    fn finish(&self, changes: Changes) {
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

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new(policy: Policy) -> Self {
        Self {
            policy,
            entries: BTreeMap::new(),
            ready: BTreeSet::new(),
            locks: HashMap::new(),
            sessions: HashMap::new(),
            free_sessions: BTreeMap::new(),
            waiting: HashMap::new(),
            due: BTreeSet::new(),
            tally: Tally::default(),
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

    /// The message to be handed out next: the oldest, of each partition in turn.
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

    /// A number that was never given out by this store: for tickets, epochs and registrations.
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

    fn run_due(&mut self, now: i64, changes: &mut Changes) {
        while self.next_due().is_some_and(|at| at <= now) {
            let Some((at, due)) = self.due.pop_first() else { break };
            match due {
                Due::Activate(number) => self.activate(number, now, changes),
                Due::Unlock(number) => self.lose_lock(number, now, changes),
                Due::Expire(number) => self.expire(number, changes),
                // When the lock ended counts, not when it was noticed.
                Due::LoseSession(id) => self.lose_session(&id, at, now, changes),
                Due::TellLoss(id) => self.wake(Some(&id), changes),
            }
        }
    }

    pub(super) fn wake(&mut self, session: Option<&Arc<str>>, changes: &mut Changes) {
        // Most sends find nobody waiting, or everybody without sessions.
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

    fn wake_all(&mut self, changes: &mut Changes) {
        for (_, waiting) in self.waiting.drain() {
            changes.wakes.extend(waiting.into_iter().map(|(_, wake)| wake));
        }
    }
}
