//! A store in memory, for the relay under tokio's paused clock: its calls fail, hang or panic when they are told to.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::{
    collections::{BTreeMap, HashMap},
    error::Error as StdError,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use polybus_core::{Address, Envelope, Error, ErrorKind, Result, driver::async_trait};
use polybus_patterns::{
    Outbox,
    store::{
        ChangeSignal, DueRows, Lease, LeaseTable, NewRow, Outage, OutboxRow, OutboxStats, OutboxStore, OutboxTable,
        ParkedFilter, ParkedRow, ReadRows, RowId, Store, StoreControl, StoreTrouble, StoredRow,
    },
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Call {
    Read,
    Delete,
    Leases,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Refused,
    Hangs,
    /// It is done after this time.
    Waits(Duration),
}

/// The store, and its tables. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Rows(Arc<Inner>);

#[derive(Default)]
struct Inner {
    rows: Mutex<BTreeMap<i64, (String, StoredRow)>>,
    last: Mutex<i64>,
    /// By call and address; that of a call that has none is empty.
    troubles: Mutex<HashMap<(Call, String), End>>,
    changes: ChangeSignal,
    outage: Outage,
    single_writer: AtomicBool,
}

impl Rows {
    /// As a database has it where one transaction writes at a time.
    pub(crate) fn with_one_writer(self) -> Self {
        self.0.single_writer.store(true, Ordering::Relaxed);
        self
    }

    /// Writes messages of these keys, one each.
    pub(crate) async fn enqueue(&self, to: &str, keys: impl IntoIterator<Item = usize>) {
        let messages = keys.into_iter().map(|n| Envelope::new("t", n.to_string()).key(format!("k{n}")));
        let written = Outbox::new(self, "/test").enqueue_all(&mut (), Address::queue(to), messages).await;
        assert!(written.is_ok(), "{written:?}");
        self.0.changes.committed();
    }

    pub(crate) fn trouble(&self, call: Call, address: &str, end: Option<End>) {
        let mut troubles = self.0.troubles.lock();
        let key = (call, address.to_owned());
        troubles.remove(&key);
        troubles.extend(end.map(|end| (key, end)));
    }

    pub(crate) fn left(&self) -> usize {
        self.0.rows.lock().len()
    }

    async fn meet(&self, call: Call, address: &str) -> Result<()> {
        let trouble = self.0.troubles.lock().get(&(call, address.to_owned())).copied();
        match trouble {
            None => Ok(()),
            Some(End::Refused) => Err(Error::new(ErrorKind::Unexpected, "refused")),
            Some(End::Hangs) => std::future::pending().await,
            Some(End::Waits(time)) => {
                tokio::time::sleep(time).await;
                Ok(())
            }
        }
    }
}

impl Store for Rows {
    type Conn = ();
    type Tx = Box<()>;

    async fn begin(&self) -> Result<Box<()>> {
        Ok(Box::new(()))
    }
    async fn commit(_: Box<()>) -> Result<()> {
        Ok(())
    }
    fn in_transaction((): &mut ()) -> bool {
        true
    }
    fn judge(&self, _: &(dyn StdError + 'static)) -> StoreTrouble {
        StoreTrouble::None
    }
    fn control(&self) -> Arc<dyn StoreControl> {
        Arc::new(self.clone())
    }
}

impl OutboxStore for Rows {
    async fn insert(&self, (): &mut (), new: &[NewRow]) -> Result<()> {
        for row in new {
            let mut last = self.0.last.lock();
            *last += 1;
            let id = RowId { id: *last, created_at: 1 };
            let (key, head, data) = (row.key.clone(), row.head.clone(), row.data.clone());
            let stored = StoredRow { id, slot: row.slot, key, head, data, attempts: 0 };
            self.0.rows.lock().insert(*last, (row.address.clone(), stored));
        }
        Ok(())
    }
    async fn insert_statement(&self, _: &NewRow) -> Result<OutboxRow> {
        Err(Error::unsupported("no statements"))
    }
    fn outbox(&self) -> Arc<dyn OutboxTable> {
        Arc::new(self.clone())
    }
}

#[async_trait]
impl StoreControl for Rows {
    async fn is_away(&self) -> bool {
        false
    }
    async fn verify(&self, _: &[&str]) -> Result<()> {
        Ok(())
    }
    fn leases(&self) -> Arc<dyn LeaseTable> {
        Arc::new(self.clone())
    }
    fn changes(&self) -> &ChangeSignal {
        &self.0.changes
    }
    fn outage(&self) -> &Outage {
        &self.0.outage
    }
    fn max_connections(&self) -> Option<u32> {
        None
    }
    fn single_writer(&self) -> bool {
        self.0.single_writer.load(Ordering::Relaxed)
    }
    fn system(&self) -> &'static str {
        "rows"
    }
}

/// One relay alone: it gets all that it asks for.
#[async_trait]
impl LeaseTable for Rows {
    async fn acquire(&self, names: &[String], _: &str, _: Duration) -> Result<Vec<Lease>> {
        self.meet(Call::Leases, "").await?;
        Ok(names.iter().map(|name| Lease { name: name.clone(), token: 1 }).collect())
    }
    async fn renew(&self, leases: &[Lease], _: &str, _: Duration) -> Result<Vec<Lease>> {
        self.meet(Call::Leases, "").await?;
        Ok(leases.to_vec())
    }
    async fn release(&self, _: &[Lease], _: &str) -> Result<()> {
        self.meet(Call::Leases, "").await
    }
    async fn join(&self, _: &str, _: &str, _: Duration) -> Result<u32> {
        self.meet(Call::Leases, "").await?;
        Ok(1)
    }
    async fn leave(&self, _: &str, _: &str) -> Result<()> {
        self.meet(Call::Leases, "").await
    }
}

#[async_trait]
impl OutboxTable for Rows {
    async fn addresses(&self, slots: &[i16]) -> Result<Vec<(i16, String)>> {
        let rows = self.0.rows.lock();
        let mut found: Vec<(i16, String)> = rows.values().map(|(address, row)| (row.slot, address.clone())).collect();
        found.retain(|(slot, _)| slots.contains(slot));
        found.sort();
        found.dedup();
        Ok(found)
    }
    async fn read(&self, request: &ReadRows<'_>) -> Result<Vec<StoredRow>> {
        self.meet(Call::Read, request.address).await?;
        let mut of_slot: HashMap<i16, u32> = HashMap::new();
        let rows = self.0.rows.lock();
        let wanted = rows.values().filter(|(address, row)| {
            address == request.address
                && request.slots.contains(&row.slot)
                && !request.held_rows.contains(&row.id.id)
                && row.key.as_ref().is_none_or(|key| !request.held_keys.contains(key))
        });
        let first = wanted.filter(|(_, row)| {
            let count = of_slot.entry(row.slot).or_default();
            *count += 1;
            *count <= request.rows_per_slot
        });
        Ok(first.map(|(_, row)| row.clone()).collect())
    }
    async fn delete(&self, rows: &[RowId]) -> Result<u64> {
        let address = rows.first().and_then(|row| self.0.rows.lock().get(&row.id).map(|(address, _)| address.clone()));
        self.meet(Call::Delete, &address.unwrap_or_default()).await?;
        let mut all = self.0.rows.lock();
        Ok(rows.iter().filter_map(|row| all.remove(&row.id)).count() as u64)
    }
    async fn park(&self, _: RowId, reason: &str, _: bool) -> Result<()> {
        Err(Error::unsupported(format!("parked: {reason}")))
    }
    async fn record_failure(&self, _: RowId, _: &str) -> Result<()> {
        Ok(())
    }
    async fn promote_due(&self, _: u32) -> Result<DueRows> {
        Ok(DueRows::default())
    }
    async fn stats(&self, _: u32) -> Result<OutboxStats> {
        Ok(OutboxStats::default())
    }
    async fn parked(&self, _: &ParkedFilter, _: i64, _: u32) -> Result<Vec<ParkedRow>> {
        Ok(Vec::new())
    }
    async fn retry_parked(&self, _: &ParkedFilter) -> Result<u64> {
        Ok(0)
    }
    async fn discard_parked(&self, _: &ParkedFilter) -> Result<u64> {
        Ok(0)
    }
    async fn set_paused(&self, _: &str, _: bool) -> Result<()> {
        Ok(())
    }
    async fn paused(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}
