//! The event log.
//!
//! Positions are drawn from a sequence, so transactions that append do not wait for each other, and may end in another
//! order than that of their positions. Each holds an advisory lock in share mode until it ends, whose number is its
//! floor: the last position before its first one. Readers read up to the lowest floor.

mod append;
mod read;
mod subscriptions;

use std::sync::Arc;

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{
    AppendOutcome, Checkpoint, LogFloor, LogPage, LogStore, LogTable, StoppedSubscription, StoredEvent, StoredSnapshot,
    StoredStream, StoredSubscription, StreamAppend, StreamRead, StreamState,
};
use sqlx::PgConnection;

use super::Postgres;

/// The statements of the log.
#[derive(Debug)]
pub(super) struct LogSql {
    append: append::AppendSql,
    read: read::ReadSql,
    subscriptions: subscriptions::SubscriptionSql,
}

impl LogSql {
    pub(super) fn new(names: &crate::names::Names) -> Self {
        Self {
            append: append::AppendSql::new(names),
            read: read::ReadSql::new(names),
            subscriptions: subscriptions::SubscriptionSql::new(names),
        }
    }
}

impl LogStore for Postgres {
    async fn append_events(&self, conn: &mut PgConnection, appends: &[StreamAppend]) -> Result<Vec<AppendOutcome>> {
        append::append(self, conn, appends).await
    }

    async fn change_stream(
        &self,
        conn: &mut PgConnection,
        stream: &str,
        from: StreamState,
        to: StreamState,
    ) -> Result<bool> {
        append::change_stream(self, conn, stream, (from, to)).await
    }

    async fn delete_events(&self, conn: &mut PgConnection, stream: &str, below: i64) -> Result<u64> {
        append::delete_events(self, conn, stream, below).await
    }

    async fn move_checkpoint(
        &self,
        conn: &mut PgConnection,
        subscription: &str,
        from: &Checkpoint,
        to: i64,
    ) -> Result<bool> {
        subscriptions::advance(self, conn, subscription, from, to).await
    }

    async fn is_checkpoint(&self, conn: &mut PgConnection, subscription: &str, at: &Checkpoint) -> Result<bool> {
        subscriptions::is_at(self, conn, subscription, at).await
    }

    fn log(&self) -> Arc<dyn LogTable> {
        Arc::new(Log(self.clone()))
    }
}

struct Log(Postgres);

#[async_trait]
impl LogTable for Log {
    async fn stream(&self, stream: &str) -> Result<Option<StoredStream>> {
        read::stream(&self.0, stream).await
    }

    async fn read_stream(&self, stream: &str, read: &StreamRead) -> Result<Vec<StoredEvent>> {
        read::read_stream(&self.0, stream, read).await
    }

    async fn read_all(&self, behind: i64, limit: u32) -> Result<LogPage> {
        read::read_all(&self.0, behind, limit).await
    }

    async fn floor(&self) -> Result<Option<LogFloor>> {
        read::floor(&self.0).await
    }

    async fn snapshot(&self, stream: &str, kind: &str) -> Result<Option<StoredSnapshot>> {
        read::snapshot(&self.0, stream, kind).await
    }

    async fn put_snapshot(&self, stream: &str, kind: &str, snapshot: &StoredSnapshot) -> Result<()> {
        read::put_snapshot(&self.0, stream, kind, snapshot).await
    }

    async fn subscriptions(&self, name: Option<&str>) -> Result<Vec<StoredSubscription>> {
        subscriptions::list(&self.0, name).await
    }

    async fn make_subscription(&self, name: &str, behind: i64) -> Result<StoredSubscription> {
        subscriptions::make(&self.0, name, behind).await
    }

    async fn stop_subscription(&self, name: &str, at: &Checkpoint, why: &StoppedSubscription) -> Result<bool> {
        subscriptions::stop(&self.0, name, at, why).await
    }

    async fn resume_subscription(&self, name: &str, at: &Checkpoint, behind: i64) -> Result<bool> {
        subscriptions::resume(&self.0, name, at, behind).await
    }

    async fn remove_subscription(&self, name: &str) -> Result<bool> {
        subscriptions::remove(&self.0, name).await
    }
}
