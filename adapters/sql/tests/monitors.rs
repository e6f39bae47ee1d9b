//! Monitors on a database: one process at a time polls, and the outbox is watched.
#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Topology, memory::MemoryDriver};
use polybus_patterns::{
    Outbox,
    monitor::{Alert, AlertKind, Monitor, MonitorReport, Rule},
    store::Store,
};
use polybus_sql::Sqlite;
use tokio::{
    sync::{
        mpsc::{UnboundedReceiver, unbounded_channel},
        oneshot,
    },
    task::JoinHandle,
};

fn bus() -> Bus {
    let topology = Topology::new().queue("orders", QueueSpec::new());
    Bus::new(Arc::new(MemoryDriver::new()), BusOptions::topology(topology)).unwrap()
}

/// A process with a monitor of this database and these rules: its end, and what it tells.
struct Process {
    stop: oneshot::Sender<()>,
    task: JoinHandle<MonitorReport>,
    told: UnboundedReceiver<Alert>,
}

impl Process {
    fn start(store: &Sqlite, rules: Vec<Rule>) -> Self {
        let (tell, told) = unbounded_channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let sink = move |alert| {
            tell.send(alert).unwrap();
            async { Ok(()) }
        };
        let monitor =
            Monitor::new(&bus()).named("shop").every(Duration::from_secs(1)).leader(store).sink_fn("told", sink);
        let monitor = rules.into_iter().fold(monitor, Monitor::rule);
        let task = tokio::spawn(async move { monitor.run(async { drop(stopped.await) }).await.unwrap() });
        Self { stop, task, told }
    }

    async fn end(self) -> MonitorReport {
        self.stop.send(()).unwrap();
        self.task.await.unwrap()
    }
}

fn on() -> Vec<Rule> {
    vec![Rule::measure("on", async || Ok(Some(1.0))).above(0).held_for(1)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_process_polls_and_another_takes_over() {
    let store = polybus_sql::sqlite_temp().await.unwrap();
    store.migrate().await.unwrap();
    let mut first = Process::start(&store, on());
    assert_eq!(first.told.recv().await.unwrap().name, "on");
    let mut second = Process::start(&store, on());
    let control = store.control();
    let taken = control.leases().acquire(&["monitor/shop".into()], "me", Duration::from_secs(30)).await.unwrap();
    assert!(taken.is_empty(), "the first one has it");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(second.told.try_recv().is_err());
    assert!(first.end().await.polls > 0);
    let alert = tokio::time::timeout(Duration::from_secs(60), second.told.recv()).await.unwrap().unwrap();
    assert_eq!(alert.name, "on");
    second.end().await;
    let taken = control.leases().acquire(&["monitor/shop".into()], "me", Duration::from_secs(30)).await.unwrap();
    assert_eq!(taken.len(), 1, "it was given back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_wait_in_the_outbox_fire() {
    let store = polybus_sql::sqlite_temp().await.unwrap();
    store.migrate().await.unwrap();
    let outbox = Outbox::new(&store, "/test");
    let rules = || {
        let age = Rule::outbox_age("test", &outbox).above(Duration::ZERO).held_for(1);
        vec![age, Rule::outbox_parked("test", &outbox).held_for(1)]
    };
    // Nothing waits: that is an age of 0, and not unknown. Another rule tells that three polls have passed.
    let seen = Rule::measure("seen", async || Ok(Some(1.0))).above(0).held_for(3);
    let mut process = Process::start(&store, rules().into_iter().chain([seen]).collect());
    let alert = tokio::time::timeout(Duration::from_secs(60), process.told.recv()).await.unwrap().unwrap();
    assert_eq!(alert.name, "seen");
    let report = process.end().await;
    assert!(report.failed == 0 && report.fired == 1, "{report:?}");

    let mut tx = store.begin().await.unwrap();
    outbox.enqueue(&mut tx, Address::queue("orders"), Envelope::new("order.placed", "{}")).await.unwrap();
    Sqlite::commit(tx).await.unwrap();
    let mut process = Process::start(&store, rules());
    let alert = tokio::time::timeout(Duration::from_secs(60), process.told.recv()).await.unwrap().unwrap();
    assert_eq!((alert.kind, alert.source.as_str()), (AlertKind::OutboxAge, "outbox:test"));
    assert!(alert.value.is_some_and(|age| age > 0.0));
    let report = process.end().await;
    assert_eq!(report.fired, 1, "nothing is parked");
}
