//! Marks.

use std::{sync::Arc, time::Duration};

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{InboxStore, InboxTable, Mark, MarkKey, OutboxStore, Store, TransactionLimits};

use super::{LayerState, SuiteStore, SuiteTx};
use crate::stores::fault::StoreFault;

impl<S: OutboxStore + InboxStore> SuiteStore<S> {
    /// Whether the mark is there for a transaction that begins now.
    async fn is_there(&self, key: &MarkKey) -> Result<Mark> {
        let mut tx = self.inner.begin().await?;
        Ok(if self.inner.is_marked(&mut tx, key).await? { Mark::Duplicate } else { Mark::First })
    }
}

impl<S: OutboxStore + InboxStore> InboxStore for SuiteStore<S> {
    async fn begin_marked(&self, key: &MarkKey, limits: &TransactionLimits) -> Result<(SuiteTx<S>, Mark)> {
        self.state.troubles.check()?;
        match self.state.fault {
            Some(StoreFault::MarksInTwoSteps) => {
                let found = self.is_there(key).await?;
                let mut tx = self.begin().await?;
                let _ = self.inner.mark(&mut tx, key).await?;
                Ok((tx, found))
            }
            Some(StoreFault::MarksInAnotherTransaction) => {
                let (tx, mark) = self.inner.begin_marked(key, limits).await?;
                S::commit(tx).await?;
                Ok((self.begin().await?, mark))
            }
            Some(StoreFault::MarksAfterwards) => {
                let found = self.is_there(key).await?;
                let mut tx = self.begin().await?;
                tx.late_mark = Some(*key);
                Ok((tx, found))
            }
            _ => {
                let (tx, mark) = self.inner.begin_marked(key, limits).await?;
                Ok((SuiteTx::new(self, tx), mark))
            }
        }
    }

    async fn mark(&self, conn: &mut S::Conn, key: &MarkKey) -> Result<Mark> {
        self.inner.mark(conn, key).await
    }

    async fn is_marked(&self, conn: &mut S::Conn, key: &MarkKey) -> Result<bool> {
        if self.has(StoreFault::AlwaysMarked) || self.has(StoreFault::MarksAfterwards) {
            return Ok(true);
        }
        self.inner.is_marked(conn, key).await
    }

    fn commit_proves_mark(tx: &SuiteTx<S>, key: &MarkKey) -> bool {
        tx.late_mark.is_none() && S::commit_proves_mark(tx.inner(), key)
    }

    fn inbox(&self) -> Arc<dyn InboxTable> {
        Arc::new(SuiteInbox { inner: self.inner.inbox(), state: self.state.clone() })
    }
}

struct SuiteInbox {
    inner: Arc<dyn InboxTable>,
    state: Arc<LayerState>,
}

#[async_trait]
impl InboxTable for SuiteInbox {
    async fn register(&self, consumer: &str, source: &str) -> Result<i32> {
        if self.state.has(StoreFault::OneNumber) {
            return self.inner.register("suite", "suite").await;
        }
        self.inner.register(consumer, source).await
    }

    async fn sweep(&self, consumer: i32, older_than: Duration, limit: u32) -> Result<u64> {
        let (mut older_than, mut limit) = (older_than, limit);
        if self.state.has(StoreFault::SweepsYoungMarks) {
            older_than = Duration::ZERO;
        }
        if self.state.has(StoreFault::SweepsWithoutLimit) {
            limit = 1_000_000;
        }
        self.inner.sweep(consumer, older_than, limit).await
    }

    async fn marks(&self, consumer: i32, cap: u32) -> Result<u64> {
        let cap = if self.state.has(StoreFault::NoCap) { 1_000_000 } else { cap };
        self.inner.marks(consumer, cap).await
    }
}
