//! Fifty addresses and fifty consumers behind a port that lets nobody in for half a minute: each connection tries one
//! login, and then pauses.
#![cfg(any(feature = "rabbitmq", feature = "servicebus"))]
#![allow(clippy::unwrap_used)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use polybus::{Address, BusOptions, Envelope, QueueSpec, Source, Topology};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::Notify,
};

const SOURCES: usize = 50;
const OUTAGE: Duration = Duration::from_secs(30);
/// The pauses double from 50 ms to 2 s, and jitter halves them at most: 25, 50, 100, 200, 400, 800 ms, then a second
/// each.
const MOST_ATTEMPTS: usize = 6 + 29;

/// A port before a broker. While it is out, it ends what stands, and takes each new connection only to end it.
struct Relay {
    port: u16,
    out: AtomicBool,
    cut: Notify,
    turned_away: AtomicUsize,
}

impl Relay {
    async fn start(upstream: String) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (out, cut, turned_away) = (AtomicBool::new(false), Notify::new(), AtomicUsize::new(0));
        let relay = Arc::new(Self { port, out, cut, turned_away });
        tokio::spawn({
            let relay = relay.clone();
            async move {
                while let Ok((mut client, _)) = listener.accept().await {
                    if relay.out.load(Ordering::SeqCst) {
                        relay.turned_away.fetch_add(1, Ordering::SeqCst);
                        continue;
                    }
                    let (relay, upstream) = (relay.clone(), upstream.clone());
                    tokio::spawn(async move {
                        let Ok(mut broker) = TcpStream::connect(upstream).await else { return };
                        tokio::select! {
                            _ = copy_bidirectional(&mut client, &mut broker) => {}
                            () = relay.cut.notified() => {}
                        }
                    });
                }
            }
        });
        relay
    }

    /// Nobody gets in for this long. How many tried.
    async fn outage(&self, lasts: Duration) -> usize {
        self.out.store(true, Ordering::SeqCst);
        self.cut.notify_waiters();
        tokio::time::sleep(lasts).await;
        self.out.store(false, Ordering::SeqCst);
        self.turned_away.load(Ordering::SeqCst)
    }
}

/// The variable's URL with the relay's port in place of its own. If it is not set: `None` and a visible line, or a
/// failure where the service is required.
async fn through_relay(service: &str, variable: &str) -> Option<(String, Arc<Relay>)> {
    let Some(url) = std::env::var(variable).ok().filter(|url| !url.is_empty()) else {
        let required = std::env::var("POLYBUS_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|s| s.trim() == service), "{variable} is required, but not set");
        eprintln!("SKIPPED: {variable} is not set");
        return None;
    };
    let mut parsed = url::Url::parse(&url).unwrap();
    let relay = Relay::start(format!("{}:{}", parsed.host_str().unwrap(), parsed.port().unwrap())).await;
    parsed.set_port(Some(relay.port)).unwrap();
    Some((parsed.into(), relay))
}

fn topology(run: &str) -> Topology {
    (0..SOURCES).fold(Topology::new().prefix(run), |t, n| t.queue(format!("pace-{n}"), QueueSpec::new()))
}

async fn one_login_a_pause(service: &str, variable: &str, connections: usize) {
    let Some((url, relay)) = through_relay(service, variable).await else { return };
    let mut options = BusOptions::topology(topology(&format!("pace{}", std::process::id())));
    options.publish_timeout = Duration::from_secs(120);
    let bus = polybus::connect_with(&url, options).await.unwrap();
    bus.declare().await.unwrap();
    let got = Arc::new(AtomicUsize::new(0));
    let mut consumers = Vec::new();
    for n in 0..SOURCES {
        let mut consumer = bus.subscribe(Source::queue(format!("pace-{n}"))).prefetch(4).open().await.unwrap();
        let got = got.clone();
        consumers.push(tokio::spawn(async move {
            while let Some(delivery) = consumer.next().await {
                // A cut may cost the ack of what came just before: it comes again.
                if delivery.unwrap().ack().await.is_ok() {
                    got.fetch_add(1, Ordering::SeqCst);
                }
            }
        }));
    }
    let publish = |round: &'static str| {
        let all: Vec<_> = (0..SOURCES)
            .map(|n| tokio::spawn(bus.publish(Address::queue(format!("pace-{n}")), Envelope::new("t", round))))
            .collect();
        async move {
            for one in all {
                one.await.unwrap().unwrap();
            }
        }
    };
    publish("before").await;
    let outage = tokio::spawn({
        let relay = relay.clone();
        async move { relay.outage(OUTAGE).await }
    });
    while !relay.out.load(Ordering::SeqCst) {
        tokio::task::yield_now().await;
    }
    // All of them wait for the broker together with all consumers.
    publish("during").await;
    let turned_away = outage.await.unwrap();
    println!("{service}: {turned_away} connections in {OUTAGE:?} for {SOURCES} addresses and {SOURCES} consumers");
    assert!(turned_away >= 10, "nobody tried: {turned_away}");
    assert!(turned_away <= connections * MOST_ATTEMPTS, "{turned_away} logins for {connections} connections");
    while got.load(Ordering::SeqCst) < 2 * SOURCES {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for consumer in consumers {
        consumer.abort();
        assert!(consumer.await.unwrap_err().is_cancelled(), "a consumer ended");
    }
    bus.delete().await.unwrap();
    bus.close().await.unwrap();
}

/// It has a connection to publish on, one to consume on, one for everything else.
#[cfg(feature = "rabbitmq")]
#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq() {
    one_login_a_pause("rabbitmq", "POLYBUS_RABBITMQ_URL", 3).await;
}

/// It has one connection.
#[cfg(feature = "servicebus")]
#[tokio::test(flavor = "multi_thread")]
async fn servicebus() {
    one_login_a_pause("servicebus", "POLYBUS_SERVICEBUS_URL", 1).await;
}
