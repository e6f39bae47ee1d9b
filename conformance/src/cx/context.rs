//! What a scenario is handed: its target, buses, waiting and faults.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use polybus_core::{
    Address, Bus, BusOptions, Delivery, Envelope, ErrorKind, QueueSpec, Source, Subscription, TopicSpec, Topology,
    driver::Capabilities, topology::DeclareMode,
};
use tokio::time::{Instant, timeout};

use crate::{Child, Clocks, Drift, During, Failure, Fixture, Outcome, Overrides, Proxy, Raw, Setup, Target};

/// A scenario's context. Cheap to clone.
#[derive(Clone)]
pub struct Cx(Arc<Inner>);

struct Inner {
    target: Arc<Target>,
    capabilities: Capabilities,
    prefix: String,
    buses: Mutex<Vec<Bus>>,
    broker_touched: AtomicBool,
    lock: OnceLock<Option<Duration>>,
    short_lock: OnceLock<Duration>,
}

/// The longest of the locks that are meant to run out: a scenario waits for several of them.
const LONGEST_LOCK: Duration = Duration::from_secs(30);

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Unique among all runs on a broker that may be shared: time and process, then a count.
fn unique_prefix() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
    let run = (now as u64 & 0xff_ffff_ffff) ^ (u64::from(std::process::id()) << 20);
    format!("cf{:x}-{}", run & 0xff_ffff_ffff, COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A broker may count its locks in these.
fn whole_seconds(lock: Duration) -> Duration {
    Duration::from_secs(lock.as_secs_f64().round() as u64)
}

impl Cx {
    pub(crate) fn new(target: Arc<Target>, capabilities: Capabilities) -> Self {
        let (buses, broker_touched) = (Mutex::default(), AtomicBool::new(false));
        let (prefix, lock, short_lock) = (unique_prefix(), OnceLock::new(), OnceLock::new());
        Self(Arc::new(Inner { target, capabilities, prefix, buses, broker_touched, lock, short_lock }))
    }

    /// The target.
    pub fn target(&self) -> &Target {
        &self.0.target
    }

    /// What the target's driver says it can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.0.capabilities
    }

    /// The prefix of every name in this run of this scenario.
    pub fn prefix(&self) -> &str {
        &self.0.prefix
    }

    pub(crate) fn overrides(&self) -> Overrides {
        Overrides { space: self.prefix().into(), ..Overrides::default() }
    }

    pub(crate) fn register(&self, bus: Bus) {
        lock(&self.0.buses).push(bus);
    }

    // Buses

    /// A bus about to be opened, with anything special about it.
    pub fn setup(&self, topology: Topology) -> Setup {
        Setup::new(self.clone(), topology)
    }

    /// A bus with this topology declared, under this scenario's prefix. Deleted and closed at the end.
    pub async fn bus(&self, topology: Topology) -> Outcome<Bus> {
        self.setup(topology).open().await
    }

    /// Another connection to the same entities, as another process would have it. Declares nothing.
    pub async fn second_bus(&self, bus: &Bus) -> Outcome<Bus> {
        self.setup(bus.topology().clone()).undeclared().open().await
    }

    /// A bus with one queue.
    pub async fn queue(&self, spec: QueueSpec) -> Outcome<Fixture> {
        Ok(Fixture::queue(self.bus(Topology::new().queue("q", spec)).await?))
    }

    /// A bus with one topic.
    pub async fn topic(&self, spec: TopicSpec) -> Outcome<Fixture> {
        Ok(Fixture::topic(self.bus(Topology::new().topic("t", spec.clone())).await?, &spec))
    }

    /// How long the locks of this scenario's entities last, where a lock outlives its connection: the target's own short time, or as much
    /// longer as this machine is slow when the scenario begins, since a renewal is as late then. Whole seconds.
    pub(crate) fn lock_outlives(&self) -> Option<Duration> {
        *self.0.lock.get_or_init(|| Some(whole_seconds(self.slowed(self.target().lock_outlives?))))
    }

    /// How long a lock to ask for where one is meant to be renewed or to run out: 2 s where the clock is ours, or the
    /// least the broker takes. Elsewhere more, and as much longer as this machine is slow when the scenario begins,
    /// since a renewal is as late then.
    pub(crate) fn short_lock(&self) -> Duration {
        *self.0.short_lock.get_or_init(|| {
            let (least, most) = self.capabilities().lock_range.unwrap_or((Duration::ZERO, Duration::MAX));
            let coarse = self.target().coarse;
            if self.time_is_free() {
                return least.max(Duration::from_secs(2)) + coarse * 2;
            }
            let in_this_process = least.is_zero() && coarse.is_zero();
            let base = least.max(Duration::from_secs(if in_this_process { 4 } else { 8 }));
            whole_seconds(self.slowed(base).min(LONGEST_LOCK)).max(base).min(most)
        })
    }

    // Waiting

    /// How long is waited for what must come: long, since a busy machine brings it late. What is judged is that it comes.
    /// Where the clock is ours no machine makes anything late, and short, so that what comes only when a lock ends is noticed.
    pub fn patience(&self) -> Duration {
        let patience = self.0.target.patience;
        if self.time_is_free() { patience.min(Duration::from_secs(10)) } else { patience }
    }

    /// The moment at which what must come by now has not come.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.patience()
    }

    /// Whether waiting is free: scenarios may then use long delays.
    pub fn time_is_free(&self) -> bool {
        self.0.target.clock == Clocks::Movable
    }

    /// The next delivery, within the patience.
    pub async fn recv(&self, sub: &mut Subscription) -> Outcome<Delivery> {
        self.recv_within(sub, self.patience()).await
    }

    /// The next delivery, within this time.
    pub async fn recv_within(&self, sub: &mut Subscription, within: Duration) -> Outcome<Delivery> {
        match timeout(within, sub.next()).await {
            Ok(Some(Ok(delivery))) => Ok(delivery),
            Ok(Some(Err(e))) => Err(Failure::new(format!("{} ended: {e:?}", sub.source()))),
            Ok(None) => Err(Failure::new(format!("{} ended without an error", sub.source()))),
            Err(_) => Err(Failure::new(format!("nothing from {} within {within:?}", sub.source()))),
        }
    }

    /// The next `n` deliveries, unsettled. The prefetch must be at least `n`.
    pub async fn collect(&self, sub: &mut Subscription, n: usize) -> Outcome<Vec<Delivery>> {
        let mut all = Vec::with_capacity(n);
        while all.len() < n {
            all.push(self.recv(sub).await.during(format!("delivery {} of {n}", all.len() + 1))?);
        }
        Ok(all)
    }

    /// Takes and acks the next `n`; returns their envelopes in order.
    pub async fn drain(&self, sub: &mut Subscription, n: usize) -> Outcome<Vec<Envelope>> {
        let mut all = Vec::with_capacity(n);
        while all.len() < n {
            let delivery = self.recv(sub).await.during(format!("delivery {} of {n}", all.len() + 1))?;
            all.push(delivery.envelope().clone());
            delivery.ack().await.during("ack")?;
        }
        Ok(all)
    }

    /// How long silence lasts before it counts as silence: the target's quiet window, longer on a machine that is busy.
    pub fn quiet(&self) -> Duration {
        self.slowed(self.0.target.quiet)
    }

    /// What takes `usual` on an idle machine may take this long on this one, as it is just now. `usual` where the clock
    /// is ours.
    fn slowed(&self, usual: Duration) -> Duration {
        if self.time_is_free() { usual } else { crate::pace::slowed(usual) }
    }

    /// How late something may be that takes `usual` at most on an idle machine: as much as this one is slowed down just now,
    /// and what the target's own timers add. `usual` where the clock is ours.
    pub fn lateness(&self, usual: Duration) -> Duration {
        if self.time_is_free() { usual } else { self.slowed(usual) + self.0.target.coarse }
    }

    /// Nothing comes within the quiet window.
    pub async fn expect_none(&self, sub: &mut Subscription) -> Outcome {
        self.expect_none_for(sub, self.quiet()).await
    }

    /// Nothing comes within this window.
    pub async fn expect_none_for(&self, sub: &mut Subscription, window: Duration) -> Outcome {
        match timeout(window, sub.next()).await {
            Err(_) => Ok(()),
            Ok(None) => Err(Failure::new(format!("{} ended", sub.source()))),
            Ok(Some(Err(e))) => Err(Failure::new(format!("{} ended: {e:?}", sub.source()))),
            Ok(Some(Ok(d))) => {
                let what = format!("unexpected from {}: {:?}, attempt {}", sub.source(), d.envelope(), d.attempt());
                Err(Failure::new(what))
            }
        }
    }

    /// The stream ends with an error of this kind, once, and then `None`. Deliveries before it are dropped.
    pub async fn expect_end(&self, sub: &mut Subscription, kind: ErrorKind) -> Outcome {
        let deadline = self.deadline();
        loop {
            match tokio::time::timeout_at(deadline, sub.next()).await {
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(e))) if e.kind() == kind => break,
                Ok(Some(Err(e))) => return Err(Failure::new(format!("expected the end with {kind}, got {e:?}"))),
                Ok(None) => return Err(Failure::new(format!("expected {kind}, the stream just ended"))),
                Err(_) => return Err(Failure::new(format!("expected the end with {kind}, it goes on"))),
            }
        }
        match timeout(self.patience(), sub.next()).await {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(Failure::new("the stream went on after its end")),
            Err(_) => Err(Failure::new("the stream hangs after its end")),
        }
    }

    /// Publishes a sentinel and waits for it: what comes before it is returned, settled with ack. Use it to prove absence
    /// where the source is first in, first out and nothing is unsettled. `event_type` must pass the source's filter.
    pub async fn sentinel(
        &self,
        bus: &Bus,
        to: &Address,
        event_type: &str,
        sub: &mut Subscription,
    ) -> Outcome<Vec<Envelope>> {
        let sentinel = Envelope::new(event_type, "sentinel").key("sentinel");
        bus.publish(to, &sentinel).await.during("publish of the sentinel")?;
        let mut before = Vec::new();
        loop {
            let delivery = self.recv(sub).await.during("waiting for the sentinel")?;
            let envelope = delivery.envelope().clone();
            delivery.ack().await.during("ack before the sentinel")?;
            if envelope.id == sentinel.id {
                return Ok(before);
            }
            before.push(envelope);
        }
    }

    /// Asks again until the answer is `Ok(Some)`, to the patience's end. An `Err` of the check is shown if time runs out.
    pub async fn eventually<T>(&self, what: &str, mut check: impl AsyncFnMut() -> Outcome<Option<T>>) -> Outcome<T> {
        let deadline = self.deadline();
        loop {
            let last = match check().await {
                Ok(Some(value)) => return Ok(value),
                Ok(None) => None,
                Err(e) => Some(e),
            };
            if Instant::now() >= deadline {
                let why = last.map(|e| format!(": {e}")).unwrap_or_default();
                return Err(Failure::new(format!("not within {:?}: {what}{why}", self.patience())));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    // Faults

    /// A TCP proxy before the broker; open buses with `.through(&proxy)`.
    pub async fn proxy(&self) -> Outcome<Proxy> {
        match &self.target().upstream {
            Some(upstream) => Ok(Proxy::start(upstream.clone()).await?),
            None => Err(Failure::new("this target has no network connection: add Need::proxy(t)")),
        }
    }

    /// Kills the broker. It is started again at the end, if not before.
    pub async fn kill_broker(&self) -> Outcome {
        self.0.broker_touched.store(true, Ordering::SeqCst);
        self.broker()?.kill().await.during("kill the broker")
    }

    /// Starts the broker and waits until it takes connections.
    pub async fn start_broker(&self) -> Outcome {
        self.broker()?.start().await.during("start the broker")
    }

    /// Kills the broker and starts it again.
    pub async fn restart(&self) -> Outcome {
        self.kill_broker().await?;
        self.start_broker().await
    }

    /// Makes the broker hold publishers back; ended by [`Cx::unblock`], or at the end.
    pub async fn block(&self) -> Outcome {
        self.0.broker_touched.store(true, Ordering::SeqCst);
        self.broker()?.block().await.during("block publishers")
    }

    /// Ends [`Cx::block`].
    pub async fn unblock(&self) -> Outcome {
        self.broker()?.unblock().await.during("unblock publishers")
    }

    fn broker(&self) -> Outcome<&dyn crate::Broker> {
        let broker = self.target().broker.as_deref();
        broker.ok_or_else(|| Failure::new("the suite may not handle this broker: add a Need"))
    }

    /// Puts a message there that polybus did not write.
    pub async fn inject(&self, bus: &Bus, to: &Address, raw: Raw) -> Outcome {
        match &self.target().raw {
            Some(injector) => injector.inject(bus, to, raw).await.during("inject"),
            None => Err(Failure::new("this target has no raw hook: add Need::raw(t)")),
        }
    }

    /// Makes the entities of this topology (without the prefix, which is added) as others would, with a drift. Deleted at the end.
    pub async fn declared_by_others(&self, topology: Topology, drift: Drift) -> Outcome {
        let bus = self.setup(topology).undeclared().open().await?;
        match &self.target().entities {
            Some(entities) if entities.knows(drift) => entities.declare(&bus, drift).await.during("declare by others"),
            _ => {
                let other = crate::drift::declared_by_polybus(drift, bus.topology());
                let other = other.ok_or_else(|| Failure::new("no way to make such entities: add Need::drift"))?;
                self.setup(other).open().await.map(|_| ())
            }
        }
    }

    /// Whether the target's broker can carry such a message.
    pub fn carries(&self, raw: &Raw) -> bool {
        self.target().raw.as_ref().is_some_and(|injector| injector.carries(raw))
    }

    /// A consumer in another process, which holds its first `hold` deliveries unsettled until it is killed.
    pub async fn child(&self, bus: &Bus, source: &Source, prefetch: usize, hold: usize) -> Outcome<Child> {
        timeout(self.patience(), Child::start(self, bus.topology(), source, prefetch, hold))
            .await
            .map_err(|_| Failure::new("the other process holds nothing in time"))?
    }

    /// Deletes and closes everything. Errors fail the scenario, if it has not failed already.
    pub(crate) async fn clean_up(&self) -> Outcome {
        if self.0.broker_touched.load(Ordering::SeqCst) {
            let broker = self.broker()?;
            broker.start().await.during("start the broker at the end")?;
            broker.unblock().await.during("unblock the broker at the end")?;
        }
        let buses: Vec<Bus> = std::mem::take(&mut *lock(&self.0.buses));
        let mut deleted: Vec<&Topology> = Vec::new();
        let mut result = Ok(());
        for bus in &buses {
            if bus.capabilities().declare && !deleted.contains(&bus.topology()) {
                deleted.push(bus.topology());
                result = result.and(self.delete(bus).await);
            }
        }
        for bus in &buses {
            let closed = timeout(Duration::from_secs(120), bus.close()).await;
            result = result.and(match closed {
                Ok(closed) => closed.during("close at the end"),
                Err(_) => Err(Failure::new("close at the end hangs")),
            });
        }
        result
    }

    /// By a fresh connection: the scenario may have closed this bus, or cut it off.
    async fn delete(&self, bus: &Bus) -> Outcome {
        let driver = (self.target().connect)(self.overrides()).await.during("connect to clean up")?;
        let mut options = BusOptions::topology(bus.topology().clone());
        options.declare = DeclareMode::Off;
        let fresh = Bus::new(driver, options).during("clean up")?;
        let deleted = timeout(Duration::from_secs(120), fresh.delete()).await;
        fresh.close().await.during("close after the clean-up")?;
        match deleted {
            Ok(deleted) => deleted.during("delete at the end"),
            Err(_) => Err(Failure::new("delete at the end hangs")),
        }
    }
}
