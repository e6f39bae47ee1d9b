//! Jobs as people see them, and what people do to them.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use polybus_core::Result;
use polybus_patterns::store::{JobFilter, JobOutcome, JobState, StoredJob};
use sqlx::{Row, mysql::MySqlRow};

use super::{
    super::{
        MySql,
        control_conn::{Again, decoded, text},
        literals::{Value, byte_strings, fill, numbers},
        reading,
    },
    AT_ONCE,
    keys::{self, Key},
    moved,
};
use crate::{
    job_filter::{StateValue, completed_only, retries_completed, state_of},
    text::stored_text,
};

statements! {
    AdminSql {
        list_jobs = "SELECT id, queue, kind, state, priority, attempt, max_attempts, head, data, schedule, progress, note,
                cancelled, last_error, NULL, created_at, run_at, locked_until, NULL
            FROM {job} WHERE ?1 AND id > ?2 ORDER BY id LIMIT ?3";
        list_done = "SELECT id, queue, kind, outcome, priority, attempt, max_attempts, head, data, schedule, progress,
                note, 0, last_error, result, created_at, run_at, NULL, finished_at
            FROM {job_done} WHERE ?1 AND id > ?2 ORDER BY id LIMIT ?3";
        // Without locks: a search would lock, and wait for, all rows that it passes, also those of other queues.
        meant = "SELECT id FROM {job} WHERE ?1 ORDER BY id";
        chosen = "SELECT id, state FROM {job} FORCE INDEX (PRIMARY) WHERE id IN (?1) AND ?2 ORDER BY id FOR UPDATE";
        chosen_done = "SELECT id FROM {job_done} WHERE ?1 ORDER BY id FOR UPDATE";
        keys_of_done = "SELECT id, unique_key FROM {job_done} WHERE ?1 ORDER BY id";
        now = "UPDATE {job} FORCE INDEX (PRIMARY) SET state = 0, run_at = {now} WHERE id IN (?1) ORDER BY id";
        put_back = "INSERT INTO {job} (id, queue, kind, state, priority, run_at, attempt, max_attempts, unique_key,
                unique_until, schedule, last_error, created_at, head, data)
            SELECT id, queue, kind, 0, priority, {now}, 0, max_attempts, unique_key, unique_until, schedule, last_error,
                created_at, head, data
            FROM {job_done} FORCE INDEX (PRIMARY) WHERE id IN (?1) ORDER BY id";
        discard_done = "UPDATE {job_done} FORCE INDEX (PRIMARY) SET outcome = 1, last_error = ?2
            WHERE id IN (?1) AND outcome = 0 ORDER BY id";
        remove_done = "DELETE FROM {job_done} WHERE id IN (?1) ORDER BY id";
        tell = "UPDATE {job} FORCE INDEX (PRIMARY) SET cancelled = 1 WHERE id IN (?1) ORDER BY id";
    }
}

/// The filter as a condition on rows with this column of their state; `None` where no row is meant.
fn condition(filter: &JobFilter, column: &str, state: StateValue) -> Option<String> {
    let mut all = vec!["TRUE".to_owned()];
    match &filter.ids {
        Some(ids) if ids.is_empty() => return None,
        Some(ids) => all.push(format!("id IN ({})", numbers(ids.iter().copied()))),
        None => {}
    }
    let texts = [("queue", &filter.queue), ("kind", &filter.kind), ("schedule", &filter.schedule)];
    for (column, text) in texts {
        if let Some(text) = text {
            all.push(format!("{column} = {}", byte_strings([text.as_bytes()])));
        }
    }
    if let Some(error) = &filter.error {
        all.push(format!("SUBSTRING(last_error, 1, {}) = {}", error.len(), byte_strings([error.as_bytes()])));
    }
    if let Some(state) = state.value()? {
        all.push(format!("{column} = {state}"));
    }
    Some(all.join(" AND "))
}

fn of_waiting(filter: &JobFilter) -> Option<String> {
    condition(filter, "state", StateValue::of_waiting(filter))
}

fn of_finished(filter: &JobFilter) -> Option<String> {
    condition(filter, "outcome", StateValue::of_finished(filter))
}

fn stored(row: &MySqlRow, state: impl Fn(i16) -> JobState) -> Result<StoredJob, sqlx::Error> {
    let maybe = |n: usize| Ok::<_, sqlx::Error>(row.try_get::<Option<Vec<u8>>, _>(n)?.map(text));
    let number = |n: usize| Ok::<_, sqlx::Error>(row.try_get::<i32, _>(n)?.unsigned_abs());
    Ok(StoredJob {
        id: row.try_get(0)?,
        queue: text(row.try_get(1)?),
        kind: text(row.try_get(2)?),
        state: state(row.try_get::<i8, _>(3)?.into()),
        priority: row.try_get(4)?,
        attempt: number(5)?,
        max_attempts: number(6)?,
        head: text(row.try_get(7)?),
        data: Bytes::from(row.try_get::<Vec<u8>, _>(8)?),
        schedule: maybe(9)?,
        progress: row.try_get(10)?,
        note: maybe(11)?,
        cancelled: row.try_get_unchecked::<i64, _>(12)? != 0,
        last_error: maybe(13)?,
        result: maybe(14)?,
        created_at: row.try_get(15)?,
        run_at: row.try_get(16)?,
        locked_until: row.try_get(17)?,
        finished_at: row.try_get(18)?,
    })
}

pub(super) async fn list(store: &MySql, filter: &JobFilter, after: i64, limit: u32) -> Result<Vec<StoredJob>> {
    const OPERATION: &str = "job.list";
    let sql = store.statements().await?;
    let mut jobs: Vec<StoredJob> = Vec::new();
    let page: [Value<'_>; 2] = [after.into(), i64::from(limit).into()];
    // The waiting ones first: one that is finished in between is then there twice, and not missed.
    if let Some(condition) = of_waiting(filter) {
        let values = [Value::Sql(&condition), page[0].clone(), page[1].clone()];
        let answer = store.look(OPERATION, &fill(sql.job.admin.list_jobs.as_str(), &values)).await?;
        let found = answer.rows.iter().map(|row| stored(row, state_of)).collect::<Result<Vec<_>, _>>();
        jobs.extend(found.map_err(reading(OPERATION))?);
    }
    if let Some(condition) = of_finished(filter) {
        let values = [Value::Sql(&condition), page[0].clone(), page[1].clone()];
        let answer = store.look(OPERATION, &fill(sql.job.admin.list_done.as_str(), &values)).await?;
        let state = |number| JobState::Finished(JobOutcome::of_number(number));
        let found = answer.rows.iter().map(|row| stored(row, state)).collect::<Result<Vec<_>, _>>();
        jobs.extend(found.map_err(reading(OPERATION))?);
    }
    // Of one that is there twice, the finished one is the truth.
    jobs.sort_by_key(|job| (job.id, job.finished_at.is_none()));
    jobs.dedup_by_key(|job| job.id);
    jobs.truncate(limit as usize);
    Ok(jobs)
}

/// What is done to jobs that are not finished.
#[derive(Clone, Copy)]
enum Deed<'a> {
    RunNow,
    Cancel,
    Discard(&'a str),
}

async fn do_to_waiting(store: &MySql, operation: &'static str, filter: &JobFilter, deed: Deed<'_>) -> Result<u64> {
    let Some(condition) = of_waiting(filter) else { return Ok(0) };
    let condition = match deed {
        Deed::RunNow => format!("{condition} AND state = 1"),
        Deed::Cancel => format!("{condition} AND cancelled = 0"),
        Deed::Discard(_) => format!("{condition} AND state <> 2"),
    };
    let sql = store.statements().await?;
    let meant = store.look(operation, &fill(sql.job.admin.meant.as_str(), &[Value::Sql(&condition)])).await?;
    let meant: Vec<i64> = decoded::<(i64,)>(&meant.rows, operation)?.into_iter().map(|(id,)| id).collect();
    let mut done = 0;
    for ids in meant.chunks(AT_ONCE) {
        let mut again = Again::default();
        done += loop {
            match do_once(store, operation, (ids, &condition), deed).await {
                Err(e) if again.after(&e).await => {}
                done => break done?,
            }
        };
    }
    Ok(done)
}

async fn do_once(
    store: &MySql,
    operation: &'static str,
    (ids, condition): (&[i64], &str),
    deed: Deed<'_>,
) -> Result<u64> {
    let sql = store.statements().await?;
    let mut conn = store.control_conn(operation).await?;
    let ids = numbers(ids.iter().copied());
    let chosen = fill(sql.job.admin.chosen.as_str(), &[Value::Sql(&ids), Value::Sql(condition)]);
    let chosen = conn.begin_parts(&chosen).await?;
    let chosen: Vec<(i64, i8)> = decoded(&chosen.rows, operation)?;
    let of = |running: bool| -> Vec<i64> {
        chosen.iter().filter(|(_, state)| (*state == 2) == running).map(|(id, _)| *id).collect()
    };
    let (waiting, running) = (of(false), of(true));
    let each = |statement: &str, ids: &[i64]| -> Vec<String> {
        let fill = |ids: &[i64]| fill(statement, &[Value::Sql(&numbers(ids.iter().copied()))]);
        ids.chunks(AT_ONCE).map(fill).collect()
    };
    let moves = &sql.job.moved;
    let statements = match deed {
        Deed::RunNow => each(sql.job.admin.now.as_str(), &waiting),
        Deed::Cancel => {
            let mut statements = moved::finish(moves, &waiting, JobOutcome::Cancelled, None, None);
            statements.extend(moved::delete(moves, &waiting));
            statements.extend(each(sql.job.admin.tell.as_str(), &running));
            statements
        }
        Deed::Discard(error) => {
            let mut statements = moved::finish(moves, &waiting, JobOutcome::Discarded, None, Some(error));
            statements.extend(moved::delete(moves, &waiting));
            statements
        }
    };
    moved::commit(store, conn, &statements).await?;
    Ok(chosen.len() as u64)
}

pub(super) async fn retry(store: &MySql, filter: &JobFilter) -> Result<u64> {
    const OPERATION: &str = "job.retry";
    let mut retried = do_to_waiting(store, OPERATION, filter, Deed::RunNow).await?;
    if let Some(mut condition) = of_finished(filter) {
        if !retries_completed(filter) {
            condition += " AND outcome <> 0";
        }
        let mut again = Again::default();
        retried += loop {
            match put_back(store, &condition).await {
                Err(e) if again.after(&e).await => {}
                back => break back?,
            }
        };
    }
    if retried > 0 {
        store.0.changes.committed();
    }
    Ok(retried)
}

async fn put_back(store: &MySql, condition: &str) -> Result<u64> {
    const OPERATION: &str = "job.retry";
    let sql = store.statements().await?;
    let looked = store.look(OPERATION, &fill(sql.job.admin.keys_of_done.as_str(), &[Value::Sql(condition)])).await?;
    let looked: Vec<(i64, Option<Vec<u8>>)> = decoded(&looked.rows, OPERATION)?;
    let keys: HashMap<i64, Key> =
        looked.iter().filter_map(|(id, key)| Some((*id, Key::try_from(key.as_deref()?).ok()?))).collect();
    let ids: Vec<i64> = looked.iter().map(|(id, _)| *id).collect();
    let all_keys: BTreeSet<Key> = keys.values().copied().collect();
    keys::make_turns(store, &all_keys).await?;
    let mut back = 0;
    for ids in ids.chunks(AT_ONCE) {
        let mut conn = store.control_conn(OPERATION).await?;
        let condition = format!("id IN ({}) AND {condition}", numbers(ids.iter().copied()));
        let chosen = conn.begin_parts(&fill(sql.job.admin.chosen_done.as_str(), &[Value::Sql(&condition)])).await?;
        let mut chosen: Vec<i64> = decoded::<(i64,)>(&chosen.rows, OPERATION)?.into_iter().map(|(id,)| id).collect();
        let wanted: BTreeSet<Key> = chosen.iter().filter_map(|id| keys.get(id)).copied().collect();
        let holders = match wanted.is_empty() {
            true => HashMap::new(),
            false => keys::take_turns(store, conn.part_conn(), &wanted).await?,
        };
        // Of several with one key, the first one has it.
        let mut seen = BTreeSet::new();
        chosen.retain(|id| {
            let Some(key) = keys.get(id) else { return true };
            holders.get(key).and_then(|holder| holder.job()).is_none() && seen.insert(*key)
        });
        let mut statements = Vec::new();
        if !chosen.is_empty() {
            let chosen = numbers(chosen.iter().copied());
            statements.push(fill(sql.job.admin.put_back.as_str(), &[Value::Sql(&chosen)]));
            statements.push(fill(sql.job.admin.remove_done.as_str(), &[Value::Sql(&chosen)]));
        }
        back += chosen.len() as u64;
        moved::commit(store, conn, &statements).await?;
    }
    Ok(back)
}

pub(super) async fn cancel(store: &MySql, filter: &JobFilter) -> Result<u64> {
    do_to_waiting(store, "job.cancel", filter, Deed::Cancel).await
}

pub(super) async fn discard(store: &MySql, filter: &JobFilter, error: &str) -> Result<u64> {
    const OPERATION: &str = "job.discard";
    let error = stored_text(error);
    if completed_only(filter).is_none() {
        return do_to_waiting(store, OPERATION, filter, Deed::Discard(&error)).await;
    }
    let sql = store.statements().await?;
    let discard = |ids: &[i64]| {
        let values = [Value::Sql(&numbers(ids.iter().copied())), Value::Bytes(error.as_bytes())];
        fill(sql.job.admin.discard_done.as_str(), &values)
    };
    each_done(store, OPERATION, filter, discard).await
}

pub(super) async fn delete(store: &MySql, filter: &JobFilter) -> Result<u64> {
    let sql = store.statements().await?;
    let delete = |ids: &[i64]| fill(sql.job.admin.remove_done.as_str(), &[Value::Sql(&numbers(ids.iter().copied()))]);
    each_done(store, "job.delete", filter, delete).await
}

/// Runs a statement on the finished jobs of a filter. Answers how many rows it changed.
async fn each_done(
    store: &MySql,
    operation: &'static str,
    filter: &JobFilter,
    statement: impl Fn(&[i64]) -> String,
) -> Result<u64> {
    let Some(condition) = of_finished(filter) else { return Ok(0) };
    let sql = store.statements().await?;
    let looked = store.look(operation, &fill(sql.job.admin.keys_of_done.as_str(), &[Value::Sql(&condition)])).await?;
    let ids: Vec<i64> =
        decoded::<(i64, Option<Vec<u8>>)>(&looked.rows, operation)?.into_iter().map(|(id, _)| id).collect();
    let mut changed = 0;
    for ids in ids.chunks(AT_ONCE) {
        changed += store.run(operation, &statement(ids)).await?.affected;
    }
    Ok(changed)
}
