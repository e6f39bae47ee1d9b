use std::time::Duration;

use crate::{
    Address, Error, ErrorKind,
    config::{
        Config,
        MonitorRuleKind::DeadLettersRising,
        NumberOrDuration::{Duration as Span, Number},
    },
    topology::DeclareMode,
};

const SHOP: &str = r#"
[bus]
url = "${BROKER:-memory://}"
prefix = "shop-dev"
declare = "verify"
event_source = "/shop/${REGION:-eu}"
publish_timeout = "5s"
give_up_after = "never"
max_pending_bytes = 1024

[queues.payments]
max_deliveries = 5
lock = "30s"

[queues.payments.options.rabbitmq]
type = "classic"
token = "${TOKEN:-t0ken}"

[topics.order-events]
ordered = true

[topics.order-events.subscriptions.billing]
types = ["order.*", "${EXTRA:-refund.made}"]
retry = ["1s", "5s", "30s", "5m"]
"#;

fn none(_: &str) -> Option<String> {
    None
}

fn with<'a>(vars: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
    |name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string())
}

/// The error's text for a file named shop.toml; fails if it is of another kind than `ConfigInvalid`.
fn error(text: &str, vars: &[(&str, &str)]) -> String {
    let e = Config::from_text_with("shop.toml", text, with(vars)).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::ConfigInvalid, "{e}");
    assert_eq!(std::error::Error::source(&e).map(|e| e.to_string()), None);
    e.to_string()
}

#[test]
fn every_setting_arrives() {
    let config = Config::from_text_with("shop.toml", SHOP, none).unwrap();
    assert_eq!(config.url().unwrap(), "memory://");
    let options = config.options();
    assert_eq!((options.declare, options.event_source.as_str()), (DeclareMode::Verify, "/shop/eu"));
    assert_eq!((options.publish_timeout, options.max_pending_bytes), (Duration::from_secs(5), 1024));
    assert_eq!(options.give_up_after, Duration::MAX);
    let billing = &options.topology.topics["order-events"].subscriptions["billing"];
    assert!(billing.types[1].matches("refund.made"));
    assert_eq!(billing.retry.as_ref().unwrap().len(), 4);
    assert_eq!(options.topology.queues["payments"].options["rabbitmq"]["token"], "t0ken");
    assert_eq!(&*options.topology.address(&Address::queue("payments")).physical, "shop-dev_payments");
}

#[test]
fn an_empty_file_is_all_defaults() {
    let config = Config::from_text_with("shop.toml", "", none).unwrap();
    assert_eq!(config, Config::default());
    let (ours, default) = (config.options(), crate::bus::BusOptions::default());
    assert_eq!((ours.event_source, ours.publish_timeout), (default.event_source, default.publish_timeout));
    assert_eq!((ours.max_pending_bytes, ours.declare), (default.max_pending_bytes, default.declare));
    let e = config.url().unwrap_err().to_string();
    assert!(e.contains("set url in [bus]") && e.contains("POLYBUS_URL"), "{e}");
}

#[test]
fn polybus_url_replaces_the_files_url() {
    let text = "[bus]\nurl = \"${NOT_SET}\"\nevent_source = \"${A}\"";
    let vars = [("POLYBUS_URL", "amqp://u:s3cret@h"), ("A", "/a")];
    let config = Config::from_text_with("shop.toml", text, with(&vars)).unwrap();
    assert_eq!((config.url().unwrap(), config.bus.event_source.as_deref()), ("amqp://u:s3cret@h", Some("/a")));

    let empty =
        Config::from_text_with("shop.toml", "[bus]\nurl = \"memory://\"", with(&[("POLYBUS_URL", "")])).unwrap();
    assert_eq!(empty.url().unwrap(), "memory://");

    let e = error(text, &[("POLYBUS_URL", "s3cret@h"), ("A", "/a")]);
    assert!(e.contains("POLYBUS_URL: malformed bus URL") && !e.contains("s3cret"), "{e}");
}

#[test]
fn serde_goes_both_ways() {
    let config = Config::from_text_with("shop.toml", SHOP, none).unwrap();
    let text = toml::to_string(&config).unwrap();
    assert_eq!(Config::from_text_with("again.toml", &text, none).unwrap(), config, "{text}");
    assert_eq!(serde_json::from_value::<Config>(serde_json::to_value(&config).unwrap()).unwrap(), config);
}

#[test]
fn debug_shows_no_secret() {
    let vars = [("BROKER", "amqp://u:s3cret@h/v?key=s3cret"), ("TOKEN", "s3cret")];
    let config = Config::from_text_with("shop.toml", SHOP, with(&vars)).unwrap();
    let topology = config.topology();
    let entity = topology.address(&Address::queue("payments"));
    let shown = format!("{config:?} {config:#?} {:?} {topology:?} {entity:?} {:?}", config.bus, topology.plan());
    assert!(!shown.contains("s3cret"), "{shown}");
    assert!(shown.contains("amqp://***@h/***?***") && shown.contains("token"), "{shown}");
    assert_eq!(topology.queues["payments"].options["rabbitmq"]["token"], "s3cret");
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_what_was_meant() {
    assert_eq!(
        error("[bus]\n\n[queues.payments]\n# five\n\n\nmax_delivries = 5\n", &[]),
        "ConfigInvalid: shop.toml:7: unknown key \"max_delivries\" in [queues.payments]: did you mean max_deliveries? the \
         known keys are ordered, max_deliveries, lock, retry, max_hold, dead_letter_expired, physical, options \
         (key=queues.payments.max_delivries)"
    );
}

#[test]
fn mistakes_name_file_line_key_and_what_is_right() {
    let long = format!("[queues.a]\nphysical = \"{}\"", "x".repeat(256));
    for (text, at, key, words) in [
        // Keys
        ("[buss]\nurl = \"memory://\"", 1, "buss", "did you mean bus?"),
        ("[bus]\nurll = \"memory://\"", 2, "bus.urll", "did you mean url?"),
        ("queue = 1", 1, "queue", "known keys are bus, queues, topics"),
        ("[topics.t]\ntypes = []", 2, "topics.t.types", "in [topics.t]"),
        ("[topics.t.subscriptions.s]\ntype = []", 2, "topics.t.subscriptions.s.type", "did you mean types?"),
        ("[topics.t.subscriptions.s]\nordered = true", 2, "topics.t.subscriptions.s.ordered", "unknown key"),
        (
            "[topics]\nt = { subscriptions = { s = { lokc = \"3s\" } } }",
            2,
            "topics.t.subscriptions.s.lokc",
            "mean lock?",
        ),
        // Duplicates and syntax
        ("[queues.a]\nlock = \"3s\"\nlock = \"4s\"", 3, "queues.a.lock", "duplicate key"),
        ("[queues.a]\n[queues.b]\n\n[queues.a]", 4, "queues.a", "duplicate key"),
        ("[bus]\nurl = amqp://u:s3cret@h", 2, "bus.url", "string"),
        ("[bus]\nurl = \"amqp://u:s3cret@h", 2, "bus.url", "invalid basic string"),
        // Values
        ("[bus]\nurl = 5", 2, "bus.url", "expected a string"),
        ("[bus]\nurl = \"u:s3cret@h\"", 2, "bus.url", "expected scheme://"),
        ("[bus]\nprefix = \"Shop_Dev\"", 2, "bus.prefix", "use 1 to 63 of a-z"),
        ("[bus]\ndeclare = \"creat\"", 2, "bus.declare", "expected one of `create`, `verify`, `off`"),
        ("[bus]\nevent_source = \"\"", 2, "bus.event_source", "name the service"),
        ("[bus]\npublish_timeout = \"30\"", 2, "bus.publish_timeout", "such as 250ms, 30s"),
        ("[bus]\ngive_up_after = \"ever\"", 2, "bus.give_up_after", "30s, 5m, 2h or 1d, or never"),
        ("[bus]\npublish_timeout = 30", 2, "bus.publish_timeout", "expected a string"),
        ("[bus]\npublish_timeout = \"0s\"", 2, "bus.publish_timeout", "such as \"30s\""),
        ("[bus]\nmax_pending_bytes = 0", 2, "bus.max_pending_bytes", "at least 1"),
        ("[queues.a]\nmax_deliveries = 0", 2, "queues.a.max_deliveries", "at least 1"),
        ("[queues.a]\nmax_deliveries = -1", 2, "queues.a.max_deliveries", "expected u32"),
        ("[queues.a]\nlock = \"10ms\"", 2, "queues.a.lock", "at least 1s"),
        ("[queues.a]\nretry = []", 2, "queues.a.retry", "at least one delay"),
        ("[queues.a]\nretry = [\"1s\",\n  \"x\"]", 3, "queues.a.retry[1]", "duration \"x\""),
        ("[queues.a]\nphysical = \"\"", 2, "queues.a.physical", "not be empty"),
        (&long, 2, "queues.a.physical", "longer than 255"),
        ("[topics.t]\nphysical = \"\"", 2, "topics.t.physical", "not be empty"),
        (
            "[topics.t.subscriptions.s]\ntypes = [\"a\",\n  \"b*\"]",
            3,
            "topics.t.subscriptions.s.types[1]",
            "followed by .*",
        ),
        // Names
        ("[queues.ok]\n[queues.Payments]", 2, "queues.Payments", "use 1 to 63 of a-z"),
        ("[queues.\"a.b\"]", 1, "queues.a.b", "queue name \"a.b\""),
        ("[topics.\"\"]", 1, "topics.", "topic name \"\""),
        ("[topics.t.subscriptions.-s]", 1, "topics.t.subscriptions.-s", "subscription name"),
        // Names that collide
        (
            "[bus]\nprefix = \"p\"\n[queues.a]\n[queues.b]\nphysical = \"p_a\"",
            4,
            "queues.b",
            "queue:a and queue:b would both be \"p_a\" at the broker",
        ),
        ("[topics.a]\nphysical = \"b\"\n[topics.b]", 3, "topics.b", "topic:a and topic:b would both be \"b\""),
        (
            "[topics.t.subscriptions.a]\nphysical = \"b\"\n[topics.t.subscriptions.b]",
            3,
            "topics.t.subscriptions.b",
            "would both be \"b\"",
        ),
        // Variables
        ("[bus]\nurl = \"${NOT_SET}\"", 2, "bus.url", "variable NOT_SET is not set"),
        ("[queues.a.options.x]\na = [{ b = \"${NOT_SET}\" }]", 2, "queues.a.options.x.a[0].b", "NOT_SET"),
        ("[bus]\nevent_source = \"${A\"", 2, "bus.event_source", "${ without }"),
    ] {
        let e = error(text, &[]);
        assert!(e.starts_with(&format!("ConfigInvalid: shop.toml:{at}: ")), "{e}");
        assert!(e.ends_with(&format!("(key={key})")) && e.contains(words), "{e}");
        assert!(!e.contains("s3cret"), "{e}");
    }
}

#[test]
fn what_came_from_the_environment_is_never_shown() {
    for text in [
        "[bus]\nurl = \"${S}\"",
        "[bus]\nprefix = \"${S}\"",
        "[bus]\ndeclare = \"${S}\"",
        "[bus]\npublish_timeout = \"${S}\"",
        "[bus]\nmax_pending_bytes = \"${S}\"",
        "[queues.a]\nretry = [\"${S}\"]",
        "[topics.a.subscriptions.b]\ntypes = [\"${S}\"]",
        "[queues.a]\nlock = \"x${S}\"",
        "[queues]\na = \"${S}\"",
    ] {
        for secret in ["S3cret \"x\" \\ é", "S3 ", "u:S3cret@h"] {
            let e = error(text, &[("S", secret)]);
            assert!(!e.contains(secret) && !e.contains("S3") && e.contains("shop.toml:2"), "{e}");
        }
    }
}

#[test]
fn later_mistakes_are_located_too() {
    let text = "[queues.a.options.x]\n\ntoken = \"${S}\"\n[topics.t]\n[topics.t.subscriptions.s]\n";
    let config = Config::from_text_with("shop.toml", text, with(&[("S", "s3cret")])).unwrap();
    for (key, value, line) in [
        ("source", "subscription:t/s", ":5"),
        ("source", "subscription:t/s#dead-letters", ":5"),
        ("source", "queue:a", ":1"),
        ("address", "topic:t", ":4"),
        ("address", "queue:unknown", ":1"),
        ("key", "queues.a.options.x.token", ":3"),
        ("other", "queue:a", ""),
    ] {
        let e = config.locate(Error::unsupported("no").with_backend("x").with_context(key, value));
        assert_eq!(e.to_string(), format!("Unsupported: shop.toml{line}: no (backend=x, {key}={value})"));
    }
    let wrong = config.topology().address(&Address::queue("a")).options::<std::collections::BTreeMap<String, u8>>("x");
    let e = config.locate(wrong.unwrap_err()).to_string();
    assert!(e.contains("shop.toml:1: ") && e.contains("\"${S}\"") && !e.contains("s3cret"), "{e}");
    assert_eq!(Config::default().locate(Error::invalid("no")).to_string(), "InvalidArgument: no");
}

#[test]
fn files() {
    let dir = std::env::temp_dir().join(format!("polybus-config-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("shop.toml");
    let missing = Config::from_path_with(&path, none).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::ConfigInvalid);
    assert!(missing.to_string().contains(path.to_str().unwrap()), "{missing}");

    std::fs::write(&path, "\u{feff}[bus]\r\nurl = \"memory://\"\r\n").unwrap();
    assert_eq!(Config::from_path_with(&path, none).unwrap().url().unwrap(), "memory://");

    std::fs::write(&path, "[bus]\r\n\r\nurll = \"memory://\"\r\n").unwrap();
    let e = Config::from_path_with(&path, none).unwrap_err().to_string();
    assert!(e.contains(&format!("{}:3: unknown key \"urll\"", path.display())), "{e}");

    std::fs::write(&path, b"\xff").unwrap();
    assert!(Config::from_path_with(&path, none).unwrap_err().to_string().contains("UTF-8"));
    std::fs::remove_dir_all(&dir).unwrap();
}

const MONITOR: &str = r#"
[monitor]
name = "shop"
every = "30s"
remind_every = "never"
unknown_after = 3

[[monitor.rules]]
name = "backlog"
source = "queue:payments"
kind = "depth"
above = 10000
clear_below = 5000.5
held_for = "1m"
keep_firing_for = 4

[[monitor.rules]]
source = "subscription:order-events/billing"
kind = "dead_letters_rising"
over = "10m"

[[monitor.rules]]
source = "queue:payments"
kind = "age"
above = "5m"

[[monitor.webhooks]]
url = "https://u:${PASSWORD}@hooks.example.com/${TOKEN}?key=${TOKEN}"
secret = "${SECRET}"
old_secrets = ["${OLD}"]
"#;

#[test]
fn a_monitor_arrives_and_shows_no_secret() {
    let vars = [("PASSWORD", "hunter2"), ("TOKEN", "t0ken"), ("SECRET", "whsec_s3cret"), ("OLD", "whsec_0ld")];
    let config = Config::from_text_with("shop.toml", MONITOR, with(&vars)).unwrap();
    let monitor = config.monitor.as_ref().unwrap();
    let every = Some(Duration::from_secs(30));
    assert_eq!((monitor.every, monitor.remind_every, monitor.unknown_after), (every, Some(Duration::MAX), Some(3)));
    let [backlog, rising, age] = &monitor.rules[..] else { panic!("{:?}", monitor.rules) };
    assert_eq!((backlog.above, backlog.clear_below), (Some(Number(10_000.0)), Some(Number(5000.5))));
    assert_eq!((backlog.held_for, backlog.keep_firing_for), (Some(Span(Duration::from_secs(60))), Some(Number(4.0))));
    assert_eq!((rising.kind, rising.above, rising.over), (DeadLettersRising, None, Some(Duration::from_secs(600))));
    assert_eq!((age.above, age.source.to_string()), (Some(Span(Duration::from_secs(300))), "queue:payments".into()));
    let webhook = &monitor.webhooks[0];
    assert_eq!((webhook.secret.as_str(), webhook.old_secrets[0].as_str()), ("whsec_s3cret", "whsec_0ld"));
    let shown = format!("{config:?}");
    assert!(vars.iter().all(|(_, secret)| !shown.contains(secret)), "{shown}");
    // What is written is what was read.
    let written = toml::to_string(&config).unwrap();
    assert!(written.contains("keep_firing_for = 4\n"), "{written}");
    assert_eq!(Config::from_text_with("shop.toml", &written, none).unwrap(), config);
}

#[test]
fn mistakes_of_a_monitor_name_their_line() {
    let rule = |lines: &str| format!("[monitor]\n[[monitor.rules]]\nsource = \"queue:a\"\nkind = \"depth\"\n{lines}");
    let hook = |lines: &str| rule(&format!("above = 1\n[[monitor.webhooks]]\n{lines}"));
    for (text, wanted) in [
        ("[monitor]".into(), "shop.toml:1: the monitor has no rule"),
        (rule("abov = 1"), "shop.toml:5: unknown key \"abov\" in [monitor.rules[0]]: did you mean above?"),
        (rule("above = \"5m\""), "shop.toml:5: above: write a number"),
        (rule("above = \"many\""), "shop.toml:5: duration \"many\": expected"),
        (rule("above = true"), "shop.toml:5: invalid type: boolean `true`, expected a number, or a duration"),
        (rule("held_for = 0"), "shop.toml:5: held_for: write a whole number of polls, at least 1"),
        (rule("held_for = 1.5"), "shop.toml:5: held_for: write a whole number"),
        (rule("over = 5"), "shop.toml:5: invalid type"),
        (rule("").replace("depth", "dept"), "shop.toml:4: unknown variant `dept`"),
        (rule("").replace("depth", "age") + "above = 300", "shop.toml:5: above: write a duration"),
        (rule("").replace("queue:a", "queue:a#dead-letters"), "shop.toml:3: source: dead letters are counted"),
        (rule("").replace("queue:a", "a"), "shop.toml:3: "),
        (rule("").replace("[monitor]", "[monitor]\nevery = \"999ms\""), "shop.toml:2: every must be from 1s to 1d"),
        (rule("").replace("[monitor]", "[monitor]\nunknown_after = 1"), "shop.toml:2: unknown_after must be"),
        (rule("").replace("[monitor]", "[monitor]\nremind_every = \"0s\""), "shop.toml:2: remind_every must"),
        (hook("secret = \"s\""), "shop.toml:6: missing field `url`"),
        (hook("url = \"ftp://h/${SECRET}\"\nsecret = \"s\""), "shop.toml:7: url must be a URL with https://"),
        (hook("url = \"${SECRET}\"\nsecret = \"s\""), "shop.toml:7: url must be a URL with https://"),
        (hook("url = \"https://h\"\nsecret = \"${UNSET}\""), "shop.toml:8: the environment variable UNSET is not set"),
    ] {
        let e = error(&text, &[("SECRET", "hunter22")]);
        assert!(e.contains(wanted) && !e.contains("hunter22"), "{text}\n{wanted}\n{e}");
    }
}
