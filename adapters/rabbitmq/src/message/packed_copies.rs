//! Packed copies: copies whose properties and headers travel inside the body, since they do not fit into a frame.
//!
//! The body of a packed copy begins with the original's properties as AMQP lays them out. The header `polybus-packed`
//! says how many bytes they take, and the content type is [`CONTENT_TYPE`]. Unpacking gives the original back.

use bytes::Bytes;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};

use crate::{
    message::envelope::{AmqpMessage, ContentHeader, header, value_as_integer},
    transport::sanitizer::large_headers,
};

/// The header with the length, in bytes, of the properties inside the body.
const PACKED: &str = "polybus-packed";
/// What other tools see as the content type of a packed copy.
const CONTENT_TYPE: &str = "application/vnd.polybus.packed";

/// Packs a copy. `head` is moved into the body, and `added`, which is no part of the original, stays outside.
pub(crate) fn pack(head: ContentHeader, added: FieldTable, body: &Bytes) -> Option<(ContentHeader, Bytes)> {
    let properties = head.clone().into_properties();
    let inside = large_headers::generate(&properties)?;
    let mut headers = added;
    headers.insert(PACKED.into(), AMQPValue::LongLongInt(inside.len() as i64));
    let outside = properties.with_content_type(CONTENT_TYPE.into()).with_headers(FieldTable::default());
    Some((ContentHeader::new(outside, headers), [&inside, &body[..]].concat().into()))
}

/// The message as it was before it was packed. A message that was not packed stays as it is.
pub(crate) fn unpack(native: AmqpMessage) -> AmqpMessage {
    let Some(length) = header(&native.properties, PACKED).and_then(value_as_integer) else { return native };
    let inside = usize::try_from(length).ok().and_then(|length| native.body.get(..length));
    let Some((properties, taken)) = inside.and_then(large_headers::parse) else { return native };
    if taken as u64 != length {
        return native;
    }
    let mut headers = properties.headers().clone().unwrap_or_default();
    // The headers outside: those that the copy carries, and those that brokers have added since.
    for (name, value) in native.properties.headers().iter().flat_map(|table| table.inner()) {
        if name.as_str() != PACKED {
            headers.insert(name.clone(), value.clone());
        }
    }
    let properties = BasicProperties::with_headers(properties, headers);
    AmqpMessage { properties, body: native.body.slice(taken..), ..native }
}
