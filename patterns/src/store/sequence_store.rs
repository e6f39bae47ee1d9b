//! The tables of sequence numbers: how far a producer has counted, and how far a consumer has come.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use polybus_core::{Result, driver::async_trait};

use super::Store;

/// A store with sequence numbers.
pub trait SequenceStore: Store {
    /// Draws numbers in the caller's transaction, for each key as many as are asked for. The first one of a key is 1.
    /// Answers the last number of each key, in the order of `keys`.
    ///
    /// A key is locked until the transaction ends: another one that draws for it waits. The keys are all different and
    /// come in ascending order, so that two transactions lock them in one order.
    fn draw(
        &self,
        conn: &mut Self::Conn,
        address: &str,
        keys: &[(Bytes, i64)],
    ) -> impl Future<Output = Result<Vec<i64>>> + Send;

    /// Undoes the draw for these keys, and what was written in the transaction after it. It is called where a statement
    /// failed behind a draw, or the draw itself. Where that ended the whole transaction nothing may be written: its
    /// numbers are gone with it, and a statement would commit by itself.
    fn undo_draw(
        &self,
        conn: &mut Self::Conn,
        address: &str,
        keys: &[(Bytes, i64)],
    ) -> impl Future<Output = Result<()>> + Send;

    /// The messages of the last draw are written. Default: nothing is to be done.
    fn keep_draw(&self, conn: &mut Self::Conn) -> impl Future<Output = Result<()>> + Send {
        let _ = conn;
        std::future::ready(Ok(()))
    }

    /// Moves a key on by one if `n` is the number that comes next, and answers whether it is. Until the transaction
    /// ends, others that ask for the key wait.
    ///
    /// # Errors
    /// `Unavailable` and Safe, with the context `sequence=busy`, where a wait for another transaction takes too long.
    /// The same of [`lock_progress`](Self::lock_progress).
    fn advance(&self, conn: &mut Self::Conn, key: &GuardKey, n: i64) -> impl Future<Output = Result<bool>> + Send;

    /// Locks a key until the transaction ends, and answers how far it has come. One that is not known yet is written
    /// down with `of`, and has come nowhere.
    fn lock_progress(
        &self,
        conn: &mut Self::Conn,
        key: &GuardKey,
        of: &GuardedKey<'_>,
    ) -> impl Future<Output = Result<StoredProgress>> + Send;

    /// Writes how far a key has come, which this transaction has locked. It stands still no more.
    fn write_progress(
        &self,
        conn: &mut Self::Conn,
        key: &GuardKey,
        progress: &StoredProgress,
    ) -> impl Future<Output = Result<()>> + Send;

    /// The tables without a transaction of the caller's.
    fn sequences(&self) -> Arc<dyn SequenceTable>;
}

/// A key of messages, as one consumer sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GuardKey {
    /// The consumer's number: see [`InboxTable::register`](super::InboxTable::register).
    pub consumer: i32,
    /// The first 16 bytes of a SHA-256 over what is in [`GuardedKey`].
    pub key: [u8; 16],
}

/// What a [`GuardKey`] stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardedKey<'a> {
    /// The source of the messages, as their attribute has it: two producers count apart.
    pub source: &'a str,
    /// The ordering key.
    pub key: &'a str,
}

/// How far a key has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredProgress {
    /// The lowest number that came.
    pub first: i64,
    /// One above the highest number that came.
    pub next: i64,
    /// The numbers between them that did not, in a form that the store does not read; empty where there are none.
    /// `None` for a key of which nothing came.
    pub missing: Option<String>,
    /// What else is remembered, in a form that the store does not read.
    pub aside: String,
    /// Where it was last noted that the key stands still; 0 if it does not.
    pub told_at: i64,
}

/// A key of which numbers are missing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredGap {
    /// Which key.
    pub key: [u8; 16],
    /// The source of its messages.
    pub source: String,
    /// The ordering key.
    pub okey: String,
    /// How far it has come.
    pub progress: StoredProgress,
}

impl StoredGap {
    /// A gap, for stores.
    pub fn new(key: [u8; 16], source: String, okey: String, progress: StoredProgress) -> Self {
        Self { key, source, okey, progress }
    }
}

/// The tables of sequence numbers without a transaction of the caller's.
#[async_trait]
pub trait SequenceTable: Send + Sync {
    /// The number that comes next for the key, as far as it is committed; `None` for a key of which nothing came.
    async fn next(&self, key: &GuardKey) -> Result<Option<i64>>;

    /// Notes that the key stands at `next`, and answers whether that is news. So one process tells it, once. A key that
    /// is not known yet is written down, and has come nowhere. A key that stands still, and of which messages come, is
    /// not swept.
    async fn note_stopped(&self, key: &GuardKey, of: &GuardedKey<'_>, next: i64) -> Result<bool>;

    /// The consumer's keys of which numbers are missing, behind this one, in the order of [`GuardKey::key`].
    async fn gaps(&self, consumer: i32, after: Option<[u8; 16]>, limit: u32) -> Result<Vec<StoredGap>>;

    /// Deletes up to `limit` of the consumer's keys that nothing came of for longer than this. Answers how many.
    async fn sweep_progress(&self, consumer: i32, older_than: Duration, limit: u32) -> Result<u64>;

    /// Deletes up to `limit` keys for which no number was drawn for longer than this: the next one is 1 again. Answers
    /// how many.
    async fn sweep_numbers(&self, older_than: Duration, limit: u32) -> Result<u64>;
}

/// [`SequenceStore`] for those who know the store, but not that it has numbers.
#[async_trait]
pub(crate) trait AnySequences<S: Store>: Send + Sync {
    async fn draw(&self, conn: &mut S::Conn, address: &str, keys: &[(Bytes, i64)]) -> Result<Vec<i64>>;
    async fn undo_draw(&self, conn: &mut S::Conn, address: &str, keys: &[(Bytes, i64)]) -> Result<()>;
    async fn keep_draw(&self, conn: &mut S::Conn) -> Result<()>;
    async fn advance(&self, conn: &mut S::Conn, key: &GuardKey, n: i64) -> Result<bool>;
    async fn lock_progress(&self, conn: &mut S::Conn, key: &GuardKey, of: &GuardedKey<'_>) -> Result<StoredProgress>;
    async fn write_progress(&self, conn: &mut S::Conn, key: &GuardKey, progress: &StoredProgress) -> Result<()>;
    fn sequences(&self) -> Arc<dyn SequenceTable>;
}

#[async_trait]
impl<S: SequenceStore> AnySequences<S> for S {
    async fn draw(&self, conn: &mut S::Conn, address: &str, keys: &[(Bytes, i64)]) -> Result<Vec<i64>> {
        SequenceStore::draw(self, conn, address, keys).await
    }

    async fn undo_draw(&self, conn: &mut S::Conn, address: &str, keys: &[(Bytes, i64)]) -> Result<()> {
        SequenceStore::undo_draw(self, conn, address, keys).await
    }

    async fn keep_draw(&self, conn: &mut S::Conn) -> Result<()> {
        SequenceStore::keep_draw(self, conn).await
    }

    async fn advance(&self, conn: &mut S::Conn, key: &GuardKey, n: i64) -> Result<bool> {
        SequenceStore::advance(self, conn, key, n).await
    }

    async fn lock_progress(&self, conn: &mut S::Conn, key: &GuardKey, of: &GuardedKey<'_>) -> Result<StoredProgress> {
        SequenceStore::lock_progress(self, conn, key, of).await
    }

    async fn write_progress(&self, conn: &mut S::Conn, key: &GuardKey, progress: &StoredProgress) -> Result<()> {
        SequenceStore::write_progress(self, conn, key, progress).await
    }

    fn sequences(&self) -> Arc<dyn SequenceTable> {
        SequenceStore::sequences(self)
    }
}
