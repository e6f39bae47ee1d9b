//! The suite under libtest-mimic, so that `cargo test` and `cargo nextest` show every scenario.

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::{
    Probe, Ran, Report, Row, Scenario, ScenarioVerdict, Suite, Target, child_main, junit, markdown, run_one, scenarios,
};

/// The names in `POLYBUS_REQUIRE`.
fn required(service: &str) -> bool {
    let names = std::env::var("POLYBUS_REQUIRE").unwrap_or_default();
    !service.is_empty() && names.split(',').any(|name| name.trim() == service)
}

/// A broker's URL from this variable, for tests beside the suite. `None`, with a visible line, where it is not set; a panic if
/// `POLYBUS_REQUIRE` names the service.
pub fn broker_url(service: &str, variable: &str) -> Option<String> {
    let url = std::env::var(variable).ok().filter(|url| !url.is_empty());
    if url.is_none() {
        assert!(!required(service), "{variable} is required, but not set");
        eprintln!("SKIPPED: {variable} is not set");
    }
    url
}

/// One trial per scenario, named `target::group/name`. What is not run is listed as ignored, its kind telling why. A target
/// that is absent fails if `POLYBUS_REQUIRE` names its service.
pub fn trials(suite: Suite) -> Vec<Trial> {
    trials_noted(suite, &Notes::default())
}

/// What came of the scenarios that were run, by target.
type Notes = Arc<Mutex<Vec<(String, Row)>>>;

fn trials_noted(suite: Suite, notes: &Notes) -> Vec<Trial> {
    let Suite { target, probe, scenarios } = suite;
    let mut all = Vec::new();
    let probe = match probe {
        Ok(probe) => Some(probe),
        Err(reason) => {
            let text = format!("{} is required, but absent: {reason}", target.name);
            if required(&target.service) || target.service.is_empty() {
                all.push(Trial::test(format!("{}::available", target.name), move || Err(Failed::from(text))));
            }
            None
        }
    };
    for (scenario, skipped) in scenarios {
        let name = format!("{}::{}", target.name, scenario.name);
        all.push(match (&probe, skipped) {
            (Some(probe), None) => {
                let kind = target.deviations.get(scenario.name).map(|r| format!("known deviation: {r}"));
                let (target, probe, notes) = (target.clone(), probe.clone(), notes.clone());
                let trial = Trial::test(name, move || run(&scenario, &target, &probe, &notes));
                trial.with_kind(kind.unwrap_or_default())
            }
            (_, reason) => Trial::test(name, || Ok(())).with_kind(reason.unwrap_or_default()).with_ignored_flag(true),
        });
    }
    all
}

fn run(scenario: &Scenario, target: &Arc<Target>, probe: &Probe, notes: &Notes) -> Result<(), Failed> {
    let Ran { verdict, took } = run_one(scenario, target, probe);
    let row = Row { name: scenario.name.into(), doc: scenario.doc.into(), verdict: verdict.clone(), took };
    notes.lock().unwrap_or_else(PoisonError::into_inner).push((target.name.clone(), row));
    match verdict {
        ScenarioVerdict::Failed(why) => Err(format!("{}\n  {why}", scenario.doc).into()),
        _ => Ok(()),
    }
}

/// The whole of an adapter's `tests/conformance.rs` (with `harness = false`): all scenarios on all targets.
///
/// `POLYBUS_REPORTS=FOLDER` writes `FOLDER/<target>.md` and `.xml` of what was run, and of what was left out and why.
pub fn main_for(targets: impl IntoIterator<Item = Target>) -> ExitCode {
    let _ = tracing_subscriber::fmt().with_env_filter(quiet()).with_test_writer().try_init();
    let targets: Vec<Target> = targets.into_iter().collect();
    child_main(&targets);
    let mut arguments = Arguments::from_args();
    if arguments.test_threads.is_none() {
        // Scenarios on a real broker wait more than they work.
        arguments.test_threads = std::thread::available_parallelism().ok().map(|n| n.get().saturating_mul(3).min(16));
    }
    let mut all: Vec<Trial> = Vec::new();
    let mut alone: Vec<Trial> = Vec::new();
    let notes = Notes::default();
    let mut suites = Vec::new();
    for target in targets {
        let suite = Suite::new(target, scenarios::all());
        suites.push(suite.clone());
        let (last, first) = suite.scenarios.iter().cloned().partition(|(s, _)| s.alone);
        let without = |scenarios| Suite { scenarios, ..suite.clone() };
        all.extend(trials_noted(without(first), &notes));
        let mut last = trials_noted(without(last), &notes);
        last.retain(|t| !t.name().ends_with("::available"));
        alone.extend(last);
    }
    all.extend(alone);
    let conclusion = libtest_mimic::run(&arguments, all);
    if let Some(folder) = std::env::var_os("POLYBUS_REPORTS").filter(|_| !arguments.list) {
        for suite in &suites {
            if let Err(e) = report(suite, &notes, folder.as_ref()) {
                eprintln!("POLYBUS_REPORTS: {}: {e}", folder.display());
                return ExitCode::FAILURE;
            }
        }
    }
    conclusion.exit_code()
}

/// Writes what came of one target, if anything of it was run.
fn report(suite: &Suite, notes: &Notes, folder: &std::path::Path) -> std::io::Result<()> {
    let name = &suite.target.name;
    let notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
    let mut rows: Vec<Row> = notes.iter().filter(|(of, _)| of == name).map(|(_, row)| row.clone()).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let skipped = suite.scenarios.iter().filter_map(|(s, reason)| Some((s, reason.clone()?)));
    rows.extend(skipped.map(|(s, reason)| Row {
        name: s.name.into(),
        doc: s.doc.into(),
        verdict: ScenarioVerdict::Skipped(reason),
        took: std::time::Duration::ZERO,
    }));
    let version = suite.probe.as_ref().ok().and_then(|p| p.version.clone());
    let place = suite.target.upstream.clone().unwrap_or_else(|| "in this process".into());
    let report = Report::new(name, place, version, rows);
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join(format!("{name}.md")), markdown(&report))?;
    std::fs::write(folder.join(format!("{name}.xml")), junit(&report))
}

/// `RUST_LOG`, else errors alone, without lapin's: it logs the closed channels that a suite of faults is made of.
pub fn quiet() -> tracing_subscriber::EnvFilter {
    let set = std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty());
    tracing_subscriber::EnvFilter::new(set.as_deref().unwrap_or("error,lapin=off"))
}
