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

/// All faults but those of jobs.
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

/// The faults of jobs and schedules.
pub fn seeded_job_faults() -> Vec<SeededFault> {
    faults! {
        ClaimsFromTheBack: ["jobs/rescue", "jobs/claim-order", "jobs/again-at-once"];
        ClaimsBackwards: ["jobs/written-alone", "jobs/written-with-effects", "jobs/written-in-order"];
        ClaimsTooMany: ["jobs/claim-limit", "jobs/counts", "jobs/list-pages"];
        ClaimsFromOtherQueues: ["jobs/other-queues", "jobs/paused"];
        ClaimsTwice: ["jobs/claim-limit", "jobs/claim-shared", "jobs/paused"];
        ClaimsPausedQueues: ["jobs/queues", "jobs/paused"];
        CountsNoAttempt: ["jobs/again", "jobs/rescue-last-attempt"];
        NoFenceByAttempt: ["jobs/settle-many", "jobs/fence-attempt"];
        NoFenceByWorker: ["jobs/fence-worker"];
        NoFenceAfterRescue: ["jobs/fence-rescued"];
        DropsResults: ["jobs/data", "jobs/finish-committed", "jobs/ends"];
        DropsErrors: ["jobs/data", "jobs/ends", "jobs/again"];
        CompletedStays: ["jobs/ends", "jobs/settle-many", "jobs/fence-finished"];
        RunsAgainAtOnce: ["jobs/again-later", "jobs/settle-many"];
        LosesItsPlace: ["jobs/unique-started", "jobs/finish-lost", "jobs/again"];
        CountsWhatWasGivenBack: ["jobs/again", "jobs/settle-many"];
        CountsNoFailedRun: ["jobs/again", "jobs/again-later", "jobs/settle-many"];
        RunsAgainThoughCancelled: ["jobs/again-cancelled", "jobs/again-later", "jobs/unique-done-by-others"];
        SettleWaits: ["jobs/settle-busy"];
        SettleSaysLost: ["jobs/settle-busy"];
        ExtendSaysHeld: ["jobs/extend", "jobs/fence-unknown", "jobs/fence-worker"];
        ExtendWaits: ["jobs/extend-locked"];
        ExtendTellsNoCancel: ["jobs/extend-cancelled"];
        ExtendsNothing: ["jobs/extend", "jobs/extend-cancelled", "jobs/outlives-leases"];
        ProgressSaysHeld: ["jobs/progress", "jobs/fence-unknown", "jobs/fence-worker"];
        RescuesLive: ["jobs/rescue-limit", "jobs/rescue-clock-set-back", "jobs/outlives-leases"];
        RescuesForEver: ["jobs/rescue-last-attempt", "jobs/rescue-mixed", "jobs/unique-done-by-others"];
        RescuesCancelled: ["jobs/rescue-cancelled", "jobs/rescue-mixed", "jobs/unique-done-by-others"];
        RescueBelievesClocks: ["jobs/rescue-clock-set-back"];
        PromotesNothing: ["jobs/delayed", "jobs/due-soon", "jobs/promote-order"];
        PromotesTooEarly: ["jobs/delayed", "jobs/due-soon", "jobs/promote-order"];
        PromoteTellsNoNext: ["jobs/promote-order"];
        WritesJobsOutside: ["jobs/written-with-effects", "jobs/finish-writes-jobs"];
        WritesJobsBackwards: ["jobs/written-alone", "jobs/written-with-effects", "jobs/written-in-order"];
        JobsDueAtOnce: ["jobs/retry-scheduled", "jobs/counts", "jobs/delayed"];
        UniqueInTwoSteps: ["jobs/unique-in-one-call", "jobs/unique-retry"];
        UniqueOutside: ["jobs/unique-rolled-back", "jobs/unique-in-one-call", "jobs/unique-for"];
        FindsWithoutHolding: ["jobs/unique-held"];
        KeyStaysAtStart: ["jobs/unique-started"];
        KeyGoesAtStart: ["jobs/unique-done", "jobs/unique-retry", "jobs/unique-done-by-others"];
        KeyStaysAtEnd: ["jobs/prune-keys", "jobs/unique-done", "jobs/unique-retry"];
        KeyGoesAtEnd: ["jobs/unique-for", "jobs/prune-keys"];
        FinishesBefore: ["jobs/finish-rolled-back", "jobs/finish-writes-jobs"];
        FinishesAfterwards: ["jobs/finish-committed", "jobs/finish-read-back", "jobs/fence-unknown"];
        FinishesLostClaims: ["jobs/finish-committed", "jobs/finish-read-back", "jobs/fence-unknown"];
        AlwaysFinished: ["jobs/finish-read-back"];
        JobsFromTheFront: ["jobs/list-pages"];
        ListsAllJobs: ["jobs/list-filters"];
        RetriesJobsAsNew: ["jobs/retry", "jobs/unique-retry"];
        RetriesCompleted: ["jobs/retry-completed", "jobs/retry"];
        RetriesDespiteKeys: ["jobs/unique-retry"];
        CancelSparesRunning: ["jobs/extend-cancelled", "jobs/rescue-cancelled", "jobs/cancel"];
        DiscardTellsNothing: ["jobs/discard"];
        DeletesWaiting: ["jobs/delete", "jobs/by-filter"];
        CountsAllJobs: ["jobs/counts-cap"];
        PrunesYoung: ["jobs/prune"];
        PrunesByOneSpan: ["jobs/prune"];
        ScheduleWithoutVersion: ["jobs/schedule-raced", "jobs/schedule-version"];
        ScheduleJobsAnyway: ["jobs/schedule-raced", "jobs/schedule-version"];
        ScheduleJobsApart: ["jobs/schedule", "jobs/schedule-unfinished"];
        ScheduleForgetsJobs: ["jobs/schedule", "jobs/schedule-unfinished"];
        ScheduleAlwaysUnfinished: ["jobs/schedule-unfinished"];
        ScheduleTakesJobs: ["jobs/schedule-removed", "jobs/schedule-version"];
    }
}
