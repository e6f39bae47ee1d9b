//! Connections that go from one message of the inbox straight to the next.
#![allow(clippy::unwrap_used)]

mod database;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use database::{eventually, postgres_options};
use polybus_core::{Envelope, Handler, HandlerContext, Source};
use polybus_patterns::{Inbox, store::InboxStore};
use polybus_sql::{Postgres, PostgresTx};
use sqlx::{PgPool, postgres::PgPoolOptions};

/// A store with so many connections, and how often its pool gave one out.
async fn store(connections: u32, hands_over: bool) -> Option<(Postgres, Arc<AtomicU32>)> {
    let given_out = Arc::new(AtomicU32::new(0));
    let (counter, connects) = (given_out.clone(), given_out.clone());
    let pool = PgPoolOptions::new()
        .max_connections(connections)
        .after_connect(move |_, _| {
            connects.fetch_add(1, Ordering::Relaxed);
            Box::pin(async { Ok(()) })
        })
        .before_acquire(move |_, _| {
            counter.fetch_add(1, Ordering::Relaxed);
            Box::pin(async { Ok(true) })
        })
        .connect_with(postgres_options().await?)
        .await
        .unwrap();
    let store = polybus_sql::postgres(pool);
    store.migrate().await.unwrap();
    sqlx::raw_sql("CREATE TABLE effect (name TEXT NOT NULL)").execute(store.pool()).await.unwrap();
    Some((if hands_over { store.hand_over_connections() } else { store }, given_out))
}

async fn insert(tx: &mut PostgresTx, name: &str) {
    sqlx::query("INSERT INTO effect VALUES ($1)").bind(name.to_owned()).execute(&mut **tx).await.unwrap();
}

fn handler(store: &Postgres) -> impl Handler + use<> {
    Inbox::new(store, "billing").handler((), async |(), mut tx: PostgresTx, _cx, msg: Envelope| {
        insert(&mut tx, &msg.id).await;
        Ok(tx)
    })
}

async fn handle(handler: &impl Handler, ids: impl IntoIterator<Item = u32>) {
    for id in ids {
        let message = Envelope::new("t", "x").source("/shop").id(id.to_string());
        handler.handle(HandlerContext::detached(&Source::queue("q"), 1), message).await.unwrap();
    }
}

async fn effects(pool: &PgPool) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM effect").fetch_one(pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_share_a_connection_for_a_while() {
    let Some((store, given_out)) = store(4, true).await else { return };
    let handler = handler(&store);
    handle(&handler, [0]).await;
    let before = given_out.load(Ordering::Relaxed);
    handle(&handler, 1..=300).await;
    let given_out = given_out.load(Ordering::Relaxed) - before;
    // A busy machine may let a connection wait too long now and then.
    assert!((2..150).contains(&given_out), "for 300 messages the pool gave out {given_out} connections");
    assert_eq!(effects(store.pool()).await, 301);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_being_asked_for_each_message_goes_by_way_of_the_pool() {
    let Some((store, given_out)) = store(4, false).await else { return };
    let handler = handler(&store);
    handle(&handler, [0]).await;
    let before = given_out.load(Ordering::Relaxed);
    handle(&handler, 1..=50).await;
    let given_out = given_out.load(Ordering::Relaxed) - before;
    assert!(given_out >= 50, "for 50 messages the pool gave out {given_out} connections");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_goes_back_when_no_message_comes() {
    let Some((store, _)) = store(4, true).await else { return };
    handle(&handler(&store), 0..10).await;
    let pool = store.pool().clone();
    eventually("all are back", async || pool.num_idle() == pool.size() as usize).await;
    pool.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_at_the_pool_gets_a_turn() {
    let Some((store, _)) = store(1, true).await else { return };
    let handled = Arc::new(AtomicU32::new(0));
    let counter = handled.clone();
    let inbox = Inbox::new(&store, "billing");
    let busy = inbox.handler(counter, async |counter: Arc<AtomicU32>, tx: PostgresTx, _cx, _msg: Envelope| {
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(tx)
    });
    let stream = tokio::spawn(async move { handle(&busy, 0..u32::MAX).await });
    eventually("messages are handled", async || handled.load(Ordering::Relaxed) > 0).await;
    for _ in 0..20 {
        let conn = store.pool().acquire().await.unwrap();
        drop(conn);
    }
    assert!(!stream.is_finished());
    let handled = handled.load(Ordering::Relaxed);
    assert!(handled < 20 * 10, "whoever waited at the pool waited for {} messages each time", handled / 20);
    stream.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_died_while_it_waited_costs_no_message() {
    let Some((store, _)) = store(4, true).await else { return };
    let handler = handler(&store);
    let other = PgPool::connect_with((*store.pool().connect_options()).clone()).await.unwrap();
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE pid <> pg_backend_pid() AND state = 'idle' AND query = 'COMMIT'";
    let mut killed = 0;
    for id in 0..30 {
        handle(&handler, [id]).await;
        let count: i64 = sqlx::query_scalar(kill).fetch_one(&other).await.unwrap();
        killed += count;
    }
    assert!(killed > 0, "no connection was killed while it waited");
    assert_eq!(effects(&other).await, 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_duplicate_or_a_failed_handler_leaves_nothing_open() {
    let Some((store, _)) = store(2, true).await else { return };
    handle(&handler(&store), [1, 1, 1]).await;
    let failing = Inbox::new(&store, "failing").handler((), async |(), mut tx: PostgresTx, _cx, msg: Envelope| {
        insert(&mut tx, &msg.id).await;
        Err::<PostgresTx, _>("no".into())
    });
    for id in ["a", "b", "c"] {
        let message = Envelope::new("t", "x").source("/shop").id(id);
        let context = HandlerContext::detached(&Source::queue("q"), 1);
        assert!(failing.handle(context, message).await.is_err());
    }
    handle(&handler(&store), [2]).await;
    assert_eq!(effects(store.pool()).await, 2);
    let open = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'
        AND application_name = current_setting('application_name') AND query LIKE '%effect%'";
    let pool = store.pool().clone();
    eventually("no transaction is open", async || {
        sqlx::query_scalar::<_, i64>(open).fetch_one(&pool).await.unwrap() == 0
    })
    .await;
    let _ = store.inbox().marks(1, 10).await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), pool.close()).await.expect("the pool closes");
}
