//! The transaction: it commits, loses an answer, or breaks a promise at its end.

use std::{
    ops::{Deref, DerefMut},
    pin::Pin,
    sync::Arc,
};

use polybus_core::Result;
use polybus_patterns::store::{InboxStore, MarkKey, OutboxStore, Store};

use super::{LayerState, SuiteStore};
use crate::stores::fault::StoreFault;

/// A transaction of the store under test.
pub struct SuiteTx<S: Store> {
    store: S,
    state: Arc<LayerState>,
    inner: S::Tx,
    /// A mark that the fault puts off.
    pub(super) late_mark: Option<MarkKey>,
    /// The end of a job that the fault puts off.
    pub(super) late_finish: Option<LateFinish>,
}

/// What a fault does after the commit.
pub(super) type LateFinish = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

impl<S: OutboxStore + InboxStore> SuiteTx<S> {
    pub(super) fn new(store: &SuiteStore<S>, inner: S::Tx) -> Self {
        Self { store: store.inner.clone(), state: store.state.clone(), inner, late_mark: None, late_finish: None }
    }

    pub(super) fn inner(&self) -> &S::Tx {
        &self.inner
    }

    pub(super) async fn commit(self) -> Result<()> {
        let Self { store, state, inner, late_mark, late_finish } = self;
        state.troubles.check()?;
        if state.has(StoreFault::CommitsNothing) {
            return Ok(());
        }
        S::commit(inner).await?;
        if let Some(key) = late_mark {
            let mut tx = store.begin().await?;
            let _ = store.mark(&mut tx, &key).await?;
            S::commit(tx).await?;
        }
        if let Some(finish) = late_finish {
            finish.await?;
        }
        state.troubles.after_commit()
    }
}

impl<S: Store> Deref for SuiteTx<S> {
    type Target = S::Conn;

    fn deref(&self) -> &S::Conn {
        &self.inner
    }
}

impl<S: Store> DerefMut for SuiteTx<S> {
    fn deref_mut(&mut self) -> &mut S::Conn {
        &mut self.inner
    }
}
