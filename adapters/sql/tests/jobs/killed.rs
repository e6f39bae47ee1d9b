//! A worker process that is killed with all its jobs claimed, twice.

use std::{process::Stdio, time::Duration};

use polybus_core::Source;
use polybus_patterns::{
    jobs::{Job, JobWorker, Jobs, NewJob},
    store::JobStore,
};
use polybus_sql::{Db, MySql, Postgres, Sqlite};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::*;

/// Where the process that is killed finds its jobs.
const DATABASE: &str = "POLYBUS_TEST_KILLED_DATABASE";
const CLAIMED: usize = 100;
/// Of them, those that have two attempts.
const OF_TWO_ATTEMPTS: usize = 10;

on_both![all_run_again_with_exact_attempts];

/// A store that another process can open.
trait Shared: TestDatabase + JobStore {
    async fn url(&self) -> String;
}

impl Shared for Sqlite {
    async fn url(&self) -> String {
        let file: String = sqlx::query_scalar("SELECT file FROM pragma_database_list WHERE name = 'main'")
            .fetch_one(self.pool())
            .await
            .unwrap();
        format!("sqlite:{file}")
    }
}

impl Shared for Postgres {
    async fn url(&self) -> String {
        let schema: String = sqlx::query_scalar("SELECT current_schema()::text").fetch_one(self.pool()).await.unwrap();
        let url = std::env::var("POLYBUS_POSTGRES_URL").unwrap();
        let sign = if url.contains('?') { '&' } else { '?' };
        format!("{url}{sign}options[search_path]={schema}")
    }
}

impl Shared for MySql {
    async fn url(&self) -> String {
        let database: String = sqlx::query_scalar("SELECT DATABASE()").fetch_one(self.pool()).await.unwrap();
        let url = std::env::var("POLYBUS_MARIADB_URL").unwrap();
        format!("{}/{database}", url.rsplit_once('/').unwrap().0)
    }
}

async fn all_run_again_with_exact_attempts<S: Shared>(store: S) {
    let (jobs, url) = (Jobs::new(&store), store.url().await);
    let job = |n: usize| {
        let attempts = if n < OF_TWO_ATTEMPTS { 2 } else { Numbered::MAX_ATTEMPTS };
        NewJob::of(&numbered(n as u32)).max_attempts(attempts)
    };
    let enqueued = jobs.submit_many((0..CLAIMED).map(job)).await.unwrap();
    for _ in 0..2 {
        kill_with_all_claimed(&url).await;
        eventually("they are free again", async || {
            store.jobs().rescue("worker-lost: killed", 1_000).await.unwrap();
            count(&store, polybus_patterns::store::JobState::Running).await == 0
        })
        .await;
    }

    let log = Log::new();
    let running = run(worker(&store).on(log.clone(), async |log: Log<(u32, u32, u64)>, cx, job: Numbered| {
        log.add((job.n, cx.attempt(), cx.id().unwrap_or_default() as u64));
        Ok(())
    }));
    eventually("those with attempts left are completed", async || {
        count(&store, COMPLETED).await == CLAIMED - OF_TWO_ATTEMPTS
    })
    .await;
    assert_eq!(running.stop().await.completed, (CLAIMED - OF_TWO_ATTEMPTS) as u64);
    let mut ran = log.entries();
    ran.sort_unstable();
    let wanted = enqueued.iter().enumerate().skip(OF_TWO_ATTEMPTS).map(|(n, job)| (n as u32, 3, job.id as u64));
    assert_eq!(ran, wanted.collect::<Vec<_>>(), "number, attempt and id of what ran at the end");
    for job in &enqueued[..OF_TWO_ATTEMPTS] {
        let job = show(&store, job.id).await;
        assert_eq!((job.state, job.attempt), (DISCARDED, 2), "{:?}", job.last_error);
        assert!(job.last_error.unwrap().starts_with("worker-lost"));
    }
}

/// Starts a worker in a process of its own, and kills it (SIGKILL) when it runs all jobs.
async fn kill_with_all_claimed(url: &str) {
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed::process_that_is_killed", "--ignored", "--nocapture"])
        .env(DATABASE, url)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let claimed = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("all are claimed") {
                return;
            }
        }
        panic!("the process has ended before it had all jobs");
    };
    tokio::time::timeout(PATIENCE, claimed).await.expect("the process claims all jobs");
    child.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it is started by other tests, to be killed"]
async fn process_that_is_killed() {
    let Ok(url) = std::env::var(DATABASE) else { return };
    let store = Db::connect(&url).await.unwrap();
    let begun = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let worker = JobWorker::new(&store).queue("default", CLAIMED).lease(Duration::from_secs(1)).on(
        begun,
        async |begun, cx, _job: Numbered| {
            assert_eq!(*cx.source(), Source::queue("default"));
            if begun.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1 == CLAIMED {
                println!("all are claimed");
            }
            std::future::pending::<()>().await;
            Ok(())
        },
    );
    worker.run(std::future::pending()).await.unwrap();
}
