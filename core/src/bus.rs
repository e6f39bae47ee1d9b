//! The handle applications hold.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use time::OffsetDateTime;
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    connection::{
        Connection,
        patience::{MOST_AT_CLOSE, closed_by},
        preflight,
    },
    consume::{SubscriptionBuilder, consumers::Consumers},
    driver::{Capabilities, Driver},
    error::{Error, ErrorKind, Result, RetrySafety},
    message::Outgoing,
    publish::{Publisher, Publishing, PublishingAll, publishers::Publishers, traced},
    runtime::clock::{Clock, SystemClock},
    topology::{Address, DeclareMode, DeclareReport, Source, SourceStats, Topology},
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
    pub event_source: String,
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
            event_source: "polybus".into(),
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
    pub(crate) parts: Arc<BusParts>,
}

/// What the clones of a bus share.
pub(crate) struct BusParts {
    pub(crate) connection: Arc<Connection>,
    pub(crate) consumers: Arc<Consumers>,
    publishers: Publishers,
    declare: DeclareMode,
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
        let connection = Arc::new(Connection {
            driver,
            clock,
            topology: options.topology,
            event_source: options.event_source.into(),
            queue_system: Arc::new(queue_system),
            topic_system: Arc::new(topic_system),
            pending_bytes: Arc::new(Semaphore::new(max_pending)),
            max_pending_bytes: max_pending,
            publish_timeout: options.publish_timeout,
            closed: AtomicBool::new(false),
        });
        Ok(Self {
            parts: Arc::new(BusParts {
                consumers: Arc::new(Consumers::new(connection.clone(), options.give_up_after)),
                publishers: Publishers::new(connection.clone()),
                connection,
                declare: options.declare,
                ended: tokio::sync::Mutex::new(false),
            }),
        })
    }

    /// Carries out the declare mode on the topology. Differences are in the report and in the log; they are no error.
    ///
    /// While the broker cannot be reached, or is not ready yet, it is asked again with a backoff, up to the publish timeout: after
    /// errors that are [`ErrorKind::Unavailable`] or [`ErrorKind::Throttled`] and [`RetrySafety::Safe`], and after no others. A declaration that is under way is not cut short, since
    /// a large topology may take longer. If the future is dropped, what was created stays; declaring again goes on from there.
    pub async fn declare(&self) -> Result<DeclareReport> {
        self.declare_as(self.parts.declare).await
    }

    /// Compares the topology with the broker without creating anything. Waits for the broker as [`declare`](Self::declare) does.
    pub async fn verify(&self) -> Result<DeclareReport> {
        self.declare_as(DeclareMode::Verify).await
    }

    async fn declare_as(&self, mode: DeclareMode) -> Result<DeclareReport> {
        let connection = self.connection();
        connection.ensure_open("declare")?;
        if mode == DeclareMode::Off {
            return Ok(DeclareReport::default());
        }
        if !connection.driver.capabilities().declare {
            return Err(connection.located(Error::unsupported("this broker's entities cannot be declared"), "declare"));
        }
        let plan = connection.topology.plan();
        let not_ready = |e: &Error| {
            matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Throttled) && e.retry() == RetrySafety::Safe
        };
        let deadline = connection.deadline(Instant::now());
        let report = connection.again(deadline, "declare", not_ready, || connection.driver.declare(&plan, mode)).await;
        let report = report.map_err(|e| connection.located(e, "declare"))?;
        for difference in &report.differences {
            tracing::warn!(backend = connection.driver.backend(), %difference, "topology differs");
        }
        Ok(report)
    }

    /// A resolved, cloneable sender to one address. Opened once per bus and address; while the broker cannot be reached
    /// it waits up to the publish timeout.
    pub async fn publisher(&self, to: impl Into<Address>) -> Result<Publisher> {
        self.parts.publishers.open(&to.into(), self.connection().deadline(Instant::now())).await
    }

    /// Publishes one message: Ok once the broker has taken durable responsibility. Sugar over [`Bus::publisher`].
    pub fn publish(&self, to: impl Into<Address>, message: impl Into<Outgoing>) -> Publishing {
        let (this, to, message) = (self.clone(), to.into(), traced(message.into()));
        Publishing(Box::pin(async move {
            let started = Instant::now();
            this.parts.publishers.open(&to, this.connection().deadline(started)).await?.one(message, started).await
        }))
    }

    /// Publishes many: one result per message, in order.
    pub fn publish_all<M: Into<Outgoing>>(
        &self,
        to: impl Into<Address>,
        messages: impl IntoIterator<Item = M>,
    ) -> PublishingAll {
        let messages: Vec<Outgoing> = messages.into_iter().map(|m| traced(m.into())).collect();
        let (this, to) = (self.clone(), to.into());
        PublishingAll(Box::pin(async move {
            let started = Instant::now();
            match this.parts.publishers.open(&to, this.connection().deadline(started)).await {
                Ok(publisher) => publisher.all(messages, started).await,
                Err(e) => e.for_each_of(messages.len()),
            }
        }))
    }

    /// Consumes a source.
    pub fn subscribe(&self, source: impl Into<Source>) -> SubscriptionBuilder {
        SubscriptionBuilder::new(self.parts.consumers.clone(), source.into())
    }

    /// How many messages a source holds.
    pub async fn stats(&self, source: impl Into<Source>) -> Result<SourceStats> {
        let source = &source.into();
        let connection = self.connection();
        connection.ensure_open("stats")?;
        if !connection.driver.capabilities().stats {
            return Err(connection.located(Error::unsupported("this broker tells no counts"), "stats"));
        }
        let stats = connection.driver.stats(&connection.topology.source(source.live())).await;
        stats.map_err(|e| connection.located(e, "stats").with_context("source", source))
    }

    /// Deletes the ready messages of a source and tells how many, as far as the broker does. An error that comes in the middle has that as
    /// its context `deleted_at_least`.
    pub async fn purge(&self, source: impl Into<Source>) -> Result<u64> {
        let source = &source.into();
        let connection = self.connection();
        connection.ensure_open("purge")?;
        if !connection.driver.capabilities().purge {
            return Err(connection.located(Error::unsupported("this broker cannot purge"), "purge"));
        }
        let purged = connection.driver.purge(&connection.topology.source(source)).await;
        purged.map_err(|e| connection.located(e, "purge").with_context("source", source))
    }

    /// Deletes everything the topology names, messages included. Missing entities are fine.
    pub async fn delete(&self) -> Result<()> {
        let connection = self.connection();
        connection.ensure_open("delete")?;
        if !connection.driver.capabilities().declare {
            return Err(connection.located(Error::unsupported("this broker's entities cannot be deleted"), "delete"));
        }
        connection.driver.delete(&connection.topology.plan()).await.map_err(|e| connection.located(e, "delete"))
    }

    /// What the broker can do.
    pub fn capabilities(&self) -> &Capabilities {
        self.connection().driver.capabilities()
    }

    /// Product and version of the server, as far as it tells.
    pub async fn version(&self) -> Option<String> {
        self.connection().driver.version().await
    }

    /// The broker family.
    pub fn backend(&self) -> &'static str {
        self.connection().driver.backend()
    }

    /// The topology it was given.
    pub fn topology(&self) -> &Topology {
        &self.connection().topology
    }

    /// Wall time as this bus counts it.
    pub fn now(&self) -> OffsetDateTime {
        self.connection().clock.now()
    }

    /// The driver's native client, if it is a `T`: the one escape hatch.
    pub fn native<T: 'static>(&self) -> Option<&T> {
        self.connection().driver.native()?.downcast_ref()
    }

    /// Ends consumers, settlements, publishers and the connection, in this order; what is under way is finished first.
    ///
    /// Deliveries that are still unsettled go back to the broker. Settlements that a broker does not answer are waited for about 5 s, then
    /// their callers get `Unavailable`; publishes that are under way take up to the publish timeout; senders and the connection get about
    /// 5 s each to say goodbye, and are left to themselves after that. Idempotent; of several at once all wait for the end. If the future
    /// is dropped, another call goes on.
    pub async fn close(&self) -> Result<()> {
        let (parts, connection) = (&self.parts, self.connection());
        connection.closed.store(true, Ordering::Release);
        let mut ended = parts.ended.lock().await;
        if *ended {
            return Ok(());
        }
        let consumers = parts.consumers.close(Instant::now() + MOST_AT_CLOSE).await;
        connection.pending_bytes.close();
        let publishers = parts.publishers.close().await;
        let driver = closed_by(Instant::now() + MOST_AT_CLOSE, connection.driver.close(), || {
            tracing::warn!(
                backend = connection.driver.backend(),
                "the connection to the broker did not end in time, and is left to itself"
            );
        })
        .await;
        *ended = true;
        parts.consumers.clear();
        parts.publishers.clear();
        consumers.and(publishers).and(driver).map_err(|e| connection.located(e, "close"))
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.parts.connection
    }
}
