//! Receiving: all operations on the messages of one queue, subscription or dead-letter queue.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use super::address::SubQueue;
use super::delivery::{DeliveredMessage, Outcome, ReceiveMode};
use super::dispatch::EntityStores;
use super::entities::{EntityStatus, Subscription};
use super::receiver::{Receiver, Wake};
use super::rules::Rule;
use super::store::SessionLock;
use super::store::session_needed;
use super::store::{Effects, MessageStore, StoreState};
use crate::refusal::{Condition, Refusal};

/// An entity to receive from. A clone refers to the same source. After the entity is deleted every call is refused.
#[derive(Clone)]
pub struct Source {
    pub(super) backing: Arc<EntityStores>,
    pub(super) subscription: Option<Arc<Subscription>>,
    pub(super) sub_queue: SubQueue,
}

impl Source {
    fn store(&self) -> &Arc<MessageStore> {
        self.backing.store(self.sub_queue)
    }

    /// The address, in the case the entity was created with.
    pub fn path(&self) -> &str {
        &self.store().path
    }

    /// Whether it is received from by session.
    pub fn requires_session(&self) -> bool {
        self.store().with(|state, _, _| state.policy.sessions)
    }

    /// A receiver, of this session where there are sessions.
    pub fn receiver(
        &self,
        mode: ReceiveMode,
        session: Option<SessionLock>,
        wake: Arc<dyn Wake>,
    ) -> Result<Receiver, Refusal> {
        self.check_opens(session.is_some())?;
        Ok(Receiver::new(self.store().clone(), mode, session, wake))
    }

    /// Locks the named session, or with `None` waits until one has messages and no holder.
    pub async fn accept_session(&self, id: Option<&str>, timeout: Duration) -> Result<SessionLock, Refusal> {
        self.check_opens(true)?;
        let store = self.store();
        let accepting = async {
            loop {
                let mut ready = std::pin::pin!(store.session_ready.notified());
                // The wait is registered before the store is asked. In the other order a session that becomes ready in
                // between would be missed.
                ready.as_mut().enable();
                if let Some(session) = store.accept(id)? {
                    return Ok(session);
                }
                ready.await;
            }
        };
        tokio::time::timeout(timeout, accepting).await.unwrap_or_else(|_| {
            Err(Refusal::new(
                Condition::Timeout,
                "The operation did not complete within the allotted timeout. There is no session to accept.",
            ))
        })
    }

    /// Runs an operation that is refused while receiving is disabled. Settling is one of them:
    /// <https://learn.microsoft.com/dotnet/api/microsoft.servicebus.messaging.entitystatus>.
    fn try_receiving<T>(
        &self,
        operation: impl FnOnce(&mut StoreState, i64, &mut Effects) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let store = self.store();
        store.try_with(|state, now, changes| {
            state.check_receives(&store.path)?;
            operation(state, now, changes)
        })
    }

    fn check_opens(&self, with_session: bool) -> Result<(), Refusal> {
        let path = self.path();
        self.store().try_with(|state, _, _| {
            state.check_receives(path)?;
            if state.forwards() {
                return Err(Refusal::new(
                    Condition::NotAllowed,
                    format!("A receiver cannot be created on '{path}', since messages are forwarded from it."),
                ));
            }
            match (state.policy.sessions, with_session) {
                (true, false) => Err(session_needed()),
                (false, true) => Err(Refusal::new(
                    Condition::NotAllowed,
                    "A sessionful message receiver cannot be created on an entity that does not require sessions.",
                )),
                _ => Ok(()),
            }
        })
    }

    /// Settles one locked message.
    pub fn settle(&self, token: Uuid, outcome: Outcome) -> Result<(), Refusal> {
        self.settle_all(&[token], outcome)
    }

    /// Settles all of these or, if a lock is lost, none.
    pub fn settle_all(&self, tokens: &[Uuid], outcome: Outcome) -> Result<(), Refusal> {
        self.try_receiving(|state, now, changes| state.settle(tokens, &outcome, now, changes))
    }

    /// Renews all of these locks or, if one is lost, none. Returns their new ends.
    pub fn renew_locks(&self, tokens: &[Uuid]) -> Result<Vec<i64>, Refusal> {
        self.try_receiving(|state, now, _| state.renew(tokens, now))
    }

    /// Deferred messages by their numbers: all of them or none.
    pub fn receive_deferred(
        &self,
        sequence_numbers: &[i64],
        mode: ReceiveMode,
        session: Option<&str>,
    ) -> Result<Vec<DeliveredMessage>, Refusal> {
        self.try_receiving(|state, now, changes| state.take_deferred(sequence_numbers, mode, session, now, changes))
    }

    /// Peeks at up to `max` messages from a sequence number on, of one session or of all.
    pub fn peek(&self, from: i64, max: usize, session: Option<&str>) -> Result<Vec<DeliveredMessage>, Refusal> {
        self.store().try_with(|state, _, _| Ok(state.peek(from, max, session)))
    }

    /// Removes up to `max` messages that were enqueued before `before`, milliseconds since the epoch. Returns how many.
    pub fn purge(&self, max: usize, before: i64) -> Result<usize, Refusal> {
        self.try_receiving(|state, _, _| Ok(state.purge(max, before)))
    }

    /// Renews a locked session and returns its new end. With a name, only the holder of that name may.
    pub fn renew_session(&self, id: &str, holder: Option<&str>) -> Result<i64, Refusal> {
        self.try_receiving(|state, now, _| state.renew_session(id, holder, now))
    }

    /// The state of a held session. With a name, only the holder of that name may ask.
    pub fn session_state(&self, id: &str, holder: Option<&str>) -> Result<Option<Bytes>, Refusal> {
        self.try_receiving(|state, _, _| state.session_state(id, holder))
    }

    /// Sets the state of a held session, or clears it. With a name, only the holder of that name may.
    pub fn set_session_state(
        &self,
        id: &str,
        holder: Option<&str>,
        session_state: Option<Bytes>,
    ) -> Result<(), Refusal> {
        self.try_receiving(|state, now, _| state.set_session_state(id, holder, session_state, now))
    }

    /// Sessions by id: those with a state or messages or, with a time, those whose state was set after it.
    pub fn sessions(&self, set_after: Option<i64>) -> Result<Vec<String>, Refusal> {
        self.store().try_with(|state, _, _| {
            let known = state.sessions.iter().filter(|(_, session)| match set_after {
                None => session.state.is_some() || !session.all.is_empty(),
                Some(time) => session.state.is_some() && session.state_set_at.is_some_and(|at| at > time),
            });
            let mut ids: Vec<String> = known.map(|(id, _)| id.to_string()).collect();
            ids.sort();
            Ok(ids)
        })
    }

    /// The subscription's rules, by name.
    pub fn rules(&self) -> Result<Vec<Arc<Rule>>, Refusal> {
        Ok(self.subscription()?.rules())
    }

    /// Adds a rule to the subscription.
    pub fn add_rule(&self, rule: Rule) -> Result<(), Refusal> {
        self.changeable_subscription()?.add_rule(rule)
    }

    /// Removes a rule of the subscription.
    pub fn remove_rule(&self, name: &str) -> Result<(), Refusal> {
        self.changeable_subscription()?.remove_rule(name)
    }

    /// The rules of a disabled subscription, or of a disabled topic's, cannot be changed.
    fn changeable_subscription(&self) -> Result<&Arc<Subscription>, Refusal> {
        let subscription = self.subscription()?;
        subscription.backing.main.try_with(|state, _, _| match state.policy.status {
            EntityStatus::Disabled => state.check_receives(&subscription.backing.path),
            _ => Ok(()),
        })?;
        Ok(subscription)
    }

    fn subscription(&self) -> Result<&Arc<Subscription>, Refusal> {
        self.subscription.as_ref().ok_or_else(|| {
            Refusal::new(Condition::NotAllowed, format!("'{}' is no subscription and has no rules.", self.path()))
        })
    }
}
