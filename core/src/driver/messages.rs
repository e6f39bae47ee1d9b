//! Messages on their way through a driver: one that is ready to be sent, and one that was received.

use std::{any::Any, fmt, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    Envelope, Error, ErrorKind, Outgoing, Result, Source,
    message::{DeadLetter, cloudevents::DecodedMessage},
};

/// A message that is ready to be sent: the answer of [`Sender::prepare`](super::Sender::prepare).
///
/// ```
/// use polybus_core::{Envelope, Outgoing, driver::PreparedMessage};
///
/// let encoded = vec![1_u8, 2, 3];
/// let message = Outgoing::from(Envelope::new("order.placed", "{}"));
/// let prepared = PreparedMessage::new(message, encoded.len()).native(encoded);
/// assert_eq!(prepared.size, 3);
/// ```
#[non_exhaustive]
pub struct PreparedMessage {
    /// The message as it was given.
    pub message: Outgoing,
    /// The size on the wire in bytes, as the broker counts it.
    pub size: usize,
    /// Whatever the driver wants to find again in `send`: the encoded message, for example.
    pub native: Option<DriverToken>,
}

impl PreparedMessage {
    /// A message and its size on the wire in bytes.
    ///
    /// ```
    /// use polybus_core::{Envelope, driver::PreparedMessage};
    ///
    /// let prepared = PreparedMessage::new(Envelope::new("order.placed", "{}").into(), 120);
    /// assert_eq!(prepared.size, 120);
    /// ```
    pub fn new(message: Outgoing, size: usize) -> Self {
        Self { message, size, native: None }
    }

    /// The driver's own encoded form, which [`native`](Self::native) has added.
    ///
    /// # Errors
    /// `Unexpected` where it is of another type, or another driver has prepared the message.
    ///
    /// ```
    /// use polybus_core::{Envelope, Outgoing, driver::PreparedMessage};
    ///
    /// let prepared = PreparedMessage::new(Outgoing::from(Envelope::new("t", "{}")), 2).native(vec![1_u8, 2]);
    /// assert_eq!(prepared.encoded::<Vec<u8>>().unwrap(), &[1, 2]);
    /// ```
    pub fn encoded<T: Any>(&self) -> Result<&T> {
        let strange = || Error::new(ErrorKind::Unexpected, "a message that another driver prepared");
        self.native.as_ref().ok_or_else(strange)?.get()
    }

    /// Adds the driver's own encoded form, which `send` finds again.
    ///
    /// ```
    /// use polybus_core::{Envelope, driver::PreparedMessage};
    ///
    /// let prepared = PreparedMessage::new(Envelope::new("order.placed", "{}").into(), 3).native("abc".to_owned());
    /// assert_eq!(prepared.native.unwrap().get::<String>()?, "abc");
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn native<T: Any + Send + Sync>(mut self, native: T) -> Self {
        self.native = Some(DriverToken::new(native));
        self
    }
}

/// A value of the driver's own that core carries without looking at it, such as a delivery tag. Cheap to clone.
///
/// ```
/// use polybus_core::driver::DriverToken;
///
/// let token = DriverToken::new(7_u64);
/// assert_eq!(token.get::<u64>()?, &7);
/// # Ok::<(), polybus_core::Error>(())
/// ```
#[derive(Clone)]
pub struct DriverToken(Arc<dyn Any + Send + Sync>);

impl DriverToken {
    /// Wraps the driver's value.
    ///
    /// ```
    /// let token = polybus_core::driver::DriverToken::new("receipt-handle".to_owned());
    /// ```
    pub fn new<T: Any + Send + Sync>(value: T) -> Self {
        Self(Arc::new(value))
    }

    /// The driver's value.
    ///
    /// # Errors
    /// `Unexpected` if the value is of another type.
    ///
    /// ```
    /// let token = polybus_core::driver::DriverToken::new(7_u64);
    /// assert!(token.get::<u64>().is_ok() && token.get::<String>().is_err());
    /// ```
    pub fn get<T: Any>(&self) -> Result<&T> {
        self.0.downcast_ref().ok_or_else(|| Error::new(ErrorKind::Unexpected, "a token of another driver"))
    }
}

impl fmt::Debug for DriverToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DriverToken")
    }
}

/// A message as [`Receiver::receive`](super::Receiver::receive) returns it.
///
/// ```
/// use polybus_core::{Envelope, driver::{DriverToken, ReceivedMessage}};
///
/// let mut received = ReceivedMessage::new(DriverToken::new(7_u64), Envelope::new("order.placed", "{}"), 1);
/// received.known_by = Some("sequence-7".into());
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ReceivedMessage {
    /// What the settler knows the delivery by.
    pub token: DriverToken,
    /// The message. One that cannot be decoded is its foreign view.
    pub envelope: Envelope,
    /// The attempt that this delivery is, beginning with 1: attempts that earlier copies carried, plus the broker's
    /// count.
    pub attempt: u32,
    /// When the lock ends on the client's monotonic clock: arrival of the response, plus the lock, less its
    /// [`lock_margin`]. `None` where locks cannot be renewed.
    pub locked_until: Option<Instant>,
    /// Why the message could not be decoded; `None` if it could. Core dead-letters such a message. From dead letters it
    /// is handed out as it is.
    pub malformed: Option<Box<str>>,
    /// On dead letters: how the message became one.
    pub dead_letter: Option<Box<DeadLetter>>,
    /// What the broker knows the message by as long as it is in this source, however often it is handed out: a sequence
    /// number, or the broker's own id of this copy.
    ///
    /// Never the producer's id, which two messages may have. `None` where the broker has nothing of the kind.
    pub known_by: Option<Box<str>>,
    /// The mark of a redrive that has seen it: [`CopyState::mark`](crate::message::cloudevents::CopyState::mark).
    pub mark: Option<Box<str>>,
    /// The adapter's own view of the message, for [`Delivery::native`](crate::consume::Delivery::native).
    pub native: Option<DriverToken>,
    /// On ordered sources: what the broker orders by (a message group, a session), where that is not [`Envelope::key`]
    /// as it stands. A foreign message has no key, and a long key travels as its hash.
    ///
    /// Core orders and blocks by it. With `None` it goes by the key, and all messages that have neither are in one
    /// order.
    pub group: Option<Box<str>>,
    /// How often this message is delivered at most, where it has a limit of its own. `None`: its source's.
    pub max_deliveries: Option<u32>,
}

impl ReceivedMessage {
    /// A message that could be decoded. Set what else is known of it afterwards.
    ///
    /// ```
    /// use polybus_core::{Envelope, driver::{DriverToken, ReceivedMessage}};
    ///
    /// let received = ReceivedMessage::new(DriverToken::new(7_u64), Envelope::new("order.placed", "{}"), 1);
    /// assert!(received.malformed.is_none());
    /// ```
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
            max_deliveries: None,
        }
    }
}

impl ReceivedMessage {
    /// A message of `from`, as [`decode`](crate::message::cloudevents::decode) has read it. The broker has handed out
    /// this copy of it `deliveries` times, this time included; what earlier copies have used up comes on top.
    ///
    /// ```
    /// use polybus_core::{Source, driver::{DriverToken, ReceivedMessage}, message::cloudevents::{WireMessage, decode}};
    ///
    /// let message = decode(WireMessage { body: "hello".into(), address: "queue:q", ..WireMessage::default() });
    /// let received = ReceivedMessage::decoded(DriverToken::new(7), message, 1, &Source::queue("q"));
    /// assert_eq!(received.attempt, 1);
    /// ```
    pub fn decoded(token: DriverToken, message: DecodedMessage, deliveries: u32, from: &Source) -> Self {
        let DecodedMessage { envelope, carried, malformed, .. } = message;
        let mut received = Self::new(token, envelope, carried.attempts.saturating_add(deliveries));
        (received.malformed, received.mark) = (malformed, carried.mark);
        received.dead_letter = carried.dead_letter.filter(|_| from.is_dead_letters());
        received
    }
}

/// How much earlier than the broker the client takes a lock to end, since it learns of the lock late: 1 s, at most a
/// quarter of the lock.
///
/// ```
/// use std::time::Duration;
/// use polybus_core::driver::lock_margin;
///
/// assert_eq!(lock_margin(Duration::from_secs(30)), Duration::from_secs(1));
/// assert_eq!(lock_margin(Duration::from_secs(2)), Duration::from_millis(500));
/// ```
pub fn lock_margin(lock: Duration) -> Duration {
    (lock / 4).min(Duration::from_secs(1))
}
