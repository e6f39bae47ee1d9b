//! What becomes of a message that this program does not know.

use std::time::Duration;

#[cfg(doc)]
use super::{UNKNOWN_TYPE_REASON, UNKNOWN_VERSION_REASON};

/// What becomes of a message that this program does not know, because its type is unknown or its version is newer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unknown {
    /// It becomes a dead letter, with the reason [`UNKNOWN_TYPE_REASON`] or [`UNKNOWN_VERSION_REASON`]. A redrive
    /// brings it back when the program has been upgraded; the order of its key is gone then.
    #[default]
    DeadLetter,
    /// It is acknowledged, counted, and mentioned in the log, for types and for versions once a second each at most.
    /// **It is lost to this consumer.**
    Skip,
    /// It comes again after this delay, and at the last attempt becomes a dead letter as above. On an ordered source
    /// the messages of its key wait behind it, so that their order is kept as long as the attempts last; the delay is
    /// cut to the source's `max_hold`. A delay of zero ends a worker's start: all attempts would be gone at once.
    RetryAfter(Duration),
}

impl Unknown {
    /// What is wrong with it, as the policy of this name.
    pub(super) fn problem(self, name: &str) -> Option<String> {
        (self == Self::RetryAfter(Duration::ZERO)).then(|| {
            format!(
                "{name}: RetryAfter without a delay, which uses up all attempts at once: name one, such as a minute"
            )
        })
    }
}
