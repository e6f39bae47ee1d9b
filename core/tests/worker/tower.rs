//! Any tower service as the handler.

use std::{
    future::{Future, Ready, ready},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use polybus_core::{HandlerError, QueueSpec, RetryPolicy, worker::HandlerRequest};
use tower_service::Service;

use crate::support::*;

/// Answers with the message's id as a number. Not `Sync`, as many services are not.
#[derive(Clone)]
struct Parse(Counter, std::cell::Cell<u32>);

impl Service<HandlerRequest> for Parse {
    type Response = u32;
    type Error = std::num::ParseIntError;
    type Future = Ready<Result<u32, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HandlerRequest) -> Self::Future {
        self.1.set(self.1.get() + 1);
        self.0.add();
        ready(request.message.id.parse())
    }
}

/// A layer's service: refuses its first readiness, counts, makes `x` permanent, boxes errors and futures.
#[derive(Clone)]
struct Guard<S> {
    inner: S,
    calls: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
    ready: bool,
}

impl<S> Service<HandlerRequest> for Guard<S>
where
    S: Service<HandlerRequest>,
    S::Error: Into<HandlerError>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = HandlerError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, HandlerError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), HandlerError>> {
        if self.refused.fetch_add(1, Ordering::SeqCst) == 0 {
            return Poll::Ready(Err("overloaded".into()));
        }
        self.ready = true;
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: HandlerRequest) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called before it was ready");
        self.calls.fetch_add(1, Ordering::SeqCst);
        let (permanent, source) = (&*request.message.id == "x", request.context.source().clone());
        let response = self.inner.call(request);
        Box::pin(async move {
            assert_eq!(source, q());
            response.await.map_err(|e| match permanent {
                true => HandlerError::permanent(e.into().to_string()),
                false => e.into(),
            })
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_layered_service_handles_messages() {
    let bus = bus(QueueSpec::new().max_deliveries(2)).await;
    publish(&bus, ["1", "2", "3", "x"]).await;
    let tally = Counter::default();
    let service =
        Guard { inner: Parse(tally.clone(), 0.into()), calls: Arc::default(), refused: Arc::default(), ready: false };
    let calls = service.calls.clone();
    let worker = bus.worker(q()).retry(RetryPolicy::fixed(secs(1)));
    let report = worker.with_graceful_shutdown(tally.reaches(4)).serve(service).await.unwrap();
    // One was refused as not ready, and came again.
    assert_eq!((report.succeeded, report.retried, report.dead_lettered), (3, 1, 1));
    assert_eq!(calls.load(Ordering::SeqCst), 4);
    let (id, info) = dead_letter(&bus).await;
    assert_eq!(id, "x");
    assert_eq!(info.reason.as_deref(), Some("permanent"));
    assert_eq!(info.detail.as_deref(), Some("invalid digit found in string"));
}
