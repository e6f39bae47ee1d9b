//! Follows the numbers of keys in the transactions of an inbox.

use std::{collections::HashSet, sync::Arc, time::Duration};

use parking_lot::Mutex;
use polybus_core::{
    Envelope, Error, HandlerContext, HandlerError, Result, RetrySafety, driver::async_trait, worker::WorkerInfo,
};
use tokio::time::Instant;

use super::{
    GAP_REASON, Hold, LATE_REASON, Progress, SequenceFinding, SequenceFound, SequenceGap, SequenceGuard,
    SequencePolicy,
    holds::{HeldNumber, Holds},
};
use crate::{
    hash::hash_of_parts,
    store::{AnySequences, GuardKey, GuardedKey, SequenceStore, SequenceTable, Store},
    sweeper::SweptRows,
    telemetry,
};

/// How many keys are remembered as told that a number came again.
const TOLD: usize = 10_000;

/// A guard, and the store that keeps how far each key has come.
pub(crate) struct Guard<S> {
    settings: SequenceGuard,
    sequences: Arc<dyn AnySequences<S>>,
    holds: Holds,
    /// Keys of which the log has said that a number came again.
    repeated: Mutex<HashSet<GuardKey>>,
    /// When the log last said that messages are missing.
    warned: Mutex<Option<Instant>>,
}

/// A message with a key and a number.
#[derive(Clone, Copy)]
pub(crate) struct Numbered<'a> {
    pub(crate) key: GuardKey,
    message: &'a Envelope,
    of: GuardedKey<'a>,
    n: i64,
}

impl<'a> Numbered<'a> {
    /// `None` for a message without a key or a number.
    pub(crate) fn of(consumer: i32, message: &'a Envelope) -> Option<Self> {
        let of = GuardedKey { source: &message.source, key: message.key.as_deref()? };
        // The next one must be a number too.
        let n = message.sequence.and_then(|n| i64::try_from(n).ok()).filter(|n| *n < i64::MAX)?;
        Some(Self { key: guard_key(consumer, of), message, of, n })
    }
}

pub(crate) fn guard_key(consumer: i32, of: GuardedKey<'_>) -> GuardKey {
    GuardKey { consumer, key: hash_of_parts(&["sequence", of.source, of.key]) }
}

/// What becomes of a message, before its handler runs.
pub(crate) enum GuardStep {
    /// It is handled. This is told once the transaction is committed.
    Handle(Vec<SequenceFinding>),
    /// It waits for those before it, without the transaction.
    Hold,
    /// It becomes a dead letter, without the transaction.
    DeadLetter(RefusedMessage),
}

/// A number that is not the next one.
struct OutOfOrder {
    before: Option<Progress>,
    after: Progress,
    findings: Vec<SequenceFinding>,
    told_at: i64,
}

/// Why a message becomes a dead letter.
pub(crate) struct RefusedMessage {
    findings: Vec<SequenceFinding>,
    /// The number that comes next, where the key stands until that has come.
    stopped_at: Option<i64>,
}

impl<S: Store> Guard<S> {
    pub(crate) fn new(store: &S, settings: SequenceGuard) -> Self
    where
        S: SequenceStore,
    {
        let sequences = Arc::new(store.clone());
        Self { settings, sequences, holds: Holds::default(), repeated: Mutex::default(), warned: Mutex::default() }
    }

    /// # Errors
    /// `InvalidArgument` for a worker with which the guard cannot work.
    pub(crate) fn check(&self, worker: &WorkerInfo) -> Result<()> {
        let refuse = |text: &str| Err(Error::invalid(text).with_context("source", &worker.source));
        if !worker.settings.types.is_empty() {
            return refuse(
                "sequence guard: the subscription takes some types alone, and would miss the numbers of the others: take \
                 all of them, or leave the guard out",
            );
        }
        let Some(Hold { up_to, .. }) = self.settings.hold else {
            self.warn_of_retries(worker, Duration::ZERO);
            return Ok(());
        };
        self.warn_of_retries(worker, up_to);
        if worker.settings.ordered {
            return refuse(
                "sequence guard: hold() on an ordered source waits in vain, since what is missing cannot come behind: \
                 leave hold() out",
            );
        }
        if worker.concurrency < 2 {
            return refuse(
                "sequence guard: hold() with a concurrency of 1 waits in vain, since what is missing has no place to come \
                 to: raise the concurrency, or leave hold() out",
            );
        }
        self.holds.of_worker(worker.concurrency);
        Ok(())
    }

    /// A message that is tried again later is missing until then.
    fn warn_of_retries(&self, worker: &WorkerInfo, hold: Duration) {
        let stops = self.settings.on_gap == SequencePolicy::DeadLetter && !worker.settings.ordered;
        if let Some(wait) = worker.retry.first().filter(|wait| stops && **wait >= hold) {
            tracing::warn!(
                target: "polybus", source = %worker.source, first_retry = ?wait, ?hold,
                "a message that is tried again later counts as missing, and those of its key become dead letters \
                 meanwhile: let SequenceGuard::hold outlast the retries"
            );
        }
    }

    /// Takes the message's number in, in this transaction.
    pub(crate) async fn follow(
        &self,
        conn: &mut S::Conn,
        numbered: &Numbered<'_>,
        may_hold: bool,
    ) -> Result<GuardStep> {
        let Some(OutOfOrder { before, after, findings, told_at }) = self.look(conn, numbered).await? else {
            return Ok(GuardStep::Handle(Vec::new()));
        };
        let stopped_at = before.as_ref().map(Progress::next).filter(|next| numbered.n > *next);
        // Where it was told that the key stands still, all have waited that will.
        if may_hold && self.settings.holds() && stopped_at.is_some_and(|next| next != told_at) {
            return Ok(GuardStep::Hold);
        }
        let is_late =
            findings.iter().any(|f| matches!(f, SequenceFinding::Late { .. } | SequenceFinding::Repeated { .. }));
        let policy = match stopped_at {
            Some(_) => self.settings.on_gap,
            None if is_late => self.settings.on_late,
            None => SequencePolicy::Pass,
        };
        if policy == SequencePolicy::DeadLetter {
            return Ok(GuardStep::DeadLetter(RefusedMessage { findings, stopped_at }));
        }
        self.sequences.write_progress(conn, &numbered.key, &after.stored()).await?;
        Ok(GuardStep::Handle(findings))
    }

    /// Takes the number in, whatever the policies are.
    pub(crate) async fn take(&self, conn: &mut S::Conn, numbered: &Numbered<'_>) -> Result<Vec<SequenceFinding>> {
        let Some(OutOfOrder { after, findings, .. }) = self.look(conn, numbered).await? else { return Ok(Vec::new()) };
        self.sequences.write_progress(conn, &numbered.key, &after.stored()).await?;
        Ok(findings)
    }

    /// Takes in the number of a message that the inbox has a mark of, if the key waits for it: whoever handled it did
    /// not follow its number, as processes do that run without the guard. Answers whether there is something to commit.
    pub(crate) async fn catch_up(&self, conn: &mut S::Conn, numbered: &Numbered<'_>) -> Result<bool> {
        let Some(OutOfOrder { before, after, .. }) = self.look(conn, numbered).await? else { return Ok(true) };
        let waits = before.is_some_and(|before| before.wants(numbered.n));
        if waits {
            self.sequences.write_progress(conn, &numbered.key, &after.stored()).await?;
        }
        Ok(waits)
    }

    /// Waits no more for the numbers of a key up to this one.
    pub(crate) async fn skip(&self, conn: &mut S::Conn, key: GuardKey, of: GuardedKey<'_>, through: i64) -> Result<()> {
        let stored = self.sequences.lock_progress(conn, &key, &of).await?;
        let mut progress = Progress::read(&stored).unwrap_or_else(Progress::at_the_start);
        progress.skip(through);
        self.sequences.write_progress(conn, &key, &progress.stored()).await
    }

    /// What the number says; `None` for the one that comes next, which is taken in. The key is locked.
    async fn look(&self, conn: &mut S::Conn, numbered: &Numbered<'_>) -> Result<Option<OutOfOrder>> {
        let Numbered { key, of, n, .. } = numbered;
        if self.sequences.advance(conn, key, *n).await? {
            return Ok(None);
        }
        let stored = self.sequences.lock_progress(conn, key, of).await?;
        let start = (self.settings.expect_first && *n >= 1).then(Progress::at_the_start);
        let before = Progress::read(&stored).or(start);
        let (after, findings) = Progress::after(before.as_ref(), *n);
        Ok(Some(OutOfOrder { before, after, findings, told_at: stored.told_at }))
    }

    /// Waits for the messages before this one.
    pub(crate) async fn hold(
        &self,
        context: &HandlerContext,
        consumer: &str,
        key: GuardKey,
        n: i64,
    ) -> Result<(), HandlerError> {
        let Some(hold) = self.settings.hold else { return Ok(()) };
        let _held = telemetry::SequenceHeld::new(consumer);
        let start = self.settings.expect_first.then(|| Progress::at_the_start().next());
        self.holds.wait(context, &*self.sequences.sequences(), HeldNumber { key, n, start }, hold).await
    }

    /// The transaction with the number is committed.
    pub(crate) fn committed(&self, consumer: &str, numbered: &Numbered<'_>, findings: &[SequenceFinding]) {
        self.holds.moved(&numbered.key);
        findings.iter().for_each(|finding| self.tell(consumer, numbered, *finding));
    }

    /// The inbox knew the message.
    pub(crate) fn knew(&self, consumer: &str, numbered: &Numbered<'_>) {
        self.tell(consumer, numbered, SequenceFinding::Copy { number: numbered.n.unsigned_abs() });
    }

    /// Tells why the message becomes a dead letter. Of a key that stands still, that is told once. `None` where the key
    /// has moved on meanwhile: the message is looked at again.
    pub(crate) async fn refused(
        &self,
        consumer: &str,
        numbered: &Numbered<'_>,
        refused: RefusedMessage,
    ) -> Result<Option<HandlerError>> {
        let Some(next) = refused.stopped_at else {
            refused.findings.iter().for_each(|finding| self.tell(consumer, numbered, *finding));
            let detail = format!("number {} of its key came after others behind it", numbered.n);
            return Ok(Some(HandlerError::dead_letter(LATE_REASON, detail)));
        };
        let table = self.sequences.sequences();
        // It was looked at in a transaction that is gone, and others waited behind that.
        if table.next(&numbered.key).await?.is_some_and(|now| now != next) {
            return Ok(None);
        }
        let noted = table.note_stopped(&numbered.key, &numbered.of, next).await;
        // Where nobody knows, it is told: better twice than never.
        if noted.as_ref().map_or_else(|e| e.retry() == RetrySafety::MayDuplicate, |is_news| *is_news) {
            refused.findings.iter().for_each(|finding| self.tell(consumer, numbered, *finding));
        }
        noted?;
        let detail = format!("number {} of its key came, and {next} has not", numbered.n);
        Ok(Some(HandlerError::dead_letter(GAP_REASON, detail)))
    }

    fn tell(&self, consumer: &str, numbered: &Numbered<'_>, finding: SequenceFinding) {
        let Numbered { of: GuardedKey { source, key }, message, .. } = *numbered;
        telemetry::sequence_finding(consumer, finding.name());
        match finding {
            SequenceFinding::Gap { first, last } if self.may_warn() => tracing::warn!(
                target: "polybus", consumer, source, key, id = %message.id, first, last,
                "messages of a key are missing: these numbers have not come (said once a second at most)"
            ),
            SequenceFinding::Restarted { number, expected } => tracing::warn!(
                target: "polybus", consumer, source, key, id = %message.id, number, expected,
                "the numbers of a key went back: its producer was restored or made anew, or these are old copies"
            ),
            SequenceFinding::Repeated { number } if self.is_news(numbered.key) => tracing::warn!(
                target: "polybus", consumer, source, key, id = %message.id, number,
                "a number of a key came with another message before: its producer's counter went back, as after a \
                 restore, or this is a copy that is older than the inbox' retention (said once for a key)"
            ),
            SequenceFinding::Late { number } => tracing::debug!(
                target: "polybus", consumer, source, key, id = %message.id, number,
                "a message of a key that was missing has come"
            ),
            SequenceFinding::Gap { .. } | SequenceFinding::Repeated { .. } | SequenceFinding::Copy { .. } => {}
        }
        if let Some(call) = &self.settings.on_finding {
            call(&SequenceFound { consumer, source, key, message, finding });
        }
    }

    fn may_warn(&self) -> bool {
        let mut warned = self.warned.lock();
        let may = warned.is_none_or(|at| at.elapsed() >= Duration::from_secs(1));
        if may {
            *warned = Some(Instant::now());
        }
        may
    }

    fn is_news(&self, key: GuardKey) -> bool {
        let mut repeated = self.repeated.lock();
        if repeated.len() >= TOLD {
            repeated.clear();
        }
        repeated.insert(key)
    }

    /// What is missing now.
    pub(crate) async fn gaps(&self, consumer: i32, after: Option<[u8; 16]>, limit: u32) -> Result<Vec<SequenceGap>> {
        let stored = self.sequences.sequences().gaps(consumer, after, limit).await?;
        let gap = |gap: crate::store::StoredGap| {
            let progress = Progress::read(&gap.progress)?;
            let number = |n: i64| n.unsigned_abs();
            let missing = progress.missing().iter().map(|(from, to)| (number(*from), number(*to))).collect();
            let next = number(progress.next());
            Some(SequenceGap { source: gap.source, key: gap.okey, missing, next, place: gap.key })
        };
        Ok(stored.into_iter().filter_map(gap).collect())
    }

    pub(crate) fn longest_hold(&self) -> Duration {
        self.settings.longest_hold()
    }

    /// The consumer's keys that nothing came of for long.
    pub(crate) fn old_rows(&self, consumer: i32) -> Arc<dyn SweptRows> {
        Arc::new(OldProgress { table: self.sequences.sequences(), consumer, retention: self.settings.remembers_for() })
    }
}

impl Numbered<'_> {
    pub(crate) fn number(&self) -> i64 {
        self.n
    }
}

struct OldProgress {
    table: Arc<dyn SequenceTable>,
    consumer: i32,
    retention: Duration,
}

#[async_trait]
impl SweptRows for OldProgress {
    async fn sweep(&self, limit: u32) -> Result<u64> {
        self.table.sweep_progress(self.consumer, self.retention, limit).await
    }
}
