//! The tables of the event log.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use polybus_core::{Result, driver::async_trait};

use super::Store;

/// A store with an event log.
///
/// # What every store keeps
/// - The events of a stream have the versions 1, 2, 3 … without gaps, and positions that rise with them.
/// - [`LogTable::read_all`] reads events in the order of their positions, and whoever goes on behind the last one that
///   was read misses none, whatever transactions append meanwhile, and in whatever order they end. Positions have gaps.
pub trait LogStore: Store {
    /// Appends to streams in the caller's transaction, all or none. Answers one by one, in their order. The streams are
    /// all different, and come in ascending order, so that two transactions lock them in one order.
    ///
    /// Where one of them is a conflict, nothing is written. The transaction can go on.
    ///
    /// A stream is locked until the transaction ends: another one that appends to it waits.
    ///
    /// # Errors
    /// `Conflict` where the transaction reads from a snapshot, and the stream was changed since.
    fn append_events(
        &self,
        conn: &mut Self::Conn,
        appends: &[StreamAppend],
    ) -> impl Future<Output = Result<Vec<AppendOutcome>>> + Send;

    /// Changes what became of a stream in the caller's transaction, if it is what it was. Answers whether it was. Until
    /// the transaction ends, others that append to the stream wait.
    fn change_stream(
        &self,
        conn: &mut Self::Conn,
        stream: &str,
        from: StreamState,
        to: StreamState,
    ) -> impl Future<Output = Result<bool>> + Send;

    /// Deletes the events of a stream below this version, and its snapshots, in the caller's transaction, which has locked
    /// the stream by an append. Answers how many events.
    fn delete_events(
        &self,
        conn: &mut Self::Conn,
        stream: &str,
        below: i64,
    ) -> impl Future<Output = Result<u64>> + Send;

    /// Moves the checkpoint of a subscription in the caller's transaction, if it is still where it was, and under the
    /// same token. Answers whether it was. Until the transaction ends, others that move it wait.
    fn move_checkpoint(
        &self,
        conn: &mut Self::Conn,
        subscription: &str,
        from: &Checkpoint,
        to: i64,
    ) -> impl Future<Output = Result<bool>> + Send;

    /// Whether the checkpoint is there, read in the transaction of [`move_checkpoint`](Self::move_checkpoint). An error
    /// or false says that the transaction was lost.
    fn is_checkpoint(
        &self,
        conn: &mut Self::Conn,
        subscription: &str,
        at: &Checkpoint,
    ) -> impl Future<Output = Result<bool>> + Send;

    /// The tables without a transaction of the caller's.
    fn log(&self) -> Arc<dyn LogTable>;
}

/// What is appended to one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamAppend {
    /// The stream.
    pub stream: String,
    /// What the stream must be.
    pub expect: StreamExpectation,
    /// At least one.
    pub events: Vec<NewLogEvent>,
}

/// What a stream must be for an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamExpectation {
    /// Anything: it is made where it is not there.
    Any,
    /// It has no event yet.
    NoStream,
    /// It has an event.
    Exists,
    /// Its last event has this version, at least 1.
    Version(i64),
}

/// An event to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewLogEvent {
    /// Its id. A stream has no id twice.
    pub id: String,
    /// Its type.
    pub kind: String,
    /// Attributes and headers, as JSON.
    pub head: String,
    /// The payload.
    pub data: Bytes,
}

/// What became of the events for one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppendOutcome {
    /// They were written.
    Appended {
        /// The version of the first one.
        first_version: i64,
        /// The position of each.
        positions: Vec<i64>,
    },
    /// They were there already, one behind the other, at the place that was expected.
    Repeated {
        /// The version of the first one.
        first_version: i64,
        /// The position of each.
        positions: Vec<i64>,
    },
    /// The stream is not what was expected, or has some of the ids already. Nothing was written to any stream.
    Conflict {
        /// The version of its last event; 0 if there is none.
        version: i64,
        /// What became of the stream.
        state: StreamState,
    },
}

/// What became of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StreamState {
    /// It can be appended to. 0 in the table.
    #[default]
    Open,
    /// It is kept, and takes no more events. 1 in the table.
    Archived,
    /// Its events were deleted but for the last one, which says so. It takes no more events. 2 in the table.
    Deleted,
}

/// A stream as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredStream {
    /// Its name.
    pub name: String,
    /// The version of its last event.
    pub version: i64,
    /// What became of it.
    pub state: StreamState,
}

impl StoredStream {
    /// A stream, for stores.
    pub fn new(name: String, version: i64, state: StreamState) -> Self {
        Self { name, version, state }
    }
}

/// An event as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its place in the log. Above 0.
    pub position: i64,
    /// Its stream.
    pub stream: String,
    /// Its place in the stream. The first one is 1.
    pub version: i64,
    /// Attributes and headers, as JSON.
    pub head: String,
    /// The payload.
    pub data: Bytes,
    /// When it was written, in microseconds since 1970.
    pub at: i64,
}

/// A state of a stream as it was. It is a cache: the events make it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSnapshot {
    /// The version of the program's type that it was written as.
    pub schema: u32,
    /// The version of the last event in it.
    pub version: i64,
    /// The state.
    pub data: Bytes,
}

/// Some events of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogPage {
    /// In the order of their positions.
    pub events: Vec<StoredEvent>,
    /// Whether there were more than were asked for.
    pub has_more: bool,
    /// How many positions are behind them that cannot be read yet: a transaction that has appended is open, and its own
    /// events might come among them. See [`LogTable::floor`]. 0 if there is none.
    pub held_back: i64,
}

/// A transaction that has appended and not ended. Events behind its first one are not read before it ends, since its own
/// might come among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFloor {
    /// How many positions were drawn behind it. An upper bound of how many events wait.
    pub behind: i64,
    /// For how long it has been open, as far as the database tells.
    pub age: Option<Duration>,
    /// Whose it is: a process' number, the application's name, the session's state, or a prepared transaction. No text of
    /// statements.
    pub who: String,
}

/// How far a subscription has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// The position of the last event that it has handled; 0 at the beginning.
    pub position: i64,
    /// Rises whenever somebody moves or stops the subscription by hand.
    pub token: i64,
}

/// A subscription as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredSubscription {
    /// Its name.
    pub name: String,
    /// How far it has come.
    pub checkpoint: Checkpoint,
    /// Why it stands still; `None` while it runs.
    pub stopped: Option<StoppedSubscription>,
}

/// Why a subscription stands still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoppedSubscription {
    /// The event that could not be handled; `None` if somebody has stopped it.
    pub at: Option<i64>,
    /// The error, or who has stopped it and why.
    pub why: String,
    /// Since when, in microseconds since 1970.
    pub since: i64,
}

impl StoredSubscription {
    /// A subscription, for stores.
    pub fn new(name: String, checkpoint: Checkpoint, stopped: Option<StoppedSubscription>) -> Self {
        Self { name, checkpoint, stopped }
    }
}

/// The tables of the event log without a transaction of the caller's.
#[async_trait]
pub trait LogTable: Send + Sync {
    /// A stream; `None` if it never was.
    async fn stream(&self, stream: &str) -> Result<Option<StoredStream>>;

    /// Events of a stream, behind this version in the direction of reading, at most `limit`.
    async fn read_stream(&self, stream: &str, read: &StreamRead) -> Result<Vec<StoredEvent>>;

    /// Events of the log behind this position, at most `limit`.
    ///
    /// # Errors
    /// `ConfigInvalid` where the database is a copy of another one that may be behind it.
    async fn read_all(&self, behind: i64, limit: u32) -> Result<LogPage>;

    /// The transaction that keeps the most events from being read; `None` where none does, and where appenders wait for
    /// each other.
    async fn floor(&self) -> Result<Option<LogFloor>>;

    /// A snapshot of this kind.
    async fn snapshot(&self, stream: &str, kind: &str) -> Result<Option<StoredSnapshot>>;

    /// Keeps a snapshot of this kind in place of another one; nothing of a stream that is deleted or not there.
    async fn put_snapshot(&self, stream: &str, kind: &str, snapshot: &StoredSnapshot) -> Result<()>;

    /// Subscriptions by name: this one, or all.
    async fn subscriptions(&self, name: Option<&str>) -> Result<Vec<StoredSubscription>>;

    /// Makes a subscription that begins behind this position, if it is not there, and answers how it stands.
    async fn make_subscription(&self, name: &str, behind: i64) -> Result<StoredSubscription>;

    /// Stops a subscription that is still at this checkpoint. Answers whether it was. Its token rises.
    async fn stop_subscription(&self, name: &str, at: &Checkpoint, why: &StoppedSubscription) -> Result<bool>;

    /// Lets a subscription go on that stands at this checkpoint, behind this position. Answers whether it did. Its token
    /// rises.
    async fn resume_subscription(&self, name: &str, at: &Checkpoint, behind: i64) -> Result<bool>;

    /// Removes a subscription. Answers whether it was there.
    async fn remove_subscription(&self, name: &str) -> Result<bool>;
}

/// Which events of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamRead {
    /// Forwards those above this version, backwards those below it.
    pub behind: i64,
    /// From the last one to the first.
    pub backwards: bool,
    /// At most so many.
    pub limit: u32,
}
