//! Reading streams, and the whole log.

use polybus_core::Result;

use super::{EventLog, LoggedEvent, append::check_stream};
use crate::store::{
    LogStore, StoredEvent, StoredStream, StreamRead,
    calls::{in_time, rows_limit},
};

/// The most events of one call.
const MAX_PAGE: u32 = 10_000;

/// Some events of the whole log.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EventPage {
    /// In the order of their positions. Go on behind the last one.
    pub events: Vec<LoggedEvent>,
    /// Whether there are more.
    pub has_more: bool,
    /// How many positions are behind them that cannot be read yet, since a transaction that has appended is open.
    pub held_back: i64,
}

impl<S: LogStore> EventLog<S> {
    /// A stream: its version, and what became of it. `None` if it never was.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that no stream can have. Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    ///
    /// ```no_run
    /// # use polybus_patterns::{log::EventLog, store::LogStore};
    /// # async fn example<S: LogStore>(log: EventLog<S>) -> polybus_core::Result<()> {
    /// if let Some(stream) = log.stream("order-7").await? {
    ///     println!("version {}", stream.version);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn stream(&self, stream: &str) -> Result<Option<StoredStream>> {
        check_stream(stream)?;
        in_time(rows_limit(&*self.store.control()), self.store.log().stream(stream)).await
    }

    /// Events of a stream above this version, at most `limit` and at most 10,000, first ones first. 0 begins at the
    /// beginning. What is not committed is not read, also in the transaction that has appended it.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that no stream can have. `Malformed` for an event that no version of polybus has
    /// written. Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    ///
    /// ```no_run
    /// # use polybus_patterns::{log::EventLog, store::LogStore};
    /// # async fn example<S: LogStore>(log: EventLog<S>) -> polybus_core::Result<()> {
    /// for event in log.read("order-7", 0, 100).await? {
    ///     println!("{} {}", event.version, event.message.event_type);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn read(&self, stream: &str, above: u64, limit: u32) -> Result<Vec<LoggedEvent>> {
        let behind = i64::try_from(above).unwrap_or(i64::MAX);
        self.read_in(stream, StreamRead { behind, backwards: false, limit: limit.min(MAX_PAGE) }).await
    }

    /// Events of a stream below this version, at most `limit` and at most 10,000, last ones first. `None` begins at the
    /// end.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    ///
    /// ```no_run
    /// # use polybus_patterns::{log::EventLog, store::LogStore};
    /// # async fn example<S: LogStore>(log: EventLog<S>) -> polybus_core::Result<()> {
    /// let last = log.read_backwards("order-7", None, 1).await?;
    /// # Ok(()) }
    /// ```
    pub async fn read_backwards(
        &self,
        stream: &str,
        below: impl Into<Option<u64>>,
        limit: u32,
    ) -> Result<Vec<LoggedEvent>> {
        let behind = below.into().and_then(|below| i64::try_from(below).ok()).unwrap_or(i64::MAX);
        self.read_in(stream, StreamRead { behind, backwards: true, limit: limit.min(MAX_PAGE) }).await
    }

    async fn read_in(&self, stream: &str, read: StreamRead) -> Result<Vec<LoggedEvent>> {
        check_stream(stream)?;
        let events = in_time(rows_limit(&*self.store.control()), self.store.log().read_stream(stream, &read)).await?;
        self.logged(events)
    }

    /// Events of the whole log behind this position, at most `limit` and at most 10,000. 0 begins at the beginning; go on
    /// behind the position of the last one that was read, and behind no other.
    ///
    /// # Errors
    /// `ConfigInvalid` on a standby of PostgreSQL, which does not know what its primary still writes. `Malformed`. Those
    /// of the database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    ///
    /// ```no_run
    /// # use polybus_patterns::{log::EventLog, store::LogStore};
    /// # async fn example<S: LogStore>(log: EventLog<S>) -> polybus_core::Result<()> {
    /// let mut behind = 0;
    /// loop {
    ///     let page = log.read_all(behind, 1000).await?;
    ///     let Some(last) = page.events.last() else { break };
    ///     behind = last.position;
    ///     println!("{} events", page.events.len());
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn read_all(&self, behind: i64, limit: u32) -> Result<EventPage> {
        let read = self.store.log();
        let page = in_time(rows_limit(&*self.store.control()), read.read_all(behind, limit.min(MAX_PAGE))).await?;
        Ok(EventPage { events: self.logged(page.events)?, has_more: page.has_more, held_back: page.held_back })
    }

    fn logged(&self, events: Vec<StoredEvent>) -> Result<Vec<LoggedEvent>> {
        events.into_iter().map(|event| LoggedEvent::of(event, &self.types)).collect()
    }
}
