//! Marks of messages in the handler's transaction.

use std::sync::Arc;

use polybus_core::{Error, ErrorKind, Result};
use polybus_patterns::store::{InboxStore, InboxTable, Mark, MarkKey, TransactionLimits};
use sqlx::MySqlConnection;

use super::{
    MySql, MySqlTx, SYSTEM,
    control_conn::Again,
    inbox_table::Inbox,
    literals::{Value, fill},
    reading, reading_or_committing,
};
use crate::mysql_codes::{self, DUPLICATE, LOCK_WAIT};

statements! {
    MarkSql {
        // INSERT IGNORE would cut what is too long, and say nothing.
        // Behind the settings of the transaction.
        begin_marked = "@polybus_at = {now};
            INSERT INTO {inbox} (consumer, hour, `key`, at) VALUES (?1, ?2, ?3, @polybus_at)";
        is_there = "SELECT 1 FROM {inbox} WHERE consumer = ?1 AND hour = ?2 AND `key` = ?3 AND at = ?4";
        take_away = "DELETE FROM {inbox} WHERE consumer = ?1 AND hour = ?2 AND `key` = ?3 AND at = ?4";
        mark = "INSERT INTO {inbox} (consumer, hour, `key`, at) VALUES (?, ?, ?, {now})";
        is_marked = "SELECT COUNT(*) FROM {inbox} WHERE consumer = ? AND hour = ? AND `key` = ?";
    }
}

impl InboxStore for MySql {
    /// Two round trips: BEGIN, and the mark with the limits. Where three copies meet and the first one rolls back,
    /// MySQL finds a deadlock between the others: nothing has happened then, and it begins anew.
    async fn begin_marked(&self, key: &MarkKey, limits: &TransactionLimits) -> Result<(MySqlTx, Mark)> {
        let sql = self.statements().await?;
        let is_mariadb = self.server().await?.is_mariadb;
        let values = [i64::from(key.consumer).into(), i64::from(key.hour).into(), Value::Bytes(&key.key)];
        let mark = fill(sql.mark.begin_marked.as_str(), &values);
        let mut again = Again::default();
        loop {
            let mut tx = self.begin().await?;
            match tx.mark(*key, &mark, limits, is_mariadb).await {
                Ok(()) => return Ok((tx, Mark::First)),
                Err(error) if mysql_codes::number(&error) == Some(DUPLICATE) => return Ok((tx, Mark::Duplicate)),
                Err(error) => {
                    let error = of_mark(error, reading("inbox.mark"));
                    tx.rollback().await?;
                    if !again.after(&error).await {
                        return Err(error);
                    }
                }
            }
        }
    }

    async fn mark(&self, conn: &mut MySqlConnection, key: &MarkKey) -> Result<Mark> {
        let sql = self.statements().await?;
        let failed = reading_or_committing(conn, "inbox.mark");
        let insert = sqlx::query(sql.mark.mark.clone()).bind(key.consumer).bind(key.hour).bind(&key.key[..]);
        match insert.execute(conn).await {
            Ok(_) => Ok(Mark::First),
            Err(error) if mysql_codes::number(&error) == Some(DUPLICATE) => Ok(Mark::Duplicate),
            Err(error) => Err(of_mark(error, failed)),
        }
    }

    async fn is_marked(&self, conn: &mut MySqlConnection, key: &MarkKey) -> Result<bool> {
        let sql = self.statements().await?;
        let select =
            sqlx::query_scalar(sql.mark.is_marked.clone()).bind(key.consumer).bind(key.hour).bind(&key.key[..]);
        let marks: i64 = select.fetch_one(conn).await.map_err(reading("inbox.is_marked"))?;
        Ok(marks > 0)
    }

    fn commit_proves_mark(tx: &MySqlTx, key: &MarkKey) -> bool {
        tx.has_marked(key)
    }

    fn inbox(&self) -> Arc<dyn InboxTable> {
        Arc::new(Inbox(self.clone()))
    }
}

/// An error of the mark: what ended the wait for another transaction says so.
fn of_mark(error: sqlx::Error, failed: impl Fn(sqlx::Error) -> Error) -> Error {
    match ended_by_a_limit(&error) {
        true => Error::new(ErrorKind::Unavailable, "another transaction that handles this message takes longer")
            .of_driver(SYSTEM, "inbox.mark")
            .with_context("mark", "busy")
            .with_source(error),
        false => failed(error),
    }
}

/// Whether a limit ended a wait for a lock: one for locks, or one for the whole statement.
pub(super) fn ended_by_a_limit(error: &sqlx::Error) -> bool {
    matches!(mysql_codes::number(error), Some(LOCK_WAIT | 1317 | 1969 | 3024))
}
