//! A transaction that lets go of its locks when it is dropped in the middle of a statement.

use std::{
    ops::{Deref, DerefMut},
    time::Duration,
};

use polybus_core::Result;
use sqlx::{PgConnection, Postgres as Client, SqlStr, Transaction, pool::PoolConnection};
use tokio::runtime::Handle;
use tracing::Instrument;

use super::{Postgres, committing, reading};

/// Never a bare BEGIN: a database or role may have another default.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

/// How long a rollback may take before the statement in front of it is cancelled.
const ROLLBACK: Duration = Duration::from_millis(50);

/// Only while the backend is in the very transaction that is rolled back.
const CANCEL: &str = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = $1
    AND state = 'active' AND (extract(epoch FROM xact_start) * 1000000)::bigint = $2";

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
    tx: Option<Transaction<'static, Client>>,
    cancel: Option<Cancel>,
}

/// How to cancel what runs in a transaction.
struct Cancel {
    store: Postgres,
    pid: i32,
    started_at: i64,
}

impl PostgresTx {
    /// In a task of its own: sqlx gives a connection of which the BEGIN was cut off back to its pool, where the
    /// transaction would stay open under others' statements. Here the task finishes, and rolls back if nobody waits.
    pub(super) async fn begin(conn: PoolConnection<Client>) -> Result<Self, sqlx::Error> {
        let begin = Transaction::begin(conn, Some(SqlStr::from_static(BEGIN))).in_current_span();
        let tx = tokio::spawn(begin).await.map_err(|_| sqlx::Error::WorkerCrashed)??;
        Ok(Self { tx: Some(tx), cancel: None })
    }

    /// From here on a statement that is under way when the transaction is dropped is cancelled.
    pub(super) fn cancel_on_drop(&mut self, store: &Postgres, pid: i32, started_at: i64) {
        self.cancel = Some(Cancel { store: store.clone(), pid, started_at });
    }

    /// Commits. Dropping the future may leave it either way.
    ///
    /// `Ok` does not prove that the writes are there: PostgreSQL answers the COMMIT of a transaction in which a
    /// statement failed with Ok, too, and rolls back.
    ///
    /// # Errors
    /// `Unavailable` with MayDuplicate if it may have happened.
    ///
    /// ```no_run
    /// # async fn example(store: polybus_sql::Postgres) -> polybus_core::Result<()> {
    /// store.begin().await?.commit().await
    /// # }
    /// ```
    pub async fn commit(mut self) -> Result<()> {
        match self.tx.take() {
            Some(tx) => tx.commit().await.map_err(committing("commit")),
            None => Ok(()),
        }
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
        match self.tx.take() {
            Some(tx) => tx.rollback().await.map_err(reading("rollback")),
            None => Ok(()),
        }
    }
}

impl Deref for PostgresTx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.tx.as_deref().expect(HELD)
    }
}

impl DerefMut for PostgresTx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.tx.as_deref_mut().expect(HELD)
    }
}

impl Drop for PostgresTx {
    fn drop(&mut self) {
        // Without a task, sqlx' own transaction rolls back when its connection comes back to the pool.
        if let (Some(tx), Some(cancel), Ok(runtime)) = (self.tx.take(), self.cancel.take(), Handle::try_current()) {
            runtime.spawn(cancel.roll_back(tx));
        }
    }
}

impl std::fmt::Debug for PostgresTx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresTx").finish_non_exhaustive()
    }
}

impl Cancel {
    /// Rolls back, and cancels the statement in front of the rollback if that takes long. The connection goes back to
    /// the pool afterwards, so nobody else's statement can be hit.
    async fn roll_back(self, tx: Transaction<'static, Client>) {
        // Its error is that of the cancelled statement, or the connection is lost.
        let rollback = tx.rollback();
        tokio::pin!(rollback);
        if tokio::time::timeout(ROLLBACK, &mut rollback).await.is_ok() {
            return;
        }
        let cancelled = async {
            let mut control = self.store.control_conn("cancel").await?;
            let cancel = sqlx::query(CANCEL).bind(self.pid).bind(self.started_at);
            cancel.execute(&mut *control).await.map_err(reading("cancel"))
        };
        if let Err(error) = cancelled.await {
            tracing::debug!(%error, "the statement of a dropped transaction could not be cancelled");
        }
        let _ = rollback.await;
    }
}
