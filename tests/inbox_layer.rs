//! The inbox as a layer around a tower service, between other layers, on SQLite and, where `POLYBUS_POSTGRES_URL` and
//! `POLYBUS_MARIADB_URL` name one, on PostgreSQL and MariaDB. `POLYBUS_REQUIRE=postgres,mariadb` makes a missing one a
//! failure.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use polybus::{
    Address, Bus, BusOptions, Envelope, Error, ErrorKind, HandlerContext, HandlerError, QueueSpec, Source, Topology,
    patterns::{Inbox, inbox::InboxRequest},
    worker::{HandlerRequest, WorkerReport},
};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn, util::BoxCloneService};

#[allow(dead_code, unreachable_pub)]
#[path = "../examples/outbox/database.rs"]
mod database;

#[path = "../examples/kill_test/lose.rs"]
#[allow(unreachable_pub)]
mod lose;

use database::{Location, create, number, numbers};
use lose::lose;
use polybus_sql::{Db, DbTx};

type Failure = Box<dyn std::error::Error + Send + Sync>;

macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test] async fn $name() { super::on_sqlite(async |shop| super::$name(shop).await).await; })*
        }
        mod on_postgres {
            $(#[tokio::test]
            async fn $name() {
                super::on_server("postgres", async |shop| super::$name(shop).await).await;
            })*
        }
        mod on_mariadb {
            $(#[tokio::test]
            async fn $name() {
                super::on_server("mariadb", async |shop| super::$name(shop).await).await;
            })*
        }
    };
}

on_both![
    a_duplicate_is_stopped,
    an_error_rolls_back,
    a_permanent_error_becomes_a_dead_letter,
    a_panic_rolls_back,
    a_swallowed_error_is_not_acknowledged,
    layers_above_and_below_are_called,
    a_service_that_refuses_leaves_no_mark,
    a_layer_above_may_call_again,
    a_dropped_call_leaves_no_mark,
    a_call_beside_a_dropped_one_goes_on,
    the_start_check_reaches_the_worker,
    a_forgotten_start_check_is_told,
];

// ---- the shop

/// A bus in memory with the queues `orders` and `mail`, and a database with the tables `effects` and `taken`.
struct Shop {
    store: Db,
    bus: Bus,
    calls: Arc<AtomicU32>,
}

/// What a test's service does with a message, in its transaction and after its effect is written.
type Answer<T> = Pin<Box<dyn Future<Output = Result<T, HandlerError>> + Send>>;

impl Shop {
    async fn open(store: Db) -> Self {
        let tables = "CREATE TABLE effects (id BIGINT); CREATE TABLE taken (id BIGINT PRIMARY KEY);
                      INSERT INTO taken VALUES (1)";
        create(&store, tables.into()).await.unwrap();
        let queue = QueueSpec::new().max_deliveries(5).retry([Duration::from_millis(1)]);
        let options = BusOptions::topology(Topology::new().queue("orders", queue).queue("mail", QueueSpec::new()));
        let bus = polybus::connect_with("memory://", options).await.unwrap();
        bus.declare().await.unwrap();
        Self { store, bus, calls: Arc::default() }
    }

    fn inbox(&self) -> Inbox<Db> {
        Inbox::new(&self.store, "billing")
    }

    /// A service that writes an effect for each message, then does as `then` says. It counts its calls.
    fn service(
        &self,
        then: fn(DbTx, HandlerContext) -> Answer<DbTx>,
    ) -> impl Service<InboxRequest<DbTx>, Response = DbTx, Error = HandlerError, Future: Send> + Clone + Send + use<>
    {
        let calls = self.calls.clone();
        service_fn(move |request: InboxRequest<DbTx>| {
            let calls = calls.clone();
            async move {
                calls.fetch_add(1, Ordering::SeqCst);
                let InboxRequest { mut tx, context, message, .. } = request;
                let id: i64 = std::str::from_utf8(&message.data)?.parse()?;
                tx.execute("INSERT INTO effects (id) VALUES (?)", [id.into()]).await?;
                then(tx, context).await
            }
        })
    }

    async fn publish(&self, messages: impl IntoIterator<Item = Envelope>) {
        for result in self.bus.publish_all(Address::queue("orders"), messages).await {
            result.unwrap();
        }
    }

    /// Serves until the queue is empty.
    async fn serve<T>(&self, layer: &polybus::patterns::inbox::InboxLayer<Db>, service: T) -> WorkerReport
    where
        T: Service<HandlerRequest> + Clone + Send + 'static,
        T::Error: Into<HandlerError>,
        T::Future: Send,
    {
        let bus = self.bus.clone();
        let empty = async move {
            loop {
                let stats = bus.stats(Source::queue("orders")).await.unwrap();
                if [stats.ready, stats.in_flight, stats.delayed].into_iter().flatten().sum::<u64>() == 0 {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let worker = self.bus.worker(Source::queue("orders")).concurrency(2).check_at_start(layer.start_check());
        let served = worker.with_graceful_shutdown(empty).serve(service);
        tokio::time::timeout(Duration::from_secs(120), served).await.expect("the queue was not emptied").unwrap()
    }

    /// What has an effect, each as often as it has.
    async fn effects(&self) -> Vec<i64> {
        numbers(&self.store, "SELECT id FROM effects ORDER BY id").await.unwrap()
    }

    async fn marks(&self) -> i64 {
        number(&self.store, "SELECT COUNT(*) FROM polybus_inbox").await.unwrap()
    }

    fn calls(&self) -> u32 {
        self.calls.load(Ordering::SeqCst)
    }

    /// A request outside a worker.
    fn request(&self, message: &Envelope) -> HandlerRequest {
        HandlerRequest::new(HandlerContext::detached(&Source::queue("orders"), 1), message.clone())
    }
}

fn order(id: i64) -> Envelope {
    Envelope::new("order.placed", id.to_string()).source("/shop")
}

async fn on_sqlite(test: impl AsyncFnOnce(Shop)) {
    test(Shop::open(Location::Temporary.open(8).await.unwrap()).await).await;
}

async fn on_server(service: &str, test: impl AsyncFnOnce(Shop)) {
    let variable = format!("POLYBUS_{}_URL", service.to_uppercase());
    let Some(url) = std::env::var(&variable).ok().filter(|url| !url.is_empty()) else {
        let required = std::env::var("POLYBUS_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|name| name.trim() == service), "{variable} is not set");
        eprintln!("SKIPPED: {variable} is not set");
        return;
    };
    let location = Location::parse(Some(&url), &format!("layer-{}", Envelope::new("t", "").id)).unwrap();
    location.create().await.unwrap();
    let store = location.open(8).await.unwrap();
    test(Shop::open(store.clone()).await).await;
    store.close().await;
    location.remove().await.unwrap();
}

// ---- what becomes of a message

async fn a_duplicate_is_stopped(shop: Shop) {
    let (first, second) = (order(1), order(2));
    shop.publish([first.clone(), second.clone(), first.clone(), second, first]).await;
    let layer = shop.inbox().layer();
    let report = shop.serve(&layer, layer.layer(shop.service(|tx, _| Box::pin(async { Ok(tx) })))).await;
    assert_eq!((report.succeeded, report.retried, shop.calls()), (5, 0, 2));
    assert_eq!((shop.effects().await, shop.marks().await), (vec![1, 2], 2));
}

async fn an_error_rolls_back(shop: Shop) {
    shop.publish([order(1)]).await;
    let layer = shop.inbox().layer();
    let service = shop.service(|tx, cx| {
        Box::pin(async move { if cx.attempt() < 3 { Err("the bank does not answer".into()) } else { Ok(tx) } })
    });
    let report = shop.serve(&layer, layer.layer(service)).await;
    assert_eq!((report.succeeded, report.retried, shop.calls()), (1, 2, 3));
    assert_eq!((shop.effects().await, shop.marks().await), (vec![1], 1));
}

async fn a_permanent_error_becomes_a_dead_letter(shop: Shop) {
    shop.publish([order(1)]).await;
    let layer = shop.inbox().layer();
    let service = shop.service(|_, _| Box::pin(async { Err(HandlerError::permanent("no such customer")) }));
    // It passes layers that know boxed errors alone.
    let limit = Duration::from_secs(60);
    let below = ServiceBuilder::new().timeout(limit).map_err(HandlerError::into_boxed).service(service);
    let service = ServiceBuilder::new().timeout(limit).layer(layer.clone()).service(below);
    let report = shop.serve(&layer, service).await;
    assert_eq!((report.dead_lettered, report.retried, shop.calls()), (1, 0, 1));
    assert_eq!((shop.effects().await, shop.marks().await), (vec![], 0));
}

async fn a_panic_rolls_back(shop: Shop) {
    shop.publish([order(1)]).await;
    let layer = shop.inbox().layer();
    let service = shop.service(|tx, cx| {
        Box::pin(async move {
            assert!(cx.attempt() > 1, "a panic on purpose");
            Ok(tx)
        })
    });
    let report = shop.serve(&layer, layer.layer(service)).await;
    assert_eq!((report.succeeded, report.retried, shop.calls()), (1, 1, 2));
    assert_eq!((shop.effects().await, shop.marks().await), (vec![1], 1));
}

async fn a_swallowed_error_is_not_acknowledged(shop: Shop) {
    shop.publish([order(1)]).await;
    let layer = shop.inbox().layer();
    let service = shop.service(|mut tx, cx| {
        Box::pin(async move {
            if cx.attempt() == 1 {
                assert!(lose(&mut tx).await, "the transaction goes on");
            }
            Ok(tx)
        })
    });
    let report = shop.serve(&layer, layer.layer(service)).await;
    assert_eq!((report.succeeded, report.retried, shop.calls()), (1, 1, 2));
    assert_eq!((shop.effects().await, shop.marks().await), (vec![1], 1));
}

// ---- other layers

async fn layers_above_and_below_are_called(shop: Shop) {
    let twice = order(7);
    shop.publish([twice.clone(), order(8), twice]).await;
    let layer = shop.inbox().layer();
    let below: Arc<Mutex<BTreeSet<Box<str>>>> = Arc::default();
    let above = Arc::new(AtomicU32::new(0));
    let (seen, counted) = (below.clone(), above.clone());
    // Not `Sync`, as many services are not.
    let boxed: BoxCloneService<_, _, _> = shop.service(|tx, _| Box::pin(async { Ok(tx) })).boxed_clone();
    let service = ServiceBuilder::new()
        .map_request(move |mut request: HandlerRequest| {
            counted.fetch_add(1, Ordering::SeqCst);
            // The inbox marks what it is given.
            request.message = request.message.source("/above");
            request
        })
        .concurrency_limit(1)
        .timeout(Duration::from_secs(60))
        .layer(layer.clone())
        .map_request(move |mut request: InboxRequest<DbTx>| {
            seen.lock().unwrap().insert(request.message.id.clone());
            let id: i64 = std::str::from_utf8(&request.message.data).unwrap().parse().unwrap();
            request.message = order(id + 10);
            request
        })
        .timeout(Duration::from_secs(60))
        .concurrency_limit(1)
        .map_err(HandlerError::into_boxed)
        .service(boxed);
    let report = shop.serve(&layer, service).await;
    assert_eq!((report.succeeded, report.retried, shop.calls()), (3, 0, 2));
    assert_eq!(above.load(Ordering::SeqCst), 3, "copies pass what is above the inbox");
    assert_eq!(below.lock().unwrap().len(), 2, "and end there");
    assert_eq!((shop.effects().await, shop.marks().await), (vec![17, 18], 2));
}

/// A service that is not ready the first time, as a load shedder is.
#[derive(Clone)]
struct Shed<V> {
    inner: V,
    asked: Arc<AtomicU32>,
}

impl<V, R> Service<R> for Shed<V>
where
    V: Service<R, Error = HandlerError>,
{
    type Response = V::Response;
    type Error = HandlerError;
    type Future = V::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), HandlerError>> {
        match self.asked.fetch_add(1, Ordering::SeqCst) {
            0 => Poll::Ready(Err("overloaded".into())),
            _ => self.inner.poll_ready(cx),
        }
    }

    fn call(&mut self, request: R) -> V::Future {
        self.inner.call(request)
    }
}

async fn a_service_that_refuses_leaves_no_mark(shop: Shop) {
    shop.publish([order(1)]).await;
    let layer = shop.inbox().layer();
    let inner = shop.service(|tx, _| Box::pin(async { Ok(tx) }));
    let asked: Arc<AtomicU32> = Arc::default();
    let report = shop.serve(&layer, layer.layer(Shed { inner, asked: asked.clone() })).await;
    assert_eq!((report.succeeded, report.retried, shop.calls()), (1, 1, 1));
    assert_eq!((shop.effects().await, shop.marks().await), (vec![1], 1));
}

async fn a_layer_above_may_call_again(shop: Shop) {
    /// Calls up to three times.
    #[derive(Clone)]
    struct Again<V>(V);

    impl<V> Service<HandlerRequest> for Again<V>
    where
        V: Service<HandlerRequest, Response = (), Error = BoxError, Future: Send> + Clone + Send + 'static,
    {
        type Response = ();
        type Error = BoxError;
        type Future = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            self.0.poll_ready(cx)
        }

        fn call(&mut self, request: HandlerRequest) -> Self::Future {
            let mut inner = self.0.clone();
            Box::pin(async move {
                for _ in 0..2 {
                    poll_fn(|cx| inner.poll_ready(cx)).await?;
                    if inner.call(request.clone()).await.is_ok() {
                        return Ok(());
                    }
                }
                poll_fn(|cx| inner.poll_ready(cx)).await?;
                inner.call(request).await
            })
        }
    }

    shop.publish([order(1)]).await;
    let layer = shop.inbox().layer();
    let calls = shop.calls.clone();
    let failing = shop.service(|tx, _| Box::pin(async { Ok(tx) })).and_then(move |tx| {
        let calls = calls.clone();
        async move { if calls.load(Ordering::SeqCst) < 3 { Err(HandlerError::new("not yet")) } else { Ok(tx) } }
    });
    let report = shop.serve(&layer, Again(layer.layer(failing))).await;
    assert_eq!((report.succeeded, report.retried, shop.calls()), (1, 0, 3));
    assert_eq!((shop.effects().await, shop.marks().await), (vec![1], 1));
}

// ---- cancellation

async fn a_dropped_call_leaves_no_mark(shop: Shop) {
    let (message, layer) = (order(1), shop.inbox().layer());
    let first = layer.layer(shop.service(|tx, _| Box::pin(stuck(tx))));
    let mut call = Box::pin(first.oneshot(shop.request(&message)));
    // The effect is written, and the transaction is open.
    while shop.calls() == 0 {
        assert!(poll_for(&mut call, Duration::from_millis(5)).await.is_none());
    }
    assert!(poll_for(&mut call, Duration::from_millis(50)).await.is_none());
    drop(call);
    let service = layer.layer(shop.service(|tx, _| Box::pin(async { Ok(tx) })));
    service.clone().oneshot(shop.request(&message)).await.unwrap();
    assert_eq!((shop.calls(), shop.effects().await, shop.marks().await), (2, vec![1], 1));
    service.oneshot(shop.request(&message)).await.unwrap();
    assert_eq!(shop.calls(), 2, "the mark of the second is there");
}

async fn a_call_beside_a_dropped_one_goes_on(shop: Shop) {
    let (message, layer) = (order(1), shop.inbox().layer());
    let first = layer.layer(shop.service(|tx, _| Box::pin(stuck(tx))));
    let mut first = Box::pin(first.oneshot(shop.request(&message)));
    while shop.calls() == 0 {
        assert!(poll_for(&mut first, Duration::from_millis(5)).await.is_none());
    }
    // A copy waits for the end of the first one.
    let service = layer.layer(shop.service(|tx, _| Box::pin(async { Ok(tx) })));
    let copy = tokio::spawn(service.oneshot(shop.request(&message)));
    assert!(poll_for(&mut first, Duration::from_millis(200)).await.is_none());
    assert_eq!(shop.calls(), 1);
    drop(first);
    copy.await.unwrap().unwrap();
    assert_eq!((shop.calls(), shop.effects().await, shop.marks().await), (2, vec![1], 1));
}

/// Keeps its transaction open for ever.
async fn stuck<T>(tx: T) -> Result<T, HandlerError> {
    std::future::pending::<()>().await;
    Ok(tx)
}

async fn poll_for<T>(future: &mut (impl Future<Output = T> + Unpin), time: Duration) -> Option<T> {
    tokio::time::timeout(time, future).await.ok()
}

// ---- the worker's start

async fn the_start_check_reaches_the_worker(shop: Shop) {
    shop.publish([order(1)]).await;
    let refused = async |inbox: Inbox<Db>, concurrency: usize, timeout: Option<Duration>| -> Error {
        let layer = inbox.layer();
        let inner = layer.layer(shop.service(|tx, _| Box::pin(async { Ok(tx) })));
        let service = ServiceBuilder::new().concurrency_limit(64).service(inner);
        let mut worker = shop.bus.worker(Source::queue("orders")).concurrency(concurrency);
        if let Some(timeout) = timeout {
            worker = worker.handler_timeout(timeout);
        }
        let served = worker.check_at_start(layer.start_check()).serve(service);
        let served = tokio::time::timeout(Duration::from_secs(60), served).await;
        served.expect("the worker started").unwrap_err()
    };
    let short = refused(shop.inbox().retention(Duration::from_secs(60)), 2, None).await;
    assert!(short.kind() == ErrorKind::InvalidArgument && short.to_string().contains("retention"), "{short}");
    let timeout = refused(shop.inbox(), 2, Some(Duration::from_secs(10))).await;
    assert!(
        timeout.kind() == ErrorKind::InvalidArgument && timeout.to_string().contains("handler_timeout"),
        "{timeout}"
    );
    // SQLite's handlers take turns, so its pool is never too small.
    if shop.store.system() != "sqlite" {
        let pool = refused(shop.inbox(), 16, None).await;
        assert!(pool.to_string().contains("8 connections"), "{pool}");
    }
    assert_eq!(shop.calls(), 0, "a message was fetched before the checks");
    // The name belongs to the queue that the first worker serves.
    let layer = shop.inbox().layer();
    let service = shop.service(|tx, _| Box::pin(async { Ok(tx) }));
    shop.serve(&layer, layer.layer(service.clone())).await;
    assert_eq!(shop.calls(), 1);
    let layer = shop.inbox().layer();
    let other = shop.bus.worker(Source::queue("mail")).concurrency(2).check_at_start(layer.start_check());
    let taken = other.serve(layer.layer(service)).await.unwrap_err();
    assert!(taken.kind() == ErrorKind::ConfigInvalid && taken.to_string().contains("queue:orders"), "{taken}");
}

async fn a_forgotten_start_check_is_told(shop: Shop) {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let layer = shop.inbox().layer();
    let service = layer.layer(shop.service(|tx, _| Box::pin(async { Ok(tx) })));
    for id in 1..=3 {
        service.clone().oneshot(shop.request(&order(id))).await.unwrap();
    }
    assert_eq!(log.text().matches("check_at_start").count(), 1, "{}", log.text());
    assert_eq!(shop.effects().await, [1, 2, 3]);

    let log_of_asked = Log::default();
    let writer = log_of_asked.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    shop.publish([order(4)]).await;
    let layer = shop.inbox().layer();
    shop.serve(&layer, layer.layer(shop.service(|tx, _| Box::pin(async { Ok(tx) })))).await;
    assert!(!log_of_asked.text().contains("check_at_start"), "{}", log_of_asked.text());
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
