//! The event log. One transaction writes at a time, so events come in the order of commits.

use std::sync::Arc;

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{
    AppendOutcome, Checkpoint, LogFloor, LogPage, LogStore, LogTable, StoppedSubscription, StoredEvent, StoredSnapshot,
    StoredStream, StoredSubscription, StreamAppend, StreamRead, StreamState,
};
use sqlx::{Sqlite as Client, SqliteConnection, query::Query, sqlite::SqliteArguments};

use super::{Sqlite, reading, write_queue::Turn};
use crate::log::{
    APPEND, EventRow, SnapshotRow, SubscriptionRow, event, outcome, page, state, state_number, subscription,
};

statements! {
    LogSql {
        // It writes, so that nobody else does from here on, whatever the transaction has been until now.
        head = "UPDATE {log} SET head = head WHERE id = 1 RETURNING head";
        move_head = "UPDATE {log} SET head = ?1 WHERE id = 1";
        stream = "SELECT stream, version, state FROM {log_stream} WHERE stream = ?1";
        put_stream = "INSERT INTO {log_stream} (stream, version) VALUES (?1, ?2)
            ON CONFLICT (stream) DO UPDATE SET version = excluded.version";
        change = "UPDATE {log_stream} SET state = ?3 WHERE stream = ?1 AND state = ?2";
        delete = "DELETE FROM {log_event} WHERE stream = ?1 AND version < ?2";
        found = "SELECT event_id, version, pos FROM {log_event} WHERE stream = ?1 AND event_id = ?2";
        write = "INSERT INTO {log_event} (pos, stream, version, event_id, kind, written_at, head, data)
            VALUES (?1, ?2, ?3, ?4, ?5, {now}, ?6, ?7)";
        forwards = "SELECT pos, stream, version, head, data, written_at FROM {log_event}
            WHERE stream = ?1 AND version > ?2 ORDER BY version LIMIT ?3";
        backwards = "SELECT pos, stream, version, head, data, written_at FROM {log_event}
            WHERE stream = ?1 AND version < ?2 ORDER BY version DESC LIMIT ?3";
        snapshot = "SELECT schema_version, version, data FROM {log_snapshot} WHERE stream = ?1 AND kind = ?2";
        put_snapshot = "INSERT INTO {log_snapshot} (stream, kind, schema_version, version, data)
            SELECT ?1, ?2, ?3, ?4, ?5 WHERE EXISTS (SELECT 1 FROM {log_stream} WHERE stream = ?1 AND state <> 2)
            ON CONFLICT (stream, kind) DO UPDATE
            SET schema_version = excluded.schema_version, version = excluded.version, data = excluded.data";
        delete_snapshots = "DELETE FROM {log_snapshot} WHERE stream = ?1";
        all = "SELECT pos, stream, version, head, data, written_at FROM {log_event} WHERE pos > ?1 ORDER BY pos LIMIT ?2";
        advance = "UPDATE {log_subscription} SET pos = ?4
            WHERE name = ?1 AND pos = ?2 AND token = ?3 AND stopped_at IS NULL";
        is_at = "SELECT EXISTS (SELECT 1 FROM {log_subscription} WHERE name = ?1 AND pos = ?2 AND token = ?3)";
        list = "SELECT name, pos, token, stopped_at, stopped_why, stopped_on FROM {log_subscription}
            WHERE ?1 IS NULL OR name = ?1 ORDER BY name";
        make = "INSERT INTO {log_subscription} (name, pos) VALUES (?1, ?2) ON CONFLICT (name) DO NOTHING";
        stop = "UPDATE {log_subscription} SET token = token + 1, stopped_at = {now}, stopped_why = ?4, stopped_on = ?5
            WHERE name = ?1 AND pos = ?2 AND token = ?3 AND stopped_at IS NULL";
        resume = "UPDATE {log_subscription}
            SET pos = ?4, token = token + 1, stopped_at = NULL, stopped_why = NULL, stopped_on = NULL
            WHERE name = ?1 AND pos = ?2 AND token = ?3 AND stopped_at IS NOT NULL";
        remove = "DELETE FROM {log_subscription} WHERE name = ?1";
    }
}

impl LogStore for Sqlite {
    async fn append_events(&self, conn: &mut SqliteConnection, appends: &[StreamAppend]) -> Result<Vec<AppendOutcome>> {
        self.ready_on(conn).await?;
        let (sql, failed) = (self.statements()?, reading(APPEND));
        let head = sqlx::query_scalar(sql.log.head.clone());
        let mut head: i64 = head.fetch_one(&mut *conn).await.map_err(&failed)?;
        let mut outcomes = Vec::with_capacity(appends.len());
        for append in appends {
            let select = sqlx::query_as(sql.log.stream.clone()).bind(&append.stream);
            let stream: Option<(String, i64, i64)> = select.fetch_optional(&mut *conn).await.map_err(&failed)?;
            let stream = stream.map(|(_, version, stored)| (version, state(stored)));
            let ids: Vec<&str> = append.events.iter().map(|event| event.id.as_str()).collect();
            let mut there: Vec<(String, i64, i64)> = Vec::new();
            for id in ids.iter().filter(|_| stream.is_some()) {
                let select = sqlx::query_as(sql.log.found.clone()).bind(&append.stream).bind(*id);
                there.extend(select.fetch_optional(&mut *conn).await.map_err(&failed)?);
            }
            there.sort_unstable_by_key(|(_, version, _)| *version);
            outcomes.push(outcome(append, &ids, stream, &there, &mut head));
        }
        if !outcomes.iter().any(|outcome| matches!(outcome, AppendOutcome::Conflict { .. })) {
            self.write(conn, appends, &outcomes, head).await?;
        }
        Ok(outcomes)
    }

    async fn change_stream(
        &self,
        conn: &mut SqliteConnection,
        stream: &str,
        from: StreamState,
        to: StreamState,
    ) -> Result<bool> {
        self.ready_on(conn).await?;
        let sql = self.statements()?;
        let change = sqlx::query(sql.log.change.clone()).bind(stream).bind(state_number(from)).bind(state_number(to));
        Ok(change.execute(conn).await.map_err(reading("log.stream"))?.rows_affected() > 0)
    }

    async fn delete_events(&self, conn: &mut SqliteConnection, stream: &str, below: i64) -> Result<u64> {
        let sql = self.statements()?;
        let snapshots = sqlx::query(sql.log.delete_snapshots.clone()).bind(stream);
        snapshots.execute(&mut *conn).await.map_err(reading("log.delete"))?;
        let delete = sqlx::query(sql.log.delete.clone()).bind(stream).bind(below);
        Ok(delete.execute(conn).await.map_err(reading("log.delete"))?.rows_affected())
    }

    async fn move_checkpoint(
        &self,
        conn: &mut SqliteConnection,
        subscription: &str,
        from: &Checkpoint,
        to: i64,
    ) -> Result<bool> {
        let sql = self.statements()?;
        let advance =
            sqlx::query(sql.log.advance.clone()).bind(subscription).bind(from.position).bind(from.token).bind(to);
        let moved = advance.execute(conn).await.map_err(reading("log.checkpoint"))?;
        Ok(moved.rows_affected() > 0)
    }

    async fn is_checkpoint(&self, conn: &mut SqliteConnection, subscription: &str, at: &Checkpoint) -> Result<bool> {
        let sql = self.statements()?;
        let is_at = sqlx::query_scalar(sql.log.is_at.clone()).bind(subscription).bind(at.position).bind(at.token);
        is_at.fetch_one(conn).await.map_err(reading("log.checkpoint"))
    }

    fn log(&self) -> Arc<dyn LogTable> {
        Arc::new(Log(self.clone()))
    }
}

impl Sqlite {
    async fn write(
        &self,
        conn: &mut SqliteConnection,
        appends: &[StreamAppend],
        outcomes: &[AppendOutcome],
        head: i64,
    ) -> Result<()> {
        let (sql, failed) = (self.statements()?, reading(APPEND));
        let mut wrote = false;
        for (append, outcome) in appends.iter().zip(outcomes) {
            let AppendOutcome::Appended { first_version, positions } = outcome else { continue };
            for ((event, position), version) in append.events.iter().zip(positions).zip(*first_version..) {
                let write = sqlx::query(sql.log.write.clone())
                    .bind(position)
                    .bind(&append.stream)
                    .bind(version)
                    .bind(&event.id)
                    .bind(&event.kind)
                    .bind(&event.head)
                    .bind(&event.data[..]);
                write.execute(&mut *conn).await.map_err(&failed)?;
            }
            let last = first_version + append.events.len() as i64 - 1;
            let put = sqlx::query(sql.log.put_stream.clone()).bind(&append.stream).bind(last);
            put.execute(&mut *conn).await.map_err(&failed)?;
            wrote = true;
        }
        if wrote {
            let move_head = sqlx::query(sql.log.move_head.clone()).bind(head);
            move_head.execute(&mut *conn).await.map_err(&failed)?;
        }
        Ok(())
    }
}

struct Log(Sqlite);

impl Log {
    /// Runs a statement that writes, in a transaction of its own. Answers whether it changed a row.
    async fn write(&self, operation: &'static str, statement: Query<'_, Client, SqliteArguments>) -> Result<bool> {
        let mut tx = self.0.begin_in_turn(Turn::Normal, operation).await?;
        let changed = statement.execute(&mut *tx).await.map_err(reading(operation))?.rows_affected();
        tx.commit().await?;
        Ok(changed > 0)
    }
}

#[async_trait]
impl LogTable for Log {
    async fn stream(&self, stream: &str) -> Result<Option<StoredStream>> {
        const OPERATION: &str = "log.stream";
        let sql = self.0.statements()?;
        let mut conn = self.0.reader(OPERATION).await?;
        let select = sqlx::query_as(sql.log.stream.clone()).bind(stream);
        let row: Option<(String, i64, i64)> = select.fetch_optional(&mut *conn).await.map_err(reading(OPERATION))?;
        Ok(row.map(|(name, version, stored)| StoredStream::new(name, version, state(stored))))
    }

    async fn read_stream(&self, stream: &str, read: &StreamRead) -> Result<Vec<StoredEvent>> {
        const OPERATION: &str = "log.read";
        let sql = self.0.statements()?;
        let mut conn = self.0.reader(OPERATION).await?;
        let select = if read.backwards { sql.log.backwards.clone() } else { sql.log.forwards.clone() };
        let select = sqlx::query_as(select).bind(stream).bind(read.behind).bind(i64::from(read.limit));
        let rows: Vec<EventRow> = select.fetch_all(&mut *conn).await.map_err(reading(OPERATION))?;
        Ok(rows.into_iter().map(event).collect())
    }

    async fn read_all(&self, behind: i64, limit: u32) -> Result<LogPage> {
        const OPERATION: &str = "log.read";
        let sql = self.0.statements()?;
        let mut conn = self.0.reader(OPERATION).await?;
        let select = sqlx::query_as(sql.log.all.clone()).bind(behind).bind(i64::from(limit) + 1);
        let rows: Vec<EventRow> = select.fetch_all(&mut *conn).await.map_err(reading(OPERATION))?;
        Ok(page(rows, limit, 0))
    }

    /// Whoever appends is the only one that writes.
    async fn floor(&self) -> Result<Option<LogFloor>> {
        Ok(None)
    }

    async fn snapshot(&self, stream: &str, kind: &str) -> Result<Option<StoredSnapshot>> {
        const OPERATION: &str = "log.snapshot";
        let sql = self.0.statements()?;
        let mut conn = self.0.reader(OPERATION).await?;
        let select = sqlx::query_as(sql.log.snapshot.clone()).bind(stream).bind(kind);
        let row: Option<SnapshotRow> = select.fetch_optional(&mut *conn).await.map_err(reading(OPERATION))?;
        Ok(row.map(crate::log::snapshot))
    }

    async fn put_snapshot(&self, stream: &str, kind: &str, snapshot: &StoredSnapshot) -> Result<()> {
        let sql = self.0.statements()?;
        let put = sqlx::query(sql.log.put_snapshot.clone())
            .bind(stream)
            .bind(kind)
            .bind(i64::from(snapshot.schema))
            .bind(snapshot.version)
            .bind(&snapshot.data[..]);
        self.write("log.snapshot", put).await.map(drop)
    }

    async fn subscriptions(&self, name: Option<&str>) -> Result<Vec<StoredSubscription>> {
        const OPERATION: &str = "log.subscriptions";
        let sql = self.0.statements()?;
        let mut conn = self.0.reader(OPERATION).await?;
        let list = sqlx::query_as(sql.log.list.clone()).bind(name);
        let rows: Vec<SubscriptionRow> = list.fetch_all(&mut *conn).await.map_err(reading(OPERATION))?;
        Ok(rows.into_iter().map(subscription).collect())
    }

    async fn make_subscription(&self, name: &str, behind: i64) -> Result<StoredSubscription> {
        let sql = self.0.statements()?;
        loop {
            self.write("log.subscribe", sqlx::query(sql.log.make.clone()).bind(name).bind(behind)).await?;
            // Else it was removed between the two.
            if let Some(made) = self.subscriptions(Some(name)).await?.pop() {
                return Ok(made);
            }
        }
    }

    async fn stop_subscription(&self, name: &str, at: &Checkpoint, why: &StoppedSubscription) -> Result<bool> {
        let sql = self.0.statements()?;
        let stop = sqlx::query(sql.log.stop.clone()).bind(name).bind(at.position).bind(at.token);
        self.write("log.stop", stop.bind(&why.why).bind(why.at)).await
    }

    async fn resume_subscription(&self, name: &str, at: &Checkpoint, behind: i64) -> Result<bool> {
        let sql = self.0.statements()?;
        let resume = sqlx::query(sql.log.resume.clone()).bind(name).bind(at.position).bind(at.token).bind(behind);
        self.write("log.resume", resume).await
    }

    async fn remove_subscription(&self, name: &str) -> Result<bool> {
        let sql = self.0.statements()?;
        self.write("log.remove", sqlx::query(sql.log.remove.clone()).bind(name)).await
    }
}
