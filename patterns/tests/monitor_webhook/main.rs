//! Webhooks against a real HTTP server: what is sent, how it is signed, and what becomes of each answer.
#![allow(clippy::unwrap_used)]

mod answers;
#[cfg(feature = "config")]
mod configured;
#[path = "../rows/log.rs"]
mod log;
mod server;
mod tls;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use polybus_core::{
    Address, Bus, BusOptions, Envelope, QueueSpec, Source, Topology,
    memory::MemoryDriver,
    time::{OffsetDateTime, format_description::well_known::Rfc3339},
};
use polybus_patterns::monitor::{Alert, AlertSink, Monitor, Rule, Webhook};
use server::Receiver;
use sha2::{Digest, Sha256};

pub(crate) const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
pub(crate) const OLD_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// HMAC-SHA256 by its definition, with a hash alone.
fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let pad = |byte: u8| -> Vec<u8> { (0..64).map(|i| key.get(i).copied().unwrap_or(0) ^ byte).collect() };
    let inner = Sha256::digest([pad(0x36), text.to_vec()].concat());
    Sha256::digest([pad(0x5c), inner.to_vec()].concat()).to_vec()
}

/// The signature that a receiver computes.
fn signature(secret: &str, received: &server::Received) -> String {
    let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let (id, timestamp) = (received.header("webhook-id"), received.header("webhook-timestamp"));
    let signed = [format!("{id}.{timestamp}.").as_bytes(), &received.body[..]].concat();
    format!("v1,{}", STANDARD.encode(hmac(&key, &signed)))
}

pub(crate) async fn bus() -> Bus {
    let topology = Topology::new().queue("payments", QueueSpec::new());
    let bus = Bus::new(Arc::new(MemoryDriver::new()), BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();
    bus
}

#[test]
fn the_independent_computation_is_right() {
    // RFC 4231, test case 2.
    let mac = hmac(b"Jefe", b"what do ya want for nothing?");
    assert_eq!(mac[..8], [0x5b, 0xdc, 0xc1, 0x46, 0xbf, 0x60, 0x75, 0x4e]);
}

#[tokio::test]
async fn each_secret_signs_what_is_sent() {
    let receiver = Receiver::start([], None).await;
    let webhook = Webhook::new(&receiver.url(), SECRET).unwrap().also_signed_by(OLD_SECRET).unwrap();
    let alert = Alert::sample();
    webhook.send(&alert).await.unwrap();
    webhook.send(&alert).await.unwrap();
    let all = receiver.received();
    for received in &all {
        let wanted = format!("{} {}", signature(SECRET, received), signature(OLD_SECRET, received));
        assert_eq!(received.header("webhook-signature"), wanted);
        assert_eq!(received.header("webhook-id"), alert.id, "the same at each try");
        let at: i64 = received.header("webhook-timestamp").parse().unwrap();
        assert!((OffsetDateTime::now_utc().unix_timestamp() - at).abs() < 60);
        assert_eq!((received.target.as_str(), received.header("content-type")), ("/alerts", "application/json"));
        assert_eq!(received.header("host"), format!("127.0.0.1:{}", receiver.port));
    }
    assert_eq!(all.len(), 2);
}

/// End to end: a monitor of a queue with a message whose every part is a secret.
#[tokio::test]
async fn a_body_has_names_and_numbers_and_nothing_of_any_message() {
    let (log, _keeping) = log::Log::keep();
    let receiver = Receiver::start([], None).await;
    let bus = bus().await;
    for _ in 0..3 {
        let message = Envelope::new("payment.t0psecret", "t0psecret payload")
            .id(format!("t0psecret-{}", uuid::Uuid::now_v7()))
            .key("t0psecret")
            .header("t0psecret", "t0psecret");
        bus.publish(Address::queue("payments"), message).await.unwrap();
    }
    let url = format!("http://u:t0psecret@127.0.0.1:{}/t0psecret?t0psecret", receiver.port);
    let webhook = Webhook::new(&url, SECRET).unwrap();
    assert!(!format!("{webhook:?}").contains("t0psecret"));
    let rule = Rule::depth(Source::queue("payments")).named("backlog").above(2).held_for(1);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let run = tokio::spawn(Monitor::new(&bus).rule(rule).sink(webhook).run(async { drop(stopped.await) }));
    receiver.until(1).await;
    stop.send(()).unwrap();
    let report = run.await.unwrap().unwrap();
    assert_eq!((report.sent, report.dropped), (1, 0));

    let received = &receiver.received()[0];
    assert_eq!(received.target, "/t0psecret?t0psecret", "that is where it went");
    assert_eq!(received.header("authorization"), format!("Basic {}", STANDARD.encode("u:t0psecret")));
    let text = String::from_utf8(received.body.to_vec()).unwrap();
    let secret_part = SECRET.strip_prefix("whsec_").unwrap();
    assert!(!text.contains("t0psecret") && !text.contains(secret_part), "{text}");
    let body = received.json();
    let keys = |value: &serde_json::Value| -> BTreeSet<String> { value.as_object().unwrap().keys().cloned().collect() };
    assert_eq!(keys(&body), ["data", "timestamp", "type"].map(str::to_owned).into());
    let wanted = ["alert", "backend", "cause", "reminder", "rule", "since", "source", "state", "threshold", "value"];
    assert_eq!(keys(&body["data"]), wanted.map(str::to_owned).into());
    let data = &body["data"];
    assert_eq!((&body["type"], &data["alert"]), (&"polybus.alert.firing".into(), &"backlog".into()));
    assert_eq!((&data["rule"], &data["source"]), (&"depth".into(), &"queue:payments".into()));
    assert_eq!((&data["state"], &data["backend"]), (&"firing".into(), &"memory".into()));
    assert_eq!((data["value"].as_f64(), data["threshold"].as_f64()), (Some(3.0), Some(2.0)));
    assert!(data["cause"].is_null() && data["reminder"] == false);
    for time in [&body["timestamp"], &data["since"]] {
        assert!(OffsetDateTime::parse(time.as_str().unwrap(), &Rfc3339).is_ok(), "{time}");
    }
    let lines = log.lines();
    assert!(lines.iter().all(|line| !line.contains("t0psecret") && !line.contains(secret_part)), "{lines:?}");
}

#[tokio::test]
async fn a_hung_webhook_holds_no_other_sink_up() {
    let hung = Receiver::start(vec![server::Act::Hangs; 10], None).await;
    let well = Receiver::start([], None).await;
    let polls = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = polls.clone();
    let restless = Rule::measure("restless", move || {
        let n = counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        async move { Ok(Some((n % 2) as f64)) }
    });
    let monitor = Monitor::new(&bus().await)
        .every(Duration::from_secs(1))
        .rule(restless.above(0).held_for(1))
        .sink(Webhook::new(&hung.url(), SECRET).unwrap().named("hung"))
        .sink(Webhook::new(&well.url(), SECRET).unwrap())
        .drain_timeout(Duration::from_secs(3));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let run = tokio::spawn(monitor.run(async { drop(stopped.await) }));
    let received = well.until(4).await;
    stop.send(()).unwrap();
    let report = run.await.unwrap().unwrap();
    let ids: BTreeSet<&str> = received.iter().map(|received| received.header("webhook-id")).collect();
    assert_eq!(ids.len(), received.len(), "each is told once");
    // The hung one answers none within the drain timeout, and what it was told too late is dropped.
    assert!(report.sent >= 4 && report.dropped >= 1, "{report:?}");
}
