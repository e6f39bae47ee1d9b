//! What a receiver and its settler over HTTP share: messages that have come, deliveries that are not settled, and their
//! locks.

use std::{
    sync::{
        Arc,
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
    consume::{consumers::CountedConsumer, unsettled::UnsettledDeliveries},
    rest::{
        client::{LockedMessage, RestClient, RestLock},
        message_in::{self, RestOriginal},
    },
    topology::{lock_length::LockLength, names::EntityPath},
};

/// One consumer of a source over HTTP.
pub(crate) struct RestConsumer {
    pub(crate) client: RestClient,
    pub(crate) source: Source,
    /// Where messages are received: a source, or both places that its dead letters may be in.
    pub(crate) places: Vec<EntityPath>,
    lock_length: LockLength,
    /// How many messages are held in place until they may come again.
    pub(crate) held_in_place: AtomicUsize,
    /// A message is no longer held in place.
    pub(crate) freed: Notify,
    /// How long a request for a message waits at the broker.
    pub(crate) poll: Duration,
    pub(crate) closed: AtomicBool,
    /// Messages that have come and that core has not received yet.
    pub(crate) buffer: Arc<ReceiveBuffer<Box<LockedMessage>, Arc<RestLock>>>,
    next: AtomicU64,
    /// By number.
    pub(crate) unsettled: UnsettledDeliveries<u64, Arc<RestLock>>,
}

/// What core's token of a delivery holds, for the settler.
pub(crate) struct RestDelivery {
    /// Its number among the deliveries of this consumer.
    pub(crate) number: u64,
    pub(crate) lock: Arc<RestLock>,
    pub(crate) native: RestOriginal,
    /// What polybus sent along with the message.
    pub(crate) carried: CopyState,
    /// When the time to live ends that its sender gave it.
    pub(crate) expires: Option<Instant>,
}

impl RestDelivery {
    /// Whether the time to live that its sender gave it ends within `delay`.
    pub(crate) fn expires_within(&self, delay: Duration) -> bool {
        self.expires.is_some_and(|expires| expires.saturating_duration_since(Instant::now()) <= delay)
    }
}

impl CountedConsumer for RestConsumer {
    type Source = Source;

    fn source(&self) -> &Source {
        &self.source
    }

    fn held(&self) -> u64 {
        self.unsettled.len() as u64
    }
}

impl RestConsumer {
    pub(crate) fn new(
        client: RestClient,
        from: &Entity<Source>,
        places: Vec<EntityPath>,
        lock_length: LockLength,
        poll: Duration,
    ) -> Self {
        let lock = lock_length.get();
        // A lock may begin at any time while a request waits, so a request waits for a part of a lock only. The broker
        // counts in whole seconds.
        let poll = Duration::from_secs(poll.min(lock / 4).as_secs().max(1));
        Self {
            client,
            source: from.name.clone(),
            places,
            lock_length,
            held_in_place: AtomicUsize::new(0),
            freed: Notify::new(),
            poll,
            closed: AtomicBool::new(false),
            buffer: Arc::new(ReceiveBuffer::new(lock, margin(lock), from.renew_locks)),
            next: AtomicU64::new(0),
            unsettled: UnsettledDeliveries::default(),
        }
    }

    /// How long the broker's locks are, as far as this side knows.
    pub(crate) fn lock_duration(&self) -> Duration {
        self.lock_length.get()
    }

    /// When a lock that began at `from` ends, less a margin.
    pub(crate) fn deadline(&self, from: Instant) -> Instant {
        let lock = self.lock_duration();
        from + lock - margin(lock)
    }

    /// Adds a message to the buffer. Gives it back if the buffer is closed.
    pub(crate) fn buffer_message(&self, locked: Box<LockedMessage>) -> Result<(), Box<LockedMessage>> {
        let (lock, at) = (locked.lock.clone(), locked.response.at);
        if self.lock_length.learn(&RestOriginal::annotations(&locked.response.headers)).is_some() {
            let lock = self.lock_duration();
            tracing::warn!(source = %self.source, is = ?lock, "the broker's locks are shorter than was known");
            self.buffer.shorten(lock, margin(lock));
        }
        if self.buffer.put(locked, lock, at)? {
            tokio::spawn(prefetched::keep(Arc::downgrade(&self.buffer), |locks| async move {
                join_all(locks.iter().map(|lock| async move {
                    let from = Instant::now();
                    lock.renew().await.map(|()| from)
                }))
                .await
            }));
        }
        Ok(())
    }

    /// The message as core receives it, under a lock that began at `from`. From now on it is among the unsettled.
    pub(crate) fn to_received(&self, locked: LockedMessage, from: Instant) -> ReceivedMessage {
        let LockedMessage { response, lock, place } = locked;
        let native = RestOriginal::new(&response.headers, response.body);
        let decoded = message_in::decode(&native, &self.source);
        let dead = self.source.is_dead_letters();
        let carried = decoded.carried;
        let dead_letter = dead.then(|| message_in::dead_letter_of(&native, &carried, &self.source));
        let attempts = if dead { 0 } else { carried.attempts };
        let attempt = attempts.saturating_add(native.broker.delivery_count.unwrap_or(1).max(1));
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.unsettled.insert(number, lock.clone(), from);
        let mark = carried.mark.clone();
        let known_by = native.broker.sequence_number.filter(|_| dead).map(|n| format!("{place}/{n}").into());
        let expires = self.expiry(&native);
        let held = RestDelivery { number, lock, native, carried, expires };
        let mut received = ReceivedMessage::new(DriverToken::new(held), decoded.envelope, attempt);
        received.locked_until = Some(self.deadline(from));
        received.malformed = decoded.malformed;
        received.dead_letter = dead_letter;
        received.known_by = known_by;
        received.mark = mark;
        received
    }

    /// When the time to live of a message ends. It is counted by the broker's clock as far as that is known: the lock
    /// was given before the message came, and is not over.
    fn expiry(&self, native: &RestOriginal) -> Option<Instant> {
        let left = native.broker.annotations().remaining_of(native.broker.time_to_live_span()?, self.lock_duration());
        Instant::now().checked_add(Duration::try_from(left).unwrap_or_default())
    }
}

/// How late the client may learn of a lock's end: later over HTTP than on a link.
fn margin(lock: Duration) -> Duration {
    (lock / 20).max(Duration::from_secs(1)).min(lock / 4)
}
