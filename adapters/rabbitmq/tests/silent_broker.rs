//! A broker that answers nothing: confirms that do not come, and a socket on which nothing moves.
#![allow(clippy::unwrap_used)]

mod broker;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use broker::url;
use polybus_conformance::{ByteFilter, Proxy};
use polybus_core::{
    Address, Bus, BusOptions, Envelope, ErrorKind, QueueSpec, Registry, RetrySafety, Source, Topology,
    topology::DeclareMode,
};
use polybus_rabbitmq::RabbitmqConnector;
use tokio::time::{Instant, timeout};

/// What comes at all comes within this, on any machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// `host:port` of the URL.
fn upstream(url: &str) -> String {
    let (_, host) = url.split_once('@').unwrap();
    host.split(['/', '?']).next().unwrap().to_owned()
}

/// The same broker by way of the proxy.
fn through(url: &str, proxy: &Proxy, parameters: &str) -> String {
    let (login, _) = url.split_once('@').unwrap();
    format!("{login}@{}/?{parameters}", proxy.addr())
}

async fn open(url: &str, queue: &str, publish_timeout: Duration) -> Bus {
    let driver = Registry::new().with(RabbitmqConnector).connect(url).await.unwrap();
    let mut options = BusOptions::topology(Topology::new().queue("q", QueueSpec::new().physical(queue)));
    options.declare = DeclareMode::Create;
    options.publish_timeout = publish_timeout;
    Bus::new(driver, options).unwrap()
}

fn message(n: usize) -> Envelope {
    Envelope::new("order.placed", n.to_string())
}

fn number(envelope: &Envelope) -> usize {
    std::str::from_utf8(&envelope.data).unwrap().parse().unwrap()
}

/// Takes and acks until all of these have come; more often than once is fine.
async fn all_come(bus: &Bus, expected: BTreeSet<usize>) {
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    let mut seen = BTreeSet::new();
    while seen != expected {
        let next = timeout(PATIENCE, sub.next()).await.unwrap_or_else(|_| panic!("only {seen:?} of {expected:?} came"));
        let delivery = next.unwrap().unwrap();
        seen.insert(number(delivery.envelope()));
        delivery.ack().await.unwrap();
    }
    sub.close().await.unwrap();
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

const METHOD: u8 = 1;
const OPEN_OK: [u8; 4] = [0, 20, 0, 11];
const ACK: [u8; 4] = [0, 60, 0, 80];

/// Keeps confirms of one channel from the client: of the first to send one once it is armed, until its number is
/// given to another channel. Everything else passes.
#[derive(Default)]
struct ConfirmFilter {
    victim: AtomicU32,
    left: AtomicUsize,
    swallowed: AtomicUsize,
    channels: AtomicUsize,
}

const NOBODY: u32 = 0;
const ANYBODY: u32 = u32::MAX;

impl ConfirmFilter {
    fn arm(&self, confirms: usize) {
        self.left.store(confirms, Ordering::SeqCst);
        self.victim.store(ANYBODY, Ordering::SeqCst);
    }

    /// Whether this frame passes.
    fn passes(&self, frame: &[u8]) -> bool {
        let (kind, channel) = (frame[0], u32::from(u16::from_be_bytes([frame[1], frame[2]])));
        let method = frame.get(7..11).filter(|_| kind == METHOD);
        if method == Some(&OPEN_OK) {
            self.channels.fetch_add(1, Ordering::SeqCst);
            let _ = self.victim.compare_exchange(channel, NOBODY, Ordering::SeqCst, Ordering::SeqCst);
        }
        if method == Some(&ACK) {
            let _ = self.victim.compare_exchange(ANYBODY, channel, Ordering::SeqCst, Ordering::SeqCst);
            if self.victim.load(Ordering::SeqCst) == channel && self.left.load(Ordering::SeqCst) > 0 {
                self.left.fetch_sub(1, Ordering::SeqCst);
                self.swallowed.fetch_add(1, Ordering::SeqCst);
                return false;
            }
        }
        true
    }

    fn filter(self: Arc<Self>) -> ByteFilter {
        let mut pending = Vec::new();
        Box::new(move |bytes| {
            pending.extend_from_slice(bytes);
            let mut out = Vec::new();
            // Type, channel, size, so many bytes, and one at the end.
            while let Some(size) = pending.get(3..7) {
                let length = u32::from_be_bytes(size.try_into().unwrap()) as usize + 8;
                if pending.len() < length {
                    break;
                }
                let frame: Vec<u8> = pending.drain(..length).collect();
                if self.passes(&frame) {
                    out.extend(frame);
                }
            }
            out
        })
    }

    fn swallowed(&self) -> usize {
        self.swallowed.load(Ordering::SeqCst)
    }

    fn channels(&self) -> usize {
        self.channels.load(Ordering::SeqCst)
    }
}

async fn swallowing(url: &str) -> (Proxy, Arc<ConfirmFilter>) {
    let swallow = Arc::new(ConfirmFilter::default());
    let twin = swallow.clone();
    (Proxy::filtered(upstream(url), move || twin.clone().filter()).await.unwrap(), swallow)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_whose_confirms_do_not_come_is_replaced() {
    const LIMIT: Duration = Duration::from_secs(10);
    let Some(url) = url("rabbitmq") else { return };
    let name = format!("silent-{}", uuid::Uuid::now_v7().simple());
    let direct = open(&url, &name, PATIENCE).await;
    direct.declare().await.unwrap();
    let (proxy, swallow) = swallowing(&url).await;
    let bus = open(&through(&url, &proxy, "heartbeat=20s"), &name, LIMIT).await;
    let q = Address::queue("q");
    bus.publish(&q, message(0)).await.unwrap();
    let connections = proxy.opened();

    swallow.arm(usize::MAX);
    let began = Instant::now();
    let silent = bus.publish_all(&q, (1..10).map(message)).await;
    for result in silent {
        let e = result.unwrap_err();
        assert_eq!((e.kind(), e.retry()), (ErrorKind::Timeout, RetrySafety::MayDuplicate), "{e}");
    }
    // The connection, which would be given up after two heartbeats, stands: the time is the publish's own.
    assert!(began.elapsed() >= LIMIT, "{:?}", began.elapsed());
    assert!(swallow.swallowed() > 0, "the broker's confirms never came by");

    // What is handed over in the moment of giving up may still go by the old channel.
    let channels = swallow.channels();
    if let Err(e) = bus.publish(&q, message(10)).await {
        assert_eq!((e.kind(), e.retry()), (ErrorKind::Timeout, RetrySafety::MayDuplicate), "{e}");
    }
    let swallowed = swallow.swallowed();
    let goes_on = bus.publish_all(&q, (11..20).map(message)).await;
    assert!(goes_on.iter().all(Result::is_ok), "{goes_on:?}");
    assert_eq!((swallow.swallowed(), swallow.channels()), (swallowed, channels + 1), "by one new channel");
    assert_eq!(proxy.opened(), connections, "on the same connection");

    all_come(&direct, (0..20).collect()).await;
    direct.delete().await.unwrap();
    bus.close().await.unwrap();
    direct.close().await.unwrap();
}

/// lapin may hand one message's return to another's confirm, so results are held until all are there.
#[tokio::test(flavor = "multi_thread")]
async fn a_return_behind_a_confirm_that_does_not_come_holds_up_nobody_else() {
    const LIMIT: Duration = Duration::from_secs(10);
    let Some(url) = url("rabbitmq") else { return };
    let name = format!("silent-{}", uuid::Uuid::now_v7().simple());
    let direct = open(&url, &name, PATIENCE).await;
    direct.declare().await.unwrap();
    let (proxy, swallow) = swallowing(&url).await;
    let bus = open(&through(&url, &proxy, "heartbeat=20s"), &name, LIMIT).await;
    let q = Address::queue("q");
    bus.publish(&q, message(0)).await.unwrap();

    swallow.arm(1);
    let silent = tokio::spawn(bus.publish(&q, message(1)));
    until("the confirm to be kept", || swallow.swallowed() == 1).await;
    direct.delete().await.unwrap();
    let returned = tokio::spawn(bus.publish(&q, message(2)));
    let e = silent.await.unwrap().unwrap_err();
    assert_eq!((e.kind(), e.retry()), (ErrorKind::Timeout, RetrySafety::MayDuplicate), "{e}");
    // On a new channel, whatever became of the one before.
    let e = bus.publish(&q, message(3)).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
    let e = returned.await.unwrap().unwrap_err();
    assert!(matches!(e.kind(), ErrorKind::Timeout | ErrorKind::NotFound), "{e}");
    bus.close().await.unwrap();
    direct.close().await.unwrap();
}

/// The peer reads nothing and says nothing, and nobody ends the connections.
#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_socket_is_dropped_and_all_goes_on() {
    let Some(url) = url("rabbitmq") else { return };
    let name = format!("silent-{}", uuid::Uuid::now_v7().simple());
    let direct = open(&url, &name, PATIENCE).await;
    direct.declare().await.unwrap();
    let proxy = Proxy::start(upstream(&url)).await.unwrap();
    // A machine that stands still for a while is no stalled socket. Who connects waits until the stall is over, so that
    // both connect once.
    let bus = open(&through(&url, &proxy, "heartbeat=5s&connect_timeout=1m"), &name, PATIENCE).await;
    let q = Address::queue("q");
    bus.publish(&q, message(0)).await.unwrap();
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    let held = timeout(PATIENCE, sub.next()).await.unwrap().unwrap().unwrap();
    // One beside it whose heartbeats are further apart does not notice so soon.
    let slow_proxy = Proxy::start(upstream(&url)).await.unwrap();
    let slow = open(&through(&url, &slow_proxy, "heartbeat=10m"), &name, PATIENCE).await;
    let mut slow_sub = slow.subscribe(Source::queue("q")).open().await.unwrap();
    let slow_receiving = tokio::spawn(async move { slow_sub.next().await.is_some() });

    let connections = proxy.opened();
    let slow_connections = slow_proxy.opened();
    proxy.stall(true);
    slow_proxy.stall(true);
    let publishing = tokio::spawn(bus.publish(&q, message(1)));
    let receiving = tokio::spawn(async move { (sub.next().await, sub) });
    // Twice the heartbeat without a word, looked at twice per heartbeat, and the time to connect again.
    until("both to connect again", || proxy.opened() >= connections + 2).await;
    assert_eq!(slow_proxy.opened(), slow_connections, "the heartbeat is what tells");
    slow_receiving.abort();
    assert!(!publishing.is_finished() && !receiving.is_finished());
    let (e, _) = timeout(PATIENCE, held.ack()).await.unwrap().unwrap_err().into_parts();
    assert_eq!(e.kind(), ErrorKind::LockLost, "{e}");

    // What that one was sent and never saw goes back to the queue.
    slow_proxy.refuse(true).await;
    slow_proxy.cut();
    proxy.stall(false);
    timeout(PATIENCE, publishing).await.unwrap().unwrap().unwrap();
    let (next, mut sub) = timeout(PATIENCE, receiving).await.unwrap().unwrap();
    let mut seen = BTreeSet::new();
    let mut next = Some(next.unwrap().unwrap());
    while seen != BTreeSet::from([0, 1]) {
        let delivery = match next.take() {
            Some(delivery) => delivery,
            None => {
                timeout(PATIENCE, sub.next()).await.unwrap_or_else(|_| panic!("only {seen:?} came")).unwrap().unwrap()
            }
        };
        seen.insert(number(delivery.envelope()));
        delivery.ack().await.unwrap();
    }
    slow.close().await.unwrap();
    direct.delete().await.unwrap();
    bus.close().await.unwrap();
    direct.close().await.unwrap();
}
