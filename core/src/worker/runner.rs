//! The object that each task of a worker calls for a message: a handler, or a clone of a tower service.

use std::{pin::Pin, sync::Arc};

use crate::{Envelope, Handler, HandlerContext, HandlerError, Result, worker::WorkerInfo};

/// A check before the first message. It borrows nothing: a service need not be `Sync`.
pub(crate) type Starting = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// Calls a handler or a service. Each task of the pool has one of its own, so services need not be `Sync`.
pub(crate) trait RunHandler: Send + Sized + 'static {
    fn starting(&self, worker: &WorkerInfo) -> Starting;
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
    fn starting(&self, worker: &WorkerInfo) -> Starting {
        let handler = self.0.clone();
        let worker = worker.clone();
        Box::pin(async move { handler.starting(&worker).await })
    }

    fn clone_for_task(&self) -> Self {
        Self(self.0.clone())
    }

    fn run(&mut self, cx: HandlerContext, msg: Envelope) -> impl Future<Output = Result<(), HandlerError>> + Send {
        self.0.handle(cx, msg)
    }
}
