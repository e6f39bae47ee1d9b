//! A broker on which one address never answers.

use std::sync::Arc;

use polybus_core::{
    Address, Bus, BusOptions, Error, Outgoing, QueueSpec, Receipt, Result, Topology,
    driver::{Batching, Driver, DriverLayer, PreparedMessage, Sender, async_trait},
    memory::MemoryDriver,
    topology::Entity,
};

/// A bus with the queues `bench` and `stuck`, of which the second never answers.
pub(crate) async fn bus() -> Bus {
    let topology = Topology::new().queue("bench", QueueSpec::new()).queue("stuck", QueueSpec::new());
    let driver: Arc<dyn Driver> = Arc::new(StuckDriver(MemoryDriver::new()));
    let bus = Bus::new(driver, BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();
    bus
}

struct StuckDriver(MemoryDriver);

#[async_trait]
impl DriverLayer for StuckDriver {
    fn inner(&self) -> &dyn Driver {
        &self.0
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        let inner = self.0.open_sender(to).await?;
        Ok(if to.name.name() == "stuck" { Arc::new(StuckSender(inner)) } else { inner })
    }
}

struct StuckSender(Arc<dyn Sender>);

#[async_trait]
impl Sender for StuckSender {
    fn batching(&self) -> Batching {
        self.0.batching()
    }

    fn prepare(&self, message: Outgoing) -> Result<PreparedMessage> {
        self.0.prepare(message)
    }

    fn held_back(&self) -> Option<Error> {
        self.0.held_back()
    }

    async fn send(&self, _batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        std::future::pending().await
    }

    async fn close(&self) -> Result<()> {
        self.0.close().await
    }
}

/// The memory that this process has taken so far at most, in MB.
pub(crate) fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() / 1024
}
