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
}
