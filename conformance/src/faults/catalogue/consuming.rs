//! Faults of receiving, settling and dead letters, with the scenarios that notice them.

use std::{sync::Arc, time::Duration};

use polybus_core::{Error, ErrorKind, driver::Settlement};

use crate::faults::{
    Fault,
    behaviours::{
        receive::{
            AcksUnwanted, FetchesAhead, FilterDrops, HandsOutBackwards, HandsOutTwice, HidesDeathTime, IgnoresPrefetch,
            LosesWhenDropped, ManyLanes, MisleadsAboutMissing, MisreadsMessage, MissingSource, OneLane, OpensWith,
            PollsToTheEnd, SiblingsCompete, StaysAway, edit, wanted_type,
        },
        settle::{
            AcksAndFails, AcksOthers, AtClose, ExtendFails, ExtendsNothing, HeadOfLine, LateAckTakes, LateIsOk,
            MiscountsAttempts, ReceivesAfterClose, RepublishesCopy, SettleAnswers, SettlesOtherwise, SettlesTwice,
        },
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
            ["dead_letters/shared", "lifecycle/slow-handlers", "consume/eight-wait", "consume/prefetch-bound"],
            IgnoresPrefetch;
        "hands-out-twice", "every message is handed out twice",
            ["attempts/close", "publish/concurrent", "worker/handles-all"],
            HandsOutTwice;
        "hands-out-backwards", "what is handed out together comes backwards",
            ["time/delay-each-its-own", "time/delay-on-a-topic", "time/expired-in-the-buffer"],
            HandsOutBackwards;
        "loses-when-dropped", "a dropped receive loses what it had got",
            [
                "pubsub/competing-within-one", "consume/cancelled", "consume/competing", "settle/cancelled",
                "worker/of-dead-letters", "worker/panic", "worker/two-of-one-queue",
            ],
            LosesWhenDropped;
        "polls-to-the-end", "a poll returns at its end, whatever came before",
            ["consume/poll-returns-early", "time/never-seen"],
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
                "retry/siblings",
            ],
            FilterDrops(|f, _| !f.to_string().ends_with(".*"));
        "filter-ignored", "the filter is ignored, and every type looks wanted",
            ["filters/deep", "filters/exact"],
            MisreadsMessage(wanted_type);
        "unwanted-acked", "what the consumer's own list of types does not want is acked by the driver",
            ["filters/unwanted-dead-lettered", "filters/unwanted-foreign", "filters/unwanted-handled", "filters/unwanted-without-dead-letters", "filters/rolling-deploy"],
            AcksUnwanted;
        "two-of-a-key", "several of a key are handed out at once",
            [
                "attempts/limit-ordered", "negative/ordered-hold", "order/after-drop", "order/after-last-attempt",
                "order/after-release", "order/eight-consumers", "order/one-at-a-time", "order/releases-everywhere",
                "order/failed-head", "order/full-window-retry", "worker/ordered",
            ],
            ManyLanes::default();
        "one-lane", "a blocked key stalls all others",
            [
                "order/after-retry", "order/blocked-key", "order/full-window", "order/missing-address",
                "order/stop-then-settle", "worker/ordered-retry",
            ],
            OneLane::default();
        "missing-source-silent", "a consumer of what is not there waits for ever",
            ["dead_letters/missing", "consume/deleted-queue", "consume/missing-dead-letters"],
            MisleadsAboutMissing(MissingSource::Silent);
        "stays-away", "a consumer whose source was gone does not attach to the one made anew",
            ["consume/deleted-and-back"],
            StaysAway::default();
        "missing-source-wrong-kind", "a consumer of what is not there is told of wrong permissions",
            ["dead_letters/missing", "consume/missing-dead-letters"],
            MisleadsAboutMissing(MissingSource::Answers(ErrorKind::PermissionDenied));
        "missing-source-passing", "a consumer of what is not there is told to try again",
            [
                "dead_letters/missing", "consume/missing-dead-letters", "consume/missing-subscription",
                "worker/missing-source",
            ],
            MisleadsAboutMissing(MissingSource::Answers(ErrorKind::Unavailable));
        "missing-source-recreated", "a consumer makes what is not there",
            ["dead_letters/missing", "consume/missing-dead-letters"],
            MisleadsAboutMissing(MissingSource::Recreated);
        "lock-never-ends", "a lock never runs out",
            ["attempts/limit-lock", "attempts/lock", "consume/lock-expires-in-the-buffer"],
            OpensWith(|from| from.settings.lock = Duration::from_secs(86_400));
        "lock-too-short", "a lock runs out at a tenth of its time",
            ["settle/lock-told", "topology/changed-lock-and-retry"],
            OpensWith(|from| from.settings.lock /= 10);
        "lock-deadline-too-late", "the client is told that locks end an hour later than they do",
            ["consume/renewed-in-the-buffer", "dead_letters/extended", "settle/renewal"],
            MisreadsMessage(|_, r| r.locked_until = r.locked_until.map(|t| t + Duration::from_secs(3600)));
        "fetched-ahead-unrenewed", "messages come before they are asked for, and wait without renewal until they are",
            ["settle/renewal-of-later-arrivals", "settle/renewal-of-later-keys"],
            FetchesAhead;
        "lock-deadline-missing", "the client is not told when locks end",
            ["settle/extend", "settle/late"],
            MisreadsMessage(|_, r| r.locked_until = None);
        "lock-deadline-without-margin", "the client is told of the broker's deadline, without a margin",
            ["settle/lock-told"],
            MisreadsMessage(|at, r| r.locked_until = r.locked_until.map(|t| {
                t + (at.from.settings.lock / 4).min(Duration::from_secs(1))
            }));
    }
}

pub(super) fn settling() -> Vec<Fault> {
    faults! {
        "redelivers-acked", "an ack is carried out as a release",
            ["data/foreign", "data/refused-attributes", "filters/unwanted-discarded"],
            SettlesOtherwise(|_, s| (s.how == Settlement::Ack).then_some(Settlement::Release));
        "acks-another", "an ack removes another delivery of the consumer",
            ["data/source-filled-in", "data/structured-mode"],
            AcksOthers::Another;
        "acks-all-before", "an ack removes all older deliveries, too",
            ["data/source-filled-in", "data/structured-mode"],
            AcksOthers::AllBefore;
        "settles-twice", "settlements are sent twice",
            ["data/binary-mode", "data/structured-mode"],
            SettlesTwice;
        "release-loses", "a release removes the message",
            ["consume/prefetch-frees", "settle/ack-is-final", "settle/gaps", "worker/timeout", "requests/dropped-responder"],
            SettlesOtherwise(|_, s| (s.how == Settlement::Release).then_some(Settlement::Ack));
        "release-is-late", "a release takes three seconds",
            ["attempts/limit-at-once", "consume/ten-rounds-unhandled", "settle/drop", "settle/release"],
            SettlesOtherwise(|at, s| (s.how == Settlement::Release && !at.is_dead())
                .then_some(Settlement::RetryAfter(Duration::from_secs(3))));
        "retry-too-early", "a retry comes at half its time",
            [
                "retry/both-siblings", "retry/expires-into-dead-letters", "retry/expires-waiting",
                "retry/idle-delay", "retry/ladder", "retry/survives-close", "worker/retry-after",
            ],
            SettlesOtherwise(|_, s| match s.how { Settlement::RetryAfter(d) => Some(Settlement::RetryAfter(d / 2)), _ => None });
        "retry-too-late", "a retry comes at one and a half of its time",
            ["retry/idle-delay", "retry/ladder"],
            SettlesOtherwise(|_, s| match s.how {
                Settlement::RetryAfter(d) => Some(Settlement::RetryAfter(d * 3 / 2)),
                _ => None,
            });
        "retry-loses", "a retry removes the message",
            ["retry/idle-delay", "retry/ladder"],
            SettlesOtherwise(|_, s| is_retry(&s.how).then_some(Settlement::Ack));
        "retry-head-of-line", "a short retry waits behind a long one",
            ["retry/jittered", "settle/retry-not-held-up"],
            HeadOfLine::default();
        "retry-to-siblings", "a retry is published to the topic again",
            ["retry/survives-close", "time/expired-while-retrying"],
            RepublishesCopy { when: is_retry, edit: |_| {}, then: Settlement::Ack };
        "retry-loses-headers", "a retried message loses its headers",
            ["retry/survives-close", "time/expired-while-retrying"],
            RepublishesCopy { when: is_retry, edit: |p| p.headers = polybus_core::Headers::new(), then: Settlement::Ack };
        "retry-jumps-back", "a retried message of a key comes after its successors",
            ["attempts/lock", "attempts/siblings"],
            RepublishesCopy { when: |how| matches!(how, Settlement::RetryAfter(_) | Settlement::Release), edit: |_| {},
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
            ["consume/cancelled-by-the-server", "topology/deleted-ordered", "topology/deleted-while-holding"],
            LateIsOk;
        "extend-does-nothing", "extend answers Ok and does nothing",
            ["dead_letters/extended", "settle/extend", "worker/renewal"],
            ExtendsNothing;
        "extend-is-lock-lost", "extend answers LockLost for what is held",
            ["settle/extend", "settle/late-drop"],
            ExtendFails(ErrorKind::LockLost);
        "close-loses", "a consumer's end removes what it held",
            ["attempts/close", "consume/after-bus-close"],
            AtClose::Loses;
        "close-reorders", "a consumer's end puts what it held behind the rest",
            [
                "attempts/close", "attempts/limit-close", "consume/ten-rounds", "lifecycle/close-gives-back",
                "order/after-close", "order/close-on-a-topic", "order/close-with-a-standby",
                "order/ten-rounds",
            ],
            AtClose::Reorders;
        "close-keeps", "a consumer's end does not give back what it held",
            [
                "dead_letters/settled", "lifecycle/idle-consumers", "settle/after-close",
                "topology/no-right-to-dead-letter",
            ],
            AtClose::Keeps;
        "closed-consumer-takes", "a consumer that was closed goes on taking",
            ["attempts/limit-one", "retry/idle-delay"],
            ReceivesAfterClose;
    }
}

pub(super) fn attempts() -> Vec<Fault> {
    faults! {
        "attempt-always-one", "every delivery is called the first",
            ["attempts/close", "attempts/siblings"],
            MisreadsMessage(|_, r| r.attempt = 1);
        "attempt-too-high", "attempts are counted from two",
            ["data/binary-mode", "data/foreign"],
            MisreadsMessage(|_, r| r.attempt += 1);
        "attempt-never-grows-on-release", "a release does not count",
            ["attempts/neighbours", "consume/dropped-deliveries", "worker/max-deliveries"],
            MiscountsAttempts::new(|how| *how == Settlement::Release, |now, then| now.min(then));
        "attempt-reset-by-retry", "a retry starts the count again",
            ["retry/survives-close", "time/expired-while-retrying", "requests/failed"],
            MiscountsAttempts::new(is_retry, |now, then| now.saturating_sub(then).max(1));
        "attempt-doubled-by-retry", "a retry counts twice",
            ["attempts/paths", "pubsub/settled-apart", "retry/many-at-once", "time/expired-while-retrying"],
            MiscountsAttempts::new(is_retry, |now, _| now + 1);
        "attempt-counts-given-back", "what was given back unhandled counts ten times",
            [
                "redrive/interrupted", "lifecycle/close-consumer-twice",
                "lifecycle/drop-without-close", "consume/after-close", "consume/dropped-subscription", "consume/stop",
                "settle/after-stop", "worker/drain", "worker/drain-timeout", "worker/dropped",
            ],
            MiscountsAttempts::new(|how| *how == Settlement::GiveBack, |now, _| now + 10);
        "redrive-keeps-attempt", "a redriven message goes on with its old count",
            ["redrive/fresh-attempts", "dead_letters/told", "order/dead-letters-keep-keys"],
            MiscountsAttempts::new(is_burial, |now, then| now + then);
    }
}

pub(super) fn dead_letters() -> Vec<Fault> {
    faults! {
        "dead-letter-lost", "a dead letter is removed",
            ["dead_letters/extended", "dead_letters/refused"],
            SettlesOtherwise(|_, s| is_burial(&s.how).then_some(Settlement::Ack));
        "dead-letter-released", "a dead letter is released",
            ["dead_letters/refused", "consume/prefetch-frees"],
            SettlesOtherwise(|_, s| is_burial(&s.how).then_some(Settlement::Release));
        "dead-letter-acks-before-copy", "a dead letter whose copy fails is removed",
            ["dead_letters/refused", "consume/prefetch-frees"],
            AcksAndFails(is_burial);
        "dead-letter-without-reason", "a dead letter loses its reason",
            ["attempts/limit-one", "data/foreign-settled", "requests/no-reply"],
            MisreadsMessage(|_, r| if let Some(d) = &mut r.dead_letter { d.reason = None });
        "dead-letter-without-detail", "a dead letter loses its detail",
            [
                "dead_letters/told", "redrive/again-and-again", "worker/permanent", "worker/reasons",
                "worker/retry-ladder",
            ],
            MisreadsMessage(|_, r| if let Some(d) = &mut r.dead_letter { d.detail = None });
        "dead-letter-without-attempt", "a dead letter loses its attempt",
            ["attempts/limit-one", "dead_letters/25-releases"],
            MisreadsMessage(|_, r| if let Some(d) = &mut r.dead_letter { d.attempt = None });
        "dead-letter-without-origin", "a dead letter loses its origin",
            [
                "attempts/limit-drop", "attempts/limit-mixed", "attempts/limit-one", "attempts/limit-release",
                "attempts/limit-retry", "attempts/poison", "dead_letters/siblings",
            ],
            MisreadsMessage(|_, r| if let Some(d) = &mut r.dead_letter { d.origin = None });
        "dead-letter-without-time", "a dead letter loses its time",
            ["dead_letters/told"],
            MisreadsMessage(|_, r| if let Some(d) = &mut r.dead_letter { d.time = None });
        "dead-letter-loses-metadata", "a dead letter loses its headers and subject",
            ["redrive/filtered", "time/dead-letter-expired"],
            MisreadsMessage(|at, r| if at.is_dead() {
                edit(r, |p| { p.headers = polybus_core::Headers::new(); p.subject = None; });
            });
        "dead-letter-loses-data", "a dead letter loses its data",
            ["dead_letters/by-the-hundred", "order/after-dead-letter", "settle/cancelled"],
            MisreadsMessage(|at, r| if at.is_dead() { edit(r, |p| p.data = bytes::Bytes::new()); });
        "dead-letter-source-attempts", "a dead letter is called lost after twenty attempts",
            ["dead_letters/25-releases"],
            SettlesOtherwise(|at, s| (at.is_dead() && s.attempt > 20).then_some(Settlement::Ack));
        "malformed-for-ever", "an undecodable message is released, not dead-lettered",
            ["data/undecodable", "data/undecodable-on-a-topic", "dead_letters/malformed"],
            SettlesOtherwise(|_, s| match &s.how {
                Settlement::DeadLetter { reason, .. } if &**reason == "malformed" => Some(Settlement::Release),
                _ => None,
            });
        "malformed-looks-fine", "an undecodable message is handed out",
            ["data/undecodable-on-a-topic", "dead_letters/malformed"],
            MisreadsMessage(|_, r| r.malformed = None);
        "foreign-is-malformed", "a foreign message is called undecodable",
            ["data/foreign", "data/foreign-headers", "data/foreign-settled", "attempts/foreign-counters"],
            MisreadsMessage(|_, r| if &*r.envelope.event_type == polybus_core::Envelope::FOREIGN_TYPE { r.malformed = Some("foreign".into()) });
        "foreign-loses-body", "a foreign message loses its body",
            ["data/foreign", "data/foreign-headers", "requests/to-others"],
            MisreadsMessage(|_, r| if &*r.envelope.event_type == polybus_core::Envelope::FOREIGN_TYPE {
                edit(r, |p| p.data = bytes::Bytes::new());
            });
        "redrive-lost", "a redriven message is removed",
            ["redrive/fresh-attempts", "redrive/limited", "redrive/while-consuming"],
            SettlesOtherwise(|_, s| (s.how == Settlement::Redrive).then_some(Settlement::Ack));
        "redrive-stays", "a redriven message stays in the dead letters",
            ["redrive/fresh-attempts", "redrive/while-consuming"],
            SettlesOtherwise(|_, s| (s.how == Settlement::Redrive).then_some(Settlement::Release));
        "redrive-to-siblings", "a redrive is published to the topic again",
            ["redrive/siblings"],
            RepublishesCopy { when: |how| *how == Settlement::Redrive, edit: |_| {}, then: Settlement::Ack };
        "redrive-loses-headers", "a redriven message loses its headers",
            ["redrive/all", "redrive/siblings"],
            RepublishesCopy { when: |how| *how == Settlement::Redrive, edit: |p| p.headers = polybus_core::Headers::new(),
                then: Settlement::Ack };
        "redrive-new-id", "a redriven message gets a new id",
            ["redrive/again-and-again", "redrive/siblings"],
            RepublishesCopy { when: |how| *how == Settlement::Redrive, edit: |p| p.id = format!("{}r", p.id).into(),
                then: Settlement::Ack };
        "redrive-copies", "a redrive leaves the dead letter where it is",
            ["redrive/fresh-attempts"],
            RepublishesCopy { when: |how| *how == Settlement::Redrive, edit: |_| {}, then: Settlement::Release };
        "dead-letter-timeless", "dead letters do not tell when they died and how many they are",
            ["dead_letters/told"],
            HidesDeathTime;
    }
}
