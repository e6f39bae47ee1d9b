//! The driver over AMQP: opens senders and receivers, and declares, counts and deletes entities.

use std::{any::Any, sync::Arc};

use async_trait::async_trait;
use polybus_core::{
    Address, ErrorKind, Result, Source,
    driver::MessagingSystem,
    driver::{AttemptDurability, Capabilities, Driver, KeyHolder, KeyOrder, Receiver, Sender, Settler},
    topology::{DeclareMode, DeclarePlan, DeclareReport, Entity, SourceStats},
};

use crate::{
    BACKEND, Native,
    amqp::{
        consumer::AmqpConsumer, purge, receiver::ServicebusReceiver, sender::ServicebusSender,
        sessions::SessionReceiver, settler::ServicebusSettler,
    },
    capabilities,
    config::{self, Config},
    consume::consumers::ConsumerRegistry,
    error,
    topology::{
        self, KnownLocks, atom, drift,
        names::{self, EntityPath},
    },
    transport::{http::HttpPool, namespace::Namespace},
};

pub(crate) struct ServicebusDriver {
    namespace: Arc<Namespace>,
    http: Arc<HttpPool>,
    locks: KnownLocks,
    capabilities: Capabilities,
    native: Native,
    consumers: ConsumerRegistry<AmqpConsumer>,
}

impl ServicebusDriver {
    /// Connects and authorizes once, so that a wrong URL or key is an error here and not at the first message.
    pub(crate) async fn connect(config: Config) -> Result<Self> {
        let mut capabilities = capabilities::capabilities(&config);
        capabilities.ordered = Some(KeyOrder::new(KeyHolder::Broker, AttemptDurability::Durable, true));
        let namespace = Arc::new(Namespace::new(config)?);
        let connection = namespace.connection().await?;
        connection.authorize(namespace.config.entity.as_deref().unwrap_or_default()).await?;
        Ok(Self {
            native: Native::new(namespace.clone()),
            http: Arc::new(HttpPool::new(namespace.clone())),
            locks: KnownLocks::default(),
            namespace,
            capabilities,
            consumers: ConsumerRegistry::default(),
        })
    }
}

#[async_trait]
impl Driver for ServicebusDriver {
    fn backend(&self) -> &'static str {
        BACKEND
    }

    fn messaging_systems(&self) -> (MessagingSystem, MessagingSystem) {
        self.namespace.config.messaging_systems()
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn physical_names(&self, plan: &DeclarePlan) -> Vec<(String, String)> {
        capabilities::physical_names(plan)
    }

    fn check(&self, plan: &DeclarePlan) -> Result<()> {
        capabilities::check(plan)
    }

    async fn declare(&self, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport> {
        topology::declare(&self.http, &self.locks, plan, mode, false).await
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        self.namespace.ensure_open()?;
        Ok(Arc::new(ServicebusSender::new(self.namespace.clone(), to)?))
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        self.namespace.ensure_open()?;
        let live = EntityPath::of(from).path();
        let (lock, found) = self.locks.of(&self.http, &live, from.settings.lock).await;
        let dead = from.name.is_dead_letters();
        if let Some(found) = found.filter(|_| !dead) {
            drift::warn(from, &found, true)?;
        }
        let path = if dead { names::dead_letters(&live) } else { live };
        let consumer = Arc::new(AmqpConsumer::new(self.namespace.clone(), from, path, lock));
        self.consumers.add(&consumer);
        let settler = ServicebusSettler::new(consumer.clone(), self.http.clone(), from)?;
        let receiver: Box<dyn Receiver> = match from.settings.ordered && !dead {
            true => Box::new(SessionReceiver::open(consumer, config::options(from)?).await?),
            false => Box::new(ServicebusReceiver::open(consumer).await?),
        };
        Ok((receiver, Arc::new(settler)))
    }

    async fn stats(&self, of: &Entity<Source>) -> Result<SourceStats> {
        let path = EntityPath::of(of).path();
        let Some(found) = atom::get(&self.http, &path).await? else {
            return Err(error::new(ErrorKind::NotFound, "stats", format!("no {path}")).with_context("source", &of.name));
        };
        let mut stats = SourceStats::default();
        let dead = found.number("DeadLetterMessageCount");
        // The broker counts messages that are locked among the ready ones. It does not tell how many are locked, so
        // only those of this driver are taken off.
        let ready = |count: Option<u64>, path: &str| count.map(|count| count.saturating_sub(self.consumers.held(path)));
        if of.name.is_dead_letters() {
            stats.ready = ready(dead, &names::dead_letters(&path));
        } else {
            stats.ready = ready(found.number("ActiveMessageCount"), &path);
            stats.delayed = found.number("ScheduledMessageCount");
            stats.dead_lettered = dead;
        }
        stats.approximate = true;
        Ok(stats)
    }

    async fn purge(&self, from: &Entity<Source>) -> Result<u64> {
        let path = EntityPath::of(from).path();
        let dead = from.name.is_dead_letters();
        let path = if dead { names::dead_letters(&path) } else { path };
        let most = capabilities::most_to_purge(self.stats(from).await.ok().and_then(|stats| stats.ready));
        let purged = purge::purge(&self.namespace, &path, from.settings.ordered && !dead, most).await;
        purged.map_err(|e| e.with_context("source", &from.name))
    }

    async fn delete(&self, plan: &DeclarePlan) -> Result<()> {
        topology::delete(&self.http, plan).await
    }

    async fn close(&self) -> Result<()> {
        self.namespace.close().await;
        Ok(())
    }

    fn native(&self) -> Option<&(dyn Any + Send + Sync)> {
        Some(&self.native)
    }
}
