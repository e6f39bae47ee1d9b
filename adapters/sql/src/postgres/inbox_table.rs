//! Consumers, and the marks that are too old.

use std::time::Duration;

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{InboxTable, micros};

use super::{Postgres, committing, reading};
use crate::consumer::same_source;

statements! {
    InboxSql {
        consumer = "SELECT id, source FROM {consumer} WHERE name = $1";
        register = "INSERT INTO {consumer} (name, source) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
        // The hour is that of the message. It narrows down what can be old enough; when the mark was set decides. Hours
        // far ahead are those of a producer whose clock was wrong.
        sweep = "DELETE FROM {inbox} WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM (
                (SELECT ctid FROM {inbox} i, (SELECT {now} AS now) c
                WHERE i.consumer = $1 AND i.hour <= (c.now - $2::bigint) / 3600000000 AND i.at < c.now - $2::bigint
                ORDER BY i.hour LIMIT $3::bigint)
                UNION ALL
                (SELECT ctid FROM {inbox} i, (SELECT {now} AS now) c
                WHERE i.consumer = $1 AND i.hour > c.now / 3600000000 + 24 AND i.at < c.now - $2::bigint
                ORDER BY i.hour LIMIT $3::bigint)
            ) old LIMIT $3::bigint))";
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
                .map_err(reading(OPERATION))?;
            if let Some(known) = known {
                return same_source(known, consumer, source);
            }
            if register {
                let insert = sqlx::query(sql.inbox.register.clone()).bind(consumer).bind(source);
                insert.execute(&mut *conn).await.map_err(committing(OPERATION))?;
            }
        }
        Err(reading(OPERATION)(sqlx::Error::RowNotFound))
    }

    async fn sweep(&self, consumer: i32, older_than: Duration, limit: u32) -> Result<u64> {
        const OPERATION: &str = "inbox.sweep";
        let sql = self.0.statements().await?;
        let mut conn = self.0.control_conn(OPERATION).await?;
        let delete =
            sqlx::query(sql.inbox.sweep.clone()).bind(consumer).bind(micros(older_than)).bind(i64::from(limit));
        delete.execute(&mut *conn).await.map(|done| done.rows_affected()).map_err(committing(OPERATION))
    }

    async fn marks(&self, consumer: i32, cap: u32) -> Result<u64> {
        const OPERATION: &str = "inbox.marks";
        let sql = self.0.statements().await?;
        let mut conn = self.0.control_conn(OPERATION).await?;
        let select = sqlx::query_scalar(sql.inbox.marks.clone()).bind(consumer).bind(i64::from(cap));
        let marks: i64 = select.fetch_one(&mut *conn).await.map_err(reading(OPERATION))?;
        Ok(marks.unsigned_abs())
    }
}
