//! A driver whose answers a test decides.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use polybus_core::{driver::*, message::*, topology::*, *};
use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};

/// What one `send` answers.
pub(crate) enum SendAnswer {
    Results(Vec<Result<Receipt>>),
    Never,
    Panic,
}

#[derive(Default)]
pub(crate) struct Script {
    pub(crate) capabilities: Mutex<Capabilities>,
    /// Answers to sends in order; all Ok once they have run out.
    pub(crate) sends: Mutex<VecDeque<SendAnswer>>,
    /// Ids of every batch sent.
    pub(crate) sent: Mutex<Vec<Vec<String>>>,
    /// Sends wait for a permit if this is set.
    pub(crate) gate: Option<Semaphore>,
    /// What the sender says while it holds messages back.
    pub(crate) held_back: Mutex<Option<Error>>,
    pub(crate) sending: AtomicUsize,
    pub(crate) most_sending: AtomicUsize,
    /// Messages to be received.
    pub(crate) incoming: Mutex<VecDeque<Result<ReceivedMessage>>>,
    pub(crate) arrived: Notify,
    /// The `max` of every receive.
    pub(crate) asked: Mutex<Vec<usize>>,
    /// Answers to settlements in order; Ok once they have run out.
    pub(crate) settles: Mutex<VecDeque<Result<()>>>,
    pub(crate) settled: Mutex<Vec<(String, Settlement)>>,
    pub(crate) settle_panics: AtomicBool,
    /// How many settlements every batch held.
    pub(crate) settle_batches: Mutex<Vec<usize>>,
    /// How batches of settlements form, where it is not ten at a time and one batch under way.
    pub(crate) settle_batching: Option<Batching>,
    /// Settlements wait for a permit a batch if this is set.
    pub(crate) settle_gate: Option<Semaphore>,
    pub(crate) stale: AtomicBool,
    pub(crate) extended: AtomicUsize,
    /// How long the answer to an extension takes, and how many were under way at most.
    pub(crate) extend_takes: Duration,
    pub(crate) extending: AtomicUsize,
    pub(crate) most_extending: AtomicUsize,
    pub(crate) extend_panics: AtomicBool,
    /// So many of the next extensions are never answered; and those with a token of `"hangs"` never are.
    pub(crate) extend_hangs: AtomicUsize,
    pub(crate) forgotten: AtomicUsize,
    /// The longest lock that an extension gets, whatever it asks for.
    pub(crate) longest_lock: Option<Duration>,
    /// Answers to declares in order, each after a while; Ok once they have run out.
    pub(crate) declares: Mutex<VecDeque<(Duration, Error)>>,
    pub(crate) declared: AtomicUsize,
    pub(crate) closed: AtomicUsize,
    /// The driver, and its senders, never come to an end.
    pub(crate) close_hangs: bool,
    /// How long closing a receiver takes, as where a long poll must end first.
    pub(crate) receiver_closes_in: Duration,
    pub(crate) settlers_closed: AtomicUsize,
}

#[derive(Clone)]
pub(crate) struct Scripted(pub Arc<Script>);

impl Scripted {
    pub(crate) fn bus(&self, options: BusOptions) -> Bus {
        let driver = ScriptedDriver(self.0.clone(), self.0.capabilities.lock().unwrap().clone());
        Bus::new(Arc::new(driver), options).unwrap()
    }

    pub(crate) fn push(&self, envelope: Envelope, attempt: u32) {
        self.push_received(ReceivedMessage::new(DriverToken::new(()), envelope, attempt));
    }

    pub(crate) fn push_received(&self, received: ReceivedMessage) {
        self.0.incoming.lock().unwrap().push_back(Ok(received));
        self.0.arrived.notify_one();
    }

    pub(crate) fn fail(&self, e: Error) {
        self.0.incoming.lock().unwrap().push_back(Err(e));
        self.0.arrived.notify_one();
    }

    pub(crate) fn settled(&self) -> Vec<(String, Settlement)> {
        self.0.settled.lock().unwrap().clone()
    }
}

struct ScriptedDriver(Arc<Script>, Capabilities);

#[async_trait]
impl Driver for ScriptedDriver {
    fn backend(&self) -> &'static str {
        "script"
    }

    fn capabilities(&self) -> &Capabilities {
        &self.1
    }

    async fn declare(&self, _: &DeclarePlan, _: DeclareMode) -> Result<DeclareReport> {
        self.0.declared.fetch_add(1, Ordering::SeqCst);
        let answer = self.0.declares.lock().unwrap().pop_front();
        let Some((after, e)) = answer else { return Ok(DeclareReport::default()) };
        tokio::time::sleep(after).await;
        Err(e)
    }

    async fn open_sender(&self, _: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        Ok(Arc::new(Scripted(self.0.clone())))
    }

    async fn open_receiver(&self, _: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        Ok((Box::new(Scripted(self.0.clone())), Arc::new(Scripted(self.0.clone()))))
    }

    async fn close(&self) -> Result<()> {
        self.0.closed.fetch_add(1, Ordering::SeqCst);
        if self.0.close_hangs {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

#[async_trait]
impl Sender for Scripted {
    fn batching(&self) -> Batching {
        Batching::new(10, 1000, 2)
    }

    fn prepare(&self, message: Outgoing) -> Result<PreparedMessage> {
        let size = message.envelope.data.len();
        Ok(PreparedMessage::new(message, size))
    }

    fn held_back(&self) -> Option<Error> {
        self.0.held_back.lock().unwrap().clone()
    }

    async fn close(&self) -> Result<()> {
        if self.0.close_hangs {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    async fn send(&self, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        let now = self.0.sending.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most_sending.fetch_max(now, Ordering::SeqCst);
        struct Down<'a>(&'a AtomicUsize);
        impl Drop for Down<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        let _down = Down(&self.0.sending);
        let ids = batch.iter().map(|p| p.message.envelope.id.to_string()).collect();
        self.0.sent.lock().unwrap().push(ids);
        if let Some(gate) = &self.0.gate {
            gate.acquire().await.unwrap().forget();
        }
        let answer = self.0.sends.lock().unwrap().pop_front();
        match answer {
            Some(SendAnswer::Results(results)) => results,
            Some(SendAnswer::Never) => std::future::pending().await,
            Some(SendAnswer::Panic) => panic!("a driver's bug"),
            None => batch.iter().map(|_| Ok(Receipt::default())).collect(),
        }
    }
}

#[async_trait]
impl Receiver for Scripted {
    async fn receive(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
        self.0.asked.lock().unwrap().push(max);
        loop {
            let arrived = self.0.arrived.notified();
            {
                let mut incoming = self.0.incoming.lock().unwrap();
                if let Some(Err(_)) = incoming.front() {
                    return Err(incoming.pop_front().unwrap().unwrap_err());
                }
                let n = incoming.iter().take_while(|r| r.is_ok()).count().min(max);
                if n > 0 {
                    return Ok(incoming.drain(..n).map(|r| r.unwrap()).collect());
                }
            }
            arrived.await;
        }
    }

    async fn close(&mut self) -> Result<()> {
        tokio::time::sleep(self.0.receiver_closes_in).await;
        Ok(())
    }
}

#[async_trait]
impl Settler for Scripted {
    fn batching(&self) -> Batching {
        self.0.settle_batching.unwrap_or(Batching::new(10, 1000, 1))
    }

    async fn settle(&self, batch: &[SettleRequest]) -> Vec<Result<()>> {
        self.0.settle_batches.lock().unwrap().push(batch.len());
        tokio::task::yield_now().await;
        assert!(!self.0.settle_panics.swap(false, Ordering::SeqCst), "a driver's bug");
        if let Some(gate) = &self.0.settle_gate {
            gate.acquire().await.unwrap().forget();
        }
        batch
            .iter()
            .map(|s| {
                let answer = self.0.settles.lock().unwrap().pop_front().unwrap_or(Ok(()));
                if answer.is_ok() {
                    self.0.settled.lock().unwrap().push((s.envelope.id.to_string(), s.how.clone()));
                }
                answer
            })
            .collect()
    }

    async fn extend(&self, tokens: &[DriverToken], by: Duration) -> Vec<Result<Instant>> {
        self.0.extended.fetch_add(tokens.len(), Ordering::SeqCst);
        assert!(!self.0.extend_panics.swap(false, Ordering::SeqCst), "a driver's bug");
        let hangs = |n: usize| n.checked_sub(1);
        if self.0.extend_hangs.fetch_update(Ordering::SeqCst, Ordering::SeqCst, hangs).is_ok()
            || tokens.iter().any(|token| token.get::<&str>().is_ok())
        {
            std::future::pending::<()>().await;
        }
        let now = self.0.extending.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most_extending.fetch_max(now, Ordering::SeqCst);
        tokio::time::sleep(self.0.extend_takes).await;
        self.0.extending.fetch_sub(1, Ordering::SeqCst);
        let by = self.0.longest_lock.map_or(by, |longest| longest.min(by));
        tokens.iter().map(|_| Ok(Instant::now() + by)).collect()
    }

    fn holds(&self, _: &DriverToken) -> bool {
        !self.0.stale.load(Ordering::SeqCst)
    }

    fn forget(&self, _: &DriverToken) {
        self.0.forgotten.fetch_add(1, Ordering::SeqCst);
    }

    async fn close(&self) -> Result<()> {
        self.0.settlers_closed.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

pub(crate) fn scripted(f: impl FnOnce(&mut Script)) -> Scripted {
    let mut script = Script::default();
    *script.capabilities.get_mut().unwrap() = {
        let mut can = Capabilities::default();
        can.dead_letters = true;
        can.max_retry_delay = Some(Duration::MAX);
        can.ordered = Some(KeyOrder::new(KeyHolder::Client, AttemptDurability::Volatile, false));
        can
    };
    f(&mut script);
    Scripted(Arc::new(script))
}

pub(crate) fn message(id: &str, key: &str) -> Envelope {
    Envelope::new("t.a", "data").id(id).key(key)
}
