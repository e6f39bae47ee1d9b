//! A delivery that is not settled yet: what it holds is given back exactly once, whoever drops it.

use std::sync::Arc;

use crate::{
    consume::{consumer::Consumer, lock_renewal::LockId},
    driver::{DeadLetter, DriverToken, ReceivedMessage},
    message::Envelope,
};

/// What core knows of one unsettled message.
pub(crate) struct UnsettledMessage {
    pub(crate) token: DriverToken,
    pub(crate) envelope: Envelope,
    pub(crate) attempt: u32,
    pub(crate) lock: Option<LockId>,
    /// What few messages have, apart, since every delivery is moved several times.
    rare: Option<Box<RareFields>>,
}

/// What only dead letters, undecodable and foreign messages have.
#[derive(Default)]
pub(crate) struct RareFields {
    pub(crate) malformed: Option<Box<str>>,
    pub(crate) dead_letter: Option<Box<DeadLetter>>,
    pub(crate) known_by: Option<Box<str>>,
    /// The mark it came with.
    pub(crate) mark: Option<Box<str>>,
    /// The mark of the redrive that settles it.
    pub(crate) stamp: Option<Arc<str>>,
    pub(crate) native: Option<DriverToken>,
    pub(crate) group: Option<Box<str>>,
}

impl UnsettledMessage {
    pub(crate) fn new(received: ReceivedMessage, lock: Option<LockId>) -> Self {
        let ReceivedMessage { token, envelope, attempt, malformed, dead_letter, known_by, mark, native, group, .. } =
            received;
        let told = malformed.is_some() || dead_letter.is_some();
        let has = told || known_by.is_some() || mark.is_some() || native.is_some() || group.is_some();
        let rare =
            has.then(|| Box::new(RareFields { malformed, dead_letter, known_by, mark, stamp: None, native, group }));
        Self { token, envelope, attempt, lock, rare }
    }

    pub(crate) fn rare(&self) -> Option<&RareFields> {
        self.rare.as_deref()
    }

    /// What it is ordered by: the broker's group, else its key. Messages with neither share the empty one.
    pub(crate) fn lane(&self) -> &str {
        let group = self.rare().and_then(|rare| rare.group.as_deref());
        group.or(self.envelope.key.as_deref()).unwrap_or("")
    }

    /// Why it could not be decoded, if so.
    pub(crate) fn malformed(&self) -> Option<&str> {
        self.rare()?.malformed.as_deref()
    }
}

/// Unsettled parts with their consumer. Dropping them frees the place in the prefetch window, the lock and the key.
pub(crate) struct UnsettledDelivery {
    pub(crate) consumer: Arc<Consumer>,
    parts: Option<UnsettledMessage>,
}

impl UnsettledDelivery {
    pub(crate) fn new(consumer: Arc<Consumer>, parts: UnsettledMessage) -> Self {
        consumer.enter_hand();
        Self { consumer, parts: Some(parts) }
    }

    pub(crate) fn parts(&self) -> &UnsettledMessage {
        match &self.parts {
            Some(parts) => parts,
            None => unreachable!("parts are only taken by value"),
        }
    }

    /// What a copy of it will be marked with.
    pub(crate) fn stamp(&mut self, mark: Arc<str>) {
        if let Some(parts) = &mut self.parts {
            parts.rare.get_or_insert_default().stamp = Some(mark);
        }
    }

    /// It is settled. Nobody is woken for the place that it frees: see [`Consumer::free`].
    pub(crate) fn settled(mut self) {
        if let Some(parts) = self.parts.take() {
            self.consumer.leave_hand();
            self.consumer.free(parts);
        }
    }

    /// Takes the parts, which stay unsettled and keep their place.
    pub(crate) fn into_parts(mut self) -> UnsettledMessage {
        match self.parts.take() {
            Some(parts) => {
                self.consumer.leave_hand();
                parts
            }
            None => unreachable!("parts are only taken by value"),
        }
    }

    /// Whether the delivery is still this consumer's, as far as is known without I/O.
    pub(crate) fn is_held(&self) -> bool {
        self.consumer.holds(self.parts())
    }
}

impl Drop for UnsettledDelivery {
    fn drop(&mut self) {
        if let Some(parts) = self.parts.take() {
            self.consumer.leave_hand();
            self.consumer.let_go(parts);
        }
    }
}
