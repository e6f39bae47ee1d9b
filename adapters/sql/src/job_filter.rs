//! Which jobs, as values of a statement.

use polybus_patterns::store::{JobFilter, JobOutcome, JobState};

/// The states of jobs that are not finished, in the order of their numbers in the tables.
const WAITING: [JobState; 3] = [JobState::Available, JobState::Scheduled, JobState::Running];

/// The state of a number in the table of jobs.
pub(crate) fn state_of(number: i16) -> JobState {
    usize::try_from(number).ok().and_then(|n| WAITING.get(n)).copied().unwrap_or(JobState::Running)
}

/// The number of a state in the table of jobs; `None` for a finished one.
pub(crate) fn state_number(state: JobState) -> Option<i16> {
    WAITING.iter().position(|waiting| *waiting == state).and_then(|n| i16::try_from(n).ok())
}

/// The part of a filter that concerns one of the two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StateValue {
    /// None of its rows.
    Nothing,
    /// Rows of any state.
    Any,
    /// Rows of this state or outcome.
    Only(i16),
}

impl StateValue {
    /// For the jobs that are not finished.
    pub(crate) fn of_waiting(filter: &JobFilter) -> Self {
        match filter.state {
            None => Self::Any,
            Some(state) => state_number(state).map_or(Self::Nothing, Self::Only),
        }
    }

    /// For the finished ones.
    pub(crate) fn of_finished(filter: &JobFilter) -> Self {
        match filter.state {
            None => Self::Any,
            Some(JobState::Finished(outcome)) => Self::Only(outcome.number()),
            Some(_) => Self::Nothing,
        }
    }

    /// The value of a statement, where NULL is any; `None` where no statement is needed.
    pub(crate) fn value(self) -> Option<Option<i16>> {
        match self {
            Self::Nothing => None,
            Self::Any => Some(None),
            Self::Only(number) => Some(Some(number)),
        }
    }
}

/// Whether a retry takes completed jobs as well.
pub(crate) fn retries_completed(filter: &JobFilter) -> bool {
    filter.ids.is_some() || filter.state == Some(JobState::Finished(JobOutcome::Completed))
}

/// The outcome of completed jobs, where the filter asks for no others.
pub(crate) fn completed_only(filter: &JobFilter) -> Option<i16> {
    (filter.state == Some(JobState::Finished(JobOutcome::Completed))).then_some(JobOutcome::Completed.number())
}
