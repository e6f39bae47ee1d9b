//! A transaction on any of the databases.

use std::ops::{Deref, DerefMut};

use polybus_core::{Error, ErrorKind, Result};

use super::conn::{Conns, DbConn, Either, HasFailed};

/// It was swapped for a connection, through `&mut *tx`.
fn no_transaction(operation: &'static str) -> Error {
    Error::new(ErrorKind::Unexpected, "this is no transaction: it was swapped for a connection")
        .with_operation(operation)
}

/// A transaction of a [`Db`](crate::Db). Dropping it rolls it back, as the transaction of its database does.
///
/// ```no_run
/// # async fn example(db: polybus_sql::Db) -> polybus_core::Result<()> {
/// let mut tx = db.begin().await?;
/// tx.execute("UPDATE carts SET open = ? WHERE id = ?", [false.into(), 7.into()]).await?;
/// tx.commit().await
/// # }
/// ```
pub struct DbTx(DbConn);

impl DbTx {
    /// Commits. Dropping the future may leave it either way.
    ///
    /// PostgreSQL answers the COMMIT of a transaction that a failed statement has ended with Ok, and rolls back. Where
    /// a statement of [`DbConn`] or of an outbox has failed, this looks first; not after one by
    /// [`as_postgres`](DbConn::as_postgres).
    ///
    /// # Errors
    /// `Unavailable` with MayDuplicate if it may have happened. `Unexpected` and Safe if the transaction was ended
    /// before, by the error of a statement: nothing is written. See also the transaction of the database.
    ///
    /// ```no_run
    /// # async fn example(db: polybus_sql::Db) -> polybus_core::Result<()> {
    /// db.begin().await?.commit().await
    /// # }
    /// ```
    pub async fn commit(mut self) -> Result<()> {
        self.look_whether_it_ended().await?;
        on_each!(self.0.0, Conns, conn => match conn {
            Either::Tx(tx) => tx.commit().await,
            Either::Pooled(_) => Err(no_transaction("commit")),
        })
    }

    async fn look_whether_it_ended(&mut self) -> Result<()> {
        if !self.0.1.0 || self.system() != "postgres" {
            return Ok(());
        }
        let Err(error) = self.fetch_one("SELECT 1", []).await else { return Ok(()) };
        if error.context("code") != Some("25P02") {
            return Err(error);
        }
        let text = "a statement of the transaction has failed, and nothing of it is written: use a savepoint where an error \
                    is expected";
        Err(Error::new(ErrorKind::Unexpected, text).safe().of_driver(self.system(), "commit").with_source(error))
    }

    /// Rolls back, and returns when that is done.
    ///
    /// # Errors
    /// `Unavailable` if the connection was lost. Nothing was written then, either.
    ///
    /// ```no_run
    /// # async fn example(db: polybus_sql::Db) -> polybus_core::Result<()> {
    /// db.begin().await?.rollback().await
    /// # }
    /// ```
    pub async fn rollback(self) -> Result<()> {
        on_each!(self.0.0, Conns, conn => match conn {
            Either::Tx(tx) => tx.rollback().await,
            Either::Pooled(_) => Err(no_transaction("rollback")),
        })
    }
}

#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
impl From<crate::PostgresTx> for DbTx {
    fn from(tx: crate::PostgresTx) -> Self {
        Self(DbConn(Conns::Postgres(Either::Tx(tx)), HasFailed::default()))
    }
}

#[cfg(feature = "mysql")]
#[cfg_attr(docsrs, doc(cfg(feature = "mysql")))]
impl From<crate::MySqlTx> for DbTx {
    fn from(tx: crate::MySqlTx) -> Self {
        Self(DbConn(Conns::MySql(Either::Tx(tx)), HasFailed::default()))
    }
}

#[cfg(feature = "sqlite")]
#[cfg_attr(docsrs, doc(cfg(feature = "sqlite")))]
impl From<crate::SqliteTx> for DbTx {
    fn from(tx: crate::SqliteTx) -> Self {
        Self(DbConn(Conns::Sqlite(Either::Tx(tx)), HasFailed::default()))
    }
}

impl Deref for DbTx {
    type Target = DbConn;

    fn deref(&self) -> &DbConn {
        &self.0
    }
}

impl DerefMut for DbTx {
    fn deref_mut(&mut self) -> &mut DbConn {
        &mut self.0
    }
}

impl std::fmt::Debug for DbTx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DbTx").field("system", &self.system()).finish_non_exhaustive()
    }
}
