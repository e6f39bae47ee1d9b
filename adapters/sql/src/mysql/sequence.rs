//! Numbers of keys, in the caller's transaction.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use polybus_core::Result;
use polybus_patterns::store::{GuardKey, GuardedKey, SequenceStore, SequenceTable, StoredProgress};
use sqlx::{AssertSqlSafe, MySqlConnection, raw_sql};

use super::{
    MySql,
    control_conn::{decoded, text},
    literals::{Value, byte_strings, fill},
    reading, reading_or_committing,
    sequence_table::Sequences,
};
use crate::sequence::in_their_order;

statements! {
    SequenceSql {
        // One round trip. The rows are those that this transaction has locked, also where it reads from a snapshot.
        draw = "INSERT INTO {sequence} (address, okey, n, used_at) VALUES ?1
            ON DUPLICATE KEY UPDATE n = n + VALUES(n), used_at = VALUES(used_at);
            SELECT okey, n FROM {sequence} WHERE address = ?2 AND okey IN (?3)";
        drawn = "(?1, ?2, ?3, {now})";
        advance = "UPDATE {sequence_progress} SET next_n = next_n + 1, seen_at = {now}
            WHERE consumer = ? AND `key` = ? AND next_n = ? AND missing IS NOT NULL";
        make = "INSERT INTO {sequence_progress} (consumer, `key`, source, okey, first_n, next_n, seen_at)
            VALUES (?, ?, ?, ?, 0, 0, {now}) ON DUPLICATE KEY UPDATE consumer = consumer";
        lock = "SELECT first_n, next_n, missing FROM {sequence_progress} WHERE consumer = ? AND `key` = ? FOR UPDATE";
        write = "UPDATE {sequence_progress} SET first_n = ?, next_n = ?, missing = ?, seen_at = {now}
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
        for keys in keys.chunks(KEYS) {
            let row = |(key, count): &(Bytes, i64)| {
                fill(sql.sequence.drawn.as_str(), &[address.into(), Value::Bytes(key), (*count).into()])
            };
            let rows: Vec<String> = keys.iter().map(row).collect();
            let names = byte_strings(keys.iter().map(|(key, _)| &key[..]));
            let values = [Value::Sql(&rows.join(", ")), address.into(), Value::Sql(&names)];
            let draw = raw_sql(AssertSqlSafe(fill(sql.sequence.draw.as_str(), &values)));
            let rows = draw.fetch_all(&mut *conn).await.map_err(&failed)?;
            drawn.extend(decoded::<(Vec<u8>, i64)>(&rows, OPERATION)?);
        }
        in_their_order(keys, drawn)
    }

    async fn advance(&self, conn: &mut MySqlConnection, key: &GuardKey, n: i64) -> Result<bool> {
        let sql = self.statements().await?;
        let advance = sqlx::query(sql.sequence.advance.clone()).bind(key.consumer).bind(&key.key[..]).bind(n);
        let done = advance.execute(conn).await.map_err(reading("sequence.advance"))?;
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
        make.execute(&mut *conn).await.map_err(reading(OPERATION))?;
        // The row is locked since then: no sweep takes it away.
        let lock = sqlx::query_as(sql.sequence.lock.clone()).bind(key.consumer).bind(&key.key[..]);
        let (first, next, missing): (i64, i64, Option<Vec<u8>>) =
            lock.fetch_one(conn).await.map_err(reading(OPERATION))?;
        Ok(StoredProgress { first, next, missing: missing.map(text) })
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
            .bind(key.consumer)
            .bind(&key.key[..]);
        write.execute(conn).await.map_err(reading("sequence.write"))?;
        Ok(())
    }

    fn sequences(&self) -> Arc<dyn SequenceTable> {
        Arc::new(Sequences(self.clone()))
    }
}
