//! A layer that declares fewer capabilities than its driver has.

use std::sync::Arc;

use async_trait::async_trait;
use polybus_core::driver::{Capabilities, Driver, DriverLayer};

/// The driver with other capabilities declared: `masked(driver, |c| c.topics = false)`.
///
/// With it the negative scenarios run against a broker that can do everything.
pub fn masked(inner: Arc<dyn Driver>, change: impl FnOnce(&mut Capabilities)) -> Arc<dyn Driver> {
    let mut capabilities = inner.capabilities().clone();
    change(&mut capabilities);
    Arc::new(MaskedDriver { inner, capabilities })
}

struct MaskedDriver {
    inner: Arc<dyn Driver>,
    capabilities: Capabilities,
}

#[async_trait]
impl DriverLayer for MaskedDriver {
    fn inner(&self) -> &dyn Driver {
        &*self.inner
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
}
