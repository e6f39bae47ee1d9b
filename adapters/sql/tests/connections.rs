//! Connections that lead to the wrong server, or to none: what becomes of them, and that no message pays for it.
#![allow(clippy::unwrap_used)]

mod database;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use database::{ALL, eventually, insert, postgres_options, read, row, scalar};
use polybus_conformance::Proxy;
use polybus_core::{
    Address, Bus, BusOptions, Envelope, QueueSpec, RetryPolicy, Source, Topology, memory::MemoryDriver,
    worker::WorkerReport,
};
use polybus_patterns::{
    Inbox,
    store::{InboxStore, MarkKey, OutboxStore, Store, StoreTrouble, TransactionLimits},
};
use polybus_sql::Postgres;
use sqlx::{AssertSqlSafe, PgPool, postgres::PgConnectOptions, postgres::PgPoolOptions};

/// A user of its own, whose new connections can be made read-only: where they lead is a server that was demoted.
struct Server {
    admin: PgPool,
    user: String,
    options: PgConnectOptions,
}

impl Server {
    /// `None` where there is no server, or where it lets nobody make users.
    async fn new() -> Option<Self> {
        let options = postgres_options().await?;
        let admin = PgPoolOptions::new().max_connections(2).connect_with(options.clone()).await.unwrap();
        let schema: String = scalar(&admin, "SELECT current_schema()::text").await;
        let user = format!("user_{schema}");
        let setup = format!("CREATE ROLE {user} LOGIN PASSWORD 'pw'; GRANT ALL ON SCHEMA {schema} TO {user}");
        if sqlx::raw_sql(AssertSqlSafe(setup)).execute(&admin).await.is_err() {
            eprintln!("SKIPPED: this user may not make roles");
            return None;
        }
        let options = options.username(&user).password("pw");
        let server = Self { admin, user, options };
        let store = polybus_sql::postgres(server.pool(2, &server.options).await);
        store.migrate().await.unwrap();
        sqlx::query("CREATE TABLE effects (id TEXT)").execute(store.pool()).await.unwrap();
        store.pool().close().await;
        Some(server)
    }

    async fn pool(&self, connections: u32, options: &PgConnectOptions) -> PgPool {
        let pool = PgPoolOptions::new().max_connections(connections).acquire_timeout(Duration::from_secs(10));
        let pool = pool.connect_with(options.clone()).await.unwrap();
        let all = futures_util::future::join_all((0..connections).map(|_| pool.acquire())).await;
        all.into_iter().for_each(|conn| drop(conn.unwrap()));
        eventually("all are idle", async || pool.num_idle() == connections as usize).await;
        pool
    }

    async fn demote(&self) {
        self.run(&format!("ALTER ROLE {} SET default_transaction_read_only = on", self.user)).await;
    }

    async fn promote(&self) {
        self.run(&format!("ALTER ROLE {} RESET default_transaction_read_only", self.user)).await;
    }

    async fn end_connections(&self) {
        let end = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{}'", self.user);
        self.run(&end).await;
    }

    async fn run(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.admin).await.unwrap();
    }

    /// A store whose pool leads to a server that was demoted, while new connections lead to its successor.
    async fn misled_store(&self, connections: u32) -> Postgres {
        self.demote().await;
        let store = polybus_sql::postgres(self.pool(connections, &self.options).await);
        // Those of its own pool as well.
        let outbox = store.outbox();
        let read = futures_util::future::join_all((0..8).map(|_| outbox.addresses(&ALL))).await;
        read.into_iter().for_each(|read| drop(read.unwrap()));
        self.promote().await;
        assert_eq!(store.pool().num_idle(), connections as usize);
        store
    }

    async fn gone(self) {
        self.run(&format!("DROP OWNED BY {0} CASCADE; DROP ROLE {0}", self.user)).await;
    }
}

fn limits() -> TransactionLimits {
    TransactionLimits::new(Duration::from_secs(5), None)
}

fn key(n: u8) -> MarkKey {
    MarkKey { consumer: 1, hour: 1, key: [n; 16] }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_applications_transaction_on_a_demoted_server_fails_once() {
    let Some(server) = Server::new().await else { return };
    let store = server.misled_store(5).await;
    let mut tx = store.begin().await.unwrap();
    let error = store.insert(&mut tx, &[row(0, "queue:a", "0")]).await.unwrap_err();
    assert_eq!(store.judge(&error), StoreTrouble::MaybeAway, "{error}");
    drop(tx);
    // Its connection is closed, and so are those that nobody has used yet.
    eventually("all five are closed", async || store.pool().size() == 0).await;
    for n in 0..10 {
        insert(&store, &[row(0, "queue:a", &n.to_string())]).await;
    }
    assert_eq!(read(&store, "queue:a").await.len(), 10);
    store.pool().close().await;
    server.gone().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mark_on_a_demoted_server_fails_once() {
    let Some(server) = Server::new().await else { return };
    let store = server.misled_store(1).await;
    let error = store.begin_marked(&key(0), &limits()).await.unwrap_err();
    assert_eq!(store.judge(&error), StoreTrouble::MaybeAway, "{error}");
    for n in 1..5 {
        let (tx, _) = store.begin_marked(&key(n), &limits()).await.unwrap();
        tx.commit().await.unwrap();
    }
    store.pool().close().await;
    server.gone().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loops_leave_a_demoted_server() {
    let Some(server) = Server::new().await else { return };
    let store = server.misled_store(1).await;
    let leases = store.control().leases();
    let term = Duration::from_secs(10);
    let mut failed = 0;
    // Its pool has four connections.
    while let Err(error) = leases.acquire(&["l".to_owned()], "a", term).await {
        assert_eq!(store.judge(&error), StoreTrouble::MaybeAway, "{error}");
        failed += 1;
        assert!(failed <= 4, "the connections are used again");
    }
    assert!(failed > 0, "they led to where all is well, or this proves nothing");
    assert!(!store.control().is_away().await);
    store.pool().close().await;
    server.gone().await;
}

/// Handles messages that take a moment and write an effect each, while something happens to the database.
async fn handles(store: &Postgres, messages: usize, takes: Duration, trouble: impl AsyncFnOnce(&AtomicUsize)) {
    let queue = QueueSpec::new().max_deliveries(3).retry([Duration::from_millis(10)]);
    let bus = Bus::new(Arc::new(MemoryDriver::new()), BusOptions::topology(Topology::new().queue("q", queue))).unwrap();
    bus.declare().await.unwrap();
    let all = (0..messages).map(|i| Envelope::new("t", "").id(i.to_string()));
    bus.publish_all(Address::queue("q"), all).await.into_iter().for_each(|answer| drop(answer.unwrap()));
    let begun = Arc::new(AtomicUsize::new(0));
    let handler = Inbox::new(store, "c").handler((begun.clone(), takes), async |(begun, takes), mut tx, _cx, msg| {
        begun.fetch_add(1, Ordering::Relaxed);
        sqlx::query("INSERT INTO effects VALUES ($1)").bind(&*msg.id).execute(&mut *tx).await?;
        tokio::time::sleep(takes).await;
        Ok(tx)
    });
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let worker = bus.worker(Source::queue("q")).concurrency(4).retry(RetryPolicy::fixed(Duration::from_millis(10)));
    let working = tokio::spawn(worker.with_graceful_shutdown(async move { drop(stopped.await) }).run(handler));
    trouble(&begun).await;
    eventually("all are handled", async || {
        // Some of the pool's connections may be dying at this moment.
        let there: Result<i64, _> =
            sqlx::query_scalar("SELECT count(DISTINCT id) FROM effects").fetch_one(store.pool()).await;
        there.is_ok_and(|there| there == messages as i64)
    })
    .await;
    stop.send(()).unwrap();
    let report: WorkerReport = working.await.unwrap().unwrap();
    assert_eq!((report.succeeded, report.retried, report.dead_lettered), (messages as u64, 0, 0), "{report:?}");
    let effects: i64 = scalar(store.pool(), "SELECT count(*) FROM effects").await;
    assert_eq!(effects, messages as i64, "each once");
}

/// Each of the pool's connections fails a message that meets it, so they may not be met one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_on_a_demoted_server_costs_no_message_an_attempt() {
    let Some(server) = Server::new().await else { return };
    let store = server.misled_store(20).await;
    handles(&store, 20, Duration::ZERO, async |_| {}).await;
    store.pool().close().await;
    server.gone().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_read_only_for_a_while_costs_no_message_an_attempt() {
    let Some(server) = Server::new().await else { return };
    let store = polybus_sql::postgres(server.pool(8, &server.options).await);
    handles(&store, 200, Duration::from_millis(10), async |begun| {
        eventually("some are handled", async || begun.load(Ordering::Relaxed) > 20).await;
        server.demote().await;
        server.end_connections().await;
        eventually("it is found away", async || store.control().outage().since().is_some()).await;
        // The time itself is what is tested: without the outage, all attempts would be over.
        tokio::time::sleep(Duration::from_secs(8)).await;
        server.promote().await;
    })
    .await;
    store.pool().close().await;
    server.gone().await;
}

/// A pooler that is restarted again and again, or a network that cuts: the database is there whenever one asks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_lost_cost_no_message_an_attempt() {
    let Some(server) = Server::new().await else { return };
    let store = polybus_sql::postgres(server.pool(8, &server.options).await);
    handles(&store, 40, Duration::from_millis(200), async |begun| {
        eventually("some are handled", async || begun.load(Ordering::Relaxed) > 8).await;
        // Shorter than a handler takes, and longer than all reruns at once would.
        for _ in 0..120 {
            server.end_connections().await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    store.pool().close().await;
    server.gone().await;
}

/// The address of the server behind a proxy.
async fn proxied(server: &Server) -> (Proxy, PgConnectOptions) {
    let upstream = format!("{}:{}", server.options.get_host(), server.options.get_port());
    let proxy = Proxy::start(upstream).await.unwrap();
    let options = server.options.clone().host("127.0.0.1").port(proxy.addr().port());
    (proxy, options)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_gone_without_a_word_keeps_no_place_in_a_pool() {
    let Some(server) = Server::new().await else { return };
    let (proxy, behind) = proxied(&server).await;
    let store = polybus_sql::postgres(server.pool(2, &behind).await);
    let leases = store.control().leases();
    let term = Duration::from_secs(10);
    let names = ["l".to_owned()];
    futures_util::future::join_all((0..8).map(|_| leases.acquire(&names, "a", term))).await;
    // One that is dropped between statements, and one in the middle of one.
    let between = store.begin().await.unwrap();
    let (mut within, _) = store.begin_marked(&key(1), &limits()).await.unwrap();
    proxy.stall(true);
    drop(between);
    let cut_off = async move { sqlx::query("SELECT 1").execute(&mut *within).await.map(|_| within) };
    assert!(tokio::time::timeout(Duration::from_millis(100), cut_off).await.is_err());
    let calls = futures_util::future::join_all((0..3).map(|_| leases.acquire(&names, "a", term)));
    assert!(tokio::time::timeout(Duration::from_millis(100), calls).await.is_err());
    // New connections lead to where it is now.
    store.pool().set_connect_options(server.options.clone());
    let _both = (retried(async || store.begin().await).await, retried(async || store.begin().await).await);
    retried(async || leases.acquire(&names, "a", term).await).await;
    proxy.stall(false);
    drop(_both);
    store.pool().close().await;
    server.gone().await;
}

/// The first success. A pool's time may be over before a place in it is free.
async fn retried<T>(call: impl AsyncFn() -> polybus_core::Result<T>) -> T {
    let trying = async {
        loop {
            match call().await {
                Ok(done) => return done,
                Err(error) => assert_eq!(error.kind(), polybus_core::ErrorKind::Unavailable, "{error}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(120), trying).await.expect("a place in the pool is taken for ever")
}
