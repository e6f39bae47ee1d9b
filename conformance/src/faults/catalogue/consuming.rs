//! Faults of receiving, settling and dead letters, with the scenarios that notice them.

use std::{sync::Arc, time::Duration};

use polybus_core::{Error, ErrorKind, driver::Settlement};

use super::{
    Fault,
    on_receive::{
        AcksUnwanted, FetchesAhead, FilterDrops, HandsOutBackwards, HandsOutTwice, IgnoresPrefetch, LosesWhenDropped,
        ManyLanes, Misleads, Misread, Missing, OneLane, OpensWith, PollsToTheEnd, SiblingsCompete, StaysAway, Timeless,
        edit, wanted_type,
    },
    on_settle::{
        Acks, AcksAndFails, AtClose, ExtendFails, ExtendsNothing, HeadOfLine, LateAckTakes, LateIsOk, Missettle,
        Recount, Republishes, SettleAnswers, Twice, Zombie,
    },
};

fn is_retry(how: &Settlement) -> bool {
    matches!(how, Settlement::RetryAfter(_))
}

fn is_burial(how: &Settlement) -> bool {
    matches!(how, Settlement::DeadLetter { .. })
}

pub(super) fn receiving() -> Vec<Fault> {
    faults! {
        "ignores-prefetch", "three times the prefetch is handed out",
            ["dead_letters/shared", "lifecycle/slow-handlers", "receive/eight-wait", "receive/prefetch-bound"],
            IgnoresPrefetch;
        "hands-out-twice", "every message is handed out twice",
            ["attempts/close", "publish/concurrent", "worker/handles-all"],
            HandsOutTwice;
        "hands-out-backwards", "what is handed out together comes backwards",
            ["time/delay-each-its-own", "time/delay-on-a-topic", "time/expired-in-the-buffer"],
            HandsOutBackwards;
        "loses-when-dropped", "a dropped receive loses what it had got",
            [
                "pubsub/competing-within-one", "receive/cancelled", "receive/competing", "settle/cancelled",
                "worker/of-dead-letters", "worker/panic", "worker/two-of-one-queue",
            ],
            LosesWhenDropped;
        "polls-to-the-end", "a poll returns at its end, whatever came before",
            ["receive/poll-returns-early", "time/never-seen"],
            PollsToTheEnd;
        "siblings-compete", "a message goes to one subscription alone",
            ["attempts/siblings", "pubsub/each-gets-all", "pubsub/many-publishers"],
            SiblingsCompete::default();
        "filter-one-word", "`order.*` does not let `order.a.b` through",
            [
                "filters/deep", "filters/overlapping", "filters/under", "order/blocked-sibling", "order/on-a-topic",
                "topology/declare-adds",
            ],
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
        "unwanted-acked", "what the consumer's own list of types does not want is acked by the driver",
            ["unwanted/dead-lettered", "unwanted/foreign", "unwanted/handled", "unwanted/no-dead-letters", "unwanted/rolling-deploy"],
            AcksUnwanted;
        "two-of-a-key", "several of a key are handed out at once",
            [
                "attempts/limit-ordered", "negative/ordered-hold", "order/after-drop", "order/after-last-attempt",
                "order/after-release", "order/eight-consumers", "order/one-at-a-time", "order/releases-everywhere",
                "order_hard/failed-head", "order_hard/full-window-retry", "worker/ordered",
            ],
            ManyLanes::default();
        "one-lane", "a blocked key stalls all others",
            [
                "order/after-retry", "order/blocked-key", "order_hard/full-window", "order_hard/missing-address",
                "order_hard/stop-then-settle", "worker/ordered-retry",
            ],
            OneLane::default();
        "missing-source-silent", "a consumer of what is not there waits for ever",
            ["dead_letters/missing", "endings/deleted", "receive/missing-dead-letters"],
            Misleads(Missing::Silent);
        "stays-away", "a consumer whose source was gone does not attach to the one made anew",
            ["endings/deleted-and-back"],
            StaysAway::default();
        "missing-source-wrong-kind", "a consumer of what is not there is told of wrong permissions",
            ["dead_letters/missing", "receive/missing-dead-letters"],
            Misleads(Missing::Answers(ErrorKind::PermissionDenied));
        "missing-source-passing", "a consumer of what is not there is told to try again",
            [
                "dead_letters/missing", "receive/missing-dead-letters", "receive/missing-subscription",
                "worker/missing-source",
            ],
            Misleads(Missing::Answers(ErrorKind::Unavailable));
        "missing-source-recreated", "a consumer makes what is not there",
            ["dead_letters/missing", "receive/missing-dead-letters"],
            Misleads(Missing::Recreated);
        "lock-never-ends", "a lock never runs out",
            ["attempts/limit-lock", "attempts/lock", "consume_hard/lock-expires-in-the-buffer"],
            OpensWith(|from| from.settings.lock = Duration::from_secs(86_400));
        "lock-too-short", "a lock runs out at a tenth of its time",
            ["settle/lock-told", "topology/changed-lock-and-retry"],
            OpensWith(|from| from.settings.lock /= 10);
        "lock-deadline-too-late", "the client is told that locks end an hour later than they do",
            ["consume_hard/renewed-in-the-buffer", "dead_letters/extended", "settle/renewal"],
            Misread(|_, r| r.locked_until = r.locked_until.map(|t| t + Duration::from_secs(3600)));
        "fetched-ahead-unrenewed", "messages come before they are asked for, and wait without renewal until they are",
            ["settle/renewal-of-later-arrivals", "settle/renewal-of-later-keys"],
            FetchesAhead;
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

pub(super) fn settling() -> Vec<Fault> {
    faults! {
        "redelivers-acked", "an ack is carried out as a release",
            ["data/foreign", "data/refused-attributes", "unwanted/discarded"],
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
            ["receive/prefetch-frees", "settle/ack-is-final", "settle/gaps", "worker/timeout"],
            Missettle(|_, s| (s.how == Settlement::Release).then_some(Settlement::Ack));
        "release-is-late", "a release takes three seconds",
            ["attempts/limit-at-once", "consume_hard/ten-rounds-unhandled", "settle/drop", "settle/release"],
            Missettle(|at, s| (s.how == Settlement::Release && !at.is_dead())
                .then_some(Settlement::RetryAfter(Duration::from_secs(3))));
        "retry-too-early", "a retry comes at half its time",
            [
                "retry_hard/both-siblings", "retry_hard/expires-into-dead-letters", "retry_hard/expires-waiting",
                "retry_hard/idle-delay", "retry_hard/ladder", "retry_hard/survives-close", "worker/retry-after",
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
            ["attempts/limit-prefetch", "lifecycle/close-finishes-acks", "settle/interleaved"],
            SettleAnswers(|mut r| { if r.len() > 1 { r.pop(); } r });
        "settle-says-lost", "settlements that worked are answered LockLost, where there are several",
            ["settle/interleaved", "time/expired-in-the-buffer"],
            SettleAnswers(|r| if r.len() > 1 { Error::new(ErrorKind::LockLost, "gone").for_each_of(r.len()) } else { r });
        "late-ack-takes-another", "a late settlement takes the message from its new holder",
            ["dead_letters/extended", "settle/late-drop"],
            LateAckTakes::default();
        "late-settle-is-ok", "a settlement after its lock was lost is answered Ok",
            ["consume_hard/cancelled-by-the-server", "topology/deleted-ordered", "topology/deleted-while-holding"],
            LateIsOk;
        "extend-does-nothing", "extend answers Ok and does nothing",
            ["dead_letters/extended", "settle/extend", "worker/renewal"],
            ExtendsNothing;
        "extend-is-lock-lost", "extend answers LockLost for what is held",
            ["settle/extend", "settle/late-drop"],
            ExtendFails(ErrorKind::LockLost);
        "close-loses", "a consumer's end removes what it held",
            ["attempts/close", "receive/after-bus-close"],
            AtClose::Loses;
        "close-reorders", "a consumer's end puts what it held behind the rest",
            [
                "attempts/close", "attempts/limit-close", "consume_hard/ten-rounds", "lifecycle/close-gives-back",
                "order/after-close", "order_hard/close-on-a-topic", "order_hard/close-with-a-standby",
                "order_hard/ten-rounds",
            ],
            AtClose::Reorders;
        "close-keeps", "a consumer's end does not give back what it held",
            [
                "dead_letters/settled", "lifecycle/idle-consumers", "settle/after-close",
                "topology/no-right-to-dead-letter",
            ],
            AtClose::Keeps;
        "closed-consumer-takes", "a consumer that was closed goes on taking",
            ["attempts/limit-one", "retry_hard/idle-delay"],
            Zombie;
    }
}

pub(super) fn attempts() -> Vec<Fault> {
    faults! {
        "attempt-always-one", "every delivery is called the first",
            ["attempts/close", "attempts/siblings"],
            Misread(|_, r| r.attempt = 1);
        "attempt-too-high", "attempts are counted from two",
            ["data/binary-mode", "data/foreign"],
            Misread(|_, r| r.attempt += 1);
        "attempt-never-grows-on-release", "a release does not count",
            ["attempts/neighbours", "consume_hard/dropped-deliveries", "worker/max-deliveries"],
            Recount::new(|how| *how == Settlement::Release, |now, then| now.min(then));
        "attempt-reset-by-retry", "a retry starts the count again",
            ["retry_hard/survives-close", "time/expired-while-retrying"],
            Recount::new(is_retry, |now, then| now.saturating_sub(then).max(1));
        "attempt-doubled-by-retry", "a retry counts twice",
            ["attempts/paths", "pubsub/settled-apart", "retry_hard/many-at-once", "time/expired-while-retrying"],
            Recount::new(is_retry, |now, _| now + 1);
        "attempt-counts-given-back", "what was given back unhandled counts ten times",
            [
                "dead_letters/redrive-interrupted", "lifecycle/close-consumer-twice",
                "lifecycle/drop-without-close", "receive/after-close", "receive/dropped-subscription", "receive/stop",
                "settle/after-stop", "worker/drain", "worker/drain-timeout", "worker/dropped",
            ],
            Recount::new(|how| *how == Settlement::GiveBack, |now, _| now + 10);
        "redrive-keeps-attempt", "a redriven message goes on with its old count",
            ["dead_letters/redrive-fresh-attempts", "dead_letters/told", "order_hard/dead-letters-keep-keys"],
            Recount::new(is_burial, |now, then| now + then);
    }
}

pub(super) fn dead_letters() -> Vec<Fault> {
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
            [
                "dead_letters/told", "dead_letters_hard/again-and-again", "worker/permanent", "worker/reasons",
                "worker/retry-ladder",
            ],
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
            ["dead_letters/by-the-hundred", "order/after-dead-letter", "settle/cancelled"],
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
            Misread(|_, r| if &*r.envelope.event_type == polybus_core::Envelope::FOREIGN_TYPE { r.malformed = Some("foreign".into()) });
        "foreign-loses-body", "a foreign message loses its body",
            ["data/foreign", "data/foreign-headers"],
            Misread(|_, r| if &*r.envelope.event_type == polybus_core::Envelope::FOREIGN_TYPE {
                edit(r, |p| p.data = bytes::Bytes::new());
            });
        "redrive-lost", "a redriven message is removed",
            ["dead_letters/redrive-fresh-attempts", "dead_letters/redrive-limited", "dead_letters_hard/while-consuming"],
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
            ["dead_letters/redrive-fresh-attempts"],
            Republishes { when: |how| *how == Settlement::Redrive, edit: |_| {}, then: Settlement::Release };
        "dead-letter-timeless", "dead letters do not tell when they died and how many they are",
            ["dead_letters/told"],
            Timeless;
    }
}
