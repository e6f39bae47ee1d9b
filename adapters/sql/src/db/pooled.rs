//! A connection of the pool, in no transaction.

use std::ops::{Deref, DerefMut};

use polybus_core::Result;

use super::{
    Db, Stores,
    conn::{Conns, DbConn, Either, HasFailed},
};
use crate::error::{self, Effect};

/// A connection of the pool, which goes back there when this is dropped: see [`Db::acquire`].
///
/// ```no_run
/// # async fn example(db: polybus_sql::Db) -> polybus_core::Result<()> {
/// let mut conn = db.acquire().await?;
/// let rows = conn.fetch_all("SELECT id FROM orders", []).await?;
/// # Ok(())
/// # }
/// ```
pub struct DbPooled(DbConn);

impl DbPooled {
    pub(super) async fn of(db: &Db) -> Result<Self> {
        let failed = |error| error::of(error, db.system(), "acquire", Effect::None);
        let conn = match &db.0 {
            #[cfg(feature = "postgres")]
            Stores::Postgres(store) => Conns::Postgres(Either::Pooled(store.pool().acquire().await.map_err(failed)?)),
            #[cfg(feature = "mysql")]
            Stores::MySql(store) => Conns::MySql(Either::Pooled(store.pool().acquire().await.map_err(failed)?)),
            #[cfg(feature = "sqlite")]
            Stores::Sqlite(store) => Conns::Sqlite(Either::Pooled(store.pool().acquire().await.map_err(failed)?)),
        };
        Ok(Self(DbConn(conn, HasFailed::default())))
    }
}

impl Deref for DbPooled {
    type Target = DbConn;

    fn deref(&self) -> &DbConn {
        &self.0
    }
}

impl DerefMut for DbPooled {
    fn deref_mut(&mut self) -> &mut DbConn {
        &mut self.0
    }
}

impl std::fmt::Debug for DbPooled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DbPooled").field("system", &self.system()).finish_non_exhaustive()
    }
}
