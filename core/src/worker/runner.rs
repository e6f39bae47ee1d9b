//! The object that each task of a worker calls for a message: a handler, or a clone of a tower service.

use std::sync::Arc;

use crate::{Envelope, Handler, HandlerContext, HandlerError, Result, worker::WorkerInfo};

/// Calls a handler or a service. Each task of the pool has one of its own, so services need not be `Sync`.
pub(crate) trait RunHandler: Send + Sized + 'static {
    fn starting(&self, worker: &WorkerInfo) -> impl Future<Output = Result<()>> + Send;
    fn clone_for_task(&self) -> Self;
    fn run(&mut self, cx: HandlerContext, msg: Envelope) -> impl Future<Output = Result<(), HandlerError>> + Send;
}

pub(crate) struct HandlerRunner<H>(Arc<H>);

impl<H: Handler> HandlerRunner<H> {
    pub(crate) fn new(handler: H) -> Self {
        Self(Arc::new(handler))
    }
}

impl<H: Handler> RunHandler for HandlerRunner<H> {
    fn starting(&self, worker: &WorkerInfo) -> impl Future<Output = Result<()>> + Send {
        // The future borrows the handler's `Arc`, not the runner, which need not be `Sync`.
        let handler = self.0.clone();
        let worker = worker.clone();
        async move { handler.starting(&worker).await }
    }

    fn clone_for_task(&self) -> Self {
        Self(self.0.clone())
    }

    fn run(&mut self, cx: HandlerContext, msg: Envelope) -> impl Future<Output = Result<(), HandlerError>> + Send {
        self.0.handle(cx, msg)
    }
}
