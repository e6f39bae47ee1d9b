//! Programs in Python that know nothing of polybus: they ask its responders, and answer its requests.
//!
//! Their libraries come from a package registry, so the tests run only where `POLYBUS_REQUIRE` names the broker, as
//! `./localstack/test` does.
#![cfg(all(feature = "patterns", any(feature = "rabbitmq", feature = "servicebus")))]
#![allow(clippy::unwrap_used)]

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use polybus::{
    Address, Bus, BusOptions, Event, QueueSpec, Source, Topology,
    patterns::requests::{Requests, respond},
};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

/// Ten times what the programs take on two cores: only one that hangs meets it.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Serialize, Deserialize)]
struct Ask {
    n: u64,
}

impl Event for Ask {
    const TYPE: &'static str = "square.wanted";
    const VERSION: u32 = 1;
}

#[derive(Serialize, Deserialize)]
struct Square {
    n: u64,
}

impl Event for Square {
    const TYPE: &'static str = "square.made";
    const VERSION: u32 = 1;
}

/// The URL of a broker that is required; `None` where it is not.
fn required(broker: &str, variable: &str) -> Option<String> {
    let required = std::env::var("POLYBUS_REQUIRE").unwrap_or_default();
    if !required.split(',').any(|name| name.trim() == broker) {
        eprintln!("SKIPPED: POLYBUS_REQUIRE does not name {broker}");
        return None;
    }
    static PREPARED: OnceLock<()> = OnceLock::new();
    PREPARED.get_or_init(|| assert!(run().arg("prepare").status().unwrap().success()));
    Some(std::env::var(variable).unwrap())
}

fn run() -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign_requesters/run"));
    command.stdin(Stdio::null());
    command
}

/// A bus with queues whose names begin with this, and which is deleted at the end.
struct Desk {
    bus: Bus,
    name: String,
}

impl Desk {
    async fn open(url: &str) -> Self {
        let name = format!("foreign-{}", std::process::id());
        // Queues of others are not under the prefix, and must be found all the same.
        let topology = Topology::new()
            .prefix(format!("{name}-own"))
            .queue("squares", QueueSpec::new().physical(format!("{name}-squares")))
            .queue("replies", QueueSpec::new().physical(format!("{name}-replies")))
            .queue("sessions", QueueSpec::new().physical(format!("{name}-sessions")).ordered(true));
        let bus = polybus::connect_with(url, BusOptions::topology(topology)).await.unwrap();
        bus.declare().await.unwrap();
        Self { bus, name }
    }

    fn respond(&self) -> JoinHandle<()> {
        let handler = respond(&self.bus, (), async |(), _cx, ask: Ask| Ok(Square { n: ask.n * ask.n }));
        let worker = self.bus.worker(Source::queue("squares"));
        tokio::spawn(async move {
            worker.run(handler).await.unwrap();
        })
    }

    async fn close(self) {
        self.bus.delete().await.unwrap();
        self.bus.close().await.unwrap();
    }
}

async fn succeeds(mut command: Command) {
    let running = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = tokio::time::timeout(PATIENCE, running).await.expect("it hangs").unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}

#[cfg(feature = "rabbitmq")]
#[tokio::test(flavor = "multi_thread")]
async fn pika_is_answered_and_answers() {
    for (broker, variable) in [("rabbitmq", "POLYBUS_RABBITMQ_URL"), ("rabbitmq4", "POLYBUS_RABBITMQ4_URL")] {
        let Some(url) = required(broker, variable) else { continue };
        let plain = url.split('?').next().unwrap();
        let desk = Desk::open(&url).await;
        let responder = desk.respond();
        let queue = format!("{}-squares", desk.name);
        let mut requester = run();
        requester.args(["pika_requester.py", plain, &queue]);
        succeeds(requester).await;
        responder.abort();
        let _ = responder.await;

        let mut server = run().args(["pika_responder.py", plain, &queue]).stdin(Stdio::piped()).spawn().unwrap();
        let requests = Requests::open(&desk.bus, Source::queue("replies")).await.unwrap();
        for n in 0..5 {
            let call = requests.call::<Square>(Address::queue("squares"), &Ask { n }).timeout(PATIENCE);
            assert_eq!(call.await.unwrap().n, n * n);
        }
        drop(server.stdin.take());
        assert!(server.wait().unwrap().success());
        requests.close().await;
        desk.close().await;
    }
}

#[cfg(feature = "servicebus")]
#[tokio::test(flavor = "multi_thread")]
async fn the_python_sdk_of_service_bus_is_answered() {
    let Some(url) = required("servicebus", "POLYBUS_SERVICEBUS_URL") else { return };
    let desk = Desk::open(&url).await;
    let responder = desk.respond();
    let queue = |what: &str| format!("{}-{what}", desk.name);
    let mut requester = run();
    // The replies go into queues of others: this bus knows one of them by a name of its own, and that is all the same.
    requester.args(["servicebus_requester.py", &queue("squares"), &queue("replies"), &queue("sessions")]);
    succeeds(requester).await;
    responder.abort();
    let _ = responder.await;
    desk.close().await;
}
