//! The database of the bench: a schema of its own, with a table of the application's.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use polybus_core::{Address, Bus, Handler, HandlerContext, Source};
use polybus_patterns::{Inbox, Outbox, Relay};
use polybus_sql::Postgres;
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::task::JoinSet;

use crate::{
    CLIENTS, QUEUE,
    measure::{message, rate},
};

pub(crate) struct Database {
    pub(crate) pool: PgPool,
    pub(crate) store: Postgres,
    schema: String,
}

/// How a row of the application's is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum EffectBy {
    Transaction,
    Inbox,
    /// An inbox whose connections go from one message to the next.
    InboxHandingOver,
}

impl Database {
    pub(crate) async fn open(url: &str) -> Self {
        Self::open_with(url, "bench", &[]).await
    }

    /// With these settings in each session.
    pub(crate) async fn open_with(url: &str, name: &str, settings: &[(&str, &str)]) -> Self {
        let schema = format!("{name}_{}", std::process::id());
        let options: PgConnectOptions = url.parse().unwrap();
        let search_path = schema.clone();
        let pool = PgPoolOptions::new()
            .max_connections(CLIENTS as u32 + 2)
            .after_connect(move |conn, _| {
                let statement = format!("SET search_path = {search_path}");
                Box::pin(async move { sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(conn).await.map(drop) })
            })
            .connect_with(options.options(settings.iter().copied()))
            .await
            .unwrap();
        let make = format!(
            "CREATE SCHEMA {schema}; CREATE TABLE {schema}.business (id TEXT, note TEXT);
             CREATE TABLE {schema}.twin (id BIGINT PRIMARY KEY, data BYTEA)"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(make)).execute(&pool).await.unwrap();
        let store = polybus_sql::postgres(pool.clone()).schema(&schema);
        store.migrate().await.unwrap();
        Self { pool, store, schema }
    }

    pub(crate) async fn drop(self) {
        let statement = format!("DROP SCHEMA {} CASCADE", self.schema);
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&self.pool).await.unwrap();
    }

    pub(crate) async fn clear(&self) {
        let statement = "TRUNCATE business; TRUNCATE polybus_outbox; TRUNCATE polybus_inbox";
        sqlx::raw_sql(statement).execute(&self.pool).await.unwrap();
    }

    pub(crate) fn outbox(&self) -> Outbox<Postgres> {
        Outbox::new(&self.store, "/bench")
    }

    /// Writes business rows, one a transaction, with or without a message. Commits a second.
    pub(crate) async fn business_rows(&self, rows: usize, with_outbox: bool) -> f64 {
        let left = Arc::new(AtomicUsize::new(rows));
        let started = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..CLIENTS {
            let (left, pool, outbox) = (left.clone(), self.pool.clone(), self.outbox());
            tasks.spawn(async move {
                while take(&left) {
                    let message = message();
                    let mut tx = pool.begin().await.unwrap();
                    effect(&mut tx, &message.id).await;
                    if with_outbox {
                        outbox.enqueue(&mut tx, Address::queue(QUEUE), message).await.unwrap();
                    }
                    tx.commit().await.unwrap();
                }
            });
        }
        tasks.join_all().await;
        rate(rows, started)
    }

    /// Fills the outbox, 1,000 rows a transaction.
    pub(crate) async fn fill(&self, rows: usize) {
        self.clear().await;
        for _ in 0..rows / 1_000 {
            let mut tx = self.pool.begin().await.unwrap();
            let messages = (0..1_000).map(|_| message());
            self.outbox().enqueue_all(&mut tx, Address::queue(QUEUE), messages).await.unwrap();
            tx.commit().await.unwrap();
        }
    }

    /// Whether nothing waits for the address, by the index: a scan would measure dead rows.
    pub(crate) async fn is_published(&self, queue: &str) -> bool {
        let sql =
            "SELECT NOT EXISTS (SELECT 1 FROM unnest('{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}'::smallint[]) s (slot)
            CROSS JOIN LATERAL (SELECT 1 FROM polybus_outbox o WHERE o.slot = s.slot
                AND o.address >= $1 AND o.address <= $1 ORDER BY o.address, o.id LIMIT 1) o)";
        let query = sqlx::query_scalar(sql).bind(format!("queue:{queue}"));
        query.fetch_one(&self.pool).await.unwrap()
    }

    async fn is_empty(&self) -> bool {
        self.is_published(QUEUE).await
    }

    /// Publishes what is there. Rows a second, from the start of the relay until the table is empty.
    pub(crate) async fn drain(&self, bus: &Bus, rows: usize) -> f64 {
        let started = Instant::now();
        let empty = async {
            while !self.is_empty().await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let report = Relay::new(bus, &self.store).run(empty).await.unwrap();
        let rate = rate(rows, started);
        assert_eq!(report.published, rows as u64);
        rate
    }

    /// From the commit until the row is gone, with one row at a time. The median of 200.
    pub(crate) async fn latency(&self, bus: &Bus, wake: bool) -> Duration {
        self.clear().await;
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let relay = Relay::new(bus, &self.store);
        let relaying = tokio::spawn(relay.run(async move { drop(stopped.await) }));
        let outbox = self.outbox();
        let mut took = Vec::new();
        for _ in 0..210 {
            let mut tx = self.pool.begin().await.unwrap();
            outbox.enqueue(&mut tx, Address::queue(QUEUE), message()).await.unwrap();
            tx.commit().await.unwrap();
            let started = Instant::now();
            if wake {
                outbox.wake();
            }
            while !self.is_empty().await {
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
            took.push(started.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(stop);
        relaying.await.unwrap().unwrap();
        // The first ones wait for the relay's start.
        took.drain(..10);
        took.sort();
        took[took.len() / 2]
    }

    /// Handles messages that each write one row, by the inbox' handler or in a plain transaction. Rates a second, and
    /// bytes of WAL for each.
    pub(crate) async fn effects(&self, rows: usize, by: EffectBy) -> (f64, f64) {
        let source = Source::queue(QUEUE);
        let store = match by {
            EffectBy::InboxHandingOver => self.store.clone().hand_over_connections(),
            _ => self.store.clone(),
        };
        let handler = Arc::new(Inbox::new(&store, "bench").handler((), async |(), mut tx, _cx, msg| {
            effect(&mut tx, &msg.id).await;
            Ok(tx)
        }));
        // The consumer's name is written before the clock runs.
        handler.handle(HandlerContext::detached(&source, 1), message().source("/bench")).await.unwrap();
        let left = Arc::new(AtomicUsize::new(rows));
        let before = self.wal().await;
        let started = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..CLIENTS {
            let (left, pool, handler, source) = (left.clone(), self.pool.clone(), handler.clone(), source.clone());
            tasks.spawn(async move {
                while take(&left) {
                    let message = message().source("/bench");
                    if by != EffectBy::Transaction {
                        handler.handle(HandlerContext::detached(&source, 1), message).await.unwrap();
                    } else {
                        let mut tx = pool.begin().await.unwrap();
                        effect(&mut tx, &message.id).await;
                        tx.commit().await.unwrap();
                    }
                }
            });
        }
        tasks.join_all().await;
        let rate = rate(rows, started);
        (rate, (self.wal().await - before) / rows as f64)
    }

    async fn wal(&self) -> f64 {
        let sql = "SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::float8";
        let (bytes,): (f64,) = sqlx::query_as(sql).fetch_one(&self.pool).await.unwrap();
        bytes
    }
}

fn take(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok()
}

async fn effect(conn: &mut sqlx::PgConnection, id: &str) {
    let insert = sqlx::query("INSERT INTO business (id, note) VALUES ($1, 'an order')").bind(id);
    insert.execute(conn).await.unwrap();
}
