//! Consumers, and the marks that are too old.

use std::time::Duration;

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{InboxTable, micros};

use super::{Postgres, reading};
use crate::consumer::same_source;

statements! {
    InboxSql {
        consumer = "SELECT id, source FROM {consumer} WHERE name = $1";
        register = "INSERT INTO {consumer} (name, source) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
        // When a mark was set decides. Those that were not set in the hour of their message have an index by that. Of the
        // others the hour narrows down which can be old enough, and those before the first hour are gone.
        sweep = "WITH old AS MATERIALIZED (SELECT {now} - $2::bigint AS at),
            gone AS (DELETE FROM {inbox} WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM (
                    (SELECT ctid FROM {inbox} i
                    WHERE i.consumer = $1 AND abs(i.hour - i.at / 3600000000) > 1 AND i.at < (SELECT at FROM old)
                    ORDER BY i.at LIMIT $3::bigint)
                    UNION ALL
                    (SELECT ctid FROM {inbox} i
                    WHERE i.consumer = $1 AND abs(i.hour - i.at / 3600000000) <= 1 AND i.at < (SELECT at FROM old)
                        AND i.hour >= $4::bigint AND i.hour <= (SELECT at / 3600000000 + 1 FROM old)
                    ORDER BY i.hour LIMIT $3::bigint)
                ) o LIMIT $3::bigint)) RETURNING 1)
            SELECT (SELECT count(*) FROM gone), (SELECT at / 3600000000 FROM old)";
        marks = "SELECT count(*) FROM (SELECT 1 FROM {inbox} WHERE consumer = $1 LIMIT $2::bigint) m";
    }
}

pub(super) struct Inbox(pub(super) Postgres);

#[async_trait]
impl InboxTable for Inbox {
    async fn register(&self, consumer: &str, source: &str) -> Result<i32> {
        const OPERATION: &str = "inbox.register";
        let sql = self.0.statements().await?;
        let mut conn = self.0.control_conn(OPERATION).await?;
        // The INSERT alone would draw a number at each start.
        for register in [true, false] {
            let known: Option<(i32, String)> = sqlx::query_as(sql.inbox.consumer.clone())
                .bind(consumer)
                .fetch_optional(&mut *conn)
                .await
                .map_err(conn.reading())?;
            if let Some(known) = known {
                return same_source(known, consumer, source);
            }
            if register {
                let insert = sqlx::query(sql.inbox.register.clone()).bind(consumer).bind(source);
                insert.execute(&mut *conn).await.map_err(conn.committing())?;
            }
        }
        Err(reading(OPERATION)(sqlx::Error::RowNotFound))
    }

    async fn sweep(&self, consumer: i32, older_than: Duration, limit: u32) -> Result<u64> {
        const OPERATION: &str = "inbox.sweep";
        let sql = self.0.statements().await?;
        let mut conn = self.0.control_conn(OPERATION).await?;
        let from = self.0.0.swept.first_hour(consumer, older_than);
        let delete = sqlx::query_as(sql.inbox.sweep.clone())
            .bind(consumer)
            .bind(micros(older_than))
            .bind(i64::from(limit))
            .bind(from);
        let (gone, hour): (i64, i64) = delete.fetch_one(&mut *conn).await.map_err(conn.committing())?;
        let gone = gone.unsigned_abs();
        if gone < u64::from(limit) {
            self.0.0.swept.all_before(consumer, older_than, hour);
        }
        Ok(gone)
    }

    async fn marks(&self, consumer: i32, cap: u32) -> Result<u64> {
        const OPERATION: &str = "inbox.marks";
        let sql = self.0.statements().await?;
        let mut conn = self.0.control_conn(OPERATION).await?;
        let select = sqlx::query_scalar(sql.inbox.marks.clone()).bind(consumer).bind(i64::from(cap));
        let marks: i64 = select.fetch_one(&mut *conn).await.map_err(conn.reading())?;
        Ok(marks.unsigned_abs())
    }
}
