//! All faults, with the scenarios that notice them.

use std::{sync::Arc, time::Duration};

use polybus_core::{Error, Kind, Settlement};

use super::{
    Fault,
    on_entities::{CloseFails, DeclareRaces, Declares, DeletesNothing, Miscounts, PurgeMiscounts, PurgesNothing},
    on_publish::{
        Answers, ConfirmsEarly, Corrupt, FailsNeighbours, HangsOnBatches, LeaksAcrossTopics, LimitHalved,
        NeedsSubscriptions, Options, OversizeInBatch, ReplaysToLate, SaysSafe, Stores, TakesOversize, WrongSizeKind,
        lies, seems_unavailable,
    },
    on_receive::{
        FilterDrops, HandsOutBackwards, HandsOutTwice, IgnoresPrefetch, LosesWhenDropped, ManyLanes, Misleads, Misread,
        Missing, OneLane, OpensWith, PollsToTheEnd, SiblingsCompete, Timeless, edit, wanted_type,
    },
    on_settle::{
        Acks, AcksAndFails, AtClose, ExtendFails, ExtendsNothing, HeadOfLine, LateAckTakes, LateIsOk, Missettle,
        Recount, Republishes, SettleAnswers, Twice, Zombie,
    },
};

macro_rules! faults {
    ($($name:literal, $doc:literal, [$($by:literal),* $(,)?], $make:expr;)*) => {
        vec![$(Fault { name: $name, doc: $doc, caught_by: &[$($by),*], make: || Arc::new($make) }),*]
    };
}

fn is_retry(how: &Settlement) -> bool {
    matches!(how, Settlement::RetryAfter(_))
}

fn is_burial(how: &Settlement) -> bool {
    matches!(how, Settlement::DeadLetter { .. })
}

/// All of them.
pub fn all() -> Vec<Fault> {
    [publishing(), data(), receiving(), settling(), attempts(), dead_letters(), entities()].concat()
}

fn publishing() -> Vec<Fault> {
    faults! {
        "loses-one-in-a-batch", "the last message of a batch is answered Ok and not stored",
            ["filters/by-the-broker", "receive/eight-wait"],
            Stores(|mut b| { if b.len() > 1 { b.pop(); } b });
        "stores-nothing-single", "a batch of one is answered Ok and not stored",
            ["publish/counted-when-ok", "time/expires-later"],
            Stores(|b| if b.len() == 1 { Vec::new() } else { b });
        "stores-twice", "a batch of more than one is stored twice",
            ["publish_hard/huge-headers", "settle/close-finishes"],
            Stores(|b| if b.len() > 1 { b.iter().chain(&b).cloned().collect() } else { b });
        "reorders-a-batch", "a batch is stored backwards",
            [],
            Stores(|mut b| { b.reverse(); b });
        "batch-answer-too-short", "a batch gets one answer too few",
            ["filters/by-the-broker", "publish/within-limits", "receive/eight-wait"],
            Answers(|mut r| { if r.len() > 1 { r.pop(); } r });
        "batch-answer-too-long", "a batch gets one answer too many",
            ["filters/by-the-broker", "publish/within-limits", "receive/eight-wait"],
            Answers(|mut r| { if r.len() > 1 { r.push(Ok(polybus_core::Receipt::default())); } r });
        "oversize-fails-batch", "one message over the limit fails its whole batch",
            ["data/exact-limit", "publish/oversize"],
            OversizeInBatch::FailsAll;
        "oversize-answer-shifted", "the answer to a message over the limit is given to the next one",
            ["data/exact-limit", "publish/oversize"],
            OversizeInBatch::Shifted;
        "missing-is-ok", "a publish to a missing address is answered Ok",
            ["publish/missing-then-made", "receive/missing-queue"],
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
            ["publish/oversize", "publish/oversize-on-a-topic"],
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
            ["publish/missing-topic", "publish_hard/missing-topic-among-neighbours", "pubsub/no-leak"],
            LeaksAcrossTopics::default();
        "topic-needs-subscriptions", "a topic without subscriptions is not found",
            ["publish/nobody-subscribed"],
            NeedsSubscriptions::default();
        "replays-to-late", "a new subscription brings its topic's old messages again",
            ["publish/deleted-topic", "publish/missing-then-made", "pubsub/late-subscription"],
            ReplaysToLate::default();
    }
}

fn data() -> Vec<Fault> {
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
            ["data/refused-attributes", "data/refused-headers", "time/delay-too-long"],
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
            ["publish/batch", "publish/concurrent", "publish/partial-batch", "receive/two-of-one-bus"],
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
            ["settle/retry-after", "time/delay-in-full"],
            Corrupt(|p| p.key = None);
        "drops-sequence", "the sequence is lost",
            ["data/odd-values", "time/delay-in-full"],
            Corrupt(|p| p.sequence = None);
        "drops-expiry", "the expiry is lost",
            ["dead_letters_hard/outlives-expiry", "time/expired-on-a-topic", "time/expires-later"],
            Corrupt(|p| p.expires_at = None);
        "drops-trace", "the trace context is lost",
            ["data/every-field", "data/long-attributes"],
            Corrupt(|p| { p.traceparent = None; p.tracestate = None; });
        "drops-extensions", "extension attributes are lost",
            ["data/long-attributes", "data/unicode"],
            Corrupt(|p| p.extensions = polybus_core::Headers::new());
        "own-source", "the source becomes the driver's own",
            ["data/source-filled-in", "publish/single"],
            Corrupt(|p| p.source = "driver".into());
    }
}

fn receiving() -> Vec<Fault> {
    faults! {
        "ignores-prefetch", "three times the prefetch is handed out",
            ["dead_letters/shared", "receive/eight-wait", "receive/prefetch-bound"],
            IgnoresPrefetch;
        "hands-out-twice", "every message is handed out twice",
            ["attempts/close", "publish/concurrent"],
            HandsOutTwice;
        "hands-out-backwards", "what is handed out together comes backwards",
            ["time/delay-each-its-own", "time/delay-on-a-topic", "time/expired-in-the-buffer"],
            HandsOutBackwards;
        "loses-when-dropped", "a dropped receive loses what it had got",
            ["pubsub/competing-within-one", "receive/cancelled", "receive/competing", "settle/cancelled"],
            LosesWhenDropped;
        "polls-to-the-end", "a poll returns at its end, whatever came before",
            ["receive/poll-returns-early", "time/never-seen"],
            PollsToTheEnd;
        "siblings-compete", "a message goes to one subscription alone",
            ["attempts/siblings", "pubsub/each-gets-all", "pubsub/many-publishers"],
            SiblingsCompete::default();
        "filter-one-word", "`order.*` does not let `order.a.b` through",
            ["filters/deep", "filters/overlapping", "filters/under"],
            FilterDrops(|f, t| f.to_string().ends_with(".*") && t.matches('.').count() > 1);
        "filter-prefix-drops", "a prefix filter lets nothing through",
            ["filters/deep", "filters/joints"],
            FilterDrops(|f, _| f.to_string().ends_with(".*"));
        "filter-exact-drops", "an exact filter lets nothing through",
            [
                "filters/batch", "filters/each-its-own", "filters/exact", "filters/joints", "filters/longest",
                "retry_hard/siblings",
            ],
            FilterDrops(|f, _| !f.to_string().ends_with(".*"));
        "filter-ignored", "the filter is ignored, and every type looks wanted",
            ["filters/deep", "filters/exact"],
            Misread(wanted_type);
        "two-of-a-key", "several of a key are handed out at once",
            ["attempts/limit-ordered"],
            ManyLanes::default();
        "one-lane", "a blocked key stalls all others",
            [],
            OneLane::default();
        "missing-source-silent", "a consumer of what is not there waits for ever",
            ["dead_letters/missing", "receive/missing-dead-letters"],
            Misleads(Missing::Silent);
        "missing-source-wrong-kind", "a consumer of what is not there is told of wrong permissions",
            ["dead_letters/missing", "receive/missing-dead-letters"],
            Misleads(Missing::Answers(Kind::PermissionDenied));
        "missing-source-passing", "a consumer of what is not there is told to try again",
            ["dead_letters/missing", "receive/missing-dead-letters", "receive/missing-subscription"],
            Misleads(Missing::Answers(Kind::Unavailable));
        "missing-source-recreated", "a consumer makes what is not there",
            ["dead_letters/missing", "receive/missing-dead-letters"],
            Misleads(Missing::Recreated);
        "lock-never-ends", "a lock never runs out",
            ["attempts/limit-lock", "attempts/lock", "consume_hard/lock-expires-in-the-buffer"],
            OpensWith(|from| from.settings.lock = Duration::from_secs(86_400));
        "lock-too-short", "a lock runs out at a tenth of its time",
            ["settle/lock-told"],
            OpensWith(|from| from.settings.lock /= 10);
        "lock-deadline-too-late", "the client is told that locks end an hour later than they do",
            ["consume_hard/renewed-in-the-buffer", "dead_letters/extended", "settle/renewal"],
            Misread(|_, r| r.locked_until = r.locked_until.map(|t| t + Duration::from_secs(3600)));
        "lock-deadline-missing", "the client is not told when locks end",
            ["settle/extend", "settle/late"],
            Misread(|_, r| r.locked_until = None);
        "lock-deadline-without-margin", "the client is told of the broker's deadline, without a margin",
            ["settle/lock-told"],
            Misread(|at, r| r.locked_until = r.locked_until.map(|t| {
                t + (at.from.settings.lock / 4).min(Duration::from_secs(1))
            }));
    }
}

fn settling() -> Vec<Fault> {
    faults! {
        "redelivers-acked", "an ack is carried out as a release",
            ["data/foreign", "data/refused-attributes"],
            Missettle(|_, s| (s.how == Settlement::Ack).then_some(Settlement::Release));
        "acks-another", "an ack removes another delivery of the consumer",
            ["data/source-filled-in", "data/structured-mode"],
            Acks::Another;
        "acks-all-before", "an ack removes all older deliveries, too",
            ["data/source-filled-in", "data/structured-mode"],
            Acks::AllBefore;
        "settles-twice", "settlements are sent twice",
            ["data/binary-mode", "data/structured-mode"],
            Twice;
        "release-loses", "a release removes the message",
            ["receive/prefetch-frees", "settle/ack-is-final", "settle/gaps"],
            Missettle(|_, s| (s.how == Settlement::Release).then_some(Settlement::Ack));
        "release-is-late", "a release takes three seconds",
            ["attempts/limit-at-once", "consume_hard/ten-rounds-unhandled", "settle/drop", "settle/release"],
            Missettle(|at, s| (s.how == Settlement::Release && !at.is_dead())
                .then_some(Settlement::RetryAfter(Duration::from_secs(3))));
        "retry-too-early", "a retry comes at half its time",
            [
                "retry_hard/both-siblings", "retry_hard/expires-into-dead-letters", "retry_hard/expires-waiting",
                "retry_hard/idle-delay", "retry_hard/ladder", "retry_hard/survives-close",
            ],
            Missettle(|_, s| match s.how { Settlement::RetryAfter(d) => Some(Settlement::RetryAfter(d / 2)), _ => None });
        "retry-too-late", "a retry comes at one and a half of its time",
            ["retry_hard/idle-delay", "retry_hard/ladder"],
            Missettle(|_, s| match s.how {
                Settlement::RetryAfter(d) => Some(Settlement::RetryAfter(d * 3 / 2)),
                _ => None,
            });
        "retry-loses", "a retry removes the message",
            ["retry_hard/idle-delay", "retry_hard/ladder"],
            Missettle(|_, s| is_retry(&s.how).then_some(Settlement::Ack));
        "retry-head-of-line", "a short retry waits behind a long one",
            ["retry_hard/jittered", "settle/retry-not-held-up"],
            HeadOfLine::default();
        "retry-to-siblings", "a retry is published to the topic again",
            ["retry_hard/survives-close", "time/expired-while-retrying"],
            Republishes { when: is_retry, edit: |_| {}, then: Settlement::Ack };
        "retry-loses-headers", "a retried message loses its headers",
            ["retry_hard/survives-close", "time/expired-while-retrying"],
            Republishes { when: is_retry, edit: |p| p.headers = polybus_core::Headers::new(), then: Settlement::Ack };
        "retry-jumps-back", "a retried message of a key comes after its successors",
            ["attempts/lock", "attempts/siblings"],
            Republishes { when: |how| matches!(how, Settlement::RetryAfter(_) | Settlement::Release), edit: |_| {},
                then: Settlement::Ack };
        "settle-answer-too-short", "a batch of settlements gets one answer too few",
            ["attempts/limit-prefetch", "settle/interleaved"],
            SettleAnswers(|mut r| { if r.len() > 1 { r.pop(); } r });
        "settle-says-lost", "settlements that worked are answered LockLost, where there are several",
            ["settle/interleaved", "time/expired-in-the-buffer"],
            SettleAnswers(|r| if r.len() > 1 { Error::new(Kind::LockLost, "gone").for_each_of(r.len()) } else { r });
        "late-ack-takes-another", "a late settlement takes the message from its new holder",
            ["dead_letters/extended", "settle/late-drop"],
            LateAckTakes::default();
        "late-settle-is-ok", "a settlement after its lock was lost is answered Ok",
            ["consume_hard/cancelled-by-the-server"],
            LateIsOk;
        "extend-does-nothing", "extend answers Ok and does nothing",
            ["dead_letters/extended", "settle/extend"],
            ExtendsNothing;
        "extend-is-lock-lost", "extend answers LockLost for what is held",
            ["settle/extend", "settle/late-drop"],
            ExtendFails(Kind::LockLost);
        "close-loses", "a consumer's end removes what it held",
            ["attempts/close", "receive/after-bus-close"],
            AtClose::Loses;
        "close-reorders", "a consumer's end puts what it held behind the rest",
            ["attempts/close", "attempts/limit-close", "consume_hard/ten-rounds"],
            AtClose::Reorders;
        "close-keeps", "a consumer's end does not give back what it held",
            ["dead_letters/settled", "settle/after-close"],
            AtClose::Keeps;
        "closed-consumer-takes", "a consumer that was closed goes on taking",
            ["attempts/limit-one", "retry_hard/idle-delay"],
            Zombie;
    }
}

fn attempts() -> Vec<Fault> {
    faults! {
        "attempt-always-one", "every delivery is called the first",
            ["attempts/close", "attempts/siblings"],
            Misread(|_, r| r.attempt = 1);
        "attempt-too-high", "attempts are counted from two",
            ["data/binary-mode", "data/foreign"],
            Misread(|_, r| r.attempt += 1);
        "attempt-never-grows-on-release", "a release does not count",
            ["attempts/neighbours", "consume_hard/dropped-deliveries"],
            Recount::new(|how| *how == Settlement::Release, |now, then| now.min(then));
        "attempt-reset-by-retry", "a retry starts the count again",
            ["retry_hard/survives-close", "time/expired-while-retrying"],
            Recount::new(is_retry, |now, then| now.saturating_sub(then).max(1));
        "attempt-doubled-by-retry", "a retry counts twice",
            ["attempts/paths", "pubsub/settled-apart", "retry_hard/many-at-once", "time/expired-while-retrying"],
            Recount::new(is_retry, |now, _| now + 1);
        "attempt-counts-given-back", "what was given back unhandled counts ten times",
            [
                "dead_letters/redrive-interrupted", "dead_letters/redrive-limited", "receive/after-close",
                "receive/dropped-subscription", "receive/stop", "settle/after-stop",
            ],
            Recount::new(|how| *how == Settlement::GiveBack, |now, _| now + 10);
        "redrive-keeps-attempt", "a redriven message goes on with its old count",
            ["dead_letters/redrive-fresh-attempts", "dead_letters/told"],
            Recount::new(is_burial, |now, then| now + then);
    }
}

fn dead_letters() -> Vec<Fault> {
    faults! {
        "dead-letter-lost", "a dead letter is removed",
            ["dead_letters/extended", "dead_letters/refused"],
            Missettle(|_, s| is_burial(&s.how).then_some(Settlement::Ack));
        "dead-letter-released", "a dead letter is released",
            ["dead_letters/refused", "receive/prefetch-frees"],
            Missettle(|_, s| is_burial(&s.how).then_some(Settlement::Release));
        "dead-letter-acks-before-copy", "a dead letter whose copy fails is removed",
            ["dead_letters/refused", "receive/prefetch-frees"],
            AcksAndFails(is_burial);
        "dead-letter-without-reason", "a dead letter loses its reason",
            ["attempts/limit-one", "data/foreign-settled"],
            Misread(|_, r| if let Some(d) = &mut r.dead_letter { d.reason = None });
        "dead-letter-without-detail", "a dead letter loses its detail",
            ["dead_letters/told", "dead_letters_hard/again-and-again"],
            Misread(|_, r| if let Some(d) = &mut r.dead_letter { d.detail = None });
        "dead-letter-without-attempt", "a dead letter loses its attempt",
            ["attempts/limit-one", "dead_letters_hard/25-releases"],
            Misread(|_, r| if let Some(d) = &mut r.dead_letter { d.attempt = None });
        "dead-letter-without-origin", "a dead letter loses its origin",
            [
                "attempts/limit-drop", "attempts/limit-mixed", "attempts/limit-one", "attempts/limit-release",
                "attempts/limit-retry", "attempts/poison", "dead_letters/siblings",
            ],
            Misread(|_, r| if let Some(d) = &mut r.dead_letter { d.origin = None });
        "dead-letter-without-time", "a dead letter loses its time",
            ["dead_letters/told"],
            Misread(|_, r| if let Some(d) = &mut r.dead_letter { d.time = None });
        "dead-letter-loses-metadata", "a dead letter loses its headers and subject",
            ["dead_letters/redrive-filtered", "time/dead-letter-expired"],
            Misread(|at, r| if at.is_dead() {
                edit(r, |p| { p.headers = polybus_core::Headers::new(); p.subject = None; });
            });
        "dead-letter-loses-data", "a dead letter loses its data",
            ["dead_letters/by-the-hundred", "settle/cancelled"],
            Misread(|at, r| if at.is_dead() { edit(r, |p| p.data = bytes::Bytes::new()); });
        "dead-letter-source-attempts", "a dead letter is called lost after twenty attempts",
            ["dead_letters_hard/25-releases"],
            Missettle(|at, s| (at.is_dead() && s.attempt > 20).then_some(Settlement::Ack));
        "malformed-for-ever", "an undecodable message is released, not dead-lettered",
            ["data/undecodable", "data/undecodable-on-a-topic", "dead_letters/malformed"],
            Missettle(|_, s| match &s.how {
                Settlement::DeadLetter { reason, .. } if &**reason == "malformed" => Some(Settlement::Release),
                _ => None,
            });
        "malformed-looks-fine", "an undecodable message is handed out",
            ["data/undecodable-on-a-topic", "dead_letters/malformed"],
            Misread(|_, r| r.malformed = None);
        "foreign-is-malformed", "a foreign message is called undecodable",
            ["data/foreign", "data/foreign-headers", "data/foreign-settled", "dead_letters_hard/foreign-counters"],
            Misread(|_, r| if &*r.envelope.event_type == polybus_core::FOREIGN { r.malformed = Some("foreign".into()) });
        "foreign-loses-body", "a foreign message loses its body",
            ["data/foreign", "data/foreign-headers"],
            Misread(|_, r| if &*r.envelope.event_type == polybus_core::FOREIGN {
                edit(r, |p| p.data = bytes::Bytes::new());
            });
        "redrive-lost", "a redriven message is removed",
            ["dead_letters/redrive-fresh-attempts", "dead_letters_hard/while-consuming"],
            Missettle(|_, s| (s.how == Settlement::Redrive).then_some(Settlement::Ack));
        "redrive-stays", "a redriven message stays in the dead letters",
            ["dead_letters/redrive-fresh-attempts", "dead_letters_hard/while-consuming"],
            Missettle(|_, s| (s.how == Settlement::Redrive).then_some(Settlement::Release));
        "redrive-to-siblings", "a redrive is published to the topic again",
            ["dead_letters_hard/redrive-siblings"],
            Republishes { when: |how| *how == Settlement::Redrive, edit: |_| {}, then: Settlement::Ack };
        "redrive-loses-headers", "a redriven message loses its headers",
            ["dead_letters/redrive-all", "dead_letters_hard/redrive-siblings"],
            Republishes { when: |how| *how == Settlement::Redrive, edit: |p| p.headers = polybus_core::Headers::new(),
                then: Settlement::Ack };
        "redrive-new-id", "a redriven message gets a new id",
            ["dead_letters_hard/again-and-again", "dead_letters_hard/redrive-siblings"],
            Republishes { when: |how| *how == Settlement::Redrive, edit: |p| p.id = format!("{}r", p.id).into(),
                then: Settlement::Ack };
        "redrive-copies", "a redrive leaves the dead letter where it is",
            ["dead_letters/redrive-fresh-attempts", "dead_letters/redrive-interrupted"],
            Republishes { when: |how| *how == Settlement::Redrive, edit: |_| {}, then: Settlement::Release };
        "redrive-endless", "dead letters do not tell when and how many they are",
            ["dead_letters/told", "dead_letters_hard/poison-returns"],
            Timeless;
    }
}

fn entities() -> Vec<Fault> {
    faults! {
        "stats-ready-lies", "one ready message too many is told",
            ["filters/by-the-broker", "publish/counted-when-ok", "time/expired"],
            Miscounts(|s| s.ready = s.ready.map(|n| n + 1));
        "stats-in-flight-lies", "no message is ever told to be in flight",
            [],
            Miscounts(|s| s.in_flight = s.in_flight.map(|_| 0));
        "stats-delayed-lies", "delayed messages are told to be ready",
            [],
            Miscounts(|s| {
                s.ready = s.ready.map(|n| n + s.delayed.unwrap_or(0));
                s.delayed = s.delayed.map(|_| 0);
            });
        "stats-dead-lies", "no dead letter is ever told of",
            ["dead_letters/redrive-fresh-attempts", "dead_letters_hard/while-consuming"],
            Miscounts(|s| s.dead_lettered = s.dead_lettered.map(|_| 0));
        "purge-does-nothing", "purge leaves everything",
            ["dead_letters/purge"],
            PurgesNothing;
        "purge-miscounts", "purge tells one too many",
            ["dead_letters/purge"],
            PurgeMiscounts;
        "declare-changes", "declare makes anew what is different",
            [],
            Declares::Changing;
        "declare-silent", "declare tells of no difference",
            [],
            Declares::Silent;
        "declare-twice-fails", "declare refuses what is there already",
            [],
            Declares::Twice;
        "declare-races", "two declares at once: the second fails",
            [],
            DeclareRaces::default();
        "declare-forgets-topics", "declare makes no topics",
            ["filters/none", "pubsub/nobody-listens"],
            Declares::NoTopics;
        "declare-overclaims", "declare says it made what was there",
            [],
            Declares::AllCreated;
        "verify-silent", "verify does not look",
            [],
            Declares::VerifySilent;
        "verify-creates", "verify makes what is missing",
            [],
            Declares::VerifyCreating;
        "delete-does-nothing", "delete leaves everything",
            ["publish/deleted-then-missing", "publish_hard/deleted-under-way", "retry_hard/deleted-target"],
            DeletesNothing;
        "close-twice-fails", "closing the second connection fails",
            ["publish/stored-when-ok"],
            CloseFails::default();
    }
}
