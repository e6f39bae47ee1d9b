//! Redrive over a driver whose moves and set-asides fail.
#![allow(clippy::unwrap_used)]

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU32, Ordering},
};

use polybus_core::{
    Address, Bus, BusOptions, Envelope, Error, ErrorKind, QueueSpec, Result, Source, Topology,
    driver::{Batching, Driver, DriverLayer, DriverToken, Receiver, SettleRequest, Settlement, Settler, async_trait},
    memory::MemoryDriver,
    redrive::{RedriveEnd, RedriveOptions, RedriveReport, RedriveVerdict},
    topology::Entity,
};
use tokio::time::Instant;

/// What becomes of a redrive or a set-aside of this message, the nth one that is tried: `None`, it goes on.
type Fails = fn(&Settlement, &str, u32) -> Option<Error>;

struct Failing {
    inner: MemoryDriver,
    fails: Fails,
    /// The settlements that were asked for.
    asked: Arc<Mutex<Vec<String>>>,
}

#[async_trait]
impl DriverLayer for Failing {
    fn inner(&self) -> &dyn Driver {
        &self.inner
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        let (receiver, settler) = self.inner.open_receiver(from).await?;
        let tries = AtomicU32::new(0);
        Ok((receiver, Arc::new(FailingSettler { inner: settler, fails: self.fails, tries, asked: self.asked.clone() })))
    }
}

struct FailingSettler {
    inner: Arc<dyn Settler>,
    fails: Fails,
    tries: AtomicU32,
    asked: Arc<Mutex<Vec<String>>>,
}

#[async_trait]
impl Settler for FailingSettler {
    fn batching(&self) -> Batching {
        Batching::new(1, usize::MAX, 1)
    }

    async fn settle(&self, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let one = &batch[0];
        let data = String::from_utf8(one.envelope.data.to_vec()).unwrap();
        if matches!(one.how, Settlement::Redrive | Settlement::SetAside) {
            self.asked.lock().unwrap().push(data.clone());
            let n = self.tries.fetch_add(1, Ordering::Relaxed);
            if let Some(e) = (self.fails)(&one.how, &data, n) {
                if e.kind() == ErrorKind::LockLost {
                    // The broker has it back.
                    let back =
                        SettleRequest::new(one.token.clone(), one.envelope.clone(), one.attempt, Settlement::GiveBack);
                    self.inner.settle(&[back]).await;
                }
                return vec![Err(e)];
            }
        }
        self.inner.settle(batch).await
    }

    fn holds(&self, token: &DriverToken) -> bool {
        self.inner.holds(token)
    }

    async fn extend(&self, tokens: &[DriverToken], by: std::time::Duration) -> Vec<Result<Instant>> {
        self.inner.extend(tokens, by).await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

async fn failing(n: usize, fails: Fails) -> (Bus, Source, Arc<Mutex<Vec<String>>>) {
    failing_over(MemoryDriver::new(), QueueSpec::new(), n, 1, fails).await
}

/// The same where letters that stay are set aside: numbered letters of so many keys, in turn.
async fn failing_in_order(n: usize, keys: usize, fails: Fails) -> (Bus, Source) {
    let driver = MemoryDriver::new().fifo_dead_letters();
    let (bus, q, _) = failing_over(driver, QueueSpec::new().ordered(true), n, keys, fails).await;
    (bus, q)
}

async fn failing_over(
    inner: MemoryDriver,
    spec: QueueSpec,
    n: usize,
    keys: usize,
    fails: Fails,
) -> (Bus, Source, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let driver = Failing { inner, fails, asked: asked.clone() };
    let topology = Topology::new().queue("q", spec);
    let bus = Bus::new(Arc::new(driver), BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    for i in 0..n {
        let message = Envelope::new("test.message", i.to_string()).key((i % keys).to_string());
        bus.publish(Address::queue("q"), message).await.unwrap();
        sub.next().await.unwrap().unwrap().dead_letter("unwanted", "").await.unwrap();
    }
    (bus, Source::queue("q"), asked)
}

#[tokio::test(start_paused = true)]
async fn one_letter_that_cannot_be_moved_ends_nothing() {
    let fails: Fails = |_, data, _| (data == "3").then(|| Error::new(ErrorKind::Unexpected, "not this one"));
    let (bus, q, _) = failing(10, fails).await;
    let report = bus.redrive(&q, |_| true, usize::MAX).await.unwrap();
    assert_eq!(
        (report.moved, report.failed.len(), report.ended, report.read),
        (9, 1, RedriveEnd::Empty, 10),
        "{report}"
    );
    assert_eq!(report.failed[0].1.kind(), ErrorKind::Unexpected);
    assert_eq!(bus.stats(&q).await.unwrap().dead_lettered, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_gone_ends_it_and_no_letter_is_lost() {
    let fails: Fails = |_, _, n| (n >= 20).then(|| Error::new(ErrorKind::Unavailable, "gone").may_duplicate());
    let (bus, q, asked) = failing(100, fails).await;
    let report = bus.redrive(&q, |_| true, usize::MAX).await.unwrap();
    assert_eq!((report.moved, report.ended), (20, RedriveEnd::Error), "{report}");
    assert_eq!(report.error.map(|e| e.kind()), Some(ErrorKind::Unavailable));
    assert!(asked.lock().unwrap().len() < 100, "those not asked about yet are not tried");
    let stats = bus.stats(&q).await.unwrap();
    assert_eq!((stats.ready, stats.dead_lettered, stats.in_flight), (Some(20), Some(80), Some(0)));
}

#[tokio::test(start_paused = true)]
async fn a_letter_that_was_lost_comes_again_and_is_counted_once() {
    let fails: Fails = |_, data, n| (data == "3" && n < 8).then(lost);
    let (bus, q, asked) = failing(10, fails).await;
    let report = bus.redrive_each(&q, RedriveOptions::new(), |_| RedriveVerdict::Redrive).await.unwrap();
    assert_eq!(
        (report.moved, report.read, report.failed.len(), report.ended),
        (10, 10, 0, RedriveEnd::Empty),
        "{report}"
    );
    assert_eq!(asked.lock().unwrap().iter().filter(|data| *data == "3").count(), 2);
}

fn lost() -> Error {
    Error::new(ErrorKind::LockLost, "somebody cut the line")
}

fn number(e: &Envelope) -> usize {
    String::from_utf8(e.data.to_vec()).unwrap().parse().unwrap()
}

fn adds_up(report: &RedriveReport) {
    let sum = report.kept + report.moved + report.dropped + report.refusals() + report.failed.len() as u64;
    assert_eq!(report.read, sum, "{report}");
}

/// Known as seen before, it would be held, and hide the rest of its key.
#[tokio::test(start_paused = true)]
async fn a_letter_whose_set_aside_lost_its_lock_is_set_aside_again() {
    let first: Fails = |how, data, n| (*how == Settlement::SetAside && data == "0" && n == 0).then(lost);
    let (bus, q) = failing_in_order(10, 1, first).await;
    let report = bus.redrive(&q, |e| number(e) >= 3, usize::MAX).await.unwrap();
    adds_up(&report);
    assert_eq!((report.moved, report.kept, report.read, report.ended), (7, 3, 10, RedriveEnd::Empty), "{report}");

    // One whose move has failed before is moved after all, and counts as that.
    let moved_later: Fails = |how, data, n| match (how, data, n) {
        (Settlement::Redrive, "0", 0) => Some(Error::new(ErrorKind::Unexpected, "not now")),
        (Settlement::SetAside, "0", 1) => Some(lost()),
        _ => None,
    };
    let (bus, q) = failing_in_order(10, 1, moved_later).await;
    let report = bus.redrive(&q, |_| true, usize::MAX).await.unwrap();
    adds_up(&report);
    assert_eq!((report.moved, report.failed.len(), report.ended), (10, 0, RedriveEnd::Empty), "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_set_aside_that_is_refused_is_named_and_ends_the_redrive_with_its_cause() {
    let denied: Fails = |how, _, _| {
        (*how == Settlement::SetAside).then(|| Error::new(ErrorKind::PermissionDenied, "no right to send here"))
    };
    // The first letter of the only key hides all others. Where each has a key of its own, nothing is hidden.
    for keys in [1, 40] {
        let (bus, q) = failing_in_order(40, keys, denied).await;
        let report = bus.redrive(&q, |_| false, usize::MAX).await.unwrap();
        adds_up(&report);
        assert_eq!((report.kept, report.ended), (0, RedriveEnd::Error), "{keys} keys: {report}");
        let errors = report.failed.iter().map(|(_, e)| e).chain(&report.error);
        let kinds: Vec<ErrorKind> = errors.map(Error::kind).collect();
        assert!(kinds.iter().all(|kind| *kind == ErrorKind::PermissionDenied), "{kinds:?}");
        assert!(kinds.len() >= 2, "the end has no cause");
        assert_eq!(bus.stats(&q).await.unwrap().dead_lettered, Some(40));
    }
}

/// The letter is held as where none is set aside, and what it hides is not read.
#[tokio::test(start_paused = true)]
async fn where_no_letter_can_be_set_aside_the_silence_has_a_cause() {
    let unsupported: Fails = |how, _, _| (*how == Settlement::SetAside).then(|| Error::unsupported("no set-aside"));
    let (bus, q) = failing_in_order(10, 1, unsupported).await;
    let report = bus.redrive(&q, |e| number(e) >= 3, usize::MAX).await.unwrap();
    adds_up(&report);
    assert_eq!((report.kept, report.failed.len(), report.ended), (1, 0, RedriveEnd::Error), "{report}");
    assert_eq!(report.error.map(|e| e.kind()), Some(ErrorKind::Unsupported));
}
