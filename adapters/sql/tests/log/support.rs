//! Events, and a projection that adds them up.

use std::{future::Future, time::Duration};

use polybus_core::{Envelope, ErrorKind, Event, Result};
use polybus_patterns::{
    log::{Append, Appended, EventLog, Expect},
    store::LogStore,
};
use serde::{Deserialize, Serialize};

pub(crate) use crate::database::{TestDatabase, eventually};

/// Far longer than anything takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// An event with a number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Counted {
    pub(crate) n: i64,
}

impl Event for Counted {
    const TYPE: &'static str = "test.counted";
    const VERSION: u32 = 1;
}

pub(crate) trait LogDatabase: TestDatabase + LogStore {}
impl<S: TestDatabase + LogStore> LogDatabase for S {}

/// Numbers as events for a stream.
pub(crate) fn counted(stream: &str, numbers: impl IntoIterator<Item = i64>) -> Append {
    numbers.into_iter().fold(Append::to(stream), |append, n| append.event(&Counted { n }))
}

/// An event with an id of its own.
pub(crate) fn with_id(n: i64, id: &str) -> Envelope {
    Envelope::event(&Counted { n }).unwrap().id(id)
}

/// Appends in a transaction of its own.
pub(crate) async fn append<S: LogDatabase>(store: &S, append: Append) -> Result<Appended> {
    let log = EventLog::new(store);
    let mut tx = store.begin().await?;
    let appended = log.append(&mut tx, append).await?;
    S::commit(tx).await?;
    log.wake();
    Ok(appended)
}

pub(crate) fn is_conflict<T: std::fmt::Debug>(answer: Result<T>) -> bool {
    answer.is_err_and(|e| e.kind() == ErrorKind::Conflict)
}

/// The numbers of a stream's events.
pub(crate) async fn numbers<S: LogDatabase>(store: &S, stream: &str) -> Vec<i64> {
    let events = EventLog::new(store).read(stream, 0, 1_000).await.unwrap();
    events.iter().map(|event| event.decode::<Counted>().unwrap().n).collect()
}

/// A subscription that runs until it is told to stop.
pub(crate) struct Running<T> {
    stop: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<T>,
}

impl<T: Send + 'static> Running<T> {
    pub(crate) fn start<F: Future<Output = T> + Send + 'static>(run: impl FnOnce(Stopped) -> F) -> Self {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let stopped: Stopped = Box::pin(async { drop(stopped.await) });
        Self { stop, task: tokio::spawn(run(stopped)) }
    }

    pub(crate) async fn stop(self) -> T {
        drop(self.stop);
        tokio::time::timeout(PATIENCE, self.task).await.expect("it ends").unwrap()
    }

    /// As if its process was killed.
    pub(crate) async fn kill(self) {
        self.task.abort();
        drop(self.task.await);
    }
}

pub(crate) type Stopped = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

pub(crate) const ANY: Expect = Expect::Any;
