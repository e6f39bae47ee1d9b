//! The consumers of one bus: those that are open, and what they remember together.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    connection::{Connection, patience::side_by_side},
    consume::{admission::WarningLog, consumer::Consumer, handled_counts::HandledCounts},
    error::Result,
};

/// The consumers of one bus.
pub(crate) struct Consumers {
    pub(crate) connection: Arc<Connection>,
    /// How long the broker may refuse a consumer before its subscription ends, unless the subscription says otherwise.
    pub(crate) give_up_after: Duration,
    /// What the log has been told of odd messages.
    pub(crate) told: WarningLog,
    /// How often messages that came again were handled here.
    pub(crate) handled: HandledCounts,
    open: Mutex<Vec<Weak<Consumer>>>,
}

impl Consumers {
    pub(crate) fn new(connection: Arc<Connection>, give_up_after: Duration) -> Self {
        let (told, handled, open) = (WarningLog::default(), HandledCounts::default(), Mutex::default());
        Self { connection, give_up_after, told, handled, open }
    }

    fn open(&self) -> MutexGuard<'_, Vec<Weak<Consumer>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a consumer, so that closing the bus closes it. `Closed` if that has happened already.
    pub(crate) fn register(&self, consumer: &Arc<Consumer>) -> Result<()> {
        let mut open = self.open();
        // Under the lock: a bus that is closed after this finds the consumer in the list.
        self.connection.ensure_open("subscribe")?;
        open.retain(|c| c.strong_count() > 0);
        open.push(Arc::downgrade(consumer));
        Ok(())
    }

    /// Closes all of them, side by side. A broker that does not answer is waited for until `until`.
    pub(crate) async fn close(&self, until: Instant) -> Result<()> {
        let consumers: Vec<_> = self.open().iter().filter_map(Weak::upgrade).collect();
        // All stop before the first is finished, so that none takes what another gives back.
        let stopped = side_by_side(&consumers, move |consumer| async move { consumer.stop_by(until).await }).await;
        let finished = side_by_side(&consumers, move |consumer| async move { consumer.finish_by(until).await }).await;
        stopped.and(finished)
    }

    pub(crate) fn clear(&self) {
        self.open().clear();
    }
}
