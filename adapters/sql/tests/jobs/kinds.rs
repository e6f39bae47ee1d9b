//! Kinds, versions and arguments that a program does not know, and what it is refused.

use std::time::Duration;

use polybus_core::{ErrorKind, Event};
use polybus_patterns::{
    jobs::{Job, JobWorker, Jobs, NewJob},
    store::JobState,
    types::Types,
};
use serde::{Deserialize, Serialize};

use polybus_patterns::store::JobStore;

use crate::support::*;

on_both![
    an_unknown_kind_stays_for_a_program_that_knows_it,
    a_newer_version_stays_and_an_older_one_is_made_newer,
    arguments_that_cannot_be_read_are_discarded_and_run_after_a_fix,
    what_cannot_be_a_job_is_refused,
    settings_that_cannot_work_are_refused,
];

#[derive(Serialize, Deserialize)]
struct Other {
    text: String,
}

impl Event for Other {
    const TYPE: &'static str = "test.other";
    const VERSION: u32 = 1;
}

impl Job for Other {}

/// What a newer program makes of [`Numbered`].
#[derive(Serialize, Deserialize)]
struct NumberedTwo {
    n: u32,
    unit: String,
}

impl Event for NumberedTwo {
    const TYPE: &'static str = Numbered::TYPE;
    const VERSION: u32 = 2;
}

impl Job for NumberedTwo {}

async fn an_unknown_kind_stays_for_a_program_that_knows_it<S: TestDatabase + JobStore>(store: S) {
    let jobs = Jobs::new(&store);
    let other = jobs.submit(NewJob::of(&Other { text: "a".into() }).max_attempts(1)).await.unwrap();
    let known = jobs.submit(numbered(1)).await.unwrap();
    let old = run(worker(&store).on((), async |(), _cx, _job: Numbered| Ok(())));
    until(&store, known.id, COMPLETED).await;
    let put_off = until(&store, other.id, JobState::Scheduled).await;
    assert_eq!(put_off.attempt, 0, "it was not tried");
    assert!(put_off.last_error.as_deref().is_some_and(|text| text.starts_with("unknown-type")), "{put_off:?}");
    let wait = put_off.run_at - put_off.created_at;
    assert!((25_000_000..150_000_000).contains(&wait), "{wait}");
    assert_eq!(old.stop().await.snoozed, 1);
    let new = run(worker(&store).on((), async |(), cx, job: Other| {
        assert_eq!((job.text.as_str(), cx.attempt()), ("a", 1));
        Ok(())
    }));
    store.move_clock(31_000_000);
    until(&store, other.id, COMPLETED).await;
    new.stop().await;
}

async fn a_newer_version_stays_and_an_older_one_is_made_newer<S: TestDatabase + JobStore>(store: S) {
    let jobs = Jobs::new(&store);
    let newer = jobs.submit(NewJob::of(&NumberedTwo { n: 1, unit: "kg".into() })).await.unwrap();
    let old = run(worker(&store).on((), async |(), _cx, _job: Numbered| Ok(())));
    let put_off = until(&store, newer.id, JobState::Scheduled).await;
    assert!(put_off.last_error.as_deref().is_some_and(|text| text.starts_with("unknown-version")), "{put_off:?}");
    old.stop().await;
    let older = jobs.submit(numbered(2)).await.unwrap();
    let types = Types::new().event::<NumberedTwo>().upcast::<NumberedTwo>(1, |mut json, _| {
        json["unit"] = "g".into();
        Ok(json)
    });
    let log = Log::new();
    let new = run(worker(&store).types(types).on(log.clone(), async |log, _cx, job: NumberedTwo| {
        log.add((job.n, job.unit));
        Ok(())
    }));
    store.move_clock(31_000_000);
    until(&store, newer.id, COMPLETED).await;
    until(&store, older.id, COMPLETED).await;
    new.stop().await;
    let mut ran = log.entries();
    ran.sort();
    assert_eq!(ran, [(1, "kg".to_owned()), (2, "g".to_owned())]);
}

async fn arguments_that_cannot_be_read_are_discarded_and_run_after_a_fix<S: TestDatabase + JobStore>(store: S) {
    /// The same kind and version, written by a program with a mistake.
    #[derive(Serialize, Deserialize)]
    struct Mistaken {
        n: String,
    }
    impl Event for Mistaken {
        const TYPE: &'static str = Numbered::TYPE;
        const VERSION: u32 = 1;
    }
    impl Job for Mistaken {}
    /// The fix reads both.
    #[derive(Serialize, Deserialize)]
    struct Lenient {
        n: serde_json::Value,
    }
    impl Event for Lenient {
        const TYPE: &'static str = Numbered::TYPE;
        const VERSION: u32 = 1;
    }
    impl Job for Lenient {}

    let jobs = Jobs::new(&store);
    let job = jobs.submit(Mistaken { n: "secret".into() }).await.unwrap();
    let strict = run(worker(&store).on((), async |(), _cx, _job: Numbered| Ok(())));
    let discarded = until(&store, job.id, DISCARDED).await;
    strict.stop().await;
    let error = discarded.last_error.unwrap();
    assert!(error.starts_with("malformed") && !error.contains("secret"), "{error}");
    assert_eq!(discarded.attempt, 1, "at once");
    let lenient = run(worker(&store).on((), async |(), _cx, job: Lenient| {
        assert_eq!(job.n, "secret");
        Ok(())
    }));
    jobs.admin().retry(&polybus_patterns::store::JobFilter::ids([job.id])).await.unwrap();
    until(&store, job.id, COMPLETED).await;
    lenient.stop().await;
}

async fn what_cannot_be_a_job_is_refused<S: TestDatabase + JobStore>(store: S) {
    let jobs = Jobs::new(&store).max_job(1000);
    let kind = async |job: NewJob| jobs.submit(job).await.unwrap_err();
    let large = kind(NewJob::of(&Other { text: "x".repeat(1000) })).await;
    assert_eq!(large.kind(), ErrorKind::PayloadTooLarge, "{large}");
    assert!(large.to_string().contains("1000 are taken"), "{large}");
    for (job, what) in [
        (NewJob::of(&numbered(1)).queue("No Such Queue"), "queue"),
        (NewJob::of(&numbered(1)).max_attempts(0), "max_attempts"),
        (NewJob::of(&numbered(1)).delay(Duration::MAX), "ten years"),
        (NewJob::of(&numbered(1)).unique(polybus_patterns::jobs::Unique::For(Duration::ZERO)), "no time"),
    ] {
        let error = kind(job).await;
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.to_string().contains(what), "{what}: {error}");
        assert_eq!(error.context("kind"), Some(Numbered::TYPE), "{error}");
    }
    assert!(store.jobs().list(&Default::default(), 0, 10).await.unwrap().is_empty(), "nothing was written");
    let admin = jobs.admin();
    for refused in [
        admin.cancel(&Default::default()).await,
        admin.discard(&Default::default(), "").await,
        admin.delete(&Default::default()).await,
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}

async fn settings_that_cannot_work_are_refused<S: TestDatabase + JobStore>(store: S) {
    let stop = || std::future::ready(());
    let on = |worker: JobWorker<S>| worker.on((), async |(), _cx, _job: Numbered| Ok(()));
    let new = || JobWorker::new(&store);
    for (worker, what) in [
        (new().queue("a", 1), "no handler"),
        (on(new()), "no queue"),
        (on(on(new().queue("a", 1))), "two handlers"),
        (on(new().queue("a", 1).queue("a", 2)), "twice"),
        (on(new().queue("a", 0)), "concurrency"),
        (on(new().queue("A b", 1)), "job queue"),
        (on(new().queue("a", 1).lease(Duration::from_millis(999))), "lease"),
    ] {
        let error = worker.run(stop()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.to_string().contains(what), "{what}: {error}");
    }
    let untouched = store.with_prefix("nothing_");
    let missing = JobWorker::new(&untouched).queue("a", 1).on((), async |(), _cx, _job: Numbered| Ok(()));
    let missing = missing.run(std::future::pending()).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::ConfigInvalid, "{missing}");
}
