//! The inbox as a layer around a tower service.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use parking_lot::Mutex;
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
/// Layers above it take a [`HandlerRequest`], and those below an [`InboxRequest`]. What makes a message wait, such as a
/// limit of concurrency, belongs above: below, a transaction is open meanwhile. A layer that calls its service again
/// after an error belongs above as well, since the transaction has ended with the error.
///
/// [`Inbox::layer`]: super::Inbox::layer
#[derive(Clone)]
pub struct InboxLayer<S: InboxStore> {
    engine: Engine<S>,
    /// Whether the worker's settings were looked at, or their absence was told.
    checked: Arc<AtomicBool>,
}

impl<S: InboxStore> InboxLayer<S> {
    pub(super) fn new(engine: Engine<S>) -> Self {
        Self { engine, checked: Arc::default() }
    }

    /// The inbox' look at the worker's settings, for
    /// [`check_at_start`](polybus_core::worker::WorkerBuilder::check_at_start): a tower service cannot be asked.
    ///
    /// Without it a worker starts with settings that cannot work, such as a pool that is too small. The log says so at
    /// the first message.
    ///
    /// ```no_run
    /// # use polybus_core::{Bus, Source};
    /// # use polybus_patterns::{Inbox, store::InboxStore};
    /// # fn example<S: InboxStore>(bus: Bus, inbox: Inbox<S>) {
    /// let layer = inbox.layer();
    /// let worker = bus.worker(Source::queue("orders")).check_at_start(layer.start_check());
    /// # }
    /// ```
    pub fn start_check(
        &self,
    ) -> impl Fn(WorkerInfo) -> Pin<Box<dyn Future<Output = Result<()>> + Send>> + Send + Sync + 'static + use<S> {
        let (engine, checked) = (self.engine.clone(), self.checked.clone());
        move |worker| {
            checked.store(true, Ordering::Relaxed);
            let engine = engine.clone();
            Box::pin(async move { engine.start(&worker).await })
        }
    }
}

impl<S: InboxStore, V> Layer<V> for InboxLayer<S> {
    type Service = InboxService<S, V>;

    fn layer(&self, inner: V) -> Self::Service {
        InboxService { engine: self.engine.clone(), checked: self.checked.clone(), inner }
    }
}

type BoxedError = Box<dyn std::error::Error + Send + Sync>;

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

impl<T> InboxRequest<T> {
    /// A request as the inbox makes it, for tests of a service without an inbox.
    ///
    /// ```
    /// use polybus_core::{Envelope, HandlerContext, Source};
    /// use polybus_patterns::inbox::InboxRequest;
    ///
    /// let context = HandlerContext::detached(&Source::queue("orders"), 1);
    /// # let tx = ();
    /// let request = InboxRequest::new(tx, context, Envelope::new("order.placed", "{}"));
    /// assert_eq!(request.context.attempt(), 1);
    /// ```
    pub fn new(tx: T, context: HandlerContext, message: Envelope) -> Self {
        Self { tx, context, message }
    }
}

/// A service for [`WorkerBuilder::serve`](polybus_core::worker::WorkerBuilder::serve): runs the inner one once for each
/// message.
///
/// # Cancel safety
/// Dropping the future of a call rolls its transaction back: neither mark nor effect is left.
#[derive(Clone)]
pub struct InboxService<S: InboxStore, V> {
    engine: Engine<S>,
    checked: Arc<AtomicBool>,
    inner: V,
}

impl<S, V> Service<HandlerRequest> for InboxService<S, V>
where
    S: InboxStore,
    V: Service<InboxRequest<S::Tx>, Response = S::Tx> + Clone + Send + 'static,
    V::Error: Into<HandlerError>,
    V::Future: Send,
{
    type Response = ();
    /// A [`HandlerError`], [boxed](HandlerError::into_boxed) so that any layer can be above.
    type Error = BoxedError;
    type Future = Pin<Box<dyn Future<Output = Result<(), BoxedError>> + Send>>;

    /// Always ready: the inner service is asked once the message is marked.
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), BoxedError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HandlerRequest) -> Self::Future {
        if !self.checked.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                target: "polybus", consumer = &*self.engine.settings.consumer, source = %request.context.source(),
                "the inbox was not asked about the worker's settings, which may not work: give the layer's \
                 start_check() to check_at_start of the worker"
            );
        }
        // Many services are not `Sync`, and the inbox may call one more than once for a message.
        let (engine, inner) = (self.engine.clone(), Mutex::new(self.inner.clone()));
        Box::pin(async move {
            let HandlerRequest { context, message, .. } = request;
            let run = |tx| {
                let (mut inner, context, message) = (inner.lock().clone(), context.clone(), message.clone());
                async move {
                    poll_fn(|cx| inner.poll_ready(cx)).await.map_err(Into::into)?;
                    inner.call(InboxRequest { tx, context, message }).await.map_err(Into::into)
                }
            };
            engine.handle(&context, &message, run).await.map_err(HandlerError::into_boxed)
        })
    }
}
