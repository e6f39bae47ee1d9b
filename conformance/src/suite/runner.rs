//! Runs one scenario on one target, or a whole suite.

use std::{
    fs::File,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use tokio::runtime::{Builder, Runtime};

use crate::{Clocks, Cx, Failure, Need, Outcome, Probe, Scenario, Target, report::Row};

/// What came of a scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScenarioVerdict {
    /// The promise holds.
    Passed,
    /// It does not: why.
    Failed(String),
    /// It was not run: why.
    Skipped(String),
    /// It failed, as it is known to: the reference.
    Deviation(String),
}

/// A verdict and how long it took.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Ran {
    /// What came of it.
    pub verdict: ScenarioVerdict,
    /// How long it took, by the world's clock.
    pub took: Duration,
}

/// What a clean-up may take.
const CLEANING: Duration = Duration::from_secs(300);
/// What the failures of a clean-up begin with.
pub(crate) const CLEAN_UP: &str = "clean-up";
/// What a scenario may take of its own time where time is free.
const FREE: Duration = Duration::from_secs(3600);
/// And of the world's: it runs on one thread that never waits.
const FREE_FOR_REAL: Duration = Duration::from_secs(600);
/// How many times its own time a scenario may take: that time is for an idle machine, and only a hang should end it.
const BUSY: u32 = 6;

/// Runs a scenario, whatever its needs are, and cleans up after it.
pub fn run_one(scenario: &Scenario, target: &Arc<Target>, probe: &Probe) -> Ran {
    let started = Instant::now();
    let turn = turn(scenario, target);
    let cx = Cx::new(target.clone(), probe.capabilities.clone());
    let (tx, rx) = mpsc::channel();
    let (run, free) = (scenario.clone(), target.clock == Clocks::Movable);
    let usual = scenario.timeout * target.allowance.max(1) * BUSY;
    let limit = if free { FREE } else { usual };
    let for_real = if free { FREE_FOR_REAL } else { usual + 2 * CLEANING };
    // In a thread of its own: a scenario that blocks its runtime must not hang the suite.
    std::thread::spawn(move || tx.send(on_runtime(free, attempt(run, cx, limit))));
    let outcome = match rx.recv_timeout(for_real) {
        Ok(outcome) => outcome,
        Err(mpsc::RecvTimeoutError::Timeout) => Err(Failure::new(format!("it blocks its thread for {for_real:?}"))),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(Failure::new("its runtime panicked")),
    };
    drop(turn);
    let verdict = match (outcome, target.deviations.get(scenario.name)) {
        (Ok(()), None) => ScenarioVerdict::Passed,
        (Err(e), None) => ScenarioVerdict::Failed(e.to_string()),
        (Err(_), Some(reference)) => ScenarioVerdict::Deviation(reference.clone()),
        (Ok(()), Some(reference)) => ScenarioVerdict::Failed(format!(
            "passed, though it is a known deviation ({reference}): remove the deviation"
        )),
    };
    Ran { verdict, took: started.elapsed() }
}

fn on_runtime(free: bool, run: impl Future<Output = Outcome> + Send + 'static) -> Outcome {
    let runtime = if free {
        Builder::new_current_thread().enable_all().start_paused(true).build()
    } else {
        Builder::new_multi_thread().worker_threads(2).enable_all().build()
    };
    let runtime: Runtime = runtime?;
    let outcome = runtime.block_on(run);
    runtime.shutdown_timeout(Duration::from_secs(5));
    outcome
}

async fn attempt(scenario: Scenario, cx: Cx, limit: Duration) -> Outcome {
    let mut task = tokio::spawn((scenario.run)(cx.clone()));
    let outcome = match tokio::time::timeout(limit, &mut task).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(e)) => Err(Failure::new(panic_text(e))),
        Err(_) => {
            task.abort();
            let _ = task.await;
            Err(Failure::new(format!("not done within {limit:?}")))
        }
    };
    let cleaned = match tokio::time::timeout(CLEANING, tokio::spawn(async move { cx.clean_up().await })).await {
        Ok(Ok(cleaned)) => cleaned,
        Ok(Err(e)) => Err(Failure::new(panic_text(e))),
        Err(_) => Err(Failure::new("it hangs")),
    };
    outcome.and(cleaned.map_err(|e| e.during(CLEAN_UP)))
}

fn panic_text(e: tokio::task::JoinError) -> String {
    let Ok(panic) = e.try_into_panic() else { return "cancelled".into() };
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panicked: {}", text.unwrap_or_else(|| "no message".into()))
}

/// Waits until nobody else, in this process or another, is in the way on the same broker.
fn turn(scenario: &Scenario, target: &Target) -> Option<File> {
    let upstream = target.upstream.as_ref()?;
    let name: String = upstream.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let path = std::env::temp_dir().join(format!("polybus-conformance-{name}.lock"));
    let file = File::options().create(true).truncate(false).write(true).read(true).open(path).ok()?;
    if scenario.alone {
        file.lock().ok()?
    } else {
        file.lock_shared().ok()?
    }
    Some(file)
}

/// The scenarios that concern one target, in the order in which they should run.
#[derive(Clone)]
pub struct Suite {
    /// The target.
    pub target: Arc<Target>,
    /// What it says of itself, or why it is absent.
    pub probe: Result<Probe, String>,
    /// Each scenario and why it is not run, if it is not.
    pub scenarios: Vec<(Scenario, Option<String>)>,
}

impl Suite {
    /// Asks the target what it can do, and sorts the scenarios: the disturbing ones last.
    pub fn new(target: Target, scenarios: Vec<Scenario>) -> Self {
        if target.clock == Clocks::Real {
            crate::pace::start();
        }
        let target = Arc::new(target);
        let probe = crate::probe(&target);
        let concern = |s: Scenario| match &probe {
            Err(absent) => Some((s, Some(absent.clone()))),
            Ok(found) => match (s.needs)(&target, &found.capabilities) {
                Need::Run => Some((s, None)),
                Need::NotSupported(reason) => Some((s, Some(format!("not supported: {reason}")))),
                Need::NotConcerned => None,
            },
        };
        let mut scenarios: Vec<_> = scenarios.into_iter().filter_map(concern).collect();
        scenarios.sort_by_key(|(s, _)| s.alone);
        Self { target, probe, scenarios }
    }

    /// Runs those whose name contains `filter`, `threads` at a time and the disturbing ones alone. Calls `each` after each.
    pub fn run(&self, filter: &str, threads: usize, each: impl Fn(&Row) + Sync) -> Vec<Row> {
        let wanted = |s: &&(Scenario, Option<String>)| s.0.name.contains(filter);
        let all: Vec<&(Scenario, Option<String>)> = self.scenarios.iter().filter(wanted).collect();
        let (alone, beside): (Vec<_>, Vec<_>) = all.iter().copied().partition(|job| job.0.alone);
        let next = std::sync::atomic::AtomicUsize::new(0);
        let work = || {
            let mut rows = Vec::new();
            while let Some(job) = beside.get(next.fetch_add(1, std::sync::atomic::Ordering::SeqCst)) {
                rows.push(self.row(&job.0, job.1.as_deref()));
                rows.last().into_iter().for_each(&each);
            }
            rows
        };
        let mut rows: Vec<Row> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
            workers.into_iter().flat_map(|w| w.join().unwrap_or_default()).collect()
        });
        for (scenario, skipped) in alone {
            rows.push(self.row(scenario, skipped.as_deref()));
            rows.last().into_iter().for_each(&each);
        }
        let position = |row: &Row| all.iter().position(|(s, _)| s.name == row.name);
        rows.sort_by_key(position);
        rows
    }

    fn row(&self, scenario: &Scenario, skipped: Option<&str>) -> Row {
        let ran = match (skipped, &self.probe) {
            (None, Ok(probe)) => run_one(scenario, &self.target, probe),
            (reason, _) => {
                Ran { verdict: ScenarioVerdict::Skipped(reason.unwrap_or_default().into()), took: Duration::ZERO }
            }
        };
        Row { name: scenario.name.into(), doc: scenario.doc.into(), verdict: ran.verdict, took: ran.took }
    }
}
