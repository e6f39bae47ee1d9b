//! What a redrive has done, and what ended it.

use std::{collections::BTreeMap, fmt};

use crate::Error;

/// What [`Bus::redrive_each`](crate::bus::Bus::redrive_each) and [`Bus::redrive`](crate::bus::Bus::redrive) have done.
///
/// `read` is the sum of `kept`, `moved`, `dropped`, all of `refused`, and the length of `failed`. `Display` writes it
/// all in one line.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[must_use = "it says what was left, and why"]
pub struct RedriveReport {
    /// Letters that were read.
    pub read: u64,
    /// Letters that stay because the verdict was to keep them.
    pub kept: u64,
    /// Letters that are back in their source, those that went back as another message included.
    pub moved: u64,
    /// Letters that were deleted.
    pub dropped: u64,
    /// Letters that should have been moved and stay, by cause: `expired`, `unwanted-type`, `unreadable`, `too-large`.
    pub refused: BTreeMap<&'static str, u64>,
    /// Letters that should have been moved or dropped and could not: the message's id, and the error. So are letters
    /// that stay and could not be moved out of the way of the later ones of their key.
    ///
    /// They stay. Where [`Error::is_copy_kept`] they were moved as well, and are there twice.
    pub failed: Vec<(Box<str>, Error)>,
    /// Letters that this redrive moved and met again, since they had died once more. They stay, and are not in `read`.
    pub returned: u64,
    /// Letters that were counted at the start and not read. `None` where the broker does not count; an estimate where
    /// its counts are approximate.
    pub left: Option<u64>,
    /// What ended it.
    pub ended: RedriveEnd,
    /// The error that ended it, with [`RedriveEnd::Error`].
    pub error: Option<Error>,
}

/// What ended a redrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RedriveEnd {
    /// Everything that was there at the start was read.
    Empty,
    /// Nothing more came although more was counted, or the broker does not count. Other consumers may hold the rest, or
    /// the count lags behind; that of SQS does by up to a minute.
    Silence,
    /// The letters that still came had arrived after the start.
    Newer,
    /// [`RedriveOptions::limit`](crate::redrive::RedriveOptions::limit) letters were acted upon.
    Limit,
    /// [`RedriveOptions::read_limit`](crate::redrive::RedriveOptions::read_limit) letters were read.
    ReadLimit,
    /// [`RedriveOptions::hold`](crate::redrive::RedriveOptions::hold) letters are held, because they were kept or
    /// refused.
    Full,
    /// The verdict was [`RedriveVerdict::Stop`](crate::redrive::RedriveVerdict::Stop).
    Stopped,
    /// The broker failed, or did not let the letters that stay out of the way of others: see [`RedriveReport::error`].
    Error,
}

impl RedriveReport {
    /// A report of nothing done.
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

    /// How many letters were refused, all causes together.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Bus, BusOptions, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// let report = bus.redrive(Source::queue("payments"), |_| true, usize::MAX).await?;
    /// assert_eq!(report.refusals(), 0);
    /// # Ok(()) }
    /// ```
    pub fn refusals(&self) -> u64 {
        self.refused.values().sum()
    }

    /// Whether everything that was there was read, and nothing was refused or failed.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Bus, BusOptions, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// let report = bus.redrive(Source::queue("payments"), |_| true, usize::MAX).await?;
    /// if !report.is_complete() {
    ///     eprintln!("{report}");
    /// }
    /// # assert!(report.is_complete());
    /// # Ok(()) }
    /// ```
    pub fn is_complete(&self) -> bool {
        self.ended == RedriveEnd::Empty && self.refused.is_empty() && self.failed.is_empty()
    }
}

/// The counts in one line, for a person.
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
            Self::Limit => "as many acted upon as allowed",
            Self::ReadLimit => "as many looked at as allowed",
            Self::Full => "as many held as allowed",
            Self::Stopped => "stopped",
            Self::Error => "error",
        })
    }
}
