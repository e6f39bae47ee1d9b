//! The batchers of one bus: one for each address, opened by the first publish to it.

use std::{collections::HashMap, sync::Arc};

use parking_lot::{Mutex, MutexGuard};

use tokio::{sync::OnceCell, time::Instant};

use crate::{
    Address, Publisher, Result,
    connection::{BusConnection, close_timeout::run_concurrently, preflight},
    publish::batcher::PublishBatcher,
};

/// The batchers of a bus by their address. None of them refers to the bus: a cycle of references would keep it alive.
pub(crate) struct Publishers {
    connection: Arc<BusConnection>,
    by_address: Mutex<HashMap<Address, Arc<OnceCell<Arc<PublishBatcher>>>>>,
}

impl Publishers {
    pub(crate) fn new(connection: Arc<BusConnection>) -> Self {
        Self { connection, by_address: Mutex::default() }
    }

    fn by_address(&self) -> MutexGuard<'_, HashMap<Address, Arc<OnceCell<Arc<PublishBatcher>>>>> {
        self.by_address.lock()
    }

    /// The publisher of this address. The first call opens it, and callers that come meanwhile wait for that.
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
            let sender = connection.retry_opening(deadline, || connection.driver.open_sender(&entity)).await?;
            let bytes = connection.pending_bytes.clone();
            let system = match to {
                Address::Queue(_) => &connection.queue_system,
                Address::Topic(_) => &connection.topic_system,
            };
            Ok(Arc::new(PublishBatcher::new(
                entity.clone(),
                sender,
                connection.driver.backend(),
                system.clone(),
                bytes,
            )))
        });
        match opened.await {
            Ok(batcher) => Ok(publisher(batcher)),
            Err(e) => Err(connection.located(e, "publish").with_context("address", to)),
        }
    }

    /// Closes all of them at the same time, each once its messages are answered.
    pub(crate) async fn close(&self) -> Result<()> {
        let cells: Vec<_> = self.by_address().values().cloned().collect();
        let batchers: Vec<_> = cells.iter().filter_map(|cell| cell.get().cloned()).collect();
        run_concurrently(&batchers, |batcher| async move { batcher.close().await }).await
    }

    pub(crate) fn clear(&self) {
        self.by_address().clear();
    }
}
