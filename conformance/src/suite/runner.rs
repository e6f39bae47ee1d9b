//! Running one scenario on one target, or a whole suite.

use std::{
    fs::File,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use tokio::runtime::{Builder, Runtime};

use crate::{ClockKind, Cx, Failure, Need, Outcome, Probe, Scenario, ScenarioResult, Target};

/// The result of a scenario on a target.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScenarioVerdict {
    /// The promise holds.
    Passed,
    /// The promise does not hold, for this reason.
    Failed(String),
    /// The scenario was not run, for this reason.
    Skipped(String),
    /// The scenario failed, as is known: where that is documented.
    Deviation(String),
}

/// One run of a scenario.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ScenarioRun {
    /// Whether the promise holds.
    pub verdict: ScenarioVerdict,
    /// How long it took, by the real clock.
    pub took: Duration,
}

/// The limit for the clean-up after a scenario.
const CLEANING: Duration = Duration::from_secs(300);
/// The word with which the failures of a clean-up begin.
pub(crate) const CLEAN_UP: &str = "clean-up";
/// The limit for a scenario on the paused clock, by that clock.
const FREE: Duration = Duration::from_secs(3600);
/// The limit for a scenario on the paused clock, by the real clock: it runs on one thread that never waits.
const FREE_FOR_REAL: Duration = Duration::from_secs(600);
/// By which factor a scenario may take longer than its timeout, which is for an idle machine. Only a hang takes more.
const BUSY: u32 = 6;

/// Runs a scenario, whatever its needs are, and cleans up after it.
///
/// Blocks until it is done. A scenario that hangs is given up after six times its timeout, and fails.
pub fn run_one(scenario: &Scenario, target: &Arc<Target>, probe: &Probe) -> ScenarioRun {
    let started = Instant::now();
    let turn = turn(scenario, target);
    let cx = Cx::new(target.clone(), probe.capabilities.clone());
    let (tx, rx) = mpsc::channel();
    let (run, free) = (scenario.clone(), target.clock == ClockKind::Paused);
    let usual = scenario.timeout * target.allowance.max(1) * BUSY;
    let limit = if free { FREE } else { usual };
    let for_real = if free { FREE_FOR_REAL } else { usual + 2 * CLEANING };
    // The scenario has a thread of its own: if it blocks its runtime, the suite still ends.
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
    ScenarioRun { verdict, took: started.elapsed() }
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

/// Waits for the turn of a scenario on a broker, in this process and among others, and keeps it until dropped.
///
/// A lock on a file named after the broker's address does it: scenarios that disturb take it alone, others share it.
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

/// The scenarios that concern one target, in the order in which they run.
#[derive(Clone)]
pub struct Suite {
    /// The target.
    pub target: Arc<Target>,
    /// What the target said of itself, or why it is absent.
    pub probe: Result<Probe, String>,
    /// Each scenario, and the reason if it is not run.
    pub scenarios: Vec<(Scenario, Option<String>)>,
}

impl Suite {
    /// Asks the target what it can do, and picks the scenarios that concern it. Disturbing ones come last.
    pub fn new(target: Target, scenarios: Vec<Scenario>) -> Self {
        if target.clock == ClockKind::Real {
            super::pace::start();
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

    /// Runs the scenarios whose name contains `filter`, `threads` at a time and then the disturbing ones alone.
    ///
    /// `each` is called with each result as it comes, from several threads. The results are in the order of the suite.
    pub fn run(&self, filter: &str, threads: usize, each: impl Fn(&ScenarioResult) + Sync) -> Vec<ScenarioResult> {
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
        let mut rows: Vec<ScenarioResult> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
            workers.into_iter().flat_map(|w| w.join().unwrap_or_default()).collect()
        });
        for (scenario, skipped) in alone {
            rows.push(self.row(scenario, skipped.as_deref()));
            rows.last().into_iter().for_each(&each);
        }
        let position = |row: &ScenarioResult| all.iter().position(|(s, _)| s.name == row.name);
        rows.sort_by_key(position);
        rows
    }

    fn row(&self, scenario: &Scenario, skipped: Option<&str>) -> ScenarioResult {
        let ran = match (skipped, &self.probe) {
            (None, Ok(probe)) => run_one(scenario, &self.target, probe),
            (reason, _) => ScenarioRun {
                verdict: ScenarioVerdict::Skipped(reason.unwrap_or_default().into()),
                took: Duration::ZERO,
            },
        };
        ScenarioResult { name: scenario.name.into(), doc: scenario.doc.into(), verdict: ran.verdict, took: ran.took }
    }
}
