//! What a scenario of the store suite is handed.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use polybus_core::{Address, Envelope, Outgoing, QueueSpec, Topology};
use polybus_patterns::{Outbox, RelayReport, store::Store};
use tokio::time::Instant;

use super::{
    broker::StoreBroker,
    fault::StoreFault,
    layer::{SuiteStore, SuiteTx},
    relays::{RunningRelay, relay},
    target::{StoreAbilities, StoreUnderTest},
};
use crate::{Failure, Outcome};

/// The source of the outboxes of scenarios.
pub(crate) const SOURCE: &str = "/shop";

/// A handle on one run of a scenario. Clones share it.
pub struct StoreCx<T: StoreUnderTest>(Arc<CxInner<T>>);

struct CxInner<T: StoreUnderTest> {
    target: Arc<T>,
    fault: Option<StoreFault>,
    patience: Duration,
    seed: u64,
    random: AtomicU64,
    /// What is removed at the end.
    made: Mutex<Vec<T::Store>>,
}

impl<T: StoreUnderTest> Clone for StoreCx<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// The store of a target, in the suite's layer.
pub(crate) type StoreOf<T> = SuiteStore<<T as StoreUnderTest>::Store>;
/// Its transaction.
pub(crate) type TxOf<T> = SuiteTx<<T as StoreUnderTest>::Store>;

impl<T: StoreUnderTest> StoreCx<T> {
    pub(super) fn new(target: Arc<T>, fault: Option<StoreFault>, patience: Duration, seed: u64) -> Self {
        let (random, made) = (AtomicU64::new(seed), Mutex::default());
        Self(Arc::new(CxInner { target, fault, patience, seed, random, made }))
    }

    /// The seed of this run, which a failure tells. `POLYBUS_SEED` sets it.
    pub fn seed(&self) -> u64 {
        self.0.seed
    }

    /// A number below `below`, of the run's seed.
    pub fn random(&self, below: u64) -> u64 {
        // SplitMix64.
        let mut n = self.0.random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (n ^ (n >> 31)) % below.max(1)
    }

    /// The target.
    pub fn target(&self) -> &T {
        &self.0.target
    }

    /// What the database can do.
    pub fn abilities(&self) -> StoreAbilities {
        self.0.target.abilities()
    }

    // Stores

    /// A new store with its tables.
    pub async fn store(&self) -> Outcome<StoreOf<T>> {
        let store = self.0.target.fresh().await?;
        self.0.made.lock().push(store.clone());
        Ok(SuiteStore::new(store, self.0.fault))
    }

    /// Removes all that was made.
    pub(super) async fn clean_up(&self) {
        let made = std::mem::take(&mut *self.0.made.lock());
        for store in made {
            self.0.target.remove(store).await;
        }
    }

    /// Another store on the same database, as another process would have.
    pub async fn second(&self, store: &StoreOf<T>) -> Outcome<StoreOf<T>> {
        Ok(store.beside(self.0.target.second_handle(&store.inner).await?))
    }

    /// Sets the database's clock to so many seconds from the real one.
    pub fn move_clock(&self, store: &StoreOf<T>, seconds: i64) {
        self.0.target.move_clock(&store.inner, seconds);
    }

    /// The committed effects: each name, and how often it is there.
    pub async fn effects(&self, store: &StoreOf<T>) -> Outcome<BTreeMap<String, u64>> {
        Ok(self.0.target.effects(&store.inner).await?.into_iter().collect())
    }

    // Outboxes and relays

    /// A broker with these queues, all of them ordered.
    pub(crate) async fn ordered_broker(&self, queues: &[&str]) -> Outcome<StoreBroker> {
        Ok(StoreBroker::new(ordered(queues)).await?)
    }

    pub(crate) fn outbox(&self, store: &StoreOf<T>) -> Outbox<StoreOf<T>> {
        Outbox::new(store, SOURCE)
    }

    /// Writes messages in a transaction of their own, and commits it.
    pub(crate) async fn enqueue<M: Into<Outgoing>>(
        &self,
        store: &StoreOf<T>,
        to: &Address,
        messages: impl IntoIterator<Item = M>,
    ) -> Outcome {
        let messages: Vec<Outgoing> = messages.into_iter().map(Into::into).collect();
        let mut tx = store.begin().await?;
        self.outbox(store).enqueue_all(&mut tx, to.clone(), messages).await?;
        StoreOf::<T>::commit(tx).await?;
        self.outbox(store).wake();
        Ok(())
    }

    /// A relay that runs until it is stopped, killed or dropped.
    pub(crate) fn relay(&self, broker: &StoreBroker, store: &StoreOf<T>) -> RunningRelay {
        RunningRelay::start(relay(&broker.bus, store))
    }

    /// Runs a relay until so many messages came to the address, and stops it.
    pub(crate) async fn relay_until(
        &self,
        broker: &StoreBroker,
        store: &StoreOf<T>,
        to: &Address,
        n: usize,
    ) -> Outcome<RelayReport> {
        let relay = self.relay(broker, store);
        self.published(broker, to, n).await?;
        relay.stop().await
    }

    /// Waits until at least so many messages came to the address.
    pub(crate) async fn published(&self, broker: &StoreBroker, to: &Address, n: usize) -> Outcome {
        let what = format!("{n} messages at {to}");
        self.eventually(&what, async || {
            let came = broker.published(to).len();
            if came >= n { Ok(Some(())) } else { Err(Failure::new(format!("{came} came"))) }
        })
        .await
    }

    /// Publishes one more message behind all others of this key, and waits until it came. What has not come by then
    /// never does, since a key keeps its order.
    pub(crate) async fn sentinel(&self, broker: &StoreBroker, store: &StoreOf<T>, to: &Address, key: &str) -> Outcome {
        let sentinel = Envelope::new("t", "sentinel").key(key);
        self.enqueue(store, to, [sentinel.clone()]).await?;
        self.eventually("the sentinel", async || {
            Ok(broker.published(to).iter().any(|message| message.id == sentinel.id).then_some(()))
        })
        .await
    }

    // Waiting

    /// For how long what must come is waited for: minutes, since a busy machine brings it late. Seconds under a fault
    /// that the scenario must notice.
    pub fn patience(&self) -> Duration {
        self.0.patience
    }

    /// The time that something may take now which takes `usual` on an idle machine.
    pub fn lateness(&self, usual: Duration) -> Duration {
        crate::suite::pace::slowed(usual)
    }

    /// Repeats the check until it answers `Ok(Some)`, and returns that value.
    ///
    /// # Errors
    /// [`patience`](Self::patience) ended. The failure shows the last `Err` of the check.
    pub async fn eventually<V>(&self, what: &str, mut check: impl AsyncFnMut() -> Outcome<Option<V>>) -> Outcome<V> {
        let deadline = Instant::now() + self.patience();
        loop {
            let last = match check().await {
                Ok(Some(value)) => return Ok(value),
                Ok(None) => None,
                Err(e) => Some(e),
            };
            if Instant::now() >= deadline {
                let why = last.map(|e| format!(": {e}")).unwrap_or_default();
                return Err(Failure::new(format!("not within {:?}: {what}{why}", self.patience())));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The result of a future that must end.
    pub async fn within<V>(&self, what: &str, future: impl Future<Output = V>) -> Outcome<V> {
        let limit = self.patience();
        let late = |_| Failure::new(format!("not within {limit:?}: {what}"));
        tokio::time::timeout(limit, future).await.map_err(late)
    }
}

/// A topology of ordered queues.
pub(crate) fn ordered(queues: &[&str]) -> Topology {
    queues.iter().fold(Topology::new(), |topology, queue| topology.queue(*queue, QueueSpec::new().ordered(true)))
}

/// Messages of a key with these numbers as payloads.
pub(crate) fn of_key(key: &str, numbers: impl IntoIterator<Item = usize>) -> Vec<Envelope> {
    numbers.into_iter().map(|n| Envelope::new("t", n.to_string()).key(key)).collect()
}
