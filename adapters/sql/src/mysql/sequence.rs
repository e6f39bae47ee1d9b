//! Numbers of keys, in the caller's transaction.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use polybus_core::{Error, Result};
use polybus_patterns::store::{GuardKey, GuardedKey, SequenceStore, SequenceTable, StoredProgress};
use sqlx::{AssertSqlSafe, MySqlConnection, raw_sql};

use super::{
    MySql, SYSTEM,
    control_conn::{decoded, text},
    inbox::ended_by_a_limit,
    literals::{Value, byte_strings, fill},
    reading, reading_or_committing,
    sequence_table::Sequences,
};
use crate::sequence::in_their_order;

statements! {
    SequenceSql {
        // One round trip. The rows are those that this transaction has locked, also where it reads from a snapshot.
        draw = "?4INSERT INTO {sequence} (address, okey, n, used_at) VALUES ?1
            ON DUPLICATE KEY UPDATE n = n + VALUES(n), used_at = VALUES(used_at);
            SELECT okey, n FROM {sequence} WHERE address = ?2 AND okey IN (?3)";
        drawn = "(?1, ?2, ?3, {now})";
        advance = "UPDATE {sequence_progress} SET next_n = next_n + 1, seen_at = {now}
            WHERE consumer = ? AND `key` = ? AND next_n = ? AND missing IS NOT NULL";
        make = "INSERT INTO {sequence_progress} (consumer, `key`, source, okey, first_n, next_n, seen_at)
            VALUES (?, ?, ?, ?, 0, 0, {now}) ON DUPLICATE KEY UPDATE consumer = consumer";
        lock = "SELECT first_n, next_n, missing, aside, told_at FROM {sequence_progress}
            WHERE consumer = ? AND `key` = ? FOR UPDATE";
        write = "UPDATE {sequence_progress}
            SET first_n = ?, next_n = ?, missing = ?, aside = ?, told_at = 0, seen_at = {now}
            WHERE consumer = ? AND `key` = ?";
    }
}

/// The most keys of one statement.
const KEYS: usize = 500;

impl SequenceStore for MySql {
    async fn draw(&self, conn: &mut MySqlConnection, address: &str, keys: &[(Bytes, i64)]) -> Result<Vec<i64>> {
        const OPERATION: &str = "sequence.draw";
        let sql = self.statements().await?;
        let failed = reading_or_committing(conn, OPERATION);
        let mut drawn: HashMap<Vec<u8>, i64> = HashMap::new();
        for (n, keys) in keys.chunks(KEYS).enumerate() {
            // What fails behind it may be undone, and the transaction go on. A transaction that was ended has none.
            let savepoint = if n == 0 { "SAVEPOINT polybus_draw; " } else { "" };
            let row = |(key, count): &(Bytes, i64)| {
                fill(sql.sequence.drawn.as_str(), &[address.into(), Value::Bytes(key), (*count).into()])
            };
            let rows: Vec<String> = keys.iter().map(row).collect();
            let names = byte_strings(keys.iter().map(|(key, _)| &key[..]));
            let rows = rows.join(", ");
            let values = [Value::Sql(&rows), address.into(), Value::Sql(&names), Value::Sql(savepoint)];
            let draw = raw_sql(AssertSqlSafe(fill(sql.sequence.draw.as_str(), &values)));
            let rows = draw.fetch_all(&mut *conn).await.map_err(&failed)?;
            drawn.extend(decoded::<(Vec<u8>, i64)>(&rows, OPERATION)?);
        }
        in_their_order(keys, drawn)
    }

    /// Error 1305 where the transaction was ended: its savepoint is gone with it.
    async fn undo_draw(&self, conn: &mut MySqlConnection, _: &str, _: &[(Bytes, i64)]) -> Result<()> {
        let undo = raw_sql("ROLLBACK TO SAVEPOINT polybus_draw").execute(conn).await;
        undo.map(drop).map_err(reading("sequence.draw"))
    }

    async fn advance(&self, conn: &mut MySqlConnection, key: &GuardKey, n: i64) -> Result<bool> {
        let sql = self.statements().await?;
        let advance = sqlx::query(sql.sequence.advance.clone()).bind(key.consumer).bind(&key.key[..]).bind(n);
        let done = advance.execute(conn).await.map_err(|e| busy(e, "sequence.advance"))?;
        Ok(done.rows_affected() > 0)
    }

    async fn lock_progress(
        &self,
        conn: &mut MySqlConnection,
        key: &GuardKey,
        of: &GuardedKey<'_>,
    ) -> Result<StoredProgress> {
        const OPERATION: &str = "sequence.lock";
        let sql = self.statements().await?;
        let make = sqlx::query(sql.sequence.make.clone())
            .bind(key.consumer)
            .bind(&key.key[..])
            .bind(of.source.as_bytes())
            .bind(of.key.as_bytes());
        make.execute(&mut *conn).await.map_err(|e| busy(e, OPERATION))?;
        // The row is locked since then: no sweep takes it away.
        let lock = sqlx::query_as(sql.sequence.lock.clone()).bind(key.consumer).bind(&key.key[..]);
        let (first, next, missing, aside, told_at): (i64, i64, Option<Vec<u8>>, Vec<u8>, i64) =
            lock.fetch_one(conn).await.map_err(|e| busy(e, OPERATION))?;
        Ok(StoredProgress { first, next, missing: missing.map(text), aside: text(aside), told_at })
    }

    async fn write_progress(
        &self,
        conn: &mut MySqlConnection,
        key: &GuardKey,
        progress: &StoredProgress,
    ) -> Result<()> {
        let sql = self.statements().await?;
        let write = sqlx::query(sql.sequence.write.clone())
            .bind(progress.first)
            .bind(progress.next)
            .bind(progress.missing.as_deref().map(str::as_bytes))
            .bind(progress.aside.as_bytes())
            .bind(key.consumer)
            .bind(&key.key[..]);
        write.execute(conn).await.map_err(reading("sequence.write"))?;
        Ok(())
    }

    fn sequences(&self) -> Arc<dyn SequenceTable> {
        Arc::new(Sequences(self.clone()))
    }
}

fn busy(error: sqlx::Error, operation: &'static str) -> Error {
    match ended_by_a_limit(&error) {
        true => crate::sequence::busy(error, SYSTEM, operation),
        false => reading(operation)(error),
    }
}
