//! Appending in the caller's transaction. The function of the migration does it, in one round trip for each stream.

use polybus_core::{Error, ErrorKind, Result};
use polybus_patterns::store::{AppendOutcome, NewLogEvent, StreamAppend, StreamExpectation, StreamState};
use sqlx::PgConnection;

use super::super::{Postgres, SYSTEM, reading};
use crate::log::{APPEND, changed_since, state, state_number};

statements! {
    AppendSql {
        append = "SELECT outcome, first_version, places FROM {log_append}($1, $2, $3, $4, $5, $6, {now})";
        change = "UPDATE {log_stream} SET state = $3 WHERE stream = $1 AND state = $2";
        delete = "WITH gone AS (DELETE FROM {log_snapshot} WHERE stream = $1)
            DELETE FROM {log_event} WHERE stream = $1 AND version < $2";
    }
}

/// What the function calls an expectation.
fn expected(expect: StreamExpectation) -> i64 {
    match expect {
        StreamExpectation::Any => -1,
        StreamExpectation::Exists => -2,
        StreamExpectation::NoStream => 0,
        StreamExpectation::Version(version) => version,
    }
}

pub(super) async fn append(
    store: &Postgres,
    conn: &mut PgConnection,
    appends: &[StreamAppend],
) -> Result<Vec<AppendOutcome>> {
    // What was written to other streams before a conflict is undone.
    let several = appends.len() > 1;
    if several {
        run(conn, "SAVEPOINT polybus_log").await?;
    }
    let mut outcomes = Vec::with_capacity(appends.len());
    for append in appends {
        outcomes.push(append_one(store, conn, append).await?);
    }
    if several {
        let conflicts = outcomes.iter().any(|outcome| matches!(outcome, AppendOutcome::Conflict { .. }));
        if conflicts {
            run(conn, "ROLLBACK TO SAVEPOINT polybus_log").await?;
        }
        run(conn, "RELEASE SAVEPOINT polybus_log").await?;
    }
    Ok(outcomes)
}

async fn run(conn: &mut PgConnection, savepoint: &'static str) -> Result<()> {
    sqlx::query(savepoint).execute(conn).await.map(drop).map_err(reading(APPEND))
}

async fn append_one(store: &Postgres, conn: &mut PgConnection, append: &StreamAppend) -> Result<AppendOutcome> {
    fn column<'a, T>(events: &'a [NewLogEvent], of: impl Fn(&'a NewLogEvent) -> T) -> Vec<T> {
        events.iter().map(of).collect()
    }
    let (sql, events) = (store.statements().await?, &append.events);
    let call = sqlx::query_as(sql.log.append.append.clone())
        .bind(&append.stream)
        .bind(expected(append.expect))
        .bind(column(events, |event| event.id.as_str()))
        .bind(column(events, |event| event.kind.as_str()))
        .bind(column(events, |event| event.head.as_str()))
        .bind(column(events, |event| &event.data[..]));
    let (outcome, first_version, places): (i32, i64, Vec<i64>) = match call.fetch_one(conn).await {
        Ok(row) => row,
        Err(error) if is_serialization_failure(&error) => return Err(changed_since(error, SYSTEM)),
        Err(error) => return Err(reading(APPEND)(error)),
    };
    Ok(match outcome {
        0 => AppendOutcome::Appended { first_version, positions: places },
        1 => AppendOutcome::Repeated { first_version, positions: places },
        2 => AppendOutcome::Conflict { version: first_version, state: state(places.first().copied().unwrap_or(0)) },
        other => {
            let text = format!("the function of the event log answers with {other}, which this code does not know");
            return Err(Error::new(ErrorKind::Unexpected, text).of_driver(SYSTEM, APPEND));
        }
    })
}

fn is_serialization_failure(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == "40001")
}

pub(super) async fn change_stream(
    store: &Postgres,
    conn: &mut PgConnection,
    stream: &str,
    (from, to): (StreamState, StreamState),
) -> Result<bool> {
    let sql = store.statements().await?;
    let change =
        sqlx::query(sql.log.append.change.clone()).bind(stream).bind(state_number(from)).bind(state_number(to));
    match change.execute(conn).await {
        Ok(changed) => Ok(changed.rows_affected() > 0),
        Err(error) if is_serialization_failure(&error) => Err(changed_since(error, SYSTEM)),
        Err(error) => Err(reading("log.stream")(error)),
    }
}

pub(super) async fn delete_events(store: &Postgres, conn: &mut PgConnection, stream: &str, below: i64) -> Result<u64> {
    let sql = store.statements().await?;
    let delete = sqlx::query(sql.log.append.delete.clone()).bind(stream).bind(below);
    Ok(delete.execute(conn).await.map_err(reading("log.delete"))?.rows_affected())
}
