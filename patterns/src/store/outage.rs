//! What a process knows of its database being away, shared by all that use it.

use std::sync::Arc;

use tokio::{sync::watch, time::Instant};

/// Since when the database is away, as far as this process knows.
///
/// One clock for all handlers of the process: while it runs, no new handler begins.
#[derive(Clone, Debug)]
pub struct Outage(Arc<watch::Sender<Option<Instant>>>);

impl Default for Outage {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Outage {
    /// The database was found away. Answers whether it is news.
    pub fn began(&self) -> bool {
        self.0.send_if_modified(|since| {
            let news = since.is_none();
            since.get_or_insert_with(Instant::now);
            news
        })
    }

    /// The database answers again.
    pub fn ended(&self) {
        self.0.send_if_modified(|since| since.take().is_some());
    }

    /// Since when the database is away; `None` if it is there.
    pub fn since(&self) -> Option<Instant> {
        *self.0.borrow()
    }

    /// Waits until the database answers again.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn over(&self) {
        let _ = self.0.subscribe().wait_for(Option::is_none).await;
    }
}
