//! The handle applications hold.

use std::{sync::Arc, time::Duration};

use crate::{
    Address, Capabilities, Clock, DeclareMode, DeclareReport, Driver, Envelope, Outgoing, Publisher, Publishing,
    PublishingAll, Result, Source, Stats, SubscribeBuilder, Topology,
};

/// How a bus behaves. All have defaults.
#[derive(Clone)]
#[non_exhaustive]
pub struct BusOptions {
    /// The queues and topics it knows.
    pub topology: Topology,
    /// What `Bus::declare` does.
    pub declare: DeclareMode,
    /// CloudEvents `source` of envelopes that name none. Default `polybus`.
    pub source: String,
    /// How long a publish may take, retries and waits included. Default 30 s.
    pub publish_timeout: Duration,
    /// How many bytes of encoded messages may wait to be sent, all publishers together. Default 64 MiB.
    pub max_pending_bytes: usize,
    /// Wall time. Default: the driver's, else the machine's.
    pub clock: Option<Arc<dyn Clock>>,
}

impl Default for BusOptions {
    fn default() -> Self {
        Self {
            topology: Topology::default(),
            declare: DeclareMode::Create,
            source: "polybus".into(),
            publish_timeout: Duration::from_secs(30),
            max_pending_bytes: 64 << 20,
            clock: None,
        }
    }
}

impl BusOptions {
    /// All defaults with this topology.
    pub fn topology(topology: Topology) -> Self {
        Self { topology, ..Self::default() }
    }
}

/// A connection to a broker. Cheap to clone; all clones share it.
#[derive(Clone)]
pub struct Bus(());

impl Bus {
    /// A bus over a driver. `ConfigInvalid` or `Unsupported` if the topology cannot be kept on it.
    pub fn new(driver: Arc<dyn Driver>, options: BusOptions) -> Result<Self> {
        let _ = (driver, options);
        unimplemented!()
    }

    /// Carries out the declare mode on the topology.
    pub async fn declare(&self) -> Result<DeclareReport> {
        unimplemented!()
    }

    /// Compares the topology with the broker without creating anything.
    pub async fn verify(&self) -> Result<DeclareReport> {
        unimplemented!()
    }

    /// A resolved, cloneable sender to one address. Opened once per bus and address.
    pub async fn publisher(&self, to: &Address) -> Result<Publisher> {
        let _ = to;
        unimplemented!()
    }

    /// Publishes one message: Ok once the broker has taken durable responsibility.
    pub fn publish(&self, to: &Address, message: impl Into<Outgoing>) -> Publishing {
        let _ = (to, message.into());
        unimplemented!()
    }

    /// Publishes many: one result per message, in order.
    pub fn publish_all<M: Into<Outgoing>>(&self, to: &Address, messages: impl IntoIterator<Item = M>) -> PublishingAll {
        let _ = (to, messages.into_iter().map(Into::into).collect::<Vec<Outgoing>>());
        unimplemented!()
    }

    /// Consumes a source.
    pub fn subscribe(&self, source: Source) -> SubscribeBuilder {
        let _ = source;
        unimplemented!()
    }

    /// Moves dead letters back to their source; see the contract for when it ends. `source` is the live source.
    /// Those that `filter` refuses are held and released at the end. Returns how many were moved.
    pub async fn redrive(
        &self,
        source: &Source,
        filter: impl FnMut(&Envelope) -> bool + Send,
        limit: usize,
    ) -> Result<u64> {
        let _ = (source, filter, limit);
        unimplemented!()
    }

    /// How many messages a source holds.
    pub async fn stats(&self, source: &Source) -> Result<Stats> {
        let _ = source;
        unimplemented!()
    }

    /// Deletes the ready messages of a source.
    pub async fn purge(&self, source: &Source) -> Result<u64> {
        let _ = source;
        unimplemented!()
    }

    /// Deletes everything the topology names, messages included. Missing entities are fine.
    pub async fn delete(&self) -> Result<()> {
        unimplemented!()
    }

    /// What the broker can do.
    pub fn capabilities(&self) -> &Capabilities {
        unimplemented!()
    }

    /// Product and version of the server, as far as it tells.
    pub async fn version(&self) -> Option<String> {
        unimplemented!()
    }

    /// The broker family.
    pub fn backend(&self) -> &'static str {
        unimplemented!()
    }

    /// The topology it was given.
    pub fn topology(&self) -> &Topology {
        unimplemented!()
    }

    /// Wall time as this bus counts it.
    pub fn now(&self) -> time::OffsetDateTime {
        unimplemented!()
    }

    /// The driver's native client, if it is a `T`: the one escape hatch.
    pub fn native<T: 'static>(&self) -> Option<&T> {
        unimplemented!()
    }

    /// Closes subscriptions, finishes settlements and publishes, and ends the connection. Idempotent.
    pub async fn close(&self) -> Result<()> {
        unimplemented!()
    }
}
