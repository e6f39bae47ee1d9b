//! Where a longer retry waits: hidden in its queue, or as a copy that SQS delays.
//!
//! SQS counts a message that is hidden until its retry as in flight, and hands out no more once 120,000 are. A delayed
//! copy is not in flight. So retries become copies once more than half of that number is in flight.

use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use tokio::time::Instant;

use crate::{
    consume::{consumer::QueueConsumer, timed_visibility::COARSE},
    message::limits::{MAX_DELAY, MAX_IN_FLIGHT},
    topology::queues,
};

/// The queue's counts are read after this many long retries of a consumer, and no more often than `MIN_INTERVAL`.
const RETRIES_PER_CHECK: u32 = 50;
const MIN_INTERVAL: Duration = Duration::from_secs(10);

/// What one consumer knows of the number of messages in flight.
#[derive(Default)]
pub(crate) struct RetryPlacement(Mutex<InFlightCheck>);

#[derive(Default)]
struct InFlightCheck {
    /// Long retries since the last check.
    retries: u32,
    checked_at: Option<Instant>,
    crowded: bool,
}

impl RetryPlacement {
    fn last_check(&self) -> MutexGuard<'_, InFlightCheck> {
        self.0.lock()
    }
}

/// Whether a retry after this delay may wait as a copy. Shorter ones are over soon, and SQS delays a message for 15
/// minutes at most.
pub(crate) fn may_be_copied(delay: Duration) -> bool {
    (COARSE..=MAX_DELAY).contains(&delay)
}

/// Notes that copies of this queue's messages are refused: its retries are hidden until the next check.
pub(crate) fn note_copies_refused(consumer: &QueueConsumer) {
    consumer.retry_placement.last_check().crowded = false;
}

/// Whether more than half of the messages that may be in flight are, by the last check. Adds `retries` to the retries
/// since then, and checks again when it is time. A consumer without the right to read the counts hides all retries.
pub(crate) async fn is_crowded(consumer: &QueueConsumer, retries: u32) -> bool {
    {
        let mut last = consumer.retry_placement.last_check();
        last.retries += retries;
        if last.retries < RETRIES_PER_CHECK || last.checked_at.is_some_and(|at| at.elapsed() < MIN_INTERVAL) {
            return last.crowded;
        }
        // Set before the call, so that concurrent settlements do not check as well.
        (last.retries, last.checked_at) = (0, Some(Instant::now()));
    }
    let in_flight = match queues::find(&consumer.clients, &consumer.queue, "settle").await {
        Ok(found) => found.and_then(|found| found.number(&Attribute::ApproximateNumberOfMessagesNotVisible)),
        Err(e) => {
            tracing::debug!(queue = %consumer.queue, error = %e, "the number of messages in flight is not known");
            None
        }
    };
    let crowded = in_flight.is_some_and(|in_flight| in_flight > MAX_IN_FLIGHT / 2);
    let was = std::mem::replace(&mut consumer.retry_placement.last_check().crowded, crowded);
    if crowded && !was {
        tracing::warn!(queue = %consumer.queue, in_flight, "more than half of what SQS hands out is in flight: retries wait as copies");
    }
    crowded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_delays_that_sqs_can_give_a_message() {
        let secs = |n: f64| may_be_copied(Duration::from_secs_f64(n));
        assert_eq!([secs(19.9), secs(20.0), secs(900.0), secs(900.1)], [false, true, true, false]);
    }
}
