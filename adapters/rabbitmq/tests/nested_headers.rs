//! A message of somebody else's whose headers are nested as deeply as a frame allows: whoever may publish it must not be able
//! to end the processes that consume it.
#![allow(clippy::unwrap_used)]

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::Command,
    time::Duration,
};

use polybus_core::{Bus, BusOptions, QueueSpec, Registry, Source, Topology};
use polybus_rabbitmq::RabbitmqConnector;
use tokio::time::timeout;

/// What a frame may hold. The copy in the dead letters needs some room for itself.
const FRAME: usize = 131_072;
/// Where the child finds its queue, and what it says at the end.
const QUEUE: &str = "POLYBUS_TEST_NESTED_QUEUE";
const DONE: &str = "taken, moved to the dead letters, and taken there";

/// The broker's URL, or `None` with a visible line.
fn url() -> Option<String> {
    let url = std::env::var("POLYBUS_RABBITMQ_URL").ok().filter(|url| !url.is_empty());
    if url.is_none() {
        let required = std::env::var("POLYBUS_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|s| s.trim() == "rabbitmq"), "POLYBUS_RABBITMQ_URL is required, but not set");
        eprintln!("SKIPPED: POLYBUS_RABBITMQ_URL is not set");
    }
    url
}

fn short(text: &str) -> Vec<u8> {
    [&[text.len() as u8], text.as_bytes()].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

/// Speaks AMQP itself: a client library would need as deep a stack to write such a message.
struct Raw(TcpStream);

impl Raw {
    fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let mut frame = vec![kind];
        frame.extend(channel.to_be_bytes());
        frame.extend(long(payload));
        frame.push(0xce);
        self.0.write_all(&frame).unwrap();
    }

    fn method(&mut self, channel: u16, class: u16, method: u16, arguments: &[u8]) {
        self.frame(1, channel, &[&class.to_be_bytes()[..], &method.to_be_bytes(), arguments].concat());
    }

    /// The next method of the broker's.
    fn expect(&mut self, class: u16, method: u16) {
        let mut head = [0; 7];
        self.0.read_exact(&mut head).unwrap();
        let mut rest = vec![0; u32::from_be_bytes(head[3..].try_into().unwrap()) as usize + 1];
        self.0.read_exact(&mut rest).unwrap();
        let got = (u16::from_be_bytes([rest[0], rest[1]]), u16::from_be_bytes([rest[2], rest[3]]));
        assert_eq!(got, (class, method), "{}", String::from_utf8_lossy(&rest));
    }

    fn connect(url: &str) -> Self {
        let (_, host) = url.split_once('@').unwrap();
        let mut raw = Self(TcpStream::connect(host.split('/').next().unwrap()).unwrap());
        raw.0.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        raw.0.write_all(b"AMQP\0\0\x09\x01").unwrap();
        raw.expect(10, 10);
        let login = long(b"\0guest\0guest");
        raw.method(0, 10, 11, &[long(&[]), short("PLAIN"), login, short("en_US")].concat());
        raw.expect(10, 30);
        raw.method(0, 10, 31, &[&[0, 7][..], &(FRAME as u32).to_be_bytes(), &[0, 0]].concat());
        raw.method(0, 10, 40, &[short("/"), short(""), vec![0]].concat());
        raw.expect(10, 41);
        raw.method(1, 20, 10, &short(""));
        raw.expect(20, 11);
        raw.method(1, 85, 10, &[0]);
        raw.expect(85, 11);
        raw
    }

    /// Publishes a persistent message to a queue, and waits for the confirm.
    fn publish(&mut self, queue: &str, headers: &[u8], body: &[u8]) {
        self.method(1, 60, 40, &[vec![0, 0], short(""), short(queue), vec![0]].concat());
        let mut head = vec![0, 60, 0, 0];
        head.extend((body.len() as u64).to_be_bytes());
        head.extend([0b0011_0000, 0]);
        head.extend(long(headers));
        head.push(2);
        self.frame(2, 1, &head);
        self.frame(3, 1, body);
        self.expect(60, 80);
    }
}

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
    let bus = open(&url().unwrap(), &queue).await;
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    let delivery = timeout(Duration::from_secs(20), sub.next()).await.expect("it arrives").unwrap().unwrap();
    assert_eq!(&delivery.envelope().data[..], b"data");
    delivery.dead_letter("poison", "").await.unwrap();
    let mut sub = bus.subscribe(Source::queue("q").dead_letters()).open().await.unwrap();
    let letter = timeout(Duration::from_secs(20), sub.next()).await.expect("it arrives").unwrap().unwrap();
    letter.ack().await.unwrap();
    println!("{DONE}");
    bus.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_nested_as_deeply_as_a_frame_allows_end_no_consumer() {
    let Some(url) = url() else { return };
    for (kind, bytes) in [(b'F', 6), (b'A', 5)] {
        let name = format!("nested-{}", uuid::Uuid::now_v7().simple());
        let bus = open(&url, &name).await;
        bus.declare().await.unwrap();
        Raw::connect(&url).publish(&name, &nested(kind, (FRAME - 1024) / bytes), b"data");
        let mut child = Command::new(std::env::current_exe().unwrap());
        let ended = child.args(["--exact", "child", "--nocapture"]).env(QUEUE, &name).output().unwrap();
        assert!(ended.status.success(), "{}: {}", ended.status, String::from_utf8_lossy(&ended.stderr));
        assert!(String::from_utf8_lossy(&ended.stdout).contains(DONE), "the child did nothing");
        bus.delete().await.unwrap();
        bus.close().await.unwrap();
    }
}
