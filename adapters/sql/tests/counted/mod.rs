//! A store whose relay's calls are counted.

use std::{
    error::Error as StdError,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{
    ChangeSignal, DueRows, Lease, LeaseTable, NewRow, Outage, OutboxRow, OutboxStats, OutboxStore, OutboxTable,
    ParkedFilter, ParkedRow, ReadRows, RowId, Store, StoreControl, StoreTrouble, StoredRow,
};

/// How often each call was made.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    pub(crate) addresses: AtomicU64,
    pub(crate) read: AtomicU64,
    pub(crate) delete: AtomicU64,
    pub(crate) other: AtomicU64,
}

impl Calls {
    pub(crate) fn taken(&self) -> [u64; 4] {
        [&self.addresses, &self.read, &self.delete, &self.other].map(|calls| calls.swap(0, Ordering::Relaxed))
    }
}

#[derive(Clone)]
pub(crate) struct Counted<T> {
    pub(crate) inner: T,
    pub(crate) calls: Arc<Calls>,
}

impl<T> Counted<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self { inner, calls: Arc::default() }
    }

    fn around<U>(&self, inner: U) -> Counted<U> {
        Counted { inner, calls: self.calls.clone() }
    }

    fn other(&self) -> &T {
        self.calls.other.fetch_add(1, Ordering::Relaxed);
        &self.inner
    }
}

impl<S: Store> Store for Counted<S> {
    type Conn = S::Conn;
    type Tx = S::Tx;

    async fn begin(&self) -> Result<S::Tx> {
        self.inner.begin().await
    }
    async fn commit(tx: S::Tx) -> Result<()> {
        S::commit(tx).await
    }
    fn in_transaction(conn: &mut S::Conn) -> bool {
        S::in_transaction(conn)
    }
    fn judge(&self, error: &(dyn StdError + 'static)) -> StoreTrouble {
        self.inner.judge(error)
    }
    fn control(&self) -> Arc<dyn StoreControl> {
        Arc::new(self.around(self.inner.control()))
    }
}

impl<S: OutboxStore> OutboxStore for Counted<S> {
    async fn insert(&self, conn: &mut S::Conn, rows: &[NewRow]) -> Result<()> {
        self.inner.insert(conn, rows).await
    }
    async fn insert_statement(&self, row: &NewRow) -> Result<OutboxRow> {
        self.inner.insert_statement(row).await
    }
    fn outbox(&self) -> Arc<dyn OutboxTable> {
        Arc::new(self.around(self.inner.outbox()))
    }
}

#[async_trait]
impl StoreControl for Counted<Arc<dyn StoreControl>> {
    async fn is_away(&self) -> bool {
        self.other().is_away().await
    }
    async fn verify(&self, components: &[&str]) -> Result<()> {
        self.other().verify(components).await
    }
    fn leases(&self) -> Arc<dyn LeaseTable> {
        Arc::new(self.around(self.inner.leases()))
    }
    fn changes(&self) -> &ChangeSignal {
        self.inner.changes()
    }
    fn outage(&self) -> &Outage {
        self.inner.outage()
    }
    fn max_connections(&self) -> Option<u32> {
        self.inner.max_connections()
    }
    fn single_writer(&self) -> bool {
        self.inner.single_writer()
    }
    fn system(&self) -> &'static str {
        self.inner.system()
    }
}

#[async_trait]
impl LeaseTable for Counted<Arc<dyn LeaseTable>> {
    async fn acquire(&self, names: &[String], owner: &str, term: Duration) -> Result<Vec<Lease>> {
        self.other().acquire(names, owner, term).await
    }
    async fn renew(&self, leases: &[Lease], owner: &str, term: Duration) -> Result<Vec<Lease>> {
        self.other().renew(leases, owner, term).await
    }
    async fn release(&self, leases: &[Lease], owner: &str) -> Result<()> {
        self.other().release(leases, owner).await
    }
    async fn join(&self, group: &str, member: &str, term: Duration) -> Result<u32> {
        self.other().join(group, member, term).await
    }
    async fn leave(&self, group: &str, member: &str) -> Result<()> {
        self.other().leave(group, member).await
    }
}

#[async_trait]
impl OutboxTable for Counted<Arc<dyn OutboxTable>> {
    async fn addresses(&self, slots: &[i16]) -> Result<Vec<(i16, String)>> {
        self.calls.addresses.fetch_add(1, Ordering::Relaxed);
        self.inner.addresses(slots).await
    }
    async fn read(&self, request: &ReadRows<'_>) -> Result<Vec<StoredRow>> {
        self.calls.read.fetch_add(1, Ordering::Relaxed);
        self.inner.read(request).await
    }
    async fn delete(&self, rows: &[RowId]) -> Result<u64> {
        self.calls.delete.fetch_add(1, Ordering::Relaxed);
        self.inner.delete(rows).await
    }
    async fn park(&self, row: RowId, reason: &str, hold_key: bool) -> Result<()> {
        self.other().park(row, reason, hold_key).await
    }
    async fn record_failure(&self, row: RowId, error: &str) -> Result<()> {
        self.other().record_failure(row, error).await
    }
    async fn promote_due(&self, limit: u32) -> Result<DueRows> {
        self.other().promote_due(limit).await
    }
    async fn stats(&self, cap: u32) -> Result<OutboxStats> {
        self.other().stats(cap).await
    }
    async fn parked(&self, filter: &ParkedFilter, after: i64, limit: u32) -> Result<Vec<ParkedRow>> {
        self.other().parked(filter, after, limit).await
    }
    async fn retry_parked(&self, filter: &ParkedFilter) -> Result<u64> {
        self.other().retry_parked(filter).await
    }
    async fn discard_parked(&self, filter: &ParkedFilter) -> Result<u64> {
        self.other().discard_parked(filter).await
    }
    async fn set_paused(&self, address: &str, paused: bool) -> Result<()> {
        self.other().set_paused(address, paused).await
    }
    async fn paused(&self) -> Result<Vec<String>> {
        self.other().paused().await
    }
}
