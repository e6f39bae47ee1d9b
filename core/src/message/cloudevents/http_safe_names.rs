//! Names that native headers must not have where they may become headers of HTTP on their way to a reader.

use super::packed_headers;
use crate::Headers;

/// Prefix of an attribute's name. The AMQP binding prefers it to `cloudEvents:` too.
/// <https://github.com/cloudevents/spec/blob/main/cloudevents/bindings/amqp-protocol-binding.md>
pub(super) const PREFIX: &str = "cloudEvents_";

/// Names that HTTP, its clients and proxies use themselves. They would take an application's header of that name for
/// their own. A star stands for all names that begin so.
pub(super) const HTTP_HEADERS: &[&str] = &[
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

/// Whether HTTP can write the name.
pub(super) fn is_token(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// All names as they are spelt, if one has upper-case letters: HTTP delivers names in lower case.
pub(super) fn spelling(headers: &Headers) -> Option<String> {
    headers.iter().any(|(key, _)| key.bytes().any(|b| b.is_ascii_uppercase())).then(|| packed_headers::names(headers))
}
