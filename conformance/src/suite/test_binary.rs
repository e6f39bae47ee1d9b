//! The suite as a test binary: `cargo test` and `cargo nextest` show each scenario as a test.

use std::{process::ExitCode, sync::Arc};

use parking_lot::Mutex;

use libtest_mimic::{Arguments, Failed, Trial};

use crate::{
    Probe, Report, Scenario, ScenarioResult, ScenarioRun, ScenarioVerdict, Suite, Target, child_main, junit, markdown,
    run_one, scenarios,
};

/// Whether `POLYBUS_REQUIRE`, a list of names with commas, contains this one.
pub(crate) fn required(service: &str) -> bool {
    let names = std::env::var("POLYBUS_REQUIRE").unwrap_or_default();
    !service.is_empty() && names.split(',').any(|name| name.trim() == service)
}

/// A broker's URL from this variable, for tests beside the suite. `None` where it is not set: a line on stderr says so.
///
/// # Panics
///
/// The variable is not set, and `POLYBUS_REQUIRE` names the service.
pub fn broker_url(service: &str, variable: &str) -> Option<String> {
    let url = std::env::var(variable).ok().filter(|url| !url.is_empty());
    if url.is_none() {
        assert!(!required(service), "{variable} is required, but not set");
        eprintln!("SKIPPED: {variable} is not set");
    }
    url
}

/// One trial for each scenario, named `target::group/name`. What is not run is ignored, and its kind tells why.
///
/// For an absent target there is one more trial, which fails, if `POLYBUS_REQUIRE` names its service.
pub fn trials(suite: Suite) -> Vec<Trial> {
    trials_noted(suite, &ResultLog::default())
}

/// The results of the scenarios that were run, each with the name of its target.
type ResultLog = Arc<Mutex<Vec<(String, ScenarioResult)>>>;

fn trials_noted(suite: Suite, notes: &ResultLog) -> Vec<Trial> {
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

fn run(scenario: &Scenario, target: &Arc<Target>, probe: &Probe, notes: &ResultLog) -> Result<(), Failed> {
    let ScenarioRun { verdict, took } = run_one(scenario, target, probe);
    let row = ScenarioResult { name: scenario.name.into(), doc: scenario.doc.into(), verdict: verdict.clone(), took };
    notes.lock().push((target.name.clone(), row));
    match verdict {
        ScenarioVerdict::Failed(why) => Err(format!("{}\n  {why}", scenario.doc).into()),
        _ => Ok(()),
    }
}

/// The whole of an adapter's `tests/conformance.rs` (with `harness = false`): runs all scenarios on all targets.
///
/// The arguments are those of a test binary: a filter, `--list`, `--exact`, `--test-threads`. [`Target::warnings`] are
/// printed to stderr. With `POLYBUS_REPORTS=FOLDER` it writes `FOLDER/<target>.md` and `.xml`: what was run, what was
/// left out, and why.
///
/// The exit code is 0 if nothing failed, 101 if a scenario did, and 1 if a report could not be written.
///
/// ```no_run
/// use polybus_conformance::{CommandBroker, Restart, Target, main_for};
/// use polybus_core::Registry;
///
/// fn main() -> std::process::ExitCode {
///     // let registry = Registry::new().with(MyConnector);
///     let registry = Registry::new();
///     let target = Target::env("my-broker", "mybroker", registry, "MY_BROKER_URL");
///     main_for([target.restarts(CommandBroker::new("./broker kill", "./broker start"), Restart::Durable)])
/// }
/// ```
pub fn main_for(targets: impl IntoIterator<Item = Target>) -> ExitCode {
    let _ = tracing_subscriber::fmt().with_env_filter(quiet()).with_test_writer().try_init();
    let targets: Vec<Target> = targets.into_iter().collect();
    child_main(&targets);
    let mut arguments = Arguments::from_args();
    if arguments.test_threads.is_none() {
        // Scenarios on a real broker wait more than they compute.
        arguments.test_threads = std::thread::available_parallelism().ok().map(|n| n.get().saturating_mul(3).min(16));
    }
    let mut all: Vec<Trial> = Vec::new();
    let mut alone: Vec<Trial> = Vec::new();
    let notes = ResultLog::default();
    let mut suites = Vec::new();
    for target in targets {
        target.warnings().iter().for_each(|warning| eprintln!("WARNING {warning}"));
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

/// Writes the reports of one target, if any of its scenarios was run.
fn report(suite: &Suite, notes: &ResultLog, folder: &std::path::Path) -> std::io::Result<()> {
    let name = &suite.target.name;
    let notes = notes.lock();
    let mut rows: Vec<ScenarioResult> = notes.iter().filter(|(of, _)| of == name).map(|(_, row)| row.clone()).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let skipped = suite.scenarios.iter().filter_map(|(s, reason)| Some((s, reason.clone()?)));
    rows.extend(skipped.map(|(s, reason)| ScenarioResult {
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

/// The log filter of the suite: `RUST_LOG`, else errors alone, without lapin's: it logs each channel that is closed.
pub fn quiet() -> tracing_subscriber::EnvFilter {
    let set = std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty());
    tracing_subscriber::EnvFilter::new(set.as_deref().unwrap_or("error,lapin=off"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{ClockKind, Failure, Need, scenario};

    #[test]
    fn a_report_holds_what_was_run_and_what_was_left_out() {
        let scenarios = vec![
            scenario("a/good", "It is good.", |_| async { Ok(()) }),
            scenario("a/bad", "It is bad.", |_| async { Err(Failure::new("as planned")) }),
            scenario("a/other", "It is not.", |_| async { Ok(()) }).needs(|_, _| Need::when(false, "no others")),
        ];
        let suite = Suite::new(Target::memory("reported", ClockKind::Paused), scenarios);
        let log = ResultLog::default();
        let (target, probe) = (suite.target.clone(), suite.probe.clone().unwrap());
        for (scenario, _) in suite.scenarios.iter().filter(|(_, skipped)| skipped.is_none()) {
            assert_eq!(run(scenario, &target, &probe, &log).is_ok(), scenario.name == "a/good");
        }
        let folder = std::env::temp_dir().join(format!("polybus-conformance-reports-{}", std::process::id()));
        report(&suite, &log, &folder).unwrap();
        let markdown = std::fs::read_to_string(folder.join("reported.md")).unwrap();
        assert!(markdown.contains("1 passed, 1 failed, 1 skipped") && markdown.contains("as planned"), "{markdown}");
        let junit = std::fs::read_to_string(folder.join("reported.xml")).unwrap();
        assert!(junit.contains("failures=\"1\"") && junit.contains("not supported: no others"), "{junit}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
