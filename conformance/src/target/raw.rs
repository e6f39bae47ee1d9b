//! Messages that polybus did not write.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use polybus_core::{Address, Bus, Result};

/// A value of a native header.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RawValue {
    /// Text.
    Text(String),
    /// A whole number.
    Int(i64),
    /// Bytes that are no text.
    Binary(Vec<u8>),
    /// Whatever nested thing the broker's headers can hold (a table in an array), or the nearest to it.
    Nested,
}

/// A message as some other program would publish it: without what is not set. What a broker has no place for, its injector
/// refuses in [`RawInject::carries`]; only an id may be ignored, where brokers give their own.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Raw {
    /// The broker's own message id: none, or the same for many messages, is what other producers do.
    pub message_id: Option<String>,
    /// The broker's own content type.
    pub content_type: Option<String>,
    /// The broker's own content encoding, for example `gzip`.
    pub content_encoding: Option<String>,
    /// The broker's own correlation id.
    pub correlation_id: Option<String>,
    /// Where an answer is wanted.
    pub reply_to: Option<String>,
    /// The broker's own subject or label.
    pub subject: Option<String>,
    /// The broker's own message type, where it has one beside the subject.
    pub kind: Option<String>,
    /// Which program sent it, as the broker carries it.
    pub app_id: Option<String>,
    /// How long the broker keeps it.
    pub ttl: Option<Duration>,
    /// What orders it at the broker: a session, a message group.
    pub group: Option<String>,
    /// By what the broker routes it, where that is neither a header nor the address.
    pub routing_key: Option<String>,
    /// CloudEvents attributes in binary mode; the injector puts the binding's prefix before each name.
    pub attributes: Vec<(String, String)>,
    /// Native headers.
    pub headers: Vec<(String, RawValue)>,
    /// The body.
    pub body: Bytes,
}

impl Raw {
    /// A body and nothing else.
    pub fn body(body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..Self::default() }
    }

    /// A CloudEvent in structured mode: this JSON as the body, under the event format's media type.
    pub fn structured(json: impl Into<Bytes>) -> Self {
        Self::body(json).content_type("application/cloudevents+json; charset=utf-8")
    }

    /// A message that no reader can decode: it says that it is a structured CloudEvent, and is not.
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

    /// Says where an answer is wanted.
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

    /// Says which program sent it.
    pub fn app_id(mut self, app: &str) -> Self {
        self.app_id = Some(app.into());
        self
    }

    /// Says how long the broker keeps it.
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

/// Puts raw messages on a broker, beside polybus. The physical name is in `bus.topology()`.
#[async_trait]
pub trait RawInject: Send + Sync {
    /// Whether the broker can carry such a message at all: some take text bodies or few headers only. Scenarios then use
    /// a smaller one.
    fn carries(&self, raw: &Raw) -> bool {
        let _ = raw;
        true
    }

    /// Publishes it; done once the broker has it.
    async fn inject(&self, bus: &Bus, to: &Address, raw: Raw) -> Result<()>;
}
