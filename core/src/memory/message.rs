//! A message as the broker stores it.

use crate::{DeadLetter, Envelope};

pub(super) struct Message {
    pub(super) envelope: Envelope,
    /// Its place in the source: what is given back goes there again.
    pub(super) place: u64,
    /// How often it was handed out, and by earlier copies.
    pub(super) attempts: u32,
    /// Why it could not be decoded; only injected messages have it.
    pub(super) malformed: Option<Box<str>>,
    /// On dead letters: how it got there.
    pub(super) dead_letter: Option<Box<DeadLetter>>,
}

impl Message {
    pub(super) fn new(envelope: Envelope) -> Self {
        Self { envelope, place: 0, attempts: 0, malformed: None, dead_letter: None }
    }

    /// Another subscription's copy of a message that is being published.
    pub(super) fn copy(&self) -> Self {
        Self {
            envelope: self.envelope.clone(),
            place: 0,
            attempts: self.attempts,
            malformed: self.malformed.clone(),
            dead_letter: None,
        }
    }

    /// The ordering key. Messages without one share a lane, so that their order is kept too.
    pub(super) fn key(&self) -> &str {
        self.envelope.key.as_deref().unwrap_or_default()
    }
}
