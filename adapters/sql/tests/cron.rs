//! Schedules on every database: in many processes, over changes of the clock, after downtime, in rolling deployments.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod database;
#[path = "../../../patterns/tests/cron_table/mod.rs"]
mod cron_table;

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use cron_table::{CASES, Case};
use database::{TestDatabase, eventually};
use polybus_core::{
    ErrorKind, Event, Result,
    time::{OffsetDateTime, format_description::well_known::Rfc3339},
};
use polybus_patterns::{
    cron::{Cron, Missed, Overlap},
    jobs::{Job, JobReport, JobWorker, Jobs, NewJob},
    store::{JobFilter, JobState, JobStore, StoredJob},
};
use serde::{Deserialize, Serialize};
use tokio::{sync::oneshot, task::JoinHandle};

on_both![
    eight_processes_fire_each_time_once_over_three_days,
    after_downtime_each_policy_has_its_own_jobs,
    a_clock_that_is_set_back_fires_nothing_again,
    a_paused_schedule_lets_its_times_pass_and_runs_by_hand,
    a_last_job_that_is_not_finished_holds_up_the_next,
    a_changed_schedule_is_applied_once_and_a_roll_back_has_its_own_again,
    schedules_that_cannot_be_are_refused,
];

#[derive(Serialize, Deserialize)]
struct Nightly {
    report: String,
}

impl Event for Nightly {
    const TYPE: &'static str = "report.nightly";
    const VERSION: u32 = 1;
}

impl Job for Nightly {}

fn nightly() -> Nightly {
    Nightly { report: "sales".into() }
}

const HOUR: i64 = 3_600_000_000;

fn micros(text: &str) -> i64 {
    let text = text.replace('Z', ":00Z");
    i64::try_from(OffsetDateTime::parse(&text, &Rfc3339).unwrap().unix_timestamp_nanos() / 1000).unwrap()
}

/// A process that has schedules and no queue.
struct Process {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<JobReport>>,
}

impl Process {
    fn new<S: JobStore>(store: &S, crons: impl IntoIterator<Item = Cron>) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let worker = crons.into_iter().fold(JobWorker::new(store), JobWorker::cron);
        let task = tokio::spawn(worker.run(async { drop(stopped.await) }));
        Self { stop, task }
    }

    async fn stop(self) {
        drop(self.stop);
        self.task.await.unwrap().unwrap();
    }
}

async fn jobs<S: JobStore>(store: &S, schedule: &str) -> Vec<StoredJob> {
    store.jobs().list(&JobFilter::default().schedule(schedule), 0, 10_000).await.unwrap()
}

/// The times that the jobs of a schedule are for.
async fn fired<S: JobStore>(store: &S, schedule: &str) -> Vec<i64> {
    let mut times: Vec<i64> = Vec::new();
    for job in jobs(store, schedule).await {
        let time = job.message().unwrap().time.unwrap();
        times.push(i64::try_from(time.unix_timestamp_nanos() / 1000).unwrap());
    }
    times.sort_unstable();
    times
}

async fn now<S: JobStore>(store: &S) -> i64 {
    store.schedules().list().await.unwrap().now
}

/// Moves the clock to this time, and tells the processes.
async fn move_to<S: TestDatabase + JobStore>(store: &S, time: i64) {
    store.move_clock(time - now(store).await);
    store.control().changes().committed();
}

async fn until_defined<S: JobStore>(store: &S, schedules: usize) {
    eventually("the schedules are written", async || store.schedules().list().await.unwrap().rows.len() == schedules)
        .await;
}

/// Waits until no schedule is due any more.
async fn until_none_is_due<S: JobStore>(store: &S) {
    eventually("no schedule is due", async || {
        let stored = store.schedules().list().await.unwrap();
        stored.rows.iter().all(|row| row.paused || row.next_at.is_none_or(|next| next > stored.now))
    })
    .await;
}

async fn eight_processes_fire_each_time_once_over_three_days<S: TestDatabase + JobStore>(store: S) {
    // One change of the clock for each zone here; the table has the other ones too.
    let begins: Vec<&str> = CASES.iter().map(|case| case.from).collect();
    let cases = |from: &str| -> Vec<(String, &'static Case)> {
        let of = CASES.iter().enumerate().filter(|(_, case)| case.from == from && case.fires.len() < 80);
        of.map(|(n, case)| (format!("case-{n}"), case)).collect()
    };
    let mut seen = std::collections::BTreeSet::new();
    for from in begins.into_iter().filter(|from| from.ends_with("T00:00Z")) {
        if !seen.insert(from) {
            continue;
        }
        let cases = cases(from);
        move_to(&store, micros(from)).await;
        for old in store.schedules().list().await.unwrap().rows {
            store.schedules().remove(&old.name).await.unwrap();
        }
        let crons = || {
            let cron = |(name, case): &(String, &'static Case)| {
                Cron::new(name.as_str(), case.spec, case.zone, nightly()).missed(Missed::All(1000))
            };
            cases.iter().map(cron).collect::<Vec<_>>()
        };
        let mut processes: Vec<Process> = (0..8).map(|_| Process::new(&store, crons())).collect();
        until_defined(&store, cases.len()).await;
        let until = micros(cases[0].1.until);
        let mut time = micros(from);
        while time < until {
            time = (time + 5 * HOUR).min(until);
            move_to(&store, time).await;
            until_none_is_due(&store).await;
            // One of them is killed, and another one starts.
            processes.remove(0).task.abort();
            processes.push(Process::new(&store, crons()));
        }
        for process in processes {
            process.stop().await;
        }
        for (name, case) in &cases {
            let expected: Vec<i64> = case.fires.iter().map(|at| micros(at)).collect();
            let in_time: Vec<i64> = fired(&store, name).await.into_iter().filter(|at| *at <= until).collect();
            assert_eq!(in_time, expected, "{} in {} from {from}", case.spec, case.zone);
        }
    }
}

async fn after_downtime_each_policy_has_its_own_jobs<S: TestDatabase + JobStore>(store: S) {
    let crons = || {
        let cron = |name: &str, missed| Cron::new(name, "0 * * * *", "UTC", nightly()).missed(missed);
        [cron("once", Missed::RunOnce), cron("all", Missed::All(5)), cron("skip", Missed::Skip)]
    };
    move_to(&store, micros("2026-03-01T00:30Z")).await;
    let process = Process::new(&store, crons());
    until_defined(&store, 3).await;
    process.stop().await;
    // Three days later, half past.
    move_to(&store, micros("2026-03-04T00:30Z")).await;
    let process = Process::new(&store, crons());
    until_none_is_due(&store).await;
    process.stop().await;
    assert_eq!(fired(&store, "once").await, [micros("2026-03-04T00:00Z")]);
    let hours: Vec<i64> = (0..5).rev().map(|n| micros("2026-03-04T00:00Z") - n * HOUR).collect();
    assert_eq!(fired(&store, "all").await, hours);
    assert_eq!(fired(&store, "skip").await, [0_i64; 0]);
    for row in store.schedules().list().await.unwrap().rows {
        assert_eq!(row.next_at, Some(micros("2026-03-04T01:00Z")), "{}", row.name);
    }
    let job = &jobs(&store, "once").await[0];
    assert_eq!((job.kind.as_str(), &job.data[..]), ("report.nightly", &br#"{"report":"sales"}"#[..]));
}

async fn a_clock_that_is_set_back_fires_nothing_again<S: TestDatabase + JobStore>(store: S) {
    let cron = || [Cron::new("hourly", "0 * * * *", "UTC", nightly()).missed(Missed::All(100))];
    move_to(&store, micros("2026-03-01T09:30Z")).await;
    let process = Process::new(&store, cron());
    until_defined(&store, 1).await;
    move_to(&store, micros("2026-03-01T10:10Z")).await;
    until_none_is_due(&store).await;
    // Two hours back, and every quarter of an hour forward again.
    for quarters in 0..12 {
        move_to(&store, micros("2026-03-01T08:10Z") + quarters * HOUR / 4).await;
        until_none_is_due(&store).await;
    }
    move_to(&store, micros("2026-03-01T11:10Z")).await;
    until_none_is_due(&store).await;
    process.stop().await;
    assert_eq!(fired(&store, "hourly").await, ["2026-03-01T10:00Z", "2026-03-01T11:00Z"].map(micros));
}

async fn a_paused_schedule_lets_its_times_pass_and_runs_by_hand<S: TestDatabase + JobStore>(store: S) {
    let schedules = Jobs::new(&store).admin().schedules();
    move_to(&store, micros("2026-03-01T09:30Z")).await;
    let process = Process::new(&store, [Cron::new("hourly", "0 * * * *", "UTC", nightly())]);
    until_defined(&store, 1).await;
    let upcoming = schedules.upcoming("hourly", 2).await.unwrap();
    assert_eq!(
        upcoming.iter().map(|time| time.at).collect::<Vec<_>>(),
        ["2026-03-01T10:00Z", "2026-03-01T11:00Z"].map(micros)
    );
    schedules.pause("hourly").await.unwrap();
    let refused = schedules.run_now("hourly").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
    move_to(&store, micros("2026-03-01T12:30Z")).await;
    schedules.resume("hourly").await.unwrap();
    schedules.run_now("hourly").await.unwrap();
    eventually("it runs by hand", async || jobs(&store, "hourly").await.len() == 1).await;
    move_to(&store, micros("2026-03-01T13:01Z")).await;
    until_none_is_due(&store).await;
    process.stop().await;
    let times = fired(&store, "hourly").await;
    assert_eq!((times.len(), times[1]), (2, micros("2026-03-01T13:00Z")), "{times:?}");
    assert!(times[0] >= micros("2026-03-01T12:30Z") && times[0] < micros("2026-03-01T13:00Z"));
    assert_eq!(schedules.pause("daily").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(schedules.remove("hourly").await.unwrap() && !schedules.remove("hourly").await.unwrap());
}

async fn a_last_job_that_is_not_finished_holds_up_the_next<S: TestDatabase + JobStore>(store: S) {
    let cron = |name: &str, overlap| {
        Cron::new(name, "0 * * * *", "UTC", NewJob::of(&nightly()).queue(name)).missed(Missed::All(9)).overlap(overlap)
    };
    move_to(&store, micros("2026-03-01T09:30Z")).await;
    let overlaps = [cron("allow", Overlap::Allow), cron("skip", Overlap::Skip), cron("queue", Overlap::Queue)];
    let process = Process::new(&store, overlaps);
    until_defined(&store, 3).await;
    for hour in 10..13 {
        move_to(&store, micros(&format!("2026-03-01T{hour}:01Z"))).await;
        until_none_is_due(&store).await;
    }
    let times = |hours: &[i64]| hours.iter().map(|n| micros("2026-03-01T00:00Z") + n * HOUR).collect::<Vec<_>>();
    assert_eq!(fired(&store, "allow").await, times(&[10, 11, 12]));
    assert_eq!(fired(&store, "skip").await, times(&[10]));
    assert_eq!(fired(&store, "queue").await, times(&[10]));
    // Once the last one is finished, the next of those that wait is written.
    for left in [2, 3] {
        let table = store.jobs();
        let waiting = JobFilter::default().state(JobState::Available);
        assert!(table.discard(&waiting.clone().schedule("queue"), "done").await.unwrap() > 0);
        store.control().changes().committed();
        eventually("the next one is written", async || fired(&store, "queue").await.len() == left).await;
    }
    assert_eq!(fired(&store, "queue").await, times(&[10, 11, 12]));
    process.stop().await;
}

async fn a_changed_schedule_is_applied_once_and_a_roll_back_has_its_own_again<S: TestDatabase + JobStore>(store: S) {
    let old = || [Cron::new("report", "0 4 * * *", "UTC", nightly())];
    let new = || [Cron::new("report", "0 5 * * *", "UTC", nightly())];
    let stored = async || store.schedules().list().await.unwrap().rows.remove(0);
    let old_process = Process::new(&store, old());
    until_defined(&store, 1).await;
    let new_process = Process::new(&store, new());
    eventually("the new one is applied", async || stored().await.spec == "0 5 * * *").await;
    let version = stored().await.version;
    // An old process that starts again changes nothing, as long as a new one lives.
    let restarted = Process::new(&store, old());
    let count = AtomicU32::new(0);
    eventually("they have looked several times", async || count.fetch_add(1, Ordering::Relaxed) > 60).await;
    assert_eq!(stored().await.version, version);
    // The deployment is rolled back: no new process is left.
    new_process.stop().await;
    store.move_clock(60_000_000);
    eventually("the old one is applied again", async || stored().await.spec == "0 4 * * *").await;
    old_process.stop().await;
    restarted.stop().await;
}

async fn schedules_that_cannot_be_are_refused<S: TestDatabase + JobStore>(store: S) {
    let cron = |spec: &str, zone: &str| Cron::new("report", spec, zone, nightly());
    for (crons, what) in [
        (vec![cron("61 * * * *", "UTC")], "pattern"),
        (vec![cron("0 0 31 2 *", "UTC")], "never"),
        (vec![cron("0 0 * * *", "Mars/Olympus")], "time zone"),
        (vec![cron("0 0 * * *", "UTC"), cron("0 1 * * *", "UTC")], "twice"),
        (vec![Cron::new("", "0 0 * * *", "UTC", nightly())], "name"),
        (vec![Cron::new("a", "0 0 * * *", "UTC", NewJob::of(&nightly()).queue("No"))], "queue"),
        (
            vec![Cron::new(
                "a",
                "0 0 * * *",
                "UTC",
                NewJob::of(&nightly()).unique(polybus_patterns::jobs::Unique::UntilDone),
            )],
            "overlap",
        ),
    ] {
        let worker = crons.into_iter().fold(JobWorker::new(&store), JobWorker::cron);
        let error = tokio::time::timeout(Duration::from_secs(60), worker.run(std::future::pending())).await;
        let error = error.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.to_string().contains(what), "{what}: {error}");
    }
    assert!(store.schedules().list().await.unwrap().rows.is_empty());
}
