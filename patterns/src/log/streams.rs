//! The end of streams: archived, or deleted behind a tombstone.

use polybus_core::{Envelope, Error, ErrorKind, Result};

use super::{Append, Appended, EventLog, Expect, append::check_stream};
use crate::store::{LogStore, StreamState};

/// The type of the event that a deleted stream ends with.
pub const STREAM_DELETED: &str = "polybus.stream.deleted";

impl<S: LogStore> EventLog<S> {
    /// Archives a stream in the caller's transaction: it is read as before, and takes no more events. Answers whether it
    /// took some until now.
    ///
    /// # Errors
    /// `InvalidArgument`: the connection is not in a transaction, or a name that no stream can have. Those of the
    /// database.
    ///
    /// # Cancel safety
    /// That of [`append`](Self::append).
    ///
    /// ```no_run
    /// # use polybus_patterns::{log::EventLog, store::LogStore};
    /// # async fn example<S: LogStore>(db: S, log: EventLog<S>) -> polybus_core::Result<()> {
    /// let mut tx = db.begin().await?;
    /// log.archive(&mut tx, "order-7").await?;
    /// S::commit(tx).await?;
    /// # Ok(()) }
    /// ```
    pub async fn archive(&self, conn: &mut S::Conn, stream: &str) -> Result<bool> {
        self.change_state(conn, stream, StreamState::Open, StreamState::Archived).await
    }

    /// Lets an archived stream take events again. Answers whether it was archived.
    ///
    /// # Errors
    /// Those of [`archive`](Self::archive).
    ///
    /// # Cancel safety
    /// That of [`append`](Self::append).
    ///
    /// ```no_run
    /// # use polybus_patterns::{log::EventLog, store::LogStore};
    /// # async fn example<S: LogStore>(db: S, log: EventLog<S>) -> polybus_core::Result<()> {
    /// let mut tx = db.begin().await?;
    /// log.reopen(&mut tx, "order-7").await?;
    /// S::commit(tx).await?;
    /// # Ok(()) }
    /// ```
    pub async fn reopen(&self, conn: &mut S::Conn, stream: &str) -> Result<bool> {
        self.change_state(conn, stream, StreamState::Archived, StreamState::Open).await
    }

    /// Deletes the events of a stream in the caller's transaction, also of an archived one. What is left is a tombstone,
    /// an event of the type [`STREAM_DELETED`], by which subscriptions learn of it. The stream takes no more events, and
    /// its name is not used again.
    ///
    /// A subscription that has not come to the events yet does not see them any more. Copies elsewhere (projections,
    /// messages, backups) are yours to delete.
    ///
    /// # Errors
    /// Those of [`append`](Self::append): `Conflict` where the stream is not what was expected, is not there, or is
    /// deleted already.
    ///
    /// # Cancel safety
    /// That of [`append`](Self::append).
    ///
    /// ```no_run
    /// # use polybus_patterns::{log::{EventLog, Expect}, store::LogStore};
    /// # async fn example<S: LogStore>(db: S, log: EventLog<S>) -> polybus_core::Result<()> {
    /// let mut tx = db.begin().await?;
    /// log.delete(&mut tx, "customer-7", Expect::Exists).await?;
    /// S::commit(tx).await?;
    /// # Ok(()) }
    /// ```
    pub async fn delete(&self, conn: &mut S::Conn, stream: &str, expect: Expect) -> Result<Appended> {
        let was_archived = self.change_state(conn, stream, StreamState::Archived, StreamState::Open).await?;
        let expect = if expect == Expect::Any { Expect::Exists } else { expect };
        let tombstone = Append::to(stream).expect(expect).message(Envelope::new(STREAM_DELETED, "{}"));
        let appended = match self.append(conn, tombstone).await {
            Ok(appended) => appended,
            Err(e) => {
                // The transaction may go on, with the stream as it was. Where it cannot, this fails as well.
                if was_archived && e.kind() == ErrorKind::Conflict {
                    self.change_state(conn, stream, StreamState::Open, StreamState::Archived).await?;
                }
                return Err(e);
            }
        };
        let version = i64::try_from(appended.version).unwrap_or(i64::MAX);
        self.store.delete_events(conn, stream, version).await.map_err(|e| e.with_operation("delete"))?;
        if !self.change_state(conn, stream, StreamState::Open, StreamState::Deleted).await? {
            let text = "the stream was changed within its own transaction: roll it back";
            return Err(Error::new(ErrorKind::Unexpected, text).with_operation("delete"));
        }
        Ok(appended)
    }

    async fn change_state(&self, conn: &mut S::Conn, stream: &str, from: StreamState, to: StreamState) -> Result<bool> {
        check_stream(stream)?;
        if !S::in_transaction(conn) {
            return Err(Error::invalid("a stream is changed outside a transaction: begin one"));
        }
        self.store.change_stream(conn, stream, from, to).await
    }
}
