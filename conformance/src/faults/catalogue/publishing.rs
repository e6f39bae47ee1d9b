//! Faults of publishing, with the scenarios that notice them.

use std::sync::Arc;

use crate::faults::{
    Fault,
    behaviours::publish::{
        ChangesAnswers, ChangesOptions, ConfirmsEarly, FailsNeighbours, HangsOnBatches, LeaksAcrossTopics, LimitHalved,
        NeedsSubscriptions, OversizeInBatch, ReplaysToLate, SaysSafe, StoresAnother, SwapsKeys, TakesOversize,
        WrongSizeKind, not_found_is_ok, seems_unavailable,
    },
};

pub(super) fn all() -> Vec<Fault> {
    faults! {
        "loses-one-in-a-batch", "the last message of a batch is answered Ok and not stored",
            ["filters/by-the-broker", "consume/eight-wait", "worker/concurrency"],
            StoresAnother(|mut b| { if b.len() > 1 { b.pop(); } b });
        "stores-nothing-single", "a batch of one is answered Ok and not stored",
            ["publish/counted-when-ok", "time/expires-later"],
            StoresAnother(|b| if b.len() == 1 { Vec::new() } else { b });
        "stores-twice", "a batch of more than one is stored twice",
            ["publish/huge-headers", "settle/close-finishes"],
            StoresAnother(|b| if b.len() > 1 { b.iter().chain(&b).cloned().collect() } else { b });
        "swaps-a-key", "the first two messages of a key are stored the other way round",
            ["order/as-submitted", "order/large-batch"],
            SwapsKeys::default();
        "batch-answer-too-short", "a batch gets one answer too few",
            ["filters/by-the-broker", "publish/within-limits", "consume/eight-wait"],
            ChangesAnswers(|mut r| { if r.len() > 1 { r.pop(); } r });
        "batch-answer-too-long", "a batch gets one answer too many",
            ["filters/by-the-broker", "order/no-key", "publish/within-limits", "consume/eight-wait"],
            ChangesAnswers(|mut r| { if r.len() > 1 { r.push(Ok(polybus_core::Receipt::default())); } r });
        "oversize-fails-batch", "one message over the limit fails its whole batch",
            ["data/exact-limit", "publish/oversize"],
            OversizeInBatch::FailsAll;
        "oversize-answer-shifted", "the answer to a message over the limit is given to the next one",
            ["data/exact-limit", "publish/oversize"],
            OversizeInBatch::Shifted;
        "missing-is-ok", "a publish to a missing address is answered Ok",
            ["publish/missing-then-made", "consume/missing-queue", "topology/off"],
            ChangesAnswers(not_found_is_ok);
        "missing-is-unavailable", "a missing address looks like an outage",
            ["publish/missing-then-made", "consume/missing-queue"],
            ChangesAnswers(seems_unavailable);
        "missing-fails-neighbours", "after a missing address, the next publish to another one fails",
            ["publish/missing-queue", "publish/missing-queue-interleaved", "consume/missing-queue"],
            FailsNeighbours::default();
        "confirms-early", "publishes are answered Ok before they are stored",
            ["publish/after-close", "publish/close-under-way"],
            ConfirmsEarly;
        "says-safe-when-stored", "an answer that was lost is called safe to retry",
            ["data/refused-attributes", "publish/counted-when-ok"],
            SaysSafe::default();
        "hangs-on-batches", "a batch of more than one is never answered",
            ["filters/by-the-broker", "consume/eight-wait"],
            HangsOnBatches;
        "oversize-accepted", "a message over the limit is taken",
            ["order/partial-failure", "publish/oversize", "publish/oversize-on-a-topic"],
            TakesOversize;
        "limit-halved", "messages over half the limit are refused",
            ["data/exact-limit", "data/exact-limit-on-a-topic"],
            LimitHalved;
        "oversize-wrong-kind", "a message over the limit is called an invalid argument",
            ["data/exact-limit", "publish/oversize"],
            WrongSizeKind;
        "delay-ignored", "a publish delay is ignored",
            ["time/delay", "time/delay-and-expiry"],
            ChangesOptions(|m| m.delay = None);
        "delay-halved", "a publish delay ends too early",
            ["time/delay", "time/delay-and-expiry", "time/delay-batch"],
            ChangesOptions(|m| m.delay = m.delay.map(|d| d / 2));
        "delay-doubled", "a publish delay ends far too late",
            ["retry/no-match", "retry/shorter-expiry", "time/delay-long"],
            ChangesOptions(|m| m.delay = m.delay.map(|d| d * 2));
        "leaks-across-topics", "a topic's messages come to all other topics",
            [
                "publish/missing-topic", "publish/missing-topic-among-neighbours", "pubsub/no-leak",
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
