//! Consumers, and the marks that are too old.

use std::time::Duration;

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{InboxTable, micros};

use super::{Sqlite, reading, write_queue::Turn};
use crate::{consumer::same_source, swept::MICROS_PER_HOUR};

statements! {
    InboxSql {
        consumer = "SELECT id, source FROM {consumer} WHERE name = ?1";
        register = "INSERT INTO {consumer} (name, source) VALUES (?1, ?2) ON CONFLICT (name) DO NOTHING";
        old = "SELECT {now} - ?1";
        // When a mark was set decides. Those that were not set in the hour of their message have an index by that. Of the
        // others the hour narrows down which can be old enough, and those before the first hour are gone.
        sweep = "DELETE FROM {inbox} WHERE (consumer, hour, key) IN (
            SELECT consumer, hour, key FROM (
                SELECT * FROM (
                    SELECT consumer, hour, key FROM {inbox} INDEXED BY \"{prefix}inbox_odd\"
                    WHERE consumer = ?1 AND abs(hour - at / 3600000000) > 1 AND at < ?2
                    ORDER BY at LIMIT ?3)
                UNION ALL
                SELECT * FROM (
                    SELECT consumer, hour, key FROM {inbox}
                    WHERE consumer = ?1 AND abs(hour - at / 3600000000) <= 1 AND at < ?2
                        AND hour >= ?4 AND hour <= ?2 / 3600000000 + 1
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
        let old = sqlx::query_scalar(sql.inbox.old.clone()).bind(micros(older_than));
        let old: i64 = old.fetch_one(&mut *tx).await.map_err(reading(OPERATION))?;
        let from = self.0.0.swept.first_hour(consumer, older_than);
        let delete = sqlx::query(sql.inbox.sweep.clone()).bind(consumer).bind(old).bind(limit).bind(from);
        let gone = delete.execute(&mut *tx).await.map_err(reading(OPERATION))?.rows_affected();
        tx.commit().await?;
        if gone < u64::from(limit) {
            self.0.0.swept.all_before(consumer, older_than, old / MICROS_PER_HOUR);
        }
        Ok(gone)
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
