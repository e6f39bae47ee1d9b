//! The driver over HTTP: what the REST API can do, and dead letters in a queue beside each source.
//! <https://learn.microsoft.com/rest/api/servicebus/service-bus-runtime-rest>

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::join_all;
use polybus_core::{
    Address, ErrorKind, Result, Source,
    driver::MessagingSystem,
    driver::{Capabilities, Driver, Receiver, Sender, Settler},
    topology::{DeclareMode, DeclarePlan, DeclareReport, Entity, SourceStats},
};

use crate::{
    BACKEND,
    amqp::connection::Wires,
    config::Config,
    consume::consumers::Feeds,
    contract, error,
    rest::{client::Rest, consumer::RestFeed, receiver::RestReceiver, sender::RestSender, settler::RestSettler},
    topology::{
        self, Locks,
        atom::{self, Found},
        drift,
        names::Place,
    },
    transport::http::Http,
};

/// A queue that is surely not there: asking it for a message shows whether the service takes our word.
const NONE: &str = "polybus-no-such-queue";
/// Requests at once of a purge.
const WIDTH: usize = 16;

pub(crate) struct RestDriver {
    /// Keeps the configuration and TLS; no AMQP connection is ever made.
    wires: Arc<Wires>,
    http: Arc<Http>,
    rest: Rest,
    locks: Locks,
    capabilities: Capabilities,
    feeds: Feeds<RestFeed>,
    closed: AtomicBool,
}

impl RestDriver {
    /// Asks once, so that a wrong URL or key is told now.
    pub(crate) async fn connect(config: Config) -> Result<Self> {
        let capabilities = contract::capabilities(&config);
        let wires = Arc::new(Wires::new(config)?);
        let http = Arc::new(Http::new(wires.clone()));
        let rest = Rest::new(http.clone());
        match rest.peek_lock(&Place::Queue(NONE.into()), Duration::ZERO).await {
            // A key that may only send is a good key.
            Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
                return Err(e.with_operation("connect"));
            }
            _ => {}
        }
        Ok(Self {
            wires,
            http,
            rest,
            locks: Locks::default(),
            capabilities,
            feeds: Feeds::default(),
            closed: AtomicBool::new(false),
        })
    }

    async fn purge_place(&self, place: &Place, most: u64) -> Result<u64> {
        let mut all = 0;
        while all < most {
            let taken = join_all((0..WIDTH).map(|_| self.rest.take(place))).await;
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

/// Where the messages of a source are. Dead letters are put into a queue beside it, and by the broker itself into its own.
fn places(source: &Entity<Source>) -> Vec<Place> {
    let live = Place::of(source);
    if source.name.is_dead_letters() { vec![live.companion(), live.dead_letters()] } else { vec![live] }
}

#[async_trait]
impl Driver for RestDriver {
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
        let companions = plan.sources.iter().map(|source| {
            let path = Place::of(source).companion().path().to_lowercase();
            (format!("entity {path}"), source.name.dead_letters().to_string())
        });
        contract::physical_names(plan).into_iter().chain(companions).collect()
    }

    fn check(&self, plan: &DeclarePlan) -> Result<()> {
        contract::check(plan)
    }

    async fn declare(&self, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport> {
        topology::declare(&self.http, &self.locks, plan, mode, true).await
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        self.wires.ensure_open()?;
        Ok(Arc::new(RestSender::new(self.rest.clone(), to, self.wires.config.max_message_size)?))
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        self.wires.ensure_open()?;
        let (live, config) = (Place::of(from), &self.wires.config);
        let (mut length, found) = self.locks.of(&self.http, &live.path(), from.settings.lock).await;
        if from.name.is_dead_letters() {
            let (other, _) = self.locks.of(&self.http, &live.companion().path(), length.get()).await;
            length = if other.get() < length.get() { other } else { length };
        } else if let Some(found) = found {
            drift::warn(from, &found, false)?;
        }
        let feed = Arc::new(RestFeed::new(self.rest.clone(), from, places(from), length, config.poll));
        let settler = RestSettler::new(feed.clone(), self.http.clone(), from, config.max_message_size);
        self.feeds.add(&feed);
        Ok((Box::new(RestReceiver::new(feed)), Arc::new(settler)))
    }

    async fn stats(&self, of: &Entity<Source>) -> Result<SourceStats> {
        let missing = |path: &str| {
            Err(error::new(ErrorKind::NotFound, "stats", format!("no {path}")).with_context("source", &of.name))
        };
        let live = Place::of(of);
        let (path, dead) = (live.path(), live.companion().path());
        let Some(companion) = atom::get(&self.http, &dead).await? else { return missing(&dead) };
        let Some(found) = atom::get(&self.http, &path).await? else { return missing(&path) };
        let active = |found: &Found| found.number("ActiveMessageCount");
        let letters = [active(&companion), found.number("DeadLetterMessageCount")].into_iter().flatten();
        let letters = letters.reduce(|a, b| a + b);
        // The broker counts what is in hand among the rest, and tells of no hands but ours.
        let ready = |count: Option<u64>| count.map(|count| count.saturating_sub(self.feeds.held(&of.name)));
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
        let most = contract::most_to_purge(self.stats(from).await.ok().and_then(|stats| stats.ready));
        let mut all = 0;
        for place in places(from) {
            all += self.purge_place(&place, most).await.map_err(|e| e.with_context("source", &from.name))?;
        }
        Ok(all)
    }

    async fn delete(&self, plan: &DeclarePlan) -> Result<()> {
        topology::delete(&self.http, plan).await?;
        for source in &plan.sources {
            atom::delete(&self.http, &Place::of(source).companion().path()).await?;
        }
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        if !self.closed.swap(true, Ordering::AcqRel) {
            self.wires.close().await;
        }
        Ok(())
    }

    fn native(&self) -> Option<&(dyn Any + Send + Sync)> {
        None
    }
}
