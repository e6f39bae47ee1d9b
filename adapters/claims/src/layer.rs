//! Redeems before a tower service.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll},
};

use polybus_core::{
    HandlerError, Result,
    worker::{HandlerRequest, WorkerInfo},
};
use tower_layer::Layer;
use tower_service::Service;

use crate::Claims;

impl Claims {
    /// A layer around a tower service, which gets each message as it was before it was checked in: the form of
    /// [`handler`](Self::handler) for [`serve`](polybus_core::worker::WorkerBuilder::serve).
    ///
    /// ```no_run
    /// # use polybus_claims::Claims;
    /// # use polybus_core::{Bus, HandlerError, Result, Source, worker::HandlerRequest};
    /// # use tower_layer::Layer;
    /// # use tower_service::Service;
    /// # async fn example<V>(bus: Bus, claims: Claims, service: V) -> Result<()>
    /// # where
    /// #     V: Service<HandlerRequest> + Clone + Send + Sync + 'static,
    /// #     V::Error: Into<HandlerError>,
    /// #     V::Future: Send,
    /// # {
    /// let layer = claims.layer();
    /// let worker = bus.worker(Source::queue("reports")).check_at_start(layer.start_check());
    /// worker.serve(layer.layer(service)).await?;
    /// # Ok(()) }
    /// ```
    #[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
    pub fn layer(&self) -> ClaimsLayer {
        ClaimsLayer { claims: self.clone() }
    }
}

/// Makes a service that redeems claims before another one. [`Claims::layer`] makes it.
#[derive(Clone, Debug)]
pub struct ClaimsLayer {
    claims: Claims,
}

impl ClaimsLayer {
    /// The look at the worker's settings, for
    /// [`check_at_start`](polybus_core::worker::WorkerBuilder::check_at_start): a tower service cannot be asked.
    ///
    /// ```no_run
    /// # fn example(bus: polybus_core::Bus, claims: polybus_claims::Claims) {
    /// let layer = claims.layer();
    /// let worker = bus.worker(polybus_core::Source::queue("reports")).check_at_start(layer.start_check());
    /// # }
    /// ```
    pub fn start_check(&self) -> impl Fn(WorkerInfo) -> std::future::Ready<Result<()>> + Send + Sync + 'static + use<> {
        let claims = self.claims.clone();
        move |worker| std::future::ready(claims.check_start(&worker))
    }
}

impl<V> Layer<V> for ClaimsLayer {
    type Service = ClaimsService<V>;

    fn layer(&self, inner: V) -> Self::Service {
        ClaimsService { claims: self.claims.clone(), inner }
    }
}

/// A service for [`serve`](polybus_core::worker::WorkerBuilder::serve): redeems the claim of each message, then calls
/// the inner one.
///
/// # Cancel safety
/// Dropping the future of a call ends the download.
#[derive(Clone, Debug)]
pub struct ClaimsService<V> {
    claims: Claims,
    inner: V,
}

type BoxedError = Box<dyn std::error::Error + Send + Sync>;

impl<V> Service<HandlerRequest> for ClaimsService<V>
where
    V: Service<HandlerRequest> + Clone + Send + 'static,
    V::Error: Into<HandlerError>,
    V::Future: Send,
{
    type Response = V::Response;
    /// A [`HandlerError`], [boxed](HandlerError::into_boxed) so that any layer can be above.
    type Error = BoxedError;
    type Future = Pin<Box<dyn Future<Output = Result<V::Response, BoxedError>> + Send>>;

    /// Always ready: the inner service is asked once the payload is there.
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), BoxedError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HandlerRequest) -> Self::Future {
        let (claims, mut inner) = (self.claims.clone(), self.inner.clone());
        Box::pin(async move {
            let HandlerRequest { context, message, .. } = request;
            let message = claims.redeem_for(&context, message).await.map_err(HandlerError::into_boxed)?;
            let of_inner = |e: V::Error| e.into().into_boxed();
            poll_fn(|cx| inner.poll_ready(cx)).await.map_err(of_inner)?;
            inner.call(HandlerRequest::new(context, message)).await.map_err(of_inner)
        })
    }
}
