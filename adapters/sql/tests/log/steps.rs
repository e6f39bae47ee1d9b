//! PostgreSQL: each step of the proof that readers miss nothing, and what is missed without it.

use polybus_patterns::{log::EventLog, store::LogStore};
use polybus_sql::Postgres;
use sqlx::{PgConnection, PgPool, Row};

use crate::{by_hand::*, support::*};

struct Log {
    store: Postgres,
    pool: PgPool,
    schema: String,
}

async fn log() -> Option<Log> {
    let store = crate::database::postgres().await?;
    store.migrate().await.unwrap();
    let pool = store.pool().clone();
    let schema = sqlx::query_scalar("SELECT current_schema()::text").fetch_one(&pool).await.unwrap();
    let log = Log { store, pool, schema };
    append(&log.store, counted("s", [1])).await.unwrap();
    Some(log)
}

impl Log {
    async fn head(&self, conn: &mut PgConnection) -> i64 {
        sqlx::query_scalar(of_schema(HEAD, &self.schema)).fetch_one(conn).await.unwrap()
    }

    async fn lowest(&self, conn: &mut PgConnection) -> Option<i64> {
        sqlx::query_scalar(of_schema(LOWEST, &self.schema)).fetch_one(conn).await.unwrap()
    }

    async fn between(&self, conn: &mut PgConnection, behind: i64, most: i64) -> Vec<i64> {
        let rows = sqlx::query(of_schema(BETWEEN, &self.schema)).bind(behind).bind(most).fetch_all(conn).await;
        rows.unwrap().iter().map(|row| row.get(0)).collect()
    }

    /// Ours.
    async fn read(&self, behind: i64) -> Vec<i64> {
        let page = self.store.log().read_all(behind, 100).await.unwrap();
        page.events.iter().map(|event| event.position).collect()
    }

    async fn open(&self, stream: &str) -> (sqlx::Transaction<'static, sqlx::Postgres>, i64) {
        let mut tx = self.pool.begin().await.unwrap();
        let appended = EventLog::new(&self.store).append(&mut tx, counted(stream, [1])).await.unwrap();
        (tx, appended.positions[0])
    }
}

#[tokio::test]
async fn a_reader_without_floors_passes_what_is_not_committed_yet() {
    let Some(log) = log().await else { return };
    let (open, early) = log.open("a").await;
    let late = append(&log.store, counted("b", [1])).await.unwrap().positions[0];
    let mut conn = log.pool.acquire().await.unwrap();
    let naive = log.between(&mut conn, 1, i64::MAX).await;
    assert_eq!((naive, log.read(1).await), (vec![late], vec![]), "by hand, ours");
    open.commit().await.unwrap();
    let naive = log.between(&mut conn, late, i64::MAX).await;
    assert_eq!((naive, log.read(1).await), (vec![], vec![early, late]), "{early} is missed by hand");
}

#[tokio::test]
async fn a_reader_with_one_snapshot_passes_what_was_committed_meanwhile() {
    let Some(log) = log().await else { return };
    let (open, early) = log.open("a").await;
    let late = append(&log.store, counted("b", [1])).await.unwrap().positions[0];
    let mut tx = log.pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    let head = log.head(&mut tx).await;
    open.commit().await.unwrap();
    assert_eq!(log.lowest(&mut tx).await, None);
    assert_eq!(log.between(&mut tx, 1, head).await, [late], "{early} is missed by hand");
    tx.commit().await.unwrap();
    assert_eq!(log.read(1).await, [early, late]);
}

#[tokio::test]
async fn floors_that_are_read_after_the_events_are_too_late() {
    let Some(log) = log().await else { return };
    let (open, early) = log.open("a").await;
    let late = append(&log.store, counted("b", [1])).await.unwrap().positions[0];
    let mut conn = log.pool.acquire().await.unwrap();
    let head = log.head(&mut conn).await;
    let events = log.between(&mut conn, 1, head).await;
    open.commit().await.unwrap();
    assert_eq!((log.lowest(&mut conn).await, events), (None, vec![late]), "{early} is missed by hand");
    assert_eq!(log.read(1).await, [early, late]);
}

#[tokio::test]
async fn a_cursor_at_the_head_passes_what_nobody_has_read() {
    let Some(log) = log().await else { return };
    let (open, position) = log.open("a").await;
    let mut conn = log.pool.acquire().await.unwrap();
    let head = log.head(&mut conn).await;
    let lowest = log.lowest(&mut conn).await.unwrap();
    assert_eq!(log.between(&mut conn, 1, lowest).await, [0; 0]);
    open.commit().await.unwrap();
    assert_eq!(log.between(&mut conn, head, i64::MAX).await, [0; 0], "{position} is missed by hand");
    assert_eq!(log.read(1).await, [position]);
}

#[tokio::test]
async fn the_order_of_transactions_is_not_that_of_a_stream() {
    let Some(log) = log().await else { return };
    let mut early = log.pool.begin().await.unwrap();
    sqlx::raw_sql("CREATE TABLE business (n INT); SELECT pg_current_xact_id()").execute(&mut *early).await.unwrap();
    let first = append(&log.store, counted("a", [1])).await.unwrap().positions[0];
    let second = EventLog::new(&log.store).append(&mut early, counted("a", [2])).await.unwrap().positions[0];
    let by_xmin = async || -> Vec<i64> {
        let mut conn = log.pool.acquire().await.unwrap();
        let query = sqlx::query(of_schema(BY_XMIN, &log.schema)).bind(0_i64).bind(0_i64);
        query.fetch_all(&mut *conn).await.unwrap().iter().map(|row| row.get(2)).collect()
    };
    assert!(by_xmin().await.len() <= 1, "what came after the open transaction is not read");
    early.commit().await.unwrap();
    // Transactions of others hold it back as well, in whatever database.
    eventually("the others have ended", async || by_xmin().await.len() == 3).await;
    let versions = by_xmin().await;
    assert_eq!(versions, [1, 2, 1], "versions of s, a and a: out of stream order by hand");
    assert_eq!(log.read(1).await, [first, second]);
}

#[tokio::test]
async fn a_position_that_is_drawn_before_the_floor_is_passed() {
    let Some(log) = log().await else { return };
    let mut open = log.pool.begin().await.unwrap();
    let early: i64 = sqlx::query_scalar("SELECT nextval('polybus_log_position')").fetch_one(&mut *open).await.unwrap();
    let late = append(&log.store, counted("b", [1])).await.unwrap().positions[0];
    let read = log.read(1).await;
    sqlx::raw_sql(
        "SELECT pg_advisory_xact_lock_shared(tag::bigint << 48 | last_value) FROM polybus_log, polybus_log_position",
    )
    .execute(&mut *open)
    .await
    .unwrap();
    sqlx::query(
        "INSERT INTO polybus_log_event (pos, stream, version, event_id, kind, written_at, head, data)
        OVERRIDING SYSTEM VALUE SELECT $1, 'a', 1, 'x', kind, written_at, head, data FROM polybus_log_event LIMIT 1",
    )
    .bind(early)
    .execute(&mut *open)
    .await
    .unwrap();
    open.commit().await.unwrap();
    assert_eq!((read, log.read(late).await), (vec![late], vec![]), "{early} is missed");
}

/// The same of the function: its floor is there before its position.
#[tokio::test]
async fn the_function_has_its_floor_below_its_first_position() {
    let Some(log) = log().await else { return };
    let (open, position) = log.open("a").await;
    let mut conn = log.pool.acquire().await.unwrap();
    let lowest = log.lowest(&mut conn).await.unwrap();
    assert!(lowest < position, "{lowest} {position}");
    open.rollback().await.unwrap();
    assert_eq!(log.lowest(&mut conn).await, None);
}
