//! The driver of one bus: opens senders and receivers, and declares, counts, purges and deletes entities.
//!
//! It has up to three connections, each made when it is first needed: one publishes, one consumes, one manages. They
//! are apart since the broker stops reading from a connection that it blocks for publishing. An ordered source has a
//! further connection of its own.
//!
//! # Limits that come from RabbitMQ
//!
//! - `lock` and `max_hold` end before the broker's `consumer_timeout`, 30 minutes by default, after which it takes
//!   deliveries back: <https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout>.
//! - `max_deliveries` is at most [`BACKSTOP`] on quorum queues. That is the `x-delivery-limit` with which polybus
//!   declares them.
//! - A delay is at most [`MAX_DELAY`]. AMQP's longest time to live is 49.7 days.
//! - A body has at most `max_message_size` bytes together with its properties and headers. These fit one frame, whose
//!   size is agreed with the broker when a connection opens.
//! - A name has at most 255 bytes, as every short string of AMQP.
//! - RabbitMQ 4 drops a message that failed 20 times on a quorum queue that names no limit:
//!   <https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling>. On such queues a release becomes a copy
//!   in time.
//! - A classic queue does not count deliveries, so a crash of the consumer loses the count of attempts.
//!
//! [`Driver::check`] refuses a topology beyond the first three before anything is declared.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use polybus_core::{
    Address, Error, ErrorKind, Result, Source,
    driver::{
        AttemptDurability, Capabilities, Driver, KeyHolder, KeyOrder, MessagingSystem, Receiver, Sender, Settler,
        kit::duration::format,
    },
    topology::{DeclareMode, DeclarePlan, DeclareReport, Entity, SourceStats},
};

use crate::{
    BACKEND, Native,
    config::{EntityOptions, QueueType, RabbitmqConfig},
    consume::{
        consumer_channel::SourceConsumer,
        receiver::{DeliveryReader, RabbitmqReceiver},
        settler::RabbitmqSettler,
    },
    error,
    publish::sender::RabbitmqSender,
    topology::{
        self, BACKSTOP,
        channel_operations::ProbeChannel,
        delay_queues::{self, KnownDelayQueues, MAX_DELAY},
        drift, http_api, names,
    },
    transport::connection::{ConnectionRole, DriverConnections},
};

/// The connections to one RabbitMQ, and what is shared by its senders and receivers.
pub(crate) struct RabbitmqDriver {
    connections: Arc<DriverConnections>,
    delay_queues: Arc<KnownDelayQueues>,
    capabilities: Capabilities,
    native: Native,
    closed: AtomicBool,
}

impl RabbitmqDriver {
    /// Connects, so that an error of the address, the login or the virtual host shows at once.
    pub(crate) async fn connect(config: RabbitmqConfig) -> Result<Self> {
        let capabilities = capabilities(&config);
        let connections = Arc::new(DriverConnections::new(config)?);
        connections.get(ConnectionRole::Manage).await?;
        let delay_queues = Arc::new(KnownDelayQueues::new(connections.clone()));
        Ok(Self {
            native: Native::new(connections.clone()),
            connections,
            delay_queues,
            capabilities,
            closed: AtomicBool::new(false),
        })
    }

    fn options<T: ToString>(&self, entity: &Entity<T>) -> Result<EntityOptions> {
        self.connections.config.options(entity)
    }

    /// The queues that hold the messages of a source, live or dead letters.
    fn queues(&self, source: &Entity<Source>) -> Result<Vec<String>> {
        let base = names::base(source);
        if source.name.is_dead_letters() {
            return Ok(vec![names::dead_letters(&base)]);
        }
        Ok(names::queues(&base, source.settings.ordered, self.options(source)?.partitions))
    }

    /// How many messages are ready in these queues. A missing queue is `NotFound`.
    async fn count_ready(&self, probe: &mut ProbeChannel<'_>, queues: &[String], of: &Source) -> Result<u64> {
        let mut ready = 0;
        for queue in queues {
            match probe.find_queue(queue).await? {
                Some(found) => ready += u64::from(found.message_count()),
                None => {
                    let text = format!("no queue {queue:?} at the broker");
                    return Err(error::new(ErrorKind::NotFound, "find queue", text).with_context("source", of));
                }
            }
        }
        Ok(ready)
    }
}

/// Warns if the queues of a source have settings that cost messages or their order, as those of others may.
///
/// It runs beside the consumer, which does not wait for it: looking takes a round trip for each queue and the right to
/// declare.
async fn warn_about_drift(consumer: Arc<SourceConsumer>, source: Entity<Source>, options: EntityOptions) {
    match drift::inspect(&consumer.connections, &source, &options).await {
        Ok(found) => {
            if let Some(limit) = found.limit {
                consumer.limit.store(limit, Ordering::Relaxed);
            }
            if !found.dangers.is_empty() {
                let what = found.dangers.join("; ");
                tracing::warn!(source = %source.name, "the broker's queue is not what the topology says: {what}");
            }
        }
        Err(e) => tracing::debug!(source = %source.name, error = %e, "the queue could not be looked at"),
    }
}

fn capabilities(config: &RabbitmqConfig) -> Capabilities {
    let mut can = Capabilities::default();
    can.topics = true;
    can.ordered = Some(KeyOrder::new(KeyHolder::Client, AttemptDurability::Volatile, false));
    can.dead_letters = true;
    can.redrive = true;
    can.max_retry_delay = Some(MAX_DELAY);
    can.max_queue_delay = Some(MAX_DELAY);
    can.max_topic_delay = Some(MAX_DELAY);
    can.max_queue_payload = Some(config.max_message_size);
    can.max_topic_payload = Some(config.max_message_size);
    // A classic queue tells only that it delivered a message before, not how often.
    can.attempts_across_crash = config.queue_type == QueueType::Quorum;
    // Up to RabbitMQ 4.2 a quorum queue also counts messages that are given back unhandled. A classic queue tells
    // only that there was an earlier delivery.
    can.receive_counts = true;
    can.stats = true;
    can.purge = true;
    can.declare = true;
    can
}

#[async_trait]
impl Driver for RabbitmqDriver {
    fn backend(&self) -> &'static str {
        BACKEND
    }

    fn messaging_systems(&self) -> (MessagingSystem, MessagingSystem) {
        let config = &self.connections.config;
        let system = MessagingSystem::new("rabbitmq", "rabbitmq").server(config.host.as_str(), config.port);
        (system.clone(), system)
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn version(&self) -> Option<String> {
        http_api::version(&self.connections).await.ok()
    }

    fn physical_names(&self, plan: &DeclarePlan) -> Vec<(String, String)> {
        let topics = plan.topics.iter().map(topology::topic);
        // Wrong options are reported by `check`.
        let sources = plan.sources.iter().filter_map(|s| Some(topology::source(s, &self.options(s).ok()?)));
        let mut taken = Vec::new();
        for entities in topics.chain(sources) {
            let owner = |name: String| (name, entities.label.clone());
            taken.extend(entities.exchanges.iter().map(|(name, ..)| owner(format!("exchange {name}"))));
            taken.extend(entities.queues.iter().map(|(_, name, _)| owner(format!("queue {name}"))));
        }
        taken
    }

    fn check(&self, plan: &DeclarePlan) -> Result<()> {
        for topic in &plan.topics {
            self.options(topic)?;
        }
        for source in &plan.sources {
            let options = self.options(source)?;
            let settings = &source.settings;
            let unsupported =
                |what: String| Err(Error::unsupported(what).with_backend(BACKEND).with_context("source", &source.name));
            for (what, value) in [("lock", settings.lock), ("max_hold", settings.max_hold)] {
                if value >= options.consumer_timeout {
                    let (value, limit) = (format(value), format(options.consumer_timeout));
                    return unsupported(format!(
                        "{what} = {value}: RabbitMQ takes deliveries back after its consumer_timeout of {limit}; shorten it, or \
                         raise the broker's and say so in options.rabbitmq.consumer_timeout"
                    ));
                }
            }
            if options.queue_type == QueueType::Quorum && i64::from(settings.max_deliveries) > BACKSTOP {
                return unsupported(format!(
                    "max_deliveries = {}: the broker's own limit on quorum queues is {BACKSTOP}",
                    settings.max_deliveries
                ));
            }
            if let Some(delay) = settings.retry.iter().find(|d| **d > MAX_DELAY) {
                return unsupported(format!(
                    "retry of {}: RabbitMQ delays by {} at most",
                    format(*delay),
                    format(MAX_DELAY)
                ));
            }
        }
        Ok(())
    }

    async fn declare(&self, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport> {
        topology::declare(&self.connections, &self.delay_queues, plan, mode).await
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        self.connections.ensure_open()?;
        Ok(Arc::new(RabbitmqSender::new(self.connections.clone(), self.delay_queues.clone(), to)?))
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        let (options, connections) = (self.options(from)?, self.connections.clone());
        let consumer = Arc::new(SourceConsumer::new(connections, self.queues(from)?, from));
        let settler = RabbitmqSettler::new(consumer.clone(), self.delay_queues.clone(), from, options.queue_type)?;
        let reader = DeliveryReader {
            source: from.name.clone(),
            address: from.name.address().to_string(),
            queue_type: options.queue_type,
            max_deliveries: from.settings.max_deliveries,
        };
        let receiver = RabbitmqReceiver::open(consumer.clone(), reader).await?;
        if !from.name.is_dead_letters() {
            tokio::spawn(warn_about_drift(consumer, from.clone(), options));
        }
        Ok((Box::new(receiver), Arc::new(settler)))
    }

    async fn stats(&self, of: &Entity<Source>) -> Result<SourceStats> {
        let base = names::base(of);
        let (queues, dead) = (self.queues(of)?, names::dead_letters(&base));
        let mut probe = ProbeChannel::new(&self.connections);
        let mut stats = SourceStats::default();
        stats.ready = Some(self.count_ready(&mut probe, &queues, &of.name).await?);
        if !of.name.is_dead_letters() {
            // The broker counts only ready messages. A consumer may hold others, and then the number is not known.
            // Our own consumers are looked at before the broker is asked: one that ends in between has given its
            // messages back.
            let held = self.connections.has_consumer(&dead);
            let found = probe.find_queue(&dead).await?.filter(|q| !held && q.consumer_count() == 0);
            stats.dead_lettered = found.map(|q| u64::from(q.message_count()));
        }
        probe.close().await;
        // A queue counts ready messages. Those that a consumer holds, or has just given back, are missing.
        stats.approximate = true;
        if self.connections.config.management.is_some() {
            let counts = http_api::counts(&self.connections, &base).await?;
            let sum = |of: &dyn Fn(&str) -> bool, count: fn(&http_api::QueueCounts) -> u64| -> Option<u64> {
                Some(counts.iter().filter(|(name, _)| of(name)).map(|(_, c)| count(c)).sum())
            };
            stats.in_flight = sum(&|name| queues.iter().any(|q| q == name), |c| c.unacknowledged);
            if !of.name.is_dead_letters() {
                let prefix = format!("{base}.delay.");
                stats.delayed = sum(&|name| name.starts_with(&prefix), |c| c.messages);
            }
        }
        Ok(stats)
    }

    async fn purge(&self, from: &Entity<Source>) -> Result<u64> {
        let mut probe = ProbeChannel::new(&self.connections);
        let mut purged = 0;
        for queue in self.queues(from)? {
            purged += probe.purge(&queue).await.map_err(|e| e.with_context("source", &from.name))?;
        }
        probe.close().await;
        Ok(purged)
    }

    async fn delete(&self, plan: &DeclarePlan) -> Result<()> {
        let mut probe = ProbeChannel::new(&self.connections);
        let sources = plan.sources.iter().map(|s| -> Result<_> {
            let entities = topology::source(s, &self.options(s)?);
            Result::Ok((names::base(s), s.settings.retry.clone(), entities, false))
        });
        let topics = plan
            .topics
            .iter()
            .map(|t| Result::Ok((names::exchange(t), t.settings.retry.clone(), topology::topic(t), true)));
        for entity in sources.chain(topics) {
            let (base, named, entities, is_topic) = entity?;
            let delay_queues = delay_queues::all_names(&base, &named);
            let mut queues: Vec<String> = entities.queues.into_iter().map(|(_, name, _)| name).collect();
            let mut exchanges: Vec<String> = entities.exchanges.into_iter().map(|(name, ..)| name).collect();
            queues.extend_from_slice(&delay_queues);
            if is_topic {
                exchanges.extend_from_slice(&delay_queues);
            }
            probe.delete(&queues, &exchanges).await?;
            self.delay_queues.forget_all(&delay_queues);
        }
        probe.close().await;
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        if !self.closed.swap(true, Ordering::AcqRel) {
            self.connections.close().await;
        }
        Ok(())
    }

    fn native(&self) -> Option<&(dyn Any + Send + Sync)> {
        Some(&self.native)
    }
}
