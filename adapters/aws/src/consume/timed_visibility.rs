//! A retry's delay finer than the whole seconds that SQS counts.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{consume::consumer::Book, message::limits::ENTRIES};

const SECOND: Duration = Duration::from_secs(1);
/// From here on a second is a twentieth at most, and not worth a call.
pub(crate) const COARSE: Duration = Duration::from_secs(20);
/// How much longer a message is hidden than asked while its end is ours. Once others can have it, its old receipt must not be used,
/// so an end that is late by more than half of this is left to SQS.
const SPARE: Duration = Duration::from_secs(5);

/// How long a message is hidden: longer than asked at first, so that it is settled whatever happens to this process, then made
/// available when its time has come.
#[derive(Debug, PartialEq)]
pub(crate) struct Hidden {
    pub(crate) at_first: Duration,
    pub(crate) ends_after: Option<Duration>,
}

impl Hidden {
    pub(crate) fn for_at_least(delay: Duration) -> Self {
        let whole = Duration::from_secs(delay.as_secs());
        let up = if delay == whole { whole } else { whole + SECOND };
        match delay < COARSE && !delay.is_zero() {
            true => Self { at_first: up + SPARE, ends_after: Some(delay) },
            false => Self { at_first: up, ends_after: None },
        }
    }
}

/// The messages of one consumer that are to be made available, by when. One task sees to them, ten at a time.
#[derive(Default)]
pub(crate) struct Ends {
    waiting: Mutex<Waiting>,
    sooner: Notify,
}

#[derive(Default)]
struct Waiting {
    /// Several may end at once, so they are numbered.
    by_time: BTreeMap<(Instant, u64), Arc<str>>,
    last: u64,
    running: bool,
}

impl Ends {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the message available then. If that is lost with this process, it comes a few seconds late.
pub(crate) fn end_at(book: &Arc<Book>, handle: Arc<str>, at: Instant) {
    let mut waiting = book.ends.waiting();
    waiting.last += 1;
    let number = waiting.last;
    waiting.by_time.insert((at, number), handle);
    if !std::mem::replace(&mut waiting.running, true) {
        tokio::spawn(run(book.clone()));
    }
    drop(waiting);
    book.ends.sooner.notify_one();
}

async fn run(book: Arc<Book>) {
    loop {
        let next = {
            let mut waiting = book.ends.waiting();
            match waiting.by_time.first_key_value() {
                Some(((at, _), _)) => *at,
                None => {
                    waiting.running = false;
                    return;
                }
            }
        };
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = book.ends.sooner.notified() => continue,
        }
        let mut due = Vec::new();
        {
            let (mut waiting, now) = (book.ends.waiting(), Instant::now());
            while let Some(first) = waiting.by_time.first_entry().filter(|e| e.key().0 <= now && due.len() < ENTRIES) {
                let in_time = now - first.key().0 < SPARE / 2;
                let handle = first.remove();
                if in_time {
                    due.push((handle, Duration::ZERO));
                }
            }
        }
        // Not waited for: what ends meanwhile must not be late for a slow answer.
        let book = book.clone();
        tokio::spawn(async move {
            for ended in book.change_visibility(&due).await {
                if let Err(e) = ended {
                    tracing::debug!(queue = %book.queue, error = %e, "a retry comes a few seconds late");
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
            (300, 6, Some(300)),
            (1000, 6, Some(1000)),
            (1500, 7, Some(1500)),
            (19_999, 25, Some(19_999)),
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
            assert!(hidden.ends_after.is_none_or(|end| end == delay && hidden.at_first - end >= SPARE), "{millis} ms");
        }
    }
}
