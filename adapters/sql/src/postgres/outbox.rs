//! Writing rows of the outbox in the caller's transaction.

use std::sync::Arc;

use polybus_core::Result;
use polybus_patterns::store::{NewRow, OutboxRow, OutboxStore, OutboxTable, micros};
use sqlx::PgConnection;

use super::{Postgres, outbox_table::Outbox, reading_or_committing};
use crate::row::written_slot;

statements! {
    InsertSql {
        // The types are those of `OutboxRow`'s values: this text is also run by others, perhaps on the same connection,
        // whose client keeps one prepared statement for one text.
        insert = "INSERT INTO {outbox} (slot, address, okey, head, data, due_at, created_at)
            VALUES ($1::bigint::smallint, $2::text, $3::bytea, $4::text, $5::bytea,
                CASE WHEN $6::bigint > 0 THEN {now} + $6::bigint ELSE 0 END, {now})";
        // Ids are drawn after the sort, so they rise in the order of the rows.
        insert_many = "INSERT INTO {outbox} (slot, address, okey, head, data, due_at, created_at)
            SELECT r.slot, r.address, r.okey, r.head, r.data,
                CASE WHEN r.delay > 0 THEN {now} + r.delay ELSE 0 END, {now}
            FROM unnest($1::smallint[], $2::text[], $3::bytea[], $4::text[], $5::bytea[], $6::bigint[])
                WITH ORDINALITY AS r (slot, address, okey, head, data, delay, place)
            ORDER BY r.place";
    }
}

impl OutboxStore for Postgres {
    async fn insert(&self, conn: &mut PgConnection, rows: &[NewRow]) -> Result<()> {
        const OPERATION: &str = "outbox.insert";
        if rows.is_empty() {
            return Ok(());
        }
        let sql = self.statements().await?;
        let failed = reading_or_committing(conn, OPERATION);
        match rows {
            [row] => {
                sqlx::query(sql.outbox.insert.clone())
                    .bind(i64::from(written_slot(row)))
                    .bind(&row.address)
                    .bind(row.key.as_deref())
                    .bind(&row.head)
                    .bind(&row.data[..])
                    .bind(micros(row.delay))
                    .execute(conn)
                    .await
            }
            rows => {
                sqlx::query(sql.outbox.insert_many.clone())
                    .bind(rows.iter().map(written_slot).collect::<Vec<i16>>())
                    .bind(rows.iter().map(|row| row.address.as_str()).collect::<Vec<&str>>())
                    .bind(rows.iter().map(|row| row.key.as_deref()).collect::<Vec<Option<&[u8]>>>())
                    .bind(rows.iter().map(|row| row.head.as_str()).collect::<Vec<&str>>())
                    .bind(rows.iter().map(|row| &row.data[..]).collect::<Vec<&[u8]>>())
                    .bind(rows.iter().map(|row| micros(row.delay)).collect::<Vec<i64>>())
                    .execute(conn)
                    .await
            }
        }
        .map_err(failed)?;
        self.0.changes.written();
        Ok(())
    }

    async fn insert_statement(&self, row: &NewRow) -> Result<OutboxRow> {
        let sql = self.statements().await?;
        Ok(OutboxRow::new(sql.outbox.insert.as_str(), crate::row::values(row)))
    }

    fn outbox(&self) -> Arc<dyn OutboxTable> {
        Arc::new(Outbox(self.clone()))
    }
}
