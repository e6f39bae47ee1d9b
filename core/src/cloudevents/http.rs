//! Native headers that become headers of HTTP on their way to some readers.

use super::pairs;
use crate::Headers;

/// Before an attribute's name: the AMQP binding prefers it to `cloudEvents:` too.
/// <https://github.com/cloudevents/spec/blob/main/cloudevents/bindings/amqp-protocol-binding.md>
pub(super) const PREFIX: &str = "cloudEvents_";

/// Names that HTTP, its clients and what lies between use themselves: an application's header of that name would be theirs.
const OWN: [&str; 37] = [
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
];
const OWN_PREFIXES: [&str; 9] =
    ["accept", "access-control-", "content-", "if-", "proxy-", "sec-", "set-cookie", "x-forwarded-", "x-ms-"];

fn is_own(name: &str) -> bool {
    let starts = |p: &str| name.len() >= p.len() && name.as_bytes()[..p.len()].eq_ignore_ascii_case(p.as_bytes());
    OWN.iter().any(|own| name.eq_ignore_ascii_case(own)) || OWN_PREFIXES.iter().any(|own| starts(own))
}

/// Whether each header reaches a reader over HTTP under its own name.
pub(super) fn fit(headers: &Headers) -> bool {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    headers.iter().all(|(key, _)| key.bytes().all(token) && !is_own(key))
}

/// The names, if any is not in lower case.
pub(super) fn spelling(headers: &Headers) -> Option<String> {
    headers.iter().any(|(key, _)| key.bytes().any(|b| b.is_ascii_uppercase())).then(|| pairs::names(headers))
}
