//! What a broker can do. Core refuses what is not declared here with `Unsupported`, before any I/O.

use std::time::Duration;

/// What a driver can do. By default it can publish to queues, receive, ack and release, and nothing else.
///
/// ```
/// use polybus_core::driver::{AttemptDurability, Capabilities, KeyHolder, KeyOrder};
///
/// let mut capabilities = Capabilities::default();
/// capabilities.dead_letters = true;
/// capabilities.ordered = Some(KeyOrder::new(KeyHolder::Broker, AttemptDurability::Durable, true));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// There are topics and subscriptions.
    pub topics: bool,
    /// How order per key is kept; `None` if there are no ordered queues and topics.
    pub ordered: Option<KeyOrder>,
    /// An `ack` that answers Ok is known to the broker, so the message will not come back.
    pub confirmed_settlement: bool,
    /// A delivery is held under a lock that runs out and can be renewed: [`Settler::extend`](super::Settler::extend)
    /// works.
    pub locks: bool,
    /// Shortest and longest lock that the broker takes, where it limits them.
    pub lock_range: Option<(Duration, Duration)>,
    /// There are dead letters, and [`Settlement::DeadLetter`](super::Settlement::DeadLetter) works.
    pub dead_letters: bool,
    /// Dead letters can be moved back to their source: [`Settlement::Redrive`](super::Settlement::Redrive) works.
    pub redrive: bool,
    /// Longest `retry_after`; `None` if there is none at all.
    pub max_retry_delay: Option<Duration>,
    /// Longest publish delay on a queue; `None` if there is none at all.
    pub max_queue_delay: Option<Duration>,
    /// Longest publish delay on a topic; `None` if there is none at all.
    pub max_topic_delay: Option<Duration>,
    /// Largest encoded message on a queue in bytes, as far as the driver knows it.
    pub max_queue_payload: Option<usize>,
    /// Largest encoded message on a topic in bytes, as far as the driver knows it.
    pub max_topic_payload: Option<usize>,
    /// [`ReceivedMessage::attempt`](super::ReceivedMessage::attempt) is never too low on unordered sources, even after
    /// a consumer was killed.
    pub attempts_across_crash: bool,
    /// A message counts as delivered once it reaches this client, even if it is given back without a handler. A worker
    /// then fetches no more messages than it has free handlers.
    pub receive_counts: bool,
    /// On ordered sources a dead letter that a consumer holds hides the later ones of its key. Then
    /// [`Settlement::SetAside`](super::Settlement::SetAside) works.
    pub kept_letters_block: bool,
    /// [`Driver::stats`](super::Driver::stats) works.
    pub stats: bool,
    /// [`Driver::purge`](super::Driver::purge) works.
    pub purge: bool,
    /// [`Driver::declare`](super::Driver::declare) and [`Driver::delete`](super::Driver::delete) work.
    pub declare: bool,
}

impl Capabilities {
    /// The default, changed by `change`, since the struct gains fields.
    ///
    /// ```
    /// use polybus_core::driver::Capabilities;
    ///
    /// let can = Capabilities::build(|can| (can.locks, can.stats) = (true, true));
    /// assert!(can.locks && can.stats && !can.topics);
    /// ```
    pub fn build(change: impl FnOnce(&mut Self)) -> Self {
        let mut can = Self::default();
        change(&mut can);
        can
    }
}

/// How a broker keeps order per key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyOrder {
    /// Who keeps a key's next message back while one is unsettled, and who holds a message in place that is retried.
    pub hold: KeyHolder,
    /// Whether the attempts of a message that is retried in place survive the consumer.
    pub attempts: AttemptDurability,
    /// Whether further consumers share the work. Otherwise they only wait for this one to end.
    pub scale_out: bool,
}

impl KeyOrder {
    /// The three answers in one.
    ///
    /// ```
    /// use polybus_core::driver::{AttemptDurability, KeyHolder, KeyOrder};
    ///
    /// let order = KeyOrder::new(KeyHolder::Client, AttemptDurability::Volatile, false);
    /// assert!(!order.scale_out);
    /// ```
    pub fn new(hold: KeyHolder, attempts: AttemptDurability, scale_out: bool) -> Self {
        Self { hold, attempts, scale_out }
    }
}

/// Who holds a key back on an ordered source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyHolder {
    /// The broker hands out one message of a key at a time, and carries out `Release` and `RetryAfter` in place.
    Broker,
    /// The broker hands out a key's messages in order without waiting for settlements. Core queues them by key in the
    /// client, and holds a message there that is released or retried. The driver never sees `Release` or `RetryAfter`
    /// on such a source.
    Client,
}

/// Whether attempts survive the end of the consumer that counted them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttemptDurability {
    /// The broker keeps them.
    Durable,
    /// They end with the consumer.
    Volatile,
}
