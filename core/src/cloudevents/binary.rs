//! Binary mode: attributes as native headers, the body untouched.

use std::borrow::Cow;

use bytes::Bytes;

use super::{
    Carried, Wire,
    attributes::{self, PREFIX},
    carried, http, media, pairs,
};
use crate::{Envelope, Parts};

/// Where native headers may become headers of HTTP, or not.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    Native,
    Http,
}

pub(super) fn encode(envelope: &Envelope, carried: &Carried, names: Names, put: &mut dyn FnMut(&str, &str)) {
    let prefix = match names {
        Names::Native => {
            attributes::each(envelope, put);
            PREFIX
        }
        Names::Http => {
            let mut name = String::from(http::PREFIX);
            attributes::each(envelope, &mut |native, value| {
                name.truncate(http::PREFIX.len());
                name.push_str(&native[PREFIX.len()..]);
                put(&name, value);
            });
            http::PREFIX
        }
    };
    if !envelope.extensions.is_empty() {
        let mut name = String::from(prefix);
        for (extension, value) in envelope.extensions.iter() {
            name.truncate(prefix.len());
            name.push_str(extension);
            put(&name, value);
        }
        if let Some(order) = pairs::order(&envelope.extensions) {
            put("polybus-extension-order", &order);
        }
    }
    carried::each(carried, put);
    if envelope.content_type.as_deref().is_some_and(media::claims_structured) {
        put("polybus-mode", "binary");
    }
    let http = names == Names::Http;
    if !pairs::fit_native(&envelope.headers) || http && !http::fit(&envelope.headers) {
        put("polybus-headers", &pairs::pack(&envelope.headers));
        return;
    }
    let order = pairs::order(&envelope.headers);
    if let Some(order) = order.or_else(|| http.then(|| http::spelling(&envelope.headers)).flatten()) {
        put("polybus-order", &order);
    }
    for (key, value) in envelope.headers.iter() {
        put(key, value);
    }
}

/// Whether polybus sent it in binary mode although its payload is of a content type that says structured mode.
pub(super) fn is_marked(wire: &Wire<'_>) -> bool {
    wire.headers.iter().any(|(name, value)| carried::own(name) == Some("mode") && value == "binary")
}

/// All but the payload. `None` if it is no CloudEvent.
pub(super) fn decode(wire: &Wire<'_>) -> Result<Option<Parts>, String> {
    let is_version = |name: &str| pairs::attribute(name).is_some_and(|a| a.eq_ignore_ascii_case("specversion"));
    let Some((_, version)) = wire.headers.iter().find(|(name, _)| is_version(name)) else { return Ok(None) };
    attributes::check_version(version)?;
    let mut parts = Parts::bare("", Bytes::new());
    let (mut packed, mut order, mut extension_order) = (None, None, None);
    for (name, value) in &wire.headers {
        if let Some(attribute) = pairs::attribute(name) {
            attributes::set(&mut parts, attribute, Cow::Borrowed(value))?;
        } else if let Some(own) = carried::own(name) {
            match own {
                "headers" => packed = Some(value),
                "order" => order = Some(value),
                "extension-order" => extension_order = Some(value),
                _ => {}
            }
        } else if !pairs::is_brokers(name) {
            parts.headers.push(&**name, &**value);
        }
    }
    attributes::complete(&parts)?;
    if let Some(content_type) = wire.content_type {
        parts.content_type = Some(content_type.into());
    }
    if let Some(packed) = packed {
        parts.headers = pairs::unpack(packed)?;
    } else if let Some(order) = order {
        pairs::reorder(&mut parts.headers, order);
    }
    if let Some(order) = extension_order {
        pairs::reorder(&mut parts.extensions, order);
    }
    Ok(Some(parts))
}
