//! The database as loops see it.

use std::sync::Arc;

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{ChangeSignal, LeaseTable, Outage, StoreControl};

use super::{LayerState, leases::SuiteLeases};
use crate::stores::{fault::StoreFault, table_troubles::TableTroubles};

pub(super) struct SuiteControl {
    pub(super) inner: Arc<dyn StoreControl>,
    pub(super) state: Arc<LayerState>,
    pub(super) tables: TableTroubles,
}

#[async_trait]
impl StoreControl for SuiteControl {
    async fn is_away(&self) -> bool {
        if self.state.has(StoreFault::NeverAway) {
            return false;
        }
        self.state.troubles.is_away() || self.inner.is_away().await
    }

    async fn verify(&self, components: &[&str]) -> Result<()> {
        if self.state.has(StoreFault::VerifiesNothing) {
            return Ok(());
        }
        self.inner.verify(components).await
    }

    fn leases(&self) -> Arc<dyn LeaseTable> {
        let (state, tables) = (self.state.clone(), self.tables.clone());
        Arc::new(SuiteLeases { inner: self.inner.leases(), state, tables })
    }

    fn changes(&self) -> &ChangeSignal {
        self.inner.changes()
    }

    fn outage(&self) -> &Outage {
        self.inner.outage()
    }

    async fn notify(&self) -> Result<()> {
        if self.state.has(StoreFault::NotifiesNobody) {
            return Ok(());
        }
        self.inner.notify().await
    }

    async fn listen(&self) -> Result<()> {
        self.inner.listen().await
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
