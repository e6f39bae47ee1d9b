//! The consumers of one bus: the list of those that are open, and what they remember together.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};

use tokio::time::Instant;

use crate::{
    Result,
    connection::{BusConnection, close_timeout::run_concurrently},
    consume::{consumer::Consumer, hand_out::WarningLog, handlings_by_message::HandlingsByMessage},
};

pub(crate) struct Consumers {
    pub(crate) connection: Arc<BusConnection>,
    /// How long the broker may refuse a consumer before its subscription ends, unless the subscription says otherwise.
    pub(crate) give_up_after: Duration,
    /// The odd messages that the log has warned of.
    pub(crate) warnings: WarningLog,
    /// How often messages that came again were handled by this process.
    pub(crate) handled_counts: HandlingsByMessage,
    open: Mutex<Vec<Weak<Consumer>>>,
}

impl Consumers {
    pub(crate) fn new(connection: Arc<BusConnection>, give_up_after: Duration) -> Self {
        let (warnings, handled_counts) = (WarningLog::default(), HandlingsByMessage::default());
        Self { connection, give_up_after, warnings, handled_counts, open: Mutex::default() }
    }

    fn open(&self) -> MutexGuard<'_, Vec<Weak<Consumer>>> {
        self.open.lock()
    }

    /// Adds a consumer to the list, so that closing the bus closes it. Fails with `Closed` if the bus was closed
    /// already.
    pub(crate) fn register(&self, consumer: &Arc<Consumer>) -> Result<()> {
        let mut open = self.open();
        // Checked under the lock of the list. `Bus::close` marks the bus as closed before it takes this lock, so a
        // consumer that passes the check is in the list by the time the bus reads it.
        self.connection.ensure_open("subscribe")?;
        open.retain(|c| c.strong_count() > 0);
        open.push(Arc::downgrade(consumer));
        Ok(())
    }

    /// Closes all of them at the same time. A broker that does not answer is waited for until `until`.
    pub(crate) async fn close(&self, until: Instant) -> Result<()> {
        let consumers: Vec<_> = self.open().iter().filter_map(Weak::upgrade).collect();
        // All stop before the first is finished: otherwise one of them would receive what another gives back.
        let stopped = run_concurrently(&consumers, move |consumer| async move { consumer.stop_by(until).await }).await;
        let finished =
            run_concurrently(&consumers, move |consumer| async move { consumer.finish_by(until).await }).await;
        stopped.and(finished)
    }

    pub(crate) fn clear(&self) {
        self.open().clear();
    }
}
