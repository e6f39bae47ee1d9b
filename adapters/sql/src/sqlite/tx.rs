//! A transaction that holds the right to write.

use std::{
    ops::{Deref, DerefMut},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use polybus_core::{Error, ErrorKind, Result};
use sqlx::{Sqlite as Client, SqliteConnection, Transaction};
use tokio::runtime::Handle;

use super::{SYSTEM, committing, reading, write_queue::WritePermit};

/// A transaction that can write, and holds up all others of this database that do, until it ends.
///
/// `&mut *tx` is the connection. Dropping it rolls it back.
///
/// SQLite ends a transaction by itself at some errors: a full disk, and whatever `OR ROLLBACK` stands at. The statements
/// after such an error would then commit one by one. Here they fail, and so does [`commit`](Self::commit).
///
/// ```no_run
/// # async fn example(store: polybus_sql::Sqlite) -> Result<(), Box<dyn std::error::Error>> {
/// let mut tx = store.begin().await?;
/// sqlx::query("UPDATE carts SET open = 0").execute(&mut *tx).await?;
/// tx.commit().await?;
/// # Ok(())
/// # }
/// ```
pub struct SqliteTx {
    tx: Option<Transaction<'static, Client>>,
    permit: Option<WritePermit>,
    watch: Arc<TransactionWatch>,
}

/// What SQLite tells of a transaction by its hooks.
#[derive(Default)]
struct TransactionWatch {
    /// The transaction is open: no commit is due.
    refuse_commits: AtomicBool,
    /// It was rolled back, which nobody has asked for while it is open.
    rolled_back: AtomicBool,
}

const HELD: &str = "the transaction is here until it ends";

impl SqliteTx {
    pub(super) async fn new(mut tx: Transaction<'static, Client>, permit: WritePermit) -> sqlx::Result<Self> {
        let watch = Arc::new(TransactionWatch::default());
        watch.refuse_commits.store(true, Ordering::Relaxed);
        let (commits, rollbacks) = (watch.clone(), watch.clone());
        let mut handle = tx.lock_handle().await?;
        handle.set_commit_hook(move || !commits.refuse_commits.load(Ordering::Relaxed));
        handle.set_rollback_hook(move || rollbacks.rolled_back.store(true, Ordering::Relaxed));
        drop(handle);
        Ok(Self { tx: Some(tx), permit: Some(permit), watch })
    }

    /// Commits. Dropping the future may leave it either way.
    ///
    /// # Errors
    /// `Unavailable` with MayDuplicate if it may have happened; `Unavailable` and Safe, with the context `contention`,
    /// if others read for so long that it could not. `Unexpected` and Safe if an error has ended the transaction
    /// before: nothing was written.
    ///
    /// ```no_run
    /// # async fn example(store: polybus_sql::Sqlite) -> polybus_core::Result<()> {
    /// store.begin().await?.commit().await
    /// # }
    /// ```
    pub async fn commit(mut self) -> Result<()> {
        if self.watch.rolled_back.load(Ordering::Relaxed) {
            let text = "an error of a statement has ended the transaction, and nothing of it was written";
            return Err(Error::new(ErrorKind::Unexpected, text).safe().of_driver(SYSTEM, "commit"));
        }
        let Some(tx) = self.tx.take() else { return Ok(()) };
        self.watch.refuse_commits.store(false, Ordering::Relaxed);
        tx.commit().await.map_err(committing("commit"))
    }

    /// Rolls back, and returns when that is done.
    ///
    /// # Errors
    /// `Unavailable` if the connection was lost. Nothing was written then, either.
    ///
    /// ```no_run
    /// # async fn example(store: polybus_sql::Sqlite) -> polybus_core::Result<()> {
    /// store.begin().await?.rollback().await
    /// # }
    /// ```
    pub async fn rollback(mut self) -> Result<()> {
        let Some(tx) = self.tx.take() else { return Ok(()) };
        let _allow = AllowCommits(self.watch.clone());
        self.watch.roll_back(tx).await.map_err(reading("rollback"))
    }
}

impl TransactionWatch {
    /// Rolls back, also what SQLite has rolled back by itself, which sqlx goes on counting: without a ROLLBACK that
    /// succeeds, no BEGIN would on that connection, ever after.
    async fn roll_back(&self, mut tx: Transaction<'static, Client>) -> sqlx::Result<()> {
        if self.rolled_back.load(Ordering::Relaxed) {
            sqlx::raw_sql("BEGIN").execute(&mut *tx).await?;
        }
        tx.rollback().await
    }
}

/// Lets commits through again when it is dropped, whatever became of the rollback: others use the connection then.
struct AllowCommits(Arc<TransactionWatch>);

impl Drop for AllowCommits {
    fn drop(&mut self) {
        self.0.refuse_commits.store(false, Ordering::Relaxed);
    }
}

impl Deref for SqliteTx {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        self.tx.as_deref().expect(HELD)
    }
}

impl DerefMut for SqliteTx {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        self.tx.as_deref_mut().expect(HELD)
    }
}

impl Drop for SqliteTx {
    fn drop(&mut self) {
        if let Some(permit) = &self.permit {
            // Whoever dropped it may begin another one.
            permit.of_run(None);
        }
        // The next one's turn comes when the rollback is done: it may have to wait for a statement that is under way.
        match (self.tx.take(), self.permit.take(), Handle::try_current()) {
            (Some(tx), Some(permit), Ok(runtime)) => {
                let allow = AllowCommits(self.watch.clone());
                runtime.spawn(async move {
                    let _ = allow.0.roll_back(tx).await;
                    drop(allow);
                    drop(permit);
                });
            }
            // Without a runtime sqlx' own transaction rolls back; whoever has the connection next must be able to commit.
            _ => self.watch.refuse_commits.store(false, Ordering::Relaxed),
        }
    }
}

impl std::fmt::Debug for SqliteTx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteTx").finish_non_exhaustive()
    }
}
