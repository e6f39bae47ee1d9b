//! Numbers of keys, in the caller's transaction.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use polybus_core::{Error, Result};
use polybus_patterns::store::{GuardKey, GuardedKey, SequenceStore, SequenceTable, StoredProgress};
use sqlx::PgConnection;

use super::{Postgres, SYSTEM, inbox::ended_by_a_limit, reading, reading_or_committing, sequence_table::Sequences};
use crate::sequence::in_their_order;

statements! {
    SequenceSql {
        // In the order of the keys, so that two transactions lock them in one order.
        draw = "INSERT INTO {sequence} AS s (address, okey, n, used_at)
            SELECT $1, k.okey, k.n, {now}
            FROM unnest($2::bytea[], $3::bigint[]) WITH ORDINALITY AS k (okey, n, place) ORDER BY k.place
            ON CONFLICT (address, okey) DO UPDATE SET n = s.n + excluded.n, used_at = excluded.used_at
            RETURNING s.okey, s.n";
        advance = "UPDATE {sequence_progress} SET next_n = $3 + 1, seen_at = {now}
            WHERE consumer = $1 AND key = $2 AND next_n = $3 AND missing IS NOT NULL";
        make = "INSERT INTO {sequence_progress} (consumer, key, source, okey, first_n, next_n, seen_at)
            VALUES ($1, $2, $3, $4, 0, 0, {now}) ON CONFLICT DO NOTHING";
        lock = "SELECT first_n, next_n, missing, aside, told_at FROM {sequence_progress} WHERE consumer = $1 AND key = $2 FOR UPDATE";
        write = "UPDATE {sequence_progress}
            SET first_n = $3, next_n = $4, missing = $5, aside = $6, told_at = 0, seen_at = {now}
            WHERE consumer = $1 AND key = $2";
    }
}

impl SequenceStore for Postgres {
    async fn draw(&self, conn: &mut PgConnection, address: &str, keys: &[(Bytes, i64)]) -> Result<Vec<i64>> {
        const OPERATION: &str = "sequence.draw";
        let sql = self.statements().await?;
        let failed = reading_or_committing(conn, OPERATION);
        let draw = sqlx::query_as(sql.sequence.draw.clone())
            .bind(address)
            .bind(keys.iter().map(|(key, _)| &key[..]).collect::<Vec<&[u8]>>())
            .bind(keys.iter().map(|(_, count)| *count).collect::<Vec<i64>>());
        let drawn: Vec<(Vec<u8>, i64)> = draw.fetch_all(conn).await.map_err(failed)?;
        in_their_order(keys, drawn.into_iter().collect::<HashMap<_, _>>())
    }

    /// A transaction that an error has ended does nothing more, and answers with an error.
    async fn undo_draw(&self, conn: &mut PgConnection, address: &str, keys: &[(Bytes, i64)]) -> Result<()> {
        let back: Vec<(Bytes, i64)> = keys.iter().map(|(key, count)| (key.clone(), -count)).collect();
        self.draw(conn, address, &back).await.map(drop)
    }

    async fn advance(&self, conn: &mut PgConnection, key: &GuardKey, n: i64) -> Result<bool> {
        let sql = self.statements().await?;
        let advance = sqlx::query(sql.sequence.advance.clone()).bind(key.consumer).bind(&key.key[..]).bind(n);
        let done = advance.execute(conn).await.map_err(|e| busy(e, "sequence.advance"))?;
        Ok(done.rows_affected() > 0)
    }

    async fn lock_progress(
        &self,
        conn: &mut PgConnection,
        key: &GuardKey,
        of: &GuardedKey<'_>,
    ) -> Result<StoredProgress> {
        const OPERATION: &str = "sequence.lock";
        let sql = self.statements().await?;
        loop {
            let make = sqlx::query(sql.sequence.make.clone())
                .bind(key.consumer)
                .bind(&key.key[..])
                .bind(of.source)
                .bind(of.key.as_bytes());
            make.execute(&mut *conn).await.map_err(|e| busy(e, OPERATION))?;
            let lock = sqlx::query_as(sql.sequence.lock.clone()).bind(key.consumer).bind(&key.key[..]);
            let locked = lock.fetch_optional(&mut *conn).await.map_err(|e| busy(e, OPERATION))?;
            // Else it was swept between the two.
            if let Some((first, next, missing, aside, told_at)) = locked {
                return Ok(StoredProgress { first, next, missing, aside, told_at });
            }
        }
    }

    async fn write_progress(&self, conn: &mut PgConnection, key: &GuardKey, progress: &StoredProgress) -> Result<()> {
        let sql = self.statements().await?;
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

fn busy(error: sqlx::Error, operation: &'static str) -> Error {
    match ended_by_a_limit(&error) {
        true => crate::sequence::busy(error, SYSTEM, operation),
        false => reading(operation)(error),
    }
}
