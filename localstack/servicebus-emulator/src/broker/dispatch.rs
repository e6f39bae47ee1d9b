//! What leaves a store for another one: dead letters, forwarded messages, what a topic routes.

use std::sync::{Arc, PoisonError, RwLock, Weak};

use super::entity::Topic;
use super::namespace::Namespace;
use super::store::{Entry, Store};
use super::store_entries::Incoming;
use crate::message::Message;
use crate::value::Value;

/// A message on its way out of a store.
pub(super) enum Move {
    DeadLetter { number: i64, entry: Entry, why: DeadLetter },
    Forward { number: i64, entry: Entry },
    Route(Entry),
}

/// Why a message became a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DeadLetter {
    pub(super) reason: Option<String>,
    pub(super) description: Option<String>,
}

/// Who takes what leaves a store.
pub(super) enum Owner {
    /// Dead letters stay.
    Nobody,
    Backing(Weak<Backing>),
    Topic(Weak<Topic>),
}

/// The stores of a queue or a subscription.
pub(super) struct Backing {
    pub(super) path: Arc<str>,
    pub(super) main: Arc<Store>,
    pub(super) dead_letters: Arc<Store>,
    pub(super) transfer_dead_letters: Arc<Store>,
    pub(super) forwarding: RwLock<Forwarding>,
    pub(super) namespace: Weak<Namespace>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Forwarding {
    pub(super) to: Option<String>,
    pub(super) dead_letters_to: Option<String>,
}

/// A message is forwarded so often and no more, so that a ring ends.
const MAX_HOPS: u8 = 4;

impl Owner {
    pub(super) fn dispatch(&self, moves: Vec<Move>) {
        match self {
            Self::Nobody => {}
            // An entity that is gone takes its messages with it.
            Self::Backing(backing) => {
                if let Some(backing) = backing.upgrade() {
                    moves.into_iter().for_each(|out| backing.dispatch(out));
                }
            }
            Self::Topic(topic) => {
                if let Some(topic) = topic.upgrade() {
                    let entries = moves.into_iter().filter_map(|out| match out {
                        Move::Route(entry) => Some(entry),
                        Move::DeadLetter { .. } | Move::Forward { .. } => None,
                    });
                    topic.route(entries.map(Incoming::routed).collect());
                }
            }
        }
    }
}

impl Backing {
    fn dispatch(&self, out: Move) {
        let forwarding = self.forwarding.read().unwrap_or_else(PoisonError::into_inner).clone();
        match out {
            Move::DeadLetter { number, mut entry, why } => {
                why.write(Arc::make_mut(&mut entry.message));
                let Some(to) = forwarding.dead_letters_to else { return bury(&self.dead_letters, number, entry) };
                entry.dead_letter_source = Some(self.path.clone());
                if let Err(stuck) = self.forward(&to, entry) {
                    let (entry, _) = *stuck;
                    bury(&self.dead_letters, number, entry);
                }
            }
            Move::Forward { number, entry } => {
                let to = forwarding.to.unwrap_or_default();
                if let Err(stuck) = self.forward(&to, entry) {
                    let (mut entry, why) = *stuck;
                    why.write(Arc::make_mut(&mut entry.message));
                    bury(&self.transfer_dead_letters, number, entry);
                }
            }
            Move::Route(_) => {}
        }
    }

    fn forward(&self, to: &str, entry: Entry) -> Result<(), Box<(Entry, DeadLetter)>> {
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
                target.take_in(Incoming::forwarded(entry));
                Ok(())
            }
            Err(refusal) => Err(Box::new((entry, DeadLetter::of(refusal.condition.symbol(), refusal.description)))),
        }
    }
}

fn bury(store: &Store, number: i64, entry: Entry) {
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
