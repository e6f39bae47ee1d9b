//! The driver: opens what core asks for and looks after entities.

use std::{
    any::Any,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use polybus_core::{
    Address, Capabilities, DeclareMode, DeclareReport, Driver, Durability, Entity, Error, Hold, Kind, Ordered, Plan,
    Receiver, Result, Sender, Settler, Source, Stats, duration,
};

use crate::{
    BACKEND, Native, atom,
    config::{self, Config},
    connection::Wires,
    error,
    feed::Feed,
    http::Http,
    names::{self, Place},
    purge,
    receiver::ServicebusReceiver,
    sender::{MAX_DELAY, ServicebusSender},
    sessions::SessionReceiver,
    settler::ServicebusSettler,
    topology::{self, Locks},
};

/// <https://learn.microsoft.com/azure/service-bus-messaging/message-transfers-locks-settlement#peeklock>
pub(crate) const LOCKS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

pub(crate) struct ServicebusDriver {
    wires: Arc<Wires>,
    http: Arc<Http>,
    locks: Locks,
    capabilities: Capabilities,
    native: Native,
    /// Of consumers, to know what of a source is in their hands.
    feeds: Mutex<Vec<Weak<Feed>>>,
    closed: AtomicBool,
}

impl ServicebusDriver {
    /// Connects once, so that a wrong URL or key is told now.
    pub(crate) async fn connect(config: Config) -> Result<Self> {
        let capabilities = capabilities(&config);
        let wires = Arc::new(Wires::new(config)?);
        let wire = wires.get().await?;
        wire.authorize(wires.config.entity.as_deref().unwrap_or_default()).await?;
        Ok(Self {
            native: Native::new(wires.clone()),
            http: Arc::new(Http::new(wires.clone())),
            locks: Locks::default(),
            wires,
            capabilities,
            feeds: Mutex::default(),
            closed: AtomicBool::new(false),
        })
    }
}

impl ServicebusDriver {
    fn remember(&self, feed: &Arc<Feed>) {
        let mut feeds = self.feeds.lock().unwrap_or_else(PoisonError::into_inner);
        feeds.retain(|feed| feed.strong_count() > 0);
        feeds.push(Arc::downgrade(feed));
    }

    /// What this driver's own consumers hold of a path.
    fn held(&self, path: &str) -> u64 {
        let feeds = self.feeds.lock().unwrap_or_else(PoisonError::into_inner);
        feeds.iter().filter_map(Weak::upgrade).filter(|feed| feed.path == path).map(|feed| feed.held()).sum()
    }
}

fn capabilities(config: &Config) -> Capabilities {
    let mut can = Capabilities::default();
    can.topics = true;
    can.ordered = Some(Ordered::new(Hold::Broker, Durability::Durable, true));
    can.confirmed_settlement = true;
    can.locks = true;
    can.lock_range = Some(LOCKS);
    can.dead_letters = true;
    can.redrive = true;
    can.max_retry_delay = Some(MAX_DELAY);
    can.max_queue_delay = Some(MAX_DELAY);
    can.max_topic_delay = Some(MAX_DELAY);
    can.max_queue_payload = Some(config.max_message_size);
    can.max_topic_payload = Some(config.max_message_size);
    can.attempts_across_crash = true;
    can.stats = true;
    can.purge = true;
    can.declare = true;
    can
}

/// The broker ignores case, and gives queues and topics one namespace.
pub(crate) fn physical_names(plan: &Plan) -> Vec<(String, String)> {
    let topics = plan.topics.iter().map(|t| (names::address(t).to_lowercase(), t.name.to_string()));
    let sources = plan.sources.iter().map(|s| (Place::of(s).path().to_lowercase(), s.name.to_string()));
    topics.chain(sources).map(|(path, label)| (format!("entity {path}"), label)).collect()
}

pub(crate) fn check(plan: &Plan) -> Result<()> {
    for topic in &plan.topics {
        config::options(topic)?;
    }
    for source in &plan.sources {
        config::options(source)?;
        if let Some(delay) = source.settings.retry.iter().find(|d| **d > MAX_DELAY) {
            let text = format!("retry of {}: Service Bus delays by ten years at most", duration::format(*delay));
            return Err(Error::unsupported(text).backend(BACKEND).with("source", &source.name));
        }
    }
    Ok(())
}

#[async_trait]
impl Driver for ServicebusDriver {
    fn backend(&self) -> &'static str {
        BACKEND
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn physical_names(&self, plan: &Plan) -> Vec<(String, String)> {
        physical_names(plan)
    }

    fn check(&self, plan: &Plan) -> Result<()> {
        check(plan)
    }

    async fn declare(&self, plan: &Plan, mode: DeclareMode) -> Result<DeclareReport> {
        topology::declare(&self.http, &self.locks, plan, mode, false).await
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        self.wires.ensure_open()?;
        Ok(Arc::new(ServicebusSender::new(self.wires.clone(), to)?))
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        self.wires.ensure_open()?;
        let live = Place::of(from).path();
        let lock = self.locks.of(&self.http, &live, from.settings.lock).await;
        let dead = from.name.is_dead_letters();
        let path = if dead { names::dead_letters(&live) } else { live };
        let feed = Arc::new(Feed::new(self.wires.clone(), from, path, lock));
        self.remember(&feed);
        let settler = ServicebusSettler::new(feed.clone(), self.http.clone(), from)?;
        let receiver: Box<dyn Receiver> = match from.settings.ordered && !dead {
            true => Box::new(SessionReceiver::open(feed, config::options(from)?).await?),
            false => Box::new(ServicebusReceiver::open(feed).await?),
        };
        Ok((receiver, Arc::new(settler)))
    }

    async fn stats(&self, of: &Entity<Source>) -> Result<Stats> {
        let path = Place::of(of).path();
        let Some(found) = atom::get(&self.http, &path).await? else {
            return Err(error::new(Kind::NotFound, "stats", format!("no {path}")).with("source", &of.name));
        };
        let mut stats = Stats::default();
        let dead = found.number("DeadLetterMessageCount");
        // The broker counts what is in hand among the rest, and tells of no hands but ours.
        let ready = |count: Option<u64>, path: &str| count.map(|count| count.saturating_sub(self.held(path)));
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
        let purged = purge::purge(&self.wires, &path, from.settings.ordered && !dead).await;
        purged.map_err(|e| e.with("source", &from.name))
    }

    async fn delete(&self, plan: &Plan) -> Result<()> {
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
