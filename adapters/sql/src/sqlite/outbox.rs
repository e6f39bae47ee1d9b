//! Writing rows of the outbox in the caller's transaction.

use std::sync::Arc;

use polybus_core::Result;
use polybus_patterns::store::{NewRow, OutboxRow, OutboxStore, OutboxTable, micros};
use sqlx::SqliteConnection;

use super::{Sqlite, outbox_table::Outbox, reading_or_committing};
use crate::row::written_slot;

statements! {
    InsertSql {
        insert = "INSERT INTO {outbox} (slot, address, okey, head, data, due_at, created_at)
            VALUES (?1, ?2, ?3, ?4, ?5, CASE WHEN ?6 > 0 THEN {now} + ?6 ELSE 0 END, {now})";
    }
}

impl OutboxStore for Sqlite {
    async fn insert(&self, conn: &mut SqliteConnection, rows: &[NewRow]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        self.ready_on(conn).await?;
        let sql = self.statements()?;
        let failed = reading_or_committing(conn, "outbox.insert");
        for row in rows {
            sqlx::query(sql.outbox.insert.clone())
                .bind(written_slot(row))
                .bind(&row.address)
                .bind(row.key.as_deref())
                .bind(&row.head)
                .bind(&row.data[..])
                .bind(micros(row.delay))
                .execute(&mut *conn)
                .await
                .map_err(&failed)?;
        }
        self.0.changes.written();
        Ok(())
    }

    async fn insert_statement(&self, row: &NewRow) -> Result<OutboxRow> {
        Ok(OutboxRow::new(self.statements()?.outbox.insert.as_str(), crate::row::values(row)))
    }

    fn outbox(&self) -> Arc<dyn OutboxTable> {
        Arc::new(Outbox(self.clone()))
    }
}
