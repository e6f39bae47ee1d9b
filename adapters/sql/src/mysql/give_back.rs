//! What becomes of a connection whose transaction did not end well: whether it goes back to its pool, or is closed.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sqlx::{
    AssertSqlSafe, Connection, MySql as Client, MySqlConnection, mysql::MySqlTransactionManager, pool::PoolConnection,
    raw_sql,
};
use sqlx_core::{row::Row, transaction::TransactionManager};
use tokio::time::timeout;

use super::{
    MySql,
    literals::{Value, fill},
};
use crate::error::Effect;

/// How long a connection may take to be fit for its pool again. One whose answers are read wrongly waits for what never
/// comes, and to make another one is cheaper than to wait long: the server rolls back either way.
const FIT_AGAIN: Duration = Duration::from_secs(1);

/// How long a rollback may take before the statement in front of it is cancelled.
const ROLLBACK: Duration = Duration::from_millis(50);

/// How long a statement that is under way may take to be cancelled. Until then its locks are held, and closing the
/// connection does not end it.
const CANCEL: Duration = Duration::from_secs(10);

/// How long the goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// How many errors of the statements in front of it a rollback bears.
const ERRORS_BEFORE: usize = 6;

/// How to cancel what runs on a connection.
#[derive(Clone, Debug)]
pub(super) struct Cancel {
    pub(super) store: MySql,
    pub(super) connection: i64,
    /// Which server it leads to: behind an address there may be several.
    pub(super) server: Vec<u8>,
}

/// Tells servers apart, as far as they tell themselves apart.
pub(super) const SERVER: &str = "CAST(CONCAT_WS(':', @@hostname, @@port, @@server_id) AS BINARY)";

/// Closes the connection, and frees its place in the pool also where nobody hears the goodbye.
pub(super) async fn close(conn: PoolConnection<Client>) {
    let _ = timeout(GOODBYE, conn.detach().close()).await;
}

/// Rolls back and gives the connection back to its pool, if it is fit for it. `restore` sets the session as it was.
pub(super) async fn roll_back(mut conn: PoolConnection<Client>, restore: String, cancel: Option<Cancel>) -> bool {
    // They stand behind whatever is under way.
    while MySqlTransactionManager::get_transaction_depth(&conn) > 0 {
        MySqlTransactionManager::start_rollback(&mut conn);
    }
    let fit = async {
        if let Some(cancel) = cancel {
            let mut fit = std::pin::pin!(is_fit(&mut conn, &restore));
            if let Ok(fit) = timeout(ROLLBACK, &mut fit).await {
                return fit;
            }
            // To its end, or what is cancelled might be the next one's.
            if timeout(CANCEL, cancel.run()).await.is_err() || timeout(FIT_AGAIN, fit).await != Ok(true) {
                return false;
            }
        }
        timeout(FIT_AGAIN, is_fit(&mut conn, &restore)).await == Ok(true)
    };
    if fit.await {
        return true;
    }
    close(conn).await;
    false
}

/// Whether the connection answers what it is asked. A client that was dropped between the halves of a prepared
/// statement reads the one's answer as the other's, from then on. So it is asked for what nobody else would say.
async fn is_fit(conn: &mut MySqlConnection, restore: &str) -> bool {
    let nonce = nonce();
    // A server that was made read-only answers all else, and refuses what the next one has to do.
    let ask = fill(
        "ROLLBACK; ?1; START TRANSACTION READ WRITE; ROLLBACK; SELECT ?2",
        &[Value::Sql(restore), Value::Bytes(&nonce)],
    );
    for _ in 0..ERRORS_BEFORE {
        match raw_sql(AssertSqlSafe(ask.clone())).fetch_all(&mut *conn).await {
            Ok(rows) => return rows.last().is_some_and(|row| row.try_get(0).is_ok_and(|said: Vec<u8>| said == nonce)),
            // That of a statement in front of it, or of a savepoint that is gone with its transaction.
            Err(sqlx::Error::Database(_)) => {}
            Err(_) => return false,
        }
    }
    false
}

fn nonce() -> Vec<u8> {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("polybus {time} {}", CALLS.fetch_add(1, Ordering::Relaxed)).into_bytes()
}

impl Cancel {
    /// The connection does not go back to its pool before this has ended, so nobody else's statement can be hit.
    async fn run(self) {
        let cancelled = async {
            let mut control = self.store.control_conn("cancel").await?;
            let answer = control.run(&format!("SELECT {SERVER}"), Effect::None).await?;
            let is_same = answer
                .rows
                .first()
                .is_some_and(|row| row.try_get(0).is_ok_and(|server: Vec<u8>| server == self.server));
            if is_same {
                control.run(&format!("KILL QUERY {}", self.connection), Effect::None).await?;
            }
            Ok::<_, polybus_core::Error>(())
        };
        if let Err(error) = cancelled.await {
            tracing::debug!(%error, "the statement of a dropped transaction could not be cancelled");
        }
    }
}
