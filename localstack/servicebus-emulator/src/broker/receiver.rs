//! Who receives: takes what is there and is woken when there is more.

use std::sync::Arc;

use tokio::sync::Notify;

use super::delivery::{Delivered, Mode};
use super::session::SessionLock;
use super::store::Store;
use crate::refusal::Refusal;

/// How a receiver is told to try again.
pub trait Wake: Send + Sync {
    /// Called by whichever thread made a message available; must return at once.
    fn wake(&self);
}

impl Wake for Notify {
    fn wake(&self) {
        self.notify_one();
    }
}

/// One receiver of a source. Dropping it gives its session back; what it locked otherwise stays locked until the lock ends, as on
/// the service.
pub struct Receiver {
    store: Arc<Store>,
    mode: Mode,
    session: Option<SessionLock>,
    wake: Arc<dyn Wake>,
    registration: u64,
    waiting: bool,
}

impl Receiver {
    pub(super) fn new(store: Arc<Store>, mode: Mode, session: Option<SessionLock>, wake: Arc<dyn Wake>) -> Self {
        let registration = store.with(|state, _, _| state.count());
        Self { store, mode, session, wake, registration, waiting: false }
    }

    /// Up to `max` messages, without waiting. When fewer come, the wake is called once as soon as another try may bring more or a
    /// refusal: the entity was deleted or disabled, the session's lock was lost.
    pub fn try_receive(&mut self, max: usize) -> Result<Vec<Delivered>, Refusal> {
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
