//! The faults, each with the scenarios that must notice it.

use super::fault::StoreFault;

/// A fault, and who notices it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SeededFault {
    /// The promise that is broken.
    pub fault: StoreFault,
    /// The scenarios that must fail under it, on every store that they run on.
    pub caught_by: &'static [&'static str],
}

macro_rules! faults {
    ($($fault:ident: [$($by:literal),* $(,)?];)*) => {
        vec![$(SeededFault { fault: StoreFault::$fault, caught_by: &[$($by),*] }),*]
    };
}

/// All faults.
pub fn seeded_faults() -> Vec<SeededFault> {
    faults! {
        ReadDeletes: ["outbox/missing-address", "outbox/reads-from-the-front"];
        RunningCursor: ["outbox/commits-behind", "outbox/missing-address", "outbox/reads-from-the-front"];
        DeletesById: ["outbox/deletes-by-id-and-time"];
        MiscountsDeletes: ["outbox/lease-lost"];
        ReadsHeldKeys: ["outbox/held-key", "outbox/reads-no-held"];
        ReadsHeldRows: ["outbox/reads-no-held"];
        ReadsTooMuch: ["outbox/reads-so-many-bytes"];
        NoLargeRow: ["outbox/reads-so-many-bytes"];
        WrongOrder: ["outbox/order-of-a-batch", "outbox/reads-from-the-front", "outbox/outside"];
        WrongSlot: ["outbox/reads-from-the-front"];
        ParkDrops: ["outbox/parked-pages", "outbox/key-goes-on"];
        RetriesAsNew: ["outbox/retry"];
        CountsNoFailure: ["outbox/failures"];
        DueAtOnce: ["outbox/due-soon", "outbox/due"];
        NoCap: ["outbox/stats", "inbox/sweep-limit"];
        IgnoresPauses: ["outbox/pause", "outbox/addresses"];
        InsertsOutside: ["outbox/with-effects", "inbox/with-the-outbox"];
        RenewsForAll: ["leases/one-owner", "leases/run-out"];
        TakesHeldLeases: ["leases/one-owner", "leases/contended", "outbox/two-terms"];
        ReleasesNothing: ["leases/one-owner"];
        CountsNoMembers: ["leases/members", "outbox/relays-share"];
        MarksInTwoSteps: ["inbox/eight-consumers"];
        MarksInAnotherTransaction: ["inbox/error", "inbox/panic"];
        MarksAfterwards: ["inbox/eight-consumers", "inbox/copy-waits"];
        AlwaysMarked: ["inbox/another-transaction"];
        CommitsNothing: ["outbox/committed", "inbox/workers", "inbox/dropped-calls"];
        JudgesNothing: ["inbox/contention", "inbox/contention-known"];
        NeverAway: ["inbox/outage", "inbox/real-outage"];
        SweepsYoungMarks: ["inbox/retention"];
        SweepsWithoutLimit: ["inbox/sweep-limit", "sequence/forgotten", "sequence/numbers-forgotten"];
        OneNumber: ["inbox/another-consumer", "inbox/one-source", "inbox/sweep-limit"];
        DrawsAnew: ["sequence/numbers", "sequence/rolled-back", "sequence/transactions-wait"];
        DrawsForOneKey: ["sequence/numbers", "sequence/byte-exact-keys"];
        DrawsForOneAddress: ["sequence/numbers"];
        UndoesNoDraw: ["sequence/not-written"];
        DrawsUnsorted: ["sequence/other-way-round"];
        TellsNoBusyKey: ["sequence/long-handlers"];
        AdvancesOutside: ["sequence/one-after-the-other"];
        AlwaysNext: ["sequence/gap-and-late", "sequence/stopped", "sequence/flow"];
        ForgetsMissing: ["sequence/gap-and-late", "sequence/flow"];
        WritesProgressOutside: ["sequence/failed-handler"];
        OneProgress: ["sequence/apart"];
        KnowsNoNext: ["sequence/held"];
        AlwaysNews: ["sequence/stopped"];
        GapsFromTheFront: ["sequence/gaps-in-pages"];
        SweepsYoungNumbers: ["sequence/forgotten", "sequence/numbers-forgotten", "sequence/stopped-is-remembered"];
        NotifiesNobody: ["outbox/notify"];
        VerifiesNothing: ["outbox/tables"];
    }
}
