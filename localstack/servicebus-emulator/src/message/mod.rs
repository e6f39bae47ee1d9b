//! An AMQP message by its sections, and a batch of them.

use bytes::Bytes;

use crate::codec::{Value, lookup};

mod decode;
pub(crate) mod encode;

/// The message format of a batch: each data section is a whole message.
pub const BATCH_FORMAT: u32 = 0x8001_3700;

pub(crate) const HEADER: u64 = 0x70;
pub(crate) const DELIVERY_ANNOTATIONS: u64 = 0x71;
pub(crate) const ANNOTATIONS: u64 = 0x72;
pub(crate) const PROPERTIES: u64 = 0x73;
pub(crate) const APPLICATION_PROPERTIES: u64 = 0x74;
pub(crate) const DATA: u64 = 0x75;
pub(crate) const SEQUENCE: u64 = 0x76;
pub(crate) const VALUE: u64 = 0x77;
pub(crate) const FOOTER: u64 = 0x78;

/// Pairs of a map section.
pub type MapPairs = Vec<(Value, Value)>;

/// The header section: what a hop may change.
#[derive(Clone, Debug, PartialEq)]
pub struct MessageHeader {
    /// Survives a restart of a real broker; carried, not acted on.
    pub durable: bool,
    /// 4 unless the sender said otherwise.
    pub priority: u8,
    /// Time to live from enqueuing on.
    pub ttl_ms: Option<u32>,
    /// True when no other link got this message before.
    pub first_acquirer: bool,
    /// Earlier deliveries that did not complete it.
    pub delivery_count: u32,
}

impl Default for MessageHeader {
    fn default() -> Self {
        Self { durable: false, priority: 4, ttl_ms: None, first_acquirer: false, delivery_count: 0 }
    }
}

/// The properties section: immutable from sender to receiver.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MessageProperties {
    /// A string, uuid, ulong or binary.
    pub message_id: Option<Value>,
    /// Who sent it.
    pub user_id: Option<Bytes>,
    /// Where it was meant to go.
    pub to: Option<String>,
    /// Service Bus calls it the label.
    pub subject: Option<String>,
    /// Where answers go.
    pub reply_to: Option<String>,
    /// A string, uuid, ulong or binary.
    pub correlation_id: Option<Value>,
    /// The body's media type.
    pub content_type: Option<String>,
    /// The body's encoding.
    pub content_encoding: Option<String>,
    /// Milliseconds since the epoch.
    pub absolute_expiry: Option<i64>,
    /// Milliseconds since the epoch.
    pub creation_time: Option<i64>,
    /// Service Bus calls it the session id.
    pub group_id: Option<String>,
    /// Place within the group.
    pub group_sequence: Option<u32>,
    /// The session id for answers.
    pub reply_to_group_id: Option<String>,
}

/// A message, its body left encoded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    /// The header section.
    pub header: MessageHeader,
    /// For the next hop alone; where the lock token goes.
    pub delivery_annotations: MapPairs,
    /// Where `x-opt-sequence-number` and its like stand.
    pub annotations: MapPairs,
    /// The properties section.
    pub properties: MessageProperties,
    /// The application's own properties.
    pub application_properties: Vec<(String, Value)>,
    /// Every body section as it was on the wire.
    pub body: Bytes,
    /// The footer section.
    pub footer: MapPairs,
    /// How long the message was on the wire when it came in.
    pub encoded_size: usize,
}

impl Message {
    /// The annotation of this name.
    pub fn annotation(&self, name: &str) -> Option<&Value> {
        lookup(&self.annotations, name)
    }

    /// Sets an annotation, in place of one of the same name.
    pub fn set_annotation(&mut self, name: &str, value: Value) {
        match self.annotations.iter_mut().find(|(key, _)| key.as_text() == Some(name)) {
            Some((_, old)) => *old = value,
            None => self.annotations.push((Value::symbol(name), value)),
        }
    }

    /// The application property of this name.
    pub fn application_property(&self, name: &str) -> Option<&Value> {
        self.application_properties.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }
}
