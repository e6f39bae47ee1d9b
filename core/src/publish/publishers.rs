//! The batchers of one bus: one for each address, opened by the first publish to it, and a few for the queues in which
//! other programs wait for answers.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};

use tokio::{sync::OnceCell, time::Instant};

use crate::{
    Address, Publisher, Result,
    connection::{BusConnection, close_timeout::run_concurrently, preflight},
    message::ReplyTo,
    publish::batcher::PublishBatcher,
    topology::Entity,
};

/// How many queues of other programs keep their publisher. Many programs make a queue for each of their processes, or
/// for each request, so the one that was not used for the longest time gives way.
const MAX_REPLY_QUEUES: usize = 64;

/// How often it is looked whether one that gave way is still in use.
const UNUSED_CHECK: Duration = Duration::from_millis(100);

/// Stands for all queues that no address names, in metrics and spans: there is no limit to their names.
const REPLY_QUEUE: &str = "reply-to";

/// The batchers of a bus by their address. None of them refers to the bus: a cycle of references would keep it alive.
pub(crate) struct Publishers {
    connection: Arc<BusConnection>,
    by_address: Mutex<HashMap<Address, BatcherCell>>,
    /// The one that was used last is the last.
    by_reply_queue: Mutex<Vec<(ReplyQueue, BatcherCell)>>,
}

/// What tells the publisher to one reply queue from another. All sessions of a queue share one.
#[derive(Clone, PartialEq, Eq)]
struct ReplyQueue {
    name: Box<str>,
    is_native: bool,
    has_sessions: bool,
}

type BatcherCell = Arc<OnceCell<Arc<PublishBatcher>>>;

impl Publishers {
    pub(crate) fn new(connection: Arc<BusConnection>) -> Self {
        Self { connection, by_address: Mutex::default(), by_reply_queue: Mutex::default() }
    }

    fn by_address(&self) -> MutexGuard<'_, HashMap<Address, BatcherCell>> {
        self.by_address.lock()
    }

    /// The publisher of this address. The first call opens it, and callers that come meanwhile wait for that.
    pub(crate) async fn open(&self, to: &Address, deadline: Instant) -> Result<Publisher> {
        self.connection.ensure_open("publish")?;
        let cell = self.by_address().entry(to.clone()).or_default().clone();
        if let Some(batcher) = cell.get() {
            return Ok(self.publisher(batcher));
        }
        let entity = self.connection.topology.address(to);
        self.open_in(&cell, entity, deadline).await.map_err(|e| e.with_context("address", to))
    }

    /// The publisher to the queue in which somebody waits for an answer.
    pub(crate) async fn open_reply(&self, to: &ReplyTo, deadline: Instant) -> Result<Publisher> {
        let topology = &self.connection.topology;
        let address = to.address_in(topology).filter(|address| topology.address(address).declared);
        if let (Some(address), None) = (&address, to.session()) {
            return self.open(address, deadline).await;
        }
        self.connection.ensure_open("publish")?;
        let (cell, replaced) = self.reply_cell(to);
        if let Some(batcher) = replaced.and_then(|cell| cell.get().cloned()) {
            tokio::spawn(close_unused(batcher));
        }
        if let Some(batcher) = cell.get() {
            return Ok(self.publisher(batcher));
        }
        let mut entity = Entity::new(Address::queue(REPLY_QUEUE), to.queue());
        entity.fixed = to.is_native();
        entity.settings.ordered = to.session().is_some();
        self.open_in(&cell, entity, deadline).await.map_err(|e| e.with_context("reply_to", to.queue()))
    }

    /// The cell of a reply queue, and the one that gave way to it.
    fn reply_cell(&self, to: &ReplyTo) -> (BatcherCell, Option<BatcherCell>) {
        let queue =
            ReplyQueue { name: to.queue().into(), is_native: to.is_native(), has_sessions: to.session().is_some() };
        let mut cells = self.by_reply_queue.lock();
        let found = cells.iter().position(|(known, _)| *known == queue);
        let entry = found.map_or_else(|| (queue, BatcherCell::default()), |at| cells.remove(at));
        let oldest = cells.iter().position(|(_, cell)| may_give_way(cell));
        let replaced = oldest.filter(|_| cells.len() >= MAX_REPLY_QUEUES).map(|at| cells.remove(at).1);
        let cell = entry.1.clone();
        cells.push(entry);
        (cell, replaced)
    }

    fn publisher(&self, batcher: &Arc<PublishBatcher>) -> Publisher {
        Publisher { batcher: batcher.clone(), connection: self.connection.clone() }
    }

    async fn open_in(&self, cell: &BatcherCell, entity: Entity<Address>, deadline: Instant) -> Result<Publisher> {
        let connection = &self.connection;
        preflight::address(&*connection.driver, &entity).map_err(|e| connection.located(e, "publish"))?;
        let opened = cell.get_or_try_init(|| async {
            let sender = connection.retry_opening(deadline, || connection.driver.open_sender(&entity)).await?;
            let bytes = connection.pending_bytes.clone();
            let system = match &entity.name {
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
        opened.await.map(|batcher| self.publisher(batcher)).map_err(|e| connection.located(e, "publish"))
    }

    /// Closes all of them at the same time, each once its messages are answered.
    pub(crate) async fn close(&self) -> Result<()> {
        let mut cells: Vec<_> = self.by_address().values().cloned().collect();
        cells.extend(self.by_reply_queue.lock().iter().map(|(_, cell)| cell.clone()));
        let batchers: Vec<_> = cells.iter().filter_map(|cell| cell.get().cloned()).collect();
        run_concurrently(&batchers, |batcher| async move { batcher.close().await }).await
    }

    pub(crate) fn clear(&self) {
        self.by_address().clear();
        self.by_reply_queue.lock().clear();
    }
}

/// Whether a cell of the table is not being opened: nobody could close what is opened after its cell is gone. A cell
/// whose opening failed, since its queue is gone, has no batcher either, but no caller holds it.
fn may_give_way(cell: &BatcherCell) -> bool {
    cell.get().is_some() || Arc::strong_count(cell) == 1
}

/// Closes a batcher that gave way, once nobody publishes with it any more.
async fn close_unused(batcher: Arc<PublishBatcher>) {
    while Arc::strong_count(&batcher) > 1 {
        tokio::time::sleep(UNUSED_CHECK).await;
    }
    if let Err(e) = batcher.close().await {
        tracing::debug!(target: "polybus", error = %e, "the publisher to a reply queue did not close cleanly");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_could_not_be_opened_gives_way_and_one_that_is_being_opened_stays() {
        let cell = BatcherCell::default();
        let opening = cell.clone();
        assert!(!may_give_way(&cell));
        drop(opening);
        assert!(may_give_way(&cell), "the table would grow by each queue that is gone");
    }
}
