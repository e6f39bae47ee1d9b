//! The in-process broker: the reference for every promise of the contract.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{ConnectUrl, Connector, Driver, Result};

/// Serves `memory://` (private to the connection) and `memory://name` (shared in the process).
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryConnector;

#[async_trait]
impl Connector for MemoryConnector {
    fn schemes(&self) -> &'static [&'static str] {
        &["memory"]
    }

    async fn connect(&self, url: &ConnectUrl) -> Result<Arc<dyn Driver>> {
        let _ = url;
        unimplemented!()
    }
}
