//! An adapter of your own under the suite: a driver over queues in this process, in one file.
//!
//! It can publish, receive, ack and release, and declares no more. The suite tests what it can do, checks that all else
//! is refused, and lists it as not supported.
//!
//! `cargo run -p polybus-conformance --example custom_adapter`

use std::{
    collections::{BTreeMap, VecDeque},
    process::ExitCode,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use polybus_conformance::{Report, Suite, Target, markdown, scenarios};
use polybus_core::{
    Address, Envelope, Error, ErrorKind, Outgoing, Receipt, Result, Source,
    driver::{
        Batching, Capabilities, Driver, DriverToken, PreparedMessage, ReceivedMessage, Receiver, Sender, SettleRequest,
        Settlement, Settler, async_trait,
    },
    topology::{DeclareMode, DeclarePlan, DeclareReport, Entity, EntityDifference},
};
use tokio::sync::Notify;

/// The broker: queues by their names, and a signal for every change.
#[derive(Default)]
struct QueueStore {
    queues: Mutex<BTreeMap<String, Queue>>,
    changed: Notify,
}

/// A queue. One that is deleted and declared again is another queue, with another number.
struct Queue {
    number: u64,
    /// Each message, and how often it was handed out.
    messages: VecDeque<(Envelope, u32)>,
}

/// A number that is never given twice in this process.
fn fresh() -> u64 {
    static NUMBERS: AtomicU64 = AtomicU64::new(0);
    NUMBERS.fetch_add(1, Ordering::SeqCst)
}

impl QueueStore {
    fn queues(&self) -> MutexGuard<'_, BTreeMap<String, Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct StoreDriver {
    store: Arc<QueueStore>,
    capabilities: Capabilities,
    closed: Arc<AtomicBool>,
}

impl StoreDriver {
    fn open(&self) -> Result<()> {
        open(&self.closed)
    }
}

fn open(closed: &AtomicBool) -> Result<()> {
    match closed.load(Ordering::SeqCst) {
        true => Err(Error::new(ErrorKind::Closed, "the connection was closed").with_backend("in-process")),
        false => Ok(()),
    }
}

fn missing(name: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::NotFound, "no such queue: declare it first")
        .with_backend("in-process")
        .with_context("queue", name)
}

#[async_trait]
impl Driver for StoreDriver {
    fn backend(&self) -> &'static str {
        "in-process"
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn declare(&self, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport> {
        self.open()?;
        let mut report = DeclareReport::default();
        let mut queues = self.store.queues();
        for source in &plan.sources {
            if queues.contains_key(&*source.physical) {
                continue;
            }
            if mode == DeclareMode::Create {
                queues.insert(source.physical.to_string(), Queue { number: fresh(), messages: VecDeque::new() });
                report.created.push(source.name.to_string());
            } else {
                report.differences.push(EntityDifference::new(&source.name, "exists", true, false));
            }
        }
        Ok(report)
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        self.open()?;
        let (store, closed) = (self.store.clone(), self.closed.clone());
        Ok(Arc::new(StoreSender { store, closed, queue: to.physical.to_string() }))
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        self.open()?;
        let queue = from.physical.to_string();
        let number = self.store.queues().get(&queue).map(|q| q.number).ok_or_else(|| missing(&queue))?;
        let (store, closed) = (self.store.clone(), self.closed.clone());
        let held = Arc::new(HeldMessages { store, closed, queue, number: number.into(), messages: Mutex::default() });
        let receiver = StoreReceiver { held: held.clone(), prefetch: from.prefetch, stopped: false };
        Ok((Box::new(receiver), Arc::new(StoreSettler(held))))
    }

    async fn delete(&self, plan: &DeclarePlan) -> Result<()> {
        self.open()?;
        for source in &plan.sources {
            self.store.queues().remove(&*source.physical);
        }
        self.store.changed.notify_waiters();
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::SeqCst);
        self.store.changed.notify_waiters();
        Ok(())
    }
}

struct StoreSender {
    store: Arc<QueueStore>,
    closed: Arc<AtomicBool>,
    queue: String,
}

#[async_trait]
impl Sender for StoreSender {
    fn batching(&self) -> Batching {
        Batching::new(100, usize::MAX, 1)
    }

    fn prepare(&self, message: Outgoing) -> Result<PreparedMessage> {
        let size = message.envelope.metadata_size() + message.envelope.data.len();
        Ok(PreparedMessage::new(message, size))
    }

    async fn send(&self, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        if let Err(e) = open(&self.closed) {
            return e.for_each_of(batch.len());
        }
        let mut queues = self.store.queues();
        let Some(queue) = queues.get_mut(&self.queue) else { return missing(&self.queue).for_each_of(batch.len()) };
        queue.messages.extend(batch.iter().map(|p| (p.message.envelope.clone(), 0)));
        self.store.changed.notify_waiters();
        batch.iter().map(|_| Ok(Receipt::default())).collect()
    }
}

/// The messages that one consumer holds. They go back to the queue when it ends, also when it is dropped.
struct HeldMessages {
    store: Arc<QueueStore>,
    closed: Arc<AtomicBool>,
    queue: String,
    /// The number of the queue that the messages are from.
    number: AtomicU64,
    messages: Mutex<BTreeMap<u64, (Envelope, u32)>>,
}

impl HeldMessages {
    fn messages(&self) -> MutexGuard<'_, BTreeMap<u64, (Envelope, u32)>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `f` with the queue, if it still exists.
    fn on_queue<T>(&self, f: impl FnOnce(&mut Queue) -> T) -> Option<T> {
        self.store.queues().get_mut(&self.queue).filter(|q| q.number == self.number.load(Ordering::SeqCst)).map(f)
    }

    /// Switches to the queue of the same name that was declared after ours was deleted. What was held went with ours.
    fn follow(&self) -> Result<()> {
        let queues = self.store.queues();
        let queue = queues.get(&self.queue).ok_or_else(|| missing(&self.queue))?;
        if self.number.swap(queue.number, Ordering::SeqCst) != queue.number {
            self.messages().clear();
        }
        Ok(())
    }

    fn put_back(&self, message: Envelope, attempt: u32) {
        self.on_queue(|q| q.messages.push_front((message, attempt)));
    }

    fn give_all_back(&self) {
        let all = std::mem::take(&mut *self.messages());
        for (_, (message, attempt)) in all.into_iter().rev() {
            self.put_back(message, attempt);
        }
        self.store.changed.notify_waiters();
    }

    fn holds(&self, number: u64) -> bool {
        self.messages().contains_key(&number) && self.on_queue(|_| ()).is_some()
    }

    fn settle(&self, settle: &SettleRequest) -> Result<()> {
        let number = settle.token.get::<u64>()?;
        let held = if self.holds(*number) { self.messages().remove(number) } else { None };
        let Some((message, attempt)) = held else {
            return Err(
                Error::new(ErrorKind::LockLost, "not held by this consumer any more").with_backend("in-process")
            );
        };
        match settle.how {
            Settlement::Ack => {}
            // A message that was given back unseen does not count as an attempt.
            Settlement::GiveBack => self.put_back(message, attempt - 1),
            _ => self.put_back(message, attempt),
        }
        // The settlement made room in the prefetch window, for which the receiver waits.
        self.store.changed.notify_waiters();
        Ok(())
    }
}

impl Drop for HeldMessages {
    fn drop(&mut self) {
        self.give_all_back();
    }
}

struct StoreReceiver {
    held: Arc<HeldMessages>,
    prefetch: usize,
    stopped: bool,
}

impl StoreReceiver {
    fn take(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
        open(&self.held.closed)?;
        if self.stopped {
            return Err(Error::new(ErrorKind::Closed, "the receiver was closed").with_backend("in-process"));
        }
        self.held.follow()?;
        let taken = self.held.on_queue(|queue| {
            let mut held = self.held.messages();
            let room = self.prefetch.saturating_sub(held.len()).min(max).min(queue.messages.len());
            let taken = queue.messages.drain(..room).map(|(message, handed_out)| {
                let number = fresh();
                held.insert(number, (message.clone(), handed_out + 1));
                ReceivedMessage::new(DriverToken::new(number), message, handed_out + 1)
            });
            taken.collect()
        });
        taken.ok_or_else(|| missing(&self.held.queue))
    }
}

#[async_trait]
impl Receiver for StoreReceiver {
    async fn receive(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
        loop {
            let held = self.held.clone();
            let changed = held.store.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let taken = self.take(max)?;
            if !taken.is_empty() {
                return Ok(taken);
            }
            changed.await;
        }
    }

    async fn close(&mut self) -> Result<()> {
        self.stopped = true;
        Ok(())
    }
}

struct StoreSettler(Arc<HeldMessages>);

#[async_trait]
impl Settler for StoreSettler {
    fn batching(&self) -> Batching {
        Batching::new(100, usize::MAX, 1)
    }

    async fn settle(&self, batch: &[SettleRequest]) -> Vec<Result<()>> {
        batch.iter().map(|s| open(&self.0.closed).and_then(|()| self.0.settle(s))).collect()
    }

    fn holds(&self, token: &DriverToken) -> bool {
        token.get::<u64>().is_ok_and(|number| self.0.holds(*number))
    }

    async fn close(&self) -> Result<()> {
        self.0.give_all_back();
        Ok(())
    }
}

/// A target with a broker for each scenario, which all connections of the scenario share.
pub fn target() -> Target {
    let stores: Arc<Mutex<BTreeMap<String, Arc<QueueStore>>>> = Arc::default();
    Target::new("in-process", move |overrides| {
        let store = stores.lock().unwrap_or_else(PoisonError::into_inner).entry(overrides.space).or_default().clone();
        let mut capabilities = Capabilities::default();
        capabilities.declare = true;
        capabilities.confirmed_settlement = true;
        capabilities.attempts_across_crash = true;
        async move { Ok(Arc::new(StoreDriver { store, capabilities, closed: Arc::default() }) as Arc<dyn Driver>) }
    })
}

/// Runs the whole suite and returns the report.
pub fn run() -> Report {
    let suite = Suite::new(target(), scenarios::all());
    let rows = suite.run("", 4, |row| println!("{:?} {}", row.verdict, row.name));
    Report::new("in-process", "in this process", None, rows)
}

#[allow(dead_code)]
fn main() -> ExitCode {
    let report = run();
    println!("\n{}", markdown(&report));
    ExitCode::from(u8::from(report.counts().1 > 0))
}
