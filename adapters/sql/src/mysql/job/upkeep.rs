//! What is done for jobs that nobody has at the moment.

use std::{collections::HashSet, time::Duration};

use polybus_core::Result;
use polybus_patterns::store::{DueRows, JobOutcome, RescuedJobs, micros};

use super::{
    super::{
        MySql,
        control_conn::{Again, decoded},
        literals::{Value, fill, numbers},
    },
    AT_ONCE, keys, moved,
};
use crate::text::stored_text;

statements! {
    UpkeepSql {
        // A lease that ends further ahead than its own term is one from before the clock was set back. The clock is that of
        // the statement's begin, and others may have renewed a row since, so a minute is allowed for.
        is_lost = "SELECT 1 FROM {job} FORCE INDEX (by_lease)
            WHERE state = 2 AND (locked_until <= {now} OR locked_until > {now} + term + 60000000) LIMIT 1";
        lost = "SELECT id, attempt >= max_attempts, cancelled <> 0, unique_key FROM {job} FORCE INDEX (by_lease)
            WHERE state = 2 AND (locked_until <= {now} OR locked_until > {now} + term + 60000000) LIMIT ?1
            FOR UPDATE SKIP LOCKED";
        free = "UPDATE {job} FORCE INDEX (PRIMARY) SET state = 0, last_error = ?2, locked_by = NULL,
                locked_until = NULL, term = NULL
            WHERE id IN (?1) ORDER BY id";
        next = "SELECT MIN(run_at) - {now} FROM {job} FORCE INDEX (by_due) WHERE state = 1";
        due = "SELECT id FROM {job} FORCE INDEX (by_due)
            WHERE state = 1 AND run_at <= {now} ORDER BY run_at LIMIT ?1 FOR UPDATE SKIP LOCKED";
        promote = "UPDATE {job} FORCE INDEX (PRIMARY) SET state = 0 WHERE id IN (?1) ORDER BY id";
        prune = "DELETE FROM {job_done} WHERE outcome = ?1 AND finished_at < {now} - ?2 ORDER BY finished_at LIMIT ?3";
        prune_keys = "DELETE FROM {job_unique} WHERE until_at <= {now} ORDER BY until_at LIMIT ?1";
    }
}

type Lost = (i64, i64, i64, Option<Vec<u8>>);

pub(super) async fn rescue(store: &MySql, error: &str, limit: u32) -> Result<RescuedJobs> {
    const OPERATION: &str = "job.rescue";
    let sql = store.statements().await?;
    // Most looks find nothing.
    if store.look(OPERATION, sql.job.upkeep.is_lost.as_str()).await?.rows.is_empty() {
        return Ok(RescuedJobs::default());
    }
    let error = stored_text(error);
    let mut again = Again::default();
    let rescued = loop {
        match rescue_once(store, &error, limit).await {
            Err(e) if again.after(&e).await => {}
            rescued => break rescued?,
        }
    };
    if rescued.again > 0 {
        store.0.changes.committed();
    }
    Ok(rescued)
}

async fn rescue_once(store: &MySql, error: &str, limit: u32) -> Result<RescuedJobs> {
    const OPERATION: &str = "job.rescue";
    let sql = store.statements().await?;
    let mut conn = store.control_conn(OPERATION).await?;
    let lost = conn.begin_parts(&fill(sql.job.upkeep.lost.as_str(), &[i64::from(limit).into()])).await?;
    let mut lost: Vec<Lost> = decoded(&lost.rows, OPERATION)?;
    lost.sort_unstable_by_key(|row| row.0);
    let ends = |row: &Lost| row.1 != 0 || row.2 != 0;
    let freed: Vec<Vec<u8>> = lost.iter().filter(|row| ends(row)).filter_map(|row| row.3.clone()).collect();
    let lockable = match freed.is_empty() {
        true => HashSet::new(),
        false => keys::lock_index(store, &mut conn, &freed).await?,
    };
    lost.retain(|row| !ends(row) || row.3.is_none() || lockable.contains(&row.0));
    let of = |wanted: fn(&Lost) -> bool| lost.iter().filter(|row| wanted(row)).map(|row| row.0).collect::<Vec<i64>>();
    let cancelled = of(|row| row.2 != 0);
    let discarded = of(|row| row.1 != 0 && row.2 == 0);
    let free = of(|row| row.1 == 0 && row.2 == 0);
    let moves = &sql.job.moved;
    let mut statements = moved::finish(moves, &cancelled, JobOutcome::Cancelled, None, Some(error));
    statements.extend(moved::finish(moves, &discarded, JobOutcome::Discarded, None, Some(error)));
    statements.extend(moved::delete(moves, &of(ends)));
    statements.extend(free.chunks(AT_ONCE).map(|ids| {
        let ids = numbers(ids.iter().copied());
        fill(sql.job.upkeep.free.as_str(), &[Value::Sql(&ids), error.into()])
    }));
    moved::commit(store, conn, &statements).await?;
    let [again, discarded, cancelled] = [free, discarded, cancelled].map(|ids| ids.len() as u64);
    Ok(RescuedJobs { again, discarded, cancelled })
}

pub(super) async fn promote(store: &MySql, limit: u32) -> Result<DueRows> {
    const OPERATION: &str = "job.promote";
    let sql = store.statements().await?;
    let next = async || -> Result<Option<i64>> {
        let next = store.look(OPERATION, sql.job.upkeep.next.as_str()).await?;
        Ok(decoded::<(Option<i64>,)>(&next.rows, OPERATION)?.into_iter().find_map(|(waits,)| waits))
    };
    let (mut due, mut waits) = (DueRows::default(), next().await?);
    if waits.is_some_and(|waits| waits <= 0) {
        let mut again = Again::default();
        due.moved = loop {
            match promote_once(store, limit).await {
                Err(e) if again.after(&e).await => {}
                moved => break moved?,
            }
        };
        waits = next().await?;
    }
    due.next = waits.map(|waits| Duration::from_micros(u64::try_from(waits).unwrap_or(0)));
    Ok(due)
}

async fn promote_once(store: &MySql, limit: u32) -> Result<u64> {
    const OPERATION: &str = "job.promote";
    let sql = store.statements().await?;
    let mut conn = store.control_conn(OPERATION).await?;
    let due = conn.begin_parts(&fill(sql.job.upkeep.due.as_str(), &[i64::from(limit).into()])).await?;
    let mut due: Vec<i64> = decoded::<(i64,)>(&due.rows, OPERATION)?.into_iter().map(|(id,)| id).collect();
    due.sort_unstable();
    let promotes: Vec<String> = due
        .chunks(AT_ONCE)
        .map(|ids| fill(sql.job.upkeep.promote.as_str(), &[Value::Sql(&numbers(ids.iter().copied()))]))
        .collect();
    moved::commit(store, conn, &promotes).await?;
    Ok(due.len() as u64)
}

pub(super) async fn prune(store: &MySql, completed: Duration, others: Duration, limit: u32) -> Result<u64> {
    const OPERATION: &str = "job.prune";
    let sql = store.statements().await?;
    let limit = i64::from(limit);
    let (completed, others) = (micros(completed), micros(others));
    let outcomes = [(0, completed), (1, others), (2, others)];
    let mut rows = 0;
    for (outcome, age) in outcomes {
        let prune = fill(sql.job.upkeep.prune.as_str(), &[outcome.into(), age.into(), limit.into()]);
        rows += store.run(OPERATION, &prune).await?.affected;
    }
    rows += store.run(OPERATION, &fill(sql.job.upkeep.prune_keys.as_str(), &[limit.into()])).await?.affected;
    Ok(rows)
}
