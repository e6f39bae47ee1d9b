//! Retry delays finer than the whole seconds that SQS counts.
//!
//! For a short delay, SQS is first told to hide the message for longer than asked, in whole seconds. A task makes the
//! message visible when its delay has ended. If this process ends before that, SQS makes the message visible a few
//! seconds late, so no retry is lost.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};

use tokio::{sync::Notify, time::Instant};

use crate::{consume::consumer::QueueConsumer, message::limits::ENTRIES};

const SECOND: Duration = Duration::from_secs(1);
/// From this delay on the timeout is rounded up to whole seconds. The error is a twentieth at most, which is not worth
/// a call.
pub(crate) const COARSE: Duration = Duration::from_secs(20);
/// How much longer than its delay a message is hidden if this process makes it visible.
///
/// Once the timeout has ended, another consumer may have the message, and its old receipt handle must not be used. So a
/// release that is late by more than half of this is left to SQS.
const SPARE: Duration = Duration::from_secs(5);

/// The visibility timeout for a retry's delay, and the call that ends it early.
#[derive(Debug, PartialEq)]
pub(crate) struct RetryVisibility {
    /// The timeout to set now.
    pub(crate) timeout: Duration,
    /// After how long a call makes the message visible. `None`: the end of the timeout does.
    pub(crate) release_after: Option<Duration>,
}

impl RetryVisibility {
    pub(crate) fn of_delay(delay: Duration) -> Self {
        let whole = Duration::from_secs(delay.as_secs());
        let rounded_up = if delay == whole { whole } else { whole + SECOND };
        match delay < COARSE && !delay.is_zero() {
            true => Self { timeout: rounded_up + SPARE, release_after: Some(delay) },
            false => Self { timeout: rounded_up, release_after: None },
        }
    }
}

/// The messages of one consumer that calls will make visible, each with its time. One task makes the calls, for up to
/// ten messages each.
#[derive(Default)]
pub(crate) struct TimedReleases {
    queue: Mutex<ReleaseQueue>,
    /// A release was added, maybe before the one that the task sleeps for.
    added: Notify,
}

#[derive(Default)]
struct ReleaseQueue {
    /// Receipt handles by time, and by a number, since several may be due at once.
    by_time: BTreeMap<(Instant, u64), Arc<str>>,
    last_number: u64,
    /// Whether the task runs.
    running: bool,
}

impl TimedReleases {
    fn queue(&self) -> MutexGuard<'_, ReleaseQueue> {
        self.queue.lock()
    }
}

/// Makes the message visible at `at`. If this process ends before, SQS does it a few seconds later.
pub(crate) fn release_at(consumer: &Arc<QueueConsumer>, handle: Arc<str>, at: Instant) {
    let mut queue = consumer.timed_releases.queue();
    queue.last_number += 1;
    let number = queue.last_number;
    queue.by_time.insert((at, number), handle);
    if !std::mem::replace(&mut queue.running, true) {
        tokio::spawn(run(consumer.clone()));
    }
    drop(queue);
    consumer.timed_releases.added.notify_one();
}

/// Releases what is due until nothing is left.
async fn run(consumer: Arc<QueueConsumer>) {
    loop {
        let next = {
            let mut queue = consumer.timed_releases.queue();
            match queue.by_time.first_key_value() {
                Some(((at, _), _)) => *at,
                None => {
                    // Under the same lock as the look at the queue: a release that is added later starts a new task.
                    queue.running = false;
                    return;
                }
            }
        };
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = consumer.timed_releases.added.notified() => continue,
        }
        let mut due = Vec::new();
        {
            let (mut queue, now) = (consumer.timed_releases.queue(), Instant::now());
            while let Some(first) = queue.by_time.first_entry().filter(|e| e.key().0 <= now && due.len() < ENTRIES) {
                let in_time = now - first.key().0 < SPARE / 2;
                let handle = first.remove();
                if in_time {
                    due.push((handle, Duration::ZERO));
                }
            }
        }
        // The call runs in a task of its own: a slow answer must not make the later releases late.
        let consumer = consumer.clone();
        tokio::spawn(async move {
            for released in consumer.change_visibility(&due).await {
                if let Err(e) = released {
                    tracing::debug!(queue = %consumer.queue, error = %e, "a retry comes a few seconds late");
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_never_early_and_late_by_a_twentieth_at_most() {
        for (millis, first, end) in [
            (0, 0, None),
            (300, 6, Some(300)),
            (1000, 6, Some(1000)),
            (1500, 7, Some(1500)),
            (19_999, 25, Some(19_999)),
            (20_000, 20, None),
            (20_001, 21, None),
        ] {
            let visibility = RetryVisibility::of_delay(Duration::from_millis(millis));
            let (timeout, release_after) = (Duration::from_secs(first), end.map(Duration::from_millis));
            assert_eq!(visibility, RetryVisibility { timeout, release_after }, "{millis} ms");
        }
    }

    #[test]
    fn an_old_receipt_handle_is_not_used_once_others_can_have_the_message() {
        for millis in (1..30_000).step_by(7) {
            let delay = Duration::from_millis(millis);
            let visibility = RetryVisibility::of_delay(delay);
            assert!(visibility.timeout >= delay);
            assert!(
                visibility.release_after.is_none_or(|end| end == delay && visibility.timeout - end >= SPARE),
                "{millis} ms"
            );
        }
    }
}
