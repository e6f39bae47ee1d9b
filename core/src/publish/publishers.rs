//! The publishers of one bus: one group commit for each address, opened once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::OnceCell, time::Instant};

use crate::{
    connection::{Connection, patience::side_by_side, preflight},
    error::Result,
    publish::{Publisher, batcher::PublishBatcher},
    topology::Address,
};

/// The batchers of a bus by their address. None of them knows the bus, which it would keep alive for ever.
pub(crate) struct Publishers {
    connection: Arc<Connection>,
    by_address: Mutex<HashMap<Address, Arc<OnceCell<Arc<PublishBatcher>>>>>,
}

impl Publishers {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { connection, by_address: Mutex::default() }
    }

    fn by_address(&self) -> MutexGuard<'_, HashMap<Address, Arc<OnceCell<Arc<PublishBatcher>>>>> {
        self.by_address.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The publisher of this address, opened by the first who asks.
    pub(crate) async fn open(&self, to: &Address, deadline: Instant) -> Result<Publisher> {
        let connection = &self.connection;
        connection.ensure_open("publish")?;
        let publisher =
            |batcher: &Arc<PublishBatcher>| Publisher { batcher: batcher.clone(), connection: connection.clone() };
        let cell = self.by_address().entry(to.clone()).or_default().clone();
        if let Some(batcher) = cell.get() {
            return Ok(publisher(batcher));
        }
        let entity = connection.topology.address(to);
        preflight::address(&*connection.driver, &entity).map_err(|e| connection.located(e, "publish"))?;
        let opened = cell.get_or_try_init(|| async {
            let sender = connection.patiently(deadline, || connection.driver.open_sender(&entity)).await?;
            let room = connection.pending_bytes.clone();
            let system = match to {
                Address::Queue(_) => &connection.queue_system,
                Address::Topic(_) => &connection.topic_system,
            };
            Ok(Arc::new(PublishBatcher::new(entity.clone(), sender, connection.driver.backend(), system.clone(), room)))
        });
        match opened.await {
            Ok(batcher) => Ok(publisher(batcher)),
            Err(e) => Err(connection.located(e, "publish").with_context("address", to)),
        }
    }

    /// Closes all of them, side by side, each once what it has under way is answered.
    pub(crate) async fn close(&self) -> Result<()> {
        let cells: Vec<_> = self.by_address().values().cloned().collect();
        let batchers: Vec<_> = cells.iter().filter_map(|cell| cell.get().cloned()).collect();
        side_by_side(&batchers, |batcher| async move { batcher.close().await }).await
    }

    pub(crate) fn clear(&self) {
        self.by_address().clear();
    }
}
