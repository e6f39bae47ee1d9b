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
    Address, ErrorKind, Result, Source,
    driver::MessagingSystem,
    driver::{AttemptDurability, Capabilities, Driver, KeyHolder, KeyOrder, Receiver, Sender, Settler},
    topology::{DeclareMode, DeclarePlan, DeclareReport, Entity, SourceStats},
};

use crate::{
    BACKEND, Native,
    amqp::{
        connection::Wires, consumer::Feed, purge, receiver::ServicebusReceiver, sender::ServicebusSender,
        sessions::SessionReceiver, settler::ServicebusSettler,
    },
    config::{self, Config},
    consume::consumers::Feeds,
    contract, error,
    topology::{
        self, Locks, atom, drift,
        names::{self, Place},
    },
    transport::http::Http,
};

pub(crate) struct ServicebusDriver {
    wires: Arc<Wires>,
    http: Arc<Http>,
    locks: Locks,
    capabilities: Capabilities,
    native: Native,
    feeds: Feeds<Feed>,
    closed: AtomicBool,
}

impl ServicebusDriver {
    /// Connects once, so that a wrong URL or key is told now.
    pub(crate) async fn connect(config: Config) -> Result<Self> {
        let mut capabilities = contract::capabilities(&config);
        capabilities.ordered = Some(KeyOrder::new(KeyHolder::Broker, AttemptDurability::Durable, true));
        let wires = Arc::new(Wires::new(config)?);
        let wire = wires.get().await?;
        wire.authorize(wires.config.entity.as_deref().unwrap_or_default()).await?;
        Ok(Self {
            native: Native::new(wires.clone()),
            http: Arc::new(Http::new(wires.clone())),
            locks: Locks::default(),
            wires,
            capabilities,
            feeds: Feeds::default(),
            closed: AtomicBool::new(false),
        })
    }
}

#[async_trait]
impl Driver for ServicebusDriver {
    fn backend(&self) -> &'static str {
        BACKEND
    }

    fn messaging_systems(&self) -> (MessagingSystem, MessagingSystem) {
        self.wires.config.messaging_systems()
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn physical_names(&self, plan: &DeclarePlan) -> Vec<(String, String)> {
        contract::physical_names(plan)
    }

    fn check(&self, plan: &DeclarePlan) -> Result<()> {
        contract::check(plan)
    }

    async fn declare(&self, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport> {
        topology::declare(&self.http, &self.locks, plan, mode, false).await
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        self.wires.ensure_open()?;
        Ok(Arc::new(ServicebusSender::new(self.wires.clone(), to)?))
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        self.wires.ensure_open()?;
        let live = Place::of(from).path();
        let (lock, found) = self.locks.of(&self.http, &live, from.settings.lock).await;
        let dead = from.name.is_dead_letters();
        if let Some(found) = found.filter(|_| !dead) {
            drift::warn(from, &found, true)?;
        }
        let path = if dead { names::dead_letters(&live) } else { live };
        let feed = Arc::new(Feed::new(self.wires.clone(), from, path, lock));
        self.feeds.add(&feed);
        let settler = ServicebusSettler::new(feed.clone(), self.http.clone(), from)?;
        let receiver: Box<dyn Receiver> = match from.settings.ordered && !dead {
            true => Box::new(SessionReceiver::open(feed, config::options(from)?).await?),
            false => Box::new(ServicebusReceiver::open(feed).await?),
        };
        Ok((receiver, Arc::new(settler)))
    }

    async fn stats(&self, of: &Entity<Source>) -> Result<SourceStats> {
        let path = Place::of(of).path();
        let Some(found) = atom::get(&self.http, &path).await? else {
            return Err(error::new(ErrorKind::NotFound, "stats", format!("no {path}")).with_context("source", &of.name));
        };
        let mut stats = SourceStats::default();
        let dead = found.number("DeadLetterMessageCount");
        // The broker counts what is in hand among the rest, and tells of no hands but ours.
        let ready = |count: Option<u64>, path: &str| count.map(|count| count.saturating_sub(self.feeds.held(path)));
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
        let path = Place::of(from).path();
        let dead = from.name.is_dead_letters();
        let path = if dead { names::dead_letters(&path) } else { path };
        let most = contract::most_to_purge(self.stats(from).await.ok().and_then(|stats| stats.ready));
        let purged = purge::purge(&self.wires, &path, from.settings.ordered && !dead, most).await;
        purged.map_err(|e| e.with_context("source", &from.name))
    }

    async fn delete(&self, plan: &DeclarePlan) -> Result<()> {
        topology::delete(&self.http, plan).await
    }

    async fn close(&self) -> Result<()> {
        if !self.closed.swap(true, Ordering::AcqRel) {
            self.wires.close().await;
        }
        Ok(())
    }

    fn native(&self) -> Option<&(dyn Any + Send + Sync)> {
        Some(&self.native)
    }
}
