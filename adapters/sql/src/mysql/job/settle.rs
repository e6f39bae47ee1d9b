//! The ends of runs.

use std::collections::{BTreeMap, HashMap, HashSet};

use polybus_core::Result;
use polybus_patterns::store::{JobEnd, JobEnding, JobOutcome, JobSettled, micros};

use super::{
    super::{
        MySql,
        control_conn::{Again, ControlConn, decoded},
        literals::{Value, fill, numbers},
    },
    AT_ONCE, keys, moved,
};
use crate::text::stored_text;

statements! {
    SettleSql {
        mine = "SELECT id, attempt, cancelled, unique_key FROM {job} FORCE INDEX (PRIMARY)
            WHERE id IN (?1) AND state = 2 AND locked_by = ?2 ORDER BY id FOR UPDATE SKIP LOCKED";
        // What of these is not among the rows that could be locked is held by somebody else.
        seen = "SELECT id, attempt, cancelled, NULL FROM {job} FORCE INDEX (PRIMARY)
            WHERE id IN (?1) AND state = 2 AND locked_by = ?2";
        again = "UPDATE {job} FORCE INDEX (PRIMARY) SET state = IF(?2 > 0, 1, 0),
                run_at = IF(?2 > 0, {now} + ?2, run_at), attempt = attempt - ?3, locked_by = NULL, locked_until = NULL,
                term = NULL, last_error = COALESCE(?4, last_error)
            WHERE id IN (?1) ORDER BY id";
    }
}

const OPERATION: &str = "job.settle";

/// A run that was found to be this worker's.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) is_cancelled: bool,
    key: Option<Vec<u8>>,
}

/// Runs of a worker by id and attempt: those that are locked now, and those that somebody else has locked.
#[derive(Debug, Default)]
pub(super) struct Runs {
    pub(super) locked: HashMap<(i64, u32), Run>,
    pub(super) busy: HashSet<(i64, u32)>,
}

type Row = (i64, i64, i64, Option<Vec<u8>>);

fn by_run(row: Row) -> ((i64, u32), Run) {
    let (id, attempt, cancelled, key) = row;
    ((id, u32::try_from(attempt).unwrap_or(0)), Run { is_cancelled: cancelled != 0, key })
}

/// Begins a transaction and locks those of these rows that nobody else has locked. The ids are sorted.
pub(super) async fn lock_runs(
    store: &MySql,
    conn: &mut ControlConn,
    operation: &'static str,
    worker: &[u8; 16],
    ids: &[i64],
) -> Result<Runs> {
    let sql = store.statements().await?;
    let mut runs = Runs::default();
    for (n, ids) in ids.chunks(AT_ONCE).enumerate() {
        let ids = numbers(ids.iter().copied());
        let values = [Value::Sql(&ids), Value::Bytes(worker)];
        let mine = fill(sql.job.settle.mine.as_str(), &values);
        let mine = if n == 0 { conn.begin_parts(&mine).await? } else { conn.run_part(&mine).await? };
        let locked: Vec<Row> = decoded(&mine.rows, operation)?;
        if locked.len() < ids.split(',').count() {
            let seen = conn.run_part(&fill(sql.job.settle.seen.as_str(), &values)).await?;
            runs.busy.extend(decoded::<Row>(&seen.rows, operation)?.into_iter().map(|row| by_run(row).0));
        }
        runs.locked.extend(locked.into_iter().map(by_run));
    }
    runs.busy.retain(|run| !runs.locked.contains_key(run));
    Ok(runs)
}

pub(super) async fn settle(store: &MySql, worker: [u8; 16], endings: &[JobEnding]) -> Result<Vec<JobSettled>> {
    if endings.is_empty() {
        return Ok(Vec::new());
    }
    let mut again = Again::default();
    let settled = loop {
        match settle_once(store, &worker, endings).await {
            Err(e) if again.after(&e).await => {}
            settled => break settled?,
        }
    };
    let is_available = |(ending, settled): (&JobEnding, &JobSettled)| {
        *settled == JobSettled::Written && matches!(ending.how, JobEnd::Again { delay, .. } if delay.is_zero())
    };
    if endings.iter().zip(&settled).any(is_available) {
        store.0.changes.committed();
    }
    Ok(settled)
}

async fn settle_once(store: &MySql, worker: &[u8; 16], endings: &[JobEnding]) -> Result<Vec<JobSettled>> {
    let sql = store.statements().await?;
    let mut ids: Vec<i64> = endings.iter().map(|ending| ending.id).collect();
    ids.sort_unstable();
    ids.dedup();
    let mut conn = store.control_conn(OPERATION).await?;
    let runs = lock_runs(store, &mut conn, OPERATION, worker, &ids).await?;
    let freed: Vec<Vec<u8>> = endings
        .iter()
        .filter_map(|ending| {
            let run = runs.locked.get(&(ending.id, ending.attempt))?;
            ends(&ending.how, run).then(|| run.key.clone())?
        })
        .collect();
    let lockable = match freed.is_empty() {
        true => HashSet::new(),
        false => keys::lock_index(store, &mut conn, &freed).await?,
    };
    let mut writes = Writes::default();
    let mut written = HashSet::new();
    let settled = endings.iter().map(|ending| {
        let run = (ending.id, ending.attempt);
        match runs.locked.get(&run) {
            // The second end of the same run finds none.
            Some(_) if !written.insert(run) => JobSettled::Lost,
            Some(found) if ends(&ending.how, found) && found.key.is_some() && !lockable.contains(&ending.id) => {
                JobSettled::Busy
            }
            Some(found) => {
                writes.add(ending, found);
                JobSettled::Written
            }
            None if runs.busy.contains(&run) => JobSettled::Busy,
            None => JobSettled::Lost,
        }
    });
    let settled = settled.collect();
    moved::commit(store, conn, &writes.statements(&sql.job.moved, &sql.job.settle)).await?;
    Ok(settled)
}

/// Whether the row leaves the queue.
fn ends(how: &JobEnd, run: &Run) -> bool {
    matches!(how, JobEnd::Finished { .. }) || run.is_cancelled
}

/// What is to be written, the same things together.
#[derive(Default)]
struct Writes {
    finished: BTreeMap<(i16, Option<String>, Option<String>), Vec<i64>>,
    again: BTreeMap<(i64, i64, Option<String>), Vec<i64>>,
}

impl Writes {
    fn add(&mut self, ending: &JobEnding, run: &Run) {
        match &ending.how {
            JobEnd::Finished { outcome, result, error } => {
                let error = error.as_deref().map(stored_text);
                self.finished.entry((outcome.number(), result.clone(), error)).or_default().push(ending.id);
            }
            JobEnd::Again { error, .. } if run.is_cancelled => {
                let error = error.as_deref().map(stored_text);
                self.finished.entry((JobOutcome::Cancelled.number(), None, error)).or_default().push(ending.id);
            }
            JobEnd::Again { delay, counts, error } => {
                let error = error.as_deref().map(stored_text);
                self.again.entry((micros(*delay), i64::from(!counts), error)).or_default().push(ending.id);
            }
        }
    }

    fn statements(mut self, moved: &moved::MovedSql, sql: &SettleSql) -> Vec<String> {
        let mut statements = Vec::new();
        let mut finished = Vec::new();
        for ((outcome, result, error), ids) in &mut self.finished {
            ids.sort_unstable();
            finished.extend(ids.iter().copied());
            let outcome = JobOutcome::of_number(*outcome);
            statements.extend(moved::finish(moved, ids, outcome, result.as_deref(), error.as_deref()));
        }
        finished.sort_unstable();
        statements.extend(moved::delete(moved, &finished));
        for ((delay, back, error), ids) in &mut self.again {
            ids.sort_unstable();
            for ids in ids.chunks(AT_ONCE) {
                let ids = numbers(ids.iter().copied());
                let values = [Value::Sql(&ids), (*delay).into(), (*back).into(), error.as_deref().into()];
                statements.push(fill(sql.again.as_str(), &values));
            }
        }
        statements
    }
}
