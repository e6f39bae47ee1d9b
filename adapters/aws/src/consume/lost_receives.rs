//! Receives on FIFO queues whose answer was lost.
//!
//! The messages of a lost answer hold their groups back until their visibility timeout ends, unless the same receive is
//! made again under the same `ReceiveRequestAttemptId`: then it brings the same messages.
//! <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/using-receiverequestattemptid-request-parameter.html>

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use uuid::Uuid;

/// How long SQS knows an id: a little less than the five minutes it documents, since its clock started before ours.
const ID_LIFETIME: Duration = Duration::from_secs(290);

/// One receive, which is made again as it is if its answer is lost.
#[derive(Clone, Debug)]
pub(crate) struct ReceiveAttempt {
    pub(crate) entries: usize,
    pub(crate) wait: Duration,
    /// The `ReceiveRequestAttemptId`. FIFO queues alone take one.
    pub(crate) id: Option<Arc<str>>,
    began: Instant,
    /// When its answer was lost the last time.
    lost: Option<Instant>,
}

impl ReceiveAttempt {
    pub(crate) fn new(entries: usize, wait: Duration, fifo: bool) -> Self {
        let id = fifo.then(|| Uuid::now_v7().simple().to_string().into());
        Self { entries, wait, id, began: Instant::now(), lost: None }
    }

    /// Whether making it again can still bring the messages of the lost answer.
    fn can_recover(&self, lock: Duration) -> bool {
        self.began.elapsed() < ID_LIFETIME && self.lost.is_some_and(|at| at.elapsed() < lock)
    }
}

/// Receives to be made again.
#[derive(Debug, Default)]
pub(crate) struct LostReceives(Vec<ReceiveAttempt>);

impl LostReceives {
    /// Adds an attempt that failed, if its answer was lost now or before. `unknown`: SQS may have carried it out.
    pub(crate) fn add(&mut self, mut attempt: ReceiveAttempt, unknown: bool) {
        if unknown {
            attempt.lost = Some(Instant::now());
        }
        if attempt.id.is_some() && attempt.lost.is_some() {
            self.0.push(attempt);
        }
    }

    /// Takes the next attempt that asks for no more than `room` messages, and drops those that can recover nothing: SQS
    /// has made their messages visible again.
    pub(crate) fn take(&mut self, room: usize, lock: Duration) -> Option<ReceiveAttempt> {
        self.0.retain(|attempt| attempt.can_recover(lock));
        let next = self.0.iter().position(|attempt| attempt.entries <= room)?;
        Some(self.0.remove(next))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LOCK: Duration = Duration::from_secs(30);

    fn attempt(entries: usize) -> ReceiveAttempt {
        ReceiveAttempt::new(entries, Duration::from_secs(1), true)
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_may_have_been_carried_out_is_made_again() {
        let mut lost = LostReceives::default();
        lost.add(attempt(10), false);
        lost.add(ReceiveAttempt::new(10, Duration::from_secs(1), false), true);
        assert!(lost.take(10, LOCK).is_none());
        let first = attempt(10);
        lost.add(first.clone(), true);
        let again = lost.take(10, LOCK).unwrap();
        assert_eq!(again.id, first.id);
        // It never went out this time, so the messages of the first one are still hidden.
        lost.add(again, false);
        assert_eq!(lost.take(10, LOCK).unwrap().id, first.id);
        assert!(lost.take(10, LOCK).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn prefetch_stays_a_bound() {
        let mut lost = LostReceives::default();
        lost.add(attempt(10), true);
        lost.add(attempt(3), true);
        assert_eq!(lost.take(9, LOCK).unwrap().entries, 3);
        assert!(lost.take(9, LOCK).is_none());
        assert_eq!(lost.take(10, LOCK).unwrap().entries, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn not_once_the_lock_has_ended_or_the_id_is_forgotten() {
        let mut lost = LostReceives::default();
        lost.add(attempt(1), true);
        tokio::time::advance(LOCK).await;
        assert!(lost.take(1, LOCK).is_none());
        let mut old = attempt(1);
        for _ in 0..20 {
            lost.add(old.clone(), true);
            tokio::time::advance(LOCK / 2).await;
            match lost.take(1, LOCK) {
                Some(again) => old = again,
                None => return assert!(old.began.elapsed() >= ID_LIFETIME),
            }
        }
        panic!("an id was used for {:?}", old.began.elapsed());
    }
}
