//! What native headers are named, on brokers of all kinds.

use super::{http_safe_names, packed_headers};
use crate::message::Headers;

/// How binary mode names its native headers: for adapters of brokers that have rules of their own.
///
/// Whatever an adapter writes, [`decode`](super::decode) reads all prefixes that are in use, in any case, so that the choice may change between two
/// versions of a program that share a queue.
///
/// ```
/// use polybus_core::message::cloudevents::WireNames;
///
/// const NATS: WireNames = WireNames { prefix: "ce-", reserved: &["nats-*"], ..WireNames::AMQP };
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireNames {
    /// Before an attribute's name: `cloudEvents:`, `cloudEvents_`, `ce-` or `ce_`. No other is read.
    pub prefix: &'static str,
    /// Names that are the broker's or its protocol's own (instructions to it, for example), compared ignoring case; `nats-*` is all that
    /// begin so. Application headers of these names are never native headers: where a message has one, all its headers go
    /// together into one `polybus-headers`, and are read back from there.
    pub reserved: &'static [&'static str],
    /// Whether native headers may come back as headers of HTTP: in any order, their names in lower case. Their spelling and order then
    /// go beside them, and names that HTTP has no letters for count as reserved. The reader sorts them by name before
    /// [`decode`](super::decode).
    pub http: bool,
}

impl WireNames {
    /// The AMQP binding's: `cloudEvents:id`.
    /// <https://github.com/cloudevents/spec/blob/main/cloudevents/bindings/amqp-protocol-binding.md>
    ///
    /// RabbitMQ's default too. Clients of AMQP 0-9-1 read headers by whatever name they look for, but the same queue read over AMQP 1.0, as
    /// RabbitMQ 4 allows, shows them as application properties, where the AMQP bindings of the CloudEvents SDKs look for this prefix and not for
    /// `ce-`; and earlier versions of polybus read no other, so that the older half of a fleet would take `ce-` for foreign.
    /// [`WireNames::CE`] is for readers that speak AMQP 0-9-1 alone, once every polybus beside them reads it.
    pub const AMQP: Self = Self { prefix: "cloudEvents:", reserved: &[], http: false };
    /// Those of the bindings of HTTP and NATS, and of what the CloudEvents SDKs write to RabbitMQ: `ce-id`.
    pub const CE: Self = Self { prefix: "ce-", ..Self::AMQP };
    /// The AMQP binding's, where a header may become one of HTTP, whose names take no colon: `cloudEvents_id`.
    pub const HTTP: Self = Self { prefix: http_safe_names::PREFIX, reserved: http_safe_names::OWN, http: true };

    /// Whether each header can be a native one and is read back as itself.
    pub(super) fn fit(&self, headers: &Headers) -> bool {
        packed_headers::fit_native(headers)
            && headers.iter().all(|(key, _)| !self.is_reserved(key) && (!self.http || http_safe_names::is_token(key)))
    }

    /// What says in which order the headers were, and with which letters, if the carrier does not.
    pub(super) fn order(&self, headers: &Headers) -> Option<String> {
        packed_headers::order(headers).or_else(|| self.http.then(|| http_safe_names::spelling(headers)).flatten())
    }

    fn is_reserved(&self, name: &str) -> bool {
        self.reserved.iter().any(|own| match own.strip_suffix('*') {
            Some(start) => packed_headers::starts(name, start),
            None => name.eq_ignore_ascii_case(own),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_names_are_exact_or_end_in_a_star() {
        let names = WireNames { reserved: &["CC", "nats-*"], ..WireNames::CE };
        let fits = |name: &str| names.fit(&Headers::from_iter([(name, "v")]));
        assert!(fits("ccc") && fits("nat") && fits("x-nats-a"));
        assert!(!fits("cc") && !fits("Nats-Rollup"));
        let http = |name: &str| WireNames::HTTP.fit(&Headers::from_iter([(name, "v")]));
        assert!(http("tenant") && !http("Host") && !http("X-MS-version") && !http("a b"));
    }
}
