//! Workers that run a tower service, with any layers around it.

use std::future::poll_fn;

use tower_service::Service;

use crate::{
    Envelope, HandlerContext, HandlerError, Result,
    worker::{
        WorkerBuilder, WorkerInfo, WorkerReport,
        runner::{RunHandler, Starting},
    },
};

/// The request of a tower service that [`WorkerBuilder::serve`](crate::worker::WorkerBuilder::serve) runs.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HandlerRequest {
    /// The context of its delivery.
    pub context: HandlerContext,
    /// The message.
    pub message: Envelope,
}

impl HandlerRequest {
    /// A request as a worker makes it, for tests of a service and for programs that call one themselves.
    ///
    /// ```
    /// use polybus_core::{Envelope, HandlerContext, Source, worker::HandlerRequest};
    ///
    /// let context = HandlerContext::detached(&Source::queue("payments"), 1);
    /// let request = HandlerRequest::new(context, Envelope::new("payment.made", "{}"));
    /// assert_eq!(&*request.message.event_type, "payment.made");
    /// ```
    pub fn new(context: HandlerContext, message: Envelope) -> Self {
        Self { context, message }
    }
}

impl<S: Future<Output = ()> + Send> WorkerBuilder<S> {
    /// Runs a tower service for each message, with any layers around it. Otherwise as [`run`](Self::run).
    ///
    /// Each message calls a clone of the service, once that is ready. The response is ignored; an error counts as the
    /// handler's.
    ///
    /// # Errors
    /// Those of [`run`](Self::run).
    ///
    /// # Cancel safety
    /// That of [`run`](Self::run).
    ///
    /// ```
    /// # async fn run<S>(bus: polybus_core::Bus, service: S) -> polybus_core::Result<()>
    /// # where
    /// #     S: tower_service::Service<polybus_core::worker::HandlerRequest> + Clone + Send + 'static,
    /// #     S::Error: Into<polybus_core::HandlerError>,
    /// #     S::Future: Send,
    /// # {
    /// use polybus_core::Source;
    ///
    /// // Such as tower::ServiceBuilder::new().concurrency_limit(8).service_fn(handle).
    /// let report = bus.worker(Source::queue("payments")).serve(service).await?;
    /// println!("{report:?}");
    /// # Ok(()) }
    /// ```
    pub async fn serve<T>(self, service: T) -> Result<WorkerReport>
    where
        T: Service<HandlerRequest> + Clone + Send + 'static,
        T::Error: Into<HandlerError>,
        T::Future: Send,
    {
        self.run_with(ServiceRunner::new(service)).await
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
    fn starting(&self, _worker: &WorkerInfo) -> Starting {
        Box::pin(std::future::ready(Ok(())))
    }

    fn clone_for_task(&self) -> Self {
        Self(self.0.clone())
    }

    fn run(
        &mut self,
        context: HandlerContext,
        message: Envelope,
    ) -> impl Future<Output = Result<(), HandlerError>> + Send {
        // Each message calls a clone of its own: a service that panicked, or was dropped before it ended, is not called
        // again.
        let mut service = self.0.clone();
        async move {
            poll_fn(|cx| service.poll_ready(cx)).await.map_err(Into::into)?;
            let response = service.call(HandlerRequest { context, message });
            response.await.map(drop).map_err(Into::into)
        }
    }
}
