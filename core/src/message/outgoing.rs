//! An envelope with the options of one publish.

use std::time::Duration;

use crate::message::Envelope;

/// An [`Envelope`] on its way to an address, with what only matters to this publish.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Outgoing {
    /// The message.
    pub envelope: Envelope,
    /// Not delivered before this much time has passed.
    pub delay: Option<Duration>,
    /// Expires this long after the publish; the bus turns it into `expires_at` by its own clock.
    pub expires_in: Option<Duration>,
}

impl Outgoing {
    /// Not delivered before `delay` has passed. More than the broker can do is `Unsupported` before any I/O.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// No consumer sees the message once `after` has passed.
    pub fn expires_in(mut self, after: Duration) -> Self {
        self.expires_in = Some(after);
        self
    }
}

impl From<Envelope> for Outgoing {
    fn from(envelope: Envelope) -> Self {
        Self { envelope, delay: None, expires_in: None }
    }
}

impl From<&Envelope> for Outgoing {
    fn from(envelope: &Envelope) -> Self {
        envelope.clone().into()
    }
}

/// What the broker told about a message it took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The broker's own id of the message, where it has one.
    pub broker_id: Option<Box<str>>,
}

impl Receipt {
    /// A receipt with the broker's own id.
    pub fn with_broker_id(id: impl Into<Box<str>>) -> Self {
        Self { broker_id: Some(id.into()) }
    }
}
