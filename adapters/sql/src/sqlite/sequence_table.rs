//! How far keys have come, for those who wait and those who look, and the rows that are too old.

use std::time::Duration;

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{GuardKey, GuardedKey, SequenceTable, StoredGap, micros};
use sqlx::{Sqlite as Client, query::Query, sqlite::SqliteArguments};

use super::{Sqlite, reading, write_queue::Turn};
use crate::sequence::{GapRow, gap};

statements! {
    SequencesSql {
        next = "SELECT next_n FROM {sequence_progress} WHERE consumer = ?1 AND key = ?2 AND missing IS NOT NULL";
        note = "INSERT INTO {sequence_progress} (consumer, key, source, okey, first_n, next_n, told_at, seen_at)
            VALUES (?1, ?2, ?3, ?4, 0, 0, ?5, {now})
            ON CONFLICT (consumer, key) DO UPDATE SET told_at = excluded.told_at, seen_at = excluded.seen_at";
        told = "SELECT told_at FROM {sequence_progress} WHERE consumer = ?1 AND key = ?2";
        gaps = "SELECT key, source, okey, first_n, next_n, missing, aside, told_at FROM {sequence_progress}
            WHERE consumer = ?1 AND missing <> '' AND (?2 IS NULL OR key > ?2) ORDER BY key LIMIT ?3";
        sweep_progress = "DELETE FROM {sequence_progress} WHERE (consumer, key) IN (
            SELECT consumer, key FROM {sequence_progress} WHERE consumer = ?1 AND seen_at < {now} - ?2 LIMIT ?3)";
        sweep_numbers = "DELETE FROM {sequence} WHERE (address, okey) IN (
            SELECT address, okey FROM {sequence} WHERE used_at < {now} - ?1 LIMIT ?2)";
    }
}

pub(super) struct Sequences(pub(super) Sqlite);

impl Sequences {
    /// Runs a statement that writes, in a transaction of its own. Answers how many rows it changed.
    async fn write(&self, operation: &'static str, statement: Query<'_, Client, SqliteArguments>) -> Result<u64> {
        let mut tx = self.0.begin_in_turn(Turn::Normal, operation).await?;
        let changed = statement.execute(&mut *tx).await.map_err(reading(operation))?.rows_affected();
        tx.commit().await?;
        Ok(changed)
    }
}

#[async_trait]
impl SequenceTable for Sequences {
    async fn next(&self, key: &GuardKey) -> Result<Option<i64>> {
        const OPERATION: &str = "sequence.next";
        let sql = self.0.statements()?;
        let mut conn = self.0.reader(OPERATION).await?;
        let select = sqlx::query_scalar(sql.sequences.next.clone()).bind(key.consumer).bind(&key.key[..]);
        select.fetch_optional(&mut *conn).await.map_err(reading(OPERATION))
    }

    async fn note_stopped(&self, key: &GuardKey, of: &GuardedKey<'_>, next: i64) -> Result<bool> {
        let sql = self.0.statements()?;
        let note = sqlx::query(sql.sequences.note.clone())
            .bind(key.consumer)
            .bind(&key.key[..])
            .bind(of.source)
            .bind(of.key.as_bytes())
            .bind(next);
        const OPERATION: &str = "sequence.note";
        let told = sqlx::query_scalar(sql.sequences.told.clone()).bind(key.consumer).bind(&key.key[..]);
        let mut tx = self.0.begin_in_turn(Turn::Normal, OPERATION).await?;
        let told: Option<i64> = told.fetch_optional(&mut *tx).await.map_err(reading(OPERATION))?;
        note.execute(&mut *tx).await.map_err(reading(OPERATION))?;
        tx.commit().await?;
        Ok(told != Some(next))
    }

    async fn gaps(&self, consumer: i32, after: Option<[u8; 16]>, limit: u32) -> Result<Vec<StoredGap>> {
        const OPERATION: &str = "sequence.gaps";
        let sql = self.0.statements()?;
        let mut conn = self.0.reader(OPERATION).await?;
        let select = sqlx::query_as(sql.sequences.gaps.clone())
            .bind(consumer)
            .bind(after.as_ref().map(|after| &after[..]))
            .bind(limit);
        let rows: Vec<GapRow> = select.fetch_all(&mut *conn).await.map_err(reading(OPERATION))?;
        Ok(rows.into_iter().filter_map(gap).collect())
    }

    async fn sweep_progress(&self, consumer: i32, older_than: Duration, limit: u32) -> Result<u64> {
        let sql = self.0.statements()?;
        let delete =
            sqlx::query(sql.sequences.sweep_progress.clone()).bind(consumer).bind(micros(older_than)).bind(limit);
        self.write("sequence.sweep", delete).await
    }

    async fn sweep_numbers(&self, older_than: Duration, limit: u32) -> Result<u64> {
        let sql = self.0.statements()?;
        let delete = sqlx::query(sql.sequences.sweep_numbers.clone()).bind(micros(older_than)).bind(limit);
        self.write("sequence.sweep", delete).await
    }
}
