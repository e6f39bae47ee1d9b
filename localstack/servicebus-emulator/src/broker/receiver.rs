//! A receiver: takes the messages that are available and is woken when there are more.

use std::sync::Arc;

use tokio::sync::Notify;

use super::delivery::{DeliveredMessage, ReceiveMode};
use super::store::MessageStore;
use super::store::SessionLock;
use crate::refusal::Refusal;

/// The callback by which a receiver learns that it should try again.
pub trait Wake: Send + Sync {
    /// Called on the thread that made a message available. It must return at once.
    fn wake(&self);
}

impl Wake for Notify {
    fn wake(&self) {
        self.notify_one();
    }
}

/// One receiver of a source. Dropping it releases its session. Without a session its messages stay locked until their
/// locks expire, as on the service.
pub struct Receiver {
    store: Arc<MessageStore>,
    mode: ReceiveMode,
    session: Option<SessionLock>,
    wake: Arc<dyn Wake>,
    registration: u64,
    waiting: bool,
}

impl Receiver {
    pub(super) fn new(
        store: Arc<MessageStore>,
        mode: ReceiveMode,
        session: Option<SessionLock>,
        wake: Arc<dyn Wake>,
    ) -> Self {
        let registration = store.with(|state, _, _| state.count());
        Self { store, mode, session, wake, registration, waiting: false }
    }

    /// Returns up to `max` messages without waiting. When there are fewer, the wake is called once as soon as another
    /// try may return more messages, or a refusal because the entity was deleted or disabled or the session's lock was
    /// lost.
    pub fn try_receive(&mut self, max: usize) -> Result<Vec<DeliveredMessage>, Refusal> {
        let session = self.session.as_ref().map(SessionLock::key);
        let key = session.map(|(id, _)| id.clone());
        let (registration, wake, waiting) = (self.registration, &self.wake, &mut self.waiting);
        let (mode, path) = (self.mode, &self.store.path);
        self.store.try_with(|state, now, _| {
            state.check_receives(path)?;
            if std::mem::take(waiting) {
                state.stop_waiting(&key, registration);
            }
            let taken = state.take(mode, session, max, now)?;
            if taken.len() < max {
                *waiting = true;
                state.waiting.entry(key).or_default().push((registration, wake.clone()));
            }
            Ok(taken)
        })
    }

    /// The session it holds.
    pub fn session(&self) -> Option<&SessionLock> {
        self.session.as_ref()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if !self.waiting {
            return;
        }
        let key = self.session.as_ref().map(|session| session.key().0.clone());
        self.store.with(|state, _, _| state.stop_waiting(&key, self.registration));
    }
}
