//! The relay for hours, by the paused clock: calls that never answer, deletes that are refused, lanes that panic.
#![allow(clippy::unwrap_used)]

#[path = "rows/log.rs"]
mod log;
mod rows;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use log::Log;
use polybus_core::{
    Address, Bus, BusOptions, Outgoing, QueueSpec, Receipt, Result, Topology,
    clock::Clock,
    driver::{Batching, Driver, DriverLayer, PreparedMessage, Sender, async_trait},
    memory::MemoryDriver,
    time::OffsetDateTime,
    topology::Entity,
};
use polybus_patterns::{Relay, RelayReport};
use rows::{Call, End, Rows};
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};

struct Running {
    memory: Arc<MemoryDriver>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<RelayReport>>,
}

fn options() -> BusOptions {
    let queues = ["bad", "well"].into_iter();
    BusOptions::topology(queues.fold(Topology::new(), |all, queue| all.queue(queue, QueueSpec::new().ordered(true))))
}

impl Running {
    async fn start(store: &Rows, options: BusOptions) -> Self {
        let memory = Arc::new(MemoryDriver::new());
        memory.record(true);
        let bus = Bus::new(memory.clone(), options).unwrap();
        bus.declare().await.unwrap();
        Self::on(store, memory, &bus)
    }

    fn on(store: &Rows, memory: Arc<MemoryDriver>, bus: &Bus) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let relay = Relay::new(bus, store);
        Self { memory, stop, task: tokio::spawn(relay.run(async move { drop(stopped.await) })) }
    }

    fn published(&self, to: &str) -> usize {
        self.memory.published(&Address::queue(to)).len()
    }

    /// Stops it; also says how long that took.
    async fn stop(self) -> (RelayReport, Duration) {
        let began = Instant::now();
        self.stop.send(()).unwrap();
        (self.task.await.unwrap().unwrap(), began.elapsed())
    }
}

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// How long it takes until it is so.
async fn until(what: &str, condition: impl Fn() -> bool) -> Duration {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < HOUR, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn deletes_that_never_answer_hold_up_no_other_address() {
    let (_log, _guard) = Log::keep();
    let store = Rows::default();
    store.trouble(Call::Delete, "queue:bad", Some(End::Hangs));
    store.enqueue("bad", 0..100).await;
    let relay = Running::start(&store, options()).await;
    // Two calls at once may hang before it is known that these lanes hang, and then the other two.
    tokio::time::sleep(Duration::from_secs(90)).await;
    for round in 1..=600 {
        store.enqueue("well", [round]).await;
        let took = until("a row of the well address", || relay.published("well") == round).await;
        assert!(took <= SECOND, "row {round} took {took:?}");
        tokio::time::sleep(SECOND).await;
    }
    // All once, and then one row of each slot after half a minute and longer.
    let copies = relay.published("bad");
    assert!(copies <= 100 + 16 * (690 / 30 + 1), "{copies} messages of 100 rows in 690 s");
    store.trouble(Call::Delete, "queue:bad", None);
    let took = until("no row is left", || store.left() == 0).await;
    assert!(took <= Duration::from_secs(120), "{took:?} after the database was well");
    let (report, took) = relay.stop().await;
    assert_eq!(report.published, 700);
    assert!(report.may_duplicate >= 100 && took < SECOND, "{report:?} after {took:?}");
}

#[tokio::test(start_paused = true)]
async fn with_one_writer_a_delete_waits_its_turn_for_minutes_and_no_row_is_published_twice() {
    let (_log, _guard) = Log::keep();
    let store = Rows::default().with_one_writer();
    store.trouble(Call::Delete, "queue:well", Some(End::Waits(Duration::from_secs(120))));
    store.enqueue("well", 0..100).await;
    let relay = Running::start(&store, options()).await;
    until("no row is left", || store.left() == 0).await;
    assert_eq!(relay.published("well"), 100);
    let (report, _) = relay.stop().await;
    assert_eq!((report.published, report.may_duplicate), (100, 0));
}

#[tokio::test(start_paused = true)]
async fn deletes_that_are_refused_for_long_cost_few_copies_and_are_told() {
    let (log, _guard) = Log::keep();
    let store = Rows::default();
    store.trouble(Call::Delete, "queue:bad", Some(End::Refused));
    store.enqueue("bad", 0..400).await;
    let relay = Running::start(&store, options()).await;
    let long = Duration::from_secs(1200);
    tokio::time::sleep(long).await;
    store.enqueue("well", [1]).await;
    assert!(until("a row of the well address", || relay.published("well") == 1).await <= SECOND);
    // The first attempts of four lanes, and then four rows of each after waits of 15 s or longer.
    let copies = relay.published("bad");
    let most = 400 + 4 * 4 * (10 + 1200 / 15);
    assert!(copies >= 400 && copies <= most, "{copies} messages of 400 rows in twenty minutes");
    let of_lanes = |words: &[&str]| log.count(words);
    assert!((1..=4).contains(&of_lanes(&["WARN", "queue:bad", "cannot be read or written", "refused"])));
    assert!((1..=4).contains(&of_lanes(&["ERROR", "queue:bad", "still cannot be read or written"])));
    store.trouble(Call::Delete, "queue:bad", None);
    until("no row is left", || store.left() == 0).await;
    let (report, _) = relay.stop().await;
    assert_eq!(report.published, 401);
    assert!(report.may_duplicate as usize >= copies, "{report:?}, and {copies} were published in vain");
    assert!(of_lanes(&["INFO", "queue:bad", "can be read and written again"]) >= 1);
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_no_longer_than_the_last_write_and_one_lease() {
    let (_log, _guard) = Log::keep();
    let store = Rows::default();
    store.enqueue("bad", 0..100).await;
    store.trouble(Call::Delete, "queue:bad", Some(End::Hangs));
    let relay = Running::start(&store, options()).await;
    until("the deletes hang", || relay.published("bad") == 100).await;
    store.trouble(Call::Leases, "", Some(End::Hangs));
    let (report, took) = relay.stop().await;
    // 10 s for the deletes, and 10 s, one lease, for giving the slots back.
    assert!(took <= Duration::from_secs(21), "{took:?}");
    assert_eq!((report.published, report.may_duplicate), (0, 100));
    store.trouble(Call::Delete, "queue:bad", None);
    store.trouble(Call::Leases, "", None);
    let relay = Running::start(&store, options()).await;
    until("no row is left", || store.left() == 0).await;
    assert_eq!(relay.stop().await.0.published, 100);
}

#[tokio::test(start_paused = true)]
async fn a_database_whose_calls_hang_is_asked_again_and_a_stop_waits_for_no_read() {
    let (_log, _guard) = Log::keep();
    let store = Rows::default();
    store.trouble(Call::Read, "queue:bad", Some(End::Hangs));
    store.enqueue("bad", 0..100).await;
    let relay = Running::start(&store, options()).await;
    tokio::time::sleep(HOUR).await;
    store.trouble(Call::Read, "queue:bad", None);
    // The limit of a call, and the longest wait after it.
    let took = until("no row is left", || store.left() == 0).await;
    assert!(took <= Duration::from_secs(61), "{took:?} after the database was well");
    store.trouble(Call::Read, "queue:bad", Some(End::Hangs));
    store.enqueue("bad", 100..200).await;
    tokio::time::sleep(SECOND).await;
    let (report, took) = relay.stop().await;
    assert_eq!((report.published, report.may_duplicate), (100, 0));
    assert!(took < SECOND, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn leases_that_cannot_be_renewed_stop_the_publishing_and_are_told() {
    let (log, _guard) = Log::keep();
    let store = Rows::default();
    let relay = Running::start(&store, options()).await;
    store.enqueue("well", [0]).await;
    until("the first row", || relay.published("well") == 1).await;
    store.trouble(Call::Leases, "", Some(End::Hangs));
    tokio::time::sleep(10 * SECOND).await;
    store.enqueue("well", [1]).await;
    tokio::time::sleep(HOUR).await;
    assert_eq!(relay.published("well"), 1, "published under a lease that has run out");
    assert_eq!(log.count(&["WARN", "leases cannot be renewed"]), 1);
    store.trouble(Call::Leases, "", None);
    assert!(until("the second row", || relay.published("well") == 2).await <= 6 * SECOND);
    assert_eq!(log.count(&["INFO", "leases are renewed again"]), 1);
    relay.stop().await;
}

/// A clock of the bus that panics some times: a fault in a lane that nothing catches.
struct PanickingClock(AtomicUsize);

impl Clock for PanickingClock {
    fn now(&self) -> OffsetDateTime {
        let left = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        assert!(left.is_err(), "the clock is broken");
        OffsetDateTime::UNIX_EPOCH
    }
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_panics_is_told_and_tried_again_and_loses_nothing() {
    let (log, _guard) = Log::keep();
    let store = Rows::default();
    store.enqueue("bad", 0..100).await;
    let mut options = options();
    options.clock = Some(Arc::new(PanickingClock(AtomicUsize::new(50))));
    let relay = Running::start(&store, options).await;
    until("no row is left", || store.left() == 0).await;
    let told = log.count(&["WARN", "queue:bad", "a lane of the relay panicked: the clock is broken"]);
    assert!(told >= 1, "{:?}", log.lines());
    let (report, _) = relay.stop().await;
    assert_eq!(report.published, 100);
}

/// A broker that never answers a send.
struct Silent(Arc<dyn Driver>);

#[async_trait]
impl DriverLayer for Silent {
    fn inner(&self) -> &dyn Driver {
        &*self.0
    }
    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        Ok(Arc::new(SilentSender(self.0.open_sender(to).await?)))
    }
}

struct SilentSender(Arc<dyn Sender>);

#[async_trait]
impl Sender for SilentSender {
    fn batching(&self) -> Batching {
        self.0.batching()
    }
    fn prepare(&self, message: Outgoing) -> Result<PreparedMessage> {
        self.0.prepare(message)
    }
    async fn send(&self, _: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        std::future::pending().await
    }
    async fn close(&self) -> Result<()> {
        self.0.close().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_a_publish_hangs_waits_for_the_publish_timeout() {
    let (_log, _guard) = Log::keep();
    let store = Rows::default();
    store.enqueue("bad", 0..100).await;
    let memory = Arc::new(MemoryDriver::new());
    let inner: Arc<dyn Driver> = memory.clone();
    let bus = Bus::new(Arc::new(Silent(inner)), options().publish_timeout(20 * SECOND)).unwrap();
    bus.declare().await.unwrap();
    let relay = Running::on(&store, memory, &bus);
    tokio::time::sleep(5 * SECOND).await;
    let (report, took) = relay.stop().await;
    assert!(took > 10 * SECOND && took <= 21 * SECOND, "{took:?}");
    assert_eq!((report.published, store.left()), (0, 100));
    assert!(report.may_duplicate > 0, "the broker may have some: {report:?}");
}
