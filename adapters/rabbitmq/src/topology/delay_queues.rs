//! Delay rungs: queues whose messages wait for one fixed time and then go back to their target.
//!
//! One rung per target and delay, so that a short delay is not held up behind a long one. They never expire (that deletes
//! messages), so their number must be bounded: the delays the topology names, and a geometric series.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lapin::{
    ExchangeKind,
    types::{AMQPValue, FieldTable, ShortString},
};
use polybus_core::{ErrorKind, Result};

use crate::{
    error,
    topology::{
        channel_operations::{Binding, Scratch, short},
        names,
    },
    transport::connection::Links,
};

/// The longest delay. AMQP's longest time to live is 49.7 days.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(45 * 24 * 3600);

/// From 10 ms to above [`MAX_DELAY`], each at most a tenth more than the one before.
static SERIES: LazyLock<Vec<Duration>> = LazyLock::new(|| {
    let mut millis: u64 = 10;
    let mut series = vec![];
    while series.last().is_none_or(|last| *last < MAX_DELAY) {
        series.push(Duration::from_millis(millis));
        millis = (millis * 11 / 10).max(millis + 1);
    }
    series
});

/// The rung for a delay: the shortest that is not shorter.
pub(crate) fn pick(delay: Duration, named: &[Duration]) -> Duration {
    let enough = |d: &Duration| *d >= delay;
    let series = SERIES[SERIES.partition_point(|d| !enough(d)).min(SERIES.len() - 1)];
    named.iter().copied().map(whole_millis).filter(enough).fold(series, Duration::min)
}

fn whole_millis(delay: Duration) -> Duration {
    Duration::from_millis(u64::try_from(delay.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)).min(MAX_DELAY)
}

/// The rungs that a source's named delays lead to: those delays, and what a tenth of jitter makes of them.
pub(crate) fn of_retries(named: &[Duration]) -> BTreeSet<Duration> {
    let mut all = BTreeSet::new();
    for delay in named.iter().copied().map(whole_millis).filter(|d| !d.is_zero()) {
        let longest = pick(delay.mul_f64(1.1).min(MAX_DELAY), named);
        let between = SERIES.iter().copied().filter(|d| (delay..longest).contains(d));
        all.extend(between.chain([delay, longest]));
    }
    all
}

/// Where delayed messages go in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Queue(String),
    /// A headers exchange: an ordered queue.
    Slots(String),
    /// A topic exchange: the routing key must survive.
    Topic(String),
}

impl Target {
    fn name(&self) -> &str {
        match self {
            Self::Queue(name) | Self::Slots(name) | Self::Topic(name) => name,
        }
    }
}

/// The rungs that this driver knows to exist.
pub(crate) struct Rungs {
    links: Arc<Links>,
    known: Mutex<HashSet<String>>,
    making: tokio::sync::Mutex<()>,
}

impl Rungs {
    pub(crate) fn new(links: Arc<Links>) -> Self {
        Self { links, known: Mutex::default(), making: tokio::sync::Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, HashSet<String>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Exchange and routing key that lead into a rung.
    pub(crate) fn route(
        target: &Target,
        delay: Duration,
        routing_key: &ShortString,
    ) -> Result<(ShortString, ShortString)> {
        let rung = short(&names::rung(target.name(), delay))?;
        Ok(match target {
            Target::Topic(_) => (rung, routing_key.clone()),
            Target::Queue(_) | Target::Slots(_) => (ShortString::default(), rung),
        })
    }

    /// Makes the rung if this driver has not seen it yet. `NotFound` if the target is missing: messages would be stuck.
    pub(crate) async fn ensure(&self, target: &Target, delay: Duration) -> Result<()> {
        let rung = names::rung(target.name(), delay);
        if self.known().contains(&rung) {
            return Ok(());
        }
        let _one = self.making.lock().await;
        if self.known().contains(&rung) {
            return Ok(());
        }
        let mut scratch = Scratch::new(&self.links);
        let exists = match target {
            Target::Queue(name) => scratch.find_queue(name).await?.is_some(),
            Target::Slots(name) | Target::Topic(name) => scratch.find_exchange(name).await?,
        };
        if !exists {
            let text = format!("{:?} does not exist", target.name());
            return Err(error::new(ErrorKind::NotFound, "publish", text));
        }
        self.make(&mut scratch, target, delay).await?;
        scratch.finish().await;
        Ok(())
    }

    /// Makes a rung of a target that exists.
    pub(crate) async fn make(&self, scratch: &mut Scratch<'_>, target: &Target, delay: Duration) -> Result<()> {
        let rung = names::rung(target.name(), delay);
        scratch.declare_queue(&rung, arguments(target, delay)).await?;
        if let Target::Topic(_) = target {
            scratch.declare_exchange(&rung, ExchangeKind::Topic, FieldTable::default()).await?;
            let (from, to, key) = (rung.clone(), rung.clone(), "#".to_owned());
            scratch.bind(&[Binding { from, to, to_exchange: false, key, arguments: FieldTable::default() }]).await?;
        }
        self.known().insert(rung);
        Ok(())
    }

    /// Makes `ensure` look again: the rung turned out to be missing.
    pub(crate) fn forget(&self, target: &Target, delay: Duration) {
        self.known().remove(&names::rung(target.name(), delay));
    }

    /// All rungs that a target can have.
    pub(crate) fn all(target: &str, named: &[Duration]) -> Vec<String> {
        let named = named.iter().copied().map(whole_millis);
        SERIES.iter().copied().chain(named).map(|d| names::rung(target, d)).collect()
    }

    /// They were deleted.
    pub(crate) fn forget_all(&self, rungs: &[String]) {
        let mut known = self.known();
        for rung in rungs {
            known.remove(rung);
        }
    }
}

fn arguments(target: &Target, delay: Duration) -> FieldTable {
    let mut table = FieldTable::default();
    let mut text = |key: &str, value: &str| {
        table.insert(key.into(), AMQPValue::LongString(value.into()));
    };
    text("x-queue-type", "quorum");
    // Only at-least-once keeps a message until its target has confirmed it, and it needs reject-publish.
    text("x-dead-letter-strategy", "at-least-once");
    text("x-overflow", "reject-publish");
    match target {
        Target::Queue(name) => {
            text("x-dead-letter-exchange", "");
            text("x-dead-letter-routing-key", name);
        }
        Target::Slots(name) | Target::Topic(name) => text("x-dead-letter-exchange", name),
    }
    let millis = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
    table.insert("x-message-ttl".into(), AMQPValue::LongLongInt(millis));
    table
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
            let rung = pick(delay.min(MAX_DELAY), &[]);
            assert!(rung >= delay.min(MAX_DELAY) && rung <= delay.mul_f64(1.1) + Duration::from_millis(1), "{delay:?}");
            millis = millis * 23 / 20 + 1;
        }
        assert_eq!(pick(Duration::ZERO, &[]), Duration::from_millis(10));
    }

    #[test]
    fn jittered_delays_share_a_bounded_number_of_queues() {
        let jittered = (0..1_000).map(|i| pick(Duration::from_micros(1_000_000 + i * 1_000), &[]));
        let rungs: std::collections::BTreeSet<Duration> = jittered.collect();
        assert!(rungs.len() <= 9, "1 s to 2 s in steps of a tenth took {} queues", rungs.len());
        let days = (1..=45 * 24).map(|hours| pick(Duration::from_secs(hours * 3600), &[]));
        let rungs: std::collections::BTreeSet<Duration> = days.collect();
        assert!(rungs.len() <= 76, "an hour to 45 days took {} queues", rungs.len());
    }

    #[test]
    fn what_declare_makes_covers_every_jittered_retry() {
        let named = [Duration::from_micros(1_500), Duration::from_secs(1), Duration::from_secs(300)];
        let made = of_retries(&named);
        assert!(made.len() <= 3 * named.len(), "{made:?}");
        for delay in named {
            for thousandth in 0..=100 {
                let jittered = delay.mul_f64(1.0 + f64::from(thousandth) / 1_000.0);
                assert!(made.contains(&pick(jittered, &named)), "{jittered:?} is not in {made:?}");
            }
        }
        assert!(of_retries(&[MAX_DELAY]).iter().all(|d| *d <= MAX_DELAY.mul_f64(1.1)));
        assert!(of_retries(&[Duration::ZERO]).is_empty());
    }

    #[test]
    fn named_delays_are_exact() {
        let named = [1, 5, 30].map(Duration::from_secs);
        for delay in named {
            assert_eq!(pick(delay, &named), delay);
        }
        assert_eq!(pick(Duration::from_millis(4_990), &named), Duration::from_secs(5));
        assert!(pick(Duration::from_secs(20), &named) < Duration::from_secs(23));
    }
}
