//! Several processes with one database: one of them polls.

use std::{
    collections::HashMap,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use polybus_core::{Error, ErrorKind, Result, driver::async_trait};
use polybus_patterns::{
    monitor::{LEADER_TERM, Monitor, Rule},
    store::{ChangeSignal, Lease, LeaseTable, Outage, Store, StoreControl, StoreTrouble},
};
use tokio::time::Instant;

use crate::{
    log,
    scripted::{Running, Scripted, Told, line},
};

/// A database that has leases alone, by the paused clock.
#[derive(Clone, Default)]
struct Leases(Arc<Inner>);

#[derive(Default)]
struct Inner {
    held: Mutex<HashMap<String, (String, i64, Instant)>>,
    is_away: AtomicBool,
    hangs: AtomicBool,
    is_old: AtomicBool,
    fails: Mutex<Option<ErrorKind>>,
    changes: ChangeSignal,
    outage: Outage,
}

impl Leases {
    async fn meet(&self) -> Result<()> {
        if self.0.hangs.load(Ordering::Relaxed) {
            pending::<()>().await;
        }
        if let Some(kind) = *self.0.fails.lock() {
            return Err(Error::new(kind, "the database is being migrated").safe());
        }
        match self.0.is_away.load(Ordering::Relaxed) {
            true => Err(Error::new(ErrorKind::Unavailable, "the database is away").safe()),
            false => Ok(()),
        }
    }

    fn names(&self) -> Vec<String> {
        self.0.held.lock().keys().cloned().collect()
    }
}

impl Store for Leases {
    type Conn = ();
    type Tx = Box<()>;

    async fn begin(&self) -> Result<Box<()>> {
        Ok(Box::new(()))
    }
    async fn commit(_: Box<()>) -> Result<()> {
        Ok(())
    }
    fn in_transaction(_: &mut ()) -> bool {
        true
    }
    fn judge(&self, _: &(dyn std::error::Error + 'static)) -> StoreTrouble {
        StoreTrouble::None
    }
    fn control(&self) -> Arc<dyn StoreControl> {
        Arc::new(self.clone())
    }
}

#[async_trait]
impl StoreControl for Leases {
    async fn is_away(&self) -> bool {
        false
    }
    async fn verify(&self, components: &[&str]) -> Result<()> {
        assert_eq!(components, ["lease"]);
        self.meet().await?;
        match self.0.is_old.load(Ordering::Relaxed) {
            true => Err(Error::config("the table lease is missing")),
            false => Ok(()),
        }
    }
    fn leases(&self) -> Arc<dyn LeaseTable> {
        Arc::new(self.clone())
    }
    fn changes(&self) -> &ChangeSignal {
        &self.0.changes
    }
    fn outage(&self) -> &Outage {
        &self.0.outage
    }
    fn max_connections(&self) -> Option<u32> {
        None
    }
    fn single_writer(&self) -> bool {
        false
    }
    fn system(&self) -> &'static str {
        "leases"
    }
}

#[async_trait]
impl LeaseTable for Leases {
    async fn acquire(&self, names: &[String], owner: &str, term: Duration) -> Result<Vec<Lease>> {
        self.meet().await?;
        let (mut held, now) = (self.0.held.lock(), Instant::now());
        let mut taken = Vec::new();
        for name in names {
            let token = held.get(name).map_or(0, |(_, token, _)| *token) + 1;
            if held.get(name).is_none_or(|(.., until)| *until <= now) {
                held.insert(name.clone(), (owner.to_owned(), token, now + term));
                taken.push(Lease { name: name.clone(), token });
            }
        }
        Ok(taken)
    }
    async fn renew(&self, leases: &[Lease], owner: &str, term: Duration) -> Result<Vec<Lease>> {
        self.meet().await?;
        let mut held = self.0.held.lock();
        let mut kept = Vec::new();
        for lease in leases {
            if let Some((by, token, until)) =
                held.get_mut(&lease.name).filter(|(by, token, _)| by == owner && *token == lease.token)
            {
                let _ = (by, token);
                *until = Instant::now() + term;
                kept.push(lease.clone());
            }
        }
        Ok(kept)
    }
    async fn release(&self, leases: &[Lease], owner: &str) -> Result<()> {
        self.meet().await?;
        self.0.held.lock().retain(|name, (by, ..)| by != owner || leases.iter().all(|lease| lease.name != *name));
        Ok(())
    }
    async fn join(&self, _: &str, _: &str, _: Duration) -> Result<u32> {
        Ok(1)
    }
    async fn leave(&self, _: &str, _: &str) -> Result<()> {
        Ok(())
    }
}

/// A process with a monitor whose alert fires at the first poll.
fn process(db: &Leases, name: &str) -> (Running, Told) {
    let told = Told::default();
    let rule = Rule::measure("on", async || Ok(Some(1.0))).above(0).held_for(1);
    let monitor = Monitor::new(&Scripted::new().bus(&[])).named(name).rule(rule).leader(db);
    (Running::start(told.sink(monitor)), told)
}

async fn secs(secs: u64) {
    tokio::time::sleep(Duration::from_secs(secs)).await;
}

#[tokio::test(start_paused = true)]
async fn one_process_polls_and_the_next_takes_over_at_once_after_a_shutdown() {
    let db = Leases::default();
    let (first, first_told) = process(&db, "shop");
    secs(1).await;
    let (second, second_told) = process(&db, "shop");
    let (other, other_told) = process(&db, "other");
    secs(600).await;
    assert_eq!(first_told.lines(), vec![line(0, "on", "firing")]);
    assert_eq!(second_told.lines(), vec![], "the first one has the lease");
    assert_eq!(other_told.lines().len(), 1, "a monitor of another name has a lease of its own");
    let mut names = db.names();
    names.sort();
    assert_eq!(names, ["monitor/other", "monitor/shop"]);
    assert!(first.end().await.polls > 30);
    secs(11).await;
    assert_eq!(second_told.lines().len(), 1, "within its next look");
    let report = second.end().await;
    assert!(report.polls < 3, "{}", report.polls);
    other.end().await;
    assert!(db.names().is_empty(), "all leases were given back");
}

#[tokio::test(start_paused = true)]
async fn a_process_that_dies_is_replaced_after_its_term() {
    let db = Leases::default();
    let (first, first_told) = process(&db, "shop");
    secs(1).await;
    let (second, second_told) = process(&db, "shop");
    secs(60).await;
    first.task.abort();
    secs(45).await;
    assert_eq!((first_told.lines().len(), second_told.lines().len()), (1, 1));
    second.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_lost_ends_the_polls() {
    let db = Leases::default();
    let (first, _) = process(&db, "shop");
    secs(1).await;
    // As after a pause of this process, in which another one took it.
    let until = Instant::now() + 10 * LEADER_TERM;
    db.0.held.lock().insert("monitor/shop".into(), ("another".into(), 9, until));
    secs(300).await;
    assert_eq!(first.end().await.polls, 1, "none after the first renewal");
    assert_eq!(db.names(), ["monitor/shop"], "and it gives back nothing that is not its own");
}

#[tokio::test(start_paused = true)]
async fn while_the_database_is_away_every_process_polls() {
    for hangs in [false, true] {
        let db = Leases::default();
        let (first, first_told) = process(&db, "shop");
        secs(1).await;
        let (second, second_told) = process(&db, "shop");
        secs(60).await;
        let fault = if hangs { &db.0.hangs } else { &db.0.is_away };
        fault.store(true, Ordering::Relaxed);
        secs(20).await;
        assert_eq!(second_told.lines(), vec![], "the database may be back soon");
        secs(60).await;
        assert_eq!(second_told.lines().len(), 1, "two alerts are better than none");
        assert_eq!(first_told.lines().len(), 1, "who polled goes on, with what it knows");
        fault.store(false, Ordering::Relaxed);
        secs(30).await;
        // One of them stops.
        let (before, of_both) = (second_told.lines().len(), first_told.lines().len());
        secs(600).await;
        assert_eq!((second_told.lines().len(), first_told.lines().len()), (before, of_both));
        let polls = first.end().await.polls + second.end().await.polls;
        assert!(polls < 80, "{polls} in 770 s, of which 60 s twice");
    }
}

#[tokio::test(start_paused = true)]
async fn a_table_that_is_missing_ends_the_monitor_and_a_database_that_is_away_does_not() {
    let (log, _keeping) = log::Log::keep();
    let db = Leases::default();
    db.0.is_old.store(true, Ordering::Relaxed);
    let (monitor, _) = process(&db, "shop");
    let error = monitor.task.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    assert_eq!(log.count(&["ERROR", "the monitor has ended", "shop"]), 1);

    // Once it was well, no error of it ends the monitor.
    let db = Leases::default();
    let (monitor, told) = process(&db, "shop");
    secs(30).await;
    for kind in [ErrorKind::ConfigInvalid, ErrorKind::Closed] {
        *db.0.fails.lock() = Some(kind);
        secs(120).await;
        assert!(!monitor.task.is_finished(), "{kind:?}");
        *db.0.fails.lock() = None;
        secs(60).await;
    }
    assert_eq!(told.lines().len(), 1);
    assert!(monitor.end().await.polls > 20);

    let db = Leases::default();
    db.0.is_away.store(true, Ordering::Relaxed);
    let (monitor, told) = process(&db, "shop");
    secs(40).await;
    assert_eq!(told.lines().len(), 1);
    monitor.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_without_a_name_is_refused() {
    let rule = || Rule::measure("on", async || Ok(Some(1.0))).above(0);
    let bus = Scripted::new().bus(&[]);
    let error = Monitor::new(&bus).rule(rule()).leader(&Leases::default()).run(secs(1)).await.unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidArgument && error.to_string().contains("by named"), "{error}");
    let named = Monitor::new(&bus).named("default").rule(rule()).leader(&Leases::default());
    named.run(secs(1)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_stands_by_says_so_once() {
    let (log, _keeping) = log::Log::keep();
    let db = Leases::default();
    let (first, _) = process(&db, "stands-by");
    secs(1).await;
    let (second, _) = process(&db, "stands-by");
    secs(300).await;
    assert_eq!(log.count(&["stands by", "monitor/stands-by"]), 1, "{:?}", log.lines());
    first.end().await;
    second.end().await;
}
