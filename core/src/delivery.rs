//! A message handed to a consumer, to be settled once.

use std::{fmt, time::Duration};

use tokio::time::Instant;

use crate::{DeadLetter, Envelope, Error, Result, Source};

/// A message handed to a consumer. Settle it once; dropped, it is released.
///
/// A settlement is handed over when its future is first polled, and then goes on even if the future is dropped.
pub struct Delivery(());

impl Delivery {
    /// The message.
    pub fn envelope(&self) -> &Envelope {
        unimplemented!()
    }

    /// 1-based count of deliveries of this message from this source.
    pub fn attempt(&self) -> u32 {
        unimplemented!()
    }

    /// Where it came from.
    pub fn source(&self) -> &Source {
        unimplemented!()
    }

    /// On dead letters: how it got there.
    pub fn dead_letter_info(&self) -> Option<&DeadLetter> {
        unimplemented!()
    }

    /// Why the message could not be decoded; only on dead letters, where it is handed out raw.
    pub fn malformed(&self) -> Option<&str> {
        unimplemented!()
    }

    /// When the lock ends on this machine's monotonic clock; moves as the lock is renewed.
    pub fn locked_until(&self) -> Option<Instant> {
        unimplemented!()
    }

    /// Done: removes the message.
    pub async fn ack(self) -> Result<(), SettleError> {
        unimplemented!()
    }

    /// Makes it available again at once.
    pub async fn release(self) -> Result<(), SettleError> {
        unimplemented!()
    }

    /// Makes it available again after `delay`, with attempt + 1.
    pub async fn retry_after(self, delay: Duration) -> Result<(), SettleError> {
        let _ = delay;
        unimplemented!()
    }

    /// Moves it to the source's dead letters.
    pub async fn dead_letter(
        self,
        reason: impl Into<Box<str>>,
        detail: impl Into<Box<str>>,
    ) -> Result<(), SettleError> {
        let _ = (reason.into(), detail.into());
        unimplemented!()
    }

    /// Lengthens the lock: held for `by` from now. `Unsupported` where the hold cannot be renewed.
    pub async fn extend(&mut self, by: Duration) -> Result<()> {
        let _ = by;
        unimplemented!()
    }
}

/// A settlement that failed. It gives the delivery back, except after `LockLost`.
pub struct SettleError(Box<(Error, Option<Delivery>)>);

impl SettleError {
    /// What went wrong.
    pub fn error(&self) -> &Error {
        &self.0.0
    }

    /// The error, and the delivery to settle again unless its lock is lost.
    pub fn into_parts(self) -> (Error, Option<Delivery>) {
        *self.0
    }
}

impl From<SettleError> for Error {
    fn from(e: SettleError) -> Self {
        e.0.0
    }
}

impl fmt::Display for SettleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.0.fmt(f)
    }
}

impl fmt::Debug for SettleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0.0, f)
    }
}

impl std::error::Error for SettleError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.0.0)
    }
}
