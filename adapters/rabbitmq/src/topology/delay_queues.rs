//! Delay queues: a message waits in one for a fixed time and then goes to its target by itself.
//!
//! A delay queue's messages have a time to live and, when it ends, the target as their dead-letter destination. Each
//! pair of target and delay has a queue of its own: a queue lets go of its messages in order, so a short delay would
//! wait behind a long one. Delay queues never expire, since that would delete their messages. So their number is
//! bounded: a delay is rounded up to one that the topology names or to the next one of a geometric series.
//!
//! Delayed publishes and the retries of unordered sources use them. On ordered sources core holds a retried message
//! itself (`core/src/consume/settle/rules.rs`, `keep_in_place`), because the capabilities say `KeyHolder::Client`. So
//! `Release` and `RetryAfter` of its live messages never reach this driver.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, LazyLock},
    time::Duration,
};

use parking_lot::Mutex;

use lapin::{
    ExchangeKind,
    types::{AMQPValue, FieldTable, ShortString},
};
use polybus_core::{ErrorKind, Result};

use crate::{
    error,
    topology::{
        channel_operations::{ProbeChannel, short},
        names, plain_binding, put_text,
    },
    transport::connection::DriverConnections,
};

/// The longest delay that polybus offers on RabbitMQ: 45 days. AMQP's longest time to live is 49.7 days.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(45 * 24 * 3600);

/// Delays from 10 ms to above [`MAX_DELAY`]. Each is longer than the one before by at most a tenth.
static SERIES: LazyLock<Vec<Duration>> = LazyLock::new(|| {
    let mut millis: u64 = 10;
    let mut series = vec![];
    while series.last().is_none_or(|last| *last < MAX_DELAY) {
        series.push(Duration::from_millis(millis));
        millis = (millis * 11 / 10).max(millis + 1);
    }
    series
});

/// The delay whose queue a message waits in: the shortest of `named` and the series that is not below `delay`.
fn choose_delay(delay: Duration, named: &[Duration]) -> Duration {
    let enough = |d: &Duration| *d >= delay;
    let series = SERIES[SERIES.partition_point(|d| !enough(d)).min(SERIES.len() - 1)];
    named.iter().copied().map(whole_millis).filter(enough).fold(series, Duration::min)
}

/// The delay, rounded up to milliseconds, which is the unit of a queue's time to live.
fn whole_millis(delay: Duration) -> Duration {
    Duration::from_millis(u64::try_from(delay.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)).min(MAX_DELAY)
}

/// The delays for which `declare` makes queues: every retry delay of the topology, and all that [`choose_delay`] makes
/// of it with the jitter that core adds, which is a tenth at most.
pub(crate) fn delays_for_retries(named: &[Duration]) -> BTreeSet<Duration> {
    let mut all = BTreeSet::new();
    for delay in named.iter().copied().map(whole_millis).filter(|d| !d.is_zero()) {
        let longest = choose_delay(delay.mul_f64(1.1).min(MAX_DELAY), named);
        let between = SERIES.iter().copied().filter(|d| (delay..longest).contains(d));
        all.extend(between.chain([delay, longest]));
    }
    all
}

/// Where messages are published to, by its name at the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PublishTarget {
    /// A queue, reached by the default exchange.
    Queue(ShortString),
    /// The headers exchange of an ordered queue, which chooses the partition by the slot.
    Slots(ShortString),
    /// The exchange of a topic. The routing key is the event type and must survive a delay.
    Topic(ShortString),
}

impl PublishTarget {
    fn name(&self) -> &str {
        match self {
            Self::Queue(name) | Self::Slots(name) | Self::Topic(name) => name.as_str(),
        }
    }
}

/// A delay queue: its target, and how long a message waits in it.
#[derive(Clone, Debug)]
pub(crate) struct DelayQueue {
    pub(crate) target: PublishTarget,
    pub(crate) delay: Duration,
}

impl DelayQueue {
    /// The queue for a delay, which is `Unsupported` above [`MAX_DELAY`].
    pub(crate) fn choose(target: PublishTarget, delay: Duration, named: &[Duration]) -> Result<Self> {
        if delay > MAX_DELAY {
            let text = "RabbitMQ delays messages by 45 days at most";
            return Err(error::new(ErrorKind::Unsupported, "publish", text));
        }
        Ok(Self { target, delay: choose_delay(delay, named) })
    }

    fn name(&self) -> String {
        names::delay_queue(self.target.name(), self.delay)
    }

    /// The exchange and routing key that lead into the queue. The delay queue of a topic stands behind an exchange of
    /// its own name, so that the message keeps its routing key.
    pub(crate) fn route(&self, routing_key: &ShortString) -> Result<(ShortString, ShortString)> {
        let name = short(&self.name())?;
        Ok(match self.target {
            PublishTarget::Topic(_) => (name, routing_key.clone()),
            PublishTarget::Queue(_) | PublishTarget::Slots(_) => (ShortString::default(), name),
        })
    }

    fn arguments(&self) -> FieldTable {
        let mut table = FieldTable::default();
        put_text(&mut table, "x-queue-type", "quorum");
        // Only `at-least-once` keeps a message until its target has confirmed it, and it needs `reject-publish`.
        put_text(&mut table, "x-dead-letter-strategy", "at-least-once");
        put_text(&mut table, "x-overflow", "reject-publish");
        match &self.target {
            PublishTarget::Queue(name) => {
                put_text(&mut table, "x-dead-letter-exchange", "");
                put_text(&mut table, "x-dead-letter-routing-key", name.as_str());
            }
            PublishTarget::Slots(name) | PublishTarget::Topic(name) => {
                put_text(&mut table, "x-dead-letter-exchange", name.as_str());
            }
        }
        let millis = i64::try_from(self.delay.as_millis()).unwrap_or(i64::MAX);
        table.insert("x-message-ttl".into(), AMQPValue::LongLongInt(millis));
        table
    }
}

/// The names of all delay queues that a target can have.
pub(crate) fn all_names(target: &str, named: &[Duration]) -> Vec<String> {
    let named = named.iter().copied().map(whole_millis);
    SERIES.iter().copied().chain(named).map(|d| names::delay_queue(target, d)).collect()
}

/// Makes delay queues, and remembers those that this driver knows to exist.
pub(crate) struct KnownDelayQueues {
    connections: Arc<DriverConnections>,
    known: Mutex<HashSet<String>>,
    /// Held while a queue is made, so that concurrent publishes make each queue once.
    making: tokio::sync::Mutex<()>,
}

impl KnownDelayQueues {
    pub(crate) fn new(connections: Arc<DriverConnections>) -> Self {
        Self { connections, known: Mutex::default(), making: tokio::sync::Mutex::default() }
    }

    /// Makes the queue unless this driver knows it already. A missing target is `NotFound`: messages would never leave
    /// the queue.
    pub(crate) async fn ensure(&self, queue: &DelayQueue) -> Result<()> {
        let name = queue.name();
        if self.known.lock().contains(&name) {
            return Ok(());
        }
        let _making = self.making.lock().await;
        // Another caller may have made it while this one waited for the lock.
        if self.known.lock().contains(&name) {
            return Ok(());
        }
        let mut probe = ProbeChannel::new(&self.connections);
        let target = queue.target.name();
        let exists = match queue.target {
            PublishTarget::Queue(_) => probe.find_queue(target).await?.is_some(),
            PublishTarget::Slots(_) | PublishTarget::Topic(_) => probe.find_exchange(target).await?,
        };
        if !exists {
            return Err(error::new(ErrorKind::NotFound, "publish", format!("{target:?} does not exist")));
        }
        self.make(&mut probe, queue).await?;
        probe.close().await;
        Ok(())
    }

    /// Makes the queue without a look at its target, which the caller knows to exist.
    pub(crate) async fn make(&self, probe: &mut ProbeChannel<'_>, queue: &DelayQueue) -> Result<()> {
        let name = queue.name();
        probe.declare_queue(&name, queue.arguments()).await?;
        if let PublishTarget::Topic(_) = queue.target {
            probe.declare_exchange(&name, ExchangeKind::Topic, FieldTable::default()).await?;
            probe.bind(&[plain_binding(&name, &name, "#")]).await?;
        }
        self.known.lock().insert(name);
        Ok(())
    }

    /// Forgets a queue that turned out to be missing, so that `ensure` makes it again.
    pub(crate) fn forget(&self, queue: &DelayQueue) {
        self.known.lock().remove(&queue.name());
    }

    /// Forgets queues that were deleted.
    pub(crate) fn forget_all(&self, names: &[String]) {
        let mut known = self.known.lock();
        for name in names {
            known.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_never_cut_short_and_late_by_a_tenth_at_most() {
        assert!(SERIES.len() < 220 && SERIES.last().is_some_and(|d| d.as_millis() < u128::from(u32::MAX)));
        let mut millis = 10;
        while Duration::from_millis(millis) <= MAX_DELAY {
            let delay = Duration::from_millis(millis) + Duration::from_micros(300);
            let chosen = choose_delay(delay.min(MAX_DELAY), &[]);
            assert!(
                chosen >= delay.min(MAX_DELAY) && chosen <= delay.mul_f64(1.1) + Duration::from_millis(1),
                "{delay:?}"
            );
            millis = millis * 23 / 20 + 1;
        }
        assert_eq!(choose_delay(Duration::ZERO, &[]), Duration::from_millis(10));
    }

    #[test]
    fn jittered_delays_share_a_bounded_number_of_queues() {
        let jittered = (0..1_000).map(|i| choose_delay(Duration::from_micros(1_000_000 + i * 1_000), &[]));
        let queues: BTreeSet<Duration> = jittered.collect();
        assert!(queues.len() <= 9, "1 s to 2 s in steps of a tenth took {} queues", queues.len());
        let days = (1..=45 * 24).map(|hours| choose_delay(Duration::from_secs(hours * 3600), &[]));
        let queues: BTreeSet<Duration> = days.collect();
        assert!(queues.len() <= 76, "an hour to 45 days took {} queues", queues.len());
    }

    #[test]
    fn what_declare_makes_covers_every_jittered_retry() {
        let named = [Duration::from_micros(1_500), Duration::from_secs(1), Duration::from_secs(300)];
        let made = delays_for_retries(&named);
        assert!(made.len() <= 3 * named.len(), "{made:?}");
        for delay in named {
            for thousandth in 0..=100 {
                let jittered = delay.mul_f64(1.0 + f64::from(thousandth) / 1_000.0);
                assert!(made.contains(&choose_delay(jittered, &named)), "{jittered:?} is not in {made:?}");
            }
        }
        assert!(delays_for_retries(&[MAX_DELAY]).iter().all(|d| *d <= MAX_DELAY.mul_f64(1.1)));
        assert!(delays_for_retries(&[Duration::ZERO]).is_empty());
    }

    #[test]
    fn named_delays_are_exact() {
        let named = [1, 5, 30].map(Duration::from_secs);
        for delay in named {
            assert_eq!(choose_delay(delay, &named), delay);
        }
        assert_eq!(choose_delay(Duration::from_millis(4_990), &named), Duration::from_secs(5));
        assert!(choose_delay(Duration::from_secs(20), &named) < Duration::from_secs(23));
    }
}
