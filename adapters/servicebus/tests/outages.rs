//! Publishing and consuming while the broker is killed, connections drop and links are detached.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Registry, Source, Subscription, Topology};
use polybus_servicebus::ServicebusConnector;
use polybus_servicebus_emulator::{Emulator, EmulatorOptions, config::EmulatorConfig};
use tokio::time::timeout;

const CONFIG: &str = r#"{ "UserConfig": { "Namespaces": [ { "Name": "n", "Queues": [
    { "Name": "q", "Properties": { "LockDuration": "PT5S", "MaxDeliveryCount": 100 } }
] } ] } }"#;
/// Tells the child its addresses.
const CHILD: &str = "POLYBUS_TEST_EMULATOR";

async fn bus(amqp: SocketAddr, http: SocketAddr) -> Bus {
    let url = format!("servicebus://{amqp}?emulator=true&management=http://{http}");
    let driver = Registry::new().with(ServicebusConnector).connect(url.as_str()).await.unwrap();
    let queue = QueueSpec::new().lock(Duration::from_secs(5)).max_deliveries(95);
    let mut options = BusOptions::topology(Topology::new().queue("q", queue));
    // Longer than a broker that is started again may take to come back.
    options.publish_timeout = Duration::from_secs(300);
    Bus::new(driver, options).unwrap()
}

fn number(n: usize) -> Envelope {
    Envelope::new("n", n.to_string())
}

/// Takes and acknowledges until told to stop; notes what came. The stream must not end and must not fail.
async fn consume(mut sub: Subscription, seen: impl Fn(usize), done: impl Fn() -> bool) {
    while !done() {
        let Ok(next) = timeout(Duration::from_millis(200), sub.next()).await else { continue };
        let delivery = next.expect("the stream has ended").expect("the stream has failed");
        seen(std::str::from_utf8(&delivery.envelope().data).unwrap().parse().unwrap());
        // In a task of its own: its answer may be what was lost. Then it comes again, which is counted.
        tokio::spawn(async move { drop(delivery.ack().await) });
    }
    sub.close().await.unwrap();
}

/// Not a test: the process that the test below kills.
#[test]
#[ignore = "started by another test"]
fn the_emulator() {
    let Ok(addresses) = std::env::var(CHILD) else { return };
    let (amqp, http) = addresses.split_once(' ').unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (amqp, http) = (amqp.parse().unwrap(), http.parse().unwrap());
        let began = Instant::now();
        // Ports that it had before may be lent to connections of others meanwhile.
        let emulator = loop {
            let config = EmulatorConfig::parse(CONFIG).unwrap();
            match Emulator::start(EmulatorOptions { amqp, http, config, ..EmulatorOptions::default() }).await {
                Ok(emulator) => break emulator,
                Err(e) => assert!(began.elapsed() < Duration::from_secs(120), "{e}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        println!("\nready {} {}", emulator.amqp_addr(), emulator.http_addr());
        std::io::stdout().flush().unwrap();
        // Until the parent is gone.
        tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    });
}

struct EmulatorProcess {
    child: Child,
    out: BufReader<ChildStdout>,
    amqp: SocketAddr,
    http: SocketAddr,
}

impl EmulatorProcess {
    fn start(amqp: SocketAddr, http: SocketAddr) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["the_emulator", "--exact", "--ignored", "--nocapture"]).env(CHILD, format!("{amqp} {http}"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out, amqp, http }.ready()
    }

    fn ready(mut self) -> Self {
        loop {
            let mut line = String::new();
            assert_ne!(self.out.read_line(&mut line).unwrap(), 0, "it ended before it was ready");
            if let Some(addresses) = line.strip_prefix("ready ") {
                let (amqp, http) = addresses.trim().split_once(' ').unwrap();
                (self.amqp, self.http) = (amqp.parse().unwrap(), http.parse().unwrap());
                return self;
            }
        }
    }
}

/// `kill -9`.
impl Drop for EmulatorProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn publishers_and_consumers_go_on_when_the_broker_is_killed_and_back() {
    let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut process = EmulatorProcess::start(free, free);
    let bus = bus(process.amqp, process.http).await;
    let sub = bus.subscribe(Source::queue("q")).prefetch(20).open().await.unwrap();
    let (seen, stop) = (Arc::new(Mutex::new(BTreeSet::new())), Arc::new(AtomicBool::new(false)));
    let consuming = tokio::spawn({
        let (seen, stop) = (seen.clone(), stop.clone());
        let note = move |n| {
            seen.lock().unwrap().insert(n);
        };
        consume(sub, note, move || stop.load(Ordering::Relaxed))
    });
    let (begun, last) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let publishers: Vec<_> = (0..8)
        .map(|_| {
            let (bus, begun, last) = (bus.clone(), begun.clone(), last.clone());
            tokio::spawn(async move {
                while !last.load(Ordering::Relaxed) {
                    let n = begun.fetch_add(1, Ordering::Relaxed);
                    // Through an outage too: it waits.
                    bus.publish(Address::queue("q"), number(n)).await.unwrap();
                }
            })
        })
        .collect();
    // Every number from `from` on arrives that is published while the broker lives.
    let flows = async |from: usize| {
        let began = Instant::now();
        while seen.lock().unwrap().range(from..).count() < 200 {
            assert!(began.elapsed() < Duration::from_secs(300), "nothing flows");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    flows(0).await;
    let mut back = 0;
    for _ in 0..3 {
        let (amqp, http) = (process.amqp, process.http);
        drop(process);
        // Long enough for calls to meet a port that nobody serves.
        tokio::time::sleep(Duration::from_millis(300)).await;
        process = EmulatorProcess::start(amqp, http);
        back = begun.load(Ordering::Relaxed);
        flows(back).await;
    }
    last.store(true, Ordering::Relaxed);
    for publisher in publishers {
        publisher.await.unwrap();
    }
    let began = Instant::now();
    let all = begun.load(Ordering::Relaxed);
    while (back..all).any(|n| !seen.lock().unwrap().contains(&n)) {
        assert!(began.elapsed() < Duration::from_secs(300), "lost, though the broker lived on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.store(true, Ordering::Relaxed);
    consuming.await.unwrap();
    bus.close().await.unwrap();
    drop(process);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_accepted_is_lost_while_connections_drop_and_links_are_detached() {
    const ALL: usize = 5_000;
    let config = EmulatorConfig::parse(CONFIG).unwrap();
    let emulator = Arc::new(Emulator::start(EmulatorOptions { config, ..EmulatorOptions::default() }).await.unwrap());
    let bus = bus(emulator.amqp_addr(), emulator.http_addr()).await;
    let sub = bus.subscribe(Source::queue("q")).prefetch(50).open().await.unwrap();
    let next = Arc::new(AtomicUsize::new(0));
    let publishers: Vec<_> = (0..20)
        .map(|_| {
            let (bus, next) = (bus.clone(), next.clone());
            tokio::spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= ALL {
                        return;
                    }
                    bus.publish(Address::queue("q"), number(n)).await.unwrap();
                }
            })
        })
        .collect();
    let (seen, came) = (Arc::new(Mutex::new(BTreeSet::new())), Arc::new(AtomicUsize::new(0)));
    let began = Instant::now();
    let note = {
        let (seen, came, emulator) = (seen.clone(), came.clone(), emulator.clone());
        move |n| {
            let new = seen.lock().unwrap().insert(n);
            let faults = emulator.faults();
            let count = came.fetch_add(1, Ordering::Relaxed) + 1;
            // At the front of what arrives, so that a burst of repeats brings no burst of faults.
            match (new, count % 100) {
                (true, 0) => faults.drop_after_frames(u32::try_from(1 + count / 100 % 37).unwrap()),
                (true, 33) => faults.detach("q", "amqp:link:detach-forced", "moved"),
                (true, 66) => faults.detach("$management", "amqp:link:detach-forced", "moved"),
                _ => {}
            }
        }
    };
    let done = {
        let seen = seen.clone();
        move || {
            let all = seen.lock().unwrap().len() == ALL;
            assert!(all || began.elapsed() < Duration::from_secs(600), "lost: {} came", seen.lock().unwrap().len());
            all
        }
    };
    tokio::spawn(consume(sub, note, done)).await.unwrap();
    for publisher in publishers {
        publisher.await.unwrap();
    }
    let came = came.load(Ordering::Relaxed);
    println!("{came} deliveries of {ALL} messages: {} came again; {:?}", came - ALL, began.elapsed());
    bus.close().await.unwrap();
}
