//! Binary mode: attributes as native headers, the body untouched.

use std::borrow::Cow;

use bytes::Bytes;

use super::{
    CopyState, WireMessage, WireNames,
    attributes::{self, PREFIX, Set},
    content_type, internal_headers,
    packed_headers::{self, Family},
};
use crate::message::{Envelope, EnvelopeFields, Headers};

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

/// Whether polybus sent it in binary mode although its payload is of a content type that says structured mode.
pub(super) fn is_marked(wire: &WireMessage<'_>) -> bool {
    wire.headers.iter().any(|(name, value)| internal_headers::own(name) == Some("mode") && value == "binary")
}

/// All but the payload. `None` if it is no CloudEvent in binary mode.
pub(super) fn decode(wire: &WireMessage<'_>) -> Result<Option<EnvelopeFields>, String> {
    for family in [Family::Amqp, Family::Ce] {
        if let Some(version) = attribute(wire, family, "specversion") {
            attributes::check_version(version)?;
            return parts(wire, family).map(Some);
        }
    }
    // Without a prefix the names may be anybody's: they are an event's only if they make a whole one.
    let whole =
        ["id", "type", "source"].iter().all(|name| attribute(wire, Family::Bare, name).is_some_and(|v| !v.is_empty()));
    let version = attribute(wire, Family::Bare, "specversion");
    if whole && version.is_some_and(|version| attributes::check_version(version).is_ok()) {
        return Ok(parts(wire, Family::Bare).ok());
    }
    Ok(None)
}

fn attribute<'a>(wire: &'a WireMessage<'_>, family: Family, name: &str) -> Option<&'a str> {
    let is = |header: &str| packed_headers::attribute(family, header).is_some_and(|a| a.eq_ignore_ascii_case(name));
    wire.headers.iter().find(|(header, _)| is(header)).map(|(_, value)| &**value)
}

fn parts(wire: &WireMessage<'_>, family: Family) -> Result<EnvelopeFields, String> {
    let mut parts = EnvelopeFields::bare("", Bytes::new());
    let (mut packed, mut order, mut extension_order) = (None, None, None);
    let mut misnamed = Headers::new();
    for (name, value) in &wire.headers {
        if let Some(attribute) = packed_headers::attribute(family, name) {
            if attributes::set(&mut parts, attribute, Cow::Borrowed(value))? == Set::Misnamed {
                misnamed.push(&**name, &**value);
            }
        } else if let Some(own) = internal_headers::own(name) {
            match own {
                "headers" => packed = Some(value),
                "order" => order = Some(value),
                "extension-order" => extension_order = Some(value),
                _ => {}
            }
        } else if !packed_headers::is_counter(name) {
            parts.headers.push(&**name, &**value);
        }
    }
    attributes::complete(&parts)?;
    if let Some(content_type) = wire.content_type {
        parts.content_type = Some(content_type.into());
    }
    if let Some(packed) = packed {
        parts.headers = packed_headers::unpack(packed)?;
    } else if let Some(order) = order {
        packed_headers::reorder(&mut parts.headers, order);
    }
    if let Some(order) = extension_order {
        packed_headers::reorder(&mut parts.extensions, order);
    }
    for (name, value) in misnamed.iter() {
        parts.headers.push(name, value);
    }
    Ok(parts)
}
