//! A relay that runs beside the scenario, and is stopped or killed.

use std::time::Duration;

use polybus_core::{Bus, Error, ErrorKind, Result};
use polybus_patterns::{
    Relay, RelayReport,
    store::{InboxStore, OutboxStore},
};
use tokio::{sync::oneshot, task::JoinHandle};

use super::layer::SuiteStore;
use crate::{Failure, Outcome};

/// The lease of relays: as short as can be, since what a killed one held is waited for.
pub(crate) const LEASE: Duration = Duration::from_secs(2);

/// A relay with short waits.
pub(crate) fn relay<S: OutboxStore + InboxStore>(bus: &Bus, store: &SuiteStore<S>) -> Relay {
    Relay::new(bus, store).lease(LEASE).poll(Duration::from_millis(50))
}

/// A relay that runs. Dropping it kills it, as the end of its process would.
pub(crate) struct RunningRelay {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<RelayReport>>,
}

impl RunningRelay {
    pub(crate) fn start(relay: Relay) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(relay.run(async move {
            let _ = stopped.await;
        }));
        Self { stop: Some(stop), task }
    }

    /// Stops it in good order.
    pub(crate) async fn stop(mut self) -> Outcome<RelayReport> {
        drop(self.stop.take());
        match tokio::time::timeout(Duration::from_secs(60), &mut self.task).await {
            Ok(report) => Ok(report??),
            Err(_) => Err(Failure::new("the relay does not stop within a minute")),
        }
    }

    /// Waits until it ends by itself.
    pub(crate) async fn ended(mut self) -> Result<RelayReport> {
        let ended = (&mut self.task).await;
        ended.unwrap_or_else(|e| Err(Error::new(ErrorKind::Unexpected, format!("the relay's task: {e}"))))
    }

    /// Kills it, and returns once its future is gone.
    pub(crate) async fn kill(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for RunningRelay {
    fn drop(&mut self) {
        self.task.abort();
    }
}
