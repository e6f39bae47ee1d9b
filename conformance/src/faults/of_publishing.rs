//! Faults of publishing, of data, and of entities, with the scenarios that notice them.

use std::sync::Arc;

use super::{
    Fault,
    on_entities::{
        CloseFails, DeclareRaces, Declares, DeletesNothing, Miscounts, MissingIsEmpty, PurgeMiscounts, PurgesNothing,
    },
    on_publish::{
        Answers, ConfirmsEarly, Corrupt, FailsNeighbours, HangsOnBatches, LeaksAcrossTopics, LimitHalved,
        NeedsSubscriptions, Options, OversizeInBatch, ReplaysToLate, SaysSafe, Stores, SwapsKeys, TakesOversize,
        WrongSizeKind, lies, seems_unavailable,
    },
};

pub(super) fn publishing() -> Vec<Fault> {
    faults! {
        "loses-one-in-a-batch", "the last message of a batch is answered Ok and not stored",
            ["filters/by-the-broker", "receive/eight-wait", "worker/concurrency"],
            Stores(|mut b| { if b.len() > 1 { b.pop(); } b });
        "stores-nothing-single", "a batch of one is answered Ok and not stored",
            ["publish/counted-when-ok", "time/expires-later"],
            Stores(|b| if b.len() == 1 { Vec::new() } else { b });
        "stores-twice", "a batch of more than one is stored twice",
            ["publish_hard/huge-headers", "settle/close-finishes"],
            Stores(|b| if b.len() > 1 { b.iter().chain(&b).cloned().collect() } else { b });
        "swaps-a-key", "the first two messages of a key are stored the other way round",
            ["order/as-submitted", "order/large-batch"],
            SwapsKeys::default();
        "batch-answer-too-short", "a batch gets one answer too few",
            ["filters/by-the-broker", "publish/within-limits", "receive/eight-wait"],
            Answers(|mut r| { if r.len() > 1 { r.pop(); } r });
        "batch-answer-too-long", "a batch gets one answer too many",
            ["filters/by-the-broker", "order/no-key", "publish/within-limits", "receive/eight-wait"],
            Answers(|mut r| { if r.len() > 1 { r.push(Ok(polybus_core::Receipt::default())); } r });
        "oversize-fails-batch", "one message over the limit fails its whole batch",
            ["data/exact-limit", "publish/oversize"],
            OversizeInBatch::FailsAll;
        "oversize-answer-shifted", "the answer to a message over the limit is given to the next one",
            ["data/exact-limit", "publish/oversize"],
            OversizeInBatch::Shifted;
        "missing-is-ok", "a publish to a missing address is answered Ok",
            ["publish/missing-then-made", "receive/missing-queue", "topology/off"],
            Answers(lies);
        "missing-is-unavailable", "a missing address looks like an outage",
            ["publish/missing-then-made", "receive/missing-queue"],
            Answers(seems_unavailable);
        "missing-fails-neighbours", "after a missing address, the next publish to another one fails",
            ["publish/missing-queue", "publish_hard/missing-queue-interleaved", "receive/missing-queue"],
            FailsNeighbours::default();
        "confirms-early", "publishes are answered Ok before they are stored",
            ["publish/after-close", "publish/close-under-way"],
            ConfirmsEarly;
        "says-safe-when-stored", "an answer that was lost is called safe to retry",
            ["data/refused-attributes", "publish/counted-when-ok"],
            SaysSafe::default();
        "hangs-on-batches", "a batch of more than one is never answered",
            ["filters/by-the-broker", "receive/eight-wait"],
            HangsOnBatches;
        "oversize-accepted", "a message over the limit is taken",
            ["order_hard/partial-failure", "publish/oversize", "publish/oversize-on-a-topic"],
            TakesOversize;
        "limit-halved", "messages over half the limit are refused",
            ["data/exact-limit", "data/exact-limit-on-a-topic"],
            LimitHalved;
        "oversize-wrong-kind", "a message over the limit is called an invalid argument",
            ["data/exact-limit", "publish/oversize"],
            WrongSizeKind;
        "delay-ignored", "a publish delay is ignored",
            ["time/delay", "time/delay-and-expiry"],
            Options(|m| m.delay = None);
        "delay-halved", "a publish delay ends too early",
            ["time/delay", "time/delay-and-expiry", "time/delay-batch"],
            Options(|m| m.delay = m.delay.map(|d| d / 2));
        "delay-doubled", "a publish delay ends far too late",
            ["retry_hard/no-match", "retry_hard/shorter-expiry", "time/delay-long"],
            Options(|m| m.delay = m.delay.map(|d| d * 2));
        "leaks-across-topics", "a topic's messages come to all other topics",
            [
                "publish/missing-topic", "publish_hard/missing-topic-among-neighbours", "pubsub/no-leak",
                "topology/prefixes",
            ],
            LeaksAcrossTopics::default();
        "topic-needs-subscriptions", "a topic without subscriptions is not found",
            ["publish/nobody-subscribed"],
            NeedsSubscriptions::default();
        "replays-to-late", "a new subscription brings its topic's old messages again",
            ["publish/deleted-topic", "publish/missing-then-made", "pubsub/late-subscription"],
            ReplaysToLate::default();
    }
}

pub(super) fn data() -> Vec<Fault> {
    faults! {
        "drops-headers", "headers are lost",
            ["publish/single", "time/delay-in-full"],
            Corrupt(|p| p.headers = polybus_core::Headers::new());
        "drops-last-of-many-headers", "with more than ten headers the last one is lost",
            ["data/headers-40", "data/headers-most"],
            Corrupt(|p| if p.headers.len() > 10 {
                p.headers = p.headers.iter().take(p.headers.len() - 1).collect();
            });
        "sorts-headers", "the order of headers is lost",
            ["data/headers-40", "data/headers-most"],
            Corrupt(|p| {
                let mut all: Vec<(String, String)> = p.headers.iter().map(|(k, v)| (k.into(), v.into())).collect();
                all.sort();
                p.headers = all.into_iter().collect();
            });
        "lowercases-header-keys", "the case of header keys is lost",
            ["data/every-field", "data/every-field-on-a-topic", "data/header-keys"],
            Corrupt(|p| p.headers = p.headers.iter().map(|(k, v)| (k.to_ascii_lowercase(), v)).collect());
        "ascii-header-values", "header values lose what is not ASCII",
            ["data/unicode", "retry_hard/three-in-a-row"],
            Corrupt(|p| p.headers = p.headers.iter().map(|(k, v)| (k, v.replace(|c: char| !c.is_ascii(), "?"))).collect());
        "trims-header-values", "header values lose control characters and outer space",
            ["data/header-values", "data/unicode"],
            Corrupt(|p| {
                let clean = |v: &str| v.chars().filter(|c| !c.is_control()).collect::<String>().trim().to_owned();
                p.headers = p.headers.iter().map(|(k, v)| (k, clean(v))).collect();
            });
        "changes-a-byte", "one bit of the data is changed",
            [
                "data/refused-attributes", "data/refused-headers", "lifecycle/close-spares-others",
                "time/delay-too-long", "topology/no-right-to-consume", "topology/unnamed-queue",
            ],
            Corrupt(|p| {
                let mut data = p.data.to_vec();
                if let Some(last) = data.last_mut() { *last ^= 1; }
                p.data = data.into();
            });
        "truncates-large", "data over 1 KiB loses its end",
            ["publish/byte-limit", "publish/cancelled"],
            Corrupt(|p| if p.data.len() > 1024 { p.data.truncate(p.data.len() - 1); });
        "text-only", "data goes through UTF-8",
            ["data/content-types", "data/payloads"],
            Corrupt(|p| p.data = String::from_utf8_lossy(&p.data).into_owned().into());
        "strips-control", "data loses control characters",
            ["data/text-payloads", "publish/byte-limit"],
            Corrupt(|p| p.data = p.data.iter().copied().filter(|b| *b >= 32 || *b == b'\n').collect::<Vec<_>>().into());
        "empty-becomes-null", "no data becomes `null`",
            ["data/content-types", "data/few-fields", "data/payloads", "dead_letters/unchanged"],
            Corrupt(|p| if p.data.is_empty() { p.data = "null".into(); });
        "pads-one-byte", "one byte of data becomes two",
            ["data/refused-attributes", "time/expires-later"],
            Corrupt(|p| if p.data.len() == 1 { p.data = [p.data[0], 0].to_vec().into(); });
        "new-ids", "every message gets a new id",
            [
                "lifecycle/outage-that-ends", "publish/batch", "publish/concurrent", "publish/partial-batch",
                "receive/two-of-one-bus",
            ],
            Corrupt(|p| p.id = format!("{}x", p.id).into());
        "drops-subject", "the subject is lost",
            ["data/unicode", "time/delay-in-full"],
            Corrupt(|p| p.subject = None);
        "drops-time", "the time is lost",
            ["data/same-id", "publish/single"],
            Corrupt(|p| p.time = None);
        "rounds-time", "the time is rounded to milliseconds",
            ["publish/single", "time/delay-in-full"],
            Corrupt(|p| p.time = p.time.and_then(|t| t.replace_nanosecond(t.nanosecond() / 1_000_000 * 1_000_000).ok()));
        "drops-schema-version", "the schema version is lost",
            ["data/every-field", "data/odd-values"],
            Corrupt(|p| p.schema_version = None);
        "drops-data-schema", "the data schema is lost",
            ["data/long-attributes", "data/unicode"],
            Corrupt(|p| p.data_schema = None);
        "json-always", "the content type becomes application/json",
            ["data/exact-limit", "data/few-fields"],
            Corrupt(|p| p.content_type = Some("application/json".into()));
        "drops-correlation", "correlation and causation are lost",
            ["data/long-attributes", "data/unicode"],
            Corrupt(|p| { p.correlation_id = None; p.causation_id = None; });
        "drops-key", "the key is lost",
            [
                "order/as-submitted", "order/large-batch", "order/odd-keys", "order_hard/one-key-hog",
                "order_hard/refused-within-a-key", "settle/retry-after", "time/delay-in-full",
            ],
            Corrupt(|p| p.key = None);
        "drops-sequence", "the sequence is lost",
            ["data/odd-values", "time/delay-in-full"],
            Corrupt(|p| p.sequence = None);
        "drops-expiry", "the expiry is lost",
            [
                "dead_letters_hard/outlives-expiry", "order/after-expiry", "time/expired-on-a-topic",
                "time/expires-later",
            ],
            Corrupt(|p| p.expires_at = None);
        "drops-trace", "the trace context is lost",
            ["data/every-field", "data/long-attributes", "worker/trace-context"],
            Corrupt(|p| { p.traceparent = None; p.tracestate = None; });
        "drops-extensions", "extension attributes are lost",
            ["data/long-attributes", "data/unicode"],
            Corrupt(|p| p.extensions = polybus_core::Headers::new());
        "own-source", "the source becomes the driver's own",
            ["data/source-filled-in", "publish/single"],
            Corrupt(|p| p.source = "driver".into());
    }
}

pub(super) fn entities() -> Vec<Fault> {
    faults! {
        "stats-ready-lies", "one ready message too many is told",
            ["filters/by-the-broker", "publish/counted-when-ok", "time/expired"],
            Miscounts(|s| s.ready = s.ready.map(|n| n + 1));
        "stats-in-flight-lies", "no message is ever told to be in flight",
            ["lifecycle/stats"],
            Miscounts(|s| s.in_flight = s.in_flight.map(|_| 0));
        "stats-delayed-lies", "delayed messages are told to be ready",
            ["lifecycle/stats"],
            Miscounts(|s| {
                s.ready = s.ready.map(|n| n + s.delayed.unwrap_or(0));
                s.delayed = s.delayed.map(|_| 0);
            });
        "stats-dead-lies", "no dead letter is ever told of",
            ["dead_letters/redrive-fresh-attempts", "dead_letters_hard/while-consuming"],
            Miscounts(|s| s.dead_lettered = s.dead_lettered.map(|_| 0));
        "missing-is-empty", "stats and purge count what is not there as empty",
            ["lifecycle/purge-missing", "lifecycle/stats-missing"],
            MissingIsEmpty;
        "purge-does-nothing", "purge leaves everything",
            ["dead_letters/purge", "lifecycle/purge"],
            PurgesNothing;
        "purge-miscounts", "purge tells one too many",
            ["dead_letters/purge"],
            PurgeMiscounts;
        "declare-changes", "declare makes anew what is different",
            ["topology/removed-type"],
            Declares::Changing;
        "declare-silent", "declare tells of no difference",
            ["topology/changed-ordered"],
            Declares::Silent;
        "declare-twice-fails", "declare refuses what is there already",
            ["topology/changed-max-deliveries", "topology/declare-twice", "topology/physical-name"],
            Declares::Twice;
        "declare-races", "two declares at once: the second fails",
            ["topology/eight-processes"],
            DeclareRaces::default();
        "declare-forgets-topics", "declare makes no topics",
            ["filters/none", "pubsub/nobody-listens", "topology/verify-clean"],
            Declares::NoTopics;
        "declare-overclaims", "declare says it made what was there",
            ["topology/declare", "topology/longest-names"],
            Declares::AllCreated;
        "verify-silent", "verify does not look",
            ["topology/verify-drift", "topology/verify-missing"],
            Declares::VerifySilent;
        "verify-creates", "verify makes what is missing",
            [
                "topology/delete", "topology/deleted-while-consuming", "topology/verify-drift",
                "topology/verify-missing",
            ],
            Declares::VerifyCreating;
        "delete-does-nothing", "delete leaves everything",
            [
                "publish/deleted-then-missing", "publish_hard/deleted-under-way", "retry_hard/deleted-target",
                "topology/deleted-and-back", "topology/deleted-dead-letters", "topology/deleted-subscription",
                "worker/deleted-source",
            ],
            DeletesNothing;
        "close-twice-fails", "closing the second connection fails",
            [
                "lifecycle/close-twice", "lifecycle/open-and-close-at-once", "lifecycle/subscribe-while-closing",
                "publish/stored-when-ok",
            ],
            CloseFails::default();
    }
}
