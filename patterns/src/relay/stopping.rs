//! The word that the relay stops, for its lanes.

use std::{future::Future, sync::Arc, time::Duration};

use polybus_core::{Error, ErrorKind, Result};
use tokio::{sync::watch, time::Instant};

/// How long the database has, once the relay stops, for all that lanes have to write down. What is not written down is
/// published again.
const LAST_WRITES: Duration = Duration::from_secs(10);

/// Since when the relay stops. Clones share it.
#[derive(Clone)]
pub(super) struct Stopping(Arc<watch::Sender<Option<Instant>>>);

impl Default for Stopping {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Stopping {
    /// Tells all.
    pub(super) fn begin(&self) {
        self.0.send_replace(Some(Instant::now()));
    }

    pub(super) fn has_begun(&self) -> bool {
        self.0.borrow().is_some()
    }

    async fn begun(&self) {
        let _ = self.0.subscribe().wait_for(Option::is_some).await;
    }

    /// Returns when the time for the last writes is over.
    async fn ended(&self) {
        self.begun().await;
        let since = *self.0.borrow();
        tokio::time::sleep_until(since.unwrap_or_else(Instant::now) + LAST_WRITES).await;
    }

    /// The result of a call that changes nothing; `None` as soon as the relay stops.
    pub(super) async fn unless_begun<T>(&self, call: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.begun() => None,
            result = call => Some(result),
        }
    }

    /// The result of a call that writes. Once the relay stops, all such calls together have a while.
    pub(super) async fn before_its_end<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            result = call => result,
            () = self.ended() => {
                let text = "the outbox' database did not answer before the end of the relay";
                Err(Error::new(ErrorKind::Unavailable, text).may_duplicate())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_last_writes_together_have_one_limit() {
        let stopping = Stopping::default();
        let write = || {
            stopping.before_its_end(async {
                tokio::time::sleep(LAST_WRITES * 3 / 4).await;
                Ok(())
            })
        };
        assert!(write().await.is_ok() && write().await.is_ok(), "before it stops nothing is limited");
        stopping.begin();
        assert!(write().await.is_ok());
        let began = Instant::now();
        assert!(write().await.is_err());
        assert_eq!(began.elapsed(), LAST_WRITES / 4);
    }
}
