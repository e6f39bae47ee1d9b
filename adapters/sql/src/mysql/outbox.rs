//! Writing rows of the outbox in the caller's transaction.

use std::sync::Arc;

use polybus_core::{Error, ErrorKind, Result};
use polybus_patterns::store::{NewRow, OutboxRow, OutboxStore, OutboxTable, SqlValue, micros};
use sqlx::{AssertSqlSafe, MySqlConnection, mysql::MySqlArguments, query::Query};

use super::{MySql, SYSTEM, outbox_table::Outbox, reading_or_committing};
use crate::row::written_slot;

/// The values of one row, in the order of [`crate::row::values`].
const ROW: &str = "(?, ?, ?, ?, ?, COALESCE({now} + NULLIF(?, 0), 0), {now})";

/// The longest address and key: a session whose mode is not strict would cut them.
const LONGEST_ADDRESS: usize = 512;
const LONGEST_KEY: usize = 256;

/// The most rows of one statement, which has six placeholders for each.
const MOST_ROWS: usize = 500;

/// What a row needs in a statement beside its head and payload.
const ROW_OVERHEAD: usize = 1024;

statements! {
    InsertSql {
        insert_into = "INSERT INTO {outbox} (slot, address, okey, head, data, due_at, created_at) VALUES ";
        row = ROW;
        insert = concat!(
            "INSERT INTO {outbox} (slot, address, okey, head, data, due_at, created_at) VALUES ",
            "(?, ?, ?, ?, ?, COALESCE({now} + NULLIF(?, 0), 0), {now})"
        );
    }
}

type Insert<'q> = Query<'q, sqlx::MySql, MySqlArguments>;

fn bound<'q>(insert: Insert<'q>, row: &'q NewRow) -> Insert<'q> {
    insert
        .bind(written_slot(row))
        // Bytes are not converted, whatever the connection's character set.
        .bind(row.address.as_bytes())
        .bind(row.key.as_deref())
        .bind(row.head.as_bytes())
        .bind(&row.data[..])
        .bind(micros(row.delay))
}

/// # Errors
/// `PayloadTooLarge` for what the server would answer by closing the connection, and `InvalidArgument` for what a
/// column cannot hold.
fn check(row: &NewRow, max_packet: usize) -> Result<()> {
    let needed = row.size() + ROW_OVERHEAD;
    if needed > max_packet {
        let text = format!(
            "a row of {} bytes: with {max_packet} bytes, max_allowed_packet of the server must be at least {needed}",
            row.size()
        );
        return Err(Error::new(ErrorKind::PayloadTooLarge, text).of_driver(SYSTEM, "outbox.insert"));
    }
    if row.address.len() > LONGEST_ADDRESS || row.key.as_ref().is_some_and(|key| key.len() > LONGEST_KEY) {
        let text = format!("an address has at most {LONGEST_ADDRESS} bytes, and a key {LONGEST_KEY}");
        return Err(Error::invalid(text).of_driver(SYSTEM, "outbox.insert"));
    }
    Ok(())
}

/// Rows that fit into one statement each.
fn chunks(rows: &[NewRow], max_packet: usize) -> Vec<&[NewRow]> {
    let (mut chunks, mut first, mut bytes) = (Vec::new(), 0, 0);
    for (n, row) in rows.iter().enumerate() {
        let size = row.size() + ROW_OVERHEAD;
        if n > first && (n - first == MOST_ROWS || bytes + size > max_packet) {
            chunks.push(&rows[first..n]);
            (first, bytes) = (n, 0);
        }
        bytes += size;
    }
    if first < rows.len() {
        chunks.push(&rows[first..]);
    }
    chunks
}

impl OutboxStore for MySql {
    async fn insert(&self, conn: &mut MySqlConnection, rows: &[NewRow]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let sql = self.statements().await?;
        let max_packet = self.server().await?.max_packet;
        rows.iter().try_for_each(|row| check(row, max_packet))?;
        let failed = reading_or_committing(conn, "outbox.insert");
        for rows in chunks(rows, max_packet) {
            let insert = match rows {
                [row] => bound(sqlx::query(sql.outbox.insert.clone()), row),
                rows => {
                    let places = vec![sql.outbox.row.as_str(); rows.len()].join(", ");
                    let text = format!("{}{places}", sql.outbox.insert_into.as_str());
                    // One text for each number of rows: they would drive others out of the connection's cache.
                    rows.iter().fold(sqlx::query(AssertSqlSafe(text)).persistent(false), bound)
                }
            };
            insert.execute(&mut *conn).await.map_err(&failed)?;
        }
        self.0.changes.written();
        Ok(())
    }

    async fn insert_statement(&self, row: &NewRow) -> Result<OutboxRow> {
        let sql = self.statements().await?;
        check(row, self.server().await?.max_packet)?;
        let mut values = crate::row::values(row);
        for value in &mut values {
            if let SqlValue::Text(text) = value {
                *value = SqlValue::Bytes(std::mem::take(text).into());
            }
        }
        Ok(OutboxRow::new(sql.outbox.insert.as_str(), values))
    }

    fn outbox(&self) -> Arc<dyn OutboxTable> {
        Arc::new(Outbox(self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;

    fn row(bytes: usize) -> NewRow {
        NewRow {
            slot: 0,
            address: "queue:q".to_owned(),
            key: None,
            head: String::new(),
            data: Bytes::from(vec![0; bytes]),
            delay: Duration::ZERO,
        }
    }

    #[test]
    fn a_statement_is_no_larger_than_a_packet() {
        let rows: Vec<NewRow> = [10, 5000, 5000, 10, 10].map(row).into();
        let sizes: Vec<usize> = chunks(&rows, 8192).iter().map(|rows| rows.len()).collect();
        assert_eq!(sizes, [2, 3]);
        let rows = vec![row(1); MOST_ROWS * 2 + 1];
        let sizes: Vec<usize> = chunks(&rows, usize::MAX).iter().map(|rows| rows.len()).collect();
        assert_eq!(sizes, [MOST_ROWS, MOST_ROWS, 1]);
    }

    #[test]
    fn what_the_server_would_close_the_connection_at_is_refused() {
        check(&row(1_000_000 - ROW_OVERHEAD), 1_000_000).unwrap();
        let error = check(&row(1_000_001 - ROW_OVERHEAD), 1_000_000).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PayloadTooLarge);
        let text = error.to_string();
        assert!(text.contains("max_allowed_packet") && text.contains("1000001") && text.contains("1000000"), "{text}");
        let long = NewRow { address: "a".repeat(513), ..row(1) };
        assert_eq!(check(&long, 1_000_000).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}
