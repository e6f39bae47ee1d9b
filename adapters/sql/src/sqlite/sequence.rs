//! Numbers of keys, in the caller's transaction.

use std::sync::Arc;

use bytes::Bytes;
use polybus_core::Result;
use polybus_patterns::store::{GuardKey, GuardedKey, SequenceStore, SequenceTable, StoredProgress};
use sqlx::SqliteConnection;

use super::{Sqlite, reading, reading_or_committing, sequence_table::Sequences};

statements! {
    SequenceSql {
        draw = "INSERT INTO {sequence} (address, okey, n, used_at) VALUES (?1, ?2, ?3, {now})
            ON CONFLICT (address, okey) DO UPDATE SET n = n + excluded.n, used_at = excluded.used_at RETURNING n";
        advance = "UPDATE {sequence_progress} SET next_n = ?3 + 1, seen_at = {now}
            WHERE consumer = ?1 AND key = ?2 AND next_n = ?3 AND missing IS NOT NULL";
        make = "INSERT INTO {sequence_progress} (consumer, key, source, okey, first_n, next_n, seen_at)
            VALUES (?1, ?2, ?3, ?4, 0, 0, {now}) ON CONFLICT DO NOTHING";
        read = "SELECT first_n, next_n, missing, aside, told_at FROM {sequence_progress} WHERE consumer = ?1 AND key = ?2";
        write = "UPDATE {sequence_progress}
            SET first_n = ?3, next_n = ?4, missing = ?5, aside = ?6, told_at = 0, seen_at = {now}
            WHERE consumer = ?1 AND key = ?2";
    }
}

impl SequenceStore for Sqlite {
    async fn draw(&self, conn: &mut SqliteConnection, address: &str, keys: &[(Bytes, i64)]) -> Result<Vec<i64>> {
        self.ready_on(conn).await?;
        let sql = self.statements()?;
        let failed = reading_or_committing(conn, "sequence.draw");
        run(conn, "SAVEPOINT polybus_draw").await?;
        let mut drawn = Vec::with_capacity(keys.len());
        for (key, count) in keys {
            let draw = sqlx::query_scalar(sql.sequence.draw.clone()).bind(address).bind(&key[..]).bind(count);
            drawn.push(draw.fetch_one(&mut *conn).await.map_err(&failed)?);
        }
        Ok(drawn)
    }

    /// A transaction that an error has ended has no savepoint any more.
    async fn undo_draw(&self, conn: &mut SqliteConnection, _: &str, _: &[(Bytes, i64)]) -> Result<()> {
        run(conn, "ROLLBACK TO polybus_draw").await?;
        run(conn, "RELEASE polybus_draw").await
    }

    async fn keep_draw(&self, conn: &mut SqliteConnection) -> Result<()> {
        run(conn, "RELEASE polybus_draw").await
    }

    async fn advance(&self, conn: &mut SqliteConnection, key: &GuardKey, n: i64) -> Result<bool> {
        let sql = self.statements()?;
        let advance = sqlx::query(sql.sequence.advance.clone()).bind(key.consumer).bind(&key.key[..]).bind(n);
        let done = advance.execute(conn).await.map_err(reading("sequence.advance"))?;
        Ok(done.rows_affected() > 0)
    }

    /// The transaction is the only one that writes.
    async fn lock_progress(
        &self,
        conn: &mut SqliteConnection,
        key: &GuardKey,
        of: &GuardedKey<'_>,
    ) -> Result<StoredProgress> {
        const OPERATION: &str = "sequence.lock";
        let sql = self.statements()?;
        let make = sqlx::query(sql.sequence.make.clone())
            .bind(key.consumer)
            .bind(&key.key[..])
            .bind(of.source)
            .bind(of.key.as_bytes());
        make.execute(&mut *conn).await.map_err(reading(OPERATION))?;
        let read = sqlx::query_as(sql.sequence.read.clone()).bind(key.consumer).bind(&key.key[..]);
        let (first, next, missing, aside, told_at) = read.fetch_one(conn).await.map_err(reading(OPERATION))?;
        Ok(StoredProgress { first, next, missing, aside, told_at })
    }

    async fn write_progress(
        &self,
        conn: &mut SqliteConnection,
        key: &GuardKey,
        progress: &StoredProgress,
    ) -> Result<()> {
        let sql = self.statements()?;
        let write = sqlx::query(sql.sequence.write.clone())
            .bind(key.consumer)
            .bind(&key.key[..])
            .bind(progress.first)
            .bind(progress.next)
            .bind(progress.missing.as_deref())
            .bind(&progress.aside);
        write.execute(conn).await.map_err(reading("sequence.write"))?;
        Ok(())
    }

    fn sequences(&self) -> Arc<dyn SequenceTable> {
        Arc::new(Sequences(self.clone()))
    }
}

async fn run(conn: &mut SqliteConnection, savepoint: &'static str) -> Result<()> {
    sqlx::query(savepoint).execute(conn).await.map(drop).map_err(reading("sequence.draw"))
}
