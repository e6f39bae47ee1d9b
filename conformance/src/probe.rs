//! Whether a target is there, and what it says of itself.

use std::{sync::Arc, time::Duration};

use polybus_core::Capabilities;
use tokio::time::timeout;

use crate::{Overrides, Target};

/// What a target says of itself.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Probe {
    /// What its driver can do.
    pub capabilities: Capabilities,
    /// Product and version, if it tells.
    pub version: Option<String>,
}

/// Connects once. The error is why the target counts as absent.
pub fn probe(target: &Arc<Target>) -> Result<Probe, String> {
    if let Some(reason) = &target.absent {
        return Err(reason.clone());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    let answer = runtime.block_on(timeout(Duration::from_secs(20), async {
        let overrides = Overrides { space: "probe".into(), ..Overrides::default() };
        let driver = (target.connect)(overrides).await.map_err(|e| e.to_string())?;
        let found = Probe { capabilities: driver.capabilities().clone(), version: driver.version().await };
        driver.close().await.map_err(|e| e.to_string())?;
        Ok(found)
    }));
    answer.unwrap_or_else(|_| Err("no connection within 20 s".into()))
}
