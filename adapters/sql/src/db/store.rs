//! What outbox, inbox and sequence numbers see: the store of the database, whichever it is.

use std::{error::Error as StdError, sync::Arc};

use bytes::Bytes;
use polybus_core::{Error, Result};
use polybus_patterns::store::{
    GuardKey, GuardedKey, InboxStore, InboxTable, Mark, MarkKey, NewRow, OutboxRow, OutboxStore, OutboxTable,
    SequenceStore, SequenceTable, Store, StoreControl, StoreTrouble, StoredProgress, TransactionLimits,
};

use super::{
    Db, DbConn, DbTx, Stores,
    conn::{Conns, Either},
};
use crate::error;

/// The same with the store and with the connection of sqlx, which both are of one database.
macro_rules! on_both {
    ($db:expr, $conn:expr, ($store:ident, $inner:ident) => $done:expr) => {
        match (&$db.0, &mut $conn.0) {
            #[cfg(feature = "postgres")]
            (Stores::Postgres($store), Conns::Postgres($inner)) => {
                let $inner = $inner.conn();
                $done
            }
            #[cfg(feature = "mysql")]
            (Stores::MySql($store), Conns::MySql($inner)) => {
                let $inner = $inner.conn();
                $done
            }
            #[cfg(feature = "sqlite")]
            (Stores::Sqlite($store), Conns::Sqlite($inner)) => {
                let $inner = $inner.conn();
                $done
            }
            #[allow(unreachable_patterns, reason = "where one database is built in")]
            (_, conn) => Err(of_another($db, conn)),
        }
    };
}

fn of_another(db: &Db, conn: &mut Conns) -> Error {
    let of = on_each!(conn, Conns, conn => super::client::system_of(conn.conn()));
    Error::invalid(format!("a transaction of {of} was given to a store on {}", db.system()))
        .of_driver(db.system(), "begin")
}

impl Store for Db {
    type Conn = DbConn;
    type Tx = DbTx;

    async fn begin(&self) -> Result<DbTx> {
        Self::begin(self).await
    }

    async fn commit(tx: DbTx) -> Result<()> {
        tx.commit().await
    }

    fn in_transaction(conn: &mut DbConn) -> bool {
        conn.in_transaction()
    }

    fn judge(&self, error: &(dyn StdError + 'static)) -> StoreTrouble {
        error::judge(error)
    }

    fn control(&self) -> Arc<dyn StoreControl> {
        on_each!(&self.0, Stores, store => store.control())
    }
}

impl OutboxStore for Db {
    async fn insert(&self, conn: &mut DbConn, rows: &[NewRow]) -> Result<()> {
        on_both!(self, conn, (store, conn) => store.insert(conn, rows).await)
    }

    async fn insert_statement(&self, row: &NewRow) -> Result<OutboxRow> {
        on_each!(&self.0, Stores, store => store.insert_statement(row).await)
    }

    fn outbox(&self) -> Arc<dyn OutboxTable> {
        on_each!(&self.0, Stores, store => store.outbox())
    }
}

impl InboxStore for Db {
    async fn begin_marked(&self, key: &MarkKey, limits: &TransactionLimits) -> Result<(DbTx, Mark)> {
        on_each!(&self.0, Stores, store => {
            let (tx, mark) = store.begin_marked(key, limits).await?;
            Ok((tx.into(), mark))
        })
    }

    async fn mark(&self, conn: &mut DbConn, key: &MarkKey) -> Result<Mark> {
        on_both!(self, conn, (store, conn) => store.mark(conn, key).await)
    }

    async fn is_marked(&self, conn: &mut DbConn, key: &MarkKey) -> Result<bool> {
        on_both!(self, conn, (store, conn) => store.is_marked(conn, key).await)
    }

    fn commit_proves_mark(tx: &DbTx, key: &MarkKey) -> bool {
        match &tx.0 {
            #[cfg(feature = "mysql")]
            Conns::MySql(Either::Tx(tx)) => crate::MySql::commit_proves_mark(tx, key),
            _ => false,
        }
    }

    fn inbox(&self) -> Arc<dyn InboxTable> {
        on_each!(&self.0, Stores, store => store.inbox())
    }
}

impl SequenceStore for Db {
    async fn draw(&self, conn: &mut DbConn, address: &str, keys: &[(Bytes, i64)]) -> Result<Vec<i64>> {
        on_both!(self, conn, (store, conn) => store.draw(conn, address, keys).await)
    }

    async fn undo_draw(&self, conn: &mut DbConn, address: &str, keys: &[(Bytes, i64)]) -> Result<()> {
        on_both!(self, conn, (store, conn) => store.undo_draw(conn, address, keys).await)
    }

    async fn keep_draw(&self, conn: &mut DbConn) -> Result<()> {
        on_both!(self, conn, (store, conn) => store.keep_draw(conn).await)
    }

    async fn advance(&self, conn: &mut DbConn, key: &GuardKey, n: i64) -> Result<bool> {
        on_both!(self, conn, (store, conn) => store.advance(conn, key, n).await)
    }

    async fn lock_progress(&self, conn: &mut DbConn, key: &GuardKey, of: &GuardedKey<'_>) -> Result<StoredProgress> {
        on_both!(self, conn, (store, conn) => store.lock_progress(conn, key, of).await)
    }

    async fn write_progress(&self, conn: &mut DbConn, key: &GuardKey, progress: &StoredProgress) -> Result<()> {
        on_both!(self, conn, (store, conn) => store.write_progress(conn, key, progress).await)
    }

    fn sequences(&self) -> Arc<dyn SequenceTable> {
        on_each!(&self.0, Stores, store => store.sequences())
    }
}
