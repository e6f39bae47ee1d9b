//! Jobs that are written.

use std::collections::{BTreeSet, HashMap};

use futures_util::TryStreamExt;
use polybus_core::{Error, ErrorKind, Result};
use polybus_patterns::store::{JobDue, JobInserted, NewJobRow, UniqueUntil, micros};
use sqlx::{AssertSqlSafe, Connection, Either, MySqlConnection, raw_sql};

use super::{
    super::{
        MySql, SYSTEM,
        control_conn::Again,
        literals::{Value, fill},
        reading,
    },
    AT_ONCE,
    keys::{self, Holder, Key},
};
use crate::mysql_codes::{self, DUPLICATE};

statements! {
    InsertSql {
        insert = "INSERT INTO {job} (queue, kind, state, priority, run_at, max_attempts, unique_key, unique_until,
                schedule, created_at, head, data)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, {now}, ?10, ?11)";
        after = "{now} + ?1";
        at = "GREATEST(?1, {now})";
        is_ahead = "IF(?1 > {now}, 1, 0)";
        take = "INSERT INTO {job_unique} (`key`, until_at, job) VALUES (?1, {now} + ?2, 0)";
        take_over = "UPDATE {job_unique} SET until_at = {now} + ?2, job = 0 WHERE `key` = ?1 AND until_at <= {now}";
        taken_by = "UPDATE {job_unique} SET job = LAST_INSERT_ID() WHERE `key` = ?1";
    }
}

const OPERATION: &str = "job.insert";

/// The longest queue, kind and name of a schedule.
const LONGEST_NAME: usize = 256;

/// What a job needs in a statement beside its head and arguments.
const OVERHEAD: usize = 4096;

/// Head and arguments of more bytes than this are sent as they are, and not as hexadecimal digits in the text.
const LARGE: usize = 32 * 1024;

/// How often a key is tried that is taken and free by turns.
const TRIES: u32 = 8;

/// What this transaction reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reads {
    /// What is committed.
    Newest,
    /// That, or what was committed when it began: it is the caller's.
    PerhapsOld,
}

/// # Errors
/// `PayloadTooLarge` for what the server would answer by closing the connection, and `InvalidArgument` for what a
/// column cannot hold.
pub(super) fn check(job: &NewJobRow, max_packet: usize) -> Result<()> {
    let size = job.head.len() + job.data.len();
    let needed = size + OVERHEAD;
    if needed > max_packet {
        let text = format!(
            "a job of {size} bytes: with {max_packet} bytes, max_allowed_packet of the server must be at least {needed}"
        );
        return Err(Error::new(ErrorKind::PayloadTooLarge, text).of_driver(SYSTEM, OPERATION));
    }
    let names = [Some(&job.queue), Some(&job.kind), job.schedule.as_ref()];
    if names.into_iter().flatten().any(|name| name.len() > LONGEST_NAME) {
        let text = format!("a queue, a kind and a schedule's name have at most {LONGEST_NAME} bytes each");
        return Err(Error::invalid(text).of_driver(SYSTEM, OPERATION));
    }
    Ok(())
}

pub(super) fn keys_of(jobs: &[NewJobRow]) -> BTreeSet<Key> {
    jobs.iter().filter_map(|job| job.unique.map(|unique| unique.key)).collect()
}

/// Whether somebody wrote BEGIN by hand, which the client does not know. Without a transaction, a savepoint is gone as
/// soon as it is made.
async fn is_begun_by_hand(conn: &mut MySqlConnection) -> Result<bool> {
    match raw_sql("SAVEPOINT polybus_probe; RELEASE SAVEPOINT polybus_probe").execute(conn).await {
        Ok(_) => Ok(true),
        Err(error) if mysql_codes::is_lost_savepoint(&error) => Ok(false),
        Err(error) => Err(reading(OPERATION)(error)),
    }
}

pub(super) async fn insert_jobs(
    store: &MySql,
    conn: &mut MySqlConnection,
    jobs: &[NewJobRow],
) -> Result<Vec<JobInserted>> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let max_packet = store.server().await?.max_packet;
    jobs.iter().try_for_each(|job| check(job, max_packet))?;
    keys::make_turns(store, &keys_of(jobs)).await?;
    if conn.is_in_transaction() || is_begun_by_hand(conn).await? {
        let inserted = insert(store, conn, jobs, Reads::PerhapsOld).await?;
        store.0.changes.written();
        return Ok(inserted);
    }
    let mut again = Again::default();
    let inserted = loop {
        match insert_alone(store, jobs).await {
            Err(e) if again.after(&e).await => {}
            inserted => break inserted?,
        }
    };
    store.0.changes.committed();
    Ok(inserted)
}

/// On a connection of the store's own: of the caller's nobody would know whether a transaction is left open on it, where
/// the call is dropped.
async fn insert_alone(store: &MySql, jobs: &[NewJobRow]) -> Result<Vec<JobInserted>> {
    let mut own = store.control_conn(OPERATION).await?;
    own.begin_parts("SET @polybus_begun = 1").await?;
    let inserted = insert(store, own.part_conn(), jobs, Reads::Newest).await?;
    own.commit_parts("").await?;
    Ok(inserted)
}

/// Writes jobs in the transaction of this connection. Their turns must be there.
pub(super) async fn insert(
    store: &MySql,
    conn: &mut MySqlConnection,
    jobs: &[NewJobRow],
    reads: Reads,
) -> Result<Vec<JobInserted>> {
    let mut batch =
        Batch { store, jobs, taken: HashMap::new(), maybe: HashMap::new(), answers: vec![None; jobs.len()] };
    batch.take_keys(conn, reads).await?;
    batch.write(conn).await?;
    Ok(batch.in_their_order())
}

struct Batch<'a> {
    store: &'a MySql,
    jobs: &'a [NewJobRow],
    /// Keys that another job has.
    taken: HashMap<Key, i64>,
    /// Keys that a job of this very transaction may have.
    maybe: HashMap<Key, i64>,
    answers: Vec<Option<JobInserted>>,
}

/// A statement of a batch.
struct Statement {
    text: String,
    /// The job that it writes.
    job: Option<usize>,
}

impl Batch<'_> {
    /// Finds out which keys are taken, and takes those that are taken for a time.
    async fn take_keys(&mut self, conn: &mut MySqlConnection, reads: Reads) -> Result<()> {
        let keys = keys_of(self.jobs);
        if keys.is_empty() {
            return Ok(());
        }
        let holders = keys::take_turns(self.store, conn, &keys).await?;
        self.maybe = holders.iter().filter_map(|(key, holder)| Some((*key, holder.job()?))).collect();
        let mut now = match reads {
            Reads::PerhapsOld if !self.maybe.is_empty() => {
                keys::look(self.store, &self.maybe.keys().copied().collect()).await?
            }
            Reads::PerhapsOld => HashMap::new(),
            Reads::Newest => {
                self.maybe.clear();
                holders.clone()
            }
        };
        let waiting: Vec<i64> = now.values().filter_map(|holder| holder.waiting()).collect();
        if !waiting.is_empty() {
            let held = keys::hold(self.store, conn, &waiting).await?;
            now.retain(|_, holder| holder.waiting().is_none_or(|id| held.contains(&id)));
        }
        self.taken.extend(now.iter().filter_map(|(key, holder)| Some((*key, holder.taken_by()?))));
        // A key that is taken for a time was not free before that time.
        self.taken.extend(holders.iter().filter_map(|(key, holder)| match holder {
            Holder::ForATime(id) => Some((*key, *id)),
            _ => None,
        }));
        let mut seen = BTreeSet::new();
        for job in self.jobs {
            if let Some(unique) = job.unique
                && seen.insert(unique.key)
                && let UniqueUntil::For(time) = unique.until
                && !self.taken.contains_key(&unique.key)
            {
                let over = holders.get(&unique.key) == Some(&Holder::Over);
                if let Some(other) = take_for(self.store, conn, &unique.key, micros(time), over).await? {
                    self.taken.insert(unique.key, other);
                }
            }
        }
        Ok(())
    }

    async fn write(&mut self, conn: &mut MySqlConnection) -> Result<()> {
        let sql = self.store.statements().await?;
        let max_packet = self.store.server().await?.max_packet;
        let mut seen = BTreeSet::new();
        let (mut pending, mut bytes) = (Vec::new(), 0);
        for (n, job) in self.jobs.iter().enumerate() {
            if let Some(unique) = job.unique
                && (self.taken.contains_key(&unique.key) || !seen.insert(unique.key))
            {
                continue;
            }
            if job.head.len() + job.data.len() > LARGE {
                self.flush(conn, &mut pending).await?;
                bytes = 0;
                self.write_large(conn, n).await?;
            } else {
                let text = text_of(&sql.job.insert, job, None);
                if pending.len() >= AT_ONCE || bytes + text.len() + OVERHEAD > max_packet {
                    self.flush(conn, &mut pending).await?;
                    bytes = 0;
                }
                bytes += text.len() + OVERHEAD;
                pending.push(Statement { text, job: Some(n) });
            }
            if let Some(unique) = job.unique
                && matches!(unique.until, UniqueUntil::For(_))
            {
                let text = fill(sql.job.insert.taken_by.as_str(), &[Value::Bytes(&unique.key)]);
                pending.push(Statement { text, job: None });
            }
        }
        self.flush(conn, &mut pending).await
    }

    /// Runs statements of one row each, as one text: the server says the id of each row, which it does not do for the
    /// rows of one statement.
    async fn flush(&mut self, conn: &mut MySqlConnection, pending: &mut Vec<Statement>) -> Result<()> {
        let statements = std::mem::take(pending);
        let (mut next, mut tries) = (0, 0);
        while next < statements.len() {
            let text: Vec<&str> = statements[next..].iter().map(|statement| statement.text.as_str()).collect();
            let failed = {
                let mut results = std::pin::pin!(raw_sql(AssertSqlSafe(text.join("; "))).fetch_many(&mut *conn));
                loop {
                    match results.try_next().await {
                        Ok(Some(Either::Left(done))) => {
                            if let Some(job) = statements.get(next).and_then(|statement| statement.job) {
                                self.answers[job] = Some(new(done.last_insert_id()));
                                tries = 0;
                            }
                            next += 1;
                        }
                        Ok(Some(Either::Right(_))) => {}
                        Ok(None) => return Ok(()),
                        Err(error) => break error,
                    }
                }
            };
            let job = statements.get(next).and_then(|statement| statement.job);
            if self.is_taken(job, failed, &mut tries).await? {
                next += 1;
            }
        }
        Ok(())
    }

    async fn write_large(&mut self, conn: &mut MySqlConnection, n: usize) -> Result<()> {
        let sql = self.store.statements().await?;
        let job = &self.jobs[n];
        let mut tries = 0;
        loop {
            let text = text_of(&sql.job.insert, job, Some("?"));
            let insert =
                sqlx::query(AssertSqlSafe(text)).persistent(false).bind(job.head.as_bytes()).bind(&job.data[..]);
            match insert.execute(&mut *conn).await {
                Ok(done) => {
                    self.answers[n] = Some(new(done.last_insert_id()));
                    return Ok(());
                }
                Err(error) => {
                    if self.is_taken(Some(n), error, &mut tries).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Whether the error says that the job's key is taken: by a job of this transaction, or by one that was committed
    /// after this transaction's snapshot.
    ///
    /// # Errors
    /// Any other error.
    async fn is_taken(&mut self, job: Option<usize>, error: sqlx::Error, tries: &mut u32) -> Result<bool> {
        let key = job.and_then(|job| self.jobs[job].unique).map(|unique| unique.key);
        let Some(key) = key.filter(|_| mysql_codes::number(&error) == Some(DUPLICATE) && *tries < TRIES) else {
            return Err(reading(OPERATION)(error));
        };
        *tries += 1;
        let now = keys::look(self.store, &BTreeSet::from([key])).await?;
        // The INSERT that failed has locked the key, so a job that waits is not claimed before this transaction ends.
        let holder = now.get(&key).and_then(|holder| holder.taken_by());
        let holder = holder.or_else(|| self.maybe.get(&key).copied());
        self.taken.extend(holder.map(|id| (key, id)));
        Ok(holder.is_some())
    }

    fn in_their_order(self) -> Vec<JobInserted> {
        let mut written: HashMap<Key, i64> = self.taken;
        let mut answers = Vec::with_capacity(self.jobs.len());
        for (job, answer) in self.jobs.iter().zip(self.answers) {
            let key = job.unique.map(|unique| unique.key);
            let answer = answer.unwrap_or_else(|| {
                let id = key.and_then(|key| written.get(&key).copied()).unwrap_or_default();
                JobInserted { id, is_new: false }
            });
            if let Some(key) = key {
                written.entry(key).or_insert(answer.id);
            }
            answers.push(answer);
        }
        answers
    }
}

fn new(id: u64) -> JobInserted {
    JobInserted { id: i64::try_from(id).unwrap_or_default(), is_new: true }
}

/// The INSERT of one job. Head and arguments are in it, or placeholders for them.
fn text_of(sql: &InsertSql, job: &NewJobRow, placeholder: Option<&str>) -> String {
    let (state, run_at) = match job.due {
        JobDue::After(delay) => {
            let delay = micros(delay);
            (i64::from(delay > 0).to_string(), fill(sql.after.as_str(), &[delay.into()]))
        }
        JobDue::At(at) => (fill(sql.is_ahead.as_str(), &[at.into()]), fill(sql.at.as_str(), &[at.into()])),
    };
    // A key that is taken for a time is in a table of its own.
    let (key, until) = match &job.unique {
        Some(unique) if unique.until == UniqueUntil::Started => (Value::Bytes(&unique.key), 0.into()),
        Some(unique) if unique.until == UniqueUntil::Done => (Value::Bytes(&unique.key), 1.into()),
        _ => (Value::Null, Value::Null),
    };
    let (head, data) = match placeholder {
        Some(placeholder) => (Value::Sql(placeholder), Value::Sql(placeholder)),
        None => (job.head.as_str().into(), Value::Bytes(&job.data)),
    };
    fill(
        sql.insert.as_str(),
        &[
            job.queue.as_str().into(),
            job.kind.as_str().into(),
            Value::Sql(&state),
            i32::from(job.priority).into(),
            Value::Sql(&run_at),
            i64::from(job.max_attempts.min(i32::MAX.unsigned_abs())).into(),
            key,
            until,
            job.schedule.as_deref().into(),
            head,
            data,
        ],
    )
}

/// Takes a key for a time, or answers the job that has it. Its turn is taken.
async fn take_for(
    store: &MySql,
    conn: &mut MySqlConnection,
    key: &Key,
    time: i64,
    mut is_over: bool,
) -> Result<Option<i64>> {
    let sql = store.statements().await?;
    let values = [Value::Bytes(key), time.into()];
    for _ in 0..TRIES {
        if is_over {
            let take = AssertSqlSafe(fill(sql.job.insert.take_over.as_str(), &values));
            if raw_sql(take).execute(&mut *conn).await.map_err(reading(OPERATION))?.rows_affected() > 0 {
                return Ok(None);
            }
        } else {
            let take = AssertSqlSafe(fill(sql.job.insert.take.as_str(), &values));
            match raw_sql(take).execute(&mut *conn).await {
                Ok(_) => return Ok(None),
                Err(error) if mysql_codes::number(&error) == Some(DUPLICATE) => {}
                Err(error) => return Err(reading(OPERATION)(error)),
            }
        }
        // This transaction reads from an old snapshot, or the row was swept meanwhile.
        match keys::look(store, &BTreeSet::from([*key])).await?.get(key) {
            Some(Holder::Job(id) | Holder::Waiting(id) | Holder::ForATime(id)) => return Ok(Some(*id)),
            Some(Holder::Over) => is_over = true,
            None => is_over = false,
        }
    }
    let text = "a unique key is taken and free by turns: try again";
    Err(Error::new(ErrorKind::Unavailable, text).safe().of_driver(SYSTEM, OPERATION))
}
