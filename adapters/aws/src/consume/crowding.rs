//! Whether so many messages of a queue are in flight that retries should wait elsewhere: SQS counts a message that is hidden until its
//! retry as in flight, and hands out no more once 120,000 are.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use tokio::time::Instant;

use crate::{
    consume::{consumer::Book, timed_visibility::COARSE},
    message::limits::{MAX_DELAY, MAX_IN_FLIGHT},
    topology::queues,
};

/// Of this consumer's long retries, those after which it looks; and how often at most.
const EVERY: u32 = 50;
const PACE: Duration = Duration::from_secs(10);

/// What one consumer knows of it.
#[derive(Default)]
pub(crate) struct Crowd(Mutex<Known>);

#[derive(Default)]
struct Known {
    retries: u32,
    looked: Option<Instant>,
    crowded: bool,
}

impl Crowd {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a retry after this delay should be a copy that SQS delays, which is not in flight. Short ones are over soon, and a delay beyond
/// 15 minutes can only be hidden.
pub(crate) fn could_be_copied(delay: Duration) -> bool {
    (COARSE..=MAX_DELAY).contains(&delay)
}

/// Copies of this queue's messages are refused: its retries are hidden, crowded or not, until the next look.
pub(crate) fn cannot_copy(book: &Book) {
    book.crowd.known().crowded = false;
}

/// Whether more than half of the quota is in flight, by the last look. Looks once in so many retries; whoever lacks the right to look
/// does without.
pub(crate) async fn is_crowded(book: &Book, retries: u32) -> bool {
    {
        let mut known = book.crowd.known();
        known.retries += retries;
        if known.retries < EVERY || known.looked.is_some_and(|at| at.elapsed() < PACE) {
            return known.crowded;
        }
        (known.retries, known.looked) = (0, Some(Instant::now()));
    }
    let flying = match queues::find(&book.clients, &book.queue, "settle").await {
        Ok(found) => found.and_then(|found| found.number(&Attribute::ApproximateNumberOfMessagesNotVisible)),
        Err(e) => {
            tracing::debug!(queue = %book.queue, error = %e, "the number of messages in flight is not known");
            None
        }
    };
    let crowded = flying.is_some_and(|flying| flying > MAX_IN_FLIGHT / 2);
    let was = std::mem::replace(&mut book.crowd.known().crowded, crowded);
    if crowded && !was {
        tracing::warn!(queue = %book.queue, flying, "more than half of what SQS hands out is in flight: retries wait as copies");
    }
    crowded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_sqs_can_delay() {
        let secs = |n: f64| could_be_copied(Duration::from_secs_f64(n));
        assert_eq!([secs(19.9), secs(20.0), secs(900.0), secs(900.1)], [false, true, true, false]);
    }
}
