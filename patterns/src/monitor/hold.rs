//! For how long a value must be beyond a line, and for how long it has been.

use std::time::Duration;

/// For how long a value must be so before it counts: see [`Rule::held_for`](super::Rule::held_for).
///
/// `3.into()` are three polls in a row, and `Duration::from_secs(60).into()` is a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HoldTime {
    /// So many polls, at least 1.
    Polls(u32),
    /// So long, from one poll beyond the line to the next one. The first poll at or after its end counts. Time on the
    /// other side of a poll that is unknown, or between the two lines, does not.
    Time(Duration),
}

impl From<u32> for HoldTime {
    fn from(polls: u32) -> Self {
        Self::Polls(polls)
    }
}

impl From<Duration> for HoldTime {
    fn from(time: Duration) -> Self {
        Self::Time(time)
    }
}

/// A value that was beyond its limit, once or several times. Times count from the monitor's start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Held {
    pub(super) since: Duration,
    polls: u32,
    /// The time between polls in a row that were beyond the limit.
    time: Duration,
    /// The last poll, if it was beyond the limit.
    last: Option<Duration>,
}

impl Held {
    /// This poll counts too.
    pub(super) fn and(before: Option<Self>, at: Duration) -> Self {
        let first = Self { since: at, polls: 0, time: Duration::ZERO, last: None };
        let Self { since, polls, time, last } = before.unwrap_or(first);
        let passed = last.map(|last| at.saturating_sub(last)).unwrap_or_default();
        Self { since, polls: polls.saturating_add(1), time: time.saturating_add(passed), last: Some(at) }
    }

    /// A poll that does not count: the time up to the next one does not either.
    pub(super) fn interrupted(self) -> Self {
        Self { last: None, ..self }
    }

    pub(super) fn is_enough(&self, hold: HoldTime) -> bool {
        match hold {
            HoldTime::Polls(polls) => self.polls >= polls,
            HoldTime::Time(time) => self.time >= time,
        }
    }
}
