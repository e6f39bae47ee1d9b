//! A buffer of messages that an adapter has fetched and `receive` has not returned yet, and the task that renews their
//! locks.
//!
//! Core renews the lock of a message once `receive` has returned it. Until then the driver must, and `renewal.rs` does.

mod renewal;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};

use tokio::{sync::Notify, time::Instant};

pub use self::renewal::keep;
use crate::{Error, Result, driver::kit::lease::LockLease};

/// Messages `M` in the order in which they came, each with the `L` that the driver needs to renew its lock.
///
/// The locks of messages that wait here are renewed at half their time by [`keep`], in a task that the driver spawns
/// when [`put`](Self::put) says so. The task ends when nothing waits or the buffer is dropped. A message whose lock was
/// lost meanwhile is never handed out, since the broker hands it out again. The tasks that fetch and the receiver share
/// the buffer; its methods neither wait nor do I/O.
///
/// ```
/// use std::time::Duration;
/// use polybus_core::driver::{kit::prefetched::ReceiveBuffer, lock_margin};
/// use tokio::time::Instant;
///
/// let lock = Duration::from_secs(30);
/// let buffer = ReceiveBuffer::new(lock, lock_margin(lock), false);
/// buffer.put("message", "lock token", Instant::now()).unwrap();
/// let taken = buffer.take(10);
/// assert_eq!(taken.messages[0].0, "message");
/// assert!(buffer.is_empty());
/// ```
pub struct ReceiveBuffer<M, L> {
    renews: bool,
    key: fn(&M) -> Option<&str>,
    state: Mutex<BufferState<M, L>>,
    changed: Notify,
    /// Wakes the renewing task when a lock is due before the time that the task sleeps to.
    sooner: Arc<Notify>,
}

struct BufferState<M, L> {
    lock: Duration,
    /// How much earlier than the broker a lock is taken to end.
    margin: Duration,
    waiting: VecDeque<BufferedMessage<M, L>>,
    /// How many messages were put here in all. A message's number is this count.
    arrived: u64,
    /// How many of them were taken out.
    removed: u64,
    /// Whether a task renews what waits.
    has_task: bool,
    closed: bool,
    end: Option<Error>,
}

struct BufferedMessage<M, L> {
    /// Identifies the message when the answer to a renewal comes.
    number: u64,
    message: M,
    renew_by: L,
    lease: LockLease,
    /// A renewal is under way.
    renewing: bool,
    /// The last renewal had no answer. The next one has a call of its own, since this message may be what holds up a
    /// call.
    alone: bool,
    /// The lock is lost. The message stays in its place until it is taken, so that it is reported in order.
    lost: bool,
}

/// What [`ReceiveBuffer::take`] and [`ReceiveBuffer::close`] took out, in order.
#[non_exhaustive]
pub struct TakenMessages<M> {
    /// The messages, each with the time from which its lock counts.
    pub messages: Vec<(M, Instant)>,
    /// Messages whose locks ran out or could not be renewed. They must not be handed out and can no longer be settled.
    pub lost: Vec<M>,
    /// Why no more messages come. It is returned once, when no message is left.
    pub end: Option<Error>,
}

impl<M, L: Clone> ReceiveBuffer<M, L> {
    /// A buffer of messages that are locked for `lock`.
    ///
    /// A message is lost if its lock was not renewed for `lock` less `margin`; see
    /// [`lock_margin`](crate::driver::lock_margin). `renews` is
    /// [`Entity::renew_locks`](crate::topology::Entity::renew_locks): without it nothing is renewed.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use polybus_core::driver::kit::prefetched::ReceiveBuffer;
    /// let buffer: ReceiveBuffer<String, u64> = ReceiveBuffer::new(Duration::from_secs(9), Duration::ZERO, true);
    /// assert!(buffer.is_empty());
    /// ```
    pub fn new(lock: Duration, margin: Duration, renews: bool) -> Self {
        let waiting = VecDeque::new();
        let (arrived, removed) = (0, 0);
        let state = BufferState { lock, margin, waiting, arrived, removed, has_task: false, closed: false, end: None };
        Self { renews, key: |_| None, state: Mutex::new(state), changed: Notify::new(), sooner: Arc::default() }
    }

    /// Makes the later messages of a lost message's key count as lost as well.
    ///
    /// This is for ordered sources whose broker hands a lost message out again: the later messages would overtake it.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use polybus_core::{Envelope, driver::kit::prefetched::ReceiveBuffer};
    /// let lock = Duration::from_secs(30);
    /// let buffer: ReceiveBuffer<Envelope, u64> = ReceiveBuffer::new(lock, lock / 30, true);
    /// let buffer = buffer.keyed(|message| message.key.as_deref());
    /// ```
    pub fn keyed(self, key: fn(&M) -> Option<&str>) -> Self {
        Self { key, ..self }
    }

    fn state(&self) -> MutexGuard<'_, BufferState<M, L>> {
        self.state.lock()
    }

    /// Adds a message whose lock counts from `from` on. Answers true if [`keep`] must be spawned now.
    ///
    /// # Errors
    /// The message itself, if the buffer is closed.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use polybus_core::driver::kit::prefetched::ReceiveBuffer;
    /// # use tokio::time::Instant;
    /// let buffer = ReceiveBuffer::new(Duration::from_secs(9), Duration::ZERO, true);
    /// assert_eq!(buffer.put("a", 1, Instant::now()), Ok(true), "the first one needs the task");
    /// assert_eq!(buffer.put("b", 2, Instant::now()), Ok(false));
    /// buffer.close();
    /// assert_eq!(buffer.put("c", 3, Instant::now()), Err("c"));
    /// ```
    pub fn put(&self, message: M, renew_by: L, from: Instant) -> Result<bool, M> {
        let mut state = self.state();
        if state.closed {
            return Err(message);
        }
        state.arrived += 1;
        let number = state.arrived;
        // The receiver waits only while the buffer is empty, so only the first message has to wake it.
        let first = state.waiting.is_empty();
        let lease = LockLease::new(state.lock, from);
        let (renewing, alone, lost) = (false, false, false);
        state.waiting.push_back(BufferedMessage { number, message, renew_by, lease, renewing, alone, lost });
        let start = self.renews && !std::mem::replace(&mut state.has_task, true);
        drop(state);
        if first {
            self.changed.notify_waiters();
        }
        Ok(start)
    }

    /// Sets a shorter length of locks, once the broker has shown it. It applies to the messages that wait and to those
    /// that come later. Call it before the next `put`.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use polybus_core::driver::kit::prefetched::ReceiveBuffer;
    /// # let buffer: ReceiveBuffer<String, u64> = ReceiveBuffer::new(Duration::from_secs(9), Duration::ZERO, true);
    /// buffer.shorten(Duration::from_secs(10), Duration::from_secs(1));
    /// ```
    pub fn shorten(&self, lock: Duration, margin: Duration) {
        let mut state = self.state();
        (state.lock, state.margin) = (lock, margin);
        state.waiting.iter_mut().for_each(|waiting| waiting.lease = LockLease::new(lock, waiting.lease.from()));
        drop(state);
        self.sooner.notify_one();
    }

    /// Records that no more messages come, and why. Only the first reason is kept.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use polybus_core::{Error, ErrorKind, driver::kit::prefetched::ReceiveBuffer};
    /// # let buffer: ReceiveBuffer<String, u64> = ReceiveBuffer::new(Duration::from_secs(9), Duration::ZERO, true);
    /// buffer.end(Error::new(ErrorKind::Unavailable, "the link was detached"));
    /// assert!(buffer.take(1).end.is_some());
    /// assert!(buffer.take(1).end.is_none(), "it is told once");
    /// ```
    pub fn end(&self, why: Error) {
        self.state().end.get_or_insert(why);
        self.changed.notify_waiters();
    }

    /// Takes up to `max` messages, and those that were lost before and between them.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use polybus_core::driver::kit::prefetched::ReceiveBuffer;
    /// # use tokio::time::Instant;
    /// # let buffer = ReceiveBuffer::new(Duration::from_secs(9), Duration::ZERO, false);
    /// buffer.put("a", (), Instant::now()).unwrap();
    /// buffer.put("b", (), Instant::now()).unwrap();
    /// assert_eq!(buffer.take(1).messages.len(), 1);
    /// assert_eq!(buffer.len(), 1);
    /// ```
    pub fn take(&self, max: usize) -> TakenMessages<M> {
        let mut state = self.state();
        let mut taken = self.drain(&mut state, max);
        if state.waiting.is_empty() {
            taken.end = state.end.take();
        }
        taken
    }

    fn drain(&self, state: &mut BufferState<M, L>, max: usize) -> TakenMessages<M> {
        let messages = Vec::with_capacity(max.min(state.waiting.len()));
        let mut taken = TakenMessages { messages, lost: Vec::new(), end: None };
        let now = Instant::now();
        while taken.messages.len() < max
            && let Some(first) = state.waiting.pop_front()
        {
            state.removed += 1;
            let from = first.lease.from();
            let ran_out = from + state.lock - state.margin <= now;
            if ran_out && !first.lost {
                lose(state.waiting.iter_mut(), self.key, (self.key)(&first.message));
            }
            match ran_out || first.lost {
                true => taken.lost.push(first.message),
                false => taken.messages.push((first.message, from)),
            }
        }
        taken
    }

    /// Counts all waiting messages of this key as lost, because an earlier one was lost after it had been received.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use polybus_core::{Envelope, driver::kit::prefetched::ReceiveBuffer};
    /// # use tokio::time::Instant;
    /// # let buffer: ReceiveBuffer<Envelope, ()> = ReceiveBuffer::new(Duration::from_secs(9), Duration::ZERO, false);
    /// let buffer = buffer.keyed(|message| message.key.as_deref());
    /// buffer.put(Envelope::new("order.placed", "{}").key("7"), (), Instant::now()).unwrap();
    /// buffer.lose("7");
    /// assert_eq!(buffer.take(1).lost.len(), 1);
    /// ```
    pub fn lose(&self, key: &str) {
        lose(self.state().waiting.iter_mut(), self.key, Some(key));
    }

    /// Completes when a message comes into the empty buffer, or when [`end`](Self::end) is called. It misses nothing
    /// that happens after it was enabled: create it, enable it, look into the buffer, and then await it.
    ///
    /// ```
    /// # use polybus_core::driver::kit::prefetched::{ReceiveBuffer, TakenMessages};
    /// async fn next(buffer: &ReceiveBuffer<String, u64>) -> TakenMessages<String> {
    ///     loop {
    ///         let mut changed = std::pin::pin!(buffer.changed());
    ///         changed.as_mut().enable();
    ///         let taken = buffer.take(10);
    ///         if !taken.messages.is_empty() || taken.end.is_some() {
    ///             return taken;
    ///         }
    ///         changed.await;
    ///     }
    /// }
    /// ```
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// How many messages wait, lost ones included.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use polybus_core::driver::kit::prefetched::ReceiveBuffer;
    /// # use tokio::time::Instant;
    /// # let buffer = ReceiveBuffer::new(Duration::from_secs(9), Duration::ZERO, false);
    /// buffer.put("a", (), Instant::now()).unwrap();
    /// assert_eq!(buffer.len(), 1);
    /// ```
    pub fn len(&self) -> usize {
        self.state().waiting.len()
    }

    /// Whether no message waits.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use polybus_core::driver::kit::prefetched::ReceiveBuffer;
    /// let buffer: ReceiveBuffer<String, u64> = ReceiveBuffer::new(Duration::from_secs(9), Duration::ZERO, true);
    /// assert!(buffer.is_empty());
    /// ```
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many messages have left the buffer so far, lost ones included.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use polybus_core::driver::kit::prefetched::ReceiveBuffer;
    /// # use tokio::time::Instant;
    /// # let buffer = ReceiveBuffer::new(Duration::from_secs(9), Duration::ZERO, false);
    /// buffer.put("a", (), Instant::now()).unwrap();
    /// buffer.take(1);
    /// assert_eq!(buffer.gone(), 1);
    /// ```
    pub fn gone(&self) -> u64 {
        self.state().removed
    }

    /// Closes the buffer: it takes no more messages and renews no lock. Returns the messages that wait; a second call
    /// returns none.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use polybus_core::driver::kit::prefetched::ReceiveBuffer;
    /// # use tokio::time::Instant;
    /// # let buffer = ReceiveBuffer::new(Duration::from_secs(9), Duration::ZERO, false);
    /// buffer.put("a", (), Instant::now()).unwrap();
    /// assert_eq!(buffer.close().messages.len(), 1);
    /// ```
    pub fn close(&self) -> TakenMessages<M> {
        let mut state = self.state();
        state.closed = true;
        self.drain(&mut state, usize::MAX)
    }
}

/// Marks all messages of this key as lost. Without a key it marks none.
fn lose<'a, M: 'a, L: 'a>(
    these: impl Iterator<Item = &'a mut BufferedMessage<M, L>>,
    key_of: fn(&M) -> Option<&str>,
    key: Option<&str>,
) {
    if key.is_some() {
        these.filter(|waiting| key_of(&waiting.message) == key).for_each(|waiting| waiting.lost = true);
    }
}

#[cfg(test)]
mod tests;
