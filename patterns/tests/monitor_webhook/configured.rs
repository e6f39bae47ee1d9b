//! The table `[monitor]`, up to the request that it leads to.

use polybus_core::{Address, Bus, Config, Envelope, Error, ErrorKind, Registry, Source};
use polybus_patterns::monitor::{AgeGauge, Monitor, Rule};
use tokio::sync::oneshot;

use crate::{OLD_SECRET, SECRET, server::Receiver, signature};

const SHOP: &str = r#"
[bus]
url = "memory://"

[queues.payments]

[monitor]
every = "1s"

[[monitor.rules]]
name = "backlog"
source = "queue:payments"
kind = "depth"
above = 1
held_for = 2

[[monitor.webhooks]]
url = "${HOOK}"
secret = "${SECRET}"
old_secrets = ["${OLD}"]
"#;

fn config(text: &str, hook: &str, secret: &str) -> Result<Config, Error> {
    let (hook, secret) = (hook.to_owned(), secret.to_owned());
    Config::from_text_with("shop.toml", text, move |name| match name {
        "HOOK" => Some(hook.clone()),
        "SECRET" => Some(secret.clone()),
        "OLD" => Some(OLD_SECRET.into()),
        _ => None,
    })
}

async fn bus(config: &Config) -> Bus {
    let bus = Bus::new(Registry::new().connect(config.url().unwrap()).await.unwrap(), config.options()).unwrap();
    bus.declare().await.unwrap();
    bus
}

#[tokio::test]
async fn a_file_leads_to_a_request() {
    let receiver = Receiver::start([], None).await;
    let config = config(SHOP, &receiver.url(), SECRET).unwrap();
    let bus = bus(&config).await;
    for _ in 0..2 {
        bus.publish(Address::queue("payments"), Envelope::new("payment.made", "{}")).await.unwrap();
    }
    let (stop, stopped) = oneshot::channel::<()>();
    let monitor = Monitor::from_config(&bus, &config).unwrap();
    assert!(!format!("{monitor:?} {config:?}").contains(SECRET));
    let run = tokio::spawn(monitor.run(async { drop(stopped.await) }));
    let received = receiver.until(1).await.remove(0);
    stop.send(()).unwrap();
    let report = run.await.unwrap().unwrap();
    assert_eq!((report.fired, report.sent), (1, 2), "to the log too");
    let wanted = format!("{} {}", signature(SECRET, &received), signature(OLD_SECRET, &received));
    assert_eq!(received.header("webhook-signature"), wanted);
    assert_eq!(received.json()["data"]["alert"], "backlog");
}

#[tokio::test]
async fn mistakes_name_their_line_and_show_no_secret() {
    let hook = "https://hooks.example.com/t0psecret";
    let refused = |text: &str, secret: &str| {
        let config = config(text, hook, secret).unwrap();
        async move {
            let error = Monitor::from_config(&bus(&config).await, &config).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
            assert!(!format!("{error:?}").contains("t0psecret"), "{error:?}");
            error.message().to_owned()
        }
    };
    let text = refused(SHOP, "t0psecret").await;
    assert!(text.starts_with("shop.toml:19: a webhook's secret must be"), "{text}");
    let text = refused(&SHOP.replace("${OLD}", "t0psecret"), SECRET).await;
    assert!(text.starts_with("shop.toml:20: a webhook's secret must be"), "{text}");
    let text = refused(&SHOP.replace("above = 1\n", "above = 1\nclear_below = 2\n"), SECRET).await;
    assert!(text.starts_with("shop.toml:10: ") && text.contains("must not be higher"), "{text}");
    let text = refused(&SHOP.replace("above = 1\n", ""), SECRET).await;
    assert!(text.starts_with("shop.toml:10: ") && text.contains("set above"), "{text}");
    let text = refused("[bus]\nurl = \"memory://\"", SECRET).await;
    assert!(text.contains("no table [monitor]"), "{text}");
}

/// The files in the documentation work, up to the request.
#[tokio::test]
async fn the_files_of_the_documentation() {
    let page = include_str!("../../../docs/patterns/monitors.md");
    let blocks: Vec<&str> = page.split("```toml\n").skip(1).map(|rest| rest.split_once("```").unwrap().0).collect();
    let files: Vec<&str> = blocks.iter().copied().filter(|block| block.starts_with("[bus]")).collect();
    let age = blocks.iter().copied().find(|block| block.starts_with("[[monitor.rules]]")).unwrap();
    assert!(files.len() == 2 && age.contains("\"age\""), "the least, all, and a rule about age");
    let receiver = Receiver::start([], None).await;
    let url = receiver.url();
    let env = |name: &str| match name {
        "ALERTS_URL" => Some(url.clone()),
        "ALERTS_SECRET" => Some(SECRET.to_owned()),
        _ => None,
    };
    let with_age = format!("{}\n{age}", files[0]);
    for (i, file) in files.into_iter().chain([&*with_age]).enumerate() {
        let config = Config::from_text_with("shop.toml", file, env).unwrap();
        let bus = bus(&config).await;
        let gauge = AgeGauge::new(&bus, Source::queue("payments"));
        let on = Rule::measure("on", async || Ok(Some(1.0))).above(0).held_for(1);
        let monitor = Monitor::from_config(&bus, &config).unwrap().age_gauge(&gauge).rule(on);
        let report = monitor.run(async { drop(receiver.until(i + 1).await) }).await.unwrap();
        assert_eq!((report.failed, report.fired), (0, 1));
    }
}

#[tokio::test]
async fn two_webhooks_without_names_are_refused() {
    let two = format!("{SHOP}\n[[monitor.webhooks]]\nurl = \"${{HOOK}}\"\nsecret = \"${{SECRET}}\"\n");
    let error = config(&two, "https://hooks.example.com/t0psecret", SECRET).unwrap_err();
    let text = error.message();
    assert!(text.contains("two webhooks are named \"webhook\"") && !text.contains("t0psecret"), "{text}");
    let named = two.replace("[[monitor.webhooks]]\nurl", "[[monitor.webhooks]]\nname = \"w\"\nurl");
    assert!(config(&named, "https://hooks.example.com/", SECRET).is_err(), "both are named w");
    assert!(config(&format!("{two}name = \"w\"\n"), "https://hooks.example.com/", SECRET).is_ok());
}
