//! What a handler is told before the first message, and a handler without a worker.

use std::sync::Arc;

use parking_lot::Mutex;
use polybus_core::{
    Envelope, Error, ErrorKind, Handler, HandlerContext, HandlerError, QueueSpec, Result, RetryPolicy, Source,
    worker::WorkerInfo,
};

use crate::support::*;

/// Refuses to start, and keeps what it was told.
struct Refusing(Arc<Mutex<Option<WorkerInfo>>>);

impl Handler for Refusing {
    async fn handle(&self, _cx: HandlerContext, _msg: Envelope) -> Result<(), HandlerError> {
        panic!("it was refused")
    }

    async fn starting(&self, worker: &WorkerInfo) -> Result<()> {
        *self.0.lock() = Some(worker.clone());
        Err(Error::invalid("not like this"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_refuses_ends_the_run_before_the_subscription_opens() {
    let bus = bus(QueueSpec::new().max_deliveries(7)).await;
    publish(&bus, &["a"]).await;
    let told = Arc::new(Mutex::new(None));
    let worker = bus.worker(q()).concurrency(3).handler_timeout(secs(9)).retry(RetryPolicy::fixed(secs(2)));
    let error = worker.run(Refusing(told.clone())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let told = told.lock().take().unwrap();
    assert_eq!((told.source, told.settings.max_deliveries, told.concurrency), (q(), 7, 3));
    assert_eq!((told.handler_timeout, told.retry, told.prefetch), (Some(secs(9)), vec![secs(2)], 6));
    assert!(told.renews_locks && told.backend == "memory");
    let stats = bus.stats(&q()).await.unwrap();
    assert_eq!(stats.ready, Some(1), "nothing was fetched");
}

#[tokio::test(start_paused = true)]
async fn a_check_at_the_start_refuses_a_service_too() {
    let bus = bus(QueueSpec::new()).await;
    let worker = bus.worker(q()).check_at_start(async |worker| match worker.concurrency {
        1 => Ok(()),
        n => Err(Error::invalid(format!("{n} at once"))),
    });
    let never = |_cx: HandlerContext, _msg: Envelope| async { Ok(()) };
    let error = worker.clone().run(never).await.unwrap_err();
    assert!(error.message().contains("16 at once"), "{error}");
    let report = worker.concurrency(1).with_graceful_shutdown(async {}).run(never).await.unwrap();
    assert_eq!(report.handled(), 0);
}

/// Waits for something that never comes.
struct Waiting;

impl Handler for Waiting {
    async fn handle(&self, _cx: HandlerContext, _msg: Envelope) -> Result<(), HandlerError> {
        panic!("it never started")
    }

    async fn starting(&self, _worker: &WorkerInfo) -> Result<()> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_a_start_that_waits() {
    let bus = bus(QueueSpec::new()).await;
    publish(&bus, &["a"]).await;
    let report = bus.worker(q()).with_graceful_shutdown(tokio::time::sleep(secs(5))).run(Waiting).await.unwrap();
    assert_eq!(report.handled(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_detached_context_is_held_for_ever_and_never_stops() {
    let cx = HandlerContext::detached(&Source::queue("q"), 3);
    assert_eq!((cx.attempt(), cx.max_deliveries(), cx.source()), (3, None, &Source::queue("q")));
    assert!(!cx.is_last_attempt() && !cx.is_cancelled() && !cx.is_lock_lost() && cx.dead_letter_info().is_none());
    let waits = async {
        tokio::select! { () = cx.lock_lost() => {}, () = cx.cancelled() => {} }
    };
    assert!(tokio::time::timeout(secs(3600), waits).await.is_err());
}
