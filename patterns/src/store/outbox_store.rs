//! The outbox' tables.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use polybus_core::{Result, driver::async_trait};

use super::Store;

/// The number of slots. A key is always in the same one, and each has one relay at a time. It is part of the schema: a
/// producer and a relay that disagreed would split a key.
pub const SLOTS: i16 = 16;

/// A store with an outbox.
pub trait OutboxStore: Store {
    /// Writes rows in the caller's transaction, with ids that rise in the order of `rows`.
    fn insert(&self, conn: &mut Self::Conn, rows: &[NewRow]) -> impl Future<Output = Result<()>> + Send;

    /// The same as SQL text and values, for a client that this store does not know.
    fn insert_statement(&self, row: &NewRow) -> impl Future<Output = Result<OutboxRow>> + Send;

    /// The tables as the relay and the administration see them.
    fn outbox(&self) -> Arc<dyn OutboxTable>;
}

/// A row to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRow {
    /// 0 to [`SLOTS`] − 1.
    pub slot: i16,
    /// Where the message goes: `queue:payments`, `topic:order-events`.
    pub address: String,
    /// The ordering key, bytes that may hold U+0000.
    pub key: Option<Bytes>,
    /// Attributes and headers of the message, as JSON.
    pub head: String,
    /// The payload.
    pub data: Bytes,
    /// How long the row waits before it is published. Zero for at once.
    pub delay: Duration,
}

impl NewRow {
    /// The bytes that count against limits: head and payload.
    pub fn size(&self) -> usize {
        self.head.len() + self.data.len()
    }
}

/// A statement that writes one row, for any client of the database.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct OutboxRow {
    /// The INSERT, with the placeholders of the database: `$1` … on PostgreSQL, `?1` … on SQLite.
    pub sql: String,
    /// The values, in the order of the placeholders.
    pub values: Vec<SqlValue>,
}

impl OutboxRow {
    /// A statement and its values.
    pub fn new(sql: impl Into<String>, values: Vec<SqlValue>) -> Self {
        Self { sql: sql.into(), values }
    }
}

/// A value of an [`OutboxRow`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum SqlValue {
    /// A SQL NULL, of the type BYTEA or BLOB.
    Null,
    /// A whole number: SMALLINT or BIGINT.
    Integer(i64),
    /// Text.
    Text(String),
    /// Bytes: BYTEA or BLOB.
    Bytes(Bytes),
}

/// One row, told from a later one that got the same id after a failover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowId {
    /// The id.
    pub id: i64,
    /// When the row was written, in microseconds by the database's clock.
    pub created_at: i64,
}

/// A row as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRow {
    /// Which row.
    pub id: RowId,
    /// Its slot.
    pub slot: i16,
    /// The ordering key.
    pub key: Option<Bytes>,
    /// Attributes and headers, as JSON.
    pub head: String,
    /// The payload.
    pub data: Bytes,
    /// How often it failed in a way that counts.
    pub attempts: u32,
}

/// Which rows to read: always the first ones.
#[derive(Clone, Debug)]
pub struct ReadRows<'a> {
    /// The slots.
    pub slots: &'a [i16],
    /// The address.
    pub address: &'a str,
    /// Keys that are left out for now, beside those that the table itself holds.
    pub held_keys: &'a [Bytes],
    /// Rows that are left out for now.
    pub held_rows: &'a [i64],
    /// The most rows of one slot.
    pub rows_per_slot: u32,
    /// The most bytes of heads and payloads together. The first row comes however large it is.
    pub max_bytes: usize,
}

/// The due rows: what was moved, and when the next ones are due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DueRows {
    /// How many rows were moved into their slots.
    pub moved: u64,
    /// How long until the next row is due; `None` if none waits.
    pub next: Option<Duration>,
}

/// How much waits in the outbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutboxStats {
    /// Rows that may be published now, counted up to the cap that was asked for.
    pub ready: u64,
    /// Rows that are not due yet, counted up to the cap.
    pub scheduled: u64,
    /// Parked rows, counted up to the cap.
    pub parked: u64,
    /// For how long the oldest row could have been published, counted from when it was due.
    pub oldest_age: Option<Duration>,
}

/// A row that can never be sent as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParkedRow {
    /// Its id. It keeps it when it is retried.
    pub id: i64,
    /// Where it was to go.
    pub address: String,
    /// Its ordering key.
    pub key: Option<Bytes>,
    /// Attributes and headers, as JSON.
    pub head: String,
    /// The payload.
    pub data: Bytes,
    /// Why it was parked: an error, or `expired`.
    pub reason: String,
    /// Whether it holds its key up: later rows of the key wait until this one is retried or discarded.
    pub holds_key: bool,
    /// When it was parked, in microseconds since 1970 by the database's clock.
    pub parked_at: i64,
}

impl ParkedRow {
    /// A parked row, for stores.
    #[allow(clippy::too_many_arguments, reason = "one for each column")]
    pub fn new(
        id: i64,
        address: String,
        key: Option<Bytes>,
        head: String,
        data: Bytes,
        reason: String,
        holds_key: bool,
        parked_at: i64,
    ) -> Self {
        Self { id, address, key, head, data, reason, holds_key, parked_at }
    }
}

/// Which parked rows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParkedFilter {
    /// All.
    All,
    /// Those with these ids.
    Ids(Vec<i64>),
    /// Those of this address.
    Address(String),
    /// Those whose reason begins with this text.
    Reason(String),
}

/// The outbox' tables as the relay and the administration see them.
///
/// Every call is a transaction of its own.
#[async_trait]
pub trait OutboxTable: Send + Sync {
    /// The addresses that have rows in these slots, each with the slot, without those that are paused. The number of
    /// rows must not matter.
    async fn addresses(&self, slots: &[i16]) -> Result<Vec<(i16, String)>>;

    /// Reads the first rows, in the order of their ids. Rows of held keys are left out, both those of the request and
    /// those that [`park`](Self::park) holds. A paused address has none.
    ///
    /// The rows of one slot come from one snapshot, so whoever sees the second message of a key sees the first.
    async fn read(&self, request: &ReadRows<'_>) -> Result<Vec<StoredRow>>;

    /// Deletes rows that were published. A row that is not there with that id and time is left alone. Answers how many
    /// were there.
    async fn delete(&self, rows: &[RowId]) -> Result<u64>;

    /// Moves a row to the parked ones. With `hold_key`, later rows of its key wait until it is retried or discarded.
    /// Does nothing if the row is not there any more.
    async fn park(&self, row: RowId, reason: &str, hold_key: bool) -> Result<()>;

    /// Counts a failed attempt.
    async fn record_failure(&self, row: RowId, error: &str) -> Result<()>;

    /// Moves up to `limit` due rows into their slots.
    async fn promote_due(&self, limit: u32) -> Result<DueRows>;

    /// Counts what waits, each number up to `cap`, so that a large backlog costs no scan.
    async fn stats(&self, cap: u32) -> Result<OutboxStats>;

    /// Parked rows with ids above `after`, in the order of their ids.
    async fn parked(&self, filter: &ParkedFilter, after: i64, limit: u32) -> Result<Vec<ParkedRow>>;

    /// Puts parked rows back, under their old ids. Answers how many.
    async fn retry_parked(&self, filter: &ParkedFilter) -> Result<u64>;

    /// Deletes parked rows. Answers how many.
    async fn discard_parked(&self, filter: &ParkedFilter) -> Result<u64>;

    /// Stops or resumes the publishing to an address, in all relays, within their polling interval.
    async fn set_paused(&self, address: &str, paused: bool) -> Result<()>;

    /// The addresses that are paused.
    async fn paused(&self) -> Result<Vec<String>>;
}
