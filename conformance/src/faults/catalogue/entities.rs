//! Faults of entities, counts and connections, with the scenarios that notice them.

use std::sync::Arc;

use crate::faults::{
    Fault,
    behaviours::entities::{
        CloseFails, DeclareRaces, DeclaresWrongly, DeletesNothing, MiscountsStats, MissingIsEmpty, PurgeMiscounts,
        PurgesNothing,
    },
};

pub(super) fn all() -> Vec<Fault> {
    faults! {
        "stats-ready-lies", "one ready message too many is told",
            ["filters/by-the-broker", "publish/counted-when-ok", "time/expired"],
            MiscountsStats(|s| s.ready = s.ready.map(|n| n + 1));
        "stats-in-flight-lies", "no message is ever told to be in flight",
            ["lifecycle/stats"],
            MiscountsStats(|s| s.in_flight = s.in_flight.map(|_| 0));
        "stats-delayed-lies", "delayed messages are told to be ready",
            ["lifecycle/stats"],
            MiscountsStats(|s| {
                s.ready = s.ready.map(|n| n + s.delayed.unwrap_or(0));
                s.delayed = s.delayed.map(|_| 0);
            });
        "stats-dead-lies", "no dead letter is ever told of",
            ["redrive/fresh-attempts", "redrive/while-consuming"],
            MiscountsStats(|s| s.dead_lettered = s.dead_lettered.map(|_| 0));
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
            DeclaresWrongly::Changing;
        "declare-silent", "declare tells of no difference",
            ["topology/changed-ordered"],
            DeclaresWrongly::Silent;
        "declare-twice-fails", "declare refuses what is there already",
            ["topology/changed-max-deliveries", "topology/declare-twice", "topology/physical-name"],
            DeclaresWrongly::Twice;
        "declare-races", "two declares at once: the second fails",
            ["topology/eight-processes"],
            DeclareRaces::default();
        "declare-forgets-topics", "declare makes no topics",
            ["filters/none", "pubsub/nobody-listens", "topology/verify-clean"],
            DeclaresWrongly::NoTopics;
        "declare-overclaims", "declare says it made what was there",
            ["topology/declare", "topology/longest-names"],
            DeclaresWrongly::AllCreated;
        "verify-silent", "verify does not look",
            ["topology/verify-drift", "topology/verify-missing"],
            DeclaresWrongly::VerifySilent;
        "verify-creates", "verify makes what is missing",
            [
                "topology/delete", "topology/deleted-while-consuming", "topology/verify-drift",
                "topology/verify-missing",
            ],
            DeclaresWrongly::VerifyCreating;
        "delete-does-nothing", "delete leaves everything",
            [
                "publish/deleted-then-missing", "publish/deleted-under-way", "retry/deleted-target",
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
