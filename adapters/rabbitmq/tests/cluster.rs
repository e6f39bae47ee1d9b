//! A cluster of two nodes, of which one goes down for a while and a quorum queue's leader moves under load. Publisher
//! and consumer are connected to the other node. `POLYBUS_NODE_DOWN` is the time down in seconds, 6 by default.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Registry, Source, Topology};
use polybus_rabbitmq::RabbitmqConnector;
use tokio::{task::JoinHandle, time::timeout};

/// Far beyond what anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// The URLs of both nodes, or `None` with a visible line.
fn urls() -> Option<[String; 2]> {
    let names = ["POLYBUS_RABBITMQ_CLUSTER_URL", "POLYBUS_RABBITMQ_CLUSTER_URL2"];
    let found = names.map(|name| std::env::var(name).ok().filter(|url| !url.is_empty()));
    let required = std::env::var("POLYBUS_REQUIRE").unwrap_or_default();
    let required = required.split(',').any(|s| s.trim() == "rabbitmq-cluster");
    match found {
        [Some(first), Some(second)] if std::env::var_os("POLYBUS_LOCALSTACK").is_some() => Some([first, second]),
        _ => {
            assert!(!required, "{names:?} and POLYBUS_LOCALSTACK are required, but not set");
            eprintln!("SKIPPED: {names:?} or POLYBUS_LOCALSTACK is not set");
            None
        }
    }
}

/// Runs one of the local stack's scripts.
async fn stack(script: &'static str, arguments: Vec<String>) -> String {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "..", "localstack", script].iter().collect();
    let done = tokio::task::spawn_blocking(move || Command::new(path).args(&arguments).output().unwrap());
    let done = done.await.unwrap();
    assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

async fn node(action: &str, node: usize) {
    stack("restart", ["rabbitmq-cluster", action, &node.to_string()].map(Into::into).to_vec()).await;
}

/// Moves a quorum queue's leader to this node, wherever it is, and waits until it leads there.
async fn move_leader(queue: &str, to: usize) {
    let server = |node: &str| format!("{{list_to_atom(\"%2F_{queue}\"), {node}}}");
    // A move is an election, which a node that is slow may lose: it is called until it is won.
    let moved = format!(
        "To = {}, case ra:members({}) of {{ok, _, To}} -> there; {{ok, _, From}} -> ra:transfer_leadership(From, To); \
         _ -> undecided end.",
        server(&format!("'polybus-cluster{to}@localhost'")),
        server("node()"),
    );
    let there = async {
        while stack("ctl", ["rabbitmq-cluster", "eval", &moved].map(Into::into).to_vec()).await.trim() != "there" {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    timeout(PATIENCE, there).await.unwrap_or_else(|_| panic!("the leader of {queue} does not move to node {to}"));
}

async fn open(url: &str, queue: &str, queue_type: &str) -> Bus {
    let url = format!("{url}&queue_type={queue_type}");
    let driver = Registry::new().with(RabbitmqConnector).connect(&url).await.unwrap();
    let mut options = BusOptions::topology(Topology::new().queue("q", QueueSpec::new().physical(queue)));
    options.publish_timeout = PATIENCE;
    Bus::new(driver, options).unwrap()
}

/// A queue whose home or leader is node 1, and a publisher and a consumer at node 2 that never stop.
struct Traffic {
    bus: Bus,
    name: String,
    stop: Arc<AtomicBool>,
    published: Arc<AtomicUsize>,
    acked: Arc<AtomicUsize>,
    publishing: JoinHandle<BTreeSet<usize>>,
    consuming: JoinHandle<BTreeSet<usize>>,
}

impl Traffic {
    async fn start(urls: &[String; 2], queue_type: &'static str) -> Self {
        let name = format!("cluster-{queue_type}-{}", uuid::Uuid::now_v7().simple());
        let home = open(&urls[0], &name, queue_type).await;
        home.declare().await.unwrap();
        home.close().await.unwrap();
        let bus = open(&urls[1], &name, queue_type).await;
        let stop = Arc::new(AtomicBool::new(false));
        let (published, acked) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let publishing = {
            let (bus, stop, published) = (bus.clone(), stop.clone(), published.clone());
            tokio::spawn(async move {
                let mut sent = BTreeSet::new();
                while !stop.load(Ordering::Acquire) {
                    let number = sent.len();
                    let publish = bus.publish(Address::queue("q"), Envelope::new("n.n", number.to_string()));
                    publish.await.unwrap_or_else(|e| panic!("{queue_type}: publishing {number}: {e}"));
                    sent.insert(number);
                    published.fetch_add(1, Ordering::AcqRel);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                sent
            })
        };
        let consuming = {
            let (bus, stop, acked, published) = (bus.clone(), stop.clone(), acked.clone(), published.clone());
            tokio::spawn(async move {
                let mut sub = bus.subscribe(Source::queue("q")).prefetch(20).open().await.unwrap();
                let mut seen = BTreeSet::new();
                while !stop.load(Ordering::Acquire) || seen.len() < published.load(Ordering::Acquire) {
                    let Ok(next) = timeout(Duration::from_millis(200), sub.next()).await else { continue };
                    let delivery = next.unwrap_or_else(|| panic!("{queue_type}: the consumer ended"));
                    let delivery = delivery.unwrap_or_else(|e| panic!("{queue_type}: the consumer ended: {e}"));
                    seen.insert(std::str::from_utf8(&delivery.envelope().data).unwrap().parse().unwrap());
                    // A lost one comes again.
                    let _ = delivery.ack().await;
                    acked.fetch_add(1, Ordering::AcqRel);
                }
                sub.close().await.unwrap();
                seen
            })
        };
        Self { bus, name, stop, published, acked, publishing, consuming }
    }

    /// Until so many more were published and handled.
    async fn goes_on(&self, more: usize, when: &str) {
        let (published, acked) = (self.published.load(Ordering::Acquire), self.acked.load(Ordering::Acquire));
        let waited = timeout(PATIENCE, async {
            while self.published.load(Ordering::Acquire) < published + more
                || self.acked.load(Ordering::Acquire) < acked + more
            {
                assert!(!self.publishing.is_finished() && !self.consuming.is_finished(), "{}: {when}", self.name);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("{} does not go on {when}", self.name));
    }

    async fn finish(self) {
        self.stop.store(true, Ordering::Release);
        let sent = timeout(PATIENCE, self.publishing).await.unwrap().unwrap();
        let seen = timeout(PATIENCE, self.consuming).await.unwrap().unwrap();
        let lost: Vec<_> = sent.difference(&seen).collect();
        assert!(lost.is_empty(), "{}: {} of {} are lost: {lost:?}", self.name, lost.len(), sent.len());
        self.bus.delete().await.unwrap();
        self.bus.close().await.unwrap();
    }
}

/// One test, since it takes a node from the others: first the leader's moves, then the nodes' ends.
#[tokio::test(flavor = "multi_thread")]
async fn consumers_and_publishers_live_through_a_nodes_end_and_a_leaders_move() {
    let Some(urls) = urls() else { return };
    let down = std::env::var("POLYBUS_NODE_DOWN").ok().and_then(|s| s.parse().ok()).unwrap_or(6);
    let quorum = Traffic::start(&urls, "quorum").await;
    let classic = Traffic::start(&urls, "classic").await;
    quorum.goes_on(20, "at first").await;
    classic.goes_on(20, "at first").await;

    for to in [2, 1, 2, 1] {
        move_leader(&quorum.name, to).await;
        quorum.goes_on(50, "after its leader moved").await;
    }

    // Of two nodes one is no majority: what the broker cannot do meanwhile is waited for, by both kinds of queues.
    node("kill", 1).await;
    let (before, now) = (classic.published.load(Ordering::Acquire), Duration::from_secs(down));
    tokio::time::sleep(now).await;
    assert!(
        classic.published.load(Ordering::Acquire) <= before + 1,
        "the queue's home is down, and yet it takes messages"
    );
    node("start", 1).await;
    quorum.goes_on(20, "after the leader's node was down").await;
    classic.goes_on(20, "after its home was down").await;

    // The node that both are connected to.
    node("kill", 2).await;
    node("start", 2).await;
    quorum.goes_on(20, "after its own node was down").await;
    classic.goes_on(20, "after its own node was down").await;
    quorum.finish().await;
    classic.finish().await;
}
