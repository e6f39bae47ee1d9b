//! The driver over HTTP. Dead letters are in a queue beside each source, since the REST API cannot dead-letter.
//! <https://learn.microsoft.com/rest/api/servicebus/service-bus-runtime-rest>

use std::{any::Any, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::future::join_all;
use polybus_core::{
    Address, ErrorKind, Result, Source,
    driver::MessagingSystem,
    driver::{Capabilities, Driver, Receiver, Sender, Settler},
    topology::{DeclareMode, DeclarePlan, DeclareReport, Entity, SourceStats},
};

use crate::{
    BACKEND, capabilities,
    config::Config,
    consume::consumers::ConsumerRegistry,
    error,
    rest::{
        client::RestClient, consumer::RestConsumer, receiver::RestReceiver, sender::RestSender, settler::RestSettler,
    },
    topology::{
        self, KnownLocks,
        atom::{self, EntityInfo},
        drift,
        names::EntityPath,
    },
    transport::{http::HttpPool, namespace::Namespace},
};

/// A queue that surely does not exist: a request for a message of it shows whether the service accepts the credential.
const MISSING_QUEUE: &str = "polybus-no-such-queue";
/// How many requests a purge makes at once.
const PURGE_CONCURRENCY: usize = 16;

pub(crate) struct RestDriver {
    /// It never makes an AMQP connection here.
    namespace: Arc<Namespace>,
    http: Arc<HttpPool>,
    client: RestClient,
    locks: KnownLocks,
    capabilities: Capabilities,
    consumers: ConsumerRegistry<RestConsumer>,
}

impl RestDriver {
    /// Makes one request, so that a wrong URL or key is an error here and not at the first message.
    pub(crate) async fn connect(config: Config) -> Result<Self> {
        let capabilities = capabilities::capabilities(&config);
        let namespace = Arc::new(Namespace::new(config)?);
        let http = Arc::new(HttpPool::new(namespace.clone()));
        let client = RestClient::new(http.clone());
        match client.peek_lock(&EntityPath::Queue(MISSING_QUEUE.into()), Duration::ZERO).await {
            // A key that may only send is a good key.
            Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
                return Err(e.with_operation("connect"));
            }
            _ => {}
        }
        Ok(Self {
            namespace,
            http,
            client,
            locks: KnownLocks::default(),
            capabilities,
            consumers: ConsumerRegistry::default(),
        })
    }

    async fn purge_place(&self, place: &EntityPath, most: u64) -> Result<u64> {
        let mut all = 0;
        while all < most {
            let taken = join_all((0..PURGE_CONCURRENCY).map(|_| self.client.receive_and_delete(place))).await;
            let came = taken.iter().filter(|taken| matches!(taken, Ok(true))).count();
            all += came as u64;
            if let Some(Err(e)) = taken.into_iter().find(Result::is_err) {
                return Err(e.with_context("deleted_at_least", all));
            }
            if came == 0 {
                break;
            }
        }
        Ok(all)
    }
}

/// Where the messages of a source are. polybus puts dead letters into a queue beside the source, and the broker itself
/// puts some into its own.
fn places(source: &Entity<Source>) -> Vec<EntityPath> {
    let live = EntityPath::of(source);
    if source.name.is_dead_letters() { vec![live.companion(), live.dead_letters()] } else { vec![live] }
}

#[async_trait]
impl Driver for RestDriver {
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
        let companions = plan.sources.iter().map(|source| {
            let path = EntityPath::of(source).companion().path().to_lowercase();
            (format!("entity {path}"), source.name.dead_letters().to_string())
        });
        capabilities::physical_names(plan).into_iter().chain(companions).collect()
    }

    fn check(&self, plan: &DeclarePlan) -> Result<()> {
        capabilities::check(plan)
    }

    async fn declare(&self, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport> {
        topology::declare(&self.http, &self.locks, plan, mode, true).await
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        self.namespace.ensure_open()?;
        Ok(Arc::new(RestSender::new(self.client.clone(), to, self.namespace.config.max_message_size)?))
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        self.namespace.ensure_open()?;
        let (live, config) = (EntityPath::of(from), &self.namespace.config);
        let (mut length, found) = self.locks.of(&self.http, &live.path(), from.settings.lock).await;
        if from.name.is_dead_letters() {
            let (other, _) = self.locks.of(&self.http, &live.companion().path(), length.get()).await;
            length = if other.get() < length.get() { other } else { length };
        } else if let Some(found) = found {
            drift::warn(from, &found, false)?;
        }
        let consumer = Arc::new(RestConsumer::new(self.client.clone(), from, places(from), length, config.poll));
        let settler = RestSettler::new(consumer.clone(), self.http.clone(), from, config.max_message_size);
        self.consumers.add(&consumer);
        Ok((Box::new(RestReceiver::new(consumer)), Arc::new(settler)))
    }

    async fn stats(&self, of: &Entity<Source>) -> Result<SourceStats> {
        let missing = |path: &str| {
            Err(error::new(ErrorKind::NotFound, "stats", format!("no {path}")).with_context("source", &of.name))
        };
        let live = EntityPath::of(of);
        let (path, dead) = (live.path(), live.companion().path());
        let Some(companion) = atom::get(&self.http, &dead).await? else { return missing(&dead) };
        let Some(found) = atom::get(&self.http, &path).await? else { return missing(&path) };
        let active = |found: &EntityInfo| found.number("ActiveMessageCount");
        let letters = [active(&companion), found.number("DeadLetterMessageCount")].into_iter().flatten();
        let letters = letters.reduce(|a, b| a + b);
        // The broker counts messages that are locked among the ready ones. It does not tell how many are locked, so
        // only those of this driver are taken off.
        let ready = |count: Option<u64>| count.map(|count| count.saturating_sub(self.consumers.held(&of.name)));
        let mut stats = SourceStats::default();
        stats.approximate = true;
        if of.name.is_dead_letters() {
            stats.ready = ready(letters);
        } else {
            stats.ready = ready(active(&found));
            stats.delayed = found.number("ScheduledMessageCount");
            stats.dead_lettered = letters;
        }
        Ok(stats)
    }

    async fn purge(&self, from: &Entity<Source>) -> Result<u64> {
        let most = capabilities::most_to_purge(self.stats(from).await.ok().and_then(|stats| stats.ready));
        let mut all = 0;
        for place in places(from) {
            all += self.purge_place(&place, most).await.map_err(|e| e.with_context("source", &from.name))?;
        }
        Ok(all)
    }

    async fn delete(&self, plan: &DeclarePlan) -> Result<()> {
        topology::delete(&self.http, plan).await?;
        for source in &plan.sources {
            atom::delete(&self.http, &EntityPath::of(source).companion().path()).await?;
        }
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        self.namespace.close().await;
        Ok(())
    }

    fn native(&self) -> Option<&(dyn Any + Send + Sync)> {
        None
    }
}
