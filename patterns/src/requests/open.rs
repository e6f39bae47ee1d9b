//! Opening: checks the reply queue, takes a slot, starts the reply worker, and makes sure that nobody else consumes it.

use std::{fmt, sync::Arc, time::Duration};

use polybus_core::{Bus, Error, ErrorKind, Result, Source};
use tokio::sync::{oneshot, watch};

use super::{
    OpenRequests, Requests, RequestsShared,
    probes::Probes,
    reply_worker::{ReplyHandler, run_reply_worker},
    request_id::InstanceId,
    slot::HeldSlot,
    waiting::WaitingCalls,
};
use crate::store::StoreControl;

/// How long a call waits by default.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How many calls may wait by default.
const MAX_WAITING: usize = 10_000;
/// How long opening waits by default for another process to let the reply queue go.
const PATIENCE: Duration = Duration::from_secs(30);
/// For how long a slot is held by default after its process has died.
const SLOT_TERM: Duration = Duration::from_secs(30);

/// Requests that are being described. [`Requests::builder`] and [`Requests::slots`] make it.
#[must_use = "nothing is opened before open() is awaited"]
pub struct RequestsBuilder {
    bus: Bus,
    replies: Vec<Source>,
    slots: Option<Arc<dyn StoreControl>>,
    timeout: Duration,
    max_waiting: usize,
    patience: Duration,
    slot_term: Duration,
}

impl fmt::Debug for RequestsBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestsBuilder").field("replies", &self.replies).finish_non_exhaustive()
    }
}

impl RequestsBuilder {
    pub(super) fn new(bus: &Bus, replies: Vec<Source>, slots: Option<Arc<dyn StoreControl>>) -> Self {
        let bus = bus.clone();
        Self {
            bus,
            replies,
            slots,
            timeout: TIMEOUT,
            max_waiting: MAX_WAITING,
            patience: PATIENCE,
            slot_term: SLOT_TERM,
        }
    }

    /// Sets how long a call waits for its answer, unless it says so itself. Default 30 s.
    ///
    /// ```no_run
    /// # use polybus_core::{Bus, Source};
    /// # use polybus_patterns::Requests;
    /// # use std::time::Duration;
    /// # async fn example(bus: Bus) -> polybus_core::Result<()> {
    /// let replies = Source::queue("shop-replies-0");
    /// let requests = Requests::builder(&bus, replies).timeout(Duration::from_secs(2)).open().await?;
    /// # Ok(()) }
    /// ```
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    /// Sets how many calls may wait at once. One more ends with
    /// [`TooManyWaiting`](super::RequestError::TooManyWaiting). Default 10,000.
    ///
    /// ```no_run
    /// # use polybus_core::{Bus, Source};
    /// # use polybus_patterns::Requests;
    /// # async fn example(bus: Bus) -> polybus_core::Result<()> {
    /// let requests = Requests::builder(&bus, Source::queue("shop-replies-0")).max_waiting(100).open().await?;
    /// # Ok(()) }
    /// ```
    pub fn max_waiting(mut self, calls: usize) -> Self {
        self.max_waiting = calls;
        self
    }

    /// Sets how long [`open`](Self::open) goes on while another process consumes the reply queue, as the one before does
    /// in a rolling deployment, or while all slots are held. Default 30 s.
    ///
    /// ```no_run
    /// # use polybus_core::{Bus, Source};
    /// # use polybus_patterns::Requests;
    /// # use std::time::Duration;
    /// # async fn example(bus: Bus) -> polybus_core::Result<()> {
    /// let replies = Source::queue("shop-replies-0");
    /// let requests = Requests::builder(&bus, replies).patience(Duration::from_secs(120)).open().await?;
    /// # Ok(()) }
    /// ```
    pub fn patience(mut self, limit: Duration) -> Self {
        self.patience = limit;
        self
    }

    /// Sets for how long a slot stays held after its process has died: the term of its lease, at least 1 s. It is
    /// renewed after a third of it. Default 30 s.
    ///
    /// A database that is away costs no slot, as long as nobody else takes it when it is back. When somebody has, all
    /// calls end with [`Closed`](super::RequestError::Closed), and the application has to open again.
    ///
    /// ```no_run
    /// # use polybus_core::{Bus, Source};
    /// # use polybus_patterns::{Requests, store::Store};
    /// # use std::time::Duration;
    /// # async fn example<S: Store>(bus: Bus, db: S) -> polybus_core::Result<()> {
    /// let queues = (0..16).map(|n| Source::queue(format!("shop-replies-{n}")));
    /// let requests = Requests::slots(&bus, queues, &db).slot_term(Duration::from_secs(10)).open().await?;
    /// # Ok(()) }
    /// ```
    pub fn slot_term(mut self, term: Duration) -> Self {
        self.slot_term = term.max(Duration::from_secs(1));
        self
    }

    /// Consumes the reply queue, and sends eight messages to itself. One that does not come back says that somebody
    /// else consumes the queue.
    ///
    /// # Errors
    /// - `InvalidArgument`: no reply queue was given, or one that is no queue, or ordered.
    /// - `ConfigInvalid`: another consumer has taken some of the eight for as long as [`patience`](Self::patience).
    /// - `Unavailable`: all slots are held by others. Those of the database.
    /// - Those of [`WorkerBuilder::run`](polybus_core::worker::WorkerBuilder::run) and of
    ///   [`Bus::publish`](polybus_core::Bus::publish).
    ///
    /// # Cancel safety
    /// Dropping the future opens nothing. A slot that was taken is given back, or runs out within its term.
    ///
    /// ```no_run
    /// # use polybus_core::{Bus, Source};
    /// # use polybus_patterns::Requests;
    /// # async fn example(bus: Bus) -> polybus_core::Result<()> {
    /// let requests = Requests::builder(&bus, Source::queue("shop-replies-0")).open().await?;
    /// # Ok(()) }
    /// ```
    pub async fn open(self) -> Result<Requests> {
        for source in &self.replies {
            self.check(source)?;
        }
        if self.max_waiting == 0 {
            return Err(Error::invalid("max_waiting must be at least 1"));
        }
        let physical = |source: &Source| self.bus.topology().source(source).physical.clone();
        let (source, slot) = match &self.slots {
            Some(control) => {
                let names: Vec<String> = self.replies.iter().map(|s| format!("requests/{}", physical(s))).collect();
                let (place, slot) = HeldSlot::take(control.clone(), &names, self.slot_term, self.patience).await?;
                (self.replies[place].clone(), Some(slot))
            }
            None => match self.replies.first() {
                Some(source) => (source.clone(), None),
                None => return Err(Error::invalid("requests need a reply queue")),
            },
        };
        let shared = Arc::new(RequestsShared {
            instance: InstanceId::new(),
            waiting: WaitingCalls::new(self.max_waiting),
            probes: Probes::new(slot.is_some()),
            source: source.clone(),
        });
        if let Some(slot) = &slot {
            slot.guard(&shared);
        }
        let (stop, stopped) = oneshot::channel();
        let (ending, ended) = watch::channel(false);
        let handler = ReplyHandler::new(shared.clone());
        tokio::spawn(run_reply_worker(self.bus.clone(), shared.clone(), handler, stopped, ending));
        let requests = Requests(Arc::new(OpenRequests {
            reply_queue: (*physical(&source)).into(),
            shared: shared.clone(),
            bus: self.bus.clone(),
            timeout: self.timeout,
            _stop: stop,
            ended: ended.clone(),
            slot,
        }));
        let mut worker_ended = ended;
        tokio::select! {
            biased;
            _ = worker_ended.wait_for(|ended| *ended) => {
                let gone = || Error::new(ErrorKind::Closed, "the reply queue is not consumed any more");
                Err(shared.waiting.cause().unwrap_or_else(gone))
            }
            probed = shared.probes.run(&self.bus, &shared.instance, &source, self.patience) => probed.map(|()| requests),
        }
    }

    fn check(&self, source: &Source) -> Result<()> {
        let refused = |why: &str| Err(Error::invalid(format!("{source} cannot take replies: {why}")));
        match source {
            Source::Queue(_) if self.bus.topology().source(source).settings.ordered => {
                refused("an ordered queue needs a key on every message. Declare one that is not ordered")
            }
            Source::Queue(_) => Ok(()),
            _ => refused("it is no queue. Declare a queue for each process"),
        }
    }
}
