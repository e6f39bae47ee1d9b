//! How many deliveries a consumer holds, how many more it may fetch, and who is woken when there is room.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Stands for "as many as there is room for".
const ANY: usize = usize::MAX;

pub(crate) struct PrefetchWindow {
    prefetch: usize,
    /// Received and not settled, buffered ones included.
    unsettled: AtomicUsize,
    /// Those of the unsettled that are out of the buffer: being handled, or being settled.
    in_hand: AtomicUsize,
    /// Where a hand-over counts as an attempt, no more is fetched than handlers are free for; else `ANY`.
    free_handlers: AtomicUsize,
    /// Whether the stream waits for room or messages. It is woken only then, since room is made at every settlement.
    waiting: AtomicBool,
    wake: Notify,
}

impl PrefetchWindow {
    pub(crate) fn new(prefetch: usize) -> Self {
        Self {
            prefetch,
            unsettled: AtomicUsize::new(0),
            in_hand: AtomicUsize::new(0),
            free_handlers: AtomicUsize::new(ANY),
            waiting: AtomicBool::new(false),
            wake: Notify::new(),
        }
    }

    /// How many more messages may be fetched, beside those in the buffer.
    pub(crate) fn room(&self, buffered: impl FnOnce() -> usize) -> usize {
        let room = self.prefetch.saturating_sub(self.unsettled());
        match self.free_handlers.load(Ordering::SeqCst) {
            ANY => room,
            free => room.min(free.saturating_sub(buffered())),
        }
    }

    /// So many handlers are free now. For brokers where every hand-over counts as an attempt.
    pub(crate) fn set_free_handlers(&self, free: usize) {
        let before = self.free_handlers.swap(free, Ordering::SeqCst);
        if before < free {
            self.wake_stream();
        }
    }

    pub(crate) fn received(&self, messages: usize) {
        self.unsettled.fetch_add(messages, Ordering::SeqCst);
    }

    /// One is over. The stream is not woken, so that a batch can free its places in one go.
    pub(crate) fn free_place(&self) {
        self.unsettled.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn unsettled(&self) -> usize {
        self.unsettled.load(Ordering::SeqCst)
    }

    /// A delivery has left the buffer.
    pub(crate) fn enter_hand(&self) {
        self.in_hand.fetch_add(1, Ordering::Relaxed);
    }

    /// It is over, or back in the buffer.
    pub(crate) fn leave_hand(&self) {
        self.in_hand.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn in_hand(&self) -> usize {
        self.in_hand.load(Ordering::Relaxed)
    }

    /// The stream is about to look whether it must wait. What happens after this look wakes it.
    pub(crate) fn stream_waits(&self) {
        self.waiting.store(true, Ordering::SeqCst);
    }

    pub(crate) fn stream_goes_on(&self) {
        self.waiting.store(false, Ordering::SeqCst);
    }

    /// Wakes the stream if it waits.
    pub(crate) fn wake_stream(&self) {
        if self.waiting.swap(false, Ordering::SeqCst) {
            self.wake.notify_one();
        }
    }

    /// Wakes the stream, or keeps the wake for its next wait.
    pub(crate) fn wake_stream_surely(&self) {
        self.wake.notify_one();
    }

    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }
}
