//! A dead letter as an application judges it, and the verdict.

use crate::{Delivery, Envelope, Source, driver::DeadLetter};

/// A dead letter for which [`Bus::redrive_each`](crate::bus::Bus::redrive_each) asks for a verdict.
///
/// ```
/// use polybus_core::redrive::{RedriveLetter, RedriveVerdict};
///
/// fn decide(letter: &RedriveLetter) -> RedriveVerdict {
///     match letter.reason() {
///         Some("max-deliveries-exceeded") => RedriveVerdict::Redrive,
///         Some("duplicate") => RedriveVerdict::Drop,
///         _ => RedriveVerdict::Keep,
///     }
/// }
/// ```
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
    /// This message goes back in its place; begin with [`RedriveLetter::edited`].
    ///
    /// It must be a message that could be published there: with a key on an ordered source, of a type that a filter of
    /// the subscription wants, with legal headers. Otherwise the letter stays, and is counted as refused or failed. A
    /// message that has another id than the letter and names no cause gets the letter's id as its `causation_id`.
    RedriveAs(Envelope),
    /// It is deleted.
    Drop,
    /// It stays, and no further letter is read.
    Stop,
}

impl RedriveLetter {
    /// The message; the foreign view where it cannot be decoded.
    ///
    /// ```
    /// use polybus_core::redrive::{RedriveLetter, RedriveVerdict};
    ///
    /// fn decide(letter: &RedriveLetter) -> RedriveVerdict {
    ///     let is_payment = letter.envelope().event_type.starts_with("payment.");
    ///     if is_payment { RedriveVerdict::Redrive } else { RedriveVerdict::Keep }
    /// }
    /// ```
    pub fn envelope(&self) -> &Envelope {
        self.0.envelope()
    }

    /// How it became a dead letter, as far as the broker tells.
    ///
    /// ```
    /// use polybus_core::redrive::{RedriveLetter, RedriveVerdict};
    ///
    /// /// Gives up on what has been redriven three times.
    /// fn decide(letter: &RedriveLetter) -> RedriveVerdict {
    ///     let redriven = letter.dead_letter_info().map_or(0, |info| info.redriven);
    ///     if redriven < 3 { RedriveVerdict::Redrive } else { RedriveVerdict::Drop }
    /// }
    /// ```
    pub fn dead_letter_info(&self) -> Option<&DeadLetter> {
        self.0.dead_letter_info()
    }

    /// Why it became a dead letter, in one word: [`DeadLetter::reason`].
    ///
    /// ```
    /// # use polybus_core::redrive::RedriveLetter;
    /// fn has_expired(letter: &RedriveLetter) -> bool {
    ///     letter.reason() == Some("expired")
    /// }
    /// ```
    pub fn reason(&self) -> Option<&str> {
        self.dead_letter_info()?.reason.as_deref()
    }

    /// Why it cannot be decoded; `None` if it can be.
    ///
    /// A letter that cannot be decoded cannot be redriven. It can be dropped, or another message sent in its place.
    ///
    /// ```
    /// use polybus_core::redrive::{RedriveLetter, RedriveVerdict};
    ///
    /// fn decide(letter: &RedriveLetter) -> RedriveVerdict {
    ///     if letter.malformed().is_some() { RedriveVerdict::Drop } else { RedriveVerdict::Redrive }
    /// }
    /// ```
    pub fn malformed(&self) -> Option<&str> {
        self.0.malformed()
    }

    /// The dead letters that it is one of, such as `queue:payments#dead-letters`.
    ///
    /// ```
    /// # use polybus_core::redrive::RedriveLetter;
    /// fn log(letter: &RedriveLetter) {
    ///     println!("{} lies in {}", letter.envelope().id, letter.source());
    /// }
    /// ```
    pub fn source(&self) -> &Source {
        self.0.source()
    }

    /// The adapter's own view of the message: see [`Delivery::native`].
    ///
    /// ```
    /// # use polybus_core::redrive::RedriveLetter;
    /// # struct BrokerMessage { user_id: String }
    /// /// `BrokerMessage` stands for the type that the adapter names.
    /// fn user(letter: &RedriveLetter) -> Option<&str> {
    ///     letter.native::<BrokerMessage>().map(|message| &*message.user_id)
    /// }
    /// ```
    pub fn native<T: 'static>(&self) -> Option<&T> {
        self.0.native()
    }

    /// What the broker knows it by as long as it lies here: a sequence number, or the broker's own id of this copy.
    /// `None` where the broker has nothing of the kind.
    ///
    /// ```
    /// # use polybus_core::redrive::RedriveLetter;
    /// fn name(letter: &RedriveLetter) -> &str {
    ///     letter.known_by().unwrap_or(&letter.envelope().id)
    /// }
    /// ```
    pub fn known_by(&self) -> Option<&str> {
        self.0.known_by()
    }

    /// A copy of its message to change and send in its place. It has an id of its own, and the letter's as
    /// `causation_id`.
    ///
    /// ```
    /// use polybus_core::redrive::{RedriveLetter, RedriveVerdict};
    ///
    /// fn decide(letter: &RedriveLetter) -> RedriveVerdict {
    ///     match letter.reason() {
    ///         Some("bad-currency") => RedriveVerdict::RedriveAs(letter.edited().header("currency", "EUR")),
    ///         _ => RedriveVerdict::Keep,
    ///     }
    /// }
    /// ```
    pub fn edited(&self) -> Envelope {
        let cause = self.envelope().id.clone();
        self.envelope().clone().id(uuid::Uuid::now_v7().hyphenated().to_string()).causation_id(cause)
    }
}
