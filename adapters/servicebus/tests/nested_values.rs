//! Foreign messages whose values are nested in thousands of levels: whoever may send them must not be able to end the
//! processes that consume them.
#![allow(clippy::unwrap_used)]

use std::{process::Output, time::Duration};

use polybus_conformance::Proxy;
use polybus_core::{Address, Bus, BusOptions, Delivery, Envelope, QueueSpec, Registry, Source, Subscription, Topology};
use polybus_servicebus::{
    Native, ServicebusConnector,
    fe2o3_amqp::{
        Sender,
        types::{
            messaging::{AmqpValue, Body, Message, MessageAnnotations, annotations::OwnedKey},
            primitives::{Binary, OrderedMap, Value},
        },
    },
};
use polybus_servicebus_emulator::{Emulator, EmulatorOptions};
use tokio::{process::Command, time::timeout};

const LEVELS: usize = 3_000;
/// How the child process learns of the broker and of what it is to see, and what it prints at the end.
const URL: &str = "POLYBUS_TEST_NESTED_URL";
const READABLE: &str = "POLYBUS_TEST_NESTED_READABLE";
const DONE: &str = "all has been taken";
/// The emulator refuses such values. So it carries this placeholder, and a proxy on the way to the consumer replaces
/// it, as if another broker had taken the value.
const STAND_IN: &[u8] = b"what is nested";

/// List within list.
fn lists() -> Vec<u8> {
    let mut reversed = vec![0x45];
    for _ in 0..LEVELS {
        let size = reversed.len() as u32 + 4;
        reversed.extend(1_u32.to_le_bytes());
        reversed.extend(size.to_le_bytes());
        reversed.push(0xd0);
    }
    reversed.reverse();
    reversed
}

/// Described value within described value.
fn described() -> Vec<u8> {
    [&[0x00, 0x53, 0x07].repeat(LEVELS)[..], b"\x40"].concat()
}

/// An array of flat maps. serde_amqp reads each of their bytes at an even place as a map within the one before.
fn maps_in_array() -> Vec<u8> {
    let maps = b"\x09\x02\xa0\x02\x02\x02\xa0\x02\x02\x02".repeat(LEVELS / 5);
    let (size, count) = (maps.len() as u32 + 5, LEVELS as u32 / 5);
    [&[0xf0][..], &size.to_be_bytes(), &count.to_be_bytes(), &[0xc1], &maps].concat()
}

/// Replaces the placeholder in a byte stream by the value.
struct ValueReplacer {
    kept: Vec<u8>,
    placeholder: Vec<u8>,
    value: Vec<u8>,
}

impl ValueReplacer {
    fn new(value: Vec<u8>) -> Self {
        let length = (value.len() as u32 - 5).to_be_bytes();
        Self { kept: Vec::new(), placeholder: [&[0xb0], &length[..], STAND_IN].concat(), value }
    }

    fn pass(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.kept.extend_from_slice(bytes);
        let mut next = 0;
        while next < self.kept.len() {
            let rest = &mut self.kept[next..];
            if rest.starts_with(&self.placeholder) {
                let Some(found) = rest.get_mut(..self.value.len()) else { break };
                found.copy_from_slice(&self.value);
                next += self.value.len();
            } else if self.placeholder.starts_with(rest) {
                break;
            } else {
                next += 1;
            }
        }
        self.kept.drain(..next).collect()
    }
}

fn stand_in(value: &[u8]) -> Value {
    let mut bytes = vec![0; value.len() - 5];
    bytes[..STAND_IN.len()].copy_from_slice(STAND_IN);
    Value::Binary(Binary::from(bytes))
}

async fn open(url: &str) -> Bus {
    let driver = Registry::new().with(ServicebusConnector).connect(url).await.unwrap();
    Bus::new(driver, BusOptions::topology(Topology::new().queue("q", QueueSpec::new()))).unwrap()
}

async fn next(sub: &mut Subscription) -> Delivery {
    timeout(Duration::from_secs(120), sub.next()).await.expect("it arrives").unwrap().unwrap()
}

/// The consumer, in a process of its own.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let Ok(url) = std::env::var(URL) else { return };
    let readable = std::env::var_os(READABLE).is_some();
    let bus = open(&url).await;
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    if readable {
        let original = next(&mut sub).await;
        assert_ne!(&original.envelope().data[..], b"after");
        original.retry_after(Duration::from_millis(1)).await.unwrap();
    }
    // A message that cannot be read goes to the dead letters unseen, and its link goes on.
    for _ in 0..=usize::from(readable) {
        let delivery = next(&mut sub).await;
        match &delivery.envelope().data[..] {
            b"after" => delivery.ack().await.unwrap(),
            _ => {
                assert_eq!(delivery.attempt(), 2, "this is the copy");
                delivery.dead_letter("poison", "").await.unwrap();
            }
        }
    }
    if !readable {
        // A copy would be an empty message, and the original would be lost.
        let refused = bus.redrive(Source::queue("q"), |_| true, 9).await.unwrap();
        assert_eq!((refused.moved, refused.refused.get("unreadable")), (0, Some(&1)), "{refused}");
    }
    let mut dead = bus.subscribe(Source::queue("q").dead_letters()).open().await.unwrap();
    let letter = next(&mut dead).await;
    assert_eq!(letter.malformed().is_none(), readable);
    letter.ack().await.unwrap();
    println!("{DONE}");
    bus.close().await.unwrap();
}

async fn consumed(value: Vec<u8>, in_body: bool, readable: bool, transport: &str) -> Output {
    let emulator = Emulator::start(EmulatorOptions::default()).await.unwrap();
    let (amqp, http) = (emulator.amqp_addr(), emulator.http_addr());
    let bus = open(&format!("servicebus://{amqp}?emulator=true&management=http://{http}")).await;
    bus.declare().await.unwrap();
    let mut session = bus.native::<Native>().unwrap().session("q").await.unwrap();
    let mut sender = Sender::attach(&mut session, "raw", "q").await.unwrap();
    let message = Message {
        header: None,
        delivery_annotations: None,
        message_annotations: (!in_body).then(|| {
            let mut annotations = OrderedMap::new();
            annotations.insert(OwnedKey::from("x-opt-nested"), stand_in(&value));
            MessageAnnotations(annotations)
        }),
        properties: None,
        application_properties: None,
        body: Body::Value(AmqpValue(if in_body { stand_in(&value) } else { Value::String("data".into()) })),
        footer: None,
    };
    sender.send(message).await.unwrap();
    bus.publish(Address::queue("q"), Envelope::new("n", "after")).await.unwrap();
    bus.close().await.unwrap();

    let upstream = if transport == "amqp" { amqp } else { http };
    let replacer = move || -> polybus_conformance::ByteFilter {
        let mut replacer = ValueReplacer::new(value.clone());
        Box::new(move |bytes| replacer.pass(bytes))
    };
    let proxy = Proxy::filtered(upstream.to_string(), replacer).await.unwrap();
    let address = proxy.addr();
    let url = format!("servicebus://{address}?emulator=true&management=http://{http}&transport={transport}");
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "child", "--nocapture"]).env(URL, url);
    if readable {
        child.env(READABLE, "");
    }
    let ended = child.output().await.unwrap();
    emulator.stop().await;
    ended
}

#[tokio::test(flavor = "multi_thread")]
async fn values_nested_in_thousands_of_levels_end_no_consumer() {
    for (what, value, readable) in
        [("lists", lists(), true), ("described", described(), false), ("maps in an array", maps_in_array(), true)]
    {
        for (in_body, transport) in [(true, "amqp"), (false, "amqp"), (true, "websocket")] {
            let ended = consumed(value.clone(), in_body, readable, transport).await;
            let (said, failed) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
            assert!(ended.status.success(), "{what}, {in_body}, {transport}: {}: {said} {failed}", ended.status);
            assert!(said.contains(DONE), "the child did nothing");
        }
    }
}
