//! An adapter of your own under the suite: a driver over in-process vectors that can publish, receive, ack and release, and
//! says so. The suite tests what it can do, checks that everything else is refused, and lists it as not supported.
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

/// The broker: queues of messages, each with the number of times it was handed out.
#[derive(Default)]
struct Shelf {
    queues: Mutex<BTreeMap<String, Queue>>,
    changed: Notify,
}

/// A queue that is deleted and declared again is another one: its number tells.
struct Queue {
    number: u64,
    messages: VecDeque<(Envelope, u32)>,
}

/// Numbers that are never given twice in this process.
fn fresh() -> u64 {
    static NUMBERS: AtomicU64 = AtomicU64::new(0);
    NUMBERS.fetch_add(1, Ordering::SeqCst)
}

impl Shelf {
    fn queues(&self) -> MutexGuard<'_, BTreeMap<String, Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct ShelfDriver {
    shelf: Arc<Shelf>,
    capabilities: Capabilities,
    closed: Arc<AtomicBool>,
}

impl ShelfDriver {
    fn open(&self) -> Result<()> {
        open(&self.closed)
    }
}

fn open(closed: &AtomicBool) -> Result<()> {
    match closed.load(Ordering::SeqCst) {
        true => Err(Error::new(ErrorKind::Closed, "the connection was closed").with_backend("shelf")),
        false => Ok(()),
    }
}

fn missing(name: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::NotFound, "no such queue: declare it first").with_backend("shelf").with_context("queue", name)
}

#[async_trait]
impl Driver for ShelfDriver {
    fn backend(&self) -> &'static str {
        "shelf"
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn declare(&self, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport> {
        self.open()?;
        let mut report = DeclareReport::default();
        let mut queues = self.shelf.queues();
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
        let (shelf, closed) = (self.shelf.clone(), self.closed.clone());
        Ok(Arc::new(ShelfSender { shelf, closed, queue: to.physical.to_string() }))
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        self.open()?;
        let queue = from.physical.to_string();
        let number = self.shelf.queues().get(&queue).map(|q| q.number).ok_or_else(|| missing(&queue))?;
        let (shelf, closed) = (self.shelf.clone(), self.closed.clone());
        let held = Arc::new(Held { shelf, closed, queue, number: number.into(), messages: Mutex::default() });
        let receiver = ShelfReceiver { held: held.clone(), prefetch: from.prefetch, stopped: false };
        Ok((Box::new(receiver), Arc::new(ShelfSettler(held))))
    }

    async fn delete(&self, plan: &DeclarePlan) -> Result<()> {
        self.open()?;
        for source in &plan.sources {
            self.shelf.queues().remove(&*source.physical);
        }
        self.shelf.changed.notify_waiters();
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::SeqCst);
        self.shelf.changed.notify_waiters();
        Ok(())
    }
}

struct ShelfSender {
    shelf: Arc<Shelf>,
    closed: Arc<AtomicBool>,
    queue: String,
}

#[async_trait]
impl Sender for ShelfSender {
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
        let mut queues = self.shelf.queues();
        let Some(queue) = queues.get_mut(&self.queue) else { return missing(&self.queue).for_each_of(batch.len()) };
        queue.messages.extend(batch.iter().map(|p| (p.message.envelope.clone(), 0)));
        self.shelf.changed.notify_waiters();
        batch.iter().map(|_| Ok(Receipt::default())).collect()
    }
}

/// What one consumer holds. Goes back to the queue when the consumer ends, however it does.
struct Held {
    shelf: Arc<Shelf>,
    closed: Arc<AtomicBool>,
    queue: String,
    /// Of the queue that the messages are from.
    number: AtomicU64,
    messages: Mutex<BTreeMap<u64, (Envelope, u32)>>,
}

impl Held {
    fn messages(&self) -> MutexGuard<'_, BTreeMap<u64, (Envelope, u32)>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works on the queue, if it is still there.
    fn on_queue<T>(&self, f: impl FnOnce(&mut Queue) -> T) -> Option<T> {
        self.shelf.queues().get_mut(&self.queue).filter(|q| q.number == self.number.load(Ordering::SeqCst)).map(f)
    }

    /// Goes on with the queue of that name that was made after ours was deleted; what was held went with ours.
    fn follow(&self) -> Result<()> {
        let queues = self.shelf.queues();
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
        self.shelf.changed.notify_waiters();
    }

    fn holds(&self, number: u64) -> bool {
        self.messages().contains_key(&number) && self.on_queue(|_| ()).is_some()
    }

    fn settle(&self, settle: &SettleRequest) -> Result<()> {
        let number = settle.token.get::<u64>()?;
        let held = if self.holds(*number) { self.messages().remove(number) } else { None };
        let Some((message, attempt)) = held else {
            return Err(Error::new(ErrorKind::LockLost, "not held by this consumer any more").with_backend("shelf"));
        };
        match settle.how {
            Settlement::Ack => {}
            // What was never handed out does not count as an attempt.
            Settlement::GiveBack => self.put_back(message, attempt - 1),
            _ => self.put_back(message, attempt),
        }
        // There is room in the prefetch window again.
        self.shelf.changed.notify_waiters();
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.give_all_back();
    }
}

struct ShelfReceiver {
    held: Arc<Held>,
    prefetch: usize,
    stopped: bool,
}

impl ShelfReceiver {
    fn take(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
        open(&self.held.closed)?;
        if self.stopped {
            return Err(Error::new(ErrorKind::Closed, "the receiver was closed").with_backend("shelf"));
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
impl Receiver for ShelfReceiver {
    async fn receive(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
        loop {
            let held = self.held.clone();
            let changed = held.shelf.changed.notified();
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

struct ShelfSettler(Arc<Held>);

#[async_trait]
impl Settler for ShelfSettler {
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

/// Each scenario gets a broker of its own, shared by all its connections.
pub fn target() -> Target {
    let shelves: Arc<Mutex<BTreeMap<String, Arc<Shelf>>>> = Arc::default();
    Target::new("shelf", move |overrides| {
        let shelf = shelves.lock().unwrap_or_else(PoisonError::into_inner).entry(overrides.space).or_default().clone();
        let mut capabilities = Capabilities::default();
        capabilities.declare = true;
        capabilities.confirmed_settlement = true;
        capabilities.attempts_across_crash = true;
        async move { Ok(Arc::new(ShelfDriver { shelf, capabilities, closed: Arc::default() }) as Arc<dyn Driver>) }
    })
}

/// Runs the whole suite and returns the report.
pub fn run() -> Report {
    let suite = Suite::new(target(), scenarios::all());
    let rows = suite.run("", 4, |row| println!("{:?} {}", row.verdict, row.name));
    Report::new("shelf", "in this process", None, rows)
}

#[allow(dead_code)]
fn main() -> ExitCode {
    let report = run();
    println!("\n{}", markdown(&report));
    ExitCode::from(u8::from(report.counts().1 > 0))
}
