//! The prefetch window: how many deliveries a consumer holds, how many more it may fetch, and who is woken when there
//! is room.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// The value of `free_handlers` that sets no limit.
const NO_LIMIT: usize = usize::MAX;

pub(crate) struct PrefetchWindow {
    prefetch: usize,
    /// The deliveries that are received and not settled, buffered ones included.
    unsettled: AtomicUsize,
    /// The unsettled deliveries that have left the buffer: they are being handled or settled.
    handed_out: AtomicUsize,
    /// The number of free handlers of a worker, on a broker where every hand-over counts as an attempt: no more is
    /// fetched than that. Elsewhere `NO_LIMIT`.
    free_handlers: AtomicUsize,
    /// Whether the stream waits for room or messages. Room is made at every settlement, so the stream is woken only
    /// then.
    stream_waits: AtomicBool,
    wake: Notify,
}

impl PrefetchWindow {
    pub(crate) fn new(prefetch: usize) -> Self {
        Self {
            prefetch,
            unsettled: AtomicUsize::new(0),
            handed_out: AtomicUsize::new(0),
            free_handlers: AtomicUsize::new(NO_LIMIT),
            stream_waits: AtomicBool::new(false),
            wake: Notify::new(),
        }
    }

    /// How many more messages may be fetched.
    pub(crate) fn capacity(&self, buffered: impl FnOnce() -> usize) -> usize {
        let capacity = self.prefetch.saturating_sub(self.unsettled());
        match self.free_handlers.load(Ordering::SeqCst) {
            NO_LIMIT => capacity,
            free => capacity.min(free.saturating_sub(buffered())),
        }
    }

    /// Limits what is fetched to the number of free handlers, and wakes the stream if that has grown.
    pub(crate) fn set_free_handlers(&self, free: usize) {
        let before = self.free_handlers.swap(free, Ordering::SeqCst);
        if before < free {
            self.wake_stream();
        }
    }

    pub(crate) fn add_unsettled(&self, messages: usize) {
        self.unsettled.fetch_add(messages, Ordering::SeqCst);
    }

    /// Frees the place of one delivery. It does not wake the stream, so that a batch can free many places with one
    /// wake.
    pub(crate) fn remove_unsettled(&self) {
        self.unsettled.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn unsettled(&self) -> usize {
        self.unsettled.load(Ordering::SeqCst)
    }

    /// A delivery has left the buffer.
    pub(crate) fn add_handed_out(&self) {
        self.handed_out.fetch_add(1, Ordering::Relaxed);
    }

    /// A delivery that had left the buffer is settled, given up, or back in the buffer.
    pub(crate) fn remove_handed_out(&self) {
        self.handed_out.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn handed_out(&self) -> usize {
        self.handed_out.load(Ordering::Relaxed)
    }

    /// The stream calls this before it looks whether it must wait. A change after the look then finds the mark and
    /// wakes it; with the two in the other order, a change between them would be missed.
    pub(crate) fn mark_stream_waiting(&self) {
        self.stream_waits.store(true, Ordering::SeqCst);
    }

    pub(crate) fn mark_stream_running(&self) {
        self.stream_waits.store(false, Ordering::SeqCst);
    }

    /// Wakes the stream if it waits. The first of several callers wakes it.
    pub(crate) fn wake_stream(&self) {
        if self.stream_waits.swap(false, Ordering::SeqCst) {
            self.wake.notify_one();
        }
    }

    /// Wakes the stream; if it does not wait, its next wait ends at once.
    pub(crate) fn wake_stream_or_its_next_wait(&self) {
        self.wake.notify_one();
    }

    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }
}
