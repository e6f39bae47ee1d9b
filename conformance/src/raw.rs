//! Messages that polybus did not write.

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
    /// Whatever nested thing the broker's headers can hold (a table in an array), or the nearest to it.
    Nested,
}

/// A message as some other program would publish it.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Raw {
    /// The broker's own message id.
    pub message_id: Option<String>,
    /// The broker's own content type.
    pub content_type: Option<String>,
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
