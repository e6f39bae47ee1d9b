//! What many write by hand: a table, claims with SKIP LOCKED, and completions, in batches.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use sqlx::PgPool;

/// Loops that claim at once.
const LOOPS: usize = 2;
/// Jobs of one claim.
const BATCH: i64 = 100;

const TABLE: &str = "CREATE TABLE by_hand (
        id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, queue TEXT NOT NULL, state SMALLINT NOT NULL DEFAULT 0,
        priority SMALLINT NOT NULL DEFAULT 0, run_at TIMESTAMPTZ NOT NULL DEFAULT now(), attempt INT NOT NULL DEFAULT 0,
        locked_until TIMESTAMPTZ, finished_at TIMESTAMPTZ, kind TEXT NOT NULL, data BYTEA NOT NULL);
    CREATE INDEX by_hand_fetch ON by_hand (queue, priority, run_at, id) WHERE state = 0";

const CLAIM: &str = "UPDATE by_hand SET state = 2, attempt = attempt + 1, locked_until = now() + interval '60 s'
    WHERE id IN (SELECT id FROM by_hand WHERE queue = 'default' AND state = 0
        ORDER BY priority, run_at, id FOR UPDATE SKIP LOCKED LIMIT $1)
    RETURNING id, kind, data, attempt";

const COMPLETE: &str = "UPDATE by_hand SET state = 3, finished_at = now(), locked_until = NULL
    WHERE id = ANY ($1) AND state = 2";

pub(crate) struct ByHand(PgPool);

impl ByHand {
    pub(crate) async fn new(pool: &PgPool) -> Self {
        sqlx::raw_sql(TABLE).execute(pool).await.unwrap();
        Self(pool.clone())
    }

    pub(crate) async fn fill(&self, waiting: usize) {
        let fill = "INSERT INTO by_hand (queue, kind, data)
            SELECT 'default', 'invoice.send', convert_to(repeat('x', 100), 'UTF8') FROM generate_series(1, $1)";
        sqlx::query(fill).bind(waiting as i64).execute(&self.0).await.unwrap();
        sqlx::raw_sql("ANALYZE by_hand").execute(&self.0).await.unwrap();
        sqlx::raw_sql("CHECKPOINT").execute(&self.0).await.unwrap();
    }

    pub(crate) async fn clear(&self) {
        sqlx::raw_sql("TRUNCATE by_hand").execute(&self.0).await.unwrap();
    }

    /// Completes so many jobs. Jobs a second.
    pub(crate) async fn complete(&self, measured: usize) -> f64 {
        let (completed, started) = (Arc::new(AtomicUsize::new(0)), Instant::now());
        let mut loops = tokio::task::JoinSet::new();
        for _ in 0..LOOPS {
            let (pool, completed) = (self.0.clone(), completed.clone());
            loops.spawn(async move {
                while completed.load(Ordering::Relaxed) < measured {
                    let claimed: Vec<(i64, String, Vec<u8>, i32)> =
                        sqlx::query_as(CLAIM).bind(BATCH).fetch_all(&pool).await.unwrap();
                    let ids: Vec<i64> = claimed.iter().map(|job| job.0).collect();
                    let done = sqlx::query(COMPLETE).bind(&ids).execute(&pool).await.unwrap();
                    completed.fetch_add(done.rows_affected() as usize, Ordering::Relaxed);
                }
            });
        }
        loops.join_all().await;
        completed.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64()
    }
}
