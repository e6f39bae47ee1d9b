//! The suite against drivers that break one promise each: it must notice every one, and every scenario must notice one.
//!
//! `POLYBUS_FAULTS=survey cargo test -p polybus-conformance --test faults` runs every scenario under every fault and
//! prints which scenarios notice which faults: use it to fill in the catalogue. `survey:retry:topology/` limits the
//! faults, and the scenarios, to those whose name contains these words.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
    sync::{Arc, Mutex},
};

use libtest_mimic::{Arguments, Failed, Trial};
use polybus_conformance::{
    ClockKind, Need, Probe, Scenario, ScenarioVerdict, Target,
    faults::{self, Fault},
    probe, run_one, scenarios,
};

/// Scenarios that no fault around the memory driver can fail, and why.
const EXEMPT: &[(&str, &str)] = &[
    ("redrive/refused", "what is refused never reaches the driver: this judges core"),
    ("consume/passing-errors", "the trouble is made above the driver: this judges core"),
    ("consume/ten-expired-tokens", "the trouble is made above the driver: this judges core"),
    ("consume/throttled-for-long", "the trouble is made above the driver: this judges core"),
    ("lifecycle/after-close", "a closed bus never reaches the driver: this judges core"),
    ("lifecycle/outage-is-bounded", "the driver is held before it sees anything: this judges core"),
    ("negative/declare", "what is refused never reaches the driver: this judges core"),
    ("publish/no-answer", "the driver is held before it sees anything: this judges core"),
];

/// Scenarios that run on memory at all; the others need a broker's own faults.
fn runnable(target: &Target, probe: &Probe) -> Vec<Scenario> {
    let runs = |s: &Scenario| (s.needs)(target, &probe.capabilities) == Need::Run;
    scenarios::all().into_iter().filter(runs).collect()
}

/// Whether the scenario itself, not the clean-up after it, fails under the fault.
fn notices(scenario: &Scenario, fault: &Fault, probe: &Probe) -> bool {
    let target = Arc::new(fault.on(Target::memory("memory", ClockKind::Paused)));
    match run_one(scenario, &target, probe).verdict {
        ScenarioVerdict::Failed(why) => !why.starts_with("clean-up"),
        _ => false,
    }
}

fn check(fault: &Fault, all: &[Scenario], probe: &Probe) -> Result<(), Failed> {
    if fault.caught_by.is_empty() {
        return Err(format!("no scenario notices that {}", fault.doc).into());
    }
    for name in fault.caught_by {
        let scenario = all.iter().find(|s| s.name == *name);
        let scenario = scenario.ok_or_else(|| format!("{name} is no scenario that runs on memory"))?;
        if !notices(scenario, fault, probe) {
            return Err(format!("{name} does not notice that {}", fault.doc).into());
        }
    }
    Ok(())
}

/// Every scenario must be named by a fault, or be exempt for a reason.
fn coverage(all: &[Scenario]) -> Result<(), Failed> {
    let named: BTreeSet<&str> = faults::all().iter().flat_map(|f| f.caught_by).copied().collect();
    let exempt: BTreeSet<&str> = EXEMPT.iter().map(|(name, _)| *name).collect();
    let idle: Vec<&str> = all.iter().map(|s| s.name).filter(|n| !named.contains(n) && !exempt.contains(n)).collect();
    if !idle.is_empty() {
        return Err(format!("no fault fails these: {}", idle.join(", ")).into());
    }
    let both: Vec<_> = exempt.intersection(&named).collect();
    let unknown: Vec<_> = exempt.iter().filter(|n| all.iter().all(|s| s.name != **n)).collect();
    if !both.is_empty() || !unknown.is_empty() {
        return Err(format!("needlessly exempt: {both:?} {unknown:?}").into());
    }
    Ok(())
}

fn survey(all: &[Scenario], probe: &Probe, word: &str) {
    let faults: Vec<Fault> = faults::all().into_iter().filter(|f| f.name.contains(word)).collect();
    let caught: Mutex<BTreeMap<&str, Vec<&str>>> = Mutex::default();
    let jobs: Vec<_> = faults.iter().flat_map(|f| all.iter().map(move |s| (f, s))).collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((fault, scenario)) = jobs.get(next.fetch_add(1, std::sync::atomic::Ordering::SeqCst)) {
                    let started = std::time::Instant::now();
                    let noticed = notices(scenario, fault, probe);
                    if started.elapsed().as_secs() > 10 {
                        eprintln!("SLOW {} {} {:?}", fault.name, scenario.name, started.elapsed());
                    }
                    if noticed {
                        eprintln!("NOTICED {} {}", fault.name, scenario.name);
                        let mut caught = caught.lock().unwrap_or_else(|e| e.into_inner());
                        caught.entry(fault.name).or_default().push(scenario.name);
                    }
                }
            });
        }
    });
    let caught = caught.into_inner().unwrap_or_else(|e| e.into_inner());
    for fault in &faults {
        let by = caught.get(fault.name).cloned().unwrap_or_default();
        println!("{}: {}", fault.name, if by.is_empty() { "NOBODY".into() } else { by.join(" ") });
    }
    println!("\nEach scenario with the most special faults that fail it, and how many scenarios each of those fails:");
    for scenario in all {
        let mut by: Vec<(usize, &str)> =
            caught.iter().filter(|(_, by)| by.contains(&scenario.name)).map(|(f, by)| (by.len(), *f)).collect();
        by.sort_unstable();
        let shown: Vec<String> = by.iter().take(4).map(|(n, f)| format!("{f} ({n})")).collect();
        println!("{}: {}", scenario.name, if shown.is_empty() { "NONE".into() } else { shown.join(", ") });
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let target = Arc::new(Target::memory("memory", ClockKind::Paused));
    let probe = match probe(&target) {
        Ok(probe) => probe,
        Err(e) => {
            eprintln!("the memory driver is absent: {e}");
            return ExitCode::FAILURE;
        }
    };
    let all = runnable(&target, &probe);
    if let Ok(mode) = std::env::var("POLYBUS_FAULTS") {
        let mut words = mode.split(':').skip(1);
        let (fault, scenario) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let some: Vec<Scenario> = all.into_iter().filter(|s| s.name.contains(scenario)).collect();
        survey(&some, &probe, fault);
        return ExitCode::SUCCESS;
    }
    let mut trials: Vec<Trial> = Vec::new();
    for fault in faults::all() {
        let (all, probe) = (all.clone(), probe.clone());
        trials.push(Trial::test(format!("fault::{}", fault.name), move || check(&fault, &all, &probe)));
    }
    trials.push(Trial::test("every-scenario-notices-a-fault", move || coverage(&all)));
    libtest_mimic::run(&arguments, trials).exit_code()
}
