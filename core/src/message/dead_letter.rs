//! What is known of how a message became a dead letter.

use time::OffsetDateTime;

/// How and when a message came to the dead letters. What the broker does not tell is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Why, in one word: `max-deliveries-exceeded`, `malformed`, `expired`, or the application's.
    pub reason: Option<Box<str>>,
    /// Details for a person.
    pub detail: Option<Box<str>>,
    /// The attempt at which it was given up.
    pub attempt: Option<u32>,
    /// The source it was given up by, as text.
    pub origin: Option<Box<str>>,
    /// When.
    pub time: Option<OffsetDateTime>,
    /// How often it had been redriven before it died this time.
    pub redriven: u32,
}
