//! A message of another program whose headers are nested as deeply as a frame allows. Without the sanitizer, whoever
//! may publish it could end every process that consumes it.
#![allow(clippy::unwrap_used)]

mod broker;
mod raw;

use std::{process::Command, time::Duration};

use broker::url;
use polybus_core::{Bus, BusOptions, QueueSpec, Registry, Source, Topology};
use polybus_rabbitmq::RabbitmqConnector;
use raw::{FRAME, RawPublisher, long};
use tokio::time::timeout;

/// Headers and delivery mode.
const FLAGS: u16 = 1 << 13 | 1 << 12;
/// Where the child finds its queue, and what it says at the end.
const QUEUE: &str = "POLYBUS_TEST_NESTED_QUEUE";
const DONE: &str = "taken, moved to the dead letters, and taken there";

/// One header, whose value is so many tables or arrays within each other.
fn nested(kind: u8, depth: usize) -> Vec<u8> {
    // From the inside out, backwards.
    let mut reversed: Vec<u8> = Vec::new();
    for _ in 0..depth {
        let length = reversed.len() as u32;
        reversed.extend(length.to_le_bytes());
        reversed.push(kind);
        if kind == b'F' {
            reversed.push(0);
        }
    }
    if kind == b'A' {
        reversed.push(0);
    }
    reversed.reverse();
    reversed
}

async fn open(url: &str, queue: &str) -> Bus {
    let driver = Registry::new().with(RabbitmqConnector).connect(url).await.unwrap();
    let topology = Topology::new().queue("q", QueueSpec::new().physical(queue));
    Bus::new(driver, BusOptions::topology(topology)).unwrap()
}

/// The consumer, in a process of its own; it copies the message, too.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let Ok(queue) = std::env::var(QUEUE) else { return };
    let bus = open(&url("rabbitmq").unwrap(), &queue).await;
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    let delivery = timeout(Duration::from_secs(120), sub.next()).await.expect("it arrives").unwrap().unwrap();
    assert_eq!(&delivery.envelope().data[..], b"data");
    delivery.dead_letter("poison", "").await.unwrap();
    let mut sub = bus.subscribe(Source::queue("q").dead_letters()).open().await.unwrap();
    let letter = timeout(Duration::from_secs(120), sub.next()).await.expect("it arrives").unwrap().unwrap();
    letter.ack().await.unwrap();
    println!("{DONE}");
    bus.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_nested_as_deeply_as_a_frame_allows_end_no_consumer() {
    let Some(url) = url("rabbitmq") else { return };
    for (kind, bytes) in [(b'F', 6), (b'A', 5)] {
        let name = format!("nested-{}", uuid::Uuid::now_v7().simple());
        let bus = open(&url, &name).await;
        bus.declare().await.unwrap();
        // The copy in the dead letters needs some room for itself.
        let properties = [long(nested(kind, (FRAME - 1024) / bytes)), vec![2]].concat();
        RawPublisher::connect(&url).publish("", name.as_bytes(), FLAGS, &properties, b"data");
        let mut child = Command::new(std::env::current_exe().unwrap());
        let ended = child.args(["--exact", "child", "--nocapture"]).env(QUEUE, &name).output().unwrap();
        assert!(ended.status.success(), "{}: {}", ended.status, String::from_utf8_lossy(&ended.stderr));
        assert!(String::from_utf8_lossy(&ended.stdout).contains(DONE), "the child did nothing");
        bus.delete().await.unwrap();
        bus.close().await.unwrap();
    }
}
