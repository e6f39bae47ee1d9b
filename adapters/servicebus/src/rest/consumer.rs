//! What a receiver and its settler over HTTP share.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use polybus_core::{
    Source,
    driver::{
        DriverToken, ReceivedMessage,
        kit::prefetched::{self, ReceiveBuffer},
    },
    message::cloudevents::CopyState,
    topology::Entity,
};
use tokio::{sync::Notify, time::Instant};

use crate::{
    consume::consumers::Hands,
    rest::{
        client::{Lock, Locked, Rest},
        message_in::{self, RestNative},
    },
    topology::{lock_length::LockLength, names::Place},
};

pub(crate) struct RestFeed {
    pub(crate) rest: Rest,
    pub(crate) source: Source,
    /// Where messages are received: a source, or both places that its dead letters may be in.
    pub(crate) places: Vec<Place>,
    /// How long the broker holds a delivery, and what is known of that.
    length: LockLength,
    /// How many are kept in place until they may come again.
    pub(crate) kept: AtomicUsize,
    pub(crate) freed: Notify,
    /// How long a request for a message waits at the broker.
    pub(crate) poll: Duration,
    pub(crate) closed: AtomicBool,
    /// What has come and was not received.
    pub(crate) arrivals: Arc<ReceiveBuffer<Box<Locked>, Arc<Lock>>>,
    next: AtomicU64,
    /// Deliveries that are not settled.
    open: Mutex<HashMap<u64, Open>>,
}

/// A delivery that is not settled.
struct Open {
    lock: Arc<Lock>,
    /// The lock counts from then, as far as this side has renewed it.
    from: Instant,
    /// Settled for core: this side keeps it until it is to come again.
    kept: bool,
}

/// What a settler knows a delivery by.
pub(crate) struct RestHeld {
    number: u64,
    pub(crate) lock: Arc<Lock>,
    pub(crate) native: RestNative,
    /// What polybus sent along with it.
    pub(crate) carried: CopyState,
    /// Until then its sender lets it live.
    pub(crate) until: Option<Instant>,
}

impl RestHeld {
    /// Whether the time to live that its sender gave it is over after this long.
    pub(crate) fn ends_within(&self, delay: Duration) -> bool {
        self.until.is_some_and(|until| until.saturating_duration_since(Instant::now()) <= delay)
    }

    /// Its place among this consumer's.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }
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
    pub(crate) fn new(
        rest: Rest,
        from: &Entity<Source>,
        places: Vec<Place>,
        length: LockLength,
        poll: Duration,
    ) -> Self {
        let lock = length.get();
        // A lock may begin at any time while a request waits, and the broker counts in whole seconds.
        let poll = Duration::from_secs(poll.min(lock / 4).as_secs().max(1));
        Self {
            rest,
            source: from.name.clone(),
            places,
            length,
            kept: AtomicUsize::new(0),
            freed: Notify::new(),
            poll,
            closed: AtomicBool::new(false),
            arrivals: Arc::new(ReceiveBuffer::new(lock, margin(lock), from.renew_locks)),
            next: AtomicU64::new(0),
            open: Mutex::default(),
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the broker holds a delivery, as far as is known.
    pub(crate) fn lock(&self) -> Duration {
        self.length.get()
    }

    /// When a lock that began at `from` ends, margin taken off.
    pub(crate) fn deadline(&self, from: Instant) -> Instant {
        let lock = self.lock();
        from + lock - margin(lock)
    }

    /// Keeps what has come until it is received; the message again if nothing is received any more.
    pub(crate) fn put(&self, locked: Box<Locked>) -> Result<(), Box<Locked>> {
        let (lock, at) = (locked.lock.clone(), locked.told.at);
        if self.length.learn(&RestNative::told(&locked.told.headers)).is_some() {
            let lock = self.lock();
            tracing::warn!(source = %self.source, is = ?lock, "the broker's locks are shorter than was known");
            self.arrivals.shorten(lock, margin(lock));
        }
        if self.arrivals.put(locked, lock, at)? {
            tokio::spawn(prefetched::keep(Arc::downgrade(&self.arrivals), |locks| async move {
                join_all(locks.iter().map(|lock| async move {
                    let from = Instant::now();
                    lock.renew().await.map(|()| from)
                }))
                .await
            }));
        }
        Ok(())
    }

    /// Whether a delivery is still to be settled.
    pub(crate) fn holds(&self, held: &RestHeld) -> bool {
        self.open().get(&held.number).is_some_and(|open| !open.kept)
    }

    /// A delivery was renewed by a request that went out then.
    pub(crate) fn renewed(&self, held: &RestHeld, from: Instant) {
        if let Some(open) = self.open().get_mut(&held.number) {
            open.from = from;
        }
    }

    /// Keeps a delivery from now on, though it is settled for core. Tells from when its lock counts; `None` if it is not held.
    pub(crate) fn keep_back(&self, held: &RestHeld) -> Option<Instant> {
        let mut open = self.open();
        let open = open.get_mut(&held.number).filter(|open| !open.kept)?;
        open.kept = true;
        Some(open.from)
    }

    /// Whether a delivery is still to be given back.
    pub(crate) fn is_open(&self, held: &RestHeld) -> bool {
        self.open().contains_key(&held.number)
    }

    /// A delivery is lost.
    pub(crate) fn forget(&self, held: &RestHeld) {
        let mut open = self.open();
        if open.get(&held.number).is_some_and(|open| !open.kept) {
            open.remove(&held.number);
        }
    }

    /// A delivery is over.
    pub(crate) fn let_go(&self, held: &RestHeld) {
        self.open().remove(&held.number);
    }

    /// All deliveries that are not settled; they are let go.
    pub(crate) fn take_open(&self) -> Vec<Arc<Lock>> {
        std::mem::take(&mut *self.open()).into_values().map(|open| open.lock).collect()
    }

    /// The message that core sees, under a lock that counts from then.
    pub(crate) fn read(&self, locked: Locked, from: Instant) -> ReceivedMessage {
        let Locked { told, lock, place } = locked;
        let native = RestNative::new(&told.headers, told.body);
        let decoded = message_in::decode(&native, &self.source);
        let dead = self.source.is_dead_letters();
        let carried = decoded.carried;
        let death = dead.then(|| message_in::death(&native, &carried, &self.source));
        let attempts = if dead { 0 } else { carried.attempts };
        let attempt = attempts.saturating_add(native.broker.delivery_count.unwrap_or(1).max(1));
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.open().insert(number, Open { lock: lock.clone(), from, kept: false });
        let mark = carried.mark.clone();
        let known_by = native.broker.sequence_number.filter(|_| dead).map(|n| format!("{place}/{n}").into());
        let until = self.until(&native);
        let held = RestHeld { number, lock, native, carried, until };
        let mut received = ReceivedMessage::new(DriverToken::new(held), decoded.envelope, attempt);
        received.locked_until = Some(self.deadline(from));
        received.malformed = decoded.malformed;
        received.dead_letter = death;
        received.known_by = known_by;
        received.mark = mark;
        received
    }

    /// By the broker's clock as far as it is told: the lock was given before the message came and is not over.
    fn until(&self, native: &RestNative) -> Option<Instant> {
        let left = native.broker.told().left_of(native.broker.lives()?, self.lock());
        Instant::now().checked_add(Duration::try_from(left).unwrap_or_default())
    }
}

/// What the client may learn of a lock late by: over HTTP more than on a link.
fn margin(lock: Duration) -> Duration {
    (lock / 20).max(Duration::from_secs(1)).min(lock / 4)
}
