//! A message as the broker stores it.

use crate::{Envelope, driver::DeadLetter};

pub(super) struct StoredMessage {
    pub(super) envelope: Envelope,
    /// Its place in the order of its store. A message that is given back goes there again.
    pub(super) place: u64,
    /// How often it was handed out, its earlier copies included.
    pub(super) attempts: u32,
    /// Why it could not be decoded. Only injected messages have this.
    pub(super) malformed: Option<Box<str>>,
    /// What a topic's filters look at instead of the type. Only injected messages have this.
    pub(super) routing_key: Option<Box<str>>,
    /// How it became a dead letter, if it is one.
    pub(super) dead_letter: Option<Box<DeadLetter>>,
    /// The mark of the redrive that moved it or set it aside.
    pub(super) mark: Option<Box<str>>,
    /// How often it was redriven.
    pub(super) redriven: u32,
}

impl StoredMessage {
    pub(super) fn new(envelope: Envelope) -> Self {
        Self {
            envelope,
            place: 0,
            attempts: 0,
            malformed: None,
            routing_key: None,
            dead_letter: None,
            mark: None,
            redriven: 0,
        }
    }

    /// A subscription's copy of a message that is being published to a topic.
    pub(super) fn copy(&self) -> Self {
        Self {
            envelope: self.envelope.clone(),
            place: 0,
            attempts: self.attempts,
            malformed: self.malformed.clone(),
            routing_key: None,
            dead_letter: None,
            mark: self.mark.clone(),
            redriven: self.redriven,
        }
    }

    /// Makes a dead letter a live message again, at attempt 1.
    pub(super) fn redrive(&mut self, mark: Option<&str>) {
        self.dead_letter = None;
        self.attempts = 0;
        self.redriven += 1;
        if let Some(mark) = mark {
            self.mark = Some(mark.into());
        }
    }

    /// The text that a topic's filters match.
    pub(super) fn routing_type(&self) -> &str {
        self.routing_key.as_deref().unwrap_or(&self.envelope.event_type)
    }

    /// The ordering key. Messages without one share the empty key, so their order is kept too.
    pub(super) fn key(&self) -> &str {
        self.envelope.key.as_deref().unwrap_or_default()
    }
}
