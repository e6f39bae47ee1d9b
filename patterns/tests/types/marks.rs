//! An inbox' store in memory: marks, and effects that commit with them.

use std::{
    collections::HashSet,
    error::Error as StdError,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{
    ChangeSignal, InboxStore, InboxTable, Lease, LeaseTable, Mark, MarkKey, Outage, Store, StoreControl, StoreTrouble,
    TransactionLimits,
};

#[derive(Clone, Default)]
pub(crate) struct Marks(Arc<Inner>);

#[derive(Default)]
struct Inner {
    marks: Mutex<HashSet<MarkKey>>,
    effects: Mutex<Vec<String>>,
    verified: AtomicU32,
    changes: ChangeSignal,
    outage: Outage,
}

/// What is done at the commit.
pub(crate) struct Changes {
    store: Marks,
    marks: Vec<MarkKey>,
    effects: Vec<String>,
}

impl Changes {
    pub(crate) fn write(&mut self, effect: impl Into<String>) {
        self.effects.push(effect.into());
    }
}

impl Marks {
    pub(crate) fn effects(&self) -> Vec<String> {
        self.0.effects.lock().unwrap().clone()
    }

    pub(crate) fn marks(&self) -> usize {
        self.0.marks.lock().unwrap().len()
    }

    /// How often a worker's start has looked at the tables.
    pub(crate) fn verified(&self) -> u32 {
        self.0.verified.load(Ordering::Relaxed)
    }
}

impl Store for Marks {
    type Conn = Changes;
    type Tx = Box<Changes>;

    async fn begin(&self) -> Result<Box<Changes>> {
        Ok(Box::new(Changes { store: self.clone(), marks: Vec::new(), effects: Vec::new() }))
    }
    async fn commit(tx: Box<Changes>) -> Result<()> {
        tx.store.0.marks.lock().unwrap().extend(tx.marks);
        tx.store.0.effects.lock().unwrap().extend(tx.effects);
        Ok(())
    }
    fn in_transaction(_: &mut Changes) -> bool {
        true
    }
    fn judge(&self, error: &(dyn StdError + 'static)) -> StoreTrouble {
        if error.to_string() == "deadlock" { StoreTrouble::Contention } else { StoreTrouble::None }
    }
    fn control(&self) -> Arc<dyn StoreControl> {
        Arc::new(self.clone())
    }
}

impl InboxStore for Marks {
    async fn begin_marked(&self, key: &MarkKey, _: &TransactionLimits) -> Result<(Box<Changes>, Mark)> {
        let mut tx = self.begin().await?;
        let mark = self.mark(&mut tx, key).await?;
        Ok((tx, mark))
    }
    async fn mark(&self, conn: &mut Changes, key: &MarkKey) -> Result<Mark> {
        if self.0.marks.lock().unwrap().contains(key) {
            return Ok(Mark::Duplicate);
        }
        conn.marks.push(*key);
        Ok(Mark::First)
    }
    async fn is_marked(&self, conn: &mut Changes, key: &MarkKey) -> Result<bool> {
        Ok(conn.marks.contains(key))
    }
    fn inbox(&self) -> Arc<dyn InboxTable> {
        Arc::new(self.clone())
    }
}

#[async_trait]
impl InboxTable for Marks {
    async fn register(&self, _: &str, _: &str) -> Result<i32> {
        Ok(1)
    }
    async fn sweep(&self, _: i32, _: Duration, _: u32) -> Result<u64> {
        Ok(0)
    }
    async fn marks(&self, _: i32, _: u32) -> Result<u64> {
        Ok(Marks::marks(self) as u64)
    }
}

#[async_trait]
impl StoreControl for Marks {
    async fn is_away(&self) -> bool {
        false
    }
    async fn verify(&self, _: &[&str]) -> Result<()> {
        self.0.verified.fetch_add(1, Ordering::Relaxed);
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
        false
    }
    fn system(&self) -> &'static str {
        "marks"
    }
}

/// Nobody gets one, so nothing is swept.
#[async_trait]
impl LeaseTable for Marks {
    async fn acquire(&self, _: &[String], _: &str, _: Duration) -> Result<Vec<Lease>> {
        Ok(Vec::new())
    }
    async fn renew(&self, _: &[Lease], _: &str, _: Duration) -> Result<Vec<Lease>> {
        Ok(Vec::new())
    }
    async fn release(&self, _: &[Lease], _: &str) -> Result<()> {
        Ok(())
    }
    async fn join(&self, _: &str, _: &str, _: Duration) -> Result<u32> {
        Ok(1)
    }
    async fn leave(&self, _: &str, _: &str) -> Result<()> {
        Ok(())
    }
}
