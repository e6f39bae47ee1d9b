//! The context of a scenario: its target, its buses, waiting, and faults.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;

use polybus_core::{
    Address, Bus, BusOptions, Delivery, Envelope, ErrorKind, QueueSpec, Source, Subscription, TopicSpec, Topology,
    driver::Capabilities, topology::DeclareMode,
};
use tokio::time::{Instant, timeout};

use crate::{
    BusSetup, ChildConsumer, ClockKind, ConnectOverrides, Drift, During, Failure, Fixture, Outcome, Proxy, RawMessage,
    Target,
};

/// The context of a running scenario: it opens buses, waits, and breaks connections and brokers. Clones share it.
///
/// What is opened through it is deleted and closed when the scenario ends, also after a failure.
///
/// ```
/// use polybus_conformance::{Cx, Outcome, Scenario, ensure_eq, message, number, scenario};
/// use polybus_core::QueueSpec;
///
/// async fn acked(cx: Cx) -> Outcome {
///     let q = cx.queue(QueueSpec::new()).await?;
///     q.publish(message(7)).await?;
///     let mut sub = q.subscribe(10).await?;
///     let delivery = cx.recv(&mut sub).await?;
///     ensure_eq!(number(delivery.envelope())?, 7);
///     delivery.ack().await?;
///     cx.expect_none(&mut sub).await
/// }
///
/// fn all() -> Vec<Scenario> {
///     vec![scenario("mine/acked", "An acked message does not come again.", acked)]
/// }
/// ```
#[derive(Clone)]
pub struct Cx(Arc<CxState>);

struct CxState {
    target: Arc<Target>,
    capabilities: Capabilities,
    prefix: String,
    buses: Mutex<Vec<Bus>>,
    broker_touched: AtomicBool,
    /// Fixed at the first call, so that all entities of the scenario get the same lock.
    lock: OnceLock<Option<Duration>>,
    short_lock: OnceLock<Duration>,
}

/// The upper bound of [`Cx::short_lock`]: a scenario waits for the end of several such locks.
const LONGEST_LOCK: Duration = Duration::from_secs(30);

/// A prefix that no other run on the same broker has: from the time and the process id, then a count.
fn unique_prefix() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
    let run = (now as u64 & 0xff_ffff_ffff) ^ (u64::from(std::process::id()) << 20);
    format!("cf{:x}-{}", run & 0xff_ffff_ffff, COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Rounds to whole seconds: some brokers take no fractions.
fn whole_seconds(lock: Duration) -> Duration {
    Duration::from_secs(lock.as_secs_f64().round() as u64)
}

impl Cx {
    pub(crate) fn new(target: Arc<Target>, capabilities: Capabilities) -> Self {
        let (buses, broker_touched) = (Mutex::default(), AtomicBool::new(false));
        let (prefix, lock, short_lock) = (unique_prefix(), OnceLock::new(), OnceLock::new());
        Self(Arc::new(CxState { target, capabilities, prefix, buses, broker_touched, lock, short_lock }))
    }

    /// The target that the scenario runs on.
    pub fn target(&self) -> &Target {
        &self.0.target
    }

    /// What the target's driver says it can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.0.capabilities
    }

    /// The prefix of every entity name in this run of this scenario.
    pub fn prefix(&self) -> &str {
        &self.0.prefix
    }

    pub(crate) fn overrides(&self) -> ConnectOverrides {
        ConnectOverrides { space: self.prefix().into(), ..ConnectOverrides::default() }
    }

    pub(crate) fn register(&self, bus: Bus) {
        self.0.buses.lock().push(bus);
    }

    // Buses

    /// A bus that is not open yet, for what differs from the usual: URL parameters, a proxy, a layer, bus options.
    pub fn setup(&self, topology: Topology) -> BusSetup {
        BusSetup::new(self.clone(), topology)
    }

    /// A bus with this topology declared under the scenario's prefix.
    pub async fn bus(&self, topology: Topology) -> Outcome<Bus> {
        self.setup(topology).open().await
    }

    /// Another connection to the same entities, as another process would have. It declares nothing.
    pub async fn second_bus(&self, bus: &Bus) -> Outcome<Bus> {
        self.setup(bus.topology().clone()).undeclared().open().await
    }

    /// A bus with one queue, which is declared.
    pub async fn queue(&self, spec: QueueSpec) -> Outcome<Fixture> {
        Ok(Fixture::queue(self.bus(Topology::new().queue("q", spec)).await?))
    }

    /// A bus with one topic, which is declared.
    pub async fn topic(&self, spec: TopicSpec) -> Outcome<Fixture> {
        Ok(Fixture::topic(self.bus(Topology::new().topic("t", spec.clone())).await?, &spec))
    }

    /// The lock of entities for which the scenario names none, on a target whose locks outlive connections.
    ///
    /// It is the target's [`lock_outlives`](Target::lock_outlives), longer by as much as this machine is slowed down
    /// when the scenario first asks: a renewal is late by as much. Whole seconds.
    pub(crate) fn lock_outlives(&self) -> Option<Duration> {
        *self.0.lock.get_or_init(|| Some(whole_seconds(self.slowed(self.target().lock_outlives?))))
    }

    /// The lock to ask for where one is meant to be renewed or to run out.
    ///
    /// On the paused clock it is 2 s, or the least the broker takes. Elsewhere it is longer, by as much as this machine
    /// is slowed down when the scenario first asks: a renewal is late by as much.
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

    /// For how long to wait for what must come: the target's [`patience`](Target::patience), which is minutes.
    ///
    /// What is judged is that it comes, and a busy machine brings it late. On the paused clock nothing is late, and
    /// patience is at most 10 s: with more, a message that comes only at the end of a lock would go unnoticed.
    pub fn patience(&self) -> Duration {
        let patience = self.0.target.patience;
        if self.time_is_free() { patience.min(Duration::from_secs(10)) } else { patience }
    }

    /// The moment at which patience ends, for waiting that begins now.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.patience()
    }

    /// Whether the clock is paused, so that waiting costs nothing and scenarios may use long delays.
    pub fn time_is_free(&self) -> bool {
        self.0.target.clock == ClockKind::Paused
    }

    /// The next delivery, within [`Cx::patience`].
    ///
    /// # Errors
    ///
    /// Nothing came in time, or the stream ended.
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

    /// Acks the next `n` deliveries, and returns their envelopes in order.
    pub async fn drain(&self, sub: &mut Subscription, n: usize) -> Outcome<Vec<Envelope>> {
        let mut all = Vec::with_capacity(n);
        while all.len() < n {
            let delivery = self.recv(sub).await.during(format!("delivery {} of {n}", all.len() + 1))?;
            all.push(delivery.envelope().clone());
            delivery.ack().await.during("ack")?;
        }
        Ok(all)
    }

    /// For how long nothing must come where absence is checked: the target's `quiet`, and longer on a busy machine.
    pub fn quiet(&self) -> Duration {
        self.slowed(self.0.target.quiet)
    }

    /// The time that something may take now which takes `usual` on an idle machine. On the paused clock it is `usual`.
    fn slowed(&self, usual: Duration) -> Duration {
        if self.time_is_free() { usual } else { crate::suite::pace::slowed(usual) }
    }

    /// The time that something may take now which takes `usual` at most on an idle machine.
    ///
    /// This machine's slowness in the last minute is added, and the coarseness of the target's timers. On the paused
    /// clock it is `usual`.
    pub fn lateness(&self, usual: Duration) -> Duration {
        if self.time_is_free() { usual } else { self.slowed(usual) + self.0.target.coarse }
    }

    /// Fails if anything comes within [`Cx::quiet`].
    pub async fn expect_none(&self, sub: &mut Subscription) -> Outcome {
        self.expect_none_for(sub, self.quiet()).await
    }

    /// Fails if anything comes within this window.
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

    /// Fails unless the stream yields an error of this kind once, and then `None`. Deliveries before it are dropped.
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

    /// Publishes a sentinel message, waits for it, and returns what came before it. All of these are acked.
    ///
    /// It proves absence where the source is first in, first out and nothing is unsettled. `event_type` must pass the
    /// source's filter.
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

    /// Repeats the check until it answers `Ok(Some)`, and returns that value.
    ///
    /// # Errors
    ///
    /// [`Cx::patience`] ended. The failure shows the last `Err` of the check.
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

    /// A TCP proxy before the broker, for [`BusSetup::through`]. Needs [`Need::proxy`](crate::Need::proxy).
    pub async fn proxy(&self) -> Outcome<Proxy> {
        match &self.target().upstream {
            Some(upstream) => Ok(Proxy::start(upstream.clone()).await?),
            None => Err(Failure::new("this target has no network connection: add Need::proxy(t)")),
        }
    }

    /// Kills the broker. It is started again when the scenario ends, if not before.
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

    /// Makes the broker hold publishers back, until [`Cx::unblock`] or the end of the scenario.
    pub async fn block(&self) -> Outcome {
        self.0.broker_touched.store(true, Ordering::SeqCst);
        self.broker()?.block().await.during("block publishers")
    }

    /// Ends [`Cx::block`].
    pub async fn unblock(&self) -> Outcome {
        self.broker()?.unblock().await.during("unblock publishers")
    }

    fn broker(&self) -> Outcome<&dyn crate::BrokerControl> {
        let broker = self.target().broker.as_deref();
        broker.ok_or_else(|| Failure::new("the suite may not handle this broker: add a Need"))
    }

    /// Publishes a message that polybus did not write. Needs [`Need::carries`](crate::Need::carries).
    pub async fn inject(&self, bus: &Bus, to: &Address, raw: RawMessage) -> Outcome {
        match &self.target().raw {
            Some(injector) => injector.inject(bus, to, raw).await.during("inject"),
            None => Err(Failure::new("this target has no raw hook: add Need::raw(t)")),
        }
    }

    /// Makes the entities of this topology as another tool would, with a drift. Their names get the scenario's prefix.
    ///
    /// Needs [`Need::drift`](crate::Need::drift).
    pub async fn declared_by_others(&self, topology: Topology, drift: Drift) -> Outcome {
        let bus = self.setup(topology).undeclared().open().await?;
        match &self.target().entities {
            Some(entities) if entities.knows(drift) => entities.declare(&bus, drift).await.during("declare by others"),
            _ => {
                let other = crate::target::drift::declared_by_polybus(drift, bus.topology());
                let other = other.ok_or_else(|| Failure::new("no way to make such entities: add Need::drift"))?;
                self.setup(other).open().await.map(|_| ())
            }
        }
    }

    /// Whether the target's injector can publish such a message.
    pub fn carries(&self, raw: &RawMessage) -> bool {
        self.target().raw.as_ref().is_some_and(|injector| injector.carries(raw))
    }

    /// A consumer in another process. It holds its first `hold` deliveries unsettled until it is killed.
    pub async fn child(&self, bus: &Bus, source: &Source, prefetch: usize, hold: usize) -> Outcome<ChildConsumer> {
        timeout(self.patience(), ChildConsumer::start(self, bus.topology(), source, prefetch, hold))
            .await
            .map_err(|_| Failure::new("the other process holds nothing in time"))?
    }

    /// Deletes and closes everything that was opened. An error fails a scenario that has not failed already.
    pub(crate) async fn clean_up(&self) -> Outcome {
        if self.0.broker_touched.load(Ordering::SeqCst) {
            let broker = self.broker()?;
            broker.start().await.during("start the broker at the end")?;
            broker.unblock().await.during("unblock the broker at the end")?;
        }
        let buses: Vec<Bus> = std::mem::take(&mut *self.0.buses.lock());
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

    /// Deletes the entities of this bus over a fresh connection: the scenario may have closed this one, or cut it off.
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
