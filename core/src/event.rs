//! The typed layer: payloads as Rust types.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::{Envelope, Result};

/// A payload type with its event type and schema version.
pub trait Event: Serialize + DeserializeOwned {
    /// The event type it is published under, for example `order.placed`.
    const TYPE: &'static str;
    /// The version of its schema. Raise it only for a change that older readers would misread.
    const VERSION: u32;
}

/// Turns payloads into bytes and back, for the content types it knows.
pub trait Codec {
    /// The content type it writes.
    fn content_type(&self) -> &str;

    /// Whether it reads this content type; `None` if the message names none.
    fn reads(&self, content_type: Option<&str>) -> bool;

    /// The payload as bytes. `InvalidArgument` if the value cannot be written.
    fn encode<T: Serialize>(&self, value: &T) -> Result<Bytes>;

    /// The payload read from bytes. `Malformed` if they are none; the message quotes no payload, which may be private.
    fn decode<T: DeserializeOwned>(&self, content_type: Option<&str>, data: &[u8]) -> Result<T>;
}

/// JSON: writes `application/json`, reads that, anything ending in `+json`, and messages that name no content type.
#[derive(Clone, Copy, Debug, Default)]
pub struct Json;

impl Envelope {
    /// A new message with the event as JSON.
    pub fn event<E: Event>(event: &E) -> Result<Self> {
        let _ = event;
        unimplemented!()
    }

    /// A new message with the event as the codec writes it.
    pub fn event_with<E: Event>(codec: &impl Codec, event: &E) -> Result<Self> {
        let _ = (codec, event);
        unimplemented!()
    }

    /// The event, read as JSON. Errors as [`Envelope::decode_with`].
    pub fn decode<E: Event>(&self) -> Result<E> {
        unimplemented!()
    }

    /// The event, read by the codec.
    pub fn decode_with<E: Event>(&self, codec: &impl Codec) -> Result<E> {
        let _ = codec;
        unimplemented!()
    }
}
