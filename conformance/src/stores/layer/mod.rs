//! The layer around the store under test: it forwards every call, and breaks the one promise of its fault.
//!
//! `mod.rs` has the store, and one file each its transaction, its control, its leases, its outbox, its inbox and its
//! sequence numbers. `jobs/` has its jobs and schedules.

mod control;
mod inbox;
mod jobs;
mod leases;
mod outbox;
mod sequence;
mod tx;

use std::{
    collections::HashMap,
    error::Error as StdError,
    sync::{Arc, atomic::AtomicUsize},
};

use parking_lot::Mutex;
use polybus_core::Result;
use polybus_patterns::store::{InboxStore, OutboxStore, Store, StoreControl, StoreTrouble};

pub use self::tx::SuiteTx;
use tokio::task::JoinHandle;

use super::{
    fault::StoreFault,
    table_troubles::TableTroubles,
    troubles::{self, StoreTroubles},
};

/// The store under test, as scenarios use it.
pub struct SuiteStore<S> {
    pub(crate) inner: S,
    pub(crate) state: Arc<LayerState>,
    /// What is wrong with the tables for this handle, and not for others on the same database.
    pub(crate) tables: TableTroubles,
}

/// What all handles on one database share.
#[derive(Default)]
pub(crate) struct LayerState {
    pub(crate) fault: Option<StoreFault>,
    pub(crate) troubles: StoreTroubles,
    /// What the faults remember: the last row that was read of a slot and address, and the addresses that were paused.
    pub(super) cursors: Mutex<HashMap<(i16, String), i64>>,
    pub(super) paused: Mutex<Vec<String>>,
    /// How many inserts are refused from now on.
    pub(crate) refused_inserts: AtomicUsize,
    /// How often a key was to move on.
    pub(crate) advances: AtomicUsize,
    /// Calls of [`StoreFault::DrawsUnsorted`].
    pub(super) draws: AtomicUsize,
    /// What the faults of jobs remember.
    pub(super) jobs: jobs::JobFaults,
    /// Inserts that a fault has put into tasks.
    pub(super) inserts: Mutex<Vec<JoinHandle<()>>>,
}

impl LayerState {
    pub(crate) fn has(&self, fault: StoreFault) -> bool {
        self.fault == Some(fault)
    }

    /// Waits for the inserts in tasks, so that whoever looks at the table finds them.
    pub(super) async fn inserted(&self) {
        let inserts = std::mem::take(&mut *self.inserts.lock());
        for insert in inserts {
            let _ = insert.await;
        }
    }
}

impl<S: Clone> Clone for SuiteStore<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), state: self.state.clone(), tables: self.tables.clone() }
    }
}

impl<S: OutboxStore + InboxStore> SuiteStore<S> {
    pub(crate) fn new(inner: S, fault: Option<StoreFault>) -> Self {
        let state = Arc::new(LayerState { fault, ..LayerState::default() });
        Self { inner, state, tables: TableTroubles::default() }
    }

    /// Another handle on the same database.
    pub(crate) fn beside(&self, inner: S) -> Self {
        Self { inner, state: self.state.clone(), tables: TableTroubles::default() }
    }

    fn has(&self, fault: StoreFault) -> bool {
        self.state.has(fault)
    }
}

impl<S: OutboxStore + InboxStore> Store for SuiteStore<S> {
    type Conn = S::Conn;
    type Tx = SuiteTx<S>;

    async fn begin(&self) -> Result<SuiteTx<S>> {
        self.state.troubles.check()?;
        Ok(SuiteTx::new(self, self.inner.begin().await?))
    }

    async fn commit(tx: SuiteTx<S>) -> Result<()> {
        tx.commit().await
    }

    fn in_transaction(conn: &mut S::Conn) -> bool {
        S::in_transaction(conn)
    }

    fn judge(&self, error: &(dyn StdError + 'static)) -> StoreTrouble {
        if self.has(StoreFault::JudgesNothing) {
            return StoreTrouble::None;
        }
        troubles::judge(error).unwrap_or_else(|| self.inner.judge(error))
    }

    fn control(&self) -> Arc<dyn StoreControl> {
        let (state, tables) = (self.state.clone(), self.tables.clone());
        Arc::new(control::SuiteControl { inner: self.inner.control(), state, tables })
    }
}
