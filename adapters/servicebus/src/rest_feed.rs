//! What a receiver and its settler over HTTP share.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use polybus_core::{Received, Source, Token};
use tokio::time::Instant;

use crate::{
    feeds::Hands,
    names::Place,
    rest_client::{Lock, Locked, Rest},
    rest_native::{self, RestNative},
};

pub(crate) struct RestFeed {
    pub(crate) rest: Rest,
    pub(crate) source: Source,
    /// Where messages are received: a source, or both places that its dead letters may be in.
    pub(crate) places: Vec<Place>,
    /// How long the broker holds a delivery.
    pub(crate) lock: Duration,
    /// How long a request for a message waits at the broker.
    pub(crate) poll: Duration,
    pub(crate) closed: AtomicBool,
    next: AtomicU64,
    /// Deliveries that are not settled.
    open: Mutex<HashMap<u64, Arc<Lock>>>,
}

/// What a settler knows a delivery by.
pub(crate) struct RestHeld {
    number: u64,
    pub(crate) lock: Arc<Lock>,
    pub(crate) native: RestNative,
    pub(crate) hop: u32,
}

impl Hands for RestFeed {
    type Of = Source;

    fn of(&self) -> &Source {
        &self.source
    }

    fn held(&self) -> u64 {
        self.open().len() as u64
    }
}

impl RestFeed {
    pub(crate) fn new(rest: Rest, source: Source, places: Vec<Place>, lock: Duration, poll: Duration) -> Self {
        // A lock may begin at any time while a request waits, and the broker counts in whole seconds.
        let poll = Duration::from_secs(poll.min(lock / 4).as_secs().max(1));
        Self {
            rest,
            source,
            places,
            lock,
            poll,
            closed: AtomicBool::new(false),
            next: AtomicU64::new(0),
            open: Mutex::default(),
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Arc<Lock>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When a lock that began at `from` ends, margin taken off.
    pub(crate) fn deadline(&self, from: Instant) -> Instant {
        let margin = (self.lock / 20).max(Duration::from_secs(1)).min(self.lock / 4);
        from + self.lock - margin
    }

    /// Whether a delivery is still to be settled.
    pub(crate) fn holds(&self, held: &RestHeld) -> bool {
        self.open().contains_key(&held.number)
    }

    /// A delivery is over.
    pub(crate) fn let_go(&self, held: &RestHeld) {
        self.open().remove(&held.number);
    }

    /// All deliveries that are not settled; they are let go.
    pub(crate) fn take_open(&self) -> Vec<Arc<Lock>> {
        std::mem::take(&mut *self.open()).into_values().collect()
    }

    /// The message that core sees.
    pub(crate) fn read(&self, locked: Locked) -> Received {
        let Locked { told, lock } = locked;
        let (at, native) = (told.at, RestNative::new(&told.headers, told.body));
        let decoded = rest_native::decode(&native, &self.source);
        let dead = self.source.is_dead_letters();
        let death = dead.then(|| rest_native::death(&native, decoded.carried.dead_letter, &self.source));
        let carried = if dead { 0 } else { decoded.carried.attempts };
        let attempt = carried.saturating_add(native.broker.delivery_count.unwrap_or(1).max(1));
        let (number, lock) = (self.next.fetch_add(1, Ordering::Relaxed), Arc::new(lock));
        self.open().insert(number, lock.clone());
        let held = RestHeld { number, lock, native, hop: decoded.carried.hop };
        let mut received = Received::new(Token::new(held), decoded.envelope, attempt);
        received.locked_until = Some(self.deadline(at));
        received.malformed = decoded.malformed;
        received.dead_letter = death;
        received
    }
}
