//! Headers where the carrier is no place for them: as JSON pairs in one text, or with their order beside them.

use super::{attributes::KNOWN, internal_headers, json_text::push_string};
use crate::message::{Headers, headers::MAX_HEADERS};

/// Headers that RabbitMQ adds to messages and counts in: no part of a CloudEvent. Exact names, since applications have headers that begin
/// like them (`x-delivery-note`, `x-opt-tenant`).
/// <https://www.rabbitmq.com/docs/dlx#effects>, <https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling>,
/// <https://www.rabbitmq.com/docs/streams#consuming>
const COUNTERS: [&str; 11] = [
    "x-death",
    "x-first-death-exchange",
    "x-first-death-queue",
    "x-first-death-reason",
    "x-last-death-exchange",
    "x-last-death-queue",
    "x-last-death-reason",
    "x-delivery-count",
    "x-acquired-count",
    "x-opt-deaths",
    "x-stream-offset",
];

/// Before the name of a header that tells a native property.
pub(crate) const NATIVE: &str = "native.";

/// Whose attributes a message's native headers are. An event has one family: the other's names are then the application's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Family {
    /// `cloudEvents:id`, `cloudEvents_id`: the AMQP binding, polybus, Azure's SDKs.
    Amqp,
    /// `ce-id`, `ce_id`: the bindings of HTTP, NATS and Kafka, and what the CloudEvents SDKs and Knative write to RabbitMQ.
    Ce,
    /// `id`: what Knative's RabbitMQ broker writes. Nothing tells extensions from headers there.
    Bare,
}

/// The attribute's name if the native header is one, in any case.
pub(super) fn attribute(family: Family, header: &str) -> Option<&str> {
    let (start, joints) = match family {
        Family::Amqp => ("cloudEvents", [b':', b'_']),
        Family::Ce => ("ce", [b'-', b'_']),
        Family::Bare => return KNOWN.iter().any(|known| header.eq_ignore_ascii_case(known)).then_some(header),
    };
    let is = starts(header, start) && header.as_bytes().get(start.len()).is_some_and(|joint| joints.contains(joint));
    if is { header.get(start.len() + 1..) } else { None }
}

/// The attribute's name whatever the prefix.
pub(super) fn prefixed(header: &str) -> Option<&str> {
    attribute(Family::Amqp, header).or_else(|| attribute(Family::Ce, header))
}

pub(crate) fn starts(text: &str, start: &str) -> bool {
    text.len() >= start.len() && text.as_bytes()[..start.len()].eq_ignore_ascii_case(start.as_bytes())
}

/// Whether a broker, not an application, wrote the header.
pub(crate) fn is_counter(header: &str) -> bool {
    matches!(header.as_bytes().first(), Some(b'x' | b'X'))
        && COUNTERS.iter().any(|own| header.eq_ignore_ascii_case(own))
}

/// Whether each header can be a native one and is read back as itself. Published headers can, foreign ones perhaps not.
pub(super) fn fit_native(headers: &Headers) -> bool {
    let plain = |key: &str| {
        !key.is_empty()
            && !key.contains(',')
            && prefixed(key).is_none()
            && internal_headers::own(key).is_none()
            && !is_counter(key)
            && !starts(key, NATIVE)
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
