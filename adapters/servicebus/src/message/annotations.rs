//! The broker's annotations of a message: what they tell, and which are the broker's own.

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

/// By which the broker chooses a message's partition.
pub(crate) const PARTITION_KEY: &str = "x-opt-partition-key";
/// What the broker writes itself, so that no copy brings it along.
/// <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-amqp-protocol-guide#message-annotations>
const BROKERS: [&str; 9] = [
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
pub(crate) struct Told {
    /// Its place in the entity.
    pub(crate) sequence: Option<i64>,
    pub(crate) enqueued: Option<OffsetDateTime>,
    pub(crate) locked_until: Option<OffsetDateTime>,
}

impl Told {
    pub(crate) fn of(annotations: Option<&MessageAnnotations>) -> Self {
        let mut told = Self::default();
        for (key, value) in annotations.into_iter().flat_map(|annotations| annotations.iter()) {
            let OwnedKey::Symbol(key) = key else { continue };
            match (key.as_str(), value) {
                ("x-opt-sequence-number", Value::Long(number)) => told.sequence = Some(*number),
                ("x-opt-enqueued-time", Value::Timestamp(at)) => told.enqueued = envelope::instant(at),
                ("x-opt-locked-until", Value::Timestamp(at)) => told.locked_until = envelope::instant(at),
                _ => {}
            }
        }
        told
    }

    /// How long a message may still live, whose sender said so. Counted by the broker's clock as far as it is told: the lock, of this
    /// length, was given before it came and is not over.
    pub(crate) fn left(&self, header: Option<&Header>, lock: Duration) -> Option<time::Duration> {
        Some(self.left_of(time::Duration::milliseconds(i64::from(header?.ttl?)), lock))
    }

    /// The same of what its sender lets live for `ttl`.
    pub(crate) fn left_of(&self, ttl: time::Duration, lock: Duration) -> time::Duration {
        let mut now = OffsetDateTime::now_utc();
        if let Some(until) = self.locked_until {
            now = now.clamp(until - lock, until);
        }
        let age = self.enqueued.map_or(time::Duration::ZERO, |at| now - at);
        (ttl - age.max(time::Duration::ZERO)).max(time::Duration::MILLISECOND)
    }
}

/// The text of an annotation.
pub(crate) fn text<'a>(annotations: Option<&'a MessageAnnotations>, name: &str) -> Option<&'a str> {
    annotations?.iter().find_map(|(key, value)| match (key, value) {
        (OwnedKey::Symbol(symbol), Value::String(text)) if symbol.as_str() == name => Some(text.as_str()),
        _ => None,
    })
}

fn is_brokers(key: &OwnedKey) -> bool {
    matches!(key, OwnedKey::Symbol(symbol) if BROKERS.contains(&symbol.as_str()))
}

/// Whether all of them are the broker's.
pub(crate) fn are_brokers(annotations: Option<&MessageAnnotations>) -> bool {
    annotations.is_none_or(|annotations| annotations.iter().all(|(key, _)| is_brokers(key)))
}

/// Those that belong to the message.
pub(crate) fn without_brokers(annotations: Option<&MessageAnnotations>) -> Option<Annotations> {
    let mut own = Annotations::new();
    for (key, value) in annotations?.iter().filter(|(key, _)| !is_brokers(key)) {
        own.insert(key.clone(), value.clone());
    }
    (!own.is_empty()).then_some(own)
}
