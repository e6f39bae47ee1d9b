//! Redrive over a driver whose moves fail.
#![allow(clippy::unwrap_used)]

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU32, Ordering},
};

use polybus_core::{
    Address, Bus, BusOptions, Envelope, Error, ErrorKind, QueueSpec, Result, Source, Topology,
    driver::{Batching, Driver, DriverLayer, DriverToken, Receiver, SettleRequest, Settlement, Settler, async_trait},
    memory::MemoryDriver,
    redrive::{RedriveEnd, RedriveOptions, RedriveVerdict},
    topology::Entity,
};
use tokio::time::Instant;

/// What becomes of a redrive of this message, the nth time it is tried: `None`, it goes on.
type Fails = fn(&str, u32) -> Option<Error>;

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
        if one.how == Settlement::Redrive {
            self.asked.lock().unwrap().push(data.clone());
            let n = self.tries.fetch_add(1, Ordering::Relaxed);
            if let Some(e) = (self.fails)(&data, n) {
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
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let driver = Failing { inner: MemoryDriver::new(), fails, asked: asked.clone() };
    let topology = Topology::new().queue("q", QueueSpec::new());
    let bus = Bus::new(Arc::new(driver), BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    for i in 0..n {
        bus.publish(Address::queue("q"), Envelope::new("test.message", i.to_string())).await.unwrap();
        sub.next().await.unwrap().unwrap().dead_letter("unwanted", "").await.unwrap();
    }
    (bus, Source::queue("q"), asked)
}

#[tokio::test(start_paused = true)]
async fn one_letter_that_cannot_be_moved_ends_nothing() {
    let fails: Fails = |data, _| (data == "3").then(|| Error::new(ErrorKind::Unexpected, "not this one"));
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
    let fails: Fails = |_, n| (n >= 20).then(|| Error::new(ErrorKind::Unavailable, "gone").may_duplicate());
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
    let fails: Fails =
        |data, n| (data == "3" && n < 8).then(|| Error::new(ErrorKind::LockLost, "somebody cut the line"));
    let (bus, q, asked) = failing(10, fails).await;
    let report = bus.redrive_each(&q, RedriveOptions::new(), |_| RedriveVerdict::Redrive).await.unwrap();
    assert_eq!(
        (report.moved, report.read, report.failed.len(), report.ended),
        (10, 10, 0, RedriveEnd::Empty),
        "{report}"
    );
    assert_eq!(asked.lock().unwrap().iter().filter(|data| *data == "3").count(), 2);
}
