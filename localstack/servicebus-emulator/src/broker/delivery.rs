//! A delivered message, and the outcomes with which it can be settled.

use std::sync::Arc;

use uuid::Uuid;

use crate::codec::Value;
use crate::message::{MapPairs, Message};

/// How messages are received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiveMode {
    /// Locked for the receiver until it settles.
    PeekLock,
    /// Removed when it is delivered.
    ReceiveAndDelete,
}

/// How a locked message is settled. The pairs are merged into its application properties.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The message is removed.
    Complete,
    /// Available again, the delivery counted.
    Abandon(MapPairs),
    /// Available again, and the delivery is not counted.
    Release,
    /// Moved to the dead letters.
    DeadLetter {
        /// For `DeadLetterReason`.
        reason: Option<String>,
        /// For `DeadLetterErrorDescription`.
        description: Option<String>,
        /// To merge in.
        properties: MapPairs,
    },
    /// Deferred: it stays in the entity and is received by its sequence number only.
    Defer(MapPairs),
}

/// The state of a stored message, as `x-opt-message-state` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageState {
    /// To be received.
    Active = 0,
    /// Set aside.
    Deferred = 1,
    /// Not due yet.
    Scheduled = 2,
}

/// A message that was delivered to a receiver, or peeked at.
#[derive(Clone, Debug)]
pub struct DeliveredMessage {
    /// The message as it was sent, with what dead-lettering and settlements added.
    pub message: Arc<Message>,
    /// Its number in this entity.
    pub sequence_number: i64,
    /// Its number in the entity it was first sent to.
    pub enqueued_sequence_number: i64,
    /// It was first sent to another entity: a topic, or what forwards to this one.
    pub enqueued_elsewhere: bool,
    /// It was peeked at, not received.
    pub peeked: bool,
    /// When it came in, milliseconds since the epoch.
    pub enqueued_at: i64,
    /// Earlier deliveries that did not complete it.
    pub delivery_count: u32,
    /// The token to settle it with. `None` when it was removed on delivery or only peeked at.
    pub lock_token: Option<Uuid>,
    /// Until when it is locked, milliseconds since the epoch.
    pub locked_until: Option<i64>,
    /// Active, deferred or scheduled.
    pub state: MessageState,
    /// When a scheduled message is due, milliseconds since the epoch.
    pub scheduled_for: Option<i64>,
    /// The entity in which a forwarded dead letter was dead-lettered.
    pub dead_letter_source: Option<Arc<str>>,
}

impl DeliveredMessage {
    /// The message with the header and the annotations a client expects.
    pub fn to_message(&self) -> Message {
        let mut message = (*self.message).clone();
        message.header.delivery_count = self.delivery_count;
        message.header.first_acquirer = false;
        message.set_annotation("x-opt-sequence-number", Value::Long(self.sequence_number));
        if self.enqueued_elsewhere {
            message.set_annotation("x-opt-enqueue-sequence-number", Value::Long(self.enqueued_sequence_number));
        }
        message.set_annotation("x-opt-enqueued-time", Value::Timestamp(self.enqueued_at));
        if self.shows_state() {
            message.set_annotation("x-opt-message-state", Value::Int(self.state as i32));
        }
        if let Some(until) = self.locked_until {
            message.set_annotation("x-opt-locked-until", Value::Timestamp(until));
        }
        if let Some(source) = &self.dead_letter_source {
            message.set_annotation("x-opt-deadletter-source", Value::string(source.as_ref()));
        }
        if let Some(token) = self.lock_token {
            message.delivery_annotations.push((Value::symbol("x-opt-lock-token"), Value::Uuid(*token.as_bytes())));
        }
        message
    }

    /// True when clients are sent the state: for a peeked message, and for one that is not active.
    pub(crate) fn shows_state(&self) -> bool {
        self.peeked || self.state != MessageState::Active
    }

    /// The lock token as a delivery tag. A message without a lock gets a random tag.
    pub fn delivery_tag(&self) -> [u8; 16] {
        self.lock_token.unwrap_or_else(Uuid::new_v4).to_bytes_le()
    }
}

/// The lock token that a delivery tag carries.
pub fn token_of_tag(tag: &[u8]) -> Option<Uuid> {
    Some(Uuid::from_bytes_le(tag.try_into().ok()?))
}

impl Message {
    /// Sets an application property, in place of one of the same name.
    pub(super) fn set_application_property(&mut self, name: &str, value: Value) {
        match self.application_properties.iter_mut().find(|(key, _)| key == name) {
            Some((_, old)) => *old = value,
            None => self.application_properties.push((name.to_owned(), value)),
        }
    }
}
