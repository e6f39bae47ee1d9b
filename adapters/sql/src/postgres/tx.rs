//! A transaction that lets go of its locks when it is dropped in the middle of a statement.

use std::{
    ops::{Deref, DerefMut},
    time::Duration,
};

use polybus_core::{Error, ErrorKind, Result};
use polybus_patterns::store::TransactionLimits;
use sqlx::{
    AssertSqlSafe, PgConnection, Postgres as Client, SqlSafeStr, SqlStr, pool::PoolConnection,
    postgres::PgTransactionManager,
};
// sqlx does not name it, and its own `Transaction` gives the connection back to the pool, come what may.
use sqlx_core::transaction::TransactionManager;
use tokio::{runtime::Handle, time::timeout};

use super::{Postgres, SYSTEM, committing, give_back, reading};
use crate::finish_on_drop;

/// Never a bare BEGIN: a database or role may have another default.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

/// How long BEGIN may take. It waits for no lock: a pooler may let it wait, or nobody hears it.
const BEGIN_LIMIT: Duration = Duration::from_secs(60);

/// How long a rollback may take before the statement in front of it is cancelled.
const ROLLBACK: Duration = Duration::from_millis(50);

/// Only while the backend is in the very transaction that is rolled back.
const CANCEL: &str = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = $1
    AND state = 'active' AND (extract(epoch FROM xact_start) * 1000000)::bigint = $2";

/// How much longer than one statement a handler's transaction may be idle.
const IDLE_SLACK: Duration = Duration::from_secs(60);

/// BEGIN with these limits, in one round trip.
fn begin_with(limits: &TransactionLimits) -> SqlStr {
    let mut sql = format!("{BEGIN}; SET LOCAL lock_timeout = '{}'", setting(limits.mark_wait));
    if let Some(limit) = limits.statement_timeout {
        // The handler of a host that is gone would keep its mark for hours.
        let idle = setting(limit.saturating_add(IDLE_SLACK));
        sql += &format!(
            "; SET LOCAL statement_timeout = '{}'; SET LOCAL idle_in_transaction_session_timeout = '{idle}'",
            setting(limit)
        );
    }
    AssertSqlSafe(sql).into_sql_str()
}

/// A time limit as a setting of PostgreSQL, where 0 would be none.
fn setting(limit: Duration) -> String {
    format!("{}ms", limit.as_millis().clamp(1, 2_147_483_647))
}

const HELD: &str = "the transaction is here until it ends";

/// A transaction at the isolation level read committed.
///
/// `&mut *tx` is the connection. Dropping it rolls it back; PostgreSQL first finishes a statement that is under way,
/// unless the inbox began the transaction: then the statement is cancelled.
///
/// ```no_run
/// # async fn example(store: polybus_sql::Postgres) -> Result<(), Box<dyn std::error::Error>> {
/// let mut tx = store.begin().await?;
/// sqlx::query("UPDATE carts SET open = false").execute(&mut *tx).await?;
/// tx.commit().await?;
/// # Ok(())
/// # }
/// ```
pub struct PostgresTx {
    conn: Option<PoolConnection<Client>>,
    store: Postgres,
    /// A statement of it has written.
    has_written: bool,
    cancel: Option<Cancel>,
    /// How many messages the connection was used for since it left its pool, if it may go on to the next message.
    messages: Option<u32>,
}

/// How to cancel what runs in a transaction.
struct Cancel {
    pid: i32,
    started_at: i64,
}

impl PostgresTx {
    /// sqlx gives a connection of which the BEGIN was cut off back to its pool, where the transaction would stay open
    /// under others' statements. So a BEGIN that is dropped goes on in a task, and is rolled back there.
    pub(super) async fn begin(
        store: &Postgres,
        conn: PoolConnection<Client>,
        limits: Option<&TransactionLimits>,
    ) -> Result<Self, sqlx::Error> {
        let sql = limits.map_or_else(|| SqlStr::from_static(BEGIN), begin_with);
        let mut tx = Self { conn: Some(conn), store: store.clone(), has_written: false, cancel: None, messages: None };
        finish_on_drop::finish_on_drop(async move {
            match timeout(BEGIN_LIMIT, PgTransactionManager::begin(&mut tx, Some(sql))).await {
                Ok(begun) => begun.map(|()| tx),
                Err(_) => {
                    // It may begin yet, so nobody else may have the connection.
                    if let Some(conn) = tx.conn.take() {
                        give_back::close(conn).await;
                    }
                    Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))
                }
            }
        })
        .await
    }

    /// From here on a statement that is under way when the transaction is dropped is cancelled.
    pub(super) fn cancel_on_drop(&mut self, pid: i32, started_at: i64) {
        self.cancel = Some(Cancel { pid, started_at });
    }

    /// The server takes writes: nobody needs to ask it at the end.
    pub(super) fn has_written(&mut self) {
        self.has_written = true;
    }

    /// The connection, used for so many messages so far, goes to the next message after the commit.
    pub(super) fn hand_over_after(&mut self, messages: u32) {
        self.messages = Some(messages);
    }

    /// Commits. Dropping the future may leave it either way.
    ///
    /// `Ok` does not prove that the writes are there: PostgreSQL answers the COMMIT of a transaction in which a
    /// statement failed with Ok, too, and rolls back.
    ///
    /// # Errors
    /// `Unavailable` with MayDuplicate if it may have happened. `Unexpected` where a nested transaction was cut off,
    /// which ended this one, or is still open.
    ///
    /// ```no_run
    /// # async fn example(store: polybus_sql::Postgres) -> polybus_core::Result<()> {
    /// store.begin().await?.commit().await
    /// # }
    /// ```
    pub async fn commit(mut self) -> Result<()> {
        // Cancelled while it waits for a synchronous standby, it would be there on the primary alone.
        self.cancel = None;
        let depth = PgTransactionManager::get_transaction_depth(&self);
        if depth != 1 {
            return Err(not_the_same(depth));
        }
        PgTransactionManager::commit(&mut self).await.map_err(committing("commit"))?;
        if let (Some(conn), Some(messages)) = (self.conn.take(), self.messages) {
            self.store.0.hand_over.give(&self.store.0.pool, conn, messages + 1);
        }
        // Else it went back to its pool as it is.
        Ok(())
    }

    /// Rolls back, and returns when that is done.
    ///
    /// # Errors
    /// `Unavailable` if the connection was lost. Nothing was written then, either.
    ///
    /// ```no_run
    /// # async fn example(store: polybus_sql::Postgres) -> polybus_core::Result<()> {
    /// store.begin().await?.rollback().await
    /// # }
    /// ```
    pub async fn rollback(mut self) -> Result<()> {
        self.cancel = None;
        while PgTransactionManager::get_transaction_depth(&self) > 0 {
            PgTransactionManager::rollback(&mut self).await.map_err(reading("rollback"))?;
        }
        Ok(())
    }
}

/// The error of a commit where sqlx counts another transaction than the one that was begun: a nested one that was cut
/// off ends the whole, and statements after it were written by themselves.
fn not_the_same(depth: usize) -> Error {
    let error = |text: &str| Error::new(ErrorKind::Unexpected, text).of_driver(SYSTEM, "commit");
    match depth {
        0 => error(
            "a nested transaction was cut off or failed, which ended the whole; what came after it was written without \
             one",
        )
        .may_duplicate(),
        _ => error("a nested transaction is still open: commit it, or drop it").safe(),
    }
}

impl Deref for PostgresTx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.conn.as_deref().expect(HELD)
    }
}

impl DerefMut for PostgresTx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.conn.as_deref_mut().expect(HELD)
    }
}

impl Drop for PostgresTx {
    fn drop(&mut self) {
        let Some(mut conn) = self.conn.take() else { return };
        let Ok(runtime) = Handle::try_current() else {
            // Whoever has the connection next rolls back.
            PgTransactionManager::start_rollback(&mut conn);
            return;
        };
        let (store, check) = (self.store.clone(), !self.has_written);
        // The connection goes back to the pool after the cancel, so nobody else's statement can be hit.
        let cancel = self.cancel.take().map(|cancel| (ROLLBACK, cancel.cancel(store.clone())));
        runtime.spawn(give_back::roll_back(store, conn, check, cancel));
    }
}

impl std::fmt::Debug for PostgresTx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresTx").finish_non_exhaustive()
    }
}

impl Cancel {
    /// Cancels the statement in front of the rollback.
    async fn cancel(self, store: Postgres) {
        let cancelled = async {
            let mut control = store.control_conn("cancel").await?;
            let cancel = sqlx::query(CANCEL).bind(self.pid).bind(self.started_at);
            cancel.execute(&mut *control).await.map_err(control.reading())
        };
        if let Err(error) = cancelled.await {
            tracing::debug!(%error, "the statement of a dropped transaction could not be cancelled");
        }
    }
}
