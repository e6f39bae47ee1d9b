//! A driver that admits to less than it can.

use std::{any::Any, sync::Arc};

use async_trait::async_trait;
use polybus_core::{
    Address, Capabilities, Clock, DeclareMode, DeclareReport, Driver, Entity, Plan, Receiver, Result, Sender, Settler,
    Source, Stats,
};

/// The driver with other capabilities declared, so that the negative scenarios can be run against a broker that can do
/// everything: `masked(driver, |c| c.topics = false)`.
pub fn masked(inner: Arc<dyn Driver>, change: impl FnOnce(&mut Capabilities)) -> Arc<dyn Driver> {
    let mut capabilities = inner.capabilities().clone();
    change(&mut capabilities);
    Arc::new(Masked { inner, capabilities })
}

struct Masked {
    inner: Arc<dyn Driver>,
    capabilities: Capabilities,
}

#[async_trait]
impl Driver for Masked {
    fn backend(&self) -> &'static str {
        self.inner.backend()
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn version(&self) -> Option<String> {
        self.inner.version().await
    }

    fn physical_names(&self, plan: &Plan) -> Vec<(String, String)> {
        self.inner.physical_names(plan)
    }

    fn check(&self, plan: &Plan) -> Result<()> {
        self.inner.check(plan)
    }

    async fn declare(&self, plan: &Plan, mode: DeclareMode) -> Result<DeclareReport> {
        self.inner.declare(plan, mode).await
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        self.inner.open_sender(to).await
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        self.inner.open_receiver(from).await
    }

    async fn stats(&self, of: &Entity<Source>) -> Result<Stats> {
        self.inner.stats(of).await
    }

    async fn purge(&self, from: &Entity<Source>) -> Result<u64> {
        self.inner.purge(from).await
    }

    async fn delete(&self, plan: &Plan) -> Result<()> {
        self.inner.delete(plan).await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }

    fn clock(&self) -> Option<Arc<dyn Clock>> {
        self.inner.clock()
    }

    fn native(&self) -> Option<&(dyn Any + Send + Sync)> {
        self.inner.native()
    }
}
