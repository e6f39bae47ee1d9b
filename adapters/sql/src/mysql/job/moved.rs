//! Rows on their way to the finished ones.

use polybus_core::Result;
use polybus_patterns::store::JobOutcome;

use super::{
    super::{
        MySql,
        control_conn::ControlConn,
        literals::{Value, fill, numbers},
    },
    AT_ONCE,
};

statements! {
    MovedSql {
        // The rows are locked: without that, this would read what was committed last.
        copy = "INSERT INTO {job_done} (id, queue, kind, outcome, priority, run_at, attempt, max_attempts, unique_key,
                unique_until, schedule, progress, note, last_error, result, created_at, finished_at, head, data)
            SELECT id, queue, kind, ?2, priority, run_at, attempt, max_attempts, unique_key, unique_until, schedule,
                progress, note, COALESCE(?4, last_error), ?3, created_at, {now}, head, data
            FROM {job} FORCE INDEX (PRIMARY) WHERE id IN (?1) ORDER BY id";
        delete = "DELETE FROM {job} WHERE id IN (?1) ORDER BY id";
    }
}

/// The statements that finish rows which are locked. The ids are sorted.
pub(super) fn finish(
    sql: &MovedSql,
    ids: &[i64],
    outcome: JobOutcome,
    result: Option<&str>,
    error: Option<&str>,
) -> Vec<String> {
    let copies = ids.chunks(AT_ONCE).map(|ids| {
        let ids = numbers(ids.iter().copied());
        fill(sql.copy.as_str(), &[Value::Sql(&ids), i32::from(outcome.number()).into(), result.into(), error.into()])
    });
    copies.collect()
}

/// The statements that delete rows which were finished. The ids are sorted.
pub(super) fn delete(sql: &MovedSql, ids: &[i64]) -> Vec<String> {
    ids.chunks(AT_ONCE).map(|ids| fill(sql.delete.as_str(), &[Value::Sql(&numbers(ids.iter().copied()))])).collect()
}

/// Runs the last statements of a transaction in as few texts as the server takes, and commits.
pub(super) async fn commit(
    store: &MySql,
    mut conn: ControlConn,
    statements: &[String],
) -> Result<super::super::control_conn::Answer> {
    let max_packet = store.server().await?.max_packet;
    let (mut text, mut first) = (String::new(), true);
    for statement in statements {
        if !first && text.len() + statement.len() + 256 > max_packet {
            conn.run_part(&text).await?;
            text.clear();
            first = true;
        }
        if !first {
            text.push_str("; ");
        }
        text.push_str(statement);
        first = false;
    }
    conn.commit_parts(&text).await
}
