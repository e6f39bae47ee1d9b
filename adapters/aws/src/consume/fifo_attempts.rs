//! Receives and the ids they go by. What a FIFO queue sent in an answer that was lost holds its groups back until the lock ends, unless
//! the same receive is made again: then it brings the same messages.
//! <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/using-receiverequestattemptid-request-parameter.html>

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use uuid::Uuid;

/// How long SQS knows an id. A little less than it says: its clock started before ours.
const KNOWN: Duration = Duration::from_secs(290);

/// One receive, to be made again as it is if its answer is lost.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) entries: usize,
    pub(crate) wait: Duration,
    /// On FIFO queues, which alone take one.
    pub(crate) id: Option<Arc<str>>,
    began: Instant,
    /// When its answer was last missed.
    lost: Option<Instant>,
}

impl Attempt {
    pub(crate) fn new(entries: usize, wait: Duration, ordered: bool) -> Self {
        let id = ordered.then(|| Uuid::now_v7().simple().to_string().into());
        Self { entries, wait, id, began: Instant::now(), lost: None }
    }

    /// Whether making it again can still find what it hides.
    fn is_of_use(&self, lock: Duration) -> bool {
        self.began.elapsed() < KNOWN && self.lost.is_some_and(|at| at.elapsed() < lock)
    }
}

/// Receives to be made again.
#[derive(Debug, Default)]
pub(crate) struct Lost(Vec<Attempt>);

impl Lost {
    /// This one failed; `unknown` if it may have been carried out.
    pub(crate) fn note(&mut self, mut attempt: Attempt, unknown: bool) {
        if unknown {
            attempt.lost = Some(Instant::now());
        }
        if attempt.id.is_some() && attempt.lost.is_some() {
            self.0.push(attempt);
        }
    }

    /// The next one for which there is room. What SQS makes visible by itself meanwhile needs none.
    pub(crate) fn take(&mut self, room: usize, lock: Duration) -> Option<Attempt> {
        self.0.retain(|attempt| attempt.is_of_use(lock));
        let next = self.0.iter().position(|attempt| attempt.entries <= room)?;
        Some(self.0.remove(next))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LOCK: Duration = Duration::from_secs(30);

    fn attempt(entries: usize) -> Attempt {
        Attempt::new(entries, Duration::from_secs(1), true)
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_may_have_been_carried_out_is_made_again() {
        let mut lost = Lost::default();
        lost.note(attempt(10), false);
        lost.note(Attempt::new(10, Duration::from_secs(1), false), true);
        assert!(lost.take(10, LOCK).is_none());
        let first = attempt(10);
        lost.note(first.clone(), true);
        let again = lost.take(10, LOCK).unwrap();
        assert_eq!(again.id, first.id);
        // It never went out this time, so what it hides is hidden still.
        lost.note(again, false);
        assert_eq!(lost.take(10, LOCK).unwrap().id, first.id);
        assert!(lost.take(10, LOCK).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn prefetch_stays_a_bound() {
        let mut lost = Lost::default();
        lost.note(attempt(10), true);
        lost.note(attempt(3), true);
        assert_eq!(lost.take(9, LOCK).unwrap().entries, 3);
        assert!(lost.take(9, LOCK).is_none());
        assert_eq!(lost.take(10, LOCK).unwrap().entries, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn not_once_the_lock_has_ended_or_the_id_is_forgotten() {
        let mut lost = Lost::default();
        lost.note(attempt(1), true);
        tokio::time::advance(LOCK).await;
        assert!(lost.take(1, LOCK).is_none());
        let mut old = attempt(1);
        for _ in 0..20 {
            lost.note(old.clone(), true);
            tokio::time::advance(LOCK / 2).await;
            match lost.take(1, LOCK) {
                Some(again) => old = again,
                None => return assert!(old.began.elapsed() >= KNOWN),
            }
        }
        panic!("an id was used for {:?}", old.began.elapsed());
    }
}
