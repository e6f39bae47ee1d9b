//! Headers where the carrier is no place for them: as JSON pairs in one text, or with their order beside them.

use super::{attributes::PREFIX, carried, text::push_string};
use crate::{Headers, headers::MAX_HEADERS};

/// Headers that a broker adds to messages, beside `x-death`. They are no part of a CloudEvent.
const BROKERS: [&str; 4] = ["x-first-death-", "x-last-death-", "x-delivery-", "x-opt-"];

/// The attribute's name if the native header is one: `cloudEvents:id`, `cloudEvents_id`, in any case.
pub(super) fn attribute(header: &str) -> Option<&str> {
    let (bytes, at) = (header.as_bytes(), PREFIX.len() - 1);
    let is = bytes.len() > at
        && bytes[..at].eq_ignore_ascii_case(&PREFIX.as_bytes()[..at])
        && matches!(bytes[at], b':' | b'_');
    if is { header.get(at + 1..) } else { None }
}

/// Whether a broker, not an application, wrote the header.
pub(super) fn is_brokers(header: &str) -> bool {
    let bytes = header.as_bytes();
    let starts = |p: &str| bytes.len() >= p.len() && bytes[..p.len()].eq_ignore_ascii_case(p.as_bytes());
    matches!(bytes.first(), Some(b'x' | b'X'))
        && (bytes.eq_ignore_ascii_case(b"x-death") || BROKERS.iter().any(|p| starts(p)))
}

/// Whether each header can be a native one and is read back as itself. Published headers can, foreign ones perhaps not.
pub(super) fn fit_native(headers: &Headers) -> bool {
    let plain = |key: &str| {
        !key.is_empty()
            && !key.contains(',')
            && attribute(key).is_none()
            && carried::own(key).is_none()
            && !is_brokers(key)
    };
    headers.len() <= MAX_HEADERS
        && headers.iter().enumerate().all(|(i, (key, _))| {
            plain(key) && headers.iter().take(i).all(|(other, _)| !other.eq_ignore_ascii_case(key))
        })
}

/// The names in order, unless a carrier that sorts them keeps it: AMQP 0-9-1 clients hold tables in sorted maps.
pub(super) fn order(headers: &Headers) -> Option<String> {
    if headers.iter().map(|(key, _)| key).is_sorted() {
        return None;
    }
    Some(names(headers))
}

/// The names as they stand.
pub(super) fn names(headers: &Headers) -> String {
    let names: Vec<&str> = headers.iter().map(|(key, _)| key).collect();
    names.join(",")
}

/// Brings the named ones into this order; others follow as they were.
pub(super) fn reorder(headers: &mut Headers, order: &str) {
    let mut sorted = Headers::new();
    for name in order.split(',').take(MAX_HEADERS) {
        if let Some(value) = headers.remove(name) {
            sorted.push(name, value);
        }
    }
    for (name, value) in headers.iter() {
        sorted.push(name, value);
    }
    *headers = sorted;
}

/// All headers as a JSON array of pairs.
pub(super) fn pack(headers: &Headers) -> String {
    let mut out = String::with_capacity(headers.size() + 6 * headers.len() + 2);
    out.push('[');
    for (i, (key, value)) in headers.iter().enumerate() {
        out.push_str(if i == 0 { "[" } else { ",[" });
        push_string(&mut out, key);
        out.push(',');
        push_string(&mut out, value);
        out.push(']');
    }
    out.push(']');
    out
}

/// The headers of [`pack`].
pub(super) fn unpack(text: &str) -> Result<Headers, String> {
    let pairs: Vec<(String, String)> =
        serde_json::from_str(text).map_err(|_| "the headers polybus packed are no JSON array of pairs")?;
    Ok(pairs.into_iter().collect())
}
