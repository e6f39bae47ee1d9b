//! What each of a worker's tasks calls: a handler, or a clone of a tower service.

use std::{future::poll_fn, sync::Arc};

use tower_service::Service;

use crate::{
    message::Envelope,
    worker::{Handler, HandlerContext, HandlerError},
};

/// What a tower service is called with.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HandlerRequest {
    /// The delivery it belongs to.
    pub context: HandlerContext,
    /// The message.
    pub message: Envelope,
}

/// One per task of the pool, so that services need not be `Sync`.
pub(crate) trait RunHandler: Send + Sized + 'static {
    fn fork(&self) -> Self;
    fn run(&mut self, cx: HandlerContext, msg: Envelope) -> impl Future<Output = Result<(), HandlerError>> + Send;
}

pub(crate) struct HandlerRunner<H>(Arc<H>);

impl<H: Handler> HandlerRunner<H> {
    pub(crate) fn new(handler: H) -> Self {
        Self(Arc::new(handler))
    }
}

impl<H: Handler> RunHandler for HandlerRunner<H> {
    fn fork(&self) -> Self {
        Self(self.0.clone())
    }

    fn run(&mut self, cx: HandlerContext, msg: Envelope) -> impl Future<Output = Result<(), HandlerError>> + Send {
        self.0.handle(cx, msg)
    }
}

pub(crate) struct ServiceRunner<S>(S);

impl<S> ServiceRunner<S> {
    pub(crate) fn new(service: S) -> Self {
        Self(service)
    }
}

impl<S> RunHandler for ServiceRunner<S>
where
    S: Service<HandlerRequest> + Clone + Send + 'static,
    S::Error: Into<HandlerError>,
    S::Future: Send,
{
    fn fork(&self) -> Self {
        Self(self.0.clone())
    }

    fn run(
        &mut self,
        context: HandlerContext,
        message: Envelope,
    ) -> impl Future<Output = Result<(), HandlerError>> + Send {
        // A clone for each message: a service that panicked or was dropped half-way is never called again.
        let mut service = self.0.clone();
        async move {
            poll_fn(|cx| service.poll_ready(cx)).await.map_err(Into::into)?;
            let response = service.call(HandlerRequest { context, message });
            response.await.map(drop).map_err(Into::into)
        }
    }
}
