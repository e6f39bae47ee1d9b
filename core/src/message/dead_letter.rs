//! How a message became a dead letter.

use time::OffsetDateTime;

/// How and when a message became a dead letter. What the broker does not tell is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Why, in one word: `max-deliveries-exceeded`, `malformed`, `expired`, `unwanted-type`, or the application's own.
    pub reason: Option<Box<str>>,
    /// Details for a person.
    pub detail: Option<Box<str>>,
    /// The attempt after which it was given up.
    pub attempt: Option<u32>,
    /// The source whose consumer gave it up, as text: `queue:payments`.
    pub origin: Option<Box<str>>,
    /// When it was given up.
    pub time: Option<OffsetDateTime>,
    /// How often it had been redriven before it became a dead letter this time.
    pub redriven: u32,
}
