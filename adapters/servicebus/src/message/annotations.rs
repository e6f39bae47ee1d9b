//! The broker's annotations of a message, and which annotations are the broker's own.

use std::time::Duration;

use fe2o3_amqp::types::{
    messaging::{
        Header, MessageAnnotations,
        annotations::{Annotations, OwnedKey},
    },
    primitives::Value,
};
use time::OffsetDateTime;

use crate::message::envelope;

/// The annotation by which a sender chooses the partition.
pub(crate) const PARTITION_KEY: &str = "x-opt-partition-key";
/// The annotations that the broker writes itself; copies go without them.
/// <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-amqp-protocol-guide#message-annotations>
const BROKER_KEYS: [&str; 9] = [
    "x-opt-sequence-number",
    "x-opt-enqueue-sequence-number",
    "x-opt-enqueued-time",
    "x-opt-locked-until",
    "x-opt-message-state",
    "x-opt-deadletter-source",
    "x-opt-scheduled-enqueue-time",
    "x-opt-lock-token",
    "x-opt-lock-duration",
];

/// What the broker tells of a message.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BrokerAnnotations {
    /// Its sequence number.
    pub(crate) sequence: Option<i64>,
    pub(crate) enqueued: Option<OffsetDateTime>,
    pub(crate) locked_until: Option<OffsetDateTime>,
}

impl BrokerAnnotations {
    pub(crate) fn of(annotations: Option<&MessageAnnotations>) -> Self {
        let mut broker = Self::default();
        for (key, value) in annotations.into_iter().flat_map(|annotations| annotations.iter()) {
            let OwnedKey::Symbol(key) = key else { continue };
            match (key.as_str(), value) {
                ("x-opt-sequence-number", Value::Long(number)) => broker.sequence = Some(*number),
                ("x-opt-enqueued-time", Value::Timestamp(at)) => broker.enqueued = envelope::instant(at),
                ("x-opt-locked-until", Value::Timestamp(at)) => broker.locked_until = envelope::instant(at),
                _ => {}
            }
        }
        broker
    }

    /// How long a message may still live; `None` if its sender has set no time to live. The time is taken by the
    /// broker's clock as far as that is known: the lock, of length `lock`, was given before the message came and is not
    /// over.
    pub(crate) fn remaining_life(&self, header: Option<&Header>, lock: Duration) -> Option<time::Duration> {
        Some(self.remaining_of(time::Duration::milliseconds(i64::from(header?.ttl?)), lock))
    }

    /// The same for a message that may live for `ttl` in all.
    pub(crate) fn remaining_of(&self, ttl: time::Duration, lock: Duration) -> time::Duration {
        let mut now = OffsetDateTime::now_utc();
        if let Some(until) = self.locked_until {
            now = now.clamp(until - lock, until);
        }
        let age = self.enqueued.map_or(time::Duration::ZERO, |at| now - at);
        (ttl - age.max(time::Duration::ZERO)).max(time::Duration::MILLISECOND)
    }
}

/// The value of an annotation that is text.
pub(crate) fn text<'a>(annotations: Option<&'a MessageAnnotations>, name: &str) -> Option<&'a str> {
    annotations?.iter().find_map(|(key, value)| match (key, value) {
        (OwnedKey::Symbol(symbol), Value::String(text)) if symbol.as_str() == name => Some(text.as_str()),
        _ => None,
    })
}

fn is_broker_key(key: &OwnedKey) -> bool {
    matches!(key, OwnedKey::Symbol(symbol) if BROKER_KEYS.contains(&symbol.as_str()))
}

/// Whether all annotations are the broker's own.
pub(crate) fn are_all_broker_keys(annotations: Option<&MessageAnnotations>) -> bool {
    annotations.is_none_or(|annotations| annotations.iter().all(|(key, _)| is_broker_key(key)))
}

/// The annotations that are not the broker's own; `None` if there is none.
pub(crate) fn without_broker_keys(annotations: Option<&MessageAnnotations>) -> Option<Annotations> {
    let mut own = Annotations::new();
    for (key, value) in annotations?.iter().filter(|(key, _)| !is_broker_key(key)) {
        own.insert(key.clone(), value.clone());
    }
    (!own.is_empty()).then_some(own)
}
