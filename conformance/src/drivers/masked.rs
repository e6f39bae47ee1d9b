//! A driver that admits to less than it can.

use std::sync::Arc;

use async_trait::async_trait;
use polybus_core::driver::{Capabilities, Driver, DriverLayer};

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
impl DriverLayer for Masked {
    fn inner(&self) -> &dyn Driver {
        &*self.inner
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
}
