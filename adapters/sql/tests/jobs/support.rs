//! Kinds of jobs, and workers that run until they are told to stop.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use polybus_core::{Event, Result, RetryPolicy};
use polybus_patterns::{
    jobs::{Job, JobReport, JobWorker, Jobs},
    store::{JobFilter, JobOutcome, JobState, JobStore, StoredJob},
};
use serde::{Deserialize, Serialize};
use tokio::{sync::oneshot, task::JoinHandle};

pub(crate) use crate::database::{TestDatabase, eventually};

/// Far longer than anything takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A job with a number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Numbered {
    pub(crate) n: u32,
}

impl Event for Numbered {
    const TYPE: &'static str = "test.numbered";
    const VERSION: u32 = 1;
}

impl Job for Numbered {}

pub(crate) fn numbered(n: u32) -> Numbered {
    Numbered { n }
}

/// What handlers wrote down.
#[derive(Clone, Debug)]
pub(crate) struct Log<T>(Arc<Mutex<Vec<T>>>);

impl<T: Clone> Log<T> {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    pub(crate) fn add(&self, entry: T) {
        self.0.lock().push(entry);
    }

    pub(crate) fn entries(&self) -> Vec<T> {
        self.0.lock().clone()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

/// A worker that runs.
pub(crate) struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<JobReport>>,
}

impl Running {
    pub(crate) async fn stop(self) -> JobReport {
        drop(self.stop);
        tokio::time::timeout(PATIENCE, self.task).await.expect("the worker ends").unwrap().unwrap()
    }
}

pub(crate) fn run<S: JobStore>(worker: JobWorker<S>) -> Running {
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(async move { worker.run(async { drop(stopped.await) }).await });
    Running { stop, task }
}

/// A worker on the default queue that tries again at once.
pub(crate) fn worker<S: JobStore>(store: &S) -> JobWorker<S> {
    JobWorker::new(store).queue("default", 8).retry(RetryPolicy::new([])).poll(Duration::from_millis(20))
}

pub(crate) async fn show<S: JobStore>(store: &S, id: i64) -> StoredJob {
    Jobs::new(store).admin().show(id).await.unwrap().expect("the job is there")
}

pub(crate) async fn until<S: JobStore>(store: &S, id: i64, state: JobState) -> StoredJob {
    let job = || async { Jobs::new(store).admin().show(id).await.unwrap() };
    eventually(&format!("job {id} is {state:?}"), async || job().await.is_some_and(|job| job.state == state)).await;
    show(store, id).await
}

pub(crate) const COMPLETED: JobState = JobState::Finished(JobOutcome::Completed);
pub(crate) const DISCARDED: JobState = JobState::Finished(JobOutcome::Discarded);
pub(crate) const CANCELLED: JobState = JobState::Finished(JobOutcome::Cancelled);

pub(crate) async fn count<S: JobStore>(store: &S, state: JobState) -> usize {
    store.jobs().list(&JobFilter::default().state(state), 0, 10_000).await.unwrap().len()
}
