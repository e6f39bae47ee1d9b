//! Promises that a store can break.

/// One broken promise. The layer around the store breaks it: see `layer/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreFault {
    /// Rows are deleted as they are read, before they are published.
    ReadDeletes,
    /// A read goes on behind the last row it gave, in place of beginning at the front.
    RunningCursor,
    /// A row is deleted by its id, whatever its time.
    DeletesById,
    /// A delete says that all its rows were there.
    MiscountsDeletes,
    /// Held keys are read.
    ReadsHeldKeys,
    /// Held rows are read.
    ReadsHeldRows,
    /// The limit of bytes is not kept.
    ReadsTooMuch,
    /// The first row does not come if it is larger than the limit.
    NoLargeRow,
    /// Rows come in the wrong order.
    WrongOrder,
    /// Rows come with another slot.
    WrongSlot,
    /// A row that is parked is gone.
    ParkDrops,
    /// A parked row comes back under a new id.
    RetriesAsNew,
    /// A failed attempt is not counted.
    CountsNoFailure,
    /// A row is due at once.
    DueAtOnce,
    /// Every number of rows is counted to its end.
    NoCap,
    /// Paused addresses are named.
    IgnoresPauses,
    /// Rows are written outside the caller's transaction.
    InsertsOutside,
    /// Leases are renewed for whoever asks.
    RenewsForAll,
    /// Leases that others hold are given out.
    TakesHeldLeases,
    /// Releasing does nothing.
    ReleasesNothing,
    /// Every member is told that it is alone.
    CountsNoMembers,
    /// A mark is looked for, and then written: two statements, and nothing unique.
    MarksInTwoSteps,
    /// The mark is committed before the handler runs.
    MarksInAnotherTransaction,
    /// The mark is written when the handler's transaction is committed.
    MarksAfterwards,
    /// A mark is always found at the read-back.
    AlwaysMarked,
    /// A commit is answered Ok and rolls back.
    CommitsNothing,
    /// No error says anything about the database.
    JudgesNothing,
    /// The database is never away.
    NeverAway,
    /// Marks are swept whatever their age.
    SweepsYoungMarks,
    /// The limit of a sweep is not kept.
    SweepsWithoutLimit,
    /// Numbers are drawn from 1 in each call.
    DrawsAnew,
    /// All keys draw from one counter.
    DrawsForOneKey,
    /// All addresses draw from one counter.
    DrawsForOneAddress,
    /// A draw whose messages were not written stays.
    UndoesNoDraw,
    /// Every other draw locks its keys the other way round.
    DrawsUnsorted,
    /// Nobody is told that it was a limit that ended a wait for a key.
    TellsNoBusyKey,
    /// A key moves on in another transaction.
    AdvancesOutside,
    /// Every number is the one that comes next.
    AlwaysNext,
    /// What is missing is forgotten.
    ForgetsMissing,
    /// How far a key has come is written outside the handler's transaction.
    WritesProgressOutside,
    /// All consumers come as far as each other.
    OneProgress,
    /// Nobody knows which number comes next.
    KnowsNoNext,
    /// It is always news that a key stands still.
    AlwaysNews,
    /// Every page of what is missing is the first.
    GapsFromTheFront,
    /// Numbers, and how far keys have come, are swept whatever their age.
    SweepsYoungNumbers,
    /// All consumers get the same number.
    OneNumber,
    /// Other processes are not told.
    NotifiesNobody,
    /// Tables that are missing are verified.
    VerifiesNothing,
    /// A claim answers the latest jobs of a queue.
    ClaimsFromTheBack,
    /// A claim answers its jobs the other way round.
    ClaimsBackwards,
    /// A claim takes one job more than it was asked for.
    ClaimsTooMany,
    /// A claim that finds too few jobs takes those of other queues.
    ClaimsFromOtherQueues,
    /// Jobs that were claimed are claimed once more.
    ClaimsTwice,
    /// A paused queue is claimed from.
    ClaimsPausedQueues,
    /// Each claim is the first attempt.
    CountsNoAttempt,
    /// The end of a run is written whatever attempt it was, and its lease is renewed.
    NoFenceByAttempt,
    /// The same whoever the worker was.
    NoFenceByWorker,
    /// The same after the job was taken from its worker and waits again.
    NoFenceAfterRescue,
    /// What a job has brought is dropped.
    DropsResults,
    /// Why a job failed is dropped.
    DropsErrors,
    /// A job that is completed waits again.
    CompletedStays,
    /// A job that failed runs again at once.
    RunsAgainAtOnce,
    /// A job that was given back waits behind the others.
    LosesItsPlace,
    /// An attempt that was given back has counted.
    CountsWhatWasGivenBack,
    /// An attempt that failed does not count.
    CountsNoFailedRun,
    /// A job that somebody has cancelled runs again.
    RunsAgainThoughCancelled,
    /// The end of a run waits for whoever holds the row.
    SettleWaits,
    /// A row that somebody holds is said to be lost.
    SettleSaysLost,
    /// Every lease is renewed.
    ExtendSaysHeld,
    /// A sign of life waits for whoever holds the row.
    ExtendWaits,
    /// Nobody is told that his job was cancelled.
    ExtendTellsNoCancel,
    /// A sign of life does not change the lease.
    ExtendsNothing,
    /// Everybody is told that his progress is written.
    ProgressSaysHeld,
    /// Jobs are taken from workers that live.
    RescuesLive,
    /// A job is rescued after its last attempt too.
    RescuesForEver,
    /// A job that was cancelled is rescued to run again.
    RescuesCancelled,
    /// A lease far ahead is believed.
    RescueBelievesClocks,
    /// No job's time comes.
    PromotesNothing,
    /// Every job's time has come.
    PromotesTooEarly,
    /// Nobody is told when the next job is due.
    PromoteTellsNoNext,
    /// Jobs are written outside the caller's transaction.
    WritesJobsOutside,
    /// Jobs get their ids the other way round.
    WritesJobsBackwards,
    /// A job may run at once, whatever it was written for.
    JobsDueAtOnce,
    /// A unique key is looked for, and then written: two statements, and nothing unique.
    UniqueInTwoSteps,
    /// A unique key is taken outside the caller's transaction.
    UniqueOutside,
    /// A job that waits is found, and not kept from being claimed until the transaction that has found it ends.
    FindsWithoutHolding,
    /// A key that is taken until the start is taken until the end.
    KeyStaysAtStart,
    /// A key that is taken until the end is taken until the start.
    KeyGoesAtStart,
    /// A key that is taken until the end stays taken.
    KeyStaysAtEnd,
    /// A key that is taken for a time is taken until the end.
    KeyGoesAtEnd,
    /// A job is finished before its handler's transaction begins.
    FinishesBefore,
    /// A job is finished after its handler's transaction was committed.
    FinishesAfterwards,
    /// A transaction begins though the claim was lost.
    FinishesLostClaims,
    /// A job is always found among the finished ones at the read-back.
    AlwaysFinished,
    /// Every page of jobs is the first.
    JobsFromTheFront,
    /// Jobs are listed whatever their queue, kind and error.
    ListsAllJobs,
    /// A job that is retried has another id.
    RetriesJobsAsNew,
    /// Completed jobs are retried when nobody named them.
    RetriesCompleted,
    /// A job is retried beside the one that has its unique key.
    RetriesDespiteKeys,
    /// A running job cannot be cancelled.
    CancelSparesRunning,
    /// Jobs are discarded without an error.
    DiscardTellsNothing,
    /// Jobs that wait are deleted with the finished ones.
    DeletesWaiting,
    /// Jobs are counted to their end.
    CountsAllJobs,
    /// Finished jobs are deleted whatever their age.
    PrunesYoung,
    /// All finished jobs are kept for as long as completed ones.
    PrunesByOneSpan,
    /// A schedule is written whatever its version.
    ScheduleWithoutVersion,
    /// The jobs of a schedule are written though its version is another one.
    ScheduleJobsAnyway,
    /// A schedule's jobs are written after it, in another transaction.
    ScheduleJobsApart,
    /// A schedule forgets its last job.
    ScheduleForgetsJobs,
    /// The last job of a schedule is never finished.
    ScheduleAlwaysUnfinished,
    /// A schedule takes its jobs with it.
    ScheduleTakesJobs,
}
