//! Marks of messages in the handler's transaction.

use std::sync::Arc;

use polybus_core::Result;
use polybus_patterns::store::{InboxStore, InboxTable, Mark, MarkKey, TransactionLimits};
use sqlx::SqliteConnection;

use super::{Sqlite, SqliteTx, inbox_table::Inbox, reading, reading_or_committing};

statements! {
    MarkSql {
        mark = "INSERT INTO {inbox} (consumer, hour, key, at) VALUES (?1, ?2, ?3, {now}) ON CONFLICT DO NOTHING";
        is_marked = "SELECT EXISTS (SELECT 1 FROM {inbox} WHERE consumer = ?1 AND hour = ?2 AND key = ?3)";
    }
}

impl InboxStore for Sqlite {
    /// A copy that is under way has the right to write, so its end was waited for in the queue. The limits have nothing
    /// to limit: a statement holds no lock that another transaction waits for.
    async fn begin_marked(&self, key: &MarkKey, _limits: &TransactionLimits) -> Result<(SqliteTx, Mark)> {
        let mut tx = self.begin().await?;
        let mark = self.mark(&mut tx, key).await?;
        Ok((tx, mark))
    }

    async fn mark(&self, conn: &mut SqliteConnection, key: &MarkKey) -> Result<Mark> {
        self.ready_on(conn).await?;
        let sql = self.statements()?;
        let insert = sqlx::query(sql.mark.mark.clone()).bind(key.consumer).bind(key.hour).bind(&key.key[..]);
        let failed = reading_or_committing(conn, "inbox.mark");
        let done = insert.execute(conn).await.map_err(failed)?;
        Ok(if done.rows_affected() == 0 { Mark::Duplicate } else { Mark::First })
    }

    async fn is_marked(&self, conn: &mut SqliteConnection, key: &MarkKey) -> Result<bool> {
        let sql = self.statements()?;
        let select =
            sqlx::query_scalar(sql.mark.is_marked.clone()).bind(key.consumer).bind(key.hour).bind(&key.key[..]);
        select.fetch_one(conn).await.map_err(reading("inbox.is_marked"))
    }

    fn inbox(&self) -> Arc<dyn InboxTable> {
        Arc::new(Inbox(self.clone()))
    }
}
