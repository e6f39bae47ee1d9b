//! Rows of the outbox.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use polybus_core::{Error, ErrorKind, Result, driver::async_trait};
use polybus_patterns::store::{
    DueRows, InboxStore, NewRow, OutboxRow, OutboxStats, OutboxStore, OutboxTable, ParkedFilter, ParkedRow, ReadRows,
    RowId, SLOTS, StoredRow,
};

use super::{LayerState, SuiteStore};
use crate::stores::{
    fault::StoreFault,
    table_troubles::{TableCall, TableTroubles},
};

impl<S: OutboxStore + InboxStore> OutboxStore for SuiteStore<S> {
    async fn insert(&self, conn: &mut S::Conn, rows: &[NewRow]) -> Result<()> {
        let refused = &self.state.refused_inserts;
        if refused.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Err(Error::new(ErrorKind::PayloadTooLarge, "the suite refuses this insert"));
        }
        let mut rows = rows.to_vec();
        match self.state.fault {
            Some(StoreFault::DueAtOnce) => rows.iter_mut().for_each(|row| row.delay = Duration::ZERO),
            Some(StoreFault::InsertsOutside) => {
                // In a task: on a database with one writer it has to wait for the caller's transaction.
                let store = self.inner.clone();
                let insert = async move {
                    let mut tx = store.begin().await?;
                    store.insert(&mut tx, &rows).await?;
                    S::commit(tx).await
                };
                self.state.inserts.lock().push(tokio::spawn(async move { drop(insert.await) }));
                return Ok(());
            }
            _ => {}
        }
        self.inner.insert(conn, &rows).await
    }

    async fn insert_statement(&self, row: &NewRow) -> Result<OutboxRow> {
        self.inner.insert_statement(row).await
    }

    fn outbox(&self) -> Arc<dyn OutboxTable> {
        let (state, troubles) = (self.state.clone(), self.tables.clone());
        Arc::new(SuiteOutbox { store: self.inner.clone(), table: self.inner.outbox(), state, troubles })
    }
}

struct SuiteOutbox<S> {
    store: S,
    table: Arc<dyn OutboxTable>,
    state: Arc<LayerState>,
    troubles: TableTroubles,
}

impl<S: OutboxStore> SuiteOutbox<S> {
    fn has(&self, fault: StoreFault) -> bool {
        self.state.has(fault)
    }

    /// All rows that are ready.
    async fn all(&self) -> Result<Vec<StoredRow>> {
        let slots: Vec<i16> = (0..SLOTS).collect();
        let mut rows = Vec::new();
        for (slot, address) in self.table.addresses(&slots).await? {
            let (slots, address) = (&[slot][..], &*address);
            let whole = ReadRows {
                slots,
                address,
                held_keys: &[],
                held_rows: &[],
                rows_per_slot: 10_000,
                max_bytes: usize::MAX >> 1,
            };
            rows.extend(self.table.read(&whole).await?);
        }
        Ok(rows)
    }

    /// Writes parked rows as new ones.
    async fn retry_as_new(&self, filter: &ParkedFilter) -> Result<u64> {
        let parked = self.table.parked(filter, 0, 10_000).await?;
        let row = |row: &ParkedRow| NewRow {
            slot: 0,
            address: row.address.clone(),
            key: row.key.clone(),
            head: row.head.clone(),
            data: row.data.clone(),
            delay: Duration::ZERO,
        };
        let rows: Vec<NewRow> = parked.iter().map(row).collect();
        let mut tx = self.store.begin().await?;
        self.store.insert(&mut tx, &rows).await?;
        S::commit(tx).await?;
        self.table.discard_parked(filter).await
    }
}

#[async_trait]
impl<S: OutboxStore> OutboxTable for SuiteOutbox<S> {
    async fn addresses(&self, slots: &[i16]) -> Result<Vec<(i16, String)>> {
        self.troubles.check(TableCall::Addresses).await?;
        self.table.addresses(slots).await
    }

    async fn read(&self, request: &ReadRows<'_>) -> Result<Vec<StoredRow>> {
        self.troubles.check_address(TableCall::Read, request.address).await?;
        let mut request = request.clone();
        match self.state.fault {
            Some(StoreFault::ReadsHeldKeys) => request.held_keys = &[],
            Some(StoreFault::ReadsHeldRows) => request.held_rows = &[],
            Some(StoreFault::ReadsTooMuch) => request.max_bytes = usize::MAX >> 1,
            _ => {}
        }
        let mut rows = self.table.read(&request).await?;
        match self.state.fault {
            Some(StoreFault::ReadDeletes) => {
                let ids: Vec<RowId> = rows.iter().map(|row| row.id).collect();
                self.table.delete(&ids).await?;
            }
            Some(StoreFault::RunningCursor) => {
                let mut cursors = self.state.cursors.lock();
                rows.retain(|row| {
                    let last = cursors.entry((row.slot, request.address.to_owned())).or_default();
                    let is_new = row.id.id > *last;
                    *last = row.id.id.max(*last);
                    is_new
                });
            }
            Some(StoreFault::NoLargeRow) => {
                rows.retain(|row| row.head.len() + row.data.len() <= request.max_bytes);
            }
            Some(StoreFault::WrongOrder) => rows.reverse(),
            Some(StoreFault::WrongSlot) => rows.iter_mut().for_each(|row| row.slot = (row.slot + 1) % SLOTS),
            _ => {}
        }
        Ok(rows)
    }

    async fn delete(&self, rows: &[RowId]) -> Result<u64> {
        self.troubles.check_rows(TableCall::Delete, rows).await?;
        if self.has(StoreFault::DeletesById) {
            let all = self.all().await?;
            let same: Vec<RowId> =
                all.iter().map(|row| row.id).filter(|id| rows.iter().any(|row| row.id == id.id)).collect();
            return self.table.delete(&same).await;
        }
        let deleted = self.table.delete(rows).await?;
        Ok(if self.has(StoreFault::MiscountsDeletes) { rows.len() as u64 } else { deleted })
    }

    async fn park(&self, row: RowId, reason: &str, hold_key: bool) -> Result<()> {
        self.troubles.check_rows(TableCall::Park, &[row]).await?;
        if self.has(StoreFault::ParkDrops) {
            return self.table.delete(&[row]).await.map(drop);
        }
        self.table.park(row, reason, hold_key && !self.has(StoreFault::ReadsHeldKeys)).await
    }

    async fn record_failure(&self, row: RowId, error: &str) -> Result<()> {
        if self.has(StoreFault::CountsNoFailure) {
            return Ok(());
        }
        self.table.record_failure(row, error).await
    }

    async fn promote_due(&self, limit: u32) -> Result<DueRows> {
        self.troubles.check(TableCall::PromoteDue).await?;
        self.table.promote_due(limit).await
    }

    async fn stats(&self, cap: u32) -> Result<OutboxStats> {
        self.state.inserted().await;
        self.table.stats(if self.has(StoreFault::NoCap) { 1_000_000 } else { cap }).await
    }

    async fn parked(&self, filter: &ParkedFilter, after: i64, limit: u32) -> Result<Vec<ParkedRow>> {
        self.table.parked(filter, after, limit).await
    }

    async fn retry_parked(&self, filter: &ParkedFilter) -> Result<u64> {
        if self.has(StoreFault::RetriesAsNew) {
            return self.retry_as_new(filter).await;
        }
        self.table.retry_parked(filter).await
    }

    async fn discard_parked(&self, filter: &ParkedFilter) -> Result<u64> {
        self.table.discard_parked(filter).await
    }

    async fn set_paused(&self, address: &str, paused: bool) -> Result<()> {
        if self.has(StoreFault::IgnoresPauses) {
            let mut all = self.state.paused.lock();
            all.retain(|other| other != address);
            if paused {
                all.push(address.to_owned());
            }
            return Ok(());
        }
        self.table.set_paused(address, paused).await
    }

    async fn paused(&self) -> Result<Vec<String>> {
        if self.has(StoreFault::IgnoresPauses) {
            return Ok(self.state.paused.lock().clone());
        }
        self.table.paused().await
    }
}
