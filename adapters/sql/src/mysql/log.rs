//! The event log. Whoever appends locks the log's row until its transaction ends, before anything else: so events come in
//! the order of commits, and two that append to several streams do not lock each other out.

use std::{collections::HashMap, sync::Arc};

use polybus_core::{Error, ErrorKind, Result, driver::async_trait};
use polybus_patterns::store::{
    AppendOutcome, Checkpoint, LogFloor, LogPage, LogStore, LogTable, StoppedSubscription, StoredEvent, StoredSnapshot,
    StoredStream, StoredSubscription, StreamAppend, StreamRead, StreamState,
};
use sqlx::{AssertSqlSafe, MySqlConnection, raw_sql};

use super::{
    MySql, SYSTEM,
    control_conn::{Answer, decoded, text},
    literals::{Value, byte_strings, fill},
    reading,
};
use crate::log::{APPEND, SnapshotRow, event, outcome, page, state, state_number, subscription};

statements! {
    LogSql {
        // What is committed, also in a transaction that reads from a snapshot.
        lock = "SELECT 0, NULL, NULL, head, 0 FROM {log} WHERE id = 1 FOR UPDATE;
            SELECT 1, stream, NULL, version, state FROM {log_stream} WHERE stream IN (?1) FOR UPDATE;
            SELECT 2, stream, event_id, version, pos FROM {log_event} FORCE INDEX (by_id) WHERE ?2
            ORDER BY stream, version FOR UPDATE";
        of_stream = "(stream = ?1 AND event_id IN (?2))";
        // The log's row first, as in an append.
        change = "SELECT head FROM {log} WHERE id = 1 FOR UPDATE;
            UPDATE {log_stream} SET state = ?3 WHERE stream = ?1 AND state = ?2";
        delete = "DELETE FROM {log_event} WHERE stream = ?1 AND version < ?2";
        delete_snapshots = "DELETE FROM {log_snapshot} WHERE stream = ?1";
        snapshot = "SELECT schema_version, version, data FROM {log_snapshot} WHERE stream = ?1 AND kind = ?2";
        put_snapshot = "INSERT INTO {log_snapshot} (stream, kind, schema_version, version, data)
            SELECT ?1, ?2, ?3, ?4, ?5 FROM {log_stream} AS s WHERE s.stream = ?1 AND s.state <> 2
            ON DUPLICATE KEY UPDATE schema_version = ?3, version = ?4, data = ?5";
        write = "INSERT INTO {log_event} (pos, stream, version, event_id, kind, written_at, head, data) VALUES ?1;
            INSERT INTO {log_stream} (stream, version) VALUES ?2 ON DUPLICATE KEY UPDATE version = VALUES(version);
            UPDATE {log} SET head = ?3 WHERE id = 1";
        written = "(?1, ?2, ?3, ?4, ?5, {now}, ?6, ?7)";
        stream = "SELECT stream, version, state FROM {log_stream} WHERE stream = ?1";
        forwards = "SELECT pos, stream, version, head, data, written_at FROM {log_event} FORCE INDEX (by_version)
            WHERE stream = ?1 AND version > ?2 ORDER BY version LIMIT ?3";
        backwards = "SELECT pos, stream, version, head, data, written_at FROM {log_event} FORCE INDEX (by_version)
            WHERE stream = ?1 AND version < ?2 ORDER BY version DESC LIMIT ?3";
        all = "SELECT pos, stream, version, head, data, written_at FROM {log_event} FORCE INDEX (PRIMARY)
            WHERE pos > ?1 ORDER BY pos LIMIT ?2";
        advance = "UPDATE {log_subscription} SET pos = ?4
            WHERE name = ?1 AND pos = ?2 AND token = ?3 AND stopped_at IS NULL";
        is_at = "SELECT COUNT(*) FROM {log_subscription} WHERE name = ?1 AND pos = ?2 AND token = ?3 LOCK IN SHARE MODE";
        list = "SELECT name, pos, token, stopped_at, stopped_why, stopped_on FROM {log_subscription}
            WHERE ?1 IS NULL OR name = ?1 ORDER BY name";
        make = "INSERT INTO {log_subscription} (name, pos) VALUES (?1, ?2) ON DUPLICATE KEY UPDATE name = name";
        stop = "UPDATE {log_subscription} SET token = token + 1, stopped_at = {now}, stopped_why = ?4, stopped_on = ?5
            WHERE name = ?1 AND pos = ?2 AND token = ?3 AND stopped_at IS NULL";
        resume = "UPDATE {log_subscription}
            SET pos = ?4, token = token + 1, stopped_at = NULL, stopped_why = NULL, stopped_on = NULL
            WHERE name = ?1 AND pos = ?2 AND token = ?3 AND stopped_at IS NOT NULL";
        remove = "DELETE FROM {log_subscription} WHERE name = ?1";
    }
}

/// What the rows and their punctuation need in a statement beside names, heads and payloads.
const OVERHEAD: usize = 4096;

type Locked = (i64, Option<Vec<u8>>, Option<Vec<u8>>, i64, i64);

/// What an append has locked.
#[derive(Default)]
struct Found {
    head: i64,
    streams: HashMap<String, (i64, StreamState)>,
    /// Of each stream the events that it has of those to be appended: id, version, position.
    events: HashMap<String, Vec<(String, i64, i64)>>,
}

impl Found {
    fn of(rows: Vec<Locked>) -> Self {
        let mut found = Self::default();
        for (what, stream, id, first, second) in rows {
            let stream = stream.map(text).unwrap_or_default();
            match what {
                0 => found.head = first,
                1 => drop(found.streams.insert(stream, (first, state(second)))),
                _ => found.events.entry(stream).or_default().push((id.map(text).unwrap_or_default(), first, second)),
            }
        }
        found
    }
}

impl MySql {
    async fn lock_log(&self, conn: &mut MySqlConnection, appends: &[StreamAppend]) -> Result<Found> {
        let sql = self.statements().await?;
        let streams = byte_strings(appends.iter().map(|append| append.stream.as_bytes()));
        let of_stream = |append: &StreamAppend| {
            let ids = byte_strings(append.events.iter().map(|event| event.id.as_bytes()));
            fill(sql.log.of_stream.as_str(), &[append.stream.as_str().into(), Value::Sql(&ids)])
        };
        let events = appends.iter().map(of_stream).collect::<Vec<_>>().join(" OR ");
        let lock = fill(sql.log.lock.as_str(), &[Value::Sql(&streams), Value::Sql(&events)]);
        let rows = raw_sql(AssertSqlSafe(lock)).fetch_all(conn).await.map_err(reading(APPEND))?;
        Ok(Found::of(decoded(&rows, APPEND)?))
    }

    async fn write_events(
        &self,
        conn: &mut MySqlConnection,
        appends: &[StreamAppend],
        outcomes: &[AppendOutcome],
        head: i64,
    ) -> Result<()> {
        let sql = self.statements().await?;
        let (mut events, mut streams) = (Vec::new(), Vec::new());
        for (append, outcome) in appends.iter().zip(outcomes) {
            let AppendOutcome::Appended { first_version, positions } = outcome else { continue };
            for ((event, position), version) in append.events.iter().zip(positions).zip(*first_version..) {
                let values = [
                    (*position).into(),
                    append.stream.as_str().into(),
                    version.into(),
                    event.id.as_str().into(),
                    event.kind.as_str().into(),
                    event.head.as_str().into(),
                    Value::Bytes(&event.data),
                ];
                events.push(fill(sql.log.written.as_str(), &values));
            }
            let last = first_version + append.events.len() as i64 - 1;
            streams.push(fill("(?1, ?2)", &[append.stream.as_str().into(), last.into()]));
        }
        if events.is_empty() {
            return Ok(());
        }
        let (events, streams) = (events.join(", "), streams.join(", "));
        let write = fill(sql.log.write.as_str(), &[Value::Sql(&events), Value::Sql(&streams), head.into()]);
        raw_sql(AssertSqlSafe(write)).execute(conn).await.map_err(reading(APPEND))?;
        Ok(())
    }
}

/// # Errors
/// `PayloadTooLarge` for what the server would answer by closing the connection.
fn check(appends: &[StreamAppend], max_packet: usize) -> Result<()> {
    let of_event = |append: &StreamAppend| -> usize {
        let bytes = |event: &polybus_patterns::store::NewLogEvent| {
            append.stream.len() + event.id.len() + event.kind.len() + event.head.len() + event.data.len() + 100
        };
        append.events.iter().map(bytes).sum()
    };
    // Two digits of a text for each byte.
    let needed = appends.iter().map(of_event).sum::<usize>() * 2 + OVERHEAD;
    if needed <= max_packet {
        return Ok(());
    }
    let text = format!(
        "with {max_packet} bytes, max_allowed_packet of the server must be at least {needed} for this append: raise it, \
         or append less at once"
    );
    Err(Error::new(ErrorKind::PayloadTooLarge, text).of_driver(SYSTEM, APPEND))
}

impl LogStore for MySql {
    async fn append_events(&self, conn: &mut MySqlConnection, appends: &[StreamAppend]) -> Result<Vec<AppendOutcome>> {
        check(appends, self.server().await?.max_packet)?;
        let found = self.lock_log(conn, appends).await?;
        let mut head = found.head;
        let mut outcomes = Vec::with_capacity(appends.len());
        for append in appends {
            let ids: Vec<&str> = append.events.iter().map(|event| event.id.as_str()).collect();
            let there = found.events.get(&append.stream).map(Vec::as_slice).unwrap_or_default();
            let stream = found.streams.get(&append.stream).copied();
            outcomes.push(outcome(append, &ids, stream, there, &mut head));
        }
        if !outcomes.iter().any(|outcome| matches!(outcome, AppendOutcome::Conflict { .. })) {
            self.write_events(conn, appends, &outcomes, head).await?;
        }
        Ok(outcomes)
    }

    async fn change_stream(
        &self,
        conn: &mut MySqlConnection,
        stream: &str,
        from: StreamState,
        to: StreamState,
    ) -> Result<bool> {
        let sql = self.statements().await?;
        let values = [stream.into(), state_number(from).into(), state_number(to).into()];
        let change = raw_sql(AssertSqlSafe(fill(sql.log.change.as_str(), &values)));
        Ok(change.execute(conn).await.map_err(reading("log.stream"))?.rows_affected() > 0)
    }

    async fn delete_events(&self, conn: &mut MySqlConnection, stream: &str, below: i64) -> Result<u64> {
        let sql = self.statements().await?;
        let snapshots = fill(sql.log.delete_snapshots.as_str(), &[stream.into()]);
        raw_sql(AssertSqlSafe(snapshots)).execute(&mut *conn).await.map_err(reading("log.delete"))?;
        let delete = fill(sql.log.delete.as_str(), &[stream.into(), below.into()]);
        let deleted = raw_sql(AssertSqlSafe(delete)).execute(conn).await.map_err(reading("log.delete"))?;
        Ok(deleted.rows_affected())
    }

    async fn move_checkpoint(
        &self,
        conn: &mut MySqlConnection,
        subscription: &str,
        from: &Checkpoint,
        to: i64,
    ) -> Result<bool> {
        let sql = self.statements().await?;
        let values = [subscription.into(), from.position.into(), from.token.into(), to.into()];
        let advance = raw_sql(AssertSqlSafe(fill(sql.log.advance.as_str(), &values)));
        Ok(advance.execute(conn).await.map_err(reading("log.checkpoint"))?.rows_affected() > 0)
    }

    async fn is_checkpoint(&self, conn: &mut MySqlConnection, subscription: &str, at: &Checkpoint) -> Result<bool> {
        const OPERATION: &str = "log.checkpoint";
        let sql = self.statements().await?;
        let is_at = fill(sql.log.is_at.as_str(), &[subscription.into(), at.position.into(), at.token.into()]);
        let rows = raw_sql(AssertSqlSafe(is_at)).fetch_all(conn).await.map_err(reading(OPERATION))?;
        Ok(decoded::<(i64,)>(&rows, OPERATION)?.first() == Some(&(1,)))
    }

    fn log(&self) -> Arc<dyn LogTable> {
        Arc::new(Log(self.clone()))
    }
}

struct Log(MySql);

type EventBytes = (i64, Vec<u8>, i64, Vec<u8>, Vec<u8>, i64);

fn events(answer: &Answer, operation: &'static str) -> Result<Vec<crate::log::EventRow>> {
    let rows = decoded::<EventBytes>(&answer.rows, operation)?;
    let row = |(position, stream, version, head, data, at): EventBytes| {
        (position, text(stream), version, text(head), data, at)
    };
    Ok(rows.into_iter().map(row).collect())
}

impl Log {
    async fn changes(&self, operation: &'static str, statement: &str) -> Result<bool> {
        Ok(self.0.run(operation, statement).await?.affected > 0)
    }
}

#[async_trait]
impl LogTable for Log {
    async fn stream(&self, stream: &str) -> Result<Option<StoredStream>> {
        const OPERATION: &str = "log.stream";
        let sql = self.0.statements().await?;
        let answer = self.0.look(OPERATION, &fill(sql.log.stream.as_str(), &[stream.into()])).await?;
        let row = decoded::<(Vec<u8>, i64, i64)>(&answer.rows, OPERATION)?.pop();
        Ok(row.map(|(name, version, stored)| StoredStream::new(text(name), version, state(stored))))
    }

    async fn read_stream(&self, stream: &str, read: &StreamRead) -> Result<Vec<StoredEvent>> {
        const OPERATION: &str = "log.read";
        let sql = self.0.statements().await?;
        let select = if read.backwards { sql.log.backwards.as_str() } else { sql.log.forwards.as_str() };
        let select = fill(select, &[stream.into(), read.behind.into(), i64::from(read.limit).into()]);
        let answer = self.0.look(OPERATION, &select).await?;
        Ok(events(&answer, OPERATION)?.into_iter().map(event).collect())
    }

    async fn read_all(&self, behind: i64, limit: u32) -> Result<LogPage> {
        const OPERATION: &str = "log.read";
        let sql = self.0.statements().await?;
        let select = fill(sql.log.all.as_str(), &[behind.into(), (i64::from(limit) + 1).into()]);
        let answer = self.0.look(OPERATION, &select).await?;
        Ok(page(events(&answer, OPERATION)?, limit, 0))
    }

    /// Appenders wait for each other, and nobody reads what is not committed.
    async fn floor(&self) -> Result<Option<LogFloor>> {
        Ok(None)
    }

    async fn snapshot(&self, stream: &str, kind: &str) -> Result<Option<StoredSnapshot>> {
        const OPERATION: &str = "log.snapshot";
        let sql = self.0.statements().await?;
        let select = fill(sql.log.snapshot.as_str(), &[stream.into(), kind.into()]);
        let answer = self.0.look(OPERATION, &select).await?;
        Ok(decoded::<SnapshotRow>(&answer.rows, OPERATION)?.pop().map(crate::log::snapshot))
    }

    async fn put_snapshot(&self, stream: &str, kind: &str, snapshot: &StoredSnapshot) -> Result<()> {
        let sql = self.0.statements().await?;
        let values = [
            stream.into(),
            kind.into(),
            i64::from(snapshot.schema).into(),
            snapshot.version.into(),
            Value::Bytes(&snapshot.data),
        ];
        self.0.run("log.snapshot", &fill(sql.log.put_snapshot.as_str(), &values)).await.map(drop)
    }

    async fn subscriptions(&self, name: Option<&str>) -> Result<Vec<StoredSubscription>> {
        const OPERATION: &str = "log.subscriptions";
        type Row = (Vec<u8>, i64, i64, Option<i64>, Option<Vec<u8>>, Option<i64>);
        let sql = self.0.statements().await?;
        let answer = self.0.look(OPERATION, &fill(sql.log.list.as_str(), &[name.into()])).await?;
        let row = |(name, position, token, since, why, at): Row| {
            subscription((text(name), position, token, since, why.map(text), at))
        };
        Ok(decoded::<Row>(&answer.rows, OPERATION)?.into_iter().map(row).collect())
    }

    async fn make_subscription(&self, name: &str, behind: i64) -> Result<StoredSubscription> {
        let sql = self.0.statements().await?;
        loop {
            // Where it is there nothing is written, which would wait for a handler that has it.
            if let Some(made) = self.subscriptions(Some(name)).await?.pop() {
                return Ok(made);
            }
            self.0.run("log.subscribe", &fill(sql.log.make.as_str(), &[name.into(), behind.into()])).await?;
        }
    }

    async fn stop_subscription(&self, name: &str, at: &Checkpoint, why: &StoppedSubscription) -> Result<bool> {
        let sql = self.0.statements().await?;
        let values = [name.into(), at.position.into(), at.token.into(), why.why.as_str().into(), why.at.into()];
        self.changes("log.stop", &fill(sql.log.stop.as_str(), &values)).await
    }

    async fn resume_subscription(&self, name: &str, at: &Checkpoint, behind: i64) -> Result<bool> {
        let sql = self.0.statements().await?;
        let values = [name.into(), at.position.into(), at.token.into(), behind.into()];
        self.changes("log.resume", &fill(sql.log.resume.as_str(), &values)).await
    }

    async fn remove_subscription(&self, name: &str) -> Result<bool> {
        let sql = self.0.statements().await?;
        self.changes("log.remove", &fill(sql.log.remove.as_str(), &[name.into()])).await
    }
}
