//! The broker of a scenario: `memory://`, with a switch for each address that breaks it.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use parking_lot::Mutex;
use polybus_core::{
    Address, Bus, BusOptions, Envelope, Error, Outgoing, Receipt, Result, Topology,
    driver::{Batching, Driver, DriverLayer, PreparedMessage, Sender},
    memory::MemoryDriver,
    topology::Entity,
};
use tokio::sync::Notify;

/// What is wrong with an address.
#[derive(Clone, Debug)]
pub(crate) enum AddressTrouble {
    /// It never answers.
    Silent,
    /// It answers the messages with these ids with an error. The others pass.
    Fails(Vec<String>, Error),
    /// It answers every message with an error.
    FailsAll(Error),
    /// It takes so many sends, and answers each with an error.
    LosesAnswers(usize, Error),
    /// It takes what comes from this bus, and answers once the trouble is over.
    AnswersLate(usize),
    /// It panics.
    Panics,
}

/// The broker, a bus on it, and its switches. Clones share them.
#[derive(Clone)]
pub(crate) struct StoreBroker {
    pub(crate) bus: Bus,
    memory: Arc<MemoryDriver>,
    state: Arc<BrokerState>,
}

#[derive(Default)]
struct BrokerState {
    troubles: Mutex<HashMap<Address, AddressTrouble>>,
    /// Sends that reached an address, whatever became of them, by the bus that made them.
    sends: Mutex<HashMap<(usize, Address), usize>>,
    /// Ids of messages that were refused, one for each time.
    refused: Mutex<Vec<String>>,
    /// Told when a trouble is changed.
    changed: Notify,
}

impl StoreBroker {
    /// A new broker with these entities.
    pub(crate) async fn new(topology: Topology) -> Result<Self> {
        let broker = Self::undeclared(MemoryDriver::new(), topology)?;
        broker.bus.declare().await?;
        Ok(broker)
    }

    /// A new broker on which nothing is there yet: `bus.declare()` makes it.
    pub(crate) fn undeclared(memory: MemoryDriver, topology: Topology) -> Result<Self> {
        memory.record(true);
        let (memory, state) = (Arc::new(memory), Arc::<BrokerState>::default());
        Ok(Self { bus: bus(&memory, &state, 0, topology)?, memory, state })
    }

    /// Another bus on the same broker, whose sends are counted under this number.
    pub(crate) fn second_bus(&self, number: usize) -> Result<Bus> {
        bus(&self.memory, &self.state, number, self.bus.topology().clone())
    }

    /// The same, on a connection of its own: closing it closes no other one.
    pub(crate) fn separate_bus(&self, number: usize) -> Result<Bus> {
        let memory = self.memory.again();
        memory.record(true);
        bus(&Arc::new(memory), &self.state, number, self.bus.topology().clone())
    }

    /// What was published to this address, oldest first.
    pub(crate) fn published(&self, to: &Address) -> Vec<Envelope> {
        self.memory.published(to)
    }

    /// The payloads of what was published.
    pub(crate) fn texts(&self, to: &Address) -> Vec<String> {
        self.published(to).iter().map(|message| String::from_utf8_lossy(&message.data).into_owned()).collect()
    }

    /// Breaks an address, or mends it.
    pub(crate) fn trouble(&self, at: &Address, trouble: Option<AddressTrouble>) {
        let mut troubles = self.state.troubles.lock();
        troubles.remove(at);
        troubles.extend(trouble.map(|trouble| (at.clone(), trouble)));
        self.state.changed.notify_waiters();
    }

    /// How many sends of this bus reached the address.
    pub(crate) fn sends(&self, bus: usize, at: &Address) -> usize {
        self.state.sends.lock().get(&(bus, at.clone())).copied().unwrap_or_default()
    }

    /// How many messages were refused, each time counted.
    pub(crate) fn all_refused(&self) -> usize {
        self.state.refused.lock().len()
    }

    /// How often the message with this id was refused.
    pub(crate) fn refused(&self, id: &str) -> usize {
        self.state.refused.lock().iter().filter(|refused| *refused == id).count()
    }
}

fn bus(memory: &Arc<MemoryDriver>, state: &Arc<BrokerState>, number: usize, topology: Topology) -> Result<Bus> {
    let inner: Arc<dyn Driver> = memory.clone();
    let driver = Arc::new(TroubledDriver { inner, number, state: state.clone() });
    // Not the source that a message must have: the outbox gives it one.
    Bus::new(driver, BusOptions::topology(topology).event_source("/relay"))
}

struct TroubledDriver {
    inner: Arc<dyn Driver>,
    number: usize,
    state: Arc<BrokerState>,
}

#[async_trait]
impl DriverLayer for TroubledDriver {
    fn inner(&self) -> &dyn Driver {
        &*self.inner
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        // Before it is opened: an address that is missing is counted as well.
        *self.state.sends.lock().entry((self.number, to.name.clone())).or_default() += 1;
        let inner = self.inner.open_sender(to).await?;
        Ok(Arc::new(TroubledSender { inner, to: to.name.clone(), number: self.number, state: self.state.clone() }))
    }
}

struct TroubledSender {
    inner: Arc<dyn Sender>,
    to: Address,
    number: usize,
    state: Arc<BrokerState>,
}

impl TroubledSender {
    /// Sends those that do not fail, and answers in the order of all.
    async fn send_others(
        &self,
        batch: &[PreparedMessage],
        fails: impl Fn(&str) -> bool + Send,
        error: &Error,
    ) -> Vec<Result<Receipt>> {
        let mut answers = Vec::with_capacity(batch.len());
        for message in batch {
            let id = &*message.message.envelope.id;
            if fails(id) {
                self.state.refused.lock().push(id.to_owned());
                answers.push(Err(error.clone()));
            } else {
                answers.extend(self.inner.send(std::slice::from_ref(message)).await);
            }
        }
        answers
    }

    fn answers_late(&self) -> bool {
        matches!(self.state.troubles.lock().get(&self.to), Some(AddressTrouble::AnswersLate(_)))
    }

    fn loses_answer(&self) -> Option<Error> {
        match self.state.troubles.lock().get_mut(&self.to) {
            Some(AddressTrouble::LosesAnswers(left, error)) if *left > 0 => {
                *left -= 1;
                Some(error.clone())
            }
            _ => None,
        }
    }
}

#[async_trait]
impl Sender for TroubledSender {
    fn batching(&self) -> Batching {
        self.inner.batching()
    }

    fn prepare(&self, message: Outgoing) -> Result<PreparedMessage> {
        self.inner.prepare(message)
    }

    fn held_back(&self) -> Option<Error> {
        self.inner.held_back()
    }

    async fn send(&self, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        *self.state.sends.lock().entry((self.number, self.to.clone())).or_default() += 1;
        let trouble = self.state.troubles.lock().get(&self.to).cloned();
        match trouble {
            Some(AddressTrouble::Silent) => std::future::pending().await,
            Some(AddressTrouble::Panics) => panic!("the suite's driver panics"),
            Some(AddressTrouble::FailsAll(error)) => self.send_others(batch, |_| true, &error).await,
            Some(AddressTrouble::Fails(ids, error)) => {
                self.send_others(batch, |id| ids.iter().any(|failing| failing == id), &error).await
            }
            Some(AddressTrouble::AnswersLate(bus)) if bus == self.number => {
                let answers = self.inner.send(batch).await;
                while self.answers_late() {
                    let changed = self.state.changed.notified();
                    if self.answers_late() {
                        changed.await;
                    }
                }
                answers
            }
            _ => {
                let answers = self.inner.send(batch).await;
                match self.loses_answer() {
                    Some(error) => error.for_each_of(batch.len()),
                    None => answers,
                }
            }
        }
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}
