//! Native headers that become headers of HTTP on their way to some readers.

use super::packed_headers;
use crate::message::Headers;

/// Before an attribute's name: the AMQP binding prefers it to `cloudEvents:` too.
/// <https://github.com/cloudevents/spec/blob/main/cloudevents/bindings/amqp-protocol-binding.md>
pub(super) const PREFIX: &str = "cloudEvents_";

/// Names that HTTP, its clients and what lies between use themselves (all that begin so, with a star): an application's header of
/// that name would be theirs.
pub(super) const OWN: &[&str] = &[
    "age",
    "allow",
    "authorization",
    "brokerproperties",
    "cache-control",
    "connection",
    "cookie",
    "cookie2",
    "date",
    "dnt",
    "etag",
    "expect",
    "expires",
    "forwarded",
    "from",
    "host",
    "keep-alive",
    "last-modified",
    "link",
    "location",
    "max-forwards",
    "origin",
    "pragma",
    "range",
    "referer",
    "retry-after",
    "server",
    "strict-transport-security",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "accept*",
    "access-control-*",
    "content-*",
    "if-*",
    "proxy-*",
    "sec-*",
    "set-cookie*",
    "x-forwarded-*",
    "x-ms-*",
];

/// Whether HTTP has letters for the name.
pub(super) fn is_token(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// The names, if any is not in lower case.
pub(super) fn spelling(headers: &Headers) -> Option<String> {
    headers.iter().any(|(key, _)| key.bytes().any(|b| b.is_ascii_uppercase())).then(|| packed_headers::names(headers))
}
