//! The driver: opens what core asks for and looks after entities.

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
    driver::MessagingSystem,
    driver::{AttemptDurability, Capabilities, Driver, KeyHolder, KeyOrder, Receiver, Sender, Settler},
    topology::{DeclareMode, DeclarePlan, DeclareReport, Entity, SourceStats},
};

use crate::{
    BACKEND, Native,
    config::{Config, QueueType, Resolved},
    consume::{
        consumer_channel::Feed,
        receiver::{RabbitmqReceiver, Reader},
        settler::RabbitmqSettler,
    },
    error,
    publish::sender::RabbitmqSender,
    topology::{
        self, BACKSTOP,
        channel_operations::Scratch,
        delay_queues::{MAX_DELAY, Rungs},
        drift, http_api, names,
    },
    transport::connection::{Links, Role},
};

pub(crate) struct RabbitmqDriver {
    links: Arc<Links>,
    rungs: Arc<Rungs>,
    capabilities: Capabilities,
    native: Native,
    closed: AtomicBool,
}

impl RabbitmqDriver {
    /// Connects once, so that a wrong URL, login or virtual host is told now.
    pub(crate) async fn connect(config: Config) -> Result<Self> {
        let capabilities = capabilities(&config);
        let links = Arc::new(Links::new(config)?);
        links.get(Role::Manage).await?;
        let rungs = Arc::new(Rungs::new(links.clone()));
        Ok(Self { native: Native::new(links.clone()), links, rungs, capabilities, closed: AtomicBool::new(false) })
    }

    fn options<T: ToString>(&self, entity: &Entity<T>) -> Result<Resolved> {
        self.links.config.options(entity)
    }

    /// The queues that hold a source's messages.
    fn queues(&self, source: &Entity<Source>) -> Result<Vec<String>> {
        let base = names::base(source);
        if source.name.is_dead_letters() {
            return Ok(vec![names::dead_letters(&base)]);
        }
        Ok(names::queues(&base, source.settings.ordered, self.options(source)?.partitions))
    }

    async fn ready(&self, scratch: &mut Scratch<'_>, queues: &[String], of: &Source) -> Result<u64> {
        let mut ready = 0;
        for queue in queues {
            match scratch.find_queue(queue).await? {
                Some(found) => ready += u64::from(found.message_count()),
                None => return Err(missing(queue, of)),
            }
        }
        Ok(ready)
    }
}

fn missing(queue: &str, of: &Source) -> Error {
    error::new(ErrorKind::NotFound, "find queue", format!("no queue {queue:?} at the broker"))
        .with_context("source", of)
}

/// Warns where a source that somebody else declared costs messages or their order. Its consumer does not wait for that: to ask takes a
/// round trip for each queue, and the right to declare.
async fn look(feed: Arc<Feed>, source: Entity<Source>, options: Resolved) {
    match drift::inspect(&feed.links, &source, &options).await {
        Ok(found) => {
            if let Some(limit) = found.limit {
                feed.limit.store(limit, Ordering::Relaxed);
            }
            if !found.dangers.is_empty() {
                let what = found.dangers.join("; ");
                tracing::warn!(source = %source.name, "the broker's queue is not what the topology says: {what}");
            }
        }
        Err(e) => tracing::debug!(source = %source.name, error = %e, "the queue could not be looked at"),
    }
}

fn capabilities(config: &Config) -> Capabilities {
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
    // Up to 4.2 a quorum queue counts what is given back unhandled; a classic one tells no more than that there was a delivery before.
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
        let config = &self.links.config;
        let system = MessagingSystem::new("rabbitmq", "rabbitmq").server(config.host.as_str(), config.port);
        (system.clone(), system)
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn version(&self) -> Option<String> {
        http_api::version(&self.links).await.ok()
    }

    fn physical_names(&self, plan: &DeclarePlan) -> Vec<(String, String)> {
        let mut taken = Vec::new();
        let mut take = |pieces: topology::Pieces, label: String| {
            for (exchange, ..) in pieces.exchanges {
                taken.push((format!("exchange {exchange}"), label.clone()));
            }
            for (_, queue, _) in pieces.queues {
                taken.push((format!("queue {queue}"), label.clone()));
            }
        };
        for topic in &plan.topics {
            take(topology::topic(topic), topic.name.to_string());
        }
        for source in &plan.sources {
            // Wrong options are told by `check`.
            if let Ok(options) = self.options(source) {
                take(topology::source(source, &options), source.name.to_string());
            }
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
        topology::declare(&self.links, &self.rungs, plan, mode).await
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        self.links.ensure_open()?;
        Ok(Arc::new(RabbitmqSender::new(self.links.clone(), self.rungs.clone(), to)?))
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        let ordered = from.settings.ordered && !from.name.is_dead_letters();
        let (links, queues) = (self.links.clone(), self.queues(from)?);
        let feed = Arc::new(Feed::new(links, queues, from.prefetch, ordered, from.name.to_string()));
        let settler = RabbitmqSettler::new(feed.clone(), self.rungs.clone(), from, self.options(from)?.queue_type)?;
        let reader = Reader {
            source: from.name.clone(),
            address: from.name.address().to_string(),
            queue_type: self.options(from)?.queue_type,
            max_deliveries: from.settings.max_deliveries,
        };
        let receiver = RabbitmqReceiver::open(feed.clone(), reader).await?;
        if !from.name.is_dead_letters() {
            tokio::spawn(look(feed, from.clone(), self.options(from)?));
        }
        Ok((Box::new(receiver), Arc::new(settler)))
    }

    async fn stats(&self, of: &Entity<Source>) -> Result<SourceStats> {
        let base = names::base(of);
        let (queues, dead) = (self.queues(of)?, names::dead_letters(&base));
        let mut scratch = Scratch::new(&self.links);
        let mut stats = SourceStats::default();
        stats.ready = Some(self.ready(&mut scratch, &queues, &of.name).await?);
        if !of.name.is_dead_letters() {
            // The broker tells what is ready. With a consumer some may be in its hands, and the sum is not known. It is asked
            // after our own consumers: one that ends meanwhile has given back.
            let held = self.links.is_holding(&dead);
            let found = scratch.find_queue(&dead).await?.filter(|q| !held && q.consumer_count() == 0);
            stats.dead_lettered = found.map(|q| u64::from(q.message_count()));
        }
        scratch.finish().await;
        // A queue counts what is ready: what a consumer holds, or has just given back, is missing.
        stats.approximate = true;
        if self.links.config.management.is_some() {
            let counts = http_api::counts(&self.links, &base).await?;
            let sum = |of: &dyn Fn(&str) -> bool, count: fn(&http_api::Counts) -> u64| -> Option<u64> {
                Some(counts.iter().filter(|(name, _)| of(name)).map(|(_, c)| count(c)).sum())
            };
            stats.in_flight = sum(&|name| queues.iter().any(|q| q == name), |c| c.unacknowledged);
            if !of.name.is_dead_letters() {
                let rungs = format!("{base}.delay.");
                stats.delayed = sum(&|name| name.starts_with(&rungs), |c| c.messages);
            }
        }
        Ok(stats)
    }

    async fn purge(&self, from: &Entity<Source>) -> Result<u64> {
        let mut scratch = Scratch::new(&self.links);
        let mut purged = 0;
        for queue in self.queues(from)? {
            purged += scratch.purge(&queue).await.map_err(|e| e.with_context("source", &from.name))?;
        }
        scratch.finish().await;
        Ok(purged)
    }

    async fn delete(&self, plan: &DeclarePlan) -> Result<()> {
        let mut scratch = Scratch::new(&self.links);
        let sources = plan.sources.iter().map(|s| -> Result<_> {
            let pieces = topology::source(s, &self.options(s)?);
            Result::Ok((names::base(s), s.settings.retry.clone(), pieces, false))
        });
        let topics = plan
            .topics
            .iter()
            .map(|t| Result::Ok((names::exchange(t), t.settings.retry.clone(), topology::topic(t), true)));
        for entity in sources.chain(topics) {
            let (base, named, pieces, is_topic) = entity?;
            let rungs = Rungs::all(&base, &named);
            let mut queues: Vec<String> = pieces.queues.into_iter().map(|(_, name, _)| name).collect();
            let mut exchanges: Vec<String> = pieces.exchanges.into_iter().map(|(name, ..)| name).collect();
            queues.extend_from_slice(&rungs);
            if is_topic {
                exchanges.extend_from_slice(&rungs);
            }
            scratch.delete(&queues, &exchanges).await?;
            self.rungs.forget_all(&rungs);
        }
        scratch.finish().await;
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        if !self.closed.swap(true, Ordering::AcqRel) {
            self.links.close().await;
        }
        Ok(())
    }

    fn native(&self) -> Option<&(dyn Any + Send + Sync)> {
        Some(&self.native)
    }
}

fn format(duration: std::time::Duration) -> String {
    polybus_core::driver::kit::duration::format(duration)
}
