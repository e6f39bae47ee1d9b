//! A queue that is deleted while polybus inspects it is not made again by that.
#![allow(clippy::unwrap_used)]

mod broker;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use broker::url;
use polybus_conformance::{ByteFilter, Proxy};
use polybus_core::{Bus, BusOptions, QueueSpec, Registry, Source, Topology, topology::DeclareMode};
use polybus_rabbitmq::RabbitmqConnector;
use tokio::time::{Instant, sleep};

const PATIENCE: Duration = Duration::from_secs(60);
const METHOD: u8 = 1;
const DECLARE_OK: [u8; 4] = [0, 50, 0, 11];
const OFF: usize = usize::MAX;

async fn open(url: &str, queue: &str) -> Bus {
    let driver = Registry::new().with(RabbitmqConnector).connect(url).await.unwrap();
    let mut options = BusOptions::topology(Topology::new().queue("q", QueueSpec::new().physical(queue)));
    options.declare = DeclareMode::Create;
    Bus::new(driver, options).unwrap()
}

/// Lets so many answers to declarations pass, and holds the next one until `left` is [`OFF`].
struct AnswerGate {
    left: AtomicUsize,
    holding: AtomicUsize,
}

impl AnswerGate {
    fn filter(self: Arc<Self>) -> ByteFilter {
        let (mut pending, mut held) = (Vec::new(), false);
        Box::new(move |bytes| {
            pending.extend_from_slice(bytes);
            let mut out = Vec::new();
            // Type, channel, size, so many bytes, and one at the end.
            while let Some(size) = pending.get(3..7) {
                let length = u32::from_be_bytes(size.try_into().unwrap()) as usize + 8;
                if pending.len() < length {
                    break;
                }
                if held {
                    // Whatever comes then asks again: the answer to another question, or a heartbeat.
                    if self.left.load(Ordering::SeqCst) != OFF {
                        break;
                    }
                    held = false;
                } else if pending[0] == METHOD && pending.get(7..11) == Some(&DECLARE_OK) {
                    match self.left.load(Ordering::SeqCst) {
                        OFF => {}
                        0 => {
                            held = true;
                            self.holding.fetch_add(1, Ordering::SeqCst);
                            break;
                        }
                        left => self.left.store(left - 1, Ordering::SeqCst),
                    }
                }
                out.extend(pending.drain(..length));
            }
            out
        })
    }
}

/// Whichever of its questions is answered just before the queue is deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_deleted_while_its_consumer_looks_at_it_stays_deleted() {
    for broker in ["rabbitmq", "rabbitmq4"] {
        let Some(url) = url(broker) else { continue };
        for queue_type in ["quorum", "classic"] {
            let mut questions = 0;
            while looks_at_what_is_deleted(&format!("{url}&queue_type={queue_type}"), questions).await {
                questions += 1;
            }
            assert!(questions >= 2, "{broker}, {queue_type}: the dead letters and the queue itself: {questions}");
        }
    }
}

/// Deletes the queue after so many answers to what a consumer asks as it is opened; false if it does not ask that
/// often.
async fn looks_at_what_is_deleted(url: &str, questions: usize) -> bool {
    let name = format!("deleted-{}", uuid::Uuid::now_v7().simple());
    let gate = Arc::new(AnswerGate { left: AtomicUsize::new(OFF), holding: AtomicUsize::new(0) });
    let (upstream, twin) = (url.split_once('@').unwrap().1, gate.clone());
    let upstream = upstream.split(['/', '?']).next().unwrap().to_owned();
    let proxy = Proxy::filtered(upstream, move || twin.clone().filter()).await.unwrap();
    let (login, _) = url.split_once('@').unwrap();
    let queue_type = url.rsplit_once('&').unwrap().1;
    let direct = open(url, &name).await;
    direct.declare().await.unwrap();
    let bus = open(&format!("{login}@{}/?heartbeat=20s&{queue_type}", proxy.addr()), &name).await;

    gate.left.store(questions, Ordering::SeqCst);
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    let deadline = Instant::now() + if questions < 2 { PATIENCE } else { Duration::from_secs(3) };
    while gate.holding.load(Ordering::SeqCst) == 0 && Instant::now() < deadline {
        sleep(Duration::from_millis(10)).await;
    }
    let asked = gate.holding.load(Ordering::SeqCst) > 0;
    direct.delete().await.unwrap();
    gate.left.store(OFF, Ordering::SeqCst);
    // What was asked last is answered, and all that is asked then.
    let report = bus.verify().await.unwrap();
    assert!(report.differences.iter().any(|d| d.setting == "exists"), "after {questions} answers: {report:?}");
    sub.close().await.unwrap();
    let report = direct.verify().await.unwrap();
    assert!(report.differences.iter().any(|d| d.setting == "exists"), "after {questions} answers: {report:?}");
    bus.close().await.unwrap();
    direct.close().await.unwrap();
    asked
}
