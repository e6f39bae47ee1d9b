//! Redrive where the broker's counts lag behind.
#![allow(clippy::unwrap_used)]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use polybus_core::{
    Address, Bus, BusOptions, Envelope, ErrorKind, QueueSpec, Result, Source, Topology,
    clock::{Clock, TokioClock},
    driver::{Capabilities, Driver, Receiver, Sender, Settler, async_trait},
    memory::MemoryDriver,
    redrive::{RedriveEnd, RedriveLetter, RedriveOptions, RedriveReport, RedriveVerdict},
    topology::{DeclareMode, DeclarePlan, DeclareReport, Entity, SourceStats},
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

    async fn declare(&self, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport> {
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

    async fn stats(&self, _: &Entity<Source>) -> Result<SourceStats> {
        let mut stats = SourceStats::default();
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
        bus.publish(Address::queue("q"), Envelope::new("test.message", i.to_string())).await.unwrap();
        sub.next().await.unwrap().unwrap().dead_letter("unwanted", "").await.unwrap();
    }
    (bus, Source::queue("q"), windows)
}

#[tokio::test(start_paused = true)]
async fn no_more_is_taken_at_once_than_is_needed() {
    let (bus, q, windows) = watched(600, None).await;
    assert_eq!(bus.redrive(&q, |_| true, 1).await.unwrap().moved, 1);
    assert_eq!(std::mem::take(&mut *windows.lock().unwrap()), [1]);
    // The one it looks for is the last: what is refused on the way is held, and comes back in its order.
    let wanted = |e: &Envelope| &e.data[..] == b"599";
    assert_eq!(bus.redrive(&q, wanted, usize::MAX).await.unwrap().moved, 1);
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
        assert_eq!(bus.redrive(&q, |_| true, 0).await.unwrap().moved, 0, "{counted:?}");
        assert_eq!(bus.redrive(&q, |_| true, 4).await.unwrap().moved, 4, "{counted:?}");
        assert_eq!(bus.redrive(&q, |_| true, usize::MAX).await.unwrap().moved, 6, "{counted:?}");
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
    assert!((1..=5).contains(&moved.unwrap().unwrap().moved));
}

/// A bus with so many letters, numbered, whatever their ids.
async fn memory(spec: QueueSpec, letters: Vec<Envelope>) -> (Bus, Source) {
    let driver = MemoryDriver::new().max_message_size(1_000);
    let bus = Bus::new(Arc::new(driver), BusOptions::topology(Topology::new().queue("q", spec))).unwrap();
    bus.declare().await.unwrap();
    let q = Source::queue("q");
    bury(&bus, letters).await;
    (bus, q)
}

async fn bury(bus: &Bus, letters: Vec<Envelope>) {
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    for letter in letters {
        bus.publish(Address::queue("q"), letter).await.unwrap();
        sub.next().await.unwrap().unwrap().dead_letter("unwanted", "").await.unwrap();
    }
}

fn numbered(n: usize) -> Envelope {
    Envelope::new("test.message", n.to_string()).source("s")
}

async fn all_of(bus: &Bus, source: Source) -> Vec<Envelope> {
    let mut sub = bus.subscribe(source).prefetch(100_000).open().await.unwrap();
    let mut all = Vec::new();
    while let Ok(Some(Ok(delivery))) = tokio::time::timeout(Duration::from_millis(100), sub.next()).await {
        all.push(delivery.envelope().clone());
        delivery.ack().await.unwrap();
    }
    all
}

fn adds_up(report: &RedriveReport) {
    let sum = report.kept + report.moved + report.dropped + report.refusals() + report.failed.len() as u64;
    assert_eq!(report.read, sum, "{report}");
}

#[tokio::test(start_paused = true)]
async fn each_verdict_and_each_cause_is_counted() {
    let expires = Envelope::new("test.message", "expired").expires_at(TokioClock::new().now() + Duration::from_secs(5));
    let mut letters: Vec<Envelope> = (0..20).map(numbered).collect();
    letters.push(expires);
    let (bus, q) = memory(QueueSpec::new(), letters).await;
    tokio::time::advance(Duration::from_secs(6)).await;
    let told = Arc::new(Mutex::new(Vec::new()));
    let how = RedriveOptions::new().progress({
        let told = told.clone();
        move |report: &RedriveReport| told.lock().unwrap().push(report.clone())
    });
    let report = bus
        .redrive_each(&q, how, |letter| match std::str::from_utf8(&letter.envelope().data).unwrap() {
            "0" | "1" => RedriveVerdict::Keep,
            "2" => RedriveVerdict::Drop,
            "3" => RedriveVerdict::RedriveAs(letter.edited().header("edited", "yes")),
            "4" => RedriveVerdict::RedriveAs(Envelope::new("no type", "")),
            "5" => RedriveVerdict::RedriveAs(Envelope::new("test.large", vec![b'x'; 2_000])),
            _ => RedriveVerdict::Redrive,
        })
        .await
        .unwrap();
    adds_up(&report);
    assert_eq!((report.read, report.kept, report.moved, report.dropped), (21, 2, 15, 1), "{report}");
    assert_eq!(report.refused, [("expired", 1), ("too-large", 1)].into(), "{report}");
    assert_eq!((report.failed.len(), report.failed[0].1.kind()), (1, ErrorKind::InvalidArgument));
    assert_eq!((report.ended, report.left), (RedriveEnd::Empty, Some(0)));
    let told = std::mem::take(&mut *told.lock().unwrap());
    assert!(told.windows(2).all(|w| w[0].moved <= w[1].moved) && told.last().unwrap().moved == 15);
    let back = all_of(&bus, q.clone()).await;
    let edited = back.iter().find(|e| e.headers.get("edited").is_some()).unwrap();
    assert!(edited.causation_id.is_some() && edited.causation_id.as_deref() != Some(&*edited.id));
    assert_eq!((back.len(), &edited.data[..]), (15, &b"3"[..]));
    let left: Vec<_> = all_of(&bus, q.dead_letters()).await.into_iter().map(|e| e.data.clone()).collect();
    assert_eq!(left, ["0", "1", "4", "5", "expired"]);
}

#[tokio::test(start_paused = true)]
async fn equal_ids_are_letters_of_their_own() {
    let (bus, q) = memory(QueueSpec::new(), (0..5).map(|n| numbered(n).id("same")).collect()).await;
    let report = bus.redrive(&q, |_| true, usize::MAX).await.unwrap();
    assert!(report.moved == 5 && report.is_complete(), "{report}");
    assert_eq!(all_of(&bus, q).await.len(), 5);
}

#[tokio::test(start_paused = true)]
async fn it_stops_at_its_limits_and_says_what_is_left() {
    let (bus, q) = memory(QueueSpec::new(), (0..300).map(numbered).collect()).await;
    let report = bus.redrive_each(&q, RedriveOptions::new().read_limit(10), |_| RedriveVerdict::Keep).await.unwrap();
    assert_eq!((report.kept, report.ended, report.left), (10, RedriveEnd::ReadLimit, Some(290)));
    let report = bus.redrive_each(&q, RedriveOptions::new().hold(200), |_| RedriveVerdict::Keep).await.unwrap();
    assert_eq!((report.kept, report.ended, report.left), (200, RedriveEnd::Full, Some(100)));
    let mut n = 0;
    let stop = |_: &RedriveLetter| {
        n += 1;
        if n == 8 { RedriveVerdict::Stop } else { RedriveVerdict::Redrive }
    };
    let report = bus.redrive_each(&q, RedriveOptions::new(), stop).await.unwrap();
    assert_eq!((report.moved, report.kept, report.ended, report.left), (7, 1, RedriveEnd::Stopped, Some(292)));
    let report = bus.redrive_each(&q, RedriveOptions::new().limit(3), |_| RedriveVerdict::Drop).await.unwrap();
    assert_eq!((report.dropped, report.ended), (3, RedriveEnd::Limit));
    let left: Vec<_> = all_of(&bus, q.dead_letters()).await.into_iter().map(|e| e.data.clone()).collect();
    assert_eq!(left, (10..300).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_leaves_its_place_to_another() {
    let (bus, q) = memory(QueueSpec::new(), (0..6).map(numbered).collect()).await;
    let decide = |letter: &RedriveLetter| match &letter.envelope().data[..] {
        b"0" => RedriveVerdict::RedriveAs(Envelope::new("test.large", vec![b'x'; 2_000])),
        _ => RedriveVerdict::Redrive,
    };
    let report = bus.redrive_each(&q, RedriveOptions::new().limit(4), decide).await.unwrap();
    assert_eq!(
        (report.moved, report.refused.get("too-large"), report.ended),
        (4, Some(&1), RedriveEnd::Limit),
        "{report}"
    );
}

#[tokio::test(start_paused = true)]
async fn it_keeps_its_pace() {
    let (bus, q) = memory(QueueSpec::new(), (0..41).map(numbered).collect()).await;
    let began = tokio::time::Instant::now();
    let report = bus.redrive_each(&q, RedriveOptions::new().rate(4), |_| RedriveVerdict::Redrive).await.unwrap();
    let took = began.elapsed();
    assert_eq!(report.moved, 41);
    assert!((Duration::from_secs(9)..Duration::from_secs(11)).contains(&took), "{took:?}");
}

/// A worker dead-letters what it gets at once, and another one adds new letters all the time.
#[tokio::test(start_paused = true)]
async fn it_ends_while_poison_returns_and_new_letters_come() {
    for counted in [None, Some(0), Some(5)] {
        let (bus, q) = with_dead_letters(5, counted).await;
        let mut sub = bus.subscribe(q.clone()).open().await.unwrap();
        let worker = tokio::spawn(async move {
            while let Some(Ok(poison)) = sub.next().await {
                poison.dead_letter("poison", "").await.unwrap();
            }
        });
        let newer = tokio::spawn({
            let bus = bus.clone();
            async move {
                loop {
                    bus.publish(Address::queue("q"), Envelope::new("test.message", "newer")).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
            }
        });
        let report = tokio::time::timeout(Duration::from_secs(60), bus.redrive(&q, |_| true, usize::MAX)).await;
        let report = report.expect("it ends").unwrap();
        adds_up(&report);
        assert!(report.moved >= 5 && report.returned >= 5, "{counted:?}: {report}");
        newer.abort();
        worker.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn where_held_letters_hide_others_they_are_set_aside_in_order() {
    let driver = MemoryDriver::new().fifo_dead_letters();
    let topology = Topology::new().queue("q", QueueSpec::new().ordered(true));
    let bus = Bus::new(Arc::new(driver), BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();
    let q = Source::queue("q");
    bury(&bus, (0..60).map(|n| numbered(n).key(if n % 2 == 0 { "even" } else { "odd" })).collect()).await;
    // Of each key the first ones stay.
    let number = |e: &Envelope| std::str::from_utf8(&e.data).unwrap().parse::<usize>().unwrap();
    let report = bus.redrive(&q, |e| number(e) >= 20, usize::MAX).await.unwrap();
    adds_up(&report);
    assert_eq!((report.moved, report.kept, report.ended), (40, 20, RedriveEnd::Empty), "{report}");
    assert_eq!(all_of(&bus, q.clone()).await.len(), 40);
    let left: Vec<usize> = all_of(&bus, q.dead_letters()).await.iter().map(number).collect();
    for rest in [0, 1] {
        let of_key: Vec<usize> = left.iter().copied().filter(|n| n % 2 == rest).collect();
        assert_eq!(of_key, (0..20).filter(|n| n % 2 == rest).collect::<Vec<_>>());
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_it_gives_back_what_it_held() {
    let (bus, q) = memory(QueueSpec::new(), (0..30).map(numbered).collect()).await;
    let slow = bus.redrive_each(&q, RedriveOptions::new().rate(1), |l| {
        if l.envelope().data.len() == 1 { RedriveVerdict::Keep } else { RedriveVerdict::Redrive }
    });
    assert!(tokio::time::timeout(Duration::from_millis(4_500), slow).await.is_err());
    let back = all_of(&bus, q.clone()).await.len();
    assert!((4..=6).contains(&back), "{back}");
    assert_eq!(all_of(&bus, q.dead_letters()).await.len(), 30 - back);
}

#[tokio::test(start_paused = true)]
async fn letters_say_how_often_they_were_redriven() {
    let (bus, q) = memory(QueueSpec::new(), vec![numbered(0)]).await;
    for round in 0..3 {
        let mut told = None;
        let report = bus.redrive_each(&q, RedriveOptions::new(), |l| {
            told = l.dead_letter_info().map(|d| d.redriven);
            RedriveVerdict::Redrive
        });
        assert_eq!(report.await.unwrap().moved, 1);
        assert_eq!(told, Some(round));
        let mut sub = bus.subscribe(q.clone()).open().await.unwrap();
        sub.next().await.unwrap().unwrap().dead_letter("again", "").await.unwrap();
    }
}
