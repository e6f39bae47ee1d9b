//! The states of a consumer, in the only order in which they follow each other.
//!
//! | state | receives | hands out | settles | how it is left |
//! |---|---|---|---|---|
//! | open | yes | yes | yes | `stop`: a subscription is stopped, closed or dropped, or its bus is closed |
//! | stopping | no | no | yes | `finish`: what was under way is settled or given up |
//! | finished | no | no | no, `LockLost` | never |
//!
//! Beside the state stands whether the stream has yielded its last item: an error, the closing of the bus, or nothing.
//! After that the stream yields `None`, whatever the state. So a queue that is gone ends the stream of a consumer that
//! is open. `broker_refusals.rs` decides when a queue counts as gone.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use tokio::sync::Notify;

use crate::runtime::wait_until::wait_until;

const OPEN: u8 = 0;
const STOPPING: u8 = 1;
const FINISHED: u8 = 2;

#[derive(Default)]
pub(crate) struct ConsumerLifecycle {
    state: AtomicU8,
    last_item_yielded: AtomicBool,
    /// Notified at each change, and by [`notify_settled`](Self::notify_settled).
    changed: Notify,
}

impl ConsumerLifecycle {
    /// From now on no message is received or handed out. A finished consumer stays finished.
    pub(crate) fn stop(&self) {
        let _ = self.state.compare_exchange(OPEN, STOPPING, Ordering::SeqCst, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    /// From now on nothing is settled.
    pub(crate) fn finish(&self) {
        self.state.store(FINISHED, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    /// A delivery was settled. On a stopping consumer, callers that wait in [`until`](Self::until) check again.
    pub(crate) fn notify_settled(&self) {
        if self.is_stopping() {
            self.changed.notify_waiters();
        }
    }

    /// Whether the consumer is stopping or finished.
    pub(crate) fn is_stopping(&self) -> bool {
        self.state.load(Ordering::SeqCst) != OPEN
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.state.load(Ordering::SeqCst) == FINISHED
    }

    /// Whether the stream yields no more deliveries.
    pub(crate) fn stream_has_ended(&self) -> bool {
        self.is_stopping() || self.last_item_yielded.load(Ordering::SeqCst)
    }

    /// Marks the last item as yielded. True for the first caller, which yields it.
    pub(crate) fn mark_last_item(&self) -> bool {
        !self.last_item_yielded.swap(true, Ordering::SeqCst)
    }

    pub(crate) async fn until_stopping(&self) {
        self.until(|| self.is_stopping()).await;
    }

    /// Waits until `holds` is true. It is asked again at each change.
    pub(crate) async fn until(&self, holds: impl Fn() -> bool) {
        wait_until(&self.changed, holds).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_follow_each_other_in_one_direction() {
        let consumer = ConsumerLifecycle::default();
        assert_eq!(
            (consumer.is_stopping(), consumer.is_finished(), consumer.stream_has_ended()),
            (false, false, false)
        );
        consumer.stop();
        assert_eq!((consumer.is_stopping(), consumer.is_finished(), consumer.stream_has_ended()), (true, false, true));
        consumer.finish();
        assert_eq!((consumer.is_stopping(), consumer.is_finished()), (true, true));
        consumer.stop();
        assert!(consumer.is_finished(), "a second stop does not bring a consumer back");
    }

    #[test]
    fn the_last_item_is_marked_once_and_ends_the_stream_of_an_open_consumer() {
        let consumer = ConsumerLifecycle::default();
        assert!(consumer.mark_last_item());
        assert!(consumer.stream_has_ended() && !consumer.is_stopping());
        assert!(!consumer.mark_last_item());
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
