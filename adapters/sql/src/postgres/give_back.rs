//! What becomes of a connection that trouble befell: whether it goes back to its pool, or is closed.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use sqlx::{
    Connection, PgConnection, PgPool, Postgres as Client, pool::PoolConnection, postgres::PgTransactionManager,
};
use sqlx_core::transaction::TransactionManager;
use tokio::{runtime::Handle, time::timeout};

use super::Postgres;

/// How long a connection may take to be fit for its pool again. The answer of a peer that is gone without a word would
/// come after a quarter of an hour, and until then its place in the pool would be taken.
const FIT_AGAIN: Duration = Duration::from_secs(10);

/// How long an idle connection may take to tell whether it is of use.
const IDLE_ANSWER: Duration = Duration::from_secs(2);

/// How long the goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// How many errors of the statements in front of it a rollback bears.
const ERRORS_BEFORE: usize = 4;

/// One look through the idle connections at a time.
#[derive(Debug, Default)]
pub(super) struct Looking(AtomicBool);

/// For [`roll_back`] where nothing is to be run beside it.
pub(super) const NOTHING: Option<(Duration, std::future::Ready<()>)> = None;

/// A standby answers, and cannot be written to: the primary is away, or the switch to it is not over. Likewise a server
/// that was made read-only, as providers do where the disk is full.
pub(super) async fn is_writable(conn: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT NOT pg_is_in_recovery() AND NOT current_setting('transaction_read_only')::bool")
        .fetch_one(conn)
        .await
}

/// Whether the error says that the connection leads to where nothing can be written, though it works. A server that
/// ends the connection says 57P01 to 57P05, and it may be still open when the pool looks.
pub(super) fn is_misled(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("25006" | "57P01" | "57P02" | "57P03" | "57P05"))
}

/// Whether the error may be that of one connection of many that lead nowhere.
pub(super) fn concerns_others(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::PoolTimedOut | sqlx::Error::Io(_)) || is_misled(error)
}

/// Closes the connection, and frees its place in the pool also where nobody hears the goodbye.
pub(super) async fn close(conn: PoolConnection<Client>) {
    let _ = timeout(GOODBYE, conn.detach().close()).await;
}

/// Rolls back what is open, and gives the connection back to its pool if it is still of use.
///
/// `check` asks the server whether it can be written to; else that is known. After a moment, `hurry` is run beside the
/// rollback.
pub(super) async fn roll_back(
    store: Postgres,
    conn: PoolConnection<Client>,
    check: bool,
    hurry: Option<(Duration, impl Future<Output = ()> + Send)>,
) {
    let mut held = Held(Some(conn));
    let Some(conn) = held.0.as_deref_mut() else { return };
    let fit = timeout(FIT_AGAIN, async {
        roll_back_hurried(conn, hurry).await?;
        if check { is_writable(conn).await } else { Ok(true) }
    });
    let fit = fit.await;
    let Some(conn) = held.0.take() else { return };
    match fit {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) => {
            close(conn).await;
            store.close_misled().await;
        }
        Ok(Err(_)) | Err(_) => close(conn).await,
    }
}

/// A connection in a task, which is dropped where the task's runtime ends. sqlx cannot give one back without a runtime,
/// and panics: there the connection just ends.
struct Held(Option<PoolConnection<Client>>);

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(conn) = self.0.take_if(|_| Handle::try_current().is_err()) {
            drop(conn.detach());
        }
    }
}

async fn roll_back_hurried(
    conn: &mut PgConnection,
    hurry: Option<(Duration, impl Future<Output = ()> + Send)>,
) -> Result<(), sqlx::Error> {
    let mut rollback = std::pin::pin!(roll_back_errors(conn));
    let Some((after, hurry)) = hurry else { return rollback.await };
    match timeout(after, &mut rollback).await {
        Ok(rolled_back) => rolled_back,
        Err(_) => tokio::join!(rollback, hurry).0,
    }
}

/// Rolls back, with all that is nested. A statement in front of it that was dropped may still answer with an error,
/// which says nothing.
async fn roll_back_errors(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    let mut errors = 0;
    while PgTransactionManager::get_transaction_depth(conn) > 0 {
        match PgTransactionManager::rollback(conn).await {
            Err(sqlx::Error::Database(_)) if errors < ERRORS_BEFORE => errors += 1,
            other => other?,
        }
    }
    Ok(())
}

impl Postgres {
    /// Closes what its pools hold of idle connections that lead to a server that cannot be written to, or to none:
    /// after a failover all may, and each would fail somebody.
    pub(super) async fn close_misled(&self) {
        if self.0.looking.0.swap(true, Ordering::AcqRel) {
            return;
        }
        let _done = LookingDone(self);
        for pool in [Some(&self.0.pool), self.control_pool().ok()].into_iter().flatten() {
            close_idle(pool).await;
        }
    }

    /// The same in a task.
    pub(super) fn close_misled_soon(&self) {
        if let (Ok(runtime), false) = (Handle::try_current(), self.0.looking.0.load(Ordering::Acquire)) {
            let store = self.clone();
            runtime.spawn(async move { store.close_misled().await });
        }
    }
}

struct LookingDone<'a>(&'a Postgres);

impl Drop for LookingDone<'_> {
    fn drop(&mut self) {
        self.0.0.looking.0.store(false, Ordering::Release);
    }
}

async fn close_idle(pool: &PgPool) {
    // Those that are given back stand behind the others, so each is looked at once.
    for _ in 0..pool.num_idle() {
        let Some(mut conn) = pool.try_acquire() else { return };
        if !matches!(timeout(IDLE_ANSWER, is_writable(&mut conn)).await, Ok(Ok(true))) {
            close(conn).await;
        }
    }
}
