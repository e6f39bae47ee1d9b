//! Messages that polybus did not write, and the hook that publishes them.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use polybus_core::{Address, Bus, Result};

/// The value of a native header.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RawValue {
    /// Text.
    Text(String),
    /// A whole number.
    Int(i64),
    /// Bytes that are no text.
    Binary(Vec<u8>),
    /// The most nested value that the broker's headers can hold, for example a table in an array.
    Nested,
}

/// A message as some other program would publish it. What is `None` or empty is not on the message at all.
///
/// Where a broker has no place for a property, its injector refuses the message in [`RawInject::carries`]. An id alone
/// may be ignored, where the broker gives its own.
///
/// ```
/// use polybus_conformance::{RawMessage, RawValue};
///
/// let raw = RawMessage::body("7").message_id("m-7").header("retries", RawValue::Int(3));
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RawMessage {
    /// The broker's own message id. Other producers set none, or the same one for many messages.
    pub message_id: Option<String>,
    /// The broker's own content type.
    pub content_type: Option<String>,
    /// The broker's own content encoding, for example `gzip`.
    pub content_encoding: Option<String>,
    /// The broker's own correlation id.
    pub correlation_id: Option<String>,
    /// The address for an answer.
    pub reply_to: Option<String>,
    /// The broker's own subject or label.
    pub subject: Option<String>,
    /// The broker's own message type, where it has one beside the subject.
    pub kind: Option<String>,
    /// The program that sent it, as the broker carries it.
    pub app_id: Option<String>,
    /// The time to live: for how long the broker keeps the message.
    pub ttl: Option<Duration>,
    /// The session or message group, which orders the message at the broker.
    pub group: Option<String>,
    /// The routing key, where the broker routes by more than headers and the address.
    pub routing_key: Option<String>,
    /// CloudEvents attributes in binary mode. The injector puts the binding's prefix before each name.
    pub attributes: Vec<(String, String)>,
    /// Native headers.
    pub headers: Vec<(String, RawValue)>,
    /// The body.
    pub body: Bytes,
}

impl RawMessage {
    /// A message with a body and nothing else.
    pub fn body(body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..Self::default() }
    }

    /// A CloudEvent in structured mode: this JSON as the body, under the event format's media type.
    pub fn structured(json: impl Into<Bytes>) -> Self {
        Self::body(json).content_type("application/cloudevents+json; charset=utf-8")
    }

    /// A message that no reader can decode: its content type says structured CloudEvent, and its body is cut off.
    pub fn undecodable() -> Self {
        Self::structured(&b"{\"specversion\":\"1.0\",\"id\":"[..])
    }

    /// Sets the broker's own message id.
    pub fn message_id(mut self, id: &str) -> Self {
        self.message_id = Some(id.into());
        self
    }

    /// Sets the broker's own content type.
    pub fn content_type(mut self, content_type: &str) -> Self {
        self.content_type = Some(content_type.into());
        self
    }

    /// Sets the broker's own content encoding.
    pub fn content_encoding(mut self, encoding: &str) -> Self {
        self.content_encoding = Some(encoding.into());
        self
    }

    /// Sets the broker's own correlation id.
    pub fn correlation_id(mut self, id: &str) -> Self {
        self.correlation_id = Some(id.into());
        self
    }

    /// Sets the address for an answer.
    pub fn reply_to(mut self, address: &str) -> Self {
        self.reply_to = Some(address.into());
        self
    }

    /// Sets the broker's own subject or label.
    pub fn subject(mut self, subject: &str) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// Sets the broker's own message type.
    pub fn kind(mut self, kind: &str) -> Self {
        self.kind = Some(kind.into());
        self
    }

    /// Sets the program that sent it.
    pub fn app_id(mut self, app: &str) -> Self {
        self.app_id = Some(app.into());
        self
    }

    /// Sets the time to live.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Sets the session or message group.
    pub fn group(mut self, group: &str) -> Self {
        self.group = Some(group.into());
        self
    }

    /// Sets the routing key.
    pub fn routing_key(mut self, key: &str) -> Self {
        self.routing_key = Some(key.into());
        self
    }

    /// Adds a CloudEvents attribute in binary mode.
    pub fn attribute(mut self, name: &str, value: &str) -> Self {
        self.attributes.push((name.into(), value.into()));
        self
    }

    /// Adds a native header.
    pub fn header(mut self, name: &str, value: RawValue) -> Self {
        self.headers.push((name.into(), value));
        self
    }
}

/// Publishes raw messages with the broker's own client. `bus.topology()` has the physical name of the address.
#[async_trait]
pub trait RawInject: Send + Sync {
    /// Whether the broker can carry such a message: some take text bodies or few headers only. Default: it can.
    ///
    /// Where it cannot, scenarios use a smaller message.
    fn carries(&self, raw: &RawMessage) -> bool {
        let _ = raw;
        true
    }

    /// Publishes the message, and returns once the broker has it.
    async fn inject(&self, bus: &Bus, to: &Address, raw: RawMessage) -> Result<()>;
}
