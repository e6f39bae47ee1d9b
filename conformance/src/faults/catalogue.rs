//! All faults, with the scenarios that notice them.

use std::{sync::Arc, time::Duration};

use polybus_core::{Error, Kind, Settlement};

use super::{
    Fault,
    on_entities::{CloseFails, DeclareRaces, Declares, DeletesNothing, Miscounts, PurgeMiscounts, PurgesNothing},
    on_publish::{
        Answers, ConfirmsEarly, Corrupt, FailsNeighbours, HangsOnBatches, LeaksAcrossTopics, LimitOffByOne,
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
        "loses-one-in-a-batch", "the last message of a batch is answered Ok and not stored", [],
            Stores(|mut b| { if b.len() > 1 { b.pop(); } b });
        "stores-nothing-single", "a batch of one is answered Ok and not stored", [],
            Stores(|b| if b.len() == 1 { Vec::new() } else { b });
        "stores-twice", "a batch of more than one is stored twice", [],
            Stores(|b| if b.len() > 1 { b.iter().chain(&b).cloned().collect() } else { b });
        "reorders-a-batch", "a batch is stored backwards", [],
            Stores(|mut b| { b.reverse(); b });
        "batch-answer-too-short", "a batch gets one answer too few", [],
            Answers(|mut r| { if r.len() > 1 { r.pop(); } r });
        "batch-answer-too-long", "a batch gets one answer too many", [],
            Answers(|mut r| { if r.len() > 1 { r.push(Ok(polybus_core::Receipt::default())); } r });
        "oversize-fails-batch",
        "one message over the limit fails its whole batch",
        [],
        OversizeInBatch::FailsAll;
        "oversize-answer-shifted",
        "the answer to a message over the limit is given to the next one",
        [],
        OversizeInBatch::Shifted;
        "missing-is-ok", "a publish to a missing address is answered Ok", [],
            Answers(lies);
        "missing-is-unavailable", "a missing address looks like an outage", [],
            Answers(seems_unavailable);
        "missing-fails-neighbours", "after a missing address, the next publish to another one fails", [],
            FailsNeighbours::default();
        "confirms-early", "publishes are answered Ok before they are stored", [],
            ConfirmsEarly;
        "says-safe-when-stored", "an answer that was lost is called safe to retry", [],
            SaysSafe::default();
        "hangs-on-batches", "a batch of more than one is never answered", [],
            HangsOnBatches;
        "oversize-accepted", "a message over the limit is taken", [],
            TakesOversize;
        "limit-off-by-one", "the largest message that is allowed is refused", [],
            LimitOffByOne;
        "oversize-wrong-kind", "a message over the limit is called an invalid argument", [],
            WrongSizeKind;
        "delay-ignored", "a publish delay is ignored", [],
            Options(|m| m.delay = None);
        "delay-halved", "a publish delay ends too early", [],
            Options(|m| m.delay = m.delay.map(|d| d / 2));
        "delay-doubled", "a publish delay ends far too late", [],
            Options(|m| m.delay = m.delay.map(|d| d * 2));
        "leaks-across-topics", "a topic's messages come to all other topics", [],
            LeaksAcrossTopics::default();
        "topic-needs-subscriptions", "a topic without subscriptions is not found", [],
            NeedsSubscriptions::default();
        "replays-to-late", "a new subscription brings its topic's old messages again", [],
            ReplaysToLate::default();
    }
}

fn data() -> Vec<Fault> {
    faults! {
        "drops-headers", "headers are lost", [],
            Corrupt(|p| p.headers = polybus_core::Headers::new());
        "drops-last-of-many-headers", "with more than ten headers the last one is lost", [],
            Corrupt(|p| if p.headers.len() > 10 {
                p.headers = p.headers.iter().take(p.headers.len() - 1).collect();
            });
        "sorts-headers", "the order of headers is lost", [],
            Corrupt(|p| {
                let mut all: Vec<(String, String)> = p.headers.iter().map(|(k, v)| (k.into(), v.into())).collect();
                all.sort();
                p.headers = all.into_iter().collect();
            });
        "lowercases-header-keys", "the case of header keys is lost", [],
            Corrupt(|p| p.headers = p.headers.iter().map(|(k, v)| (k.to_ascii_lowercase(), v)).collect());
        "ascii-header-values", "header values lose what is not ASCII", [],
            Corrupt(|p| p.headers = p.headers.iter().map(|(k, v)| (k, v.replace(|c: char| !c.is_ascii(), "?"))).collect());
        "trims-header-values", "header values lose control characters and outer space", [],
            Corrupt(|p| {
                let clean = |v: &str| v.chars().filter(|c| !c.is_control()).collect::<String>().trim().to_owned();
                p.headers = p.headers.iter().map(|(k, v)| (k, clean(v))).collect();
            });
        "changes-a-byte", "one bit of the data is changed", [],
            Corrupt(|p| {
                let mut data = p.data.to_vec();
                if let Some(last) = data.last_mut() { *last ^= 1; }
                p.data = data.into();
            });
        "truncates-large", "data over 1 KiB loses its end", [],
            Corrupt(|p| if p.data.len() > 1024 { p.data.truncate(p.data.len() - 1); });
        "text-only", "data goes through UTF-8", [],
            Corrupt(|p| p.data = String::from_utf8_lossy(&p.data).into_owned().into());
        "strips-control", "data loses control characters", [],
            Corrupt(|p| p.data = p.data.iter().copied().filter(|b| *b >= 32 || *b == b'\n').collect::<Vec<_>>().into());
        "empty-becomes-null", "no data becomes `null`", [],
            Corrupt(|p| if p.data.is_empty() { p.data = "null".into(); });
        "pads-one-byte", "one byte of data becomes two", [],
            Corrupt(|p| if p.data.len() == 1 { p.data = [p.data[0], 0].to_vec().into(); });
        "new-ids", "every message gets a new id", [],
            Corrupt(|p| p.id = format!("{}x", p.id).into());
        "drops-subject", "the subject is lost", [], Corrupt(|p| p.subject = None);
        "drops-time", "the time is lost", [], Corrupt(|p| p.time = None);
        "rounds-time", "the time is rounded to milliseconds", [],
            Corrupt(|p| p.time = p.time.and_then(|t| t.replace_nanosecond(t.nanosecond() / 1_000_000 * 1_000_000).ok()));
        "drops-schema-version", "the schema version is lost", [], Corrupt(|p| p.schema_version = None);
        "drops-data-schema", "the data schema is lost", [], Corrupt(|p| p.data_schema = None);
        "json-always", "the content type becomes application/json", [],
            Corrupt(|p| p.content_type = Some("application/json".into()));
        "drops-correlation", "correlation and causation are lost", [],
            Corrupt(|p| { p.correlation_id = None; p.causation_id = None; });
        "drops-key", "the key is lost", [], Corrupt(|p| p.key = None);
        "drops-sequence", "the sequence is lost", [], Corrupt(|p| p.sequence = None);
        "drops-expiry", "the expiry is lost", [], Corrupt(|p| p.expires_at = None);
        "drops-trace", "the trace context is lost", [],
            Corrupt(|p| { p.traceparent = None; p.tracestate = None; });
        "drops-extensions", "extension attributes are lost", [],
            Corrupt(|p| p.extensions = polybus_core::Headers::new());
        "own-source", "the source becomes the driver's own", [], Corrupt(|p| p.source = "driver".into());
    }
}

fn receiving() -> Vec<Fault> {
    faults! {
        "ignores-prefetch", "three times the prefetch is handed out", [],
            IgnoresPrefetch;
        "hands-out-twice", "every message is handed out twice", [],
            HandsOutTwice;
        "hands-out-backwards", "what is handed out together comes backwards", [],
            HandsOutBackwards;
        "loses-when-dropped", "a dropped receive loses what it had got", [],
            LosesWhenDropped;
        "polls-to-the-end", "a poll returns at its end, whatever came before", [],
            PollsToTheEnd;
        "siblings-compete", "a message goes to one subscription alone", [],
            SiblingsCompete::default();
        "filter-one-word", "`order.*` does not let `order.a.b` through", [],
            FilterDrops(|f, t| f.to_string().ends_with(".*") && t.matches('.').count() > 1);
        "filter-prefix-drops", "a prefix filter lets nothing through", [],
            FilterDrops(|f, _| f.to_string().ends_with(".*"));
        "filter-exact-drops", "an exact filter lets nothing through", [],
            FilterDrops(|f, _| !f.to_string().ends_with(".*"));
        "filter-ignored", "the filter is ignored, and every type looks wanted", [],
            Misread(wanted_type);
        "two-of-a-key", "several of a key are handed out at once", [],
            ManyLanes::default();
        "one-lane", "a blocked key stalls all others", [],
            OneLane::default();
        "missing-source-silent", "a consumer of what is not there waits for ever", [],
            Misleads(Missing::Silent);
        "missing-source-wrong-kind", "a consumer of what is not there is told of wrong permissions", [],
            Misleads(Missing::Answers(Kind::PermissionDenied));
        "missing-source-passing", "a consumer of what is not there is told to try again", [],
            Misleads(Missing::Answers(Kind::Unavailable));
        "missing-source-recreated", "a consumer makes what is not there", [],
            Misleads(Missing::Recreated);
        "lock-never-ends", "a lock never runs out", [],
            OpensWith(|from| from.settings.lock = Duration::from_secs(86_400));
        "lock-too-short", "a lock runs out at a tenth of its time", [],
            OpensWith(|from| from.settings.lock /= 10);
        "lock-deadline-too-late", "the client is told that locks end an hour later than they do", [],
            Misread(|_, r| r.locked_until = r.locked_until.map(|t| t + Duration::from_secs(3600)));
        "lock-deadline-missing", "the client is not told when locks end", [],
            Misread(|_, r| r.locked_until = None);
        "lock-deadline-without-margin", "the client is told of the broker's deadline, without a margin", [],
            Misread(|at, r| r.locked_until = r.locked_until.map(|t| {
                t + (at.from.settings.lock / 4).min(Duration::from_secs(1))
            }));
    }
}

fn settling() -> Vec<Fault> {
    faults! {
        "redelivers-acked", "an ack is carried out as a release", [],
            Missettle(|_, s| (s.how == Settlement::Ack).then_some(Settlement::Release));
        "acks-another", "an ack removes another delivery of the consumer", [],
            Acks::Another;
        "acks-all-before", "an ack removes all older deliveries, too", [],
            Acks::AllBefore;
        "settles-twice", "settlements are sent twice", [],
            Twice;
        "release-loses", "a release removes the message", [],
            Missettle(|_, s| (s.how == Settlement::Release).then_some(Settlement::Ack));
        "release-is-late", "a release takes three seconds", [],
            Missettle(|at, s| (s.how == Settlement::Release && !at.is_dead())
                .then_some(Settlement::RetryAfter(Duration::from_secs(3))));
        "retry-too-early", "a retry comes at half its time", [],
            Missettle(|_, s| match s.how { Settlement::RetryAfter(d) => Some(Settlement::RetryAfter(d / 2)), _ => None });
        "retry-too-late", "a retry comes at one and a half of its time", [],
            Missettle(|_, s| match s.how {
                Settlement::RetryAfter(d) => Some(Settlement::RetryAfter(d * 3 / 2)),
                _ => None,
            });
        "retry-loses", "a retry removes the message", [],
            Missettle(|_, s| is_retry(&s.how).then_some(Settlement::Ack));
        "retry-head-of-line", "a short retry waits behind a long one", [],
            HeadOfLine::default();
        "retry-to-siblings", "a retry is published to the topic again", [],
            Republishes { when: is_retry, edit: |_| {}, then: Settlement::Ack };
        "retry-loses-headers", "a retried message loses its headers", [],
            Republishes { when: is_retry, edit: |p| p.headers = polybus_core::Headers::new(), then: Settlement::Ack };
        "retry-jumps-back", "a retried message of a key comes after its successors", [],
            Republishes { when: |how| matches!(how, Settlement::RetryAfter(_) | Settlement::Release), edit: |_| {},
                then: Settlement::Ack };
        "settle-answer-too-short", "a batch of settlements gets one answer too few", [],
            SettleAnswers(|mut r| { if r.len() > 1 { r.pop(); } r });
        "settle-fails-neighbours", "one failed settlement fails its batch", [],
            SettleAnswers(|r| match r.iter().find_map(|r| r.as_ref().err()) {
                Some(e) => e.clone().for_each_of(r.len()),
                None => r,
            });
        "settle-says-lost", "settlements that worked are answered LockLost, where there are several", [],
            SettleAnswers(|r| if r.len() > 1 { Error::new(Kind::LockLost, "gone").for_each_of(r.len()) } else { r });
        "late-ack-takes-another", "a late settlement takes the message from its new holder", [],
            LateAckTakes::default();
        "late-settle-is-ok", "a settlement after its lock was lost is answered Ok", [],
            LateIsOk;
        "extend-does-nothing", "extend answers Ok and does nothing", [],
            ExtendsNothing;
        "extend-is-lock-lost", "extend answers LockLost for what is held", [],
            ExtendFails(Kind::LockLost);
        "close-loses", "a consumer's end removes what it held", [],
            AtClose::Loses;
        "close-reorders", "a consumer's end puts what it held behind the rest", [],
            AtClose::Reorders;
        "close-keeps", "a consumer's end does not give back what it held", [],
            AtClose::Keeps;
        "closed-consumer-takes", "a consumer that was closed goes on taking", [],
            Zombie;
    }
}

fn attempts() -> Vec<Fault> {
    faults! {
        "attempt-always-one", "every delivery is called the first", [],
            Misread(|_, r| r.attempt = 1);
        "attempt-too-high", "attempts are counted from two", [],
            Misread(|_, r| r.attempt += 1);
        "attempt-never-grows-on-release", "a release does not count", [],
            Recount::new(|how| *how == Settlement::Release, |now, then| now.min(then));
        "attempt-reset-by-retry", "a retry starts the count again", [],
            Recount::new(is_retry, |now, then| now.saturating_sub(then).max(1));
        "attempt-doubled-by-retry", "a retry counts twice", [],
            Recount::new(is_retry, |now, _| now + 1);
        "attempt-counts-given-back", "what was given back unhandled counts ten times", [],
            Recount::new(|how| *how == Settlement::GiveBack, |now, _| now + 10);
        "redrive-keeps-attempt", "a redriven message goes on with its old count", [],
            Recount::new(is_burial, |now, then| now + then);
    }
}

fn dead_letters() -> Vec<Fault> {
    faults! {
        "dead-letter-lost", "a dead letter is removed", [],
            Missettle(|_, s| is_burial(&s.how).then_some(Settlement::Ack));
        "dead-letter-released", "a dead letter is released", [],
            Missettle(|_, s| is_burial(&s.how).then_some(Settlement::Release));
        "dead-letter-acks-before-copy", "a dead letter whose copy fails is removed", [],
            AcksAndFails(is_burial);
        "dead-letter-without-reason", "a dead letter loses its reason", [],
            Misread(|_, r| if let Some(d) = &mut r.dead_letter { d.reason = None });
        "dead-letter-without-detail", "a dead letter loses its detail", [],
            Misread(|_, r| if let Some(d) = &mut r.dead_letter { d.detail = None });
        "dead-letter-without-attempt", "a dead letter loses its attempt", [],
            Misread(|_, r| if let Some(d) = &mut r.dead_letter { d.attempt = None });
        "dead-letter-without-origin", "a dead letter loses its origin", [],
            Misread(|_, r| if let Some(d) = &mut r.dead_letter { d.origin = None });
        "dead-letter-without-time", "a dead letter loses its time", [],
            Misread(|_, r| if let Some(d) = &mut r.dead_letter { d.time = None });
        "dead-letter-loses-metadata", "a dead letter loses its headers and subject", [],
            Misread(|at, r| if at.is_dead() {
                edit(r, |p| { p.headers = polybus_core::Headers::new(); p.subject = None; });
            });
        "dead-letter-loses-data", "a dead letter loses its data", [],
            Misread(|at, r| if at.is_dead() { edit(r, |p| p.data = bytes::Bytes::new()); });
        "dead-letter-source-attempts", "a dead letter is called lost after twenty attempts", [],
            Missettle(|at, s| (at.is_dead() && s.attempt > 20).then_some(Settlement::Ack));
        "malformed-for-ever", "an undecodable message is released, not dead-lettered", [],
            Missettle(|_, s| match &s.how {
                Settlement::DeadLetter { reason, .. } if &**reason == "malformed" => Some(Settlement::Release),
                _ => None,
            });
        "malformed-looks-fine", "an undecodable message is handed out", [],
            Misread(|_, r| r.malformed = None);
        "foreign-is-malformed", "a foreign message is called undecodable", [],
            Misread(|_, r| if &*r.envelope.event_type == polybus_core::FOREIGN { r.malformed = Some("foreign".into()) });
        "foreign-loses-body", "a foreign message loses its body", [],
            Misread(|_, r| if &*r.envelope.event_type == polybus_core::FOREIGN {
                edit(r, |p| p.data = bytes::Bytes::new());
            });
        "redrive-lost", "a redriven message is removed", [],
            Missettle(|_, s| (s.how == Settlement::Redrive).then_some(Settlement::Ack));
        "redrive-stays", "a redriven message stays in the dead letters", [],
            Missettle(|_, s| (s.how == Settlement::Redrive).then_some(Settlement::Release));
        "redrive-to-siblings", "a redrive is published to the topic again", [],
            Republishes { when: |how| *how == Settlement::Redrive, edit: |_| {}, then: Settlement::Ack };
        "redrive-loses-headers", "a redriven message loses its headers", [],
            Republishes { when: |how| *how == Settlement::Redrive, edit: |p| p.headers = polybus_core::Headers::new(),
                then: Settlement::Ack };
        "redrive-new-id", "a redriven message gets a new id", [],
            Republishes { when: |how| *how == Settlement::Redrive, edit: |p| p.id = format!("{}r", p.id).into(),
                then: Settlement::Ack };
        "redrive-copies", "a redrive leaves the dead letter where it is", [],
            Republishes { when: |how| *how == Settlement::Redrive, edit: |_| {}, then: Settlement::Release };
        "redrive-endless", "dead letters do not tell when and how many they are", [],
            Timeless;
    }
}

fn entities() -> Vec<Fault> {
    faults! {
        "stats-ready-lies", "one ready message too many is told", [],
            Miscounts(|s| s.ready = s.ready.map(|n| n + 1));
        "stats-in-flight-lies", "no message is ever told to be in flight", [],
            Miscounts(|s| s.in_flight = s.in_flight.map(|_| 0));
        "stats-delayed-lies", "delayed messages are told to be ready", [],
            Miscounts(|s| {
                s.ready = s.ready.map(|n| n + s.delayed.unwrap_or(0));
                s.delayed = s.delayed.map(|_| 0);
            });
        "stats-dead-lies", "no dead letter is ever told of", [],
            Miscounts(|s| s.dead_lettered = s.dead_lettered.map(|_| 0));
        "purge-does-nothing", "purge leaves everything", [],
            PurgesNothing;
        "purge-miscounts", "purge tells one too many", [],
            PurgeMiscounts;
        "declare-changes", "declare makes anew what is different", [],
            Declares::Changing;
        "declare-silent", "declare tells of no difference", [],
            Declares::Silent;
        "declare-twice-fails", "declare refuses what is there already", [],
            Declares::Twice;
        "declare-races", "two declares at once: the second fails", [],
            DeclareRaces::default();
        "declare-forgets-topics", "declare makes no topics", [],
            Declares::NoTopics;
        "declare-overclaims", "declare says it made what was there", [],
            Declares::AllCreated;
        "verify-silent", "verify does not look", [],
            Declares::VerifySilent;
        "verify-creates", "verify makes what is missing", [],
            Declares::VerifyCreating;
        "delete-does-nothing", "delete leaves everything", [],
            DeletesNothing;
        "close-twice-fails", "closing the second connection fails", [],
            CloseFails::default();
    }
}
