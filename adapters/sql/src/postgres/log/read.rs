//! Reading, each statement with a snapshot of its own.

use std::time::Duration;

use polybus_core::{Error, Result};
use polybus_patterns::store::{LogFloor, LogPage, StoredEvent, StoredSnapshot, StoredStream, StreamRead};

use super::super::Postgres;
use crate::log::{EventRow, SnapshotRow, event, page, state};

/// The floors of transactions that have appended to this log, from the locks that they hold. The number of a lock is the
/// log's tag in its upper 16 bits, and the floor in the others.
macro_rules! floors {
    () => {
        "FROM pg_locks l CROSS JOIN {log} t
            WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.classid::bigint >> 16 = t.tag
                AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())"
    };
}

/// A floor's position.
macro_rules! floor {
    () => {
        "((l.classid::bigint << 32 | l.objid::bigint) & ((1::bigint << 48) - 1))"
    };
}

statements! {
    ReadSql {
        stream = "SELECT stream, version, state FROM {log_stream} WHERE stream = $1";
        forwards = "SELECT pos, stream, version, head, data, written_at FROM {log_event}
            WHERE stream = $1 AND version > $2 ORDER BY version LIMIT $3::bigint";
        backwards = "SELECT pos, stream, version, head, data, written_at FROM {log_event}
            WHERE stream = $1 AND version < $2 ORDER BY version DESC LIMIT $3::bigint";
        snapshot = "SELECT schema_version, version, data FROM {log_snapshot} WHERE stream = $1 AND kind = $2";
        put_snapshot = "INSERT INTO {log_snapshot} (stream, kind, schema_version, version, data)
            SELECT $1, $2, $3, $4, $5 WHERE EXISTS (SELECT FROM {log_stream} WHERE stream = $1 AND state <> 2)
            ON CONFLICT (stream, kind) DO UPDATE
            SET schema_version = excluded.schema_version, version = excluded.version, data = excluded.data";
        head = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END, pg_is_in_recovery() FROM {log_position}";
        lowest = concat!("SELECT min(", floor!(), ") ", floors!());
        all = "SELECT pos, stream, version, head, data, written_at FROM {log_event}
            WHERE pos > $1 AND pos <= $2 ORDER BY pos LIMIT $3::bigint";
        who = concat!("SELECT (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {log_position}) - f.floor,
                (extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, x.prepared)) * 1000000)::bigint,
                CASE WHEN f.pid IS NULL THEN 'prepared transaction ' || coalesce(x.gid, 'of which nothing is known')
                    ELSE 'pid ' || f.pid || coalesce(', application ' || nullif(a.application_name, ''), '')
                        || coalesce(', ' || a.state, '') END
            FROM (SELECT ", floor!(), " AS floor, l.pid, l.virtualtransaction AS vxid ", floors!(), "
                ORDER BY 1 LIMIT 1) f
            LEFT JOIN pg_stat_activity a ON a.pid = f.pid
            LEFT JOIN LATERAL (SELECT p.gid, p.prepared FROM pg_locks o JOIN pg_prepared_xacts p
                ON p.transaction = o.transactionid
                WHERE f.pid IS NULL AND o.pid IS NULL AND o.virtualtransaction = f.vxid LIMIT 1) x ON true");
    }
}

pub(super) async fn stream(store: &Postgres, name: &str) -> Result<Option<StoredStream>> {
    let sql = store.statements().await?;
    let mut conn = store.control_conn("log.stream").await?;
    let select = sqlx::query_as(sql.log.read.stream.clone()).bind(name);
    let row: Option<(String, i64, i16)> = select.fetch_optional(&mut *conn).await.map_err(conn.reading())?;
    Ok(row.map(|(name, version, stored)| StoredStream::new(name, version, state(stored.into()))))
}

pub(super) async fn read_stream(store: &Postgres, name: &str, read: &StreamRead) -> Result<Vec<StoredEvent>> {
    let sql = store.statements().await?;
    let mut conn = store.control_conn("log.read").await?;
    let select = if read.backwards { sql.log.read.backwards.clone() } else { sql.log.read.forwards.clone() };
    let select = sqlx::query_as(select).bind(name).bind(read.behind).bind(i64::from(read.limit));
    let rows: Vec<EventRow> = select.fetch_all(&mut *conn).await.map_err(conn.reading())?;
    Ok(rows.into_iter().map(event).collect())
}

pub(super) async fn snapshot(store: &Postgres, name: &str, kind: &str) -> Result<Option<StoredSnapshot>> {
    let sql = store.statements().await?;
    let mut conn = store.control_conn("log.snapshot").await?;
    let select = sqlx::query_as(sql.log.read.snapshot.clone()).bind(name).bind(kind);
    let row: Option<SnapshotRow> = select.fetch_optional(&mut *conn).await.map_err(conn.reading())?;
    Ok(row.map(crate::log::snapshot))
}

pub(super) async fn put_snapshot(store: &Postgres, name: &str, kind: &str, snapshot: &StoredSnapshot) -> Result<()> {
    let sql = store.statements().await?;
    let mut conn = store.control_conn("log.snapshot").await?;
    let put = sqlx::query(sql.log.read.put_snapshot.clone())
        .bind(name)
        .bind(kind)
        .bind(i64::from(snapshot.schema))
        .bind(snapshot.version)
        .bind(&snapshot.data[..]);
    put.execute(&mut *conn).await.map_err(conn.committing())?;
    Ok(())
}

/// Three statements, each with a snapshot of its own, and in this order. A transaction that could still write at or below
/// the head that the first one has read held its floor before it drew its position, so the second one sees it. What the
/// third one does not see below the lowest floor was rolled back, for a commit is visible before its locks are gone.
pub(super) async fn read_all(store: &Postgres, behind: i64, limit: u32) -> Result<LogPage> {
    let sql = store.statements().await?;
    let mut conn = store.control_conn("log.read").await?;
    let head = sqlx::query_as(sql.log.read.head.clone()).fetch_one(&mut *conn).await;
    let (head, is_copy): (i64, bool) = head.map_err(conn.reading())?;
    if is_copy {
        return Err(Error::config(
            "the event log is read from its primary: this server is a standby, where transactions that have appended \
             and not ended cannot be seen, and events would be missed",
        ));
    }
    if head <= behind {
        return Ok(LogPage::default());
    }
    let lowest = sqlx::query_scalar(sql.log.read.lowest.clone()).fetch_one(&mut *conn).await;
    let lowest: Option<i64> = lowest.map_err(conn.reading())?;
    let readable = lowest.map_or(head, |floor| floor.min(head));
    let held_back = head - readable.max(behind);
    if readable <= behind {
        return Ok(LogPage { held_back, ..LogPage::default() });
    }
    let all = sqlx::query_as(sql.log.read.all.clone()).bind(behind).bind(readable).bind(i64::from(limit) + 1);
    let rows: Vec<EventRow> = all.fetch_all(&mut *conn).await.map_err(conn.reading())?;
    Ok(page(rows, limit, held_back))
}

pub(super) async fn floor(store: &Postgres) -> Result<Option<LogFloor>> {
    let sql = store.statements().await?;
    let mut conn = store.control_conn("log.floor").await?;
    let who = sqlx::query_as(sql.log.read.who.clone()).fetch_optional(&mut *conn).await;
    let found: Option<(i64, Option<i64>, String)> = who.map_err(conn.reading())?;
    Ok(found.map(|(behind, micros, who)| LogFloor {
        behind,
        age: micros.map(|micros| Duration::from_micros(u64::try_from(micros).unwrap_or_default())),
        who,
    }))
}
