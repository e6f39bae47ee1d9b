//! A transaction that knows when it was lost.

use std::{
    ops::{Deref, DerefMut},
    time::Duration,
};

use futures_util::TryStreamExt;
use polybus_core::{Error, ErrorKind, Result};
use polybus_patterns::store::{MarkKey, TransactionLimits};
use sqlx::{
    AssertSqlSafe, Either, MySql as Client, MySqlConnection, SqlStr, mysql::MySqlTransactionManager,
    pool::PoolConnection, raw_sql,
};
use sqlx_core::{row::Row, transaction::TransactionManager};
use tokio::{runtime::Handle, time::timeout};
use tracing::Instrument;

use super::{
    MySql, SYSTEM, committing,
    give_back::{self, Cancel, SERVER},
    own_mark::OwnMark,
};
use crate::mysql_codes;

/// The savepoint goes when the transaction does: by a deadlock, or by a statement that commits by itself. What comes
/// after that must not commit one by one, so for this while the session does not commit by itself.
const BEGIN: &str = "SET @polybus_autocommit = @@SESSION.autocommit, SESSION autocommit = 0; \
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION READ WRITE; SAVEPOINT polybus_begun";

/// How long BEGIN may take. It waits for no lock: a proxy may let it wait, or nobody hears it.
const BEGIN_LIMIT: Duration = Duration::from_secs(60);

/// Only when no transaction is open: this would commit it.
const RESTORE: &str = "SET SESSION autocommit = @polybus_autocommit";

/// How much longer than one statement a handler's transaction may be idle.
const IDLE_SLACK: Duration = Duration::from_secs(60);

const HELD: &str = "the transaction is here until it ends";

/// A transaction at the isolation level read committed.
///
/// `&mut *tx` is the connection. Dropping it rolls it back; the server first finishes a statement that is under way,
/// unless the inbox began the transaction: then the statement is cancelled.
///
/// MySQL ends the whole transaction at a deadlock (error 1213), and statements that come after it would commit one by
/// one. Here they do not, and [`commit`](Self::commit) fails, also after a statement that commits by itself, such as
/// `CREATE TABLE`.
///
/// ```no_run
/// # async fn example(store: polybus_sql::MySql) -> Result<(), Box<dyn std::error::Error>> {
/// let mut tx = store.begin().await?;
/// sqlx::query("UPDATE carts SET open = 0").execute(&mut *tx).await?;
/// tx.commit().await?;
/// # Ok(())
/// # }
/// ```
pub struct MySqlTx {
    conn: Option<PoolConnection<Client>>,
    store: MySql,
    /// What sets the session as it was.
    restore: String,
    cancel: Option<Cancel>,
    /// The mark that it wrote, until it is committed.
    mark: Option<OwnMark>,
}

/// A statement in the middle of others, with limits of its own.
pub(super) struct Limited {
    pub(super) before: String,
    pub(super) after: String,
    restore: String,
}

impl MySqlTx {
    /// In a task of its own: of a BEGIN that was cut off nobody knows whether it has happened, and the session would
    /// stay set as it is here. The task finishes, and rolls back if nobody waits.
    pub(super) async fn begin(store: &MySql, conn: PoolConnection<Client>) -> Result<Self, sqlx::Error> {
        let mut tx =
            Self { conn: Some(conn), store: store.clone(), restore: RESTORE.to_owned(), cancel: None, mark: None };
        let begin = async move {
            let begin = MySqlTransactionManager::begin(&mut tx, Some(SqlStr::from_static(BEGIN)));
            if let Ok(begun) = timeout(BEGIN_LIMIT, begin).await {
                return begun.map(|()| tx);
            }
            // It may begin yet, so nobody else may have the connection.
            if let Some(conn) = tx.conn.take() {
                give_back::close(conn).await;
            }
            Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))
        };
        tokio::spawn(begin.in_current_span()).await.map_err(|_| sqlx::Error::WorkerCrashed)?
    }

    /// Marks a message by this statement, which goes on from a SET, and may wait for a lock for a time of its own; and
    /// sets the limits of the handler. A statement that is under way when the transaction is dropped is cancelled from
    /// here on.
    pub(super) async fn mark(
        &mut self,
        key: MarkKey,
        statement: &str,
        limits: &TransactionLimits,
        is_mariadb: bool,
    ) -> Result<(), sqlx::Error> {
        let limited = limited(limits, is_mariadb);
        self.restore = limited.restore;
        let tell = format!("SELECT CONNECTION_ID(), {SERVER}, CAST(@polybus_at AS SIGNED)");
        let text = format!("{}, {statement}; {}; {tell}", limited.before, limited.after);
        let rows = raw_sql(AssertSqlSafe(text)).fetch_all(&mut **self).await?;
        let row = rows.last().ok_or(sqlx::Error::RowNotFound)?;
        let (connection, server): (u64, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
        let connection = i64::try_from(connection).unwrap_or_default();
        self.cancel = Some(Cancel { store: self.store.clone(), connection, server });
        self.mark = Some(OwnMark { key, at: row.try_get(2)? });
        Ok(())
    }

    /// Runs statements that go on from a SET, the first of the transaction, which may wait for a lock for a time of their
    /// own; and sets the limits of the handler. Answers how many rows they have changed. From here on a statement that is
    /// under way when the transaction is dropped is cancelled.
    pub(super) async fn begin_by(
        &mut self,
        statements: &str,
        limits: &TransactionLimits,
        is_mariadb: bool,
    ) -> Result<u64, sqlx::Error> {
        let limited = limited(limits, is_mariadb);
        self.restore = limited.restore;
        let tell = format!("SELECT CONNECTION_ID(), {SERVER}");
        let text = format!("{}, {statements}; {}; {tell}", limited.before, limited.after);
        let (mut changed, mut told) = (0, None);
        {
            let mut results = std::pin::pin!(raw_sql(AssertSqlSafe(text)).fetch_many(&mut **self));
            while let Some(result) = results.try_next().await? {
                match result {
                    Either::Left(done) => changed += done.rows_affected(),
                    Either::Right(row) => told = Some(row),
                }
            }
        }
        let row = told.ok_or(sqlx::Error::RowNotFound)?;
        let (connection, server): (u64, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
        let connection = i64::try_from(connection).unwrap_or_default();
        self.cancel = Some(Cancel { store: self.store.clone(), connection, server });
        Ok(changed)
    }

    /// Whether it has written this mark. Its commit fails where that was lost: the savepoint in front of it went too.
    pub(super) fn has_marked(&self, key: &MarkKey) -> bool {
        self.mark.as_ref().is_some_and(|mark| mark.key == *key)
    }

    /// Commits. Dropping the future may leave it either way.
    ///
    /// # Errors
    /// `Unavailable` with MayDuplicate if it may have happened. `Unexpected` if the transaction was ended before, by an
    /// error of a statement or by a statement that commits by itself: what came after that was not written. It is Safe
    /// where a mark shows that nothing was, and else MayDuplicate.
    ///
    /// ```no_run
    /// # async fn example(store: polybus_sql::MySql) -> polybus_core::Result<()> {
    /// store.begin().await?.commit().await
    /// # }
    /// ```
    pub async fn commit(mut self) -> Result<()> {
        // Where the answer is lost, the mark may be there rightly.
        let mark = self.mark.take();
        // A text ends at its first error.
        let text = format!("RELEASE SAVEPOINT polybus_begun; COMMIT; {}", self.restore);
        match raw_sql(AssertSqlSafe(text)).execute(&mut *self).await {
            Ok(_) => {}
            Err(error) if mysql_codes::is_lost_savepoint(&error) => {
                let text = "the transaction was ended before: by an error of a statement, such as a deadlock, or by a \
                            statement that commits by itself; what came after that was not written";
                let lost = Error::new(ErrorKind::Unexpected, text).of_driver(SYSTEM, "commit");
                let lost = lost.with_context("transaction", "lost");
                let nothing_is_there = match mark {
                    Some(mark) => {
                        let store = self.store.clone();
                        // Its locks go first.
                        self.rollback().await?;
                        !mark.take_away(&store).await?
                    }
                    None => false,
                };
                return Err(if nothing_is_there { lost.safe() } else { lost.may_duplicate() });
            }
            Err(error) => return Err(committing("commit")(error)),
        }
        self.cancel = None;
        let Some(mut conn) = self.conn.take() else { return Ok(()) };
        // The client counts transactions by itself: this tells it that there is none, and costs no round trip.
        while MySqlTransactionManager::get_transaction_depth(&conn) > 0 {
            MySqlTransactionManager::start_rollback(&mut conn);
        }
        Ok(())
    }

    /// Rolls back, and returns when that is done.
    ///
    /// # Errors
    /// `Unavailable` if the connection was lost. Nothing was written then, either.
    ///
    /// ```no_run
    /// # async fn example(store: polybus_sql::MySql) -> polybus_core::Result<()> {
    /// store.begin().await?.rollback().await
    /// # }
    /// ```
    pub async fn rollback(mut self) -> Result<()> {
        let Some(conn) = self.conn.take() else { return Ok(()) };
        let restore = std::mem::take(&mut self.restore);
        let mark = self.mark.take();
        if give_back::roll_back(conn, restore, None).await {
            if let Some(mark) = mark {
                mark.take_away(&self.store).await?;
            }
            return Ok(());
        }
        let text = "the connection to the database was lost, and the transaction with it";
        Err(Error::new(ErrorKind::Unavailable, text).safe().of_driver(SYSTEM, "rollback"))
    }
}

/// MariaDB limits all statements, MySQL those that only read.
fn limited(limits: &TransactionLimits, is_mariadb: bool) -> Limited {
    let wait = seconds(limits.mark_wait);
    // One statement each: with many clients, what a server has to read is what limits it.
    let mut before = format!(
        "SET @polybus_lock_wait = @@SESSION.innodb_lock_wait_timeout, SESSION innodb_lock_wait_timeout = {wait}"
    );
    let lock_wait = "SESSION innodb_lock_wait_timeout = @polybus_lock_wait";
    let after = format!("SET {lock_wait}");
    let mut restore = format!("{RESTORE}, {lock_wait}");
    if let Some(limit) = limits.statement_timeout {
        let (setting, value) = match is_mariadb {
            true => ("max_statement_time", format!("{:.3}", limit.as_secs_f64().clamp(0.001, 31_536_000.0))),
            false => ("max_execution_time", limit.as_millis().clamp(1, 4_294_967_295).to_string()),
        };
        // The handler of a host that is gone would keep its mark for hours.
        let idle = seconds(limit.saturating_add(IDLE_SLACK));
        before += &format!(
            ", @polybus_limit = @@SESSION.{setting}, @polybus_idle = @@SESSION.wait_timeout, \
             SESSION {setting} = {value}, SESSION wait_timeout = {idle}"
        );
        restore += &format!(", SESSION {setting} = @polybus_limit, SESSION wait_timeout = @polybus_idle");
    }
    Limited { before, after, restore }
}

/// Whole seconds, and no more than a year.
fn seconds(limit: Duration) -> u64 {
    limit.as_millis().div_ceil(1000).clamp(1, 31_536_000).try_into().unwrap_or(31_536_000)
}

impl Deref for MySqlTx {
    type Target = MySqlConnection;

    fn deref(&self) -> &MySqlConnection {
        self.conn.as_deref().expect(HELD)
    }
}

impl DerefMut for MySqlTx {
    fn deref_mut(&mut self) -> &mut MySqlConnection {
        self.conn.as_deref_mut().expect(HELD)
    }
}

impl Drop for MySqlTx {
    fn drop(&mut self) {
        let Some(conn) = self.conn.take() else { return };
        let (restore, cancel, mark) = (std::mem::take(&mut self.restore), self.cancel.take(), self.mark.take());
        let store = self.store.clone();
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move {
                give_back::roll_back(conn, restore, cancel).await;
                if let Some(Err(error)) = async { Some(mark?.take_away(&store).await) }.await {
                    tracing::debug!(%error, "it is not known whether the mark of a handler that failed is gone");
                }
            })),
            // The server rolls back when the connection is closed.
            Err(_) => drop(conn.leak()),
        }
    }
}

impl std::fmt::Debug for MySqlTx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MySqlTx").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_set_as_the_server_knows_them_and_put_back() {
        let limits = TransactionLimits::new(Duration::from_millis(1500), Some(Duration::from_secs(30)));
        let of_mariadb = limited(&limits, true);
        assert!(of_mariadb.before.contains("innodb_lock_wait_timeout = 2, "), "{}", of_mariadb.before);
        assert!(of_mariadb.before.contains("max_statement_time = 30.000, SESSION wait_timeout = 90"));
        let of_mysql = limited(&limits, false);
        assert!(of_mysql.before.contains("max_execution_time = 30000"), "{}", of_mysql.before);
        for limited in [of_mariadb, of_mysql] {
            assert!(limited.restore.contains("@polybus_autocommit") && limited.restore.contains("@polybus_idle"));
        }
        let none = limited(&TransactionLimits::new(Duration::ZERO, None), true);
        assert!(none.before.contains("= 1") && !none.restore.contains("wait_timeout = @polybus_idle"));
    }
}
