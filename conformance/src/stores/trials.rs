//! Runs the scenarios, as tests of a binary.

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use libtest_mimic::{Failed, Trial};
use parking_lot::Mutex;
use tokio::{runtime::Builder, task::LocalSet};

use super::{
    cx::StoreCx,
    fault::StoreFault,
    scenario::{LocalFuture, RunStoreScenario, StoreScenario},
    target::StoreUnderTest,
};
use crate::{Failure, Need, Outcome, ScenarioResult, ScenarioVerdict};

/// By which factor a scenario may take longer than its timeout, which is for an idle machine.
const BUSY: u32 = 6;

/// Runs a scenario on a target, with one promise of its store broken or none. Blocks until it is done.
pub fn run_store_scenario<T: StoreUnderTest>(
    scenario: &StoreScenario<T>,
    target: &Arc<T>,
    fault: Option<StoreFault>,
) -> ScenarioVerdict {
    run_patiently(scenario, target, fault, if fault.is_some() { PATIENCE_WITH_A_FAULT } else { PATIENCE })
}

/// For how long what must come is waited for: minutes, since a busy machine brings it late.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// The same under a fault that the scenario must notice: what is waited for often never comes.
const PATIENCE_WITH_A_FAULT: Duration = Duration::from_secs(8);

/// [`run_store_scenario`] which waits so long for what must come.
pub(super) fn run_patiently<T: StoreUnderTest>(
    scenario: &StoreScenario<T>,
    target: &Arc<T>,
    fault: Option<StoreFault>,
    patience: Duration,
) -> ScenarioVerdict {
    match (scenario.needs)(&target.abilities()) {
        Need::Run => {}
        Need::NotSupported(reason) => return ScenarioVerdict::Skipped(format!("not supported: {reason}")),
        Need::NotConcerned => return ScenarioVerdict::Skipped("not concerned".to_owned()),
    }
    let seed = seed();
    let cx = StoreCx::new(target.clone(), fault, patience, seed);
    let limit = scenario.timeout * BUSY;
    let (tx, rx) = mpsc::channel();
    let run = scenario.run.clone();
    // A thread of its own: if it blocks its runtime, the suite still ends.
    std::thread::spawn(move || tx.send(on_runtime(limit, move || Box::pin(cleaned(run, cx)))));
    let outcome = match rx.recv_timeout(limit + Duration::from_secs(60)) {
        Ok(outcome) => outcome,
        Err(_) => Err(Failure::new("it blocks its thread, or its runtime panicked")),
    };
    match outcome {
        Ok(()) => ScenarioVerdict::Passed,
        Err(e) => ScenarioVerdict::Failed(format!("{e} [POLYBUS_SEED={seed}]")),
    }
}

/// How long a scenario's tables may take to be removed. What is left is in a place of its own.
const CLEAN_UP: Duration = Duration::from_secs(10);

async fn cleaned<T: StoreUnderTest>(run: RunStoreScenario<T>, cx: StoreCx<T>) -> Outcome {
    let outcome = match tokio::task::spawn_local(run(cx.clone())).await {
        Ok(outcome) => outcome,
        Err(e) => Err(Failure::new(format!("it panicked: {e}"))),
    };
    // Under a fault a transaction may be left open, for which the clean-up would wait for ever.
    let _ = tokio::time::timeout(CLEAN_UP, cx.clean_up()).await;
    outcome
}

fn seed() -> u64 {
    let set = std::env::var("POLYBUS_SEED").ok().and_then(|seed| seed.parse().ok());
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    // Six digits are easier to type.
    set.unwrap_or(u64::from(clock.subsec_nanos()) % 1_000_000)
}

fn on_runtime(limit: Duration, run: impl FnOnce() -> LocalFuture) -> Outcome {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let local = LocalSet::new();
    let outcome = local.block_on(&runtime, async {
        let mut task = tokio::task::spawn_local(run());
        match tokio::time::timeout(limit, &mut task).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(e)) => Err(Failure::new(format!("it panicked: {e}"))),
            Err(_) => Err(Failure::new(format!("not done within {limit:?}"))),
        }
    });
    drop(local);
    runtime.shutdown_timeout(Duration::from_secs(5));
    outcome
}

/// The results of the scenarios that were run or left out, each with the name of its target.
pub(super) type StoreResults = Arc<Mutex<Vec<(String, ScenarioResult)>>>;

/// One trial for each of these scenarios, named `name::group/scenario`. What the database cannot is
/// ignored, and its kind tells why.
pub(super) fn trials<T: StoreUnderTest>(
    name: &str,
    service: &str,
    target: &Result<Arc<T>, String>,
    scenarios: Vec<StoreScenario<T>>,
    results: &StoreResults,
) -> Vec<Trial> {
    let mut trials = Vec::new();
    if let Err(reason) = target
        && crate::suite::test_binary::required(service)
    {
        let text = format!("{name} is required, but absent: {reason}");
        trials.push(Trial::test(format!("{name}::available"), move || Err(Failed::from(text))));
    }
    for scenario in scenarios {
        let full = format!("{name}::{}", scenario.name);
        let needs = target.as_ref().map(|target| (scenario.needs)(&target.abilities()));
        let left_out = match (needs, target) {
            (Ok(Need::Run), Ok(target)) => {
                let (name, target, results) = (name.to_owned(), target.clone(), results.clone());
                trials.push(Trial::test(full, move || run(&scenario, &target, &name, &results)));
                continue;
            }
            (Ok(Need::NotSupported(reason)), _) => format!("not supported: {reason}"),
            (Err(reason), _) => reason.clone(),
            _ => continue,
        };
        trials.push(Trial::test(full, || Ok(())).with_kind(&left_out).with_ignored_flag(true));
        results.lock().push((name.to_owned(), row(&scenario, ScenarioVerdict::Skipped(left_out), Duration::ZERO)));
    }
    trials
}

fn row<T: StoreUnderTest>(scenario: &StoreScenario<T>, verdict: ScenarioVerdict, took: Duration) -> ScenarioResult {
    ScenarioResult { name: scenario.name.into(), doc: scenario.doc.into(), verdict, took }
}

fn run<T: StoreUnderTest>(
    scenario: &StoreScenario<T>,
    target: &Arc<T>,
    name: &str,
    results: &StoreResults,
) -> Result<(), Failed> {
    let started = Instant::now();
    let verdict = run_store_scenario(scenario, target, None);
    results.lock().push((name.to_owned(), row(scenario, verdict.clone(), started.elapsed())));
    match verdict {
        ScenarioVerdict::Failed(why) => Err(format!("{}\n  {why}", scenario.doc).into()),
        _ => Ok(()),
    }
}
