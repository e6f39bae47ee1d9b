//! What a broker can do. What is not declared here is refused with `Unsupported` before any I/O.

use std::time::Duration;

/// What a driver can do. `Default` is a driver that can publish to queues, receive, ack and release, and nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Topics and subscriptions.
    pub topics: bool,
    /// Ordering per key.
    pub ordered: Option<KeyOrder>,
    /// An `ack` that answers Ok is known to the broker: the message will not come back.
    pub confirmed_settlement: bool,
    /// A delivery is held under a lock that runs out and can be renewed; `extend` works.
    pub locks: bool,
    /// Shortest and longest lock the broker takes, where it limits them.
    pub lock_range: Option<(Duration, Duration)>,
    /// Dead letters, and settling into them.
    pub dead_letters: bool,
    /// Moving dead letters back to their source.
    pub redrive: bool,
    /// Longest `retry_after`; `None` if there is none at all.
    pub max_retry_delay: Option<Duration>,
    /// Longest publish delay on a queue; `None` if there is none at all.
    pub max_queue_delay: Option<Duration>,
    /// Longest publish delay on a topic; `None` if there is none at all.
    pub max_topic_delay: Option<Duration>,
    /// Largest encoded message in bytes, as far as the driver knows it.
    pub max_queue_payload: Option<usize>,
    /// The same on topics.
    pub max_topic_payload: Option<usize>,
    /// `attempt` is never too low on unordered sources, even after a consumer was killed.
    pub attempts_across_crash: bool,
    /// A message counts as delivered once it reaches this client, even if it is given back unhandled. A worker then fetches no more than
    /// its handlers are free for.
    pub receive_counts: bool,
    /// On ordered sources: a dead letter that a consumer holds hides the later ones of its key, so `Settlement::SetAside` works.
    pub kept_letters_block: bool,
    /// `Driver::stats` answers.
    pub stats: bool,
    /// `Driver::purge` answers.
    pub purge: bool,
    /// `Driver::declare` and `Driver::delete` work.
    pub declare: bool,
}

/// How a broker keeps order per key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyOrder {
    /// Who keeps a key's next message back while one is unsettled, and who holds a retried one in place.
    pub hold: KeyHolder,
    /// Whether the attempt of a message retried in place survives this consumer.
    pub attempts: AttemptDurability,
    /// Whether further consumers share the work; otherwise they are standby.
    pub scale_out: bool,
}

impl KeyOrder {
    /// All three answers.
    pub fn new(hold: KeyHolder, attempts: AttemptDurability, scale_out: bool) -> Self {
        Self { hold, attempts, scale_out }
    }
}

/// Who holds a key back on an ordered source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyHolder {
    /// The broker hands out one message of a key at a time, and takes `Release` and `RetryAfter` in place.
    Broker,
    /// The broker hands out a key's messages in order but without waiting: core queues them per key in the client, and
    /// holds a released or retried one there. The driver never sees `Release` or `RetryAfter` on such a source.
    Client,
}

/// Whether something survives the end of the consumer that knew it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttemptDurability {
    /// The broker keeps it.
    Durable,
    /// It ends with the consumer.
    Volatile,
}
