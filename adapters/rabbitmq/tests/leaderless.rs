//! A quorum queue whose process is down, as while its leader's node restarts. RabbitMQ 3.10 answers `basic.consume`
//! with 541, which ends the connection. It keeps published messages without a confirm, or refuses them. Deliveries
//! and their acks wait.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    path::Path,
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use polybus_conformance::{ByteFilter, Proxy};
use polybus_core::{
    Address, Bus, BusOptions, Delivery, Envelope, ErrorKind, QueueSpec, Receipt, Registry, Result, RetrySafety, Source,
    Subscription, Topology, driver::Driver,
};
use polybus_rabbitmq::RabbitmqConnector;
use tokio::time::{Instant, sleep, timeout};

/// What comes at all comes within this, on any machine, a call of rabbitmqctl included.
const PATIENCE: Duration = Duration::from_secs(120);
/// connection.close with 541.
const INTERNAL_ERROR: [u8; 6] = [0, 10, 0, 50, 2, 29];

/// The process of a quorum queue on the local broker, running again when the test ends.
struct QueueProcess(String);

impl QueueProcess {
    fn of(queue: &str) -> Self {
        Self(format!("{{list_to_atom(\"%2F_{queue}\"), node()}}"))
    }

    fn call(&self, function: &str) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../localstack/ctl");
        let code = format!("ok = ra:{function}(quorum_queues, {}).", self.0);
        Command::new(script).args(["rabbitmq", "eval", &code]).output().unwrap()
    }

    fn stop(&self) {
        let output = self.call("stop_server");
        assert!(output.status.success(), "{output:?}");
    }

    fn start(&self) {
        let output = self.call("restart_server");
        assert!(output.status.success(), "{output:?}");
    }
}

impl Drop for QueueProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // An error means that it runs.
            self.call("restart_server");
        }
    }
}

struct Setup {
    url: String,
    queue: String,
    process: QueueProcess,
    /// The way to the broker.
    proxy: Proxy,
    /// How often the broker ended a connection with 541.
    refused: Arc<AtomicUsize>,
    bus: Bus,
}

impl Setup {
    /// `None`, with a visible line, where no queue can be stopped.
    async fn new() -> Option<Self> {
        if std::env::var_os("POLYBUS_LOCALSTACK").is_none() {
            eprintln!("SKIPPED: POLYBUS_LOCALSTACK is not set, so no queue can be stopped");
            return None;
        }
        let url = std::env::var("POLYBUS_RABBITMQ_URL").unwrap();
        let (login, host) = url.split_once('@').unwrap();
        let refused = Arc::new(AtomicUsize::new(0));
        let count = refused.clone();
        let filter = move || -> ByteFilter {
            let count = count.clone();
            Box::new(move |bytes| {
                // The last the broker says, and alone.
                count.fetch_add(bytes.windows(6).filter(|w| *w == INTERNAL_ERROR).count(), Ordering::SeqCst);
                bytes.to_vec()
            })
        };
        let proxy = Proxy::filtered(host.split(['/', '?']).next().unwrap().to_owned(), filter).await.unwrap();
        let queue = format!("leaderless-{}", uuid::Uuid::now_v7().simple());
        let bus = open(&format!("{login}@{}/", proxy.addr()), &queue, PATIENCE).await;
        bus.declare().await.unwrap();
        Some(Self { process: QueueProcess::of(&queue), url, queue, proxy, refused, bus })
    }

    fn refused(&self) -> usize {
        self.refused.load(Ordering::SeqCst)
    }

    async fn finish(self) {
        self.bus.delete().await.unwrap();
        self.bus.close().await.unwrap();
    }
}

async fn connect(url: &str) -> Arc<dyn Driver> {
    Registry::new().with(RabbitmqConnector).connect(url).await.unwrap()
}

async fn open(url: &str, queue: &str, publish_timeout: Duration) -> Bus {
    let driver = connect(url).await;
    let mut options = BusOptions::topology(Topology::new().queue("q", QueueSpec::new().physical(queue)));
    options.publish_timeout = publish_timeout;
    Bus::new(driver, options).unwrap()
}

fn publish(bus: &Bus, text: &'static str) -> impl Future<Output = Result<Receipt>> + Send + 'static {
    bus.publish(Address::queue("q"), Envelope::new("test.sent", text))
}

async fn next(sub: &mut Subscription) -> Delivery {
    timeout(PATIENCE, sub.next()).await.expect("it arrives").unwrap().unwrap()
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.envelope().data.to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn opening_a_subscription_waits_for_the_queue() {
    let Some(setup) = Setup::new().await else { return };
    publish(&setup.bus, "before").await.unwrap();
    setup.process.stop();
    let opening = tokio::spawn({
        let bus = setup.bus.clone();
        async move { bus.subscribe(Source::queue("q")).open().await }
    });
    let deadline = Instant::now() + PATIENCE;
    while setup.refused() == 0 {
        assert!(Instant::now() < deadline && !opening.is_finished(), "the broker never refused");
        sleep(Duration::from_millis(10)).await;
    }
    setup.process.start();
    let mut sub = timeout(PATIENCE, opening).await.expect("it opens").unwrap().unwrap();
    let delivery = next(&mut sub).await;
    assert_eq!(text(&delivery), "before");
    delivery.ack().await.unwrap();
    setup.finish().await;
}

/// Takes and acks until all of these have come, and none but these and what may have been stored.
async fn take(sub: &mut Subscription, all: &[&str], perhaps: &str) {
    let mut missing: BTreeSet<&str> = all.iter().copied().collect();
    while !missing.is_empty() {
        let delivery = next(sub).await;
        let text = text(&delivery);
        assert!(missing.remove(&*text) || text == perhaps, "{text:?} came, not {missing:?}");
        delivery.ack().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_subscription_goes_on_and_nothing_is_lost() {
    // It bounds the first publish too, which connects, and the queue is away for so long.
    const IMPATIENCE: Duration = Duration::from_secs(10);
    let Some(setup) = Setup::new().await else { return };
    let mut sub = setup.bus.subscribe(Source::queue("q")).open().await.unwrap();
    let known = open(&setup.url, &setup.queue, IMPATIENCE).await;
    // Without core, which sends again until its time is up, and tells an attempt that this cuts short as a timeout.
    let stranger = connect(&setup.url).await;
    let sender = stranger.open_sender(&setup.bus.topology().address(&Address::queue("q"))).await.unwrap();
    publish(&setup.bus, "acked").await.unwrap();
    publish(&known, "held").await.unwrap();
    next(&mut sub).await.ack().await.unwrap();
    let held = next(&mut sub).await;
    let connections = setup.proxy.opened();

    setup.process.stop();
    let patient = tokio::spawn(publish(&setup.bus, "patient"));
    // On a channel that the queue knows the broker says nothing; on another it refuses at once.
    let e = publish(&known, "perhaps").await.unwrap_err();
    assert_eq!((e.kind(), e.retry()), (ErrorKind::Timeout, RetrySafety::MayDuplicate), "{e}");
    let refused = sender.prepare(Envelope::new("test.sent", "refused").into()).unwrap();
    let e = sender.send(&[refused]).await.remove(0).unwrap_err();
    assert_eq!((e.kind(), e.retry()), (ErrorKind::Throttled, RetrySafety::Safe), "{e}");
    assert!(!patient.is_finished());
    held.ack().await.unwrap();
    setup.process.start();

    patient.await.unwrap().unwrap();
    publish(&setup.bus, "after").await.unwrap();
    take(&mut sub, &["patient", "after"], "perhaps").await;
    assert_eq!((setup.refused(), setup.proxy.opened()), (0, connections), "by the same connections");

    // What was not acknowledged would come first.
    sub.close().await.unwrap();
    publish(&setup.bus, "last").await.unwrap();
    let mut sub = setup.bus.subscribe(Source::queue("q")).open().await.unwrap();
    take(&mut sub, &["last"], "perhaps").await;
    known.close().await.unwrap();
    sender.close().await.unwrap();
    stranger.close().await.unwrap();
    setup.finish().await;
}
