//! A dead letter as it is judged, and the verdict.

use crate::{consume::Delivery, driver::DeadLetter, message::Envelope, topology::Source};

/// A dead letter that [`Bus::redrive_each`](crate::bus::Bus::redrive_each) asks about.
#[derive(Debug)]
pub struct RedriveLetter(pub(super) Delivery);

/// What becomes of a dead letter.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RedriveVerdict {
    /// It stays where it is.
    Keep,
    /// It goes back to its source, as it was published.
    Redrive,
    /// This message goes back in its place: [`RedriveLetter::edited`] is where to start from. The letter's id becomes the `causation_id` of a message
    /// that has another id and names no cause. It must be one that could be published there: a key on an ordered source, a type that a filter
    /// of the subscription wants, legal headers; otherwise the letter stays, and is told as refused or failed.
    RedriveAs(Envelope),
    /// It is deleted.
    Drop,
    /// It stays, and no further letter is looked at.
    Stop,
}

impl RedriveLetter {
    /// The message; the foreign view where it could not be decoded.
    pub fn envelope(&self) -> &Envelope {
        self.0.envelope()
    }

    /// How it became a dead letter, as far as the broker tells.
    pub fn dead_letter_info(&self) -> Option<&DeadLetter> {
        self.0.dead_letter_info()
    }

    /// Why it became a dead letter, in one word.
    pub fn reason(&self) -> Option<&str> {
        self.dead_letter_info()?.reason.as_deref()
    }

    /// Why it cannot be decoded, if so. Such a letter cannot be redriven; it can be dropped, or another message sent in its place.
    pub fn malformed(&self) -> Option<&str> {
        self.0.malformed()
    }

    /// The dead letters it lies in.
    pub fn source(&self) -> &Source {
        self.0.source()
    }

    /// The adapter's own view of the message: see [`Delivery::native`].
    pub fn native<T: 'static>(&self) -> Option<&T> {
        self.0.native()
    }

    /// What the broker knows it by, as long as it lies here: a sequence number, the broker's own id of this copy. `None` where the broker
    /// has nothing of the kind.
    pub fn known_by(&self) -> Option<&str> {
        self.0.known_by()
    }

    /// A copy of its message to change and send in its place, with an id of its own and the letter's as `causation_id`.
    ///
    /// ```
    /// # use polybus_core::redrive::{RedriveLetter, RedriveVerdict};
    /// # let _ =
    /// |letter: &RedriveLetter| match letter.reason() {
    ///     Some("bad-currency") => RedriveVerdict::RedriveAs(letter.edited().header("currency", "EUR")),
    ///     _ => RedriveVerdict::Keep,
    /// }
    /// # ;
    /// ```
    pub fn edited(&self) -> Envelope {
        let cause = self.envelope().id.clone();
        self.envelope().clone().id(uuid::Uuid::now_v7().hyphenated().to_string()).causation_id(cause)
    }
}
