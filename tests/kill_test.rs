//! Runs the example `kill_test`: producer, relays and consumers are killed at random, and each row must have one
//! effect.
//!
//! It needs RabbitMQ at `POLYBUS_RABBITMQ_URL`, and runs on SQLite and, where `POLYBUS_POSTGRES_URL` and
//! `POLYBUS_MARIADB_URL` name one, on PostgreSQL and MariaDB. `POLYBUS_REQUIRE=rabbitmq,postgres,mariadb` makes a
//! missing one a failure.

use std::{
    path::PathBuf,
    process::{Command, ExitCode, Output},
};

use libtest_mimic::{Arguments, Failed, Trial};

type Tested = Result<(), Failed>;
type Test = fn(&Setup) -> Tested;

/// Where a test runs.
#[derive(Clone)]
struct Setup {
    broker: String,
    /// `None` for SQLite.
    server: Option<String>,
}

/// What is missing, and why.
type Missing = (&'static str, String);

fn main() -> ExitCode {
    let of = |service, variable: &str| std::env::var(variable).map_err(|_| (service, format!("{variable} is not set")));
    let rabbitmq = match cfg!(feature = "rabbitmq") {
        true => of("rabbitmq", "POLYBUS_RABBITMQ_URL"),
        false => Err(("rabbitmq", "its feature is off".to_owned())),
    };
    let sqlite = rabbitmq.clone().map(|broker| Setup { broker, server: None });
    let on = |service, variable| {
        rabbitmq.clone().and_then(|broker| Ok(Setup { broker, server: Some(of(service, variable)?) }))
    };
    let postgres = on("postgres", "POLYBUS_POSTGRES_URL");
    let mariadb = on("mariadb", "POLYBUS_MARIADB_URL");
    let tests: [(&str, &str, Test); 10] = [
        ("sqlite", "each_row_has_one_effect", each_row_has_one_effect),
        ("postgres", "each_row_has_one_effect", each_row_has_one_effect),
        ("mariadb", "each_row_has_one_effect", each_row_has_one_effect),
        ("sqlite", "a_paused_relay_makes_duplicates_at_most", a_paused_relay_makes_duplicates_at_most),
        ("postgres", "a_paused_relay_makes_duplicates_at_most", a_paused_relay_makes_duplicates_at_most),
        ("mariadb", "a_paused_relay_makes_duplicates_at_most", a_paused_relay_makes_duplicates_at_most),
        ("postgres", "without_the_inbox_a_pause_doubles_effects", without_the_inbox_a_pause_doubles_effects),
        ("postgres", "without_the_outbox_rows_are_lost", without_the_outbox_rows_are_lost),
        ("postgres", "without_the_inbox_effects_are_doubled", without_the_inbox_effects_are_doubled),
        ("postgres", "without_the_read_back_rows_are_lost", without_the_read_back_rows_are_lost),
    ];
    let trials = tests.map(|(database, name, test)| {
        let setup = match database {
            "sqlite" => &sqlite,
            "mariadb" => &mariadb,
            _ => &postgres,
        };
        trial(database, name, setup.clone(), test)
    });
    let mut arguments = Arguments::from_args();
    // Each of them has six processes of its own.
    arguments.test_threads.get_or_insert(1);
    libtest_mimic::run(&arguments, trials.into()).exit_code()
}

fn trial(database: &str, name: &str, setup: Result<Setup, Missing>, test: Test) -> Trial {
    let required = std::env::var("POLYBUS_REQUIRE").unwrap_or_default();
    let is_required = |service| required.split(',').any(|name| name.trim() == service);
    let name = format!("{database}::{name}");
    match setup {
        Ok(setup) => Trial::test(name, move || test(&setup)),
        Err((service, why)) if is_required(service) => {
            Trial::test(name, move || Err(format!("{service} is required, but {why}").into()))
        }
        Err((_, why)) => Trial::test(name, || Ok(())).with_kind(why).with_ignored_flag(true),
    }
}

/// Runs the example, which cargo has built beside this test.
fn kill_test(setup: &Setup, args: &[&str]) -> Result<Output, Failed> {
    let test = std::env::current_exe()?;
    let folder = test.ancestors().nth(2).ok_or("this test is in no folder of cargo's")?;
    let example: PathBuf = folder.join("examples").join(format!("kill_test{}", std::env::consts::EXE_SUFFIX));
    if !example.exists() {
        let text = "is missing: run the whole `cargo test`, or first `cargo build --all-features --example kill_test`";
        return Err(format!("{} {text}", example.display()).into());
    }
    let mut command = Command::new(example);
    command.args(args).env("POLYBUS_URL", &setup.broker).env_remove("POLYBUS_DATABASE");
    if let Some(url) = &setup.server {
        command.env("POLYBUS_DATABASE", url);
    }
    let output = command.output()?;
    println!("{}", String::from_utf8_lossy(&output.stdout));
    Ok(output)
}

/// One of the numbers of the report.
fn figure(output: &Output, name: &str) -> Result<u64, Failed> {
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
    found.ok_or_else(|| format!("no report:\n{text}\n{}", String::from_utf8_lossy(&output.stderr)).into())
}

fn check(holds: bool, what: &str, output: &Output) -> Tested {
    if holds { Ok(()) } else { Err(format!("{what}:\n{}", String::from_utf8_lossy(&output.stdout)).into()) }
}

fn each_row_has_one_effect(setup: &Setup) -> Tested {
    let output = kill_test(setup, &["--rows", "5000", "--kills", "40"])?;
    check(figure(&output, "effects")? == 5000, "effects", &output)?;
    check(figure(&output, "kills")? == 40, "kills", &output)?;
    // Without these it would prove less. SQLite's one writer leaves few duplicates, and perhaps none.
    check(setup.server.is_none() || figure(&output, "duplicates seen")? > 0, "no message came twice", &output)?;
    check(figure(&output, "errors swallowed")? > 0, "no handler swallowed an error", &output)?;
    check(figure(&output, "dead letters")? == 0, "dead letters", &output)?;
    check(output.status.success(), "not exact", &output)
}

/// It stands still for two leases and goes on as if nothing was. That makes duplicates at most, and their number is
/// told.
fn a_paused_relay_makes_duplicates_at_most(setup: &Setup) -> Tested {
    let output = kill_test(setup, &["--rows", "1000", "--kills", "0", "--pauses", "3"])?;
    check(figure(&output, "pauses")? == 3, "pauses", &output)?;
    check(figure(&output, "slots taken over")? > 0, "nobody took the slots of a paused relay", &output)?;
    check(figure(&output, "leases lost")? > 0, "no relay noticed that it had lost its slots", &output)?;
    // With nobody killed, nothing else makes copies.
    let (told, stopped) = (figure(&output, "may be duplicates")?, figure(&output, "duplicates seen")?);
    // On a slow machine the relay may be paused where it makes none.
    check(stopped <= told, "the relays did not tell of all duplicates", &output)?;
    check(figure(&output, "effects")? == 1000, "effects", &output)?;
    check(figure(&output, "dead letters")? == 0, "dead letters", &output)?;
    check(output.status.success(), "not exact", &output)
}

fn without_the_outbox_rows_are_lost(setup: &Setup) -> Tested {
    let output = kill_test(setup, &["--rows", "1000", "--kills", "40", "--without", "outbox"])?;
    check(figure(&output, "missing")? > 0 && !output.status.success(), "nothing is lost", &output)
}

fn without_the_inbox_effects_are_doubled(setup: &Setup) -> Tested {
    let output = kill_test(setup, &["--rows", "1000", "--kills", "40", "--without", "inbox"])?;
    check(figure(&output, "doubled")? > 0 && !output.status.success(), "nothing is doubled", &output)
}

fn without_the_inbox_a_pause_doubles_effects(setup: &Setup) -> Tested {
    let output = kill_test(setup, &["--rows", "1000", "--kills", "0", "--pauses", "3", "--without", "inbox"])?;
    check(figure(&output, "pauses")? == 3, "pauses", &output)?;
    let (told, doubled) = (figure(&output, "may be duplicates")?, figure(&output, "doubled")?);
    // As above: there may be none, and then all is exact.
    check((doubled > 0) != output.status.success(), "doubled, and called exact", &output)?;
    check(doubled <= told, "the relays did not tell of all duplicates", &output)
}

fn without_the_read_back_rows_are_lost(setup: &Setup) -> Tested {
    let output = kill_test(setup, &["--rows", "500", "--kills", "5", "--without", "read-back"])?;
    check(figure(&output, "missing")? > 0 && !output.status.success(), "nothing is lost", &output)
}
