//! How core forms batches for a driver.

use std::time::Duration;

/// How core forms the batches of a [`Sender`](super::Sender) or a [`Settler`](super::Settler).
///
/// ```
/// let batching = polybus_core::driver::Batching::new(10, 262_144, 4);
/// assert_eq!((batching.entries, batching.bytes, batching.in_flight), (10, 262_144, 4));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Batching {
    /// Most messages in a batch.
    pub entries: usize,
    /// Most bytes in a batch, by [`PreparedMessage::size`](super::PreparedMessage::size).
    pub bytes: usize,
    /// Most batches under way at once.
    pub in_flight: usize,
    /// For settlements: a batch that is not full starts only while fewer than this many are under way. It is
    /// `in_flight` unless [`fuller`](Self::fuller) changes it.
    pub partial: usize,
    /// For settlements: how long a batch that is not full waits for deliveries that are still being handled. Zero
    /// unless [`fuller`](Self::fuller) changes it.
    pub linger: Duration,
    /// For settlements: doing one again does nothing more. False unless [`repeatable`](Self::repeatable) changes it.
    pub is_repeatable: bool,
}

impl Batching {
    /// Limits on messages and bytes in a batch and on batches under way. Each is at least 1; `usize::MAX` stands for
    /// none.
    ///
    /// ```
    /// assert_eq!(polybus_core::driver::Batching::new(0, usize::MAX, 1).entries, 1);
    /// ```
    pub fn new(entries: usize, bytes: usize, in_flight: usize) -> Self {
        let in_flight = in_flight.max(1);
        Self {
            entries: entries.max(1),
            bytes: bytes.max(1),
            in_flight,
            partial: in_flight,
            linger: Duration::ZERO,
            is_repeatable: false,
        }
    }

    /// Fills batches of settlements better, for brokers that charge by the call.
    ///
    /// Settlements that do not fill a batch wait while one is under way. They also wait for `linger` while their
    /// consumer has other deliveries in hand, which may soon be settled too. It costs them up to one round trip and
    /// `linger`, each time. Full batches start as before.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let batching = polybus_core::driver::Batching::new(10, usize::MAX, 4).fuller(Duration::from_millis(5));
    /// assert_eq!((batching.partial, batching.linger), (1, Duration::from_millis(5)));
    /// ```
    pub fn fuller(mut self, linger: Duration) -> Self {
        (self.partial, self.linger) = (1, linger);
        self
    }

    /// Says that a settlement can be done again where core had no answer in time: it does nothing more, and is answered
    /// as the first time. So an `Ack` is not given up, which would hand a handled message out again.
    ///
    /// ```
    /// let batching = polybus_core::driver::Batching::new(10, usize::MAX, 4).repeatable();
    /// assert!(batching.is_repeatable);
    /// ```
    pub fn repeatable(mut self) -> Self {
        self.is_repeatable = true;
        self
    }
}
