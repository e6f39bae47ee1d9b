//! A retry's delay finer than the whole seconds that SQS counts.

use std::{sync::Arc, time::Duration};

use crate::book::Book;

const SECOND: Duration = Duration::from_secs(1);

/// How long a message is hidden: rounded up at first, so that it is settled whatever happens to this process, then corrected.
#[derive(Debug, PartialEq)]
pub(crate) struct Hidden {
    pub(crate) at_first: Duration,
    /// After this much time, hide it for this long from then on. The message is hidden for another second at least when that
    /// happens: once others can have it, its old receipt must not be used.
    correction: Option<(Duration, Duration)>,
}

impl Hidden {
    pub(crate) fn for_at_least(delay: Duration) -> Self {
        let whole = Duration::from_secs(delay.as_secs());
        let part = delay - whole;
        let up = if part.is_zero() { whole } else { whole + SECOND };
        if delay < SECOND && !delay.is_zero() {
            return Self { at_first: 2 * SECOND, correction: Some((delay, Duration::ZERO)) };
        }
        // A correction is a call: not for what is late by a twentieth.
        let correction = (up - delay > delay / 20).then_some((part, whole));
        Self { at_first: up, correction }
    }

    /// Sees to the correction. Lost, the message is late by less than two seconds.
    pub(crate) fn correct(self, book: &Arc<Book>, handle: &Arc<str>) {
        let Some((after, then)) = self.correction else { return };
        let (book, handle) = (book.clone(), handle.clone());
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            for corrected in book.change_visibility(&[(handle, then)]).await {
                if let Err(e) = corrected {
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
        let hidden = |millis| Hidden::for_at_least(Duration::from_millis(millis));
        let of = |first, correction: Option<(u64, u64)>| Hidden {
            at_first: Duration::from_millis(first),
            correction: correction.map(|(a, t)| (Duration::from_millis(a), Duration::from_millis(t))),
        };
        assert_eq!(hidden(0), of(0, None));
        assert_eq!(hidden(300), of(2000, Some((300, 0))));
        assert_eq!(hidden(1000), of(1000, None));
        assert_eq!(hidden(1500), of(2000, Some((500, 1000))));
        assert_eq!(hidden(5001), of(6000, Some((1, 5000))));
        assert_eq!(hidden(30_100), of(31_000, None));
    }

    #[test]
    fn a_correction_never_meets_a_message_that_others_can_have() {
        for millis in (1..20_000).step_by(7) {
            let delay = Duration::from_millis(millis);
            let hidden = Hidden::for_at_least(delay);
            assert!(hidden.at_first >= delay);
            if let Some((after, then)) = hidden.correction {
                assert_eq!(after + then, delay, "{millis} ms");
                assert!(hidden.at_first - after >= SECOND, "{millis} ms");
            }
        }
    }
}
