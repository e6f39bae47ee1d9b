//! Sequence numbers: messages that are missing, that come late, or whose counter went back are found at the consumer.
//!
//! An [`Outbox`](crate::Outbox) that is [`sequenced`](crate::Outbox::sequenced) numbers the messages of each key, 1, 2,
//! 3 and so on, in the transaction that writes them. At the consumer a [`SequenceGuard`] follows the numbers in the
//! transaction of the [`Inbox`](crate::Inbox): what one number lower than the next says is known, whatever the broker
//! did.
//!
//! ```text
//! 4 5 6 ── in order                4 5 7 ── a gap: hold 7 for a while; then pass it, or dead-letter it
//! 4 5 7 6 ── 6 is late             4 5 1 2 ── the producer began anew
//! 4 5 6 5' ── another message with a number that came before: its counter went back, after a restore for instance
//! ```
//!
//! Nothing is acknowledged unseen: a copy is the inbox' to tell, by its mark, and no number makes one.
//!
//! `progress.rs` has the rules, `guard.rs` keeps them in a transaction, `holds.rs` has the messages that wait, and
//! `numbers.rs` draws the numbers.

mod guard;
mod holds;
mod numbers;
mod progress;

use std::{fmt, sync::Arc, time::Duration};

use polybus_core::Envelope;

pub(crate) use self::{
    guard::{Guard, GuardStep, Numbered, guard_key},
    numbers::Numbers,
    progress::Progress,
};

/// For how long a key is remembered after its last message.
pub const PROGRESS_RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);

/// The same where each key is [expected](SequenceGuard::expect_first) to begin with 1: longer than producers remember a
/// key, since one that comes again with a higher number would lack all before.
pub const EXPECTED_RETENTION: Duration = Duration::from_secs(90 * 24 * 3600);

/// For how long a producer remembers the number of a key's last message. Longer than consumers remember the key by
/// default, so that one that begins anew is not taken for one that went back.
pub const NUMBERS_RETENTION: Duration = Duration::from_secs(60 * 24 * 3600);

/// The reason of dead letters that came while messages before them were missing.
pub const GAP_REASON: &str = "sequence-gap";

/// The reason of dead letters that came after messages behind them.
pub const LATE_REASON: &str = "sequence-late";

/// What becomes of a message that is out of order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SequencePolicy {
    /// It is told, and handled.
    #[default]
    Pass,
    /// It is told, and becomes a dead letter.
    DeadLetter,
}

/// Follows the numbers of each key: see [`Inbox::sequence_guard`](crate::Inbox::sequence_guard).
///
/// Messages without a key or without a number pass unguarded. The first one that comes of a key is where its numbers
/// begin, unless it is told to [expect the first](Self::expect_first). Handlers of one key run one after the other.
///
/// What it finds is told in the log, in the metric `polybus_sequence_findings_total{consumer, finding}`, and to
/// [`on_finding`](Self::on_finding). A run of missing numbers is told once. [`OpenInbox::gaps`] has what is missing
/// now.
///
/// [`OpenInbox::gaps`]: crate::inbox::OpenInbox::gaps
///
/// ```no_run
/// # use std::time::Duration;
/// # use polybus_core::{Bus, Result, Source};
/// # use polybus_patterns::{Inbox, SequenceGuard, sequence::SequencePolicy, store::{InboxStore, SequenceStore}};
/// # async fn example<S: InboxStore + SequenceStore>(bus: Bus, db: S) -> Result<()> {
/// let guard = SequenceGuard::new()
///     .hold(Duration::from_secs(5), 32) // a message waits for those before it
///     .on_gap(SequencePolicy::Pass) // then it is handled all the same
///     .on_finding(|found| println!("{}: {:?}", found.key, found.finding));
/// let inbox = Inbox::new(&db, "billing").sequence_guard(guard);
/// bus.worker(Source::queue("orders")).run(inbox.handler((), async |(), tx, _cx, _msg| Ok(tx))).await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct SequenceGuard {
    hold: Option<Hold>,
    expect_first: bool,
    on_gap: SequencePolicy,
    on_late: SequencePolicy,
    retention: Option<Duration>,
    on_finding: Option<Arc<FindingFn>>,
}

type FindingFn = dyn Fn(&SequenceFound<'_>) + Send + Sync;

/// How often a message may wait for the time of its hold: where it ends, those before it go first.
const MOST_HOLDS: u32 = 2;

/// How a message waits for those before it.
#[derive(Clone, Copy, Debug)]
struct Hold {
    up_to: Duration,
    per_key: usize,
}

impl Default for SequenceGuard {
    fn default() -> Self {
        Self {
            hold: None,
            expect_first: false,
            on_gap: SequencePolicy::Pass,
            on_late: SequencePolicy::Pass,
            retention: None,
            on_finding: None,
        }
    }
}

impl SequenceGuard {
    /// A guard that tells what it finds, and passes everything.
    ///
    /// ```
    /// let guard = polybus_patterns::SequenceGuard::new();
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets a message wait for those before it, without a transaction, for at most `up_to`; then comes the policy of
    /// [`on_gap`](Self::on_gap). Default: it does not wait.
    ///
    /// Where one has waited in vain, those of its key that also wait and have lower numbers go first; so it may wait
    /// twice as long. At most `per_key` messages of one key wait, and at most half of a worker's places are taken by
    /// those that do; what comes above that does not wait. A worker refuses to start with it on an ordered source,
    /// where the one that is missing cannot come any more, and with a concurrency of 1, where there is no place for it
    /// to come to.
    ///
    /// ```
    /// # use std::time::Duration;
    /// let guard = polybus_patterns::SequenceGuard::new().hold(Duration::from_secs(5), 32);
    /// ```
    pub fn hold(mut self, up_to: Duration, per_key: usize) -> Self {
        self.hold = Some(Hold { up_to, per_key });
        self
    }

    /// Expects each key to begin with 1: what comes before the first message of a key is missing. Use it where the
    /// consumer is as old as its producers. Default: a key begins with whatever comes first, since a consumer that is
    /// newer than the key cannot know better, and then the loss of a key's first message is not seen.
    ///
    /// The [retention](Self::retention) is 90 days then, if not set otherwise: a key that comes again after it, with a
    /// number above 1, is told as missing all before. So is each key that is older than the guard.
    ///
    /// ```
    /// let guard = polybus_patterns::SequenceGuard::new().expect_first();
    /// ```
    pub fn expect_first(mut self) -> Self {
        self.expect_first = true;
        self
    }

    /// Sets what becomes of a message while others before it are missing. Default: it passes, and the key goes on from
    /// there.
    ///
    /// With [`SequencePolicy::DeadLetter`] the key stops: all its messages become dead letters with the reason
    /// [`GAP_REASON`], until those that are missing have come, or [`OpenInbox::skip`] says that they never will. That
    /// is told once. Redrive the dead letters then, with a [`hold`](Self::hold) or a concurrency of 1, so that they
    /// come in their order.
    ///
    /// On a source that is not ordered, a message that is tried again later counts as missing until then: let the hold
    /// outlast the retries. Switch it on when all processes of the consumer have the guard.
    ///
    /// [`OpenInbox::skip`]: crate::inbox::OpenInbox::skip
    ///
    /// ```
    /// use polybus_patterns::{SequenceGuard, sequence::SequencePolicy};
    ///
    /// let guard = SequenceGuard::new().on_gap(SequencePolicy::DeadLetter);
    /// ```
    pub fn on_gap(mut self, policy: SequencePolicy) -> Self {
        self.on_gap = policy;
        self
    }

    /// Sets what becomes of a message that comes after others behind it, or whose number came before. Default: it
    /// passes. With [`SequencePolicy::DeadLetter`] the reason is [`LATE_REASON`]. Such a letter is late again when it
    /// is redriven: handle it by a worker that lets it pass.
    ///
    /// ```
    /// use polybus_patterns::{SequenceGuard, sequence::SequencePolicy};
    ///
    /// let guard = SequenceGuard::new().on_late(SequencePolicy::DeadLetter);
    /// ```
    pub fn on_late(mut self, policy: SequencePolicy) -> Self {
        self.on_late = policy;
        self
    }

    /// Sets for how long a key is remembered after its last message. Default: 30 days. After that its numbers begin
    /// with whatever comes, unless the guard [expects the first](Self::expect_first).
    ///
    /// ```
    /// # use std::time::Duration;
    /// let guard = polybus_patterns::SequenceGuard::new().retention(Duration::from_secs(7 * 24 * 3600));
    /// ```
    pub fn retention(mut self, window: Duration) -> Self {
        self.retention = Some(window);
        self
    }

    /// Sets what is called with each finding, once the transaction is committed that it was found in. It must not
    /// block.
    ///
    /// ```
    /// let guard = polybus_patterns::SequenceGuard::new()
    ///     .on_finding(|found| eprintln!("{} of {}: {:?}", found.key, found.source, found.finding));
    /// ```
    pub fn on_finding(mut self, call: impl Fn(&SequenceFound<'_>) + Send + Sync + 'static) -> Self {
        self.on_finding = Some(Arc::new(call));
        self
    }

    /// The consumer's setting, for the checks at a worker's start.
    pub(crate) fn holds(&self) -> bool {
        self.hold.is_some()
    }

    /// For how long a message may wait.
    pub(crate) fn longest_hold(&self) -> Duration {
        self.hold.map_or(Duration::ZERO, |hold| hold.up_to.saturating_mul(MOST_HOLDS))
    }

    pub(crate) fn remembers_for(&self) -> Duration {
        let default = if self.expect_first { EXPECTED_RETENTION } else { PROGRESS_RETENTION };
        self.retention.unwrap_or(default)
    }
}

impl fmt::Debug for SequenceGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut guard = f.debug_struct("SequenceGuard");
        guard.field("hold", &self.hold).field("expect_first", &self.expect_first);
        guard.field("on_gap", &self.on_gap).field("on_late", &self.on_late);
        guard.field("retention", &self.retention).finish_non_exhaustive()
    }
}

/// What the numbers of a key say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SequenceFinding {
    /// These numbers have not come, and one above them has.
    Gap {
        /// The lowest of them.
        first: u64,
        /// The highest of them.
        last: u64,
    },
    /// The number was missing, and has come now.
    Late {
        /// The number.
        number: u64,
    },
    /// The number came before with another message. The producer's counter may have gone back, as after a restore of
    /// its database, or this is a copy that is older than the inbox' retention.
    Repeated {
        /// The number.
        number: u64,
    },
    /// A second number in a row came before with another message: the producer's counter went back. From here on its
    /// numbers are followed again.
    Restarted {
        /// The number that came.
        number: u64,
        /// The number that would have come next.
        expected: u64,
    },
    /// The inbox knew the message: a copy. It was not handled.
    Copy {
        /// The number.
        number: u64,
    },
}

impl SequenceFinding {
    /// The finding's name in metrics: `gap`, `late`, `repeated`, `restarted`, `copy`.
    ///
    /// ```
    /// assert_eq!(polybus_patterns::sequence::SequenceFinding::Late { number: 7 }.name(), "late");
    /// ```
    pub fn name(&self) -> &'static str {
        match self {
            Self::Gap { .. } => "gap",
            Self::Late { .. } => "late",
            Self::Repeated { .. } => "repeated",
            Self::Restarted { .. } => "restarted",
            Self::Copy { .. } => "copy",
        }
    }
}

/// A finding, and of what.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SequenceFound<'a> {
    /// The inbox' consumer.
    pub consumer: &'a str,
    /// The source of the messages, as their attribute has it.
    pub source: &'a str,
    /// The ordering key.
    pub key: &'a str,
    /// The message that showed it.
    pub message: &'a Envelope,
    /// What it is.
    pub finding: SequenceFinding,
}

/// Numbers of a key that are missing: see [`OpenInbox::gaps`](crate::inbox::OpenInbox::gaps).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SequenceGap {
    /// The source of the messages, as their attribute has it.
    pub source: String,
    /// The ordering key.
    pub key: String,
    /// Runs of numbers that did not come, each from the one to the other, in ascending order. At most 64, the highest.
    pub missing: Vec<(u64, u64)>,
    /// The number that comes next.
    pub next: u64,
    /// Where the next page begins.
    pub(crate) place: [u8; 16],
}

impl SequenceGap {
    /// Where it stands in the list: the next page begins behind it.
    ///
    /// ```no_run
    /// # use polybus_patterns::sequence::SequenceGap;
    /// # fn example(page: Vec<SequenceGap>) {
    /// let after = page.last().map(SequenceGap::place);
    /// # }
    /// ```
    pub fn place(&self) -> [u8; 16] {
        self.place
    }
}
