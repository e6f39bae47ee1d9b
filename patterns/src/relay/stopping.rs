//! The word that the relay stops, for its lanes.

use std::{future::Future, sync::Arc, time::Duration};

use polybus_core::{Error, ErrorKind, Result};
use tokio::sync::watch;

/// How long the database has, once the relay stops, for what a lane has to write down. What is not written down is
/// published again.
const LAST_WRITE: Duration = Duration::from_secs(10);

/// Whether the relay stops. Clones share it.
#[derive(Clone)]
pub(super) struct Stopping(Arc<watch::Sender<bool>>);

impl Default for Stopping {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Stopping {
    /// Tells all.
    pub(super) fn begin(&self) {
        self.0.send_replace(true);
    }

    pub(super) fn has_begun(&self) -> bool {
        *self.0.borrow()
    }

    async fn begun(&self) {
        let _ = self.0.subscribe().wait_for(|stopping| *stopping).await;
    }

    /// The result of a call that changes nothing; `None` as soon as the relay stops.
    pub(super) async fn unless_begun<T>(&self, call: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.begun() => None,
            result = call => Some(result),
        }
    }

    /// The result of a call that writes. Once the relay stops, it has no longer than a while.
    pub(super) async fn before_its_end<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            result = call => result,
            () = async { self.begun().await; tokio::time::sleep(LAST_WRITE).await } => {
                let text = "the outbox' database did not answer before the end of the relay";
                Err(Error::new(ErrorKind::Unavailable, text).may_duplicate())
            }
        }
    }
}
