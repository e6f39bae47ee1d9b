//! What outbox, inbox, sequence numbers and jobs see: the store of the database, whichever it is.

use std::{error::Error as StdError, sync::Arc};

use bytes::Bytes;
use polybus_core::{Error, Result};
use polybus_patterns::store::{
    AppendOutcome, Checkpoint, GuardKey, GuardedKey, InboxStore, InboxTable, JobClaim, JobInserted, JobStore, JobTable,
    LogStore, LogTable, Mark, MarkKey, NewJobRow, NewRow, OutboxRow, OutboxStore, OutboxTable, ScheduleTable,
    SequenceStore, SequenceTable, Store, StoreControl, StoreTrouble, StoredProgress, StreamAppend, StreamState,
    TransactionLimits,
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
        let done = on_both!(self, conn, (store, inner) => store.insert(inner, rows).await);
        conn.1.note(done)
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
        let done = on_both!(self, conn, (store, inner) => store.mark(inner, key).await);
        conn.1.note(done)
    }

    async fn is_marked(&self, conn: &mut DbConn, key: &MarkKey) -> Result<bool> {
        let done = on_both!(self, conn, (store, inner) => store.is_marked(inner, key).await);
        conn.1.note(done)
    }

    fn commit_proves_mark(tx: &DbTx, key: &MarkKey) -> bool {
        // Those of the other databases prove none.
        let _ = key;
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
        let done = on_both!(self, conn, (store, inner) => store.draw(inner, address, keys).await);
        conn.1.note(done)
    }

    async fn undo_draw(&self, conn: &mut DbConn, address: &str, keys: &[(Bytes, i64)]) -> Result<()> {
        let done = on_both!(self, conn, (store, inner) => store.undo_draw(inner, address, keys).await);
        conn.1.note(done)
    }

    async fn keep_draw(&self, conn: &mut DbConn) -> Result<()> {
        let done = on_both!(self, conn, (store, inner) => store.keep_draw(inner).await);
        conn.1.note(done)
    }

    async fn advance(&self, conn: &mut DbConn, key: &GuardKey, n: i64) -> Result<bool> {
        let done = on_both!(self, conn, (store, inner) => store.advance(inner, key, n).await);
        conn.1.note(done)
    }

    async fn lock_progress(&self, conn: &mut DbConn, key: &GuardKey, of: &GuardedKey<'_>) -> Result<StoredProgress> {
        let done = on_both!(self, conn, (store, inner) => store.lock_progress(inner, key, of).await);
        conn.1.note(done)
    }

    async fn write_progress(&self, conn: &mut DbConn, key: &GuardKey, progress: &StoredProgress) -> Result<()> {
        let done = on_both!(self, conn, (store, inner) => store.write_progress(inner, key, progress).await);
        conn.1.note(done)
    }

    fn sequences(&self) -> Arc<dyn SequenceTable> {
        on_each!(&self.0, Stores, store => store.sequences())
    }
}

impl JobStore for Db {
    async fn insert_jobs(&self, conn: &mut DbConn, jobs: &[NewJobRow]) -> Result<Vec<JobInserted>> {
        let done = on_both!(self, conn, (store, inner) => store.insert_jobs(inner, jobs).await);
        conn.1.note(done)
    }

    async fn begin_finished(&self, claim: &JobClaim, limits: &TransactionLimits) -> Result<Option<DbTx>> {
        on_each!(&self.0, Stores, store => {
            let tx = store.begin_finished(claim, limits).await?;
            Ok(tx.map(Into::into))
        })
    }

    async fn keep_result(&self, conn: &mut DbConn, claim: &JobClaim, result: &str) -> Result<()> {
        let done = on_both!(self, conn, (store, inner) => store.keep_result(inner, claim, result).await);
        conn.1.note(done)
    }

    async fn is_finished(&self, conn: &mut DbConn, claim: &JobClaim) -> Result<bool> {
        let done = on_both!(self, conn, (store, inner) => store.is_finished(inner, claim).await);
        conn.1.note(done)
    }

    fn commit_proves_finish(tx: &DbTx) -> bool {
        // Those of the other databases prove none.
        match &tx.0 {
            #[cfg(feature = "mysql")]
            Conns::MySql(Either::Tx(tx)) => crate::MySql::commit_proves_finish(tx),
            _ => false,
        }
    }

    fn jobs(&self) -> Arc<dyn JobTable> {
        on_each!(&self.0, Stores, store => store.jobs())
    }

    fn schedules(&self) -> Arc<dyn ScheduleTable> {
        on_each!(&self.0, Stores, store => store.schedules())
    }
}

impl LogStore for Db {
    async fn append_events(&self, conn: &mut DbConn, appends: &[StreamAppend]) -> Result<Vec<AppendOutcome>> {
        let done = on_both!(self, conn, (store, inner) => store.append_events(inner, appends).await);
        conn.1.note(done)
    }

    async fn change_stream(&self, conn: &mut DbConn, stream: &str, from: StreamState, to: StreamState) -> Result<bool> {
        let done = on_both!(self, conn, (store, inner) => store.change_stream(inner, stream, from, to).await);
        conn.1.note(done)
    }

    async fn delete_events(&self, conn: &mut DbConn, stream: &str, below: i64) -> Result<u64> {
        let done = on_both!(self, conn, (store, inner) => store.delete_events(inner, stream, below).await);
        conn.1.note(done)
    }

    async fn move_checkpoint(&self, conn: &mut DbConn, name: &str, from: &Checkpoint, to: i64) -> Result<bool> {
        let done = on_both!(self, conn, (store, inner) => store.move_checkpoint(inner, name, from, to).await);
        conn.1.note(done)
    }

    async fn is_checkpoint(&self, conn: &mut DbConn, name: &str, at: &Checkpoint) -> Result<bool> {
        let done = on_both!(self, conn, (store, inner) => store.is_checkpoint(inner, name, at).await);
        conn.1.note(done)
    }

    fn log(&self) -> Arc<dyn LogTable> {
        on_each!(&self.0, Stores, store => store.log())
    }
}
