//! Moves messages from one store to another: dead letters, forwarded messages, and a topic's scheduled messages that
//! are due.

use std::sync::{Arc, PoisonError, RwLock, Weak};

use super::entities::Topic;
use super::namespace::Namespace;
use super::store::{MessageStore, NewMessage, StoredMessage};
use crate::codec::Value;
use crate::message::Message;

/// A message that leaves a store for another one.
pub(super) enum MessageMove {
    DeadLetter { number: i64, entry: StoredMessage, why: DeadLetter },
    Forward { number: i64, entry: StoredMessage },
    Route(StoredMessage),
}

/// Why a message became a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DeadLetter {
    pub(super) reason: Option<String>,
    pub(super) description: Option<String>,
}

/// The owner of a store, which takes the messages that leave it.
pub(super) enum StoreOwner {
    /// A dead-letter queue: nothing leaves it.
    Nobody,
    Entity(Weak<EntityStores>),
    Topic(Weak<Topic>),
}

/// The stores of a queue or a subscription.
pub(super) struct EntityStores {
    pub(super) path: Arc<str>,
    pub(super) main: Arc<MessageStore>,
    pub(super) dead_letters: Arc<MessageStore>,
    pub(super) transfer_dead_letters: Arc<MessageStore>,
    pub(super) forwarding: RwLock<Forwarding>,
    pub(super) namespace: Weak<Namespace>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Forwarding {
    pub(super) to: Option<String>,
    pub(super) dead_letters_to: Option<String>,
}

/// The most times a message is forwarded, so that a ring of forwarding entities ends.
const MAX_HOPS: u8 = 4;

impl StoreOwner {
    pub(super) fn dispatch(&self, moves: Vec<MessageMove>) {
        match self {
            Self::Nobody => {}
            // The messages of a deleted entity are dropped.
            Self::Entity(backing) => {
                if let Some(backing) = backing.upgrade() {
                    moves.into_iter().for_each(|out| backing.dispatch(out));
                }
            }
            Self::Topic(topic) => {
                if let Some(topic) = topic.upgrade() {
                    let entries = moves.into_iter().filter_map(|out| match out {
                        MessageMove::Route(entry) => Some(entry),
                        MessageMove::DeadLetter { .. } | MessageMove::Forward { .. } => None,
                    });
                    topic.route(entries.map(NewMessage::routed).collect());
                }
            }
        }
    }
}

impl EntityStores {
    fn dispatch(&self, out: MessageMove) {
        let forwarding = self.forwarding.read().unwrap_or_else(PoisonError::into_inner).clone();
        match out {
            MessageMove::DeadLetter { number, mut entry, why } => {
                why.write(Arc::make_mut(&mut entry.message));
                let Some(to) = forwarding.dead_letters_to else { return bury(&self.dead_letters, number, entry) };
                entry.dead_letter_source = Some(self.path.clone());
                if let Err(stuck) = self.forward(&to, entry) {
                    let (entry, _) = *stuck;
                    bury(&self.dead_letters, number, entry);
                }
            }
            MessageMove::Forward { number, entry } => {
                let to = forwarding.to.unwrap_or_default();
                if let Err(stuck) = self.forward(&to, entry) {
                    let (mut entry, why) = *stuck;
                    why.write(Arc::make_mut(&mut entry.message));
                    bury(&self.transfer_dead_letters, number, entry);
                }
            }
            MessageMove::Route(_) => {}
        }
    }

    fn forward(&self, to: &str, entry: StoredMessage) -> Result<(), Box<(StoredMessage, DeadLetter)>> {
        if entry.hops >= MAX_HOPS {
            let why = DeadLetter::of(
                "MaxTransferHopCountExceeded",
                format!("The message was forwarded {MAX_HOPS} times, which is the most there may be."),
            );
            return Err(Box::new((entry, why)));
        }
        let target = match self.namespace.upgrade().map(|namespace| namespace.target(to)) {
            Some(Ok(target)) => target,
            Some(Err(refusal)) => {
                let why = DeadLetter::of("MessagingEntityNotFoundException", refusal.description);
                return Err(Box::new((entry, why)));
            }
            None => return Ok(()),
        };
        match target.accepts(std::iter::once(&*entry.message), entry.size) {
            Ok(()) => {
                target.take_in(NewMessage::forwarded(entry));
                Ok(())
            }
            Err(refusal) => Err(Box::new((entry, DeadLetter::of(refusal.condition.symbol(), refusal.description)))),
        }
    }
}

fn bury(store: &MessageStore, number: i64, entry: StoredMessage) {
    store.with(|state, now, changes| state.insert_dead(number, entry, now, changes));
}

impl DeadLetter {
    fn of(reason: &str, description: String) -> Self {
        Self { reason: Some(reason.to_owned()), description: Some(description) }
    }

    pub(super) fn expired() -> Self {
        Self::of("TTLExpiredException", "The message expired and was dead lettered.".to_owned())
    }

    pub(super) fn delivered_too_often(max: u32) -> Self {
        Self::of("MaxDeliveryCountExceeded", format!("Message could not be consumed after {max} delivery attempts."))
    }

    pub(super) fn filter_failed(why: &str) -> Self {
        Self::of("FilterEvaluationException", why.to_owned())
    }

    fn write(&self, message: &mut Message) {
        for (name, text) in [("DeadLetterReason", &self.reason), ("DeadLetterErrorDescription", &self.description)] {
            if let Some(text) = text {
                message.set_application_property(name, Value::string(text));
            }
        }
    }
}
