//! Hands each job to the handler of its kind, and decides what becomes of those that have none.

#[cfg(feature = "tower")]
use std::task::{Context, Poll};
use std::{collections::HashMap, future::Future, pin::Pin, sync::Arc, time::Duration};

use parking_lot::Mutex;
#[cfg(feature = "tower")]
use polybus_core::worker::HandlerRequest;
use polybus_core::{Envelope, Handler, HandlerContext, HandlerError, Result, worker::WorkerInfo};
use tokio::time::Instant;

use super::{
    context::{JobContext, Snoozed},
    run::{JobRun, RunEnding},
};
use crate::{
    telemetry,
    types::{DecodeFailure, Types, UNKNOWN_TYPE_REASON, UNKNOWN_VERSION_REASON},
};

/// When a job is looked at again whose kind or version is not known here.
const UNKNOWN_AGAIN: Duration = Duration::from_secs(30);

/// How often the log tells of a kind that is not known.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// Kinds whose warnings are remembered at most.
const MAX_TOLD: usize = 256;

pub(super) type Running = Pin<Box<dyn Future<Output = Result<(), HandlerError>> + Send>>;

/// Reads the arguments and starts the handler.
pub(super) type Route = Box<dyn Fn(&Types, JobContext) -> Result<Running, DecodeFailure> + Send + Sync>;

/// Runs jobs: the handler of a job worker, and the tower service that layers are put around. Cheap to clone.
///
/// [`JobWorker::run_with`](super::JobWorker::run_with) hands it out.
#[derive(Clone)]
pub struct JobService(Arc<Routes>);

pub(super) struct Routes {
    pub(super) types: Types,
    pub(super) routes: HashMap<&'static str, Route>,
    pub(super) told: Mutex<HashMap<String, Instant>>,
}

impl JobService {
    pub(super) fn new(types: Types, routes: HashMap<&'static str, Route>) -> Self {
        Self(Arc::new(Routes { types, routes, told: Mutex::default() }))
    }

    async fn run(&self, context: HandlerContext, message: Envelope) -> Result<(), HandlerError> {
        let cx = JobContext::new(context, message);
        let run = cx.run().cloned();
        let _place = run.clone().map(Leaving);
        let routes = &*self.0;
        let kind = &cx.message().event_type;
        let route = routes.types.known_as(kind).and_then(|kind| routes.routes.get(kind));
        let started = match route {
            Some(route) => route(&routes.types, cx.clone()),
            None => {
                return self.unknown(&cx, UNKNOWN_TYPE_REASON, "no handler here is for this kind of jobs".to_owned());
            }
        };
        let ended = match started {
            Ok(running) => running.await,
            Err(failure) if failure.reason() == UNKNOWN_VERSION_REASON => {
                return self.unknown(&cx, UNKNOWN_VERSION_REASON, failure.to_string());
            }
            Err(failure) => Err(failure.dead_letter()),
        };
        match (ended, run) {
            (Err(error), Some(run)) => end_of_failure(&run, error),
            (ended, _) => ended,
        }
    }

    /// A newer version of the program may know it, as while one is rolled out. So it stays, and is tried again.
    fn unknown(&self, cx: &JobContext, reason: &'static str, why: String) -> Result<(), HandlerError> {
        let kind = &*cx.message().event_type;
        telemetry::jobs_unknown(cx.source(), reason);
        if self.is_news(kind) {
            tracing::warn!(
                target: "polybus", source = %cx.source(), kind, job = cx.id(), reason, again = ?UNKNOWN_AGAIN,
                "a job is put off, since this program cannot run it: {why}"
            );
        }
        match cx.run() {
            Some(run) => {
                run.end_by(RunEnding::Snoozed { delay: UNKNOWN_AGAIN, why: Some(format!("{reason}: {why}")) });
                Ok(())
            }
            None => Err(HandlerError::dead_letter(reason, why)),
        }
    }

    fn is_news(&self, kind: &str) -> bool {
        let (mut told, now) = (self.0.told.lock(), Instant::now());
        told.retain(|_, at| now - *at < SAY_AGAIN);
        if told.contains_key(kind) || told.len() >= MAX_TOLD {
            return false;
        }
        told.insert(kind.to_owned(), now);
        true
    }
}

/// What becomes of a job whose handler has ended with an error.
fn end_of_failure(run: &JobRun, error: HandlerError) -> Result<(), HandlerError> {
    let snoozed = error.error().downcast_ref::<Snoozed>().map(|snoozed| snoozed.0);
    if run.is_cancelled() {
        run.end_by(RunEnding::Cancelled { error: error.to_string() });
        return Ok(());
    }
    match snoozed {
        Some(delay) => {
            run.end_by(RunEnding::Snoozed { delay, why: None });
            Ok(())
        }
        None => Err(error),
    }
}

/// Gives the place at the gate back when the handler has ended, whatever ended it.
struct Leaving(Arc<JobRun>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Handler for JobService {
    async fn handle(&self, context: HandlerContext, message: Envelope) -> Result<(), HandlerError> {
        self.run(context, message).await
    }

    async fn starting(&self, _worker: &WorkerInfo) -> Result<()> {
        self.0.types.check()
    }
}

#[cfg(feature = "tower")]
#[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
impl tower_service::Service<HandlerRequest> for JobService {
    type Response = ();
    /// A [`HandlerError`], [boxed](HandlerError::into_boxed) so that any layer can be above.
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<(), Self::Error>> + Send>>;

    /// Always ready.
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HandlerRequest) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let HandlerRequest { context, message, .. } = request;
            service.run(context, message).await.map_err(HandlerError::into_boxed)
        })
    }
}

impl std::fmt::Debug for JobService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("JobService").field(&self.0.types).finish()
    }
}
