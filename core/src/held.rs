//! A delivery that is not settled yet: what it holds is given back exactly once, whoever drops it.

use std::sync::Arc;

use crate::{DeadLetter, Envelope, Received, Token, consumer::Consumer, locks::LockId};

/// What core knows of one unsettled message.
pub(crate) struct Parts {
    pub(crate) token: Token,
    pub(crate) envelope: Envelope,
    pub(crate) attempt: u32,
    pub(crate) malformed: Option<Box<str>>,
    pub(crate) dead_letter: Option<Box<DeadLetter>>,
    pub(crate) lock: Option<LockId>,
}

impl Parts {
    pub(crate) fn new(received: Received, lock: Option<LockId>) -> Self {
        let Received { token, envelope, attempt, malformed, dead_letter, .. } = received;
        Self { token, envelope, attempt, malformed, dead_letter, lock }
    }
}

/// Unsettled parts with their consumer. Dropping them frees the place in the prefetch window, the lock and the key.
pub(crate) struct Held {
    pub(crate) consumer: Arc<Consumer>,
    parts: Option<Parts>,
}

impl Held {
    pub(crate) fn new(consumer: Arc<Consumer>, parts: Parts) -> Self {
        consumer.taken();
        Self { consumer, parts: Some(parts) }
    }

    pub(crate) fn parts(&self) -> &Parts {
        match &self.parts {
            Some(parts) => parts,
            None => unreachable!("parts are only taken by value"),
        }
    }

    /// Takes the parts, which stay unsettled and keep their place.
    pub(crate) fn into_parts(mut self) -> Parts {
        match self.parts.take() {
            Some(parts) => {
                self.consumer.put_back();
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

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(parts) = self.parts.take() {
            self.consumer.put_back();
            self.consumer.let_go(parts);
        }
    }
}
