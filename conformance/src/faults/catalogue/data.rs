//! Faults of what messages carry, with the scenarios that notice them.

use std::sync::Arc;

use crate::faults::{Fault, behaviours::publish::CorruptsEnvelope};

pub(super) fn all() -> Vec<Fault> {
    faults! {
        "drops-headers", "headers are lost",
            ["publish/single", "time/delay-in-full"],
            CorruptsEnvelope(|p| p.headers = polybus_core::Headers::new());
        "drops-last-of-many-headers", "with more than ten headers the last one is lost",
            ["data/headers-40", "data/headers-most"],
            CorruptsEnvelope(|p| if p.headers.len() > 10 {
                p.headers = p.headers.iter().take(p.headers.len() - 1).collect();
            });
        "sorts-headers", "the order of headers is lost",
            ["data/headers-40", "data/headers-most"],
            CorruptsEnvelope(|p| {
                let mut all: Vec<(String, String)> = p.headers.iter().map(|(k, v)| (k.into(), v.into())).collect();
                all.sort();
                p.headers = all.into_iter().collect();
            });
        "lowercases-header-keys", "the case of header keys is lost",
            ["data/every-field", "data/every-field-on-a-topic", "data/header-keys"],
            CorruptsEnvelope(|p| p.headers = p.headers.iter().map(|(k, v)| (k.to_ascii_lowercase(), v)).collect());
        "ascii-header-values", "header values lose what is not ASCII",
            ["data/unicode", "retry/three-in-a-row"],
            CorruptsEnvelope(|p| p.headers = p.headers.iter().map(|(k, v)| (k, v.replace(|c: char| !c.is_ascii(), "?"))).collect());
        "trims-header-values", "header values lose control characters and outer space",
            ["data/header-values", "data/unicode"],
            CorruptsEnvelope(|p| {
                let clean = |v: &str| v.chars().filter(|c| !c.is_control()).collect::<String>().trim().to_owned();
                p.headers = p.headers.iter().map(|(k, v)| (k, clean(v))).collect();
            });
        "changes-a-byte", "one bit of the data is changed",
            [
                "data/refused-attributes", "data/refused-headers", "lifecycle/close-spares-others",
                "time/delay-too-long", "topology/no-right-to-consume", "topology/unnamed-queue",
            ],
            CorruptsEnvelope(|p| {
                let mut data = p.data.to_vec();
                if let Some(last) = data.last_mut() { *last ^= 1; }
                p.data = data.into();
            });
        "truncates-large", "data over 1 KiB loses its end",
            ["publish/byte-limit", "publish/cancelled"],
            CorruptsEnvelope(|p| if p.data.len() > 1024 { p.data.truncate(p.data.len() - 1); });
        "text-only", "data goes through UTF-8",
            ["data/content-types", "data/payloads"],
            CorruptsEnvelope(|p| p.data = String::from_utf8_lossy(&p.data).into_owned().into());
        "strips-control", "data loses control characters",
            ["data/text-payloads", "publish/byte-limit"],
            CorruptsEnvelope(|p| p.data = p.data.iter().copied().filter(|b| *b >= 32 || *b == b'\n').collect::<Vec<_>>().into());
        "empty-becomes-null", "no data becomes `null`",
            ["data/content-types", "data/few-fields", "data/payloads", "dead_letters/unchanged"],
            CorruptsEnvelope(|p| if p.data.is_empty() { p.data = "null".into(); });
        "pads-one-byte", "one byte of data becomes two",
            ["data/refused-attributes", "time/expires-later"],
            CorruptsEnvelope(|p| if p.data.len() == 1 { p.data = [p.data[0], 0].to_vec().into(); });
        "new-ids", "every message gets a new id",
            [
                "lifecycle/outage-that-ends", "publish/batch", "publish/concurrent", "publish/partial-batch",
                "consume/two-of-one-bus",
            ],
            CorruptsEnvelope(|p| p.id = format!("{}x", p.id).into());
        "drops-subject", "the subject is lost",
            ["data/unicode", "time/delay-in-full"],
            CorruptsEnvelope(|p| p.subject = None);
        "drops-time", "the time is lost",
            ["data/same-id", "publish/single"],
            CorruptsEnvelope(|p| p.time = None);
        "rounds-time", "the time is rounded to milliseconds",
            ["publish/single", "time/delay-in-full"],
            CorruptsEnvelope(|p| p.time = p.time.and_then(|t| t.replace_nanosecond(t.nanosecond() / 1_000_000 * 1_000_000).ok()));
        "drops-schema-version", "the schema version is lost",
            ["data/every-field", "data/odd-values"],
            CorruptsEnvelope(|p| p.schema_version = None);
        "drops-data-schema", "the data schema is lost",
            ["data/long-attributes", "data/unicode"],
            CorruptsEnvelope(|p| p.data_schema = None);
        "json-always", "the content type becomes application/json",
            ["data/exact-limit", "data/few-fields"],
            CorruptsEnvelope(|p| p.content_type = Some("application/json".into()));
        "drops-correlation", "correlation and causation are lost",
            ["data/long-attributes", "data/unicode", "requests/conversation", "requests/late", "requests/of-others"],
            CorruptsEnvelope(|p| { p.correlation_id = None; p.causation_id = None; });
        "drops-key", "the key is lost",
            [
                "order/as-submitted", "order/large-batch", "order/odd-keys", "order/one-key-hog",
                "order/refused-within-a-key", "settle/retry-after", "time/delay-in-full",
            ],
            CorruptsEnvelope(|p| p.key = None);
        "drops-sequence", "the sequence is lost",
            ["data/odd-values", "time/delay-in-full"],
            CorruptsEnvelope(|p| p.sequence = None);
        "drops-expiry", "the expiry is lost",
            [
                "dead_letters/outlives-expiry", "order/after-expiry", "time/expired-on-a-topic",
                "time/expires-later", "requests/unanswered"],
            CorruptsEnvelope(|p| p.expires_at = None);
        "drops-trace", "the trace context is lost",
            ["data/every-field", "data/long-attributes", "worker/trace-context"],
            CorruptsEnvelope(|p| { p.traceparent = None; p.tracestate = None; });
        "drops-extensions", "extension attributes are lost",
            ["data/long-attributes", "data/unicode", "requests/answered", "requests/refused"],
            CorruptsEnvelope(|p| p.extensions = polybus_core::Headers::new());
        "own-source", "the source becomes the driver's own",
            ["data/source-filled-in", "publish/single"],
            CorruptsEnvelope(|p| p.source = "driver".into());
    }
}
