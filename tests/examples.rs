//! Runs the examples: on `memory://` always, on RabbitMQ 3.10 and 4 where `POLYBUS_RABBITMQ_URL` and
//! `POLYBUS_RABBITMQ4_URL` name one, on SQS and SNS where `POLYBUS_AWS_URL` does, on Service Bus where
//! `POLYBUS_SERVICEBUS_URL` does. The database of `outbox` and `nightly` is SQLite, and also PostgreSQL and MariaDB where
//! `POLYBUS_POSTGRES_URL` and `POLYBUS_MARIADB_URL` name one. A list such as
//! `POLYBUS_REQUIRE=rabbitmq,rabbitmq4,aws,servicebus,postgres,mariadb` makes a missing one a failure.

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};

#[allow(dead_code)]
#[path = "../examples/large_files/main.rs"]
mod large_files;
#[allow(dead_code)]
#[path = "../examples/nightly/main.rs"]
mod nightly;
#[allow(dead_code, unreachable_pub)]
#[path = "../examples/orders.rs"]
mod orders;
#[allow(dead_code)]
#[path = "../examples/outbox/main.rs"]
mod outbox;
#[allow(dead_code)]
#[path = "../examples/quotes/main.rs"]
mod quotes;
#[allow(dead_code)]
#[path = "../examples/webhooks/main.rs"]
mod webhooks;

type Tested = Result<(), Failed>;
type Test = fn(&str) -> Tested;
type Change<S> = fn(&mut S);

fn main() -> ExitCode {
    let mut trials = trials("memory", &TESTS, Ok("memory://".into()));
    for (broker, on, variable) in [
        ("rabbitmq", cfg!(feature = "rabbitmq"), "POLYBUS_RABBITMQ_URL"),
        ("rabbitmq4", cfg!(feature = "rabbitmq"), "POLYBUS_RABBITMQ4_URL"),
        ("aws", cfg!(feature = "aws"), "POLYBUS_AWS_URL"),
        ("servicebus", cfg!(feature = "servicebus"), "POLYBUS_SERVICEBUS_URL"),
    ] {
        let url =
            if on { std::env::var(variable).map_err(|_| "its URL is not set") } else { Err("its feature is off") };
        trials.extend(self::trials(broker, &TESTS, url));
    }
    let postgres = std::env::var("POLYBUS_POSTGRES_URL").map_err(|_| "its URL is not set");
    let on_a_server: [(&str, Test); 2] = [("outbox", outbox_on_a_server), ("nightly", nightly)];
    trials.extend(self::trials("postgres", &on_a_server, postgres));
    let mariadb = std::env::var("POLYBUS_MARIADB_URL").map_err(|_| "its URL is not set");
    trials.extend(self::trials("mariadb", &on_a_server, mariadb));
    let file = std::env::temp_dir().join(unique("polybus-nightly"));
    trials.extend(self::trials("sqlite", &[("nightly", nightly)], Ok(format!("sqlite:{}", file.display()))));
    trials.push(Trial::test("nights_that_do_not_balance_are_noticed", nights_that_do_not_balance_are_noticed));
    trials.push(Trial::test("books_that_do_not_balance_are_noticed", books_that_do_not_balance_are_noticed));
    trials.push(Trial::test("an_outbox_takes_no_file_that_is_there", an_outbox_takes_no_file_that_is_there));
    trials.push(Trial::test("what_does_not_add_up_is_noticed", what_does_not_add_up_is_noticed));
    trials.push(Trial::test("files_that_are_lost_are_noticed", files_that_are_lost_are_noticed));
    let mut arguments = Arguments::from_args();
    // They take turns: one of them measures time.
    arguments.test_threads.get_or_insert(1);
    libtest_mimic::run(&arguments, trials).exit_code()
}

const TESTS: [(&str, Test); 6] = [
    ("orders", orders),
    ("webhooks", webhooks),
    ("webhooks_of_ones_own", webhooks_of_ones_own),
    ("outbox", outbox),
    ("quotes", quotes),
    ("large_files", large_files),
];

fn trials(broker: &str, tests: &[(&str, Test)], url: Result<String, &'static str>) -> Vec<Trial> {
    let required = std::env::var("POLYBUS_REQUIRE").unwrap_or_default();
    let required = required.split(',').any(|name| name.trim() == broker);
    let trial = |&(name, test): &(&str, Test)| {
        let name = format!("{broker}::{name}");
        match url.clone() {
            Ok(url) => Trial::test(name, move || test(&url)),
            Err(why) if required => Trial::test(name, move || Err(format!("required, but {why}").into())),
            Err(why) => Trial::test(name, || Ok(())).with_kind(why).with_ignored_flag(true),
        }
    };
    tests.iter().map(trial).collect()
}

fn block_on<T>(work: impl Future<Output = T>) -> Result<T, Failed> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(work))
}

fn unique(name: &str) -> String {
    let id = polybus::Envelope::new("unique", "").id.clone();
    format!("{name}-{}", &id[id.len() - 12..])
}

fn orders(url: &str) -> Tested {
    let charged = block_on(orders::run(url, &unique("orders")))??;
    check("charged", charged, 10)
}

fn check<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Tested {
    if found == wanted { Ok(()) } else { Err(format!("{what}: {found:?} instead of {wanted:?}").into()) }
}

fn args(url: &str, input: Option<PathBuf>) -> webhooks::Args {
    let mut args = <webhooks::Args as clap::Parser>::parse_from(["webhooks"]);
    args.url = Some(url.into());
    args.input = input.unwrap_or(args.input);
    args
}

fn webhooks(url: &str) -> Tested {
    let summary = block_on(webhooks::run(args(url, None)))?.map_err(|e| e.to_string())?;
    println!("{summary}");
    check("problems", summary.problems(), Vec::new())?;
    check("messages", summary.messages, 330)?;
    let counts: Vec<_> = summary.rows.iter().map(|r| (r.published, r.counts.handled, r.redriven, r.left)).collect();
    check("published, handled, redriven, left", counts, vec![(39, 38, 0, 1), (31, 31, 1, 0), (330, 330, 0, 0)])?;
    let reasons = |row: usize| summary.rows[row].dead_lettered.clone();
    check("issues", reasons(0), BTreeMap::from([("max-deliveries-exceeded".into(), 1)]))?;
    check("ci", reasons(1), BTreeMap::from([("permanent".into(), 1)]))?;
    check("audit", reasons(2), BTreeMap::new())?;
    check("no handler fails", summary.rows.iter().any(|r| r.counts.retried == 0), false)?;
    // A broker is as slow as all that runs beside it.
    let most = if url.starts_with("memory:") { 20 } else { 180 };
    check("within time", summary.took.as_secs() < most, true)
}

fn webhooks_of_ones_own(url: &str) -> Tested {
    let file = std::env::temp_dir().join(unique("polybus-webhooks"));
    std::fs::write(&file, "{\"event\":\"ping\",\"action\":null,\"payload\":{\"zen\":\"ok\"}}\n\n")?;
    let summary = block_on(webhooks::run(args(url, Some(file.clone()))))?.map_err(|e| e.to_string())?;
    check("problems", summary.problems(), Vec::new())?;
    check("messages", summary.messages, 2)?;

    std::fs::write(&file, "{\"event\":\"ping\",\"payload\":{}}\n{\"event\":1}\n")?;
    let refused = block_on(webhooks::run(args(url, Some(file.clone()))))?;
    std::fs::remove_file(&file)?;
    let Err(refused) = refused else { return Err("a file with a wrong line was taken".into()) };
    let refused = refused.to_string();
    check(&refused, refused.contains(&format!("{}:2: ", file.display())), true)
}

fn what_does_not_add_up_is_noticed() -> Tested {
    let good = || {
        let counts = webhooks::Counts { handled: 5, retried: 2, given_up: 2, ..Default::default() };
        let dead_lettered = BTreeMap::from([("permanent".into(), 2)]);
        let row = webhooks::Row { published: 6, counts, dead_lettered, redriven: 1, left: 1, ..Default::default() };
        let published = BTreeMap::from([("webhooks".into(), 6)]);
        webhooks::Summary { messages: 6, published, rows: vec![row], ..Default::default() }
    };
    check("good", good().problems(), Vec::new())?;
    let wrong: [(&str, Change<webhooks::Summary>); 7] = [
        ("messages published", |s| s.messages += 1),
        ("published + ", |s| s.rows[0].published += 1),
        ("handled + ", |s| s.rows[0].counts.handled -= 1),
        ("given up, but", |s| s.rows[0].counts.given_up -= 1),
        ("dead-lettered are not", |s| s.rows[0].left += 1),
        ("dead-lettered are not", |s| s.rows[0].dead_lettered.clear()),
        ("out of order", |s| s.rows[0].counts.out_of_order += 1),
    ];
    for (words, break_it) in wrong {
        let mut summary = good();
        break_it(&mut summary);
        let found = summary.problems().join(", ");
        check(&found, found.contains(words) && summary.to_string().contains("does NOT add up"), true)?;
    }
    Ok(())
}

fn quotes(url: &str) -> Tested {
    let mut args = <quotes::Args as clap::Parser>::parse_from(["quotes"]);
    args.url = Some(url.into());
    args.calls = if url.starts_with("memory:") { 300 } else { 100 };
    let summary = block_on(quotes::run(args))?.map_err(|e| e.to_string())?;
    println!("{summary}");
    check("problems", summary.problems(), Vec::new())?;
    check("a conversation over three services", summary.tree.lines().count() >= 5, true)?;
    // A table that hides a fault is worth nothing.
    let mut wrong = summary;
    wrong.outcomes.answered -= 1;
    check("what is missing is noticed", wrong.to_string().contains("does NOT add up"), true)
}

fn outbox_args(url: &str, database: &str, orders: u32) -> outbox::Args {
    let mut args = <outbox::Args as clap::Parser>::parse_from(["outbox"]);
    (args.url, args.database, args.orders) = (Some(url.into()), Some(database.into()), orders);
    args
}

fn outbox(url: &str) -> Tested {
    let file = std::env::temp_dir().join(unique("polybus-outbox"));
    let orders = if url.starts_with("memory:") { 400 } else { 150 };
    outbox_on(outbox_args(url, &format!("sqlite:{}", file.display()), orders))?;
    check("the file is left", file.exists(), false)
}

fn nightly(database: &str) -> Tested {
    let mut args = <nightly::Args as clap::Parser>::parse_from(["nightly"]);
    (args.database, args.orders) = (Some(database.into()), 400);
    let summary = block_on(nightly::run(args))?.map_err(|e| e.to_string())?;
    println!("{summary}");
    check("problems", summary.problems(), Vec::new())?;
    check("rolled back", summary.rolled_back, 400 / 7)?;
    check("failures were tried again", summary.retries > 0, true)
}

fn nights_that_do_not_balance_are_noticed() -> Tested {
    let good = || {
        let entries = nightly::Entries { rows: 6, orders: 6, cents: 600 };
        nightly::Summary {
            begun: 7,
            rolled_back: 1,
            orders: entries.clone(),
            invoices: entries.clone(),
            mails: nightly::Entries { rows: 7, ..entries },
            sent_later: 1,
            statements_cents: 600,
            reports: 3,
            days: 3,
            days_between: 3,
            ..Default::default()
        }
    };
    check("good", good().problems(), Vec::new())?;
    let wrong: [(&str, Change<nightly::Summary>); 13] = [
        ("orders were begun", |s| s.begun += 1),
        ("invoices for 5 orders instead of 6", |s| s.invoices.orders -= 1),
        ("invoices: 7 for 6 orders", |s| s.invoices.rows += 1),
        ("invoices of 599 cents", |s| s.invoices.cents -= 1),
        ("mails for 5 orders instead of 6", |s| s.mails.orders -= 1),
        ("mails: 5 for 6 orders", |s| s.mails.rows = 5),
        ("of rolled-back orders", |s| s.of_no_order += 1),
        ("statements of 599 cents", |s| s.statements_cents -= 1),
        ("no mail was given up", |s| s.sent_later = 0),
        ("4 reports for 3 days", |s| s.reports += 1),
        ("reports for 3 of 4 days", |s| s.days_between += 1),
        ("1 jobs wait or run", |s| s.waiting += 1),
        ("1 jobs are given up", |s| s.discarded += 1),
    ];
    for (words, break_it) in wrong {
        let mut summary = good();
        break_it(&mut summary);
        let found = summary.problems().join(", ");
        check(&found, found.contains(words) && summary.to_string().contains("do NOT balance"), true)?;
    }
    Ok(())
}

fn outbox_on_a_server(database: &str) -> Tested {
    outbox_on(outbox_args("memory://", database, 400))
}

fn outbox_on(args: outbox::Args) -> Tested {
    let orders = u64::from(args.orders);
    let summary = block_on(outbox::run(args))?.map_err(|e| e.to_string())?;
    println!("{summary}");
    check("problems", summary.problems(), Vec::new())?;
    check("rolled back", summary.rolled_back, orders / 7)?;
    check("invoices", summary.invoices.rows, orders - orders / 7)?;
    check("reminders", summary.reminders.rows > 0, true)?;
    // Others know the ids of the last minutes themselves.
    let hands_out_twice = ["memory", "amqp"].iter().any(|scheme| summary.broker.starts_with(scheme));
    check("messages that came twice", summary.duplicates > 0 || !hands_out_twice, true)
}

fn an_outbox_takes_no_file_that_is_there() -> Tested {
    let file = std::env::temp_dir().join(unique("polybus-outbox"));
    std::fs::write(&file, "precious")?;
    let refused = block_on(outbox::run(outbox_args("memory://", &format!("sqlite:{}", file.display()), 1)))?;
    let left = std::fs::read_to_string(&file)?;
    std::fs::remove_file(&file)?;
    check("what was in the file", left.as_str(), "precious")?;
    let Err(refused) = refused else { return Err("a file that was there was taken".into()) };
    check(&refused.to_string(), refused.to_string().contains("name a new file"), true)
}

fn books_that_do_not_balance_are_noticed() -> Tested {
    let good = || {
        let six = outbox::Entries { rows: 6, orders: 6, cents: 600 };
        let (orders, invoices, mails) = (six.clone(), six.clone(), six);
        let reminders = outbox::Entries { rows: 1, orders: 1, cents: 100 };
        let (begun, rolled_back, reminders_wanted) = (7, 1, 1);
        outbox::Summary {
            begun,
            rolled_back,
            orders,
            invoices,
            mails,
            reminders,
            reminders_wanted,
            ..Default::default()
        }
    };
    check("good", good().problems(), Vec::new())?;
    let wrong: [(&str, Change<outbox::Summary>); 12] = [
        ("orders were begun", |s| s.begun += 1),
        ("invoices for 5 orders instead of 6", |s| s.invoices.orders -= 1),
        ("invoices: 1 orders have more than one", |s| s.invoices.rows += 1),
        ("mails for 5 orders instead of 6", |s| s.mails.orders -= 1),
        ("mails: 1 orders have more than one", |s| s.mails.rows += 1),
        ("reminders for 0 orders instead of 1", |s| s.reminders.orders -= 1),
        ("invoices of 599 cents", |s| s.invoices.cents -= 1),
        ("mails of 601 cents", |s| s.mails.cents += 1),
        ("of rolled-back orders", |s| s.of_no_order += 1),
        ("out of order", |s| s.out_of_order += 1),
        ("parked in the outbox", |s| s.parked += 1),
        ("waiting in the outbox", |s| s.waiting += 1),
    ];
    for (words, break_it) in wrong {
        let mut summary = good();
        break_it(&mut summary);
        let found = summary.problems().join(", ");
        check(&found, found.contains(words) && summary.to_string().contains("do NOT balance"), true)?;
    }
    Ok(())
}

fn large_files(url: &str) -> Tested {
    let mut args = <large_files::Args as clap::Parser>::parse_from(["large_files"]);
    (args.url, args.seed, args.files) = (Some(url.into()), Some(7), 30);
    let summary = block_on(large_files::run(args))?.map_err(|e| e.to_string())?;
    println!("{summary}");
    check("problems", summary.problems(), Vec::new())?;
    check("files", (summary.files, summary.arrived), (30, 32))?;
    check("both ways were gone", (1..30).contains(&summary.in_folder), true)
}

fn files_that_are_lost_are_noticed() -> Tested {
    let good = || {
        let reasons = ["claim-altered", "claim-missing", "claim-outside"].map(|reason| (reason.to_owned(), 1));
        large_files::Summary {
            files: 6,
            bytes: 600,
            in_folder: 4,
            claims: 7,
            arrived: 8,
            arrived_bytes: 10_000_600,
            dead_letters: BTreeMap::from(reasons),
            redriven: 2,
            left: 1,
            swept: 7,
            ..Default::default()
        }
    };
    check("good", good().problems(), Vec::new())?;
    let wrong: [(&str, Change<large_files::Summary>); 9] = [
        ("files that arrived", |s| s.arrived -= 1),
        ("bytes that arrived", |s| s.arrived_bytes -= 1),
        ("wrong hash", |s| s.wrong += 1),
        ("claim-altered: 0", |s| s.dead_letters.retain(|reason, _| reason != "claim-altered")),
        ("dead letters: 4", |s| s.dead_letters.extend([("permanent".into(), 1)])),
        ("redriven", |s| s.redriven -= 1),
        ("are left", |s| s.left += 1),
        ("swept today", |s| s.swept_today += 1),
        ("swept in a month", |s| s.swept -= 1),
    ];
    for (words, break_it) in wrong {
        let mut summary = good();
        break_it(&mut summary);
        let found = summary.problems().join(", ");
        check(&found, found.contains(words) && summary.to_string().contains("does NOT add up"), true)?;
    }
    Ok(())
}
