//! How core forms batches for a driver.

use std::time::Duration;

/// How core forms batches for a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Batching {
    /// Most messages in a batch.
    pub entries: usize,
    /// Most bytes in a batch, by [`PreparedMessage::size`].
    pub bytes: usize,
    /// Most batches under way at once.
    pub in_flight: usize,
    /// Of settlements: a batch that is not full starts only while fewer than this many are under way. `in_flight` unless
    /// [`fuller`](Self::fuller) says otherwise.
    pub partial: usize,
    /// Of settlements: how long a batch that is not full waits for those deliveries that are still being handled.
    pub linger: Duration,
}

impl Batching {
    /// Limits of at least 1 each.
    pub fn new(entries: usize, bytes: usize, in_flight: usize) -> Self {
        let in_flight = in_flight.max(1);
        Self { entries: entries.max(1), bytes: bytes.max(1), in_flight, partial: in_flight, linger: Duration::ZERO }
    }

    /// For brokers that charge by the call: settlements that do not fill a batch wait while one is under way, and for `linger`
    /// while their consumer has other deliveries in hand, which may soon be settled too. It costs them up to one round trip and
    /// `linger`; full batches go as ever, and where nobody joins, waiting becomes rare.
    pub fn fuller(mut self, linger: Duration) -> Self {
        (self.partial, self.linger) = (1, linger);
        self
    }
}
