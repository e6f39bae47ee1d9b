//! A retry's delay finer than the whole seconds that SQS counts.

use std::{sync::Arc, time::Duration};

use crate::book::Book;

const SECOND: Duration = Duration::from_secs(1);

/// From here on a second is a twentieth at most, and not worth a call.
const COARSE: Duration = Duration::from_secs(20);

/// How long a message is hidden: longer than asked at first, so that it is settled whatever happens to this process, then made
/// available when its time has come.
#[derive(Debug, PartialEq)]
pub(crate) struct Hidden {
    pub(crate) at_first: Duration,
    /// When to make it available. It is hidden for another second at least then: once others can have it, its old receipt must
    /// not be used.
    ends_after: Option<Duration>,
}

impl Hidden {
    pub(crate) fn for_at_least(delay: Duration) -> Self {
        let whole = Duration::from_secs(delay.as_secs());
        let up = if delay == whole { whole } else { whole + SECOND };
        match delay < COARSE && !delay.is_zero() {
            true => Self { at_first: up + SECOND, ends_after: Some(delay) },
            false => Self { at_first: up, ends_after: None },
        }
    }

    /// Sees to the end. If that is lost, the message comes less than two seconds late.
    pub(crate) fn end_in_time(self, book: &Arc<Book>, handle: &Arc<str>) {
        let Some(after) = self.ends_after else { return };
        let (book, handle) = (book.clone(), handle.clone());
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            for ended in book.change_visibility(&[(handle, Duration::ZERO)]).await {
                if let Err(e) = ended {
                    tracing::debug!(queue = %book.queue, error = %e, "a retry comes late by up to two seconds");
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_early_and_late_by_a_twentieth() {
        for (millis, first, end) in [
            (0, 0, None),
            (300, 2, Some(300)),
            (1000, 2, Some(1000)),
            (1500, 3, Some(1500)),
            (19_999, 21, Some(19_999)),
            (20_000, 20, None),
            (20_001, 21, None),
        ] {
            let hidden = Hidden::for_at_least(Duration::from_millis(millis));
            let (at_first, ends_after) = (Duration::from_secs(first), end.map(Duration::from_millis));
            assert_eq!(hidden, Hidden { at_first, ends_after }, "{millis} ms");
        }
    }

    #[test]
    fn the_old_receipt_is_not_used_once_others_can_have_the_message() {
        for millis in (1..30_000).step_by(7) {
            let delay = Duration::from_millis(millis);
            let hidden = Hidden::for_at_least(delay);
            assert!(hidden.at_first >= delay);
            assert!(hidden.ends_after.is_none_or(|end| end == delay && hidden.at_first - end >= SECOND), "{millis} ms");
        }
    }
}
