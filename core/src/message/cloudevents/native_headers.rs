//! What a native header's name says: an attribute of the event, a header of polybus, a broker's counter, or the
//! application's own.

use super::{attributes::KNOWN, internal_headers};
use crate::{Headers, message::headers::MAX_HEADERS};

/// Headers that RabbitMQ adds to messages and counts in. They are no part of a CloudEvent. The names are exact, since
/// applications have headers that begin like them (`x-delivery-note`, `x-opt-tenant`).
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

/// Prefix of a header that tells one of the broker's native properties.
pub(crate) const NATIVE: &str = "native.";

/// The prefix that marks a message's native headers as attributes. An event uses one; headers with another prefix are
/// then the application's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum AttributePrefix {
    /// `cloudEvents:id` and `cloudEvents_id`: the AMQP binding, polybus, and Azure's SDKs.
    Amqp,
    /// `ce-id` and `ce_id`: the bindings of HTTP, NATS and Kafka, and what the CloudEvents SDKs and Knative write to
    /// RabbitMQ.
    Ce,
    /// `id`: what Knative's RabbitMQ broker writes. Extensions cannot be told from application headers there.
    Bare,
}

/// The name of the attribute that a native header is; `None` if it is none with this prefix. Case is ignored.
pub(super) fn attribute(prefix: AttributePrefix, header: &str) -> Option<&str> {
    let (start, joints) = match prefix {
        AttributePrefix::Amqp => ("cloudEvents", [b':', b'_']),
        AttributePrefix::Ce => ("ce", [b'-', b'_']),
        AttributePrefix::Bare => return KNOWN.iter().any(|known| header.eq_ignore_ascii_case(known)).then_some(header),
    };
    let is = starts(header, start) && header.as_bytes().get(start.len()).is_some_and(|joint| joints.contains(joint));
    if is { header.get(start.len() + 1..) } else { None }
}

/// The name of the attribute that a native header is, with either prefix.
pub(super) fn prefixed(header: &str) -> Option<&str> {
    attribute(AttributePrefix::Amqp, header).or_else(|| attribute(AttributePrefix::Ce, header))
}

/// Whether `text` begins with `start`, ignoring case.
pub(crate) fn starts(text: &str, start: &str) -> bool {
    text.len() >= start.len() && text.as_bytes()[..start.len()].eq_ignore_ascii_case(start.as_bytes())
}

/// Whether a broker, not an application, wrote the header.
pub(crate) fn is_counter(header: &str) -> bool {
    matches!(header.as_bytes().first(), Some(b'x' | b'X'))
        && COUNTERS.iter().any(|own| header.eq_ignore_ascii_case(own))
}

/// Whether each header can be a native header of its own and is read back as itself. Headers that were published can;
/// those of a foreign message may collide with attributes or with each other.
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
