//! A message as the broker stores it.

use crate::{driver::DeadLetter, message::Envelope};

pub(super) struct Message {
    pub(super) envelope: Envelope,
    /// Its place in the source: what is given back goes there again.
    pub(super) place: u64,
    /// How often it was handed out, and by earlier copies.
    pub(super) attempts: u32,
    /// Why it could not be decoded; only injected messages have it.
    pub(super) malformed: Option<Box<str>>,
    /// By what a topic chooses subscriptions, if not by the type; only injected messages have it.
    pub(super) routing_key: Option<Box<str>>,
    /// On dead letters: how it got there.
    pub(super) dead_letter: Option<Box<DeadLetter>>,
    /// The redrive that moved it, or set it aside.
    pub(super) mark: Option<Box<str>>,
    /// How often it was redriven.
    pub(super) redriven: u32,
}

impl Message {
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

    /// Another subscription's copy of a message that is being published.
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

    /// A dead letter goes back, at attempt 1.
    pub(super) fn redriven(&mut self, mark: Option<&str>) {
        self.dead_letter = None;
        self.attempts = 0;
        self.redriven += 1;
        if let Some(mark) = mark {
            self.mark = Some(mark.into());
        }
    }

    /// What a topic's filters look at.
    pub(super) fn routed_by(&self) -> &str {
        self.routing_key.as_deref().unwrap_or(&self.envelope.event_type)
    }

    /// The ordering key. Messages without one share a lane, so that their order is kept too.
    pub(super) fn key(&self) -> &str {
        self.envelope.key.as_deref().unwrap_or_default()
    }
}
