//! What came of going through dead letters.

use std::{collections::BTreeMap, fmt};

use crate::error::Error;

/// What came of [`Bus::redrive_each`](crate::bus::Bus::redrive_each) and [`Bus::redrive`](crate::bus::Bus::redrive).
///
/// `read` is the sum of `kept`, `moved`, `dropped`, all that was refused, and how many failed.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[must_use = "it says what was left, and why"]
pub struct RedriveReport {
    /// How many letters were looked at.
    pub read: u64,
    /// How many stay, as the verdict was.
    pub kept: u64,
    /// How many are back in their source, those that went back as another message included.
    pub moved: u64,
    /// How many were deleted.
    pub dropped: u64,
    /// How many should have been moved and stay, by cause: `expired`, `unwanted-type`, `unreadable`, `too-large`.
    pub refused: BTreeMap<&'static str, u64>,
    /// Letters that should have been moved or dropped and could not: the message's id, and why. They stay; where the error has context `copy=kept`
    /// they were moved as well, and are there twice.
    pub failed: Vec<(Box<str>, Error)>,
    /// How many of those it moved were met again, since they had died once more. They stay, and are not in `read`.
    pub returned: u64,
    /// How many of those that were counted at the start were not looked at; `None` where the broker does not count, an estimate where its counts
    /// are approximate.
    pub left: Option<u64>,
    /// What ended it.
    pub ended: RedriveEnd,
    /// Why, where it ended with [`RedriveEnd::Error`].
    pub error: Option<Error>,
}

/// What ended going through dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RedriveEnd {
    /// Everything that was there when it began was looked at.
    Empty,
    /// Nothing more came, though more was counted, or the broker does not count: other consumers may hold the rest, or its count lags
    /// behind, as that of SQS by up to a minute.
    Silence,
    /// What still came had arrived after it began.
    Newer,
    /// As many were acted upon as [`RedriveOptions::most`](crate::redrive::RedriveOptions::most) allows.
    Most,
    /// As many were looked at as [`RedriveOptions::read`](crate::redrive::RedriveOptions::read) allows.
    Read,
    /// As many were held as [`RedriveOptions::hold`](crate::redrive::RedriveOptions::hold) allows, since they were kept or refused.
    Full,
    /// The verdict was [`RedriveVerdict::Stop`](crate::redrive::RedriveVerdict::Stop).
    Stopped,
    /// The broker failed: see [`RedriveReport::error`].
    Error,
}

impl RedriveReport {
    pub(super) fn nothing(ended: RedriveEnd) -> Self {
        Self {
            read: 0,
            kept: 0,
            moved: 0,
            dropped: 0,
            refused: BTreeMap::new(),
            failed: Vec::new(),
            returned: 0,
            left: None,
            ended,
            error: None,
        }
    }

    /// How many were refused, whatever the cause.
    pub fn refusals(&self) -> u64 {
        self.refused.values().sum()
    }

    /// Whether everything that was there was looked at, and nothing was refused or failed.
    pub fn is_complete(&self) -> bool {
        self.ended == RedriveEnd::Empty && self.refused.is_empty() && self.failed.is_empty()
    }
}

/// One line for a person.
impl fmt::Display for RedriveReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { read, kept, moved, dropped, .. } = self;
        write!(f, "{read} read: {moved} moved, {dropped} dropped, {kept} kept")?;
        for (cause, n) in &self.refused {
            write!(f, ", {n} refused ({cause})")?;
        }
        let more =
            [(self.failed.len() as u64, "failed"), (self.returned, "returned"), (self.left.unwrap_or(0), "left")];
        for (n, what) in more.into_iter().filter(|(n, _)| *n > 0) {
            write!(f, ", {n} {what}")?;
        }
        write!(f, "; ended: {}", self.ended)?;
        match &self.error {
            Some(e) => write!(f, ": {e}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for RedriveEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "all looked at",
            Self::Silence => "nothing more came",
            Self::Newer => "only newer ones came",
            Self::Most => "as many acted upon as allowed",
            Self::Read => "as many looked at as allowed",
            Self::Full => "as many held as allowed",
            Self::Stopped => "stopped",
            Self::Error => "error",
        })
    }
}
