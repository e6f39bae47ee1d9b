//! The adapter against an emulator in this process.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use polybus_core::{Address, Bus, BusOptions, Envelope, Kind, QueueSpec, Registry, Source, Topology};
use polybus_servicebus::ServicebusConnector;
use polybus_servicebus_emulator::{
    Shared,
    broker::{Broker, Limits, QueueSettings},
    clock::Clock,
    faults::Faults,
};
use tokio::time::timeout;

async fn bus(queues: &[(&str, QueueSettings)], topology: Topology) -> Bus {
    let broker = Broker::new(Clock::system(), Limits::default());
    for (name, settings) in queues {
        broker.create_queue(name, settings.clone()).unwrap();
    }
    let timers = broker.clone();
    tokio::spawn(async move { timers.run_timers().await });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(polybus_servicebus_emulator::amqp::serve(
        listener,
        None,
        Shared { broker, faults: Faults::default(), key: None },
    ));
    let url = format!("servicebus://r:k@127.0.0.1:{port}?emulator=true");
    let driver = Registry::new().with(ServicebusConnector).connect(&url).await.unwrap();
    Bus::new(driver, BusOptions::topology(topology)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn publish_receive_ack() {
    let _ = tracing_subscriber::fmt().with_env_filter("debug").with_test_writer().try_init();
    let bus = bus(&[("q", QueueSettings::default())], Topology::new().queue("q", QueueSpec::new())).await;
    let q = Address::queue("q");
    let sent = Envelope::new("order.placed", "{}").header("h", "v");
    bus.publish(&q, sent.clone()).await.unwrap();
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    let d = timeout(Duration::from_secs(5), sub.next()).await.unwrap().unwrap().unwrap();
    assert_eq!((d.envelope().id.as_ref(), d.attempt()), (&*sent.id, 1));
    d.release().await.unwrap();
    let d = timeout(Duration::from_secs(5), sub.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(d.attempt(), 2);
    d.retry_after(Duration::from_secs(1)).await.unwrap();
    let d = timeout(Duration::from_secs(5), sub.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(d.attempt(), 3);
    d.dead_letter("because", "of it").await.unwrap();
    let mut dead = bus.subscribe(Source::queue("q").dead_letters()).open().await.unwrap();
    let d = timeout(Duration::from_secs(5), dead.next()).await.unwrap().unwrap().unwrap();
    println!("{:?}", d.dead_letter_info());
    d.ack().await.unwrap();
    assert!(timeout(Duration::from_millis(300), sub.next()).await.is_err());
    let e = bus.publish(&Address::queue("nope"), Envelope::new("a", "")).await.unwrap_err();
    assert_eq!(e.kind(), Kind::NotFound, "{e}");
    bus.close().await.unwrap();
}

fn sessions() -> QueueSettings {
    QueueSettings { requires_session: true, ..QueueSettings::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn ordered() {
    let _ = tracing_subscriber::fmt().with_env_filter("debug").with_test_writer().try_init();
    let bus = bus(&[("q", sessions())], Topology::new().queue("q", QueueSpec::new().ordered(true))).await;
    let q = Address::queue("q");
    for n in 0..20 {
        for key in 0..10 {
            let e = Envelope::new("a", format!("{n}")).key(format!("k{key}"));
            bus.publish(&q, e).await.unwrap();
        }
    }
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(5).open().await.unwrap();
    let mut next = std::collections::HashMap::new();
    let mut held: Vec<polybus_core::Delivery> = Vec::new();
    let mut retried = false;
    for i in 0..201 {
        let d = match timeout(Duration::from_secs(1), sub.next()).await {
            Ok(d) => d.unwrap().unwrap(),
            // All keys that are left may be in hand.
            Err(_) => {
                for d in held.drain(..) {
                    d.ack().await.unwrap();
                }
                timeout(Duration::from_secs(8), sub.next()).await.unwrap().unwrap().unwrap()
            }
        };
        let key = d.envelope().key.clone().unwrap();
        let n: u32 = std::str::from_utf8(&d.envelope().data).unwrap().parse().unwrap();
        let want = next.entry(key.clone()).or_insert(0);
        assert_eq!(n, *want, "{key} at {i}");
        if &*key == "k3" && n == 4 && !retried {
            retried = true;
            assert_eq!(d.attempt(), 1);
            d.retry_after(Duration::from_millis(700)).await.unwrap();
            continue;
        }
        if &*key == "k3" && n == 4 {
            assert_eq!(d.attempt(), 2);
        }
        *want += 1;
        if i % 3 == 0 {
            held.push(d)
        } else {
            d.ack().await.unwrap()
        }
        if held.len() == 3 || i > 190 {
            for d in held.drain(..) {
                d.ack().await.unwrap();
            }
        }
    }
    assert!(next.values().all(|n| *n == 20), "{next:?}");
    sub.close().await.unwrap();
    bus.close().await.unwrap();
}
