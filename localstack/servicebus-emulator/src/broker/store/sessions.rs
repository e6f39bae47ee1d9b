//! Message sessions of a store: their locks, their state, and their messages.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use super::{Effects, MessageStore, StoreState, TimedEvent};
use crate::refusal::{Condition, Refusal};

/// How long after the loss of a session's lock a waiting receiver is told.
const GRACE_MS: i64 = 1000;

/// One session. It exists while it has messages, a state or a holder.
#[derive(Default)]
pub(crate) struct MessageSession {
    pub(super) ready: BTreeSet<i64>,
    pub(crate) all: BTreeSet<i64>,
    pub(super) locked: BTreeSet<i64>,
    pub(crate) state: Option<Bytes>,
    /// When the state was set or cleared last.
    pub(crate) state_set_at: Option<i64>,
    pub(super) holder: Option<SessionHolder>,
    ticket: Option<u64>,
}

#[derive(Clone)]
pub(super) struct SessionHolder {
    pub(super) epoch: u64,
    pub(super) until: i64,
    /// The holder's name, by which its `$management` requests are told from those of other clients.
    name: Option<Arc<str>>,
}

/// The lock of one receiver on a session. Dropping it releases the session and its unsettled messages.
pub struct SessionLock {
    store: Arc<MessageStore>,
    id: Arc<str>,
    epoch: u64,
}

impl SessionLock {
    /// The session's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn key(&self) -> (&Arc<str>, u64) {
        (&self.id, self.epoch)
    }

    /// Gives the holder a name: from then on a request that gives another one is refused.
    pub fn name_holder(&self, name: &str) {
        self.store.with(|state, _, _| {
            let session = state.sessions.get_mut(&self.id).and_then(|session| session.holder.as_mut());
            if let Some(holder) = session.filter(|holder| holder.epoch == self.epoch) {
                holder.name = Some(Arc::from(name));
            }
        });
    }

    /// Until when it is held, milliseconds since the epoch.
    pub fn locked_until(&self) -> Result<i64, Refusal> {
        self.store.try_with(|state, _, _| state.holder(&self.id, Some(self.epoch)).map(|holder| holder.until))
    }
}

impl Drop for SessionLock {
    fn drop(&mut self) {
        self.store.with(|state, now, changes| state.release_session(&self.id, self.epoch, now, changes));
    }
}

impl std::fmt::Debug for SessionLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionLock").field("id", &self.id).finish_non_exhaustive()
    }
}

impl MessageStore {
    /// The named session, or with `None` the next that has messages and no holder; `Ok(None)` when there is none now.
    pub(crate) fn accept(self: &Arc<Self>, id: Option<&str>) -> Result<Option<SessionLock>, Refusal> {
        self.try_with(|state, now, _| {
            state.check_receives(&self.path)?;
            let id = match id {
                Some(id) => state.known_session(id),
                None => match state.free_sessions.pop_first() {
                    Some((_, id)) => id,
                    None => return Ok(None),
                },
            };
            let epoch = state.hold(&id, now)?;
            Ok(Some(SessionLock { store: self.clone(), id, epoch }))
        })
    }
}

impl StoreState {
    fn known_session(&self, id: &str) -> Arc<str> {
        self.sessions.get_key_value(id).map_or_else(|| Arc::from(id), |(known, _)| known.clone())
    }

    fn hold(&mut self, id: &Arc<str>, now: i64) -> Result<u64, Refusal> {
        let epoch = self.count();
        let until = now + self.policy.lock_ms;
        let session = self.sessions.entry(id.clone()).or_default();
        if session.holder.is_some() {
            return Err(Refusal::new(
                Condition::SessionCannotBeLocked,
                format!("The requested session '{id}' cannot be accepted. It may be locked by another receiver."),
            ));
        }
        session.holder = Some(SessionHolder { epoch, until, name: None });
        if let Some(ticket) = session.ticket.take() {
            self.free_sessions.remove(&ticket);
        }
        self.due.insert((until, TimedEvent::LoseSession(id.clone())));
        Ok(epoch)
    }

    /// The holder of a session; with an epoch, only that one.
    pub(super) fn holder(&self, id: &str, epoch: Option<u64>) -> Result<SessionHolder, Refusal> {
        self.sessions
            .get(id)
            .and_then(|session| session.holder.clone())
            .filter(|holder| epoch.is_none_or(|epoch| holder.epoch == epoch))
            .ok_or_else(|| Refusal::session_lock_lost(id))
    }

    /// The holder, if it is the one of this name or no name is given.
    fn holder_named(&self, id: &str, name: Option<&str>) -> Result<SessionHolder, Refusal> {
        let holder = self.holder(id, None)?;
        match (name, &holder.name) {
            (Some(asking), Some(holding)) if **holding != *asking => Err(Refusal::session_lock_lost(id)),
            _ => Ok(holder),
        }
    }

    pub(crate) fn renew_session(&mut self, id: &str, name: Option<&str>, now: i64) -> Result<i64, Refusal> {
        let holder = self.holder_named(id, name)?;
        let until = now + self.policy.lock_ms;
        let id = self.known_session(id);
        self.due.remove(&(holder.until, TimedEvent::LoseSession(id.clone())));
        self.due.insert((until, TimedEvent::LoseSession(id.clone())));
        if let Some(session) = self.sessions.get_mut(&id) {
            session.holder = Some(SessionHolder { until, ..holder });
        }
        Ok(until)
    }

    /// Releases a session for its holder. Its locked messages become available again, and no delivery is counted.
    fn release_session(&mut self, id: &Arc<str>, epoch: u64, now: i64, changes: &mut Effects) {
        if let Ok(holder) = self.holder(id, Some(epoch)) {
            self.due.remove(&(holder.until, TimedEvent::LoseSession(id.clone())));
            for number in self.end_hold(id) {
                self.unlock(number);
                if self.entries.get(&number).is_some_and(|entry| !entry.deferred) {
                    self.make_ready(number, now, changes);
                }
            }
            self.offer(id, changes);
        }
    }

    /// Ends an expired session lock. Each unsettled delivery is counted.
    pub(super) fn lose_session(&mut self, id: &Arc<str>, at: i64, now: i64, changes: &mut Effects) {
        for number in self.end_hold(id) {
            self.lose_lock(number, now, changes);
        }
        // An idle link is told about a second later, as on the service.
        self.due.insert((at.saturating_add(GRACE_MS), TimedEvent::TellLoss(id.clone())));
        self.offer(id, changes);
    }

    fn end_hold(&mut self, id: &Arc<str>) -> Vec<i64> {
        let Some(session) = self.sessions.get_mut(id) else { return Vec::new() };
        session.holder = None;
        session.locked.iter().copied().collect()
    }

    pub(super) fn make_ready_in(&mut self, id: &Arc<str>, number: i64, changes: &mut Effects) {
        let session = self.sessions.entry(id.clone()).or_default();
        session.ready.insert(number);
        if session.holder.is_some() {
            self.wake(Some(id), changes);
        } else {
            self.offer(id, changes);
        }
    }

    /// Offers a session without a holder to receivers while it has messages, and removes it when it has neither
    /// messages nor a state.
    fn offer(&mut self, id: &Arc<str>, changes: &mut Effects) {
        let ticket = self.count();
        let Some(session) = self.sessions.get_mut(id) else { return };
        if session.holder.is_some() {
            return;
        }
        if session.ready.is_empty() {
            if let Some(ticket) = session.ticket.take() {
                self.free_sessions.remove(&ticket);
            }
            if session.all.is_empty() && session.state.is_none() {
                self.sessions.remove(id);
            }
        } else if session.ticket.is_none() {
            session.ticket = Some(ticket);
            self.free_sessions.insert(ticket, id.clone());
            changes.session_ready = true;
        }
    }

    pub(super) fn forget_in(&mut self, id: &Arc<str>, number: i64) {
        if let Some(session) = self.sessions.get_mut(id) {
            session.ready.remove(&number);
            session.all.remove(&number);
            // The effects are discarded, because removing a message never makes a session available.
            self.offer(id, &mut Effects::default());
        }
    }

    pub(crate) fn session_state(&self, id: &str, name: Option<&str>) -> Result<Option<Bytes>, Refusal> {
        self.holder_named(id, name)?;
        Ok(self.sessions.get(id).and_then(|session| session.state.clone()))
    }

    pub(crate) fn set_session_state(
        &mut self,
        id: &str,
        name: Option<&str>,
        new: Option<Bytes>,
        now: i64,
    ) -> Result<(), Refusal> {
        self.holder_named(id, name)?;
        if let Some(session) = self.sessions.get_mut(id) {
            // An empty state clears it.
            session.state = new.filter(|state| !state.is_empty());
            session.state_set_at = Some(now);
        }
        Ok(())
    }
}
