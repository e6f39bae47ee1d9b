//! Consumers, and the marks that are too old.

use std::time::Duration;

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{InboxTable, micros};

use super::{Sqlite, reading, write_queue::Turn};
use crate::consumer::same_source;

statements! {
    InboxSql {
        consumer = "SELECT id, source FROM {consumer} WHERE name = ?1";
        register = "INSERT INTO {consumer} (name, source) VALUES (?1, ?2) ON CONFLICT (name) DO NOTHING";
        // The hour is that of the message. It narrows down what can be old enough; when the mark was set decides. Hours
        // far ahead are those of a producer whose clock was wrong.
        sweep = "DELETE FROM {inbox} WHERE (consumer, hour, key) IN (
            SELECT consumer, hour, key FROM (
                SELECT * FROM (
                    SELECT consumer, hour, key FROM {inbox}
                    WHERE consumer = ?1 AND hour <= ({now} - ?2) / 3600000000 AND at < {now} - ?2
                    ORDER BY hour LIMIT ?3)
                UNION ALL
                SELECT * FROM (
                    SELECT consumer, hour, key FROM {inbox}
                    WHERE consumer = ?1 AND hour > {now} / 3600000000 + 24 AND at < {now} - ?2
                    ORDER BY hour LIMIT ?3)
            ) LIMIT ?3)";
        marks = "SELECT count(*) FROM (SELECT 1 FROM {inbox} WHERE consumer = ?1 LIMIT ?2)";
    }
}

pub(super) struct Inbox(pub(super) Sqlite);

#[async_trait]
impl InboxTable for Inbox {
    async fn register(&self, consumer: &str, source: &str) -> Result<i32> {
        const OPERATION: &str = "inbox.register";
        let sql = self.0.statements()?;
        let known = async || -> Result<Option<(i32, String)>> {
            let mut conn = self.0.reader(OPERATION).await?;
            let select = sqlx::query_as(sql.inbox.consumer.clone()).bind(consumer);
            select.fetch_optional(&mut *conn).await.map_err(reading(OPERATION))
        };
        if let Some(known) = known().await? {
            return same_source(known, consumer, source);
        }
        let mut tx = self.0.begin_in_turn(Turn::Normal, OPERATION).await?;
        let insert = sqlx::query(sql.inbox.register.clone()).bind(consumer).bind(source);
        insert.execute(&mut *tx).await.map_err(reading(OPERATION))?;
        tx.commit().await?;
        let known = known().await?.ok_or_else(|| reading(OPERATION)(sqlx::Error::RowNotFound))?;
        same_source(known, consumer, source)
    }

    async fn sweep(&self, consumer: i32, older_than: Duration, limit: u32) -> Result<u64> {
        const OPERATION: &str = "inbox.sweep";
        let sql = self.0.statements()?;
        let mut tx = self.0.begin_in_turn(Turn::Normal, OPERATION).await?;
        let delete = sqlx::query(sql.inbox.sweep.clone()).bind(consumer).bind(micros(older_than)).bind(limit);
        let done = delete.execute(&mut *tx).await.map_err(reading(OPERATION))?;
        tx.commit().await?;
        Ok(done.rows_affected())
    }

    async fn marks(&self, consumer: i32, cap: u32) -> Result<u64> {
        const OPERATION: &str = "inbox.marks";
        let sql = self.0.statements()?;
        let mut conn = self.0.reader(OPERATION).await?;
        let select = sqlx::query_scalar(sql.inbox.marks.clone()).bind(consumer).bind(cap);
        let marks: i64 = select.fetch_one(&mut *conn).await.map_err(reading(OPERATION))?;
        Ok(marks.unsigned_abs())
    }
}
