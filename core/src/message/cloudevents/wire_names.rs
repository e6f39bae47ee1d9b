//! How an adapter names the native headers of binary mode.

use super::{http_safe_names, native_headers, packed_headers};
use crate::Headers;

/// How binary mode names its native headers, for adapters of brokers that have rules of their own.
///
/// Whatever an adapter writes, [`decode`](super::decode) reads all prefixes that are in use, ignoring case. So the
/// choice may change between two versions of a program that share a queue.
///
/// ```
/// use polybus_core::message::cloudevents::WireNames;
///
/// const NATS: WireNames = WireNames { prefix: "ce-", reserved: &["nats-*"], ..WireNames::AMQP };
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireNames {
    /// Prefix of an attribute's name: `cloudEvents:`, `cloudEvents_`, `ce-` or `ce_`. No other is read.
    pub prefix: &'static str,
    /// Names that the broker or its protocol uses itself, such as instructions to it. Case is ignored; `nats-*` stands
    /// for all names that begin so.
    ///
    /// Application headers of these names are never native headers: where a message has one, all its headers go
    /// together into one `polybus-headers`, and are read back from there.
    pub reserved: &'static [&'static str],
    /// Whether native headers may come back as headers of HTTP: in any order, with their names in lower case.
    ///
    /// Their spelling and order are then written beside them, and names that HTTP cannot write count as reserved. The
    /// reader sorts the headers by name before [`decode`](super::decode).
    pub http: bool,
}

impl WireNames {
    /// The names of the AMQP binding: `cloudEvents:id`.
    /// <https://github.com/cloudevents/spec/blob/main/cloudevents/bindings/amqp-protocol-binding.md>
    ///
    /// They are RabbitMQ's default too. A queue may also be read over AMQP 1.0, as RabbitMQ 4 allows. Headers are
    /// application properties there, and the AMQP bindings of the CloudEvents SDKs look for this prefix and not for
    /// `ce-`. Earlier versions of polybus read no other, so they would take a message with `ce-` for foreign.
    /// [`WireNames::CE`] is for readers that speak AMQP 0-9-1 alone, once every polybus beside them reads it.
    pub const AMQP: Self = Self { prefix: "cloudEvents:", reserved: &[], http: false };
    /// The names of the bindings of HTTP and NATS, which the CloudEvents SDKs also write to RabbitMQ: `ce-id`.
    pub const CE: Self = Self { prefix: "ce-", ..Self::AMQP };
    /// The names of the AMQP binding without the colon, which a name of HTTP cannot hold: `cloudEvents_id`.
    pub const HTTP: Self =
        Self { prefix: http_safe_names::PREFIX, reserved: http_safe_names::HTTP_HEADERS, http: true };

    /// Whether each header can be a native header of its own and is read back as itself.
    pub(super) fn fit(&self, headers: &Headers) -> bool {
        native_headers::fit_native(headers)
            && headers.iter().all(|(key, _)| !self.is_reserved(key) && (!self.http || http_safe_names::is_token(key)))
    }

    /// The names in their order and spelling, where the carrier keeps neither; `None` where it does.
    pub(super) fn order(&self, headers: &Headers) -> Option<String> {
        packed_headers::order(headers).or_else(|| self.http.then(|| http_safe_names::spelling(headers)).flatten())
    }

    fn is_reserved(&self, name: &str) -> bool {
        self.reserved.iter().any(|own| match own.strip_suffix('*') {
            Some(start) => native_headers::starts(name, start),
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
