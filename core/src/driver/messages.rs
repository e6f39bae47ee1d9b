//! Messages on their way through a driver: ready to be sent, and received.

use std::{any::Any, fmt, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    error::{Error, ErrorKind, Result},
    message::{DeadLetter, Envelope, Outgoing},
};

/// A message ready to be sent.
#[non_exhaustive]
pub struct PreparedMessage {
    /// The message as it was given.
    pub message: Outgoing,
    /// Its size on the wire in bytes, as the broker counts it.
    pub size: usize,
    /// Whatever the driver wants to find again in `send`.
    pub native: Option<DriverToken>,
}

impl PreparedMessage {
    /// A message and its size on the wire.
    pub fn new(message: Outgoing, size: usize) -> Self {
        Self { message, size, native: None }
    }

    /// Adds the driver's own encoded form.
    pub fn native<T: Any + Send + Sync>(mut self, native: T) -> Self {
        self.native = Some(DriverToken::new(native));
        self
    }
}

/// Something of the driver's that core carries without looking at it. Cheap to clone.
#[derive(Clone)]
pub struct DriverToken(Arc<dyn Any + Send + Sync>);

impl DriverToken {
    /// Wraps the driver's value.
    pub fn new<T: Any + Send + Sync>(value: T) -> Self {
        Self(Arc::new(value))
    }

    /// The driver's value; `Unexpected` if it is of another type.
    pub fn get<T: Any>(&self) -> Result<&T> {
        self.0.downcast_ref().ok_or_else(|| Error::new(ErrorKind::Unexpected, "a token of another driver"))
    }
}

impl fmt::Debug for DriverToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// A message as a receiver returns it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ReceivedMessage {
    /// What the settler knows it by.
    pub token: DriverToken,
    /// The message; for an undecodable one its foreign view.
    pub envelope: Envelope,
    /// 1-based: carried attempts plus the broker's count of hand-overs.
    pub attempt: u32,
    /// When the lock ends on the client's monotonic clock: arrival of the response + lock − margin, the margin being at
    /// least 1 s and at most a quarter of the lock. `None` where locks cannot be renewed.
    pub locked_until: Option<Instant>,
    /// Why the message could not be decoded. Core dead-letters it; on dead letters it is handed out raw.
    pub malformed: Option<Box<str>>,
    /// On dead letters: what is known of how it got there.
    pub dead_letter: Option<Box<DeadLetter>>,
    /// What the broker knows the message by, as long as it is in this source and however often it is handed out: a sequence number, the
    /// broker's own id of this copy. Never the producer's id, which may come twice. `None` where the broker has nothing of the kind.
    pub known_by: Option<Box<str>>,
    /// The mark it carries from a redrive that has seen it: [`CopyState::mark`](crate::message::cloudevents::CopyState::mark).
    pub mark: Option<Box<str>>,
    /// The native message, for [`Delivery::native`](crate::consume::Delivery::native).
    pub native: Option<DriverToken>,
    /// On ordered sources: what orders at the broker (message group, session), where that is not [`Envelope::key`] as it stands: a foreign
    /// message has no key, and a long key travels as its hash. Core orders and blocks by it; `None` means by the key, and messages that have
    /// neither share one lane.
    pub group: Option<Box<str>>,
}

impl ReceivedMessage {
    /// A decoded message.
    pub fn new(token: DriverToken, envelope: Envelope, attempt: u32) -> Self {
        Self {
            token,
            envelope,
            attempt,
            locked_until: None,
            malformed: None,
            dead_letter: None,
            known_by: None,
            mark: None,
            native: None,
            group: None,
        }
    }
}

/// What a driver takes off a lock, since the client learns of it late: 1 s, at most a quarter of the lock.
pub fn lock_margin(lock: Duration) -> Duration {
    (lock / 4).min(Duration::from_secs(1))
}
