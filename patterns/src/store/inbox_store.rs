//! The inbox' tables.

use std::{future::Future, sync::Arc, time::Duration};

use polybus_core::{Result, driver::async_trait};

use super::Store;

/// A store with an inbox.
pub trait InboxStore: Store {
    /// Begins a transaction and marks the message in it, in as few round trips as the database allows.
    ///
    /// A copy whose mark is under way in another transaction waits for its end, at most `limits.mark_wait`, and sees
    /// its outcome, also a rollback.
    ///
    /// # Errors
    /// `Unavailable` and Safe, with the context `mark=busy`, where the other transaction takes longer.
    fn begin_marked(
        &self,
        key: &MarkKey,
        limits: &TransactionLimits,
    ) -> impl Future<Output = Result<(Self::Tx, Mark)>> + Send;

    /// Marks the message in a transaction that is there already.
    fn mark(&self, conn: &mut Self::Conn, key: &MarkKey) -> impl Future<Output = Result<Mark>> + Send;

    /// Whether the mark is there, read in the transaction that wrote it. An error or false says that the transaction
    /// was lost.
    fn is_marked(&self, conn: &mut Self::Conn, key: &MarkKey) -> impl Future<Output = Result<bool>> + Send;

    /// Whether [`commit`](Store::commit) of this transaction fails where it has lost the mark, so that nobody needs to
    /// read it back. The error has the context `transaction=lost` then. Default: no.
    fn commit_proves_mark(tx: &Self::Tx, key: &MarkKey) -> bool {
        let _ = (tx, key);
        false
    }

    /// The tables without a transaction of the caller's.
    fn inbox(&self) -> Arc<dyn InboxTable>;
}

/// Whether a message was marked before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "a duplicate must not be handled again"]
pub enum Mark {
    /// It is marked now, and was not before.
    First,
    /// It was marked before.
    Duplicate,
}

/// The mark of one message for one consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MarkKey {
    /// The consumer's number: see [`InboxTable::register`].
    pub consumer: i32,
    /// The hour of the message's time, in hours since 1970; 0 where it has none. All copies of a message share it. It
    /// stands in front of the key so that marks are written side by side.
    pub hour: i32,
    /// The first 16 bytes of a SHA-256 over what tells the message from others.
    pub key: [u8; 16],
}

/// The limits of a handler's transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransactionLimits {
    /// How long the mark may wait for another transaction.
    pub mark_wait: Duration,
    /// How long one statement of the handler may take; `None` without a limit. The database ends it, so that the mark
    /// of a handler that was dropped is free soon.
    pub statement_timeout: Option<Duration>,
}

impl TransactionLimits {
    /// Both limits.
    pub fn new(mark_wait: Duration, statement_timeout: Option<Duration>) -> Self {
        Self { mark_wait, statement_timeout }
    }
}

/// The inbox' tables without a transaction of the caller's.
#[async_trait]
pub trait InboxTable: Send + Sync {
    /// The number of this consumer, given at the first call and the same ever after.
    ///
    /// # Errors
    /// `ConfigInvalid` where the same name is taken by a consumer of another source: both would take each other's
    /// messages for duplicates.
    async fn register(&self, consumer: &str, source: &str) -> Result<i32>;

    /// Deletes up to `limit` marks of the consumer that were set longer ago than `older_than`. Answers how many.
    async fn sweep(&self, consumer: i32, older_than: Duration, limit: u32) -> Result<u64>;

    /// How many marks the consumer has, counted up to `cap`.
    async fn marks(&self, consumer: i32, cap: u32) -> Result<u64>;
}
