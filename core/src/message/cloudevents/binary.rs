//! Binary mode: attributes are native headers, and the body is the payload as it is.

use std::borrow::Cow;

use bytes::Bytes;

use super::{
    CopyState, WireMessage, WireNames,
    attributes::{self, AttributePlacement, PREFIX},
    content_type, internal_headers,
    native_headers::{self, AttributePrefix},
    packed_headers,
};
use crate::{Envelope, Headers, message::EnvelopeFields};

/// Hands `put` all native headers of a message.
pub(super) fn encode(envelope: &Envelope, carried: &CopyState, names: &WireNames, put: &mut dyn FnMut(&str, &str)) {
    let prefix = names.prefix;
    if prefix == PREFIX {
        attributes::each(envelope, put);
    } else {
        let mut name = String::from(prefix);
        attributes::each(envelope, &mut |native, value| {
            name.truncate(prefix.len());
            name.push_str(&native[PREFIX.len()..]);
            put(&name, value);
        });
    }
    if !envelope.extensions.is_empty() {
        let mut name = String::from(prefix);
        for (extension, value) in envelope.extensions.iter() {
            name.truncate(prefix.len());
            name.push_str(extension);
            put(&name, value);
        }
        if let Some(order) = packed_headers::order(&envelope.extensions) {
            put("polybus-extension-order", &order);
        }
    }
    internal_headers::each(carried, put);
    if envelope.content_type.as_deref().is_some_and(content_type::claims_structured) {
        put("polybus-mode", "binary");
    }
    if !names.fit(&envelope.headers) {
        put("polybus-headers", &packed_headers::pack(&envelope.headers));
        return;
    }
    if let Some(order) = names.order(&envelope.headers) {
        put("polybus-order", &order);
    }
    for (key, value) in envelope.headers.iter() {
        put(key, value);
    }
}

/// Whether polybus marked the message as binary mode because its payload's content type says structured mode.
pub(super) fn is_marked(wire: &WireMessage<'_>) -> bool {
    wire.headers.iter().any(|(name, value)| internal_headers::own(name) == Some("mode") && value == "binary")
}

/// Reads all fields but the payload. `None` if the message is no CloudEvent in binary mode.
pub(super) fn decode(wire: &WireMessage<'_>) -> Result<Option<EnvelopeFields>, String> {
    for prefix in [AttributePrefix::Amqp, AttributePrefix::Ce] {
        if let Some(version) = attribute(wire, prefix, "specversion") {
            attributes::check_version(version)?;
            return read_fields(wire, prefix).map(Some);
        }
    }
    // Without a prefix the names may be an application's own. They are attributes only if they make a complete event.
    let whole = ["id", "type", "source"]
        .iter()
        .all(|name| attribute(wire, AttributePrefix::Bare, name).is_some_and(|v| !v.is_empty()));
    let version = attribute(wire, AttributePrefix::Bare, "specversion");
    if whole && version.is_some_and(|version| attributes::check_version(version).is_ok()) {
        return Ok(read_fields(wire, AttributePrefix::Bare).ok());
    }
    Ok(None)
}

/// The value of the attribute of this name.
fn attribute<'a>(wire: &'a WireMessage<'_>, prefix: AttributePrefix, name: &str) -> Option<&'a str> {
    let is = |header: &str| native_headers::attribute(prefix, header).is_some_and(|a| a.eq_ignore_ascii_case(name));
    wire.headers.iter().find(|(header, _)| is(header)).map(|(_, value)| &**value)
}

/// Reads the fields of an event whose attributes have this prefix.
fn read_fields(wire: &WireMessage<'_>, prefix: AttributePrefix) -> Result<EnvelopeFields, String> {
    let mut fields = EnvelopeFields::bare("", Bytes::new());
    let (mut packed, mut order, mut extension_order) = (None, None, None);
    let mut misnamed = Headers::new();
    for (name, value) in &wire.headers {
        if let Some(attribute) = native_headers::attribute(prefix, name) {
            if attributes::set(&mut fields, attribute, Cow::Borrowed(value))? == AttributePlacement::Misnamed {
                misnamed.push(&**name, &**value);
            }
        } else if let Some(own) = internal_headers::own(name) {
            match own {
                "headers" => packed = Some(value),
                "order" => order = Some(value),
                "extension-order" => extension_order = Some(value),
                _ => {}
            }
        } else if !native_headers::is_counter(name) {
            fields.headers.push(&**name, &**value);
        }
    }
    attributes::complete(&fields)?;
    if let Some(content_type) = wire.content_type {
        fields.content_type = Some(content_type.into());
    }
    if let Some(packed) = packed {
        fields.headers = packed_headers::unpack(packed)?;
    } else if let Some(order) = order {
        packed_headers::reorder(&mut fields.headers, order);
    }
    if let Some(order) = extension_order {
        packed_headers::reorder(&mut fields.extensions, order);
    }
    for (name, value) in misnamed.iter() {
        fields.headers.push(name, value);
    }
    Ok(fields)
}
