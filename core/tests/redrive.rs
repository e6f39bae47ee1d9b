//! Redrive where the broker's counts lag behind.
#![allow(clippy::unwrap_used)]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use polybus_core::{
    Address, Bus, BusOptions, Capabilities, Clock, DeclareMode, DeclareReport, Driver, Entity, Envelope, Plan,
    QueueSpec, Receiver, Result, Sender, Settler, Source, Stats, Topology, async_trait, memory::MemoryDriver,
};

/// The memory driver with counts that are always of before.
struct Lagging {
    inner: MemoryDriver,
    dead_lettered: Option<u64>,
    /// The prefetch of each consumer of dead letters.
    windows: Arc<Mutex<Vec<usize>>>,
}

#[async_trait]
impl Driver for Lagging {
    fn backend(&self) -> &'static str {
        "lagging"
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    async fn declare(&self, plan: &Plan, mode: DeclareMode) -> Result<DeclareReport> {
        self.inner.declare(plan, mode).await
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        self.inner.open_sender(to).await
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        if from.name.is_dead_letters() {
            self.windows.lock().unwrap().push(from.prefetch);
        }
        self.inner.open_receiver(from).await
    }

    async fn stats(&self, _: &Entity<Source>) -> Result<Stats> {
        let mut stats = Stats::default();
        (stats.dead_lettered, stats.approximate) = (self.dead_lettered, true);
        Ok(stats)
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }

    fn clock(&self) -> Option<Arc<dyn Clock>> {
        self.inner.clock()
    }
}

async fn with_dead_letters(n: usize, dead_lettered: Option<u64>) -> (Bus, Source) {
    let (bus, q, _) = watched(n, dead_lettered).await;
    (bus, q)
}

async fn watched(n: usize, dead_lettered: Option<u64>) -> (Bus, Source, Arc<Mutex<Vec<usize>>>) {
    let windows = Arc::<Mutex<Vec<usize>>>::default();
    let driver = Lagging { inner: MemoryDriver::new(), dead_lettered, windows: windows.clone() };
    let topology = Topology::new().queue("q", QueueSpec::new());
    let bus = Bus::new(Arc::new(driver), BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    for i in 0..n {
        bus.publish(&Address::queue("q"), Envelope::new("test.message", i.to_string())).await.unwrap();
        sub.next().await.unwrap().unwrap().dead_letter("unwanted", "").await.unwrap();
    }
    (bus, Source::queue("q"), windows)
}

#[tokio::test(start_paused = true)]
async fn no_more_is_taken_at_once_than_is_needed() {
    let (bus, q, windows) = watched(600, None).await;
    assert_eq!(bus.redrive(&q, |_| true, 1).await.unwrap(), 1);
    assert_eq!(std::mem::take(&mut *windows.lock().unwrap()), [1]);
    // The one it looks for is the last: what is refused on the way is held, and comes back in its order.
    let wanted = |e: &Envelope| &e.data[..] == b"599";
    assert_eq!(bus.redrive(&q, wanted, usize::MAX).await.unwrap(), 1);
    assert_eq!(std::mem::take(&mut *windows.lock().unwrap()), [128, 256, 512]);
    let mut sub = bus.subscribe(q.dead_letters()).prefetch(600).open().await.unwrap();
    for i in 1..599 {
        let letter = sub.next().await.unwrap().unwrap();
        assert_eq!(&letter.envelope().data[..], i.to_string().as_bytes());
        letter.ack().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_count_that_lags_ends_nothing_too_early() {
    for counted in [None, Some(0), Some(3), Some(100)] {
        let (bus, q) = with_dead_letters(10, counted).await;
        assert_eq!(bus.redrive(&q, |_| true, 0).await.unwrap(), 0, "{counted:?}");
        assert_eq!(bus.redrive(&q, |_| true, 4).await.unwrap(), 4, "{counted:?}");
        assert_eq!(bus.redrive(&q, |_| true, usize::MAX).await.unwrap(), 6, "{counted:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn it_ends_though_poison_returns_at_the_same_moment() {
    let (bus, q) = with_dead_letters(5, Some(5)).await;
    let mut sub = bus.subscribe(q.clone()).open().await.unwrap();
    tokio::spawn(async move {
        while let Some(Ok(poison)) = sub.next().await {
            poison.dead_letter("poison", "").await.unwrap();
        }
    });
    let moved = tokio::time::timeout(Duration::from_secs(60), bus.redrive(&q, |_| true, usize::MAX)).await;
    assert!((1..=5).contains(&moved.unwrap().unwrap()));
}
