//! Locks, lifetimes and delays that fit the speed of this machine.

use std::time::Duration;

use polybus_core::{Bus, QueueSpec, Subscription, Topology};
use time::OffsetDateTime;

use crate::{CallCounter, Cx, During, Fixture, Outcome};

/// The age of a queue before its broker is killed. RabbitMQ 3.10.8, killed within 200 ms of declaring a quorum queue,
/// was seen to leave it without a leader for good, and on a busy machine to forget queues of two seconds. The promise
/// for confirmed messages is not about that moment.
pub(crate) const SETTLED_QUEUE_AGE: Duration = Duration::from_secs(5);

/// A queue with a short lock, and that lock.
pub(crate) async fn short_locked(cx: &Cx, calls: &CallCounter) -> Outcome<(Fixture, Duration)> {
    let lock = short_lock(cx);
    let topology = Topology::new().queue("q", QueueSpec::new().lock(lock));
    Ok((Fixture::queue(cx.setup(topology).counting(calls).open().await?), lock))
}

/// A consumer that does not renew its locks.
pub(crate) async fn not_renewing(q: &Fixture, prefetch: usize) -> Outcome<Subscription> {
    let sub = q.bus.subscribe(q.source.clone()).prefetch(prefetch).renew_locks(false).open().await;
    sub.during("subscribe without renewal")
}

/// The lock to ask for where one is meant to be renewed or to run out. It is the same all through a scenario.
pub(crate) fn short_lock(cx: &Cx) -> Duration {
    cx.short_lock()
}

/// A lock of at most 10 s, for scenarios that wait for the end of many, and that a late renewal does not fail.
pub(crate) fn shorter_lock(cx: &Cx) -> Duration {
    let least = cx.capabilities().lock_range.map_or(Duration::ZERO, |(least, _)| least);
    short_lock(cx).min(Duration::from_secs(10)).max(least)
}

/// A lock so long that on a slow machine too a message that comes at its end is not taken for one that comes at once.
pub(crate) fn long_lock(cx: &Cx) -> Duration {
    let (least, most) = cx.capabilities().lock_range.unwrap_or((Duration::ZERO, Duration::MAX));
    Duration::from_secs(60).max(least).min(most)
}

/// The time to live of a message that must be published, or seen, before it expires: longer on a slow machine.
pub(crate) fn lifetime(cx: &Cx, usual: Duration) -> Duration {
    if cx.time_is_free() { usual } else { cx.lateness(usual.max(Duration::from_secs(8))) }
}

/// Waits until half a second after this time, by the clock of this bus.
pub(crate) async fn wait_past(bus: &Bus, time: OffsetDateTime) {
    while bus.now() <= time + Duration::from_millis(500) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A retry delay long enough to receive and ack some messages meanwhile. On the paused clock it is one second.
pub(crate) fn roomy_delay(cx: &Cx) -> Duration {
    let delay = cx.lateness(Duration::from_secs(5)).as_secs() + 1;
    Duration::from_secs(if cx.time_is_free() { 1 } else { delay })
}
