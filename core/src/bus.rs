//! The handle applications hold.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use time::OffsetDateTime;
use tokio::{
    sync::{OnceCell, Semaphore},
    task::JoinSet,
    time::Instant,
};

use crate::{
    Address, Capabilities, Clock, DeclareMode, DeclareReport, Driver, Entity, Error, Kind, Outgoing, Publisher,
    Publishing, PublishingAll, Result, Retry, Source, Stats, SubscribeBuilder, SystemClock, Topology,
    connection::{
        patience::{MOST_AT_CLOSE, again, closed_by, is_passing, until},
        preflight,
    },
    consume::{admission::Told, consumer::Consumer, handled_counts::Handled},
    publish::{batcher::Drive, traced},
    runtime::duration,
    telemetry::MessagingSystem,
};

/// How a bus behaves. All have defaults.
#[derive(Clone)]
#[non_exhaustive]
pub struct BusOptions {
    /// The queues and topics it knows.
    pub topology: Topology,
    /// What `Bus::declare` does.
    pub declare: DeclareMode,
    /// CloudEvents `source` of envelopes that name none. Default `polybus`.
    pub source: String,
    /// How long a publish may take, retries and waits included. Default 30 s.
    pub publish_timeout: Duration,
    /// How long the broker may refuse a consumer before its subscription ends. Default 30 s; `Duration::MAX`: it is asked for ever.
    ///
    /// `NotFound`, `PermissionDenied` and `Unauthenticated` are refusals. They may pass: a queue is made anew, a right is restored, a
    /// credential is renewed. The consumer is asked again with a backoff, with a warning at once; a success in between starts the time anew,
    /// and other errors in between do not count. What is refused when a subscription is opened is an error at once.
    pub give_up_after: Duration,
    /// How many bytes of encoded messages may wait to be sent, all publishers together. Default 64 MiB.
    pub max_pending_bytes: usize,
    /// Wall time. Default: the driver's, else the machine's.
    pub clock: Option<Arc<dyn Clock>>,
}

impl Default for BusOptions {
    fn default() -> Self {
        Self {
            topology: Topology::default(),
            declare: DeclareMode::Create,
            source: "polybus".into(),
            publish_timeout: Duration::from_secs(30),
            give_up_after: Duration::from_secs(30),
            max_pending_bytes: 64 << 20,
            clock: None,
        }
    }
}

impl BusOptions {
    /// All defaults with this topology.
    pub fn topology(topology: Topology) -> Self {
        Self { topology, ..Self::default() }
    }
}

/// A connection to a broker. Cheap to clone; all clones share it.
#[derive(Clone)]
pub struct Bus {
    pub(crate) inner: Arc<BusInner>,
}

/// What publishers and subscriptions need of their bus.
pub(crate) struct BusInner {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Of queues and subscriptions, for spans.
    pub(crate) queue_system: Arc<MessagingSystem>,
    /// Of topics, for spans.
    topic_system: Arc<MessagingSystem>,
    pub(crate) topology: Topology,
    pub(crate) source: Box<str>,
    declare: DeclareMode,
    publish_timeout: Duration,
    pub(crate) give_up_after: Duration,
    max_pending: usize,
    room: Arc<Semaphore>,
    /// Without the publishers' way back to the bus, which would keep it alive for ever.
    drives: Mutex<HashMap<Address, Arc<OnceCell<Arc<Drive>>>>>,
    consumers: Mutex<Vec<Weak<Consumer>>>,
    /// What the log has been told of odd messages.
    pub(crate) told: Told,
    /// How often messages that came again were handled here.
    pub(crate) handled: Handled,
    closed: AtomicBool,
    /// Whether closing has come to its end. Who closes waits for who does already.
    ended: tokio::sync::Mutex<bool>,
}

impl Bus {
    /// A bus over a driver. `ConfigInvalid` or `Unsupported` if the topology cannot be kept on it. No I/O.
    pub fn new(driver: Arc<dyn Driver>, options: BusOptions) -> Result<Self> {
        preflight::topology(&*driver, &options.topology)?;
        let max_pending = options.max_pending_bytes.clamp(1, u32::MAX as usize);
        let clock = options.clock.or_else(|| driver.clock()).unwrap_or_else(|| Arc::new(SystemClock));
        let (queue_system, topic_system) = driver.messaging_systems();
        Ok(Self {
            inner: Arc::new(BusInner {
                driver,
                clock,
                queue_system: Arc::new(queue_system),
                topic_system: Arc::new(topic_system),
                topology: options.topology,
                source: options.source.into(),
                declare: options.declare,
                publish_timeout: options.publish_timeout,
                give_up_after: options.give_up_after,
                max_pending,
                room: Arc::new(Semaphore::new(max_pending)),
                drives: Mutex::default(),
                consumers: Mutex::default(),
                told: Told::default(),
                handled: Handled::default(),
                closed: AtomicBool::new(false),
                ended: tokio::sync::Mutex::new(false),
            }),
        })
    }

    /// Carries out the declare mode on the topology. Differences are in the report and in the log; they are no error.
    ///
    /// While the broker cannot be reached, or is not ready yet, it is asked again with a backoff, up to the publish timeout: after
    /// errors that are [`Kind::Unavailable`] or [`Kind::Throttled`] and [`Retry::Safe`], and after no others. A declaration that is under way is not cut short, since
    /// a large topology may take longer. If the future is dropped, what was created stays; declaring again goes on from there.
    pub async fn declare(&self) -> Result<DeclareReport> {
        self.declare_as(self.inner.declare).await
    }

    /// Compares the topology with the broker without creating anything. Waits for the broker as [`declare`](Self::declare) does.
    pub async fn verify(&self) -> Result<DeclareReport> {
        self.declare_as(DeclareMode::Verify).await
    }

    async fn declare_as(&self, mode: DeclareMode) -> Result<DeclareReport> {
        let inner = &self.inner;
        inner.open("declare")?;
        if mode == DeclareMode::Off {
            return Ok(DeclareReport::default());
        }
        if !inner.driver.capabilities().declare {
            return Err(inner.located(Error::unsupported("this broker's entities cannot be declared"), "declare"));
        }
        let plan = inner.topology.plan();
        let not_ready = |e: &Error| matches!(e.kind(), Kind::Unavailable | Kind::Throttled) && e.retry() == Retry::Safe;
        let deadline = inner.deadline(Instant::now());
        let report = inner.again(deadline, "declare", not_ready, || inner.driver.declare(&plan, mode)).await;
        let report = report.map_err(|e| inner.located(e, "declare"))?;
        for difference in &report.differences {
            tracing::warn!(backend = inner.driver.backend(), %difference, "topology differs");
        }
        Ok(report)
    }

    /// A resolved, cloneable sender to one address. Opened once per bus and address; while the broker cannot be reached
    /// it waits up to the publish timeout.
    pub async fn publisher(&self, to: &Address) -> Result<Publisher> {
        self.publisher_until(to, self.inner.deadline(Instant::now())).await
    }

    async fn publisher_until(&self, to: &Address, deadline: Instant) -> Result<Publisher> {
        let inner = &self.inner;
        inner.open("publish")?;
        let publisher = |drive: &Arc<Drive>| Publisher { drive: drive.clone(), bus: inner.clone() };
        let cell = inner.drives().entry(to.clone()).or_default().clone();
        if let Some(drive) = cell.get() {
            return Ok(publisher(drive));
        }
        let entity = inner.topology.address(to);
        preflight::address(&*inner.driver, &entity).map_err(|e| inner.located(e, "publish"))?;
        let opened = cell.get_or_try_init(|| async {
            let sender = inner.patiently(deadline, || inner.driver.open_sender(&entity)).await?;
            let room = inner.room.clone();
            let system = match to {
                Address::Queue(_) => &inner.queue_system,
                Address::Topic(_) => &inner.topic_system,
            };
            Ok(Arc::new(Drive::new(entity.clone(), sender, inner.driver.backend(), system.clone(), room)))
        });
        match opened.await {
            Ok(drive) => Ok(publisher(drive)),
            Err(e) => Err(inner.located(e, "publish").with("address", to)),
        }
    }

    /// Publishes one message: Ok once the broker has taken durable responsibility. Sugar over [`Bus::publisher`].
    pub fn publish(&self, to: &Address, message: impl Into<Outgoing>) -> Publishing {
        let (this, to, message) = (self.clone(), to.clone(), traced(message.into()));
        Publishing(Box::pin(async move {
            let started = Instant::now();
            this.publisher_until(&to, this.inner.deadline(started)).await?.one(message, started).await
        }))
    }

    /// Publishes many: one result per message, in order.
    pub fn publish_all<M: Into<Outgoing>>(&self, to: &Address, messages: impl IntoIterator<Item = M>) -> PublishingAll {
        let messages: Vec<Outgoing> = messages.into_iter().map(|m| traced(m.into())).collect();
        let (this, to) = (self.clone(), to.clone());
        PublishingAll(Box::pin(async move {
            let started = Instant::now();
            match this.publisher_until(&to, this.inner.deadline(started)).await {
                Ok(publisher) => publisher.all(messages, started).await,
                Err(e) => e.for_each_of(messages.len()),
            }
        }))
    }

    /// Consumes a source.
    pub fn subscribe(&self, source: Source) -> SubscribeBuilder {
        SubscribeBuilder::new(self.inner.clone(), source)
    }

    /// How many messages a source holds.
    pub async fn stats(&self, source: &Source) -> Result<Stats> {
        let inner = &self.inner;
        inner.open("stats")?;
        if !inner.driver.capabilities().stats {
            return Err(inner.located(Error::unsupported("this broker tells no counts"), "stats"));
        }
        let stats = inner.driver.stats(&inner.topology.source(source.live())).await;
        stats.map_err(|e| inner.located(e, "stats").with("source", source))
    }

    /// Deletes the ready messages of a source and tells how many, as far as the broker does. An error that comes in the middle has that as
    /// its context `deleted_at_least`.
    pub async fn purge(&self, source: &Source) -> Result<u64> {
        let inner = &self.inner;
        inner.open("purge")?;
        if !inner.driver.capabilities().purge {
            return Err(inner.located(Error::unsupported("this broker cannot purge"), "purge"));
        }
        let purged = inner.driver.purge(&inner.topology.source(source)).await;
        purged.map_err(|e| inner.located(e, "purge").with("source", source))
    }

    /// Deletes everything the topology names, messages included. Missing entities are fine.
    pub async fn delete(&self) -> Result<()> {
        let inner = &self.inner;
        inner.open("delete")?;
        if !inner.driver.capabilities().declare {
            return Err(inner.located(Error::unsupported("this broker's entities cannot be deleted"), "delete"));
        }
        inner.driver.delete(&inner.topology.plan()).await.map_err(|e| inner.located(e, "delete"))
    }

    /// What the broker can do.
    pub fn capabilities(&self) -> &Capabilities {
        self.inner.driver.capabilities()
    }

    /// Product and version of the server, as far as it tells.
    pub async fn version(&self) -> Option<String> {
        self.inner.driver.version().await
    }

    /// The broker family.
    pub fn backend(&self) -> &'static str {
        self.inner.driver.backend()
    }

    /// The topology it was given.
    pub fn topology(&self) -> &Topology {
        &self.inner.topology
    }

    /// Wall time as this bus counts it.
    pub fn now(&self) -> OffsetDateTime {
        self.inner.clock.now()
    }

    /// The driver's native client, if it is a `T`: the one escape hatch.
    pub fn native<T: 'static>(&self) -> Option<&T> {
        self.inner.driver.native()?.downcast_ref()
    }

    /// Ends consumers, settlements, publishers and the connection, in this order; what is under way is finished first.
    ///
    /// Deliveries that are still unsettled go back to the broker. Settlements that a broker does not answer are waited for about 5 s, then
    /// their callers get `Unavailable`; publishes that are under way take up to the publish timeout; senders and the connection get about
    /// 5 s each to say goodbye, and are left to themselves after that. Idempotent; of several at once all wait for the end. If the future
    /// is dropped, another call goes on.
    pub async fn close(&self) -> Result<()> {
        let inner = &self.inner;
        inner.closed.store(true, Ordering::Release);
        let mut ended = inner.ended.lock().await;
        if *ended {
            return Ok(());
        }
        let consumers: Vec<_> = inner.consumers().iter().filter_map(Weak::upgrade).collect();
        // All stop before the first is finished, so that none takes what another gives back.
        let until = Instant::now() + MOST_AT_CLOSE;
        let mut result = each(&consumers, move |consumer| async move { consumer.stop_by(until).await }).await;
        result = result.and(each(&consumers, move |consumer| async move { consumer.finish_by(until).await }).await);
        inner.room.close();
        let drives: Vec<_> = inner.drives().values().cloned().collect();
        let drives: Vec<_> = drives.iter().filter_map(|cell| cell.get().cloned()).collect();
        result = result.and(each(&drives, |drive| async move { drive.close().await }).await);
        let closing = closed_by(Instant::now() + MOST_AT_CLOSE, inner.driver.close(), || {
            tracing::warn!(
                backend = inner.driver.backend(),
                "the connection to the broker did not end in time, and is left to itself"
            );
        });
        result = result.and(closing.await);
        *ended = true;
        inner.consumers().clear();
        inner.drives().clear();
        result.map_err(|e| inner.located(e, "close"))
    }
}

/// Does this with each consumer or publisher, side by side: a broker that does not answer is waited for once.
async fn each<T, F>(all: &[Arc<T>], step: impl Fn(Arc<T>) -> F) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let mut steps: JoinSet<Result<()>> = all.iter().map(|one| step(one.clone())).collect();
    let mut result = Ok(());
    while let Some(ended) = steps.join_next().await {
        let ended =
            ended.unwrap_or_else(|e| Err(Error::new(Kind::Unexpected, "a step of closing failed").caused_by(e)));
        result = result.and(ended);
    }
    result
}

impl BusInner {
    fn drives(&self) -> MutexGuard<'_, HashMap<Address, Arc<OnceCell<Arc<Drive>>>>> {
        self.drives.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn consumers(&self) -> MutexGuard<'_, Vec<Weak<Consumer>>> {
        self.consumers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `Closed` once the bus was closed.
    pub(crate) fn open(&self, operation: &'static str) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(self.located(Error::new(Kind::Closed, "the bus was closed"), operation));
        }
        Ok(())
    }

    /// Remembers a consumer, so that closing the bus closes it. `Closed` if that has happened already.
    pub(crate) fn register(&self, consumer: &Arc<Consumer>) -> Result<()> {
        let mut consumers = self.consumers();
        self.open("subscribe")?;
        consumers.retain(|c| c.strong_count() > 0);
        consumers.push(Arc::downgrade(consumer));
        Ok(())
    }

    /// When a publish that started then must be over.
    pub(crate) fn deadline(&self, started: Instant) -> Instant {
        duration::after(started, self.publish_timeout)
    }

    /// A message's share of the bytes that may wait. One that is larger than all of them takes all.
    pub(crate) fn share(&self, size: usize) -> u32 {
        size.clamp(1, self.max_pending) as u32
    }

    /// Everything that is checked before a message is encoded.
    pub(crate) fn admit(&self, to: &Entity<Address>, message: Outgoing) -> Result<Outgoing> {
        preflight::outgoing(self, to, message, &self.source)
    }

    /// Calls again with backoff while the broker cannot be reached, until the deadline.
    pub(crate) async fn patiently<T, F>(&self, deadline: Instant, mut call: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let passing = |e: &Error| is_passing(e) && e.retry() != Retry::Never;
        self.again(deadline, "connect", passing, || until(deadline, call())).await
    }

    /// Calls again with backoff after errors that pass, as long as there is time before the deadline and the bus is open.
    async fn again<T, F>(
        &self,
        deadline: Instant,
        operation: &'static str,
        passes: impl Fn(&Error) -> bool,
        call: impl FnMut() -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        again(deadline, operation, passes, || self.open(operation), call).await
    }

    /// Adds where it happened.
    pub(crate) fn located(&self, e: Error, operation: &'static str) -> Error {
        let e = if e.operation_name().is_empty() { e.operation(operation) } else { e };
        if e.backend_name().is_empty() { e.backend(self.driver.backend()) } else { e }
    }
}
