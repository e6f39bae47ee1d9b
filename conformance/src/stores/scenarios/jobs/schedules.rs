//! Schedules: written by version, with their jobs.

use polybus_patterns::store::{JobOutcome, JobStore, NewJobRow, StoredSchedule};

use super::{JobsUnderTest, claim, end, finished, job, kinds, stored};
use crate::{
    Outcome, ensure, ensure_eq,
    stores::{
        cx::{StoreCx, StoreOf},
        scenario::{StoreScenario, store_scenario},
    },
};

pub(super) fn all<T: JobsUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario("jobs/schedule", "A schedule comes back as it was written, with its version and last job.", row),
        store_scenario("jobs/schedule-version", "Only the version that is stored is replaced.", version),
        store_scenario("jobs/schedule-raced", "Of eight processes that fire one time one writes its jobs.", raced),
        store_scenario("jobs/schedule-unfinished", "A schedule knows whether its last job is finished.", unfinished),
        store_scenario("jobs/schedule-removed", "A schedule that is removed leaves its jobs.", removed),
        store_scenario("jobs/schedule-atomic", "A schedule and its jobs are written together, or neither.", atomic),
    ]
}

fn schedule(name: &str) -> StoredSchedule {
    StoredSchedule { name: name.to_owned(), ..StoredSchedule::default() }
}

async fn read<T: JobsUnderTest>(store: &StoreOf<T>, name: &str) -> Outcome<Option<StoredSchedule>> {
    Ok(store.schedules().list().await?.rows.into_iter().find(|row| row.name == name))
}

fn of_schedule(name: &str) -> NewJobRow {
    NewJobRow { schedule: Some(name.to_owned()), ..job("fired") }
}

async fn row<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let table = store.schedules();
    ensure_eq!(table.list().await?.rows, [], "schedules of an empty table");
    let full = StoredSchedule {
        hash: "hash".to_owned(),
        spec: "*/5 * * * *".to_owned(),
        zone: "Europe/Berlin".to_owned(),
        kind: "nightly.report".to_owned(),
        queue: "reports".to_owned(),
        missed: "run once".to_owned(),
        overlap: "skip".to_owned(),
        next_at: Some(1_900_000_000_123_456),
        last_at: Some(1_800_000_000_000_001),
        paused: true,
        pending: "[1,2]".to_owned(),
        replaced: "older".to_owned(),
        ..schedule("näme '%'")
    };
    ensure_eq!(table.write(&full, &[]).await?, Some(Vec::new()), "the answer to a write without jobs");
    let wanted = StoredSchedule { version: 1, ..full.clone() };
    ensure_eq!(read::<T>(&store, &full.name).await?, Some(wanted.clone()), "the row");
    let jobs = [of_schedule(&full.name), of_schedule(&full.name)];
    let changed = StoredSchedule { next_at: None, last_at: None, paused: false, pending: String::new(), ..wanted };
    let Some(written) = table.write(&changed, &jobs).await? else {
        return Err(crate::Failure::new("the version that is stored was refused"));
    };
    ensure_eq!(written.iter().map(|job| job.is_new).collect::<Vec<_>>(), [true, true], "jobs written");
    let last_job = written.last().map(|job| job.id);
    let wanted = StoredSchedule { version: 2, last_job, is_unfinished: true, ..changed };
    ensure_eq!(read::<T>(&store, &full.name).await?, Some(wanted), "the row after its jobs");
    table.write(&schedule("a"), &[]).await?;
    table.write(&schedule("z"), &[]).await?;
    let names: Vec<String> = table.list().await?.rows.into_iter().map(|row| row.name).collect();
    ensure_eq!(names, ["a", "näme '%'", "z"], "the schedules by name");
    Ok(())
}

async fn version<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let table = store.schedules();
    let at = |version: i64, spec: &str| StoredSchedule { version, spec: spec.to_owned(), ..schedule("a") };
    // The version to write, whether it is written, and the spec that is stored then.
    let steps = [
        (1, false, None),
        (0, true, Some("1")),
        (0, false, Some("1")),
        (2, false, Some("1")),
        (1, true, Some("4")),
        (1, false, Some("4")),
        (2, true, Some("6")),
    ];
    for (n, (version, written, spec)) in steps.into_iter().enumerate() {
        let answer = table.write(&at(version, &n.to_string()), &[of_schedule("a")]).await?;
        ensure_eq!(answer.is_some(), written, "whether version {version} was written at step {n}");
        let stored = read::<T>(&store, "a").await?.map(|row| row.spec);
        ensure_eq!(stored.as_deref(), spec, "the spec that is stored at step {n}");
    }
    ensure_eq!(stored::<T>(&store).await?.len(), 3, "jobs of the three writes");
    ensure!(table.remove("a").await?, "it was not there");
    ensure_eq!(table.write(&at(3, "x"), &[of_schedule("a")]).await?, None, "the answer once it was removed");
    ensure_eq!(stored::<T>(&store).await?.len(), 3, "jobs once it was removed");
    Ok(())
}

async fn raced<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    const ROUNDS: i64 = 20;
    let store = cx.store().await?;
    let second = cx.second(&store).await?;
    for round in 0..ROUNDS {
        let mut processes = tokio::task::JoinSet::new();
        for n in 0..8 {
            let table = if n % 2 == 0 { store.schedules() } else { second.schedules() };
            let row = StoredSchedule { version: round, ..schedule("a") };
            processes.spawn(async move { table.write(&row, &[of_schedule("a")]).await });
        }
        let mut written = 0;
        while let Some(answer) = processes.join_next().await {
            written += usize::from(answer??.is_some());
        }
        ensure_eq!(written, 1, "processes that wrote version {round}");
    }
    ensure_eq!(stored::<T>(&store).await?.len() as i64, ROUNDS, "jobs");
    Ok(())
}

async fn unfinished<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let is_unfinished = async || Outcome::Ok(read::<T>(&store, "a").await?.is_some_and(|row| row.is_unfinished));
    store.schedules().write(&schedule("a"), &[]).await?;
    ensure!(!is_unfinished().await?, "a job that was never written is not finished");
    for version in 1..=3 {
        store.schedules().write(&StoredSchedule { version, ..schedule("a") }, &[of_schedule("a")]).await?;
        ensure!(is_unfinished().await?, "a job that waits is finished");
        let claimed = claim::<T>(&store, 10).await?;
        ensure_eq!(claimed.len(), 1, "jobs claimed");
        ensure!(is_unfinished().await?, "a job that runs is finished");
        let outcome = [JobOutcome::Completed, JobOutcome::Discarded, JobOutcome::Cancelled][version as usize - 1];
        end::<T>(&store, &claimed[0], finished(outcome)).await?;
        ensure!(!is_unfinished().await?, "a job that is {outcome:?} is not finished");
    }
    store.jobs().delete(&Default::default()).await?;
    ensure!(!is_unfinished().await?, "a job that is gone is not finished");
    Ok(())
}

async fn removed<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    store.schedules().write(&schedule("a"), &[of_schedule("a")]).await?;
    store.schedules().write(&schedule("b"), &[]).await?;
    ensure!(store.schedules().remove("a").await?, "it was not there");
    ensure!(!store.schedules().remove("a").await?, "it was there twice");
    let names: Vec<String> = store.schedules().list().await?.rows.into_iter().map(|row| row.name).collect();
    ensure_eq!(names, ["b"], "the schedules that are left");
    ensure_eq!(kinds(&claim::<T>(&store, 10).await?), ["fired"], "the jobs that are left");
    Ok(())
}

async fn atomic<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let table = store.schedules();
    table.write(&schedule("a"), &[]).await?;
    // Calls that are dropped at a random moment: the version and the number of jobs must rise together.
    let mut seen = 1;
    for _ in 0..30 {
        let row = StoredSchedule { version: seen, ..schedule("a") };
        let jobs = [of_schedule("a"), of_schedule("a")];
        let after = std::time::Duration::from_micros(cx.random(4_000));
        let _ = tokio::time::timeout(after, table.write(&row, &jobs)).await;
        // A statement that was sent before the call was dropped may still be on its way; this write is behind it.
        let now = read::<T>(&store, "a").await?.map_or(0, |row| row.version);
        let jobs = stored::<T>(&store).await?.len() as i64;
        let later = read::<T>(&store, "a").await?.map_or(0, |row| row.version);
        ensure!(jobs >= 2 * (now - 1) && jobs <= 2 * (later - 1), "{jobs} jobs with versions {now} and {later}");
        seen = later;
    }
    let row = StoredSchedule { version: read::<T>(&store, "a").await?.map_or(0, |row| row.version), ..schedule("a") };
    ensure!(table.write(&row, &[of_schedule("a"), of_schedule("a")]).await?.is_some(), "the last version was refused");
    let version = read::<T>(&store, "a").await?.map_or(0, |row| row.version);
    ensure_eq!(stored::<T>(&store).await?.len() as i64, 2 * (version - 1), "jobs of version {version}");
    Ok(())
}
