//! A transaction on any of the databases.

use std::ops::{Deref, DerefMut};

use polybus_core::Result;

use super::conn::{Conns, DbConn, Either};

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
    /// `Ok` does not prove that the writes are there: PostgreSQL answers the COMMIT of a transaction in which a
    /// statement failed with Ok, too, and rolls back.
    ///
    /// # Errors
    /// `Unavailable` with MayDuplicate if it may have happened. `Unexpected` if the transaction was ended before: see
    /// the transaction of the database.
    ///
    /// ```no_run
    /// # async fn example(db: polybus_sql::Db) -> polybus_core::Result<()> {
    /// db.begin().await?.commit().await
    /// # }
    /// ```
    pub async fn commit(self) -> Result<()> {
        on_each!(self.0.0, Conns, conn => match conn {
            Either::Tx(tx) => tx.commit().await,
            // No transaction is made of one.
            Either::Pooled(_) => Ok(()),
        })
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
            Either::Pooled(_) => Ok(()),
        })
    }
}

#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
impl From<crate::PostgresTx> for DbTx {
    fn from(tx: crate::PostgresTx) -> Self {
        Self(DbConn(Conns::Postgres(Either::Tx(tx))))
    }
}

#[cfg(feature = "mysql")]
#[cfg_attr(docsrs, doc(cfg(feature = "mysql")))]
impl From<crate::MySqlTx> for DbTx {
    fn from(tx: crate::MySqlTx) -> Self {
        Self(DbConn(Conns::MySql(Either::Tx(tx))))
    }
}

#[cfg(feature = "sqlite")]
#[cfg_attr(docsrs, doc(cfg(feature = "sqlite")))]
impl From<crate::SqliteTx> for DbTx {
    fn from(tx: crate::SqliteTx) -> Self {
        Self(DbConn(Conns::Sqlite(Either::Tx(tx))))
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
