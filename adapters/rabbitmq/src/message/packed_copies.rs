//! Copies whose headers do not fit into a frame any more, since a copy carries more than its original: they travel inside the body.
//!
//! Such a copy has a body that begins with the original's properties as AMQP lays them out, a header `polybus-packed` with their length,
//! and the content type [`CONTENT_TYPE`]. Reading it gives the original back.

use bytes::Bytes;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};

use crate::{
    message::envelope::{Head, Native, header, integer},
    transport::sanitizer::large_headers,
};

const PACKED: &str = "polybus-packed";
/// What other tools see as the content type of a packed copy.
const CONTENT_TYPE: &str = "application/vnd.polybus.packed";

/// The copy with what does not fit inside its body. `head` is what it would be; `added` is what is no part of the original.
pub(crate) fn pack(head: Head, added: FieldTable, body: &Bytes) -> Option<(Head, Bytes)> {
    let properties = head.clone().finish();
    let inside = large_headers::generate(&properties)?;
    let mut headers = added;
    headers.insert(PACKED.into(), AMQPValue::LongLongInt(inside.len() as i64));
    let outside = properties.with_content_type(CONTENT_TYPE.into()).with_headers(FieldTable::default());
    Some((Head::new(outside, headers), [&inside, &body[..]].concat().into()))
}

/// The message as it was before it was packed; itself if it was not.
pub(crate) fn unpack(native: Native) -> Native {
    let Some(length) = header(&native.properties, PACKED).and_then(integer) else { return native };
    let inside = usize::try_from(length).ok().and_then(|length| native.body.get(..length));
    let Some((properties, taken)) = inside.and_then(large_headers::parse) else { return native };
    if taken as u64 != length {
        return native;
    }
    let mut headers = properties.headers().clone().unwrap_or_default();
    // What the copy carries, and what brokers added to it since.
    for (name, value) in native.properties.headers().iter().flat_map(|table| table.inner()) {
        if name.as_str() != PACKED {
            headers.insert(name.clone(), value.clone());
        }
    }
    let properties = BasicProperties::with_headers(properties, headers);
    Native { properties, body: native.body.slice(taken..), ..native }
}
