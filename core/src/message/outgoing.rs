//! An envelope with the options of one publish.

use std::time::Duration;

use crate::Envelope;

/// An [`Envelope`] with the options of one publish. Every `publish` takes one, or an envelope alone.
///
/// ```
/// use std::time::Duration;
/// use polybus_core::{Envelope, Outgoing};
///
/// let reminder = Outgoing::from(Envelope::new("reminder.due", "{}"))
///     .delay(Duration::from_secs(60))
///     .expires_in(Duration::from_secs(3600));
/// # assert_eq!(reminder.delay, Some(Duration::from_secs(60)));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Outgoing {
    /// The message.
    pub envelope: Envelope,
    /// The message is not delivered before this much time has passed.
    pub delay: Option<Duration>,
    /// The message expires this long after the publish. The bus turns it into `expires_at` by its own clock.
    pub expires_in: Option<Duration>,
}

impl Outgoing {
    /// Keeps the message from consumers until `delay` has passed.
    ///
    /// Publishing a delay longer than the broker can do
    /// ([`Capabilities::max_queue_delay`](crate::driver::Capabilities::max_queue_delay)) is `Unsupported`, before any
    /// I/O.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let reminder = polybus_core::Envelope::new("reminder.due", "{}");
    /// let later = polybus_core::Outgoing::from(reminder).delay(Duration::from_secs(60));
    /// assert_eq!(later.delay, Some(Duration::from_secs(60)));
    /// ```
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// Keeps the message from consumers once `after` has passed since the publish.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let offer = polybus_core::Envelope::new("offer.made", "{}");
    /// let offer = polybus_core::Outgoing::from(offer).expires_in(Duration::from_secs(60));
    /// assert_eq!(offer.expires_in, Some(Duration::from_secs(60)));
    /// ```
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

/// What the broker told about a message that it has taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The broker's own id of the message, where it has one.
    pub broker_id: Option<Box<str>>,
}

impl Receipt {
    /// A receipt with the broker's own id of the message. For adapters.
    ///
    /// ```
    /// assert_eq!(polybus_core::Receipt::with_broker_id("7").broker_id.as_deref(), Some("7"));
    /// ```
    pub fn with_broker_id(id: impl Into<Box<str>>) -> Self {
        Self { broker_id: Some(id.into()) }
    }
}
