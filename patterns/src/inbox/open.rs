//! The inbox inside a transaction of one's own.

use polybus_core::{Envelope, Error, Result};

use super::{engine::Engine, key::mark_key};
use crate::{
    sequence::{Guard, Numbered, SequenceFinding, SequenceGap, guard_key},
    store::{GuardedKey, InboxStore, Mark},
    telemetry,
};

/// Marks messages in transactions that the application begins and ends. [`Inbox::open`](super::Inbox::open) makes it.
///
/// ```no_run
/// # use polybus_core::{Delivery, Result, Source};
/// # use polybus_patterns::{Inbox, Mark, inbox::OpenInbox, store::InboxStore};
/// # async fn example<S: InboxStore>(db: S, inbox: OpenInbox<S>, delivery: Delivery) -> Result<(), Box<dyn std::error::Error>> {
/// let mut tx = db.begin().await?;
/// if inbox.once(&mut tx, delivery.envelope()).await? == Mark::First {
///     // … the application's own statements on `tx` …
///     inbox.commit(tx, delivery.envelope()).await?;
/// }
/// delivery.ack().await?;
/// # Ok(()) }
/// ```
pub struct OpenInbox<S> {
    engine: Engine<S>,
    consumer: i32,
}

impl<S: Clone> Clone for OpenInbox<S> {
    fn clone(&self) -> Self {
        Self { engine: self.engine.clone(), consumer: self.consumer }
    }
}

impl<S: InboxStore> OpenInbox<S> {
    pub(super) fn new(engine: Engine<S>, consumer: i32) -> Self {
        Self { engine, consumer }
    }

    /// Marks the message in this transaction. With [`Mark::Duplicate`] it was handled before: acknowledge it.
    ///
    /// A copy that is under way elsewhere is waited for. A message that cannot be told from others
    /// ([no id](Envelope::id_is_made_up), and no [`key_by`](super::Inbox::key_by)) is always `First`.
    ///
    /// # Errors
    /// Those of the database.
    ///
    /// # Cancel safety
    /// As that of a statement of the database client: dropped in the middle, roll the transaction back.
    ///
    /// ```no_run
    /// # use polybus_core::{Envelope, Result};
    /// # use polybus_patterns::{Mark, inbox::OpenInbox, store::InboxStore};
    /// # async fn example<S: InboxStore>(db: S, inbox: OpenInbox<S>, message: Envelope) -> Result<()> {
    /// let mut tx = db.begin().await?;
    /// match inbox.once(&mut tx, &message).await? {
    ///     // … the application's own statements on `tx` …
    ///     Mark::First => inbox.commit(tx, &message).await?,
    ///     // Nothing was written, and the transaction is dropped.
    ///     Mark::Duplicate => println!("{} was handled before", message.id),
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn once(&self, conn: &mut S::Conn, message: &Envelope) -> Result<Mark> {
        let name = &*self.engine.settings.consumer;
        let Some(key) = mark_key(self.consumer, message, self.engine.settings.key_by.as_deref()) else {
            telemetry::inbox_messages(name, "unmarked");
            return Ok(Mark::First);
        };
        let mark = self.engine.store.mark(conn, &key).await?;
        telemetry::inbox_messages(name, if mark == Mark::First { "first" } else { "duplicate" });
        Ok(mark)
    }

    /// Takes the message's number in, in this transaction, and answers what it says: see
    /// [`sequence_guard`](super::Inbox::sequence_guard). Call it after [`once`](Self::once) has answered `First`, in a
    /// transaction of `store.begin()`: at the isolation level repeatable read, MySQL lets two keys that are new lock
    /// each other out.
    ///
    /// The guard's policies are yours here: it does not wait, and makes no dead letters. Nothing is told in the log;
    /// the findings hold when the transaction is committed.
    ///
    /// # Errors
    /// `InvalidArgument` for an inbox without a guard. Those of the database.
    ///
    /// # Cancel safety
    /// As that of a statement of the database client: dropped in the middle, roll the transaction back.
    ///
    /// ```no_run
    /// # use polybus_core::{Envelope, Result};
    /// # use polybus_patterns::{inbox::OpenInbox, store::InboxStore};
    /// # async fn example<S: InboxStore>(tx: &mut S::Tx, inbox: OpenInbox<S>, message: Envelope) -> Result<()> {
    /// for finding in inbox.follow(tx, &message).await? {
    ///     println!("{finding:?}");
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn follow(&self, conn: &mut S::Conn, message: &Envelope) -> Result<Vec<SequenceFinding>> {
        let guard = self.guard()?;
        let Some(numbered) = Numbered::of(self.consumer, message) else { return Ok(Vec::new()) };
        guard.take(conn, &numbered).await
    }

    /// Waits no more for the numbers of a key up to `through`: they are lost for good. A key that stands still at them
    /// goes on behind them.
    ///
    /// # Errors
    /// `InvalidArgument` for an inbox without a guard. Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future may leave it either way.
    ///
    /// ```no_run
    /// # use polybus_patterns::{inbox::OpenInbox, store::InboxStore};
    /// # async fn example<S: InboxStore>(inbox: OpenInbox<S>) -> polybus_core::Result<()> {
    /// for gap in inbox.gaps(None, 100).await? {
    ///     inbox.skip(&gap.source, &gap.key, gap.next - 1).await?;
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn skip(&self, source: &str, key: &str, through: u64) -> Result<()> {
        let guard = self.guard()?;
        let through = i64::try_from(through).unwrap_or(i64::MAX - 1).min(i64::MAX - 1);
        let of = GuardedKey { source, key };
        let mut tx = self.engine.store.begin().await?;
        guard.skip(&mut tx, guard_key(self.consumer, of), of, through).await?;
        S::commit(tx).await
    }

    /// The keys of which numbers are missing now, page by page: those behind this place.
    ///
    /// # Errors
    /// `InvalidArgument` for an inbox without a guard. Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    ///
    /// ```no_run
    /// # use polybus_patterns::{inbox::OpenInbox, store::InboxStore};
    /// # async fn example<S: InboxStore>(inbox: OpenInbox<S>) -> polybus_core::Result<()> {
    /// for gap in inbox.gaps(None, 100).await? {
    ///     println!("{}: {:?}", gap.key, gap.missing);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn gaps(&self, after: Option<[u8; 16]>, limit: u32) -> Result<Vec<SequenceGap>> {
        self.guard()?.gaps(self.consumer, after, limit).await
    }

    fn guard(&self) -> Result<&Guard<S>> {
        let text = "the inbox has no guard: give it one with Inbox::sequence_guard";
        self.engine.guard.as_deref().ok_or_else(|| Error::invalid(text))
    }

    /// Reads the mark back and commits. Use it instead of the database client's own commit, which may answer `Ok`
    /// though the transaction was lost to an error.
    ///
    /// # Errors
    /// `Unexpected` if the transaction was lost: nothing was written, so do not acknowledge. Those of the database:
    /// with [`MayDuplicate`](polybus_core::RetrySafety::MayDuplicate) it may be committed, and the next copy finds out.
    ///
    /// # Cancel safety
    /// Dropped in the middle, the transaction may or may not be committed.
    ///
    /// ```no_run
    /// # use polybus_core::{Delivery, SettleError};
    /// # use polybus_patterns::{inbox::OpenInbox, store::InboxStore};
    /// # type Ended = Result<(), SettleError>;
    /// # async fn example<S: InboxStore>(tx: S::Tx, inbox: OpenInbox<S>, delivery: Delivery) -> Ended {
    /// match inbox.commit(tx, delivery.envelope()).await {
    ///     Ok(()) => delivery.ack().await,
    ///     // It is not written, or nobody knows. The mark tells the next copy.
    ///     Err(e) => {
    ///         println!("{e}");
    ///         delivery.retry_after(std::time::Duration::from_secs(1)).await
    ///     }
    /// }
    /// # }
    /// ```
    pub async fn commit(&self, tx: S::Tx, message: &Envelope) -> Result<()> {
        let key = mark_key(self.consumer, message, self.engine.settings.key_by.as_deref());
        self.engine.commit(tx, key.as_ref(), message).await
    }
}
