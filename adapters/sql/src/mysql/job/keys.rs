//! Unique keys: whose turn it is, and who has one.
//!
//! Of transactions that wait for a row of the unique index itself, all but one are ended by a deadlock as soon as the one
//! that they wait for rolls back; and who finds a key taken by an INSERT would lock the index beside it until its end.
//! So whoever writes a key locks the key's row of turns first, and then looks.

use std::collections::{BTreeSet, HashMap, HashSet};

use parking_lot::Mutex;
use polybus_core::Result;
use sqlx::{AssertSqlSafe, MySqlConnection, raw_sql};

use super::{
    super::{
        MySql,
        control_conn::{ControlConn, decoded},
        literals::{Value, byte_strings, fill, numbers},
        reading,
    },
    AT_ONCE,
};

statements! {
    KeySql {
        lock = "SELECT 0, NULL, id FROM {job_turn} FORCE INDEX (PRIMARY) WHERE id IN (?1) ORDER BY id FOR UPDATE";
        who = "SELECT IF(unique_until = 0, 4, 1), unique_key, id FROM {job} FORCE INDEX (by_unique) WHERE unique_key IN (?1);
            SELECT IF(until_at > {now}, 2, 3), `key`, job FROM {job_unique} WHERE `key` IN (?1)";
        // As they are now, whatever this transaction sees otherwise.
        hold = "SELECT id FROM {job} FORCE INDEX (PRIMARY) WHERE id IN (?1) AND unique_key IS NOT NULL ORDER BY id
            LOCK IN SHARE MODE";
        turns = "SELECT id FROM {job_turn} WHERE id IN (?1)";
        make = "INSERT INTO {job_turn} (id) VALUES ?1 ON DUPLICATE KEY UPDATE id = VALUES(id)";
        // Of a transaction that found a key taken by an INSERT, a lock may be left on the index alone.
        lockable = "SELECT id FROM {job} FORCE INDEX (by_unique) WHERE unique_key IN (?1) FOR UPDATE SKIP LOCKED";
    }
}

pub(super) type Key = [u8; 16];

/// What was found of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// A job has it that is not done.
    Job(i64),
    /// A job has it that has not started.
    Waiting(i64),
    /// It is taken for a time, by this job.
    ForATime(i64),
    /// It was taken for a time that is over.
    Over,
}

impl Holder {
    /// The job that has it until its start or its end.
    pub(super) fn job(self) -> Option<i64> {
        match self {
            Self::Job(id) | Self::Waiting(id) => Some(id),
            Self::ForATime(_) | Self::Over => None,
        }
    }

    pub(super) fn waiting(self) -> Option<i64> {
        if let Self::Waiting(id) = self { Some(id) } else { None }
    }

    pub(super) fn taken_by(self) -> Option<i64> {
        match self {
            Self::Job(id) | Self::Waiting(id) | Self::ForATime(id) => Some(id),
            Self::Over => None,
        }
    }
}

/// The turns whose rows this process has seen.
#[derive(Debug, Default)]
pub(in super::super) struct KnownTurns(Mutex<HashSet<u16>>);

fn turn_of(key: &Key) -> u16 {
    u16::from_be_bytes([key[0], key[1]])
}

fn turns_of(keys: &BTreeSet<Key>) -> BTreeSet<u16> {
    keys.iter().map(turn_of).collect()
}

/// Makes the rows of turns that nobody has needed yet, in a transaction of their own.
pub(super) async fn make_turns(store: &MySql, keys: &BTreeSet<Key>) -> Result<()> {
    const OPERATION: &str = "job.turns";
    let unknown: Vec<u16> = {
        let known = store.0.turns.0.lock();
        turns_of(keys).into_iter().filter(|turn| !known.contains(turn)).collect()
    };
    let sql = store.statements().await?;
    for turns in unknown.chunks(AT_ONCE) {
        let ids = numbers(turns.iter().copied().map(i64::from));
        let there = store.look(OPERATION, &fill(sql.job.keys.turns.as_str(), &[Value::Sql(&ids)])).await?;
        let there: HashSet<i64> = decoded::<(i64,)>(&there.rows, OPERATION)?.into_iter().map(|(id,)| id).collect();
        // What is there may be locked by a long transaction, which this must not wait for.
        let missing = turns.iter().filter(|turn| !there.contains(&i64::from(**turn)));
        let missing: Vec<String> = missing.map(|turn| format!("({turn})")).collect();
        if !missing.is_empty() {
            let make = fill(sql.job.keys.make.as_str(), &[Value::Sql(&missing.join(","))]);
            store.run(OPERATION, &make).await?;
        }
        store.0.turns.0.lock().extend(turns);
    }
    Ok(())
}

/// Waits for the turns of these keys, in ascending order, and answers who has them. The turns end with the transaction.
///
/// In a transaction that reads from an old snapshot, a job that has the key may be long gone.
pub(super) async fn take_turns(
    store: &MySql,
    conn: &mut MySqlConnection,
    keys: &BTreeSet<Key>,
) -> Result<HashMap<Key, Holder>> {
    let sql = store.statements().await?;
    let keys: Vec<Key> = keys.iter().copied().collect();
    let mut holders = HashMap::new();
    for keys in keys.chunks(AT_ONCE) {
        let turns: BTreeSet<u16> = keys.iter().map(turn_of).collect();
        let ids = numbers(turns.iter().copied().map(i64::from));
        let lock = fill(sql.job.keys.lock.as_str(), &[Value::Sql(&ids)]);
        let who = who(&sql.job.keys, keys);
        let text = format!("{lock}; {who}");
        let mut found = rows(conn, text).await?;
        let locked = found.iter().filter(|(what, ..)| *what == 0).count();
        if locked < turns.len() {
            // Somebody has emptied the tables.
            store.0.turns.0.lock().clear();
            let turns: Vec<String> = turns.iter().map(|turn| format!("({turn})")).collect();
            let make = fill(sql.job.keys.make.as_str(), &[Value::Sql(&turns.join(","))]);
            found = rows(conn, format!("{make}; {who}")).await?;
        }
        holders.extend(as_holders(found));
    }
    Ok(holders)
}

/// Who has these keys, as others see it.
pub(super) async fn look(store: &MySql, keys: &BTreeSet<Key>) -> Result<HashMap<Key, Holder>> {
    const OPERATION: &str = "job.insert";
    let sql = store.statements().await?;
    let keys: Vec<Key> = keys.iter().copied().collect();
    let mut holders = HashMap::new();
    for keys in keys.chunks(AT_ONCE) {
        let answer = store.look(OPERATION, &who(&sql.job.keys, keys)).await?;
        holders.extend(as_holders(decoded(&answer.rows, OPERATION)?));
    }
    Ok(holders)
}

/// Locks jobs that have not started until this transaction ends, so that nobody claims them before, and answers those
/// that still wait: they must see what this transaction writes.
pub(super) async fn hold(store: &MySql, conn: &mut MySqlConnection, jobs: &[i64]) -> Result<HashSet<i64>> {
    const OPERATION: &str = "job.insert";
    let sql = store.statements().await?;
    let mut held = HashSet::new();
    for jobs in jobs.chunks(AT_ONCE) {
        let hold = fill(sql.job.keys.hold.as_str(), &[Value::Sql(&numbers(jobs.iter().copied()))]);
        let found = raw_sql(AssertSqlSafe(hold)).fetch_all(&mut *conn).await.map_err(reading(OPERATION))?;
        held.extend(decoded::<(i64,)>(&found, OPERATION)?.into_iter().map(|(id,)| id));
    }
    Ok(held)
}

type Row = (i64, Option<Vec<u8>>, i64);

async fn rows(conn: &mut MySqlConnection, text: String) -> Result<Vec<Row>> {
    const OPERATION: &str = "job.insert";
    let rows = raw_sql(AssertSqlSafe(text)).fetch_all(conn).await.map_err(reading(OPERATION))?;
    decoded(&rows, OPERATION)
}

fn who(sql: &KeySql, keys: &[Key]) -> String {
    let keys = byte_strings(keys.iter().map(|key| &key[..]));
    fill(sql.who.as_str(), &[Value::Sql(&keys)])
}

/// A key that is taken in both ways at once is taken.
fn as_holders(rows: Vec<Row>) -> HashMap<Key, Holder> {
    let mut holders = HashMap::new();
    for (what, key, id) in rows {
        let Some(key) = key.and_then(|key| Key::try_from(key).ok()) else { continue };
        let holder = match what {
            1 => Holder::Job(id),
            4 => Holder::Waiting(id),
            2 => Holder::ForATime(id),
            _ => Holder::Over,
        };
        if holder != Holder::Over || !holders.contains_key(&key) {
            holders.insert(key, holder);
        }
    }
    holders
}

/// Locks the index of these jobs' keys, and answers the jobs of which nobody else has it locked.
pub(super) async fn lock_index(store: &MySql, conn: &mut ControlConn, keys: &[Vec<u8>]) -> Result<HashSet<i64>> {
    let sql = store.statements().await?;
    let mut lockable = HashSet::new();
    for keys in keys.chunks(AT_ONCE) {
        let keys = byte_strings(keys.iter().map(Vec::as_slice));
        let answer = conn.run_part(&fill(sql.job.keys.lockable.as_str(), &[Value::Sql(&keys)])).await?;
        lockable.extend(decoded::<(i64,)>(&answer.rows, "job.keys")?.into_iter().map(|(id,)| id));
    }
    Ok(lockable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_come_in_the_order_of_keys() {
        let key = |first: u8, second: u8, last: u8| {
            let mut key = [0; 16];
            (key[0], key[1], key[15]) = (first, second, last);
            key
        };
        let keys = BTreeSet::from([key(2, 0, 0), key(1, 255, 9), key(1, 255, 1)]);
        assert_eq!(turns_of(&keys).into_iter().collect::<Vec<_>>(), [511, 512]);
    }

    #[test]
    fn a_key_whose_time_is_over_is_taken_if_a_job_has_it() {
        let key = Some(vec![7; 16]);
        for rows in [vec![(3, key.clone(), 1), (1, key.clone(), 2)], vec![(1, key.clone(), 2), (3, key, 1)]] {
            assert_eq!(as_holders(rows).get(&[7; 16]), Some(&Holder::Job(2)));
        }
    }
}
