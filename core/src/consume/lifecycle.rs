//! The states of a consumer, in the only order in which they follow each other.
//!
//! | state | receives | hands out | settles | how it is left |
//! |---|---|---|---|---|
//! | open | yes | yes | yes | `stop`: a subscription is stopped, closed or dropped, or its bus is closed |
//! | stopping | no | no | yes | `finish`: what was under way is settled or given up |
//! | finished | no | no | no, `LockLost` | never |
//!
//! Beside it stands whether the stream has told its last item: an error, why the bus was closed, or nothing. A stream that has
//! told it hands out nothing more, whatever the state; a source that is gone ends the stream of an open consumer.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use tokio::sync::Notify;

const OPEN: u8 = 0;
const STOPPING: u8 = 1;
const FINISHED: u8 = 2;

#[derive(Default)]
pub(crate) struct ConsumerLifecycle {
    state: AtomicU8,
    last_item_told: AtomicBool,
    /// Notified at each change, and by [`settled`](Self::settled).
    changed: Notify,
}

impl ConsumerLifecycle {
    /// No more is received or handed out. It stays so, and a finished consumer stays finished.
    pub(crate) fn stop(&self) {
        let _ = self.state.compare_exchange(OPEN, STOPPING, Ordering::SeqCst, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    /// Nothing is settled any more.
    pub(crate) fn finish(&self) {
        self.state.store(FINISHED, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    /// Something was settled: whoever waits in [`until`](Self::until) of a stopping consumer looks again.
    pub(crate) fn settled(&self) {
        if self.is_stopping() {
            self.changed.notify_waiters();
        }
    }

    /// Stopping or finished.
    pub(crate) fn is_stopping(&self) -> bool {
        self.state.load(Ordering::SeqCst) != OPEN
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.state.load(Ordering::SeqCst) == FINISHED
    }

    /// Whether the stream hands out nothing more.
    pub(crate) fn hands_out_nothing(&self) -> bool {
        self.is_stopping() || self.last_item_told.load(Ordering::SeqCst)
    }

    /// True the first time: the caller tells the stream's last item.
    pub(crate) fn tell_last_item(&self) -> bool {
        !self.last_item_told.swap(true, Ordering::SeqCst)
    }

    pub(crate) async fn until_stopping(&self) {
        self.until(|| self.is_stopping()).await;
    }

    /// Waits until `holds`, which is asked again at each change.
    pub(crate) async fn until(&self, holds: impl Fn() -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Before the look, so that a change right after it is not missed.
            changed.as_mut().enable();
            if holds() {
                return;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_follow_each_other_in_one_direction() {
        let consumer = ConsumerLifecycle::default();
        assert_eq!(
            (consumer.is_stopping(), consumer.is_finished(), consumer.hands_out_nothing()),
            (false, false, false)
        );
        consumer.stop();
        assert_eq!((consumer.is_stopping(), consumer.is_finished(), consumer.hands_out_nothing()), (true, false, true));
        consumer.finish();
        assert_eq!((consumer.is_stopping(), consumer.is_finished()), (true, true));
        consumer.stop();
        assert!(consumer.is_finished(), "a second stop does not bring a consumer back");
    }

    #[test]
    fn the_last_item_is_told_once_and_ends_the_stream_of_an_open_consumer() {
        let consumer = ConsumerLifecycle::default();
        assert!(consumer.tell_last_item());
        assert!(consumer.hands_out_nothing() && !consumer.is_stopping());
        assert!(!consumer.tell_last_item());
    }

    #[tokio::test]
    async fn a_change_wakes_who_waits_for_it() {
        let consumer = std::sync::Arc::new(ConsumerLifecycle::default());
        let waiting = tokio::spawn({
            let consumer = consumer.clone();
            async move { consumer.until_stopping().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        consumer.stop();
        waiting.await.unwrap();
        consumer.until_stopping().await;
    }
}
