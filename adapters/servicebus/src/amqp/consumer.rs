//! What a receiver and its settler share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use fe2o3_amqp::link::delivery::DeliveryInfo;
use polybus_core::{
    Source,
    driver::{DriverToken, ReceivedMessage, lock_margin},
    topology::Entity,
};
use tokio::time::Instant;

use crate::{
    amqp::{
        connection::Wires,
        locks::Lock,
        management::Management,
        receive_task::{Arrival, Fate, Pump},
        sessions::Session,
    },
    consume::{consumers::Hands, in_place_hold::Holds},
    message::{
        annotations::Told,
        original::{At, Opened, Original},
    },
    topology::lock_length::LockLength,
};

pub(crate) struct Feed {
    pub(crate) wires: Arc<Wires>,
    pub(crate) source: Source,
    /// That of the source, as text.
    pub(crate) address: Box<str>,
    /// Where messages are received.
    pub(crate) path: String,
    pub(crate) management: Arc<Management>,
    /// How long the broker holds a delivery, and what is known of that.
    length: LockLength,
    /// The broker refuses requests for several locks.
    pub(crate) one_by_one: AtomicBool,
    /// What is kept in place until it may come again.
    pub(crate) holds: Holds,
    pub(crate) prefetch: usize,
    /// Whether the locks of what was not received yet are renewed.
    pub(crate) renews: bool,
    pub(crate) closed: AtomicBool,
    /// The link of a receiver that was closed.
    kept: Mutex<Option<Pump>>,
    /// Deliveries that are not settled, by lock token.
    open: Mutex<HashMap<uuid::Uuid, Open>>,
}

/// A delivery that is not settled.
struct Open {
    partition: u16,
    /// What its link knows it by.
    info: DeliveryInfo,
    /// Its lock counts from then, as far as this side has renewed it.
    from: Instant,
    session: Option<Arc<Session>>,
    /// Settled for core: this side keeps it until it is to come again.
    kept: bool,
}

/// What a settler knows a delivery by.
pub(crate) struct Held {
    pub(crate) lock: Lock,
    pub(crate) pump: Option<Pump>,
    pub(crate) original: Original,
    pub(crate) session: Option<Arc<Session>>,
}

impl Hands for Feed {
    type Of = str;

    fn of(&self) -> &str {
        &self.path
    }

    fn held(&self) -> u64 {
        self.open().len() as u64
    }
}

impl Feed {
    pub(crate) fn new(wires: Arc<Wires>, from: &Entity<Source>, path: String, length: LockLength) -> Self {
        Self {
            management: Arc::new(Management::new(wires.clone(), path.clone())),
            wires,
            source: from.name.clone(),
            address: from.name.address().to_string().into(),
            path,
            length,
            one_by_one: AtomicBool::new(false),
            holds: Holds::default(),
            prefetch: from.prefetch,
            renews: from.renew_locks,
            closed: AtomicBool::new(false),
            kept: Mutex::default(),
            open: Mutex::default(),
        }
    }

    /// Where its messages are read.
    pub(crate) fn at(&self) -> At<'_> {
        At { source: &self.source, address: &self.address, lock: self.lock() }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<uuid::Uuid, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the broker holds a delivery, as far as is known.
    pub(crate) fn lock(&self) -> Duration {
        self.length.get()
    }

    /// Learns from a message whose lock was given just now. True if locks are shorter than was thought.
    pub(crate) fn learn(&self, told: &Told) -> bool {
        let shorter = self.length.learn(told);
        if let Some(was) = shorter {
            tracing::warn!(source = %self.source, was = ?was, is = ?self.lock(), "the broker's locks are shorter than was known");
        }
        shorter.is_some()
    }

    /// When a lock that began at `from` ends, margin taken off.
    pub(crate) fn deadline(&self, from: Instant) -> Instant {
        let lock = self.lock();
        from + lock - lock_margin(lock)
    }

    /// Whether a delivery is still held, as far as is known.
    pub(crate) fn holds(&self, held: &Held) -> bool {
        self.open().get(&held.lock.token).is_some_and(|open| !open.kept)
            && held.session.as_ref().is_none_or(|s| s.alive())
    }

    /// A delivery without a session was renewed by a request that went out then.
    pub(crate) fn renewed(&self, held: &Held, from: Instant) {
        if let Some(open) = self.open().get_mut(&held.lock.token) {
            open.from = from;
        }
    }

    /// Keeps a delivery from now on, though it is settled for core. Tells from when its lock counts; `None` if it is not held.
    pub(crate) fn keep_back(&self, lock: &uuid::Uuid) -> Option<Instant> {
        let mut open = self.open();
        let open = open.get_mut(lock).filter(|open| !open.kept)?;
        open.kept = true;
        Some(open.from)
    }

    /// A delivery is lost. Its link or session is told, so that neither waits for it.
    pub(crate) fn forget(&self, held: &Held) {
        let mut open = self.open();
        if open.get(&held.lock.token).is_none_or(|open| open.kept) {
            return;
        }
        let lost = open.remove(&held.lock.token);
        drop(open);
        let Some(Open { info, .. }) = lost else { return };
        match (&held.session, &held.pump) {
            (Some(session), _) => session.lost(info),
            // Should the lock have a moment left, this ends it; the attempt counts either way.
            (None, Some(pump)) => drop(pump.forget(vec![info], Fate::Abandoned)),
            (None, None) => {}
        }
    }

    /// Keeps a closed receiver's link for the settler.
    pub(crate) fn keep(&self, pump: Pump) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(pump);
    }

    /// Ends the link that was kept.
    pub(crate) async fn end(&self) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(pump) = kept {
            pump.close().await;
        }
    }

    /// Whether a delivery is still to be settled.
    pub(crate) fn is_open(&self, lock: &uuid::Uuid) -> bool {
        self.open().contains_key(lock)
    }

    /// What the link knows a delivery by that is still to be settled.
    pub(crate) fn info(&self, lock: &uuid::Uuid) -> Option<DeliveryInfo> {
        self.open().get(lock).map(|open| open.info.clone())
    }

    /// Deliveries are over; what their links know them by.
    pub(crate) fn let_go(&self, locks: impl IntoIterator<Item = uuid::Uuid>) -> Vec<DeliveryInfo> {
        let mut open = self.open();
        locks.into_iter().filter_map(|lock| open.remove(&lock)).map(|open| open.info).collect()
    }

    /// All deliveries that are not settled; they are let go.
    pub(crate) fn take_open(&self) -> Vec<(Lock, Option<Arc<Session>>)> {
        let open = std::mem::take(&mut *self.open());
        let lock = |token, partition| Lock { token, partition };
        open.into_iter().map(|(token, open)| (lock(token, open.partition), open.session)).collect()
    }

    /// The message that core sees, under a lock that counts from then.
    pub(crate) fn read(
        &self,
        arrival: Arrival,
        from: Instant,
        pump: Option<&Pump>,
        session: Option<Arc<Session>>,
    ) -> ReceivedMessage {
        let Arrival { lock, info, opened, .. } = arrival;
        let Opened { original, envelope, attempt, malformed, dead_letter } = opened;
        let (native, mark) = (original.kept.clone(), original.carried.mark.clone());
        let sequence = original.sequence;
        let held = Held { lock, pump: pump.cloned(), original, session: session.clone() };
        self.open().insert(lock.token, Open { partition: lock.partition, info, from, session, kept: false });
        let mut received = ReceivedMessage::new(DriverToken::new(held), envelope, attempt);
        received.locked_until = Some(self.deadline(from));
        received.malformed = malformed;
        received.dead_letter = dead_letter;
        received.native = native.map(DriverToken::new);
        // Only a redrive asks for them.
        if self.source.is_dead_letters() {
            received.known_by = (sequence != 0).then(|| sequence.to_string().into());
            received.mark = mark;
        }
        received
    }
}
