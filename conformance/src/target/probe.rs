//! Asking a target once, before the scenarios, whether it is there and what it can do.

use std::{sync::Arc, time::Duration};

use polybus_core::{Result, driver::Capabilities};
use tokio::time::timeout;

use crate::{ConnectOverrides, Target};

/// What a target said of itself.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Probe {
    /// The capabilities of its driver.
    pub capabilities: Capabilities,
    /// Product and version of the broker, if the driver tells.
    pub version: Option<String>,
}

/// Connects once, and asks for capabilities and version. Blocks for up to a minute.
///
/// # Errors
///
/// Why the target counts as absent: [`Target::absent`], or the error of the connection attempt.
pub fn probe(target: &Arc<Target>) -> Result<Probe, String> {
    if let Some(reason) = &target.absent {
        return Err(reason.clone());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    let target = target.clone();
    runtime.block_on(async {
        let asking = tokio::spawn(async move { ask(&target).await });
        match timeout(Duration::from_secs(60), asking).await {
            Ok(Ok(found)) => found.map_err(|e| e.to_string()),
            Ok(Err(e)) => Err(e.to_string()),
            Err(_) => Err("no connection within 60 s".into()),
        }
    })
}

async fn ask(target: &Target) -> Result<Probe> {
    let overrides = ConnectOverrides { space: "probe".into(), ..ConnectOverrides::default() };
    let driver = (target.connect)(overrides).await?;
    let found = Probe { capabilities: driver.capabilities().clone(), version: driver.version().await };
    driver.close().await?;
    Ok(found)
}
