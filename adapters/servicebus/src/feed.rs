//! What a receiver and its settler share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use fe2o3_amqp::link::delivery::DeliveryInfo;
use polybus_core::{Received, Source, Token, lock_margin};
use tokio::time::Instant;

use crate::{
    connection::Wires,
    envelope::{self, Native},
    feeds::Hands,
    management::Management,
    pump::{Arrival, Pump},
    sessions::Session,
};

pub(crate) struct Feed {
    pub(crate) wires: Arc<Wires>,
    pub(crate) source: Source,
    /// Where messages are received.
    pub(crate) path: String,
    pub(crate) management: Arc<Management>,
    /// How long the broker holds a delivery.
    pub(crate) lock: Duration,
    pub(crate) prefetch: usize,
    pub(crate) closed: AtomicBool,
    /// The link of a receiver that was closed.
    kept: Mutex<Option<Pump>>,
    /// Deliveries that are not settled.
    open: Mutex<HashMap<uuid::Uuid, Option<Arc<Session>>>>,
}

/// What a settler knows a delivery by.
pub(crate) struct Held {
    pub(crate) lock: uuid::Uuid,
    pub(crate) info: DeliveryInfo,
    pub(crate) pump: Option<Pump>,
    pub(crate) native: Native,
    pub(crate) hop: u32,
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
    pub(crate) fn new(wires: Arc<Wires>, source: Source, path: String, lock: Duration, prefetch: usize) -> Self {
        Self {
            management: Arc::new(Management::new(wires.clone(), path.clone())),
            wires,
            source,
            path,
            lock,
            prefetch,
            closed: AtomicBool::new(false),
            kept: Mutex::default(),
            open: Mutex::default(),
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<uuid::Uuid, Option<Arc<Session>>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When a lock that began at `from` ends, margin taken off.
    pub(crate) fn deadline(&self, from: Instant) -> Instant {
        from + self.lock - lock_margin(self.lock)
    }

    /// Whether a delivery is still held, as far as is known.
    pub(crate) fn holds(&self, held: &Held) -> bool {
        self.open().contains_key(&held.lock) && held.session.as_ref().is_none_or(|s| s.alive())
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

    /// A delivery is over.
    pub(crate) fn let_go(&self, lock: &uuid::Uuid) {
        self.open().remove(lock);
    }

    /// All deliveries that are not settled; they are let go.
    pub(crate) fn take_open(&self) -> HashMap<uuid::Uuid, Option<Arc<Session>>> {
        std::mem::take(&mut *self.open())
    }

    /// The message that core sees.
    pub(crate) fn read(&self, arrival: Arrival, pump: Option<&Pump>, session: Option<Arc<Session>>) -> Received {
        let Arrival { at, lock, info, message } = arrival;
        let (native, unreadable) = match message {
            Ok(message) => (Native::new(message), None),
            Err(why) => (Native::unreadable(), Some(why)),
        };
        let decoded = envelope::decode(&native, &self.source);
        let dead = self.source.is_dead_letters();
        let death = dead.then(|| envelope::death(&native, decoded.carried.dead_letter, &self.source));
        let attempt = match dead {
            true => envelope::dead_attempt(&native),
            false => decoded.carried.attempts.saturating_add(native.delivery_count).saturating_add(1),
        };
        let held = Held { lock, info, pump: pump.cloned(), native, hop: decoded.carried.hop, session: session.clone() };
        self.open().insert(lock, session);
        let mut received = Received::new(Token::new(held), decoded.envelope, attempt);
        received.locked_until = Some(self.deadline(at));
        received.malformed = unreadable.map(Into::into).or(decoded.malformed);
        received.dead_letter = death;
        received
    }
}
