//! The inbox as a layer around a tower service.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll},
};

use polybus_core::{
    Envelope, HandlerContext, HandlerError, Result,
    worker::{HandlerRequest, WorkerInfo},
};
use tower_layer::Layer;
use tower_service::Service;

use super::engine::Engine;
use crate::store::InboxStore;

/// Makes a service that runs once for each message of a service that takes a transaction. [`Inbox::layer`] makes it.
///
/// [`Inbox::layer`]: super::Inbox::layer
#[derive(Clone)]
pub struct InboxLayer<S: InboxStore> {
    engine: Engine<S>,
}

impl<S: InboxStore> InboxLayer<S> {
    pub(super) fn new(engine: Engine<S>) -> Self {
        Self { engine }
    }

    /// The inbox' look at the worker's settings, for
    /// [`check_at_start`](polybus_core::worker::WorkerBuilder::check_at_start): a tower service cannot be asked.
    pub fn start_check(
        &self,
    ) -> impl Fn(WorkerInfo) -> Pin<Box<dyn Future<Output = Result<()>> + Send>> + Send + Sync + 'static + use<S> {
        let engine = self.engine.clone();
        move |worker| {
            let engine = engine.clone();
            Box::pin(async move { engine.start(&worker).await })
        }
    }
}

impl<S: InboxStore, V> Layer<V> for InboxLayer<S> {
    type Service = InboxService<S, V>;

    fn layer(&self, inner: V) -> Self::Service {
        InboxService { engine: self.engine.clone(), inner }
    }
}

/// The request of the inner service.
#[non_exhaustive]
pub struct InboxRequest<T> {
    /// The transaction in which the message is marked. The service answers with it.
    pub tx: T,
    /// The context of the delivery.
    pub context: HandlerContext,
    /// The message.
    pub message: Envelope,
}

/// A service for [`WorkerBuilder::serve`](polybus_core::worker::WorkerBuilder::serve): runs the inner one once for each
/// message.
#[derive(Clone)]
pub struct InboxService<S: InboxStore, V> {
    engine: Engine<S>,
    inner: V,
}

impl<S, V> Service<HandlerRequest> for InboxService<S, V>
where
    S: InboxStore,
    V: Service<InboxRequest<S::Tx>, Response = S::Tx> + Clone + Send + Sync + 'static,
    V::Error: Into<HandlerError>,
    V::Future: Send,
{
    type Response = ();
    type Error = HandlerError;
    type Future = Pin<Box<dyn Future<Output = Result<(), HandlerError>> + Send>>;

    /// Always ready: the inner service is asked once the message is marked.
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), HandlerError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HandlerRequest) -> Self::Future {
        let (engine, inner) = (self.engine.clone(), self.inner.clone());
        Box::pin(async move {
            let HandlerRequest { context, message, .. } = request;
            let run = |tx| {
                let (mut inner, context, message) = (inner.clone(), context.clone(), message.clone());
                async move {
                    poll_fn(|cx| inner.poll_ready(cx)).await.map_err(Into::into)?;
                    inner.call(InboxRequest { tx, context, message }).await.map_err(Into::into)
                }
            };
            engine.handle(&context, &message, run).await
        })
    }
}
