//! The command: runs the suite against the broker of a URL.

use std::{
    fs::File,
    io::{Write, stdout},
    path::PathBuf,
    process::ExitCode,
};

use clap::Parser;
use polybus_core::{Registry, driver::ConnectUrl};

use crate::{
    ClockKind, CommandBroker, Report, Restart, ScenarioResult, ScenarioVerdict, Suite, Target, child_main, junit,
    markdown, scenarios,
};

/// Proves that a broker keeps polybus's contract: runs every scenario and tells which passed, failed, or are not
/// supported, and why. Everything it makes at the broker has a unique prefix and is deleted.
///
/// Exit codes: 0 if nothing failed, 1 if a scenario failed, 2 if nothing could be run.
#[derive(Parser)]
#[command(name = "polybus-conformance", version)]
struct CommandArgs {
    /// The broker, for example amqp://guest:guest@localhost. Default: $POLYBUS_URL.
    #[arg(long, env = "POLYBUS_URL", hide_env_values = true)]
    url: String,
    /// Runs only the scenarios whose name contains this.
    #[arg(long, default_value = "", hide_default_value = true)]
    filter: String,
    /// Lists the scenarios and why some would not run.
    #[arg(long)]
    list: bool,
    /// Writes a Markdown report.
    #[arg(long, value_name = "FILE.md")]
    report: Option<PathBuf>,
    /// Writes a JUnit XML report.
    #[arg(long, value_name = "FILE.xml")]
    junit: Option<PathBuf>,
    /// How many scenarios run at once.
    #[arg(long, default_value_t = 4)]
    threads: usize,
    /// Runs in one thread with the clock paused: for memory:// alone, where waiting is then free.
    #[arg(long)]
    paused: bool,
    /// Shell command that kills the broker, for the restart scenarios. Needs --start.
    #[arg(long, value_name = "COMMAND", requires = "start")]
    kill: Option<String>,
    /// Shell command that starts the broker on the same data and waits until it is ready.
    #[arg(long, value_name = "COMMAND", requires = "kill")]
    start: Option<String>,
}

/// The whole command `polybus-conformance`, for the brokers of this registry. The `main` of a third party is one line:
///
/// ```no_run
/// use polybus_core::Registry;
///
/// fn main() -> std::process::ExitCode {
///     // Registry::new().with(MyConnector)
///     polybus_conformance::cli(Registry::new())
/// }
/// ```
///
/// It reads the arguments of the process; `--help` lists them. The exit code is 0 if nothing failed, 1 if a scenario
/// failed, and 2 if nothing could be run: a wrong argument or URL, no broker, a report file that cannot be written.
pub fn cli(registry: Registry) -> ExitCode {
    cli_with(registry, |target| target)
}

/// Like [`cli`](fn@cli), and `change` gives the target what a URL cannot say.
///
/// ```no_run
/// use polybus_core::Registry;
///
/// fn main() -> std::process::ExitCode {
///     polybus_conformance::cli_with(Registry::new(), |mut target| {
///         target.lock_outlives = Some(std::time::Duration::from_secs(15));
///         target
///     })
/// }
/// ```
pub fn cli_with(registry: Registry, change: impl FnOnce(Target) -> Target) -> ExitCode {
    let args = CommandArgs::parse();
    let _ = tracing_subscriber::fmt().with_env_filter(crate::quiet()).with_writer(std::io::stderr).try_init();
    match run(args, registry, change) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("polybus-conformance: {e}");
            ExitCode::from(2)
        }
    }
}

fn run(
    args: CommandArgs,
    registry: Registry,
    change: impl FnOnce(Target) -> Target,
) -> Result<bool, Box<dyn std::error::Error>> {
    let url = ConnectUrl::parse(&args.url)?;
    let name = url.scheme().to_owned();
    let mut target = change(Target::url(&name, registry, &args.url));
    if args.paused {
        if name != "memory" {
            return Err("--paused works with memory:// alone: other brokers have clocks of their own".into());
        }
        target.clock = ClockKind::Paused;
    }
    if let (Some(kill), Some(start)) = (args.kill, args.start) {
        target = target.restarts(CommandBroker::new(kill, start), Restart::Durable);
    }
    // Before anything else: a process that was started as a consumer of this target never gets further.
    child_main([&target]);
    target.warnings().iter().for_each(|warning| eprintln!("WARNING {warning}"));
    // Before the run: a path that cannot be written should not cost a whole run.
    let create = |path: &PathBuf| File::create(path).map_err(|e| format!("{}: {e}", path.display()));
    let mut report_file = args.report.as_ref().map(create).transpose()?;
    let mut junit_file = args.junit.as_ref().map(create).transpose()?;

    let suite = Suite::new(target, scenarios::all());
    let probe = suite.probe.clone().map_err(|e| format!("{url}: {e}"))?;
    if args.list {
        for (scenario, skipped) in suite.scenarios.iter().filter(|(s, _)| s.name.contains(&args.filter)) {
            let why = skipped.as_deref().map(|s| format!(" [{s}]")).unwrap_or_default();
            say(&format!("{}: {}{why}", scenario.name, scenario.doc))?;
        }
        return Ok(true);
    }
    say(&format!("{url}: {}", probe.version.as_deref().unwrap_or("version not told")))?;
    let rows = suite.run(&args.filter, args.threads, |row| {
        let _ = say(&line(row));
    });
    let report = Report::new(name, url.to_string(), probe.version, rows);
    if let Some(file) = &mut report_file {
        file.write_all(markdown(&report).as_bytes())?;
    }
    if let Some(file) = &mut junit_file {
        file.write_all(junit(&report).as_bytes())?;
    }
    if report.rows.is_empty() {
        return Err(format!("no scenario's name contains {:?}", args.filter).into());
    }
    say(&report.closing_line())?;
    Ok(report.counts().1 == 0)
}

fn line(row: &ScenarioResult) -> String {
    match &row.verdict {
        ScenarioVerdict::Passed => format!("passed   {} ({} ms)", row.name, row.took.as_millis()),
        ScenarioVerdict::Failed(why) => format!("FAILED   {}: {}\n         {why}", row.name, row.doc),
        ScenarioVerdict::Skipped(why) => format!("skipped  {}: {why}", row.name),
        ScenarioVerdict::Deviation(reference) => format!("skipped  {}: known deviation, {reference}", row.name),
    }
}

/// Prints a line. A reader that went away (`| head`) makes an error, where `println!` would panic.
fn say(text: &str) -> std::io::Result<()> {
    writeln!(stdout().lock(), "{text}")
}
