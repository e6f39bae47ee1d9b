//! Lists of jobs.

use polybus_patterns::store::{JobEnd, JobFilter, JobOutcome, JobState, JobStore, NewJobRow};

use super::{JobsUnderTest, claim, delayed, end, filter, ids, job, listed, write_new};
use crate::{
    Outcome, ensure_eq,
    stores::{
        cx::{StoreCx, StoreOf},
        scenario::{StoreScenario, store_scenario},
    },
};

pub(super) fn all<T: JobsUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario("jobs/list-filters", "Every condition of a filter must hold.", filters),
        store_scenario("jobs/list-pages", "Pages have every job once, whether it is finished or not.", pages),
    ]
}

async fn kinds_of<T: JobsUnderTest>(store: &StoreOf<T>, filter: &JobFilter) -> Outcome<Vec<String>> {
    Ok(listed(&*store.jobs(), filter).await?.into_iter().map(|job| job.kind).collect())
}

async fn filters<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let of = |kind: &str, queue: &str, schedule: Option<&str>| NewJobRow {
        queue: queue.to_owned(),
        schedule: schedule.map(str::to_owned),
        ..job(kind)
    };
    // Two that will be discarded, one completed, one running, one that waits, and one that is scheduled.
    let first = [of("a", "q", None), of("b", "q", Some("s")), of("b", "q", None), of("c", "q", None)];
    let ids_of = write_new::<T>(&store, &first).await?;
    let claimed = claim::<T>(&store, 4).await?;
    ensure_eq!(claimed.len(), 4, "jobs claimed");
    let failed =
        |error: &str| JobEnd::Finished { outcome: JobOutcome::Discarded, result: None, error: Some(error.to_owned()) };
    end::<T>(&store, &claimed[0], failed("100%: it is broken")).await?;
    end::<T>(&store, &claimed[1], failed("100 x")).await?;
    end::<T>(&store, &claimed[2], super::finished(JobOutcome::Completed)).await?;
    write_new::<T>(&store, &[of("a", "other", Some("s")), NewJobRow { queue: "other".into(), ..delayed("d", 600) }])
        .await?;
    let text = |text: &str| Some(text.to_owned());
    let cases: [(JobFilter, &[&str]); 16] = [
        (JobFilter::default(), &["a", "b", "b", "c", "a", "d"]),
        (filter(|f| f.kind = text("b")), &["b", "b"]),
        (filter(|f| f.kind = text("B")), &[]),
        (filter(|f| f.queue = text("q")), &["a", "b", "b", "c"]),
        (filter(|f| f.schedule = text("s")), &["b", "a"]),
        (filter(|f| f.error = text("100")), &["a", "b"]),
        (filter(|f| f.error = text("100%")), &["a"]),
        (filter(|f| f.error = text("100_")), &[]),
        (filter(|f| f.state = Some(JobState::Running)), &["c"]),
        (filter(|f| f.state = Some(JobState::Scheduled)), &["d"]),
        (filter(|f| f.state = Some(JobState::Available)), &["a"]),
        (filter(|f| f.state = Some(JobState::Finished(JobOutcome::Discarded))), &["a", "b"]),
        (filter(|f| f.state = Some(JobState::Finished(JobOutcome::Completed))), &["b"]),
        (filter(|f| (f.kind, f.queue) = (text("a"), text("other"))), &["a"]),
        (filter(|f| (f.schedule, f.state) = (text("s"), Some(JobState::Finished(JobOutcome::Discarded)))), &["b"]),
        (ids(&[ids_of[3], ids_of[0]]), &["a", "c"]),
    ];
    for (filter, wanted) in cases {
        ensure_eq!(kinds_of::<T>(&store, &filter).await?, wanted, "jobs of {filter:?}");
    }
    ensure_eq!(kinds_of::<T>(&store, &ids(&[])).await?.len(), 0, "jobs of no ids");
    Ok(())
}

async fn pages<T: JobsUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let jobs: Vec<NewJobRow> = (0..50).map(|n| job(n.to_string())).collect();
    let all = write_new::<T>(&store, &jobs).await?;
    let claimed = claim::<T>(&store, 40).await?;
    ensure_eq!(claimed.len(), 40, "jobs claimed");
    for (n, job) in claimed.iter().enumerate() {
        match n % 3 {
            0 => end::<T>(&store, job, super::finished(JobOutcome::Completed)).await?,
            1 => end::<T>(&store, job, super::again(0, true)).await?,
            _ => {}
        }
    }
    for size in [1, 7, 50, 1_000] {
        let (mut seen, mut after) = (Vec::new(), i64::MIN);
        loop {
            let page = store.jobs().list(&JobFilter::default(), after, size).await?;
            let Some(last) = page.last() else { break };
            ensure_eq!(page.len() as u32 <= size, true, "a page of {} with a limit of {size}", page.len());
            ensure_eq!(last.id > after, true, "a page goes on behind the one before");
            after = last.id;
            seen.extend(page.iter().map(|job| job.id));
        }
        ensure_eq!(seen, all, "jobs in pages of {size}");
    }
    Ok(())
}
