//! The suite as a test binary: `cargo test` and `cargo nextest` show each scenario as a test.

use std::{fmt, path::Path, process::ExitCode, sync::Arc};

use libtest_mimic::{Arguments, Trial};

use super::{
    catalogue::{seeded_faults, seeded_job_faults},
    fault_trials::{fault_trials, polling_trial},
    scenario::StoreScenario,
    scenarios::{job_scenarios, store_scenarios},
    target::{JobsUnderTest, StoreUnderTest},
    trials::{StoreResults, trials},
};
use crate::{Report, junit, markdown};

/// The scenarios of all stores of a test binary, with `harness = false`.
///
/// ```text
/// fn main() -> ExitCode {
///     StoreSuite::new().on("mydb", "mydb", MyTarget::from_env()).main()
/// }
/// ```
#[derive(Default)]
#[must_use = "call main"]
pub struct StoreSuite {
    trials: Vec<Trial>,
    results: StoreResults,
    /// The targets' names.
    targets: Vec<String>,
}

impl StoreSuite {
    /// A suite without stores.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a store. With an `Err` its database is absent, for this reason: all its scenarios are ignored, and one more
    /// trial fails if `POLYBUS_REQUIRE` names the service.
    pub fn on<T: StoreUnderTest>(self, name: &str, service: &str, target: Result<T, String>) -> Self {
        self.scenarios_on(name, service, target, store_scenarios())
    }

    /// Adds the jobs and schedules of a store that has them, as [`on`](Self::on) adds all else. With the same name both
    /// are in one report.
    pub fn jobs_on<T: JobsUnderTest>(self, name: &str, service: &str, target: Result<T, String>) -> Self {
        self.scenarios_on(name, service, target, job_scenarios())
    }

    fn scenarios_on<T: StoreUnderTest>(
        mut self,
        name: &str,
        service: &str,
        target: Result<T, String>,
        scenarios: Vec<StoreScenario<T>>,
    ) -> Self {
        crate::suite::pace::start();
        self.trials.extend(trials(name, service, &target.map(Arc::new), scenarios, &self.results));
        if !self.targets.iter().any(|target| target == name) {
            self.targets.push(name.to_owned());
        }
        self
    }

    /// Adds the seeded faults on a store: each breaks one promise, and the scenarios must notice. They prove the suite,
    /// and those of its hooks that the store's author wrote.
    pub fn faults_on<T: StoreUnderTest>(mut self, name: &str, target: Result<T, String>) -> Self {
        let Ok(target) = target.map(Arc::new) else { return self };
        self.trials.extend(fault_trials(name, &target, &store_scenarios(), seeded_faults()));
        self.trials.extend(polling_trial(name, &target));
        self
    }

    /// Adds the seeded faults of jobs and schedules.
    pub fn job_faults_on<T: JobsUnderTest>(mut self, name: &str, target: Result<T, String>) -> Self {
        let Ok(target) = target.map(Arc::new) else { return self };
        self.trials.extend(fault_trials(name, &target, &job_scenarios(), seeded_job_faults()));
        self
    }

    /// Runs the tests that the arguments of the process ask for: a filter, `--list`, `--exact`, `--test-threads`.
    ///
    /// With `POLYBUS_REPORTS=FOLDER` it writes `FOLDER/store-<name>.md` and `.xml`: what was run, what was left out,
    /// and why. The exit code is 0 if nothing failed, 101 if a scenario did, and 1 if a report could not be written.
    pub fn main(self) -> ExitCode {
        // Relays and inboxes log what scenarios break on purpose.
        if std::env::var_os("RUST_LOG").is_some() {
            let _ = tracing_subscriber::fmt().with_env_filter(crate::quiet()).with_test_writer().try_init();
        }
        let mut arguments = Arguments::from_args();
        if arguments.test_threads.is_none() {
            // Scenarios wait more than they compute. A database has a limited number of connections.
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            arguments.test_threads = Some(cores.saturating_mul(2).min(6));
        }
        let conclusion = libtest_mimic::run(&arguments, self.trials);
        if let Some(folder) = std::env::var_os("POLYBUS_REPORTS").filter(|_| !arguments.list) {
            for name in &self.targets {
                if let Err(e) = report(name, &self.results, folder.as_ref()) {
                    eprintln!("POLYBUS_REPORTS: {}: {e}", folder.display());
                    return ExitCode::FAILURE;
                }
            }
        }
        conclusion.exit_code()
    }
}

impl fmt::Debug for StoreSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreSuite").field("targets", &self.targets).finish_non_exhaustive()
    }
}

fn report(name: &str, results: &StoreResults, folder: &Path) -> std::io::Result<()> {
    let rows = results.lock().iter().filter(|(of, _)| of == name).map(|(_, row)| row.clone()).collect();
    let report = Report::new(name, "a store of the patterns", None, rows);
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join(format!("store-{name}.md")), markdown(&report))?;
    std::fs::write(folder.join(format!("store-{name}.xml")), junit(&report))
}
