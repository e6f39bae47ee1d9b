//! What a driver is asked to do with a delivery.

use std::{any::Any, sync::Arc, time::Duration};

use time::OffsetDateTime;

use crate::{Envelope, Result, Source, driver::DriverToken, message::DeadLetter};

/// One settlement for a [`Settler`](super::Settler) to carry out.
///
/// ```
/// use polybus_core::{Envelope, driver::{DriverToken, SettleRequest, Settlement}};
///
/// let message = Envelope::new("order.placed", "{}");
/// let request = SettleRequest::new(DriverToken::new(7_u64), message, 1, Settlement::Ack);
/// assert_eq!(request.token.get::<u64>()?, &7);
/// # Ok::<(), polybus_core::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SettleRequest {
    /// The delivery, as the receiver named it.
    pub token: DriverToken,
    /// The message of the delivery, since a retry or a dead letter is a copy on some brokers.
    pub envelope: Envelope,
    /// The attempt that the delivery was.
    pub attempt: u32,
    /// What to do with it.
    pub how: Settlement,
    /// Of a message that comes again: why its handler failed, for people, as far as that is known.
    pub failure: Option<Box<str>>,
    /// For a dead letter: when it was given up.
    pub time: OffsetDateTime,
    /// For a redrive: the mark that the copy carries, by which this redrive knows it if it meets it again.
    pub mark: Option<Arc<str>>,
}

impl SettleRequest {
    /// A settlement without a mark and a failure, with the Unix epoch as its time.
    ///
    /// ```
    /// use polybus_core::{Envelope, driver::{DriverToken, SettleRequest, Settlement}};
    ///
    /// let message = Envelope::new("order.placed", "{}");
    /// let request = SettleRequest::new(DriverToken::new(()), message, 2, Settlement::Release);
    /// assert_eq!((request.attempt, request.mark), (2, None));
    /// ```
    pub fn new(token: DriverToken, envelope: Envelope, attempt: u32, how: Settlement) -> Self {
        Self { token, envelope, attempt, how, failure: None, time: OffsetDateTime::UNIX_EPOCH, mark: None }
    }

    /// The same settlement with another token, for a driver that wraps another one.
    ///
    /// ```
    /// use polybus_core::{Envelope, driver::{DriverToken, SettleRequest, Settlement}};
    ///
    /// let message = Envelope::new("order.placed", "{}");
    /// let outer = SettleRequest::new(DriverToken::new("outer"), message, 1, Settlement::Ack);
    /// let inner = outer.with_token(DriverToken::new(7_u64));
    /// assert_eq!(inner.how, outer.how);
    /// ```
    pub fn with_token(&self, token: DriverToken) -> Self {
        Self { token, ..self.clone() }
    }

    /// The driver's own values of a whole batch, in order.
    ///
    /// # Errors
    /// `Unexpected` if one is of another type.
    ///
    /// ```
    /// use polybus_core::{Envelope, driver::{DriverToken, SettleRequest, Settlement}};
    ///
    /// let ack = |tag: u64| {
    ///     SettleRequest::new(DriverToken::new(tag), Envelope::new("order.placed", "{}"), 1, Settlement::Ack)
    /// };
    /// assert_eq!(SettleRequest::tokens::<u64>(&[ack(1), ack(2)])?, [&1_u64, &2]);
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn tokens<T: Any>(batch: &[Self]) -> Result<Vec<&T>> {
        batch.iter().map(|settle| settle.token.get()).collect()
    }

    /// What the copy of a dead letter says about it, where a consumer of `from` gave it up. `None` for other
    /// settlements.
    ///
    /// ```
    /// use polybus_core::{Envelope, Source, driver::{DriverToken, SettleRequest, Settlement}};
    ///
    /// let how = Settlement::DeadLetter { reason: "malformed".into(), detail: "".into() };
    /// let request = SettleRequest::new(DriverToken::new(()), Envelope::new("order.placed", "{}"), 1, how);
    /// let letter = request.dead_letter(&Source::queue("orders")).unwrap();
    /// assert_eq!((letter.reason.as_deref(), letter.origin.as_deref()), (Some("malformed"), Some("queue:orders")));
    /// ```
    pub fn dead_letter(&self, from: &Source) -> Option<Box<DeadLetter>> {
        let Settlement::DeadLetter { reason, detail } = &self.how else { return None };
        Some(Box::new(DeadLetter {
            reason: Some(reason.clone()),
            detail: Some(detail.clone()).filter(|d| !d.is_empty()),
            attempt: Some(self.attempt),
            origin: Some(from.to_string().into()),
            time: Some(self.time),
            redriven: 0,
        }))
    }
}

/// What can be done with a delivery. A driver answers `Unsupported` for one that it does not know.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Settlement {
    /// The message is done, and is deleted.
    Ack,
    /// The message is available again at once, and the attempt counts. It is then ready, not in flight, in
    /// [`SourceStats`](crate::topology::SourceStats).
    Release,
    /// The message was never handed out. It is available again at once, and the attempt does not count, where the
    /// broker can do that.
    GiveBack,
    /// The message comes again to this source alone after this much time, at most 10 % late, as attempt + 1.
    RetryAfter(Duration),
    /// The message goes to the source's dead letters. The envelope is unchanged; attempt, origin and time go with it.
    DeadLetter {
        /// Why, in one word.
        reason: Box<str>,
        /// Details for a person. May be empty.
        detail: Box<str>,
    },
    /// Of dead letters only: the message goes back to the live source, and to it alone. Id and headers are the same,
    /// counters and reasons are stripped. The copy carries [`SettleRequest::mark`] where one is set.
    Redrive,
    /// As [`Redrive`](Self::Redrive), but this message goes back in place of the original, encoded anew.
    RedriveAs(Box<Envelope>),
    /// Of dead letters only: the message goes to the end of the dead letters. Nothing is changed but the mark that it
    /// carries from then on. Core asks for it only where
    /// [`Capabilities::kept_letters_block`](super::Capabilities::kept_letters_block) is set.
    SetAside,
}

impl Settlement {
    /// Whether a broker may have to make a copy for it, which takes a round trip more. Batches do not mix the two
    /// kinds.
    ///
    /// ```
    /// use polybus_core::driver::Settlement;
    ///
    /// assert!(Settlement::Redrive.copies() && !Settlement::Ack.copies());
    /// ```
    pub fn copies(&self) -> bool {
        matches!(
            self,
            Self::RetryAfter(_) | Self::DeadLetter { .. } | Self::Redrive | Self::RedriveAs(_) | Self::SetAside
        )
    }
}
