//! Runs a handler once for each message: mark, handler, read-back, commit.

use std::{future::Future, sync::Arc, time::Duration};

use polybus_core::{
    Envelope, Error, ErrorKind, HandlerContext, HandlerError, Result, RetrySafety, Source,
    driver::kit::backoff::Backoff, worker::WorkerInfo,
};
use tokio::time::{Instant, timeout};

use super::{
    InboxSettings, InboxShared, MARK_WAIT,
    key::mark_key,
    start_checks::{self, ComputedPatience},
    sweeps::OldMarks,
};
use crate::{
    patience,
    reruns::{MAX_CONTENTION, Reruns},
    sequence::{Guard, GuardStep, Numbered},
    store::{GuardKey, InboxStore, Mark, MarkKey, StoreTrouble, TransactionLimits, in_run},
    sweeper::{self, Sweep},
    telemetry,
};

/// How long the database has for one of the inbox' own calls. A connection whose packets are lost in silence gives no
/// error for a quarter of an hour, and the message would be held all the while.
const CALL_LIMIT: Duration = Duration::from_secs(90);

/// After how long a copy that is under way elsewhere is mentioned in the log.
const LONG_COPY: Duration = Duration::from_secs(30);

/// Why a run did not end well.
enum RunError {
    /// Another copy of the message is under way, or an earlier one of its key, for longer than a call waits.
    Busy(Error),
    /// Messages of its key are missing before this number, and it may wait for them.
    Early(GuardKey, i64),
    /// The key has moved on while the message was looked at.
    Moved,
    Failed(HandlerError),
}

impl<E: Into<HandlerError>> From<E> for RunError {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// What earlier runs of one attempt have left.
#[derive(Clone, Copy)]
struct RunState {
    /// It may wait for those before it.
    may_hold: bool,
    /// It may have been committed in this attempt.
    is_uncertain: bool,
}

fn may_be_committed(error: &HandlerError) -> bool {
    let error: &(dyn std::error::Error + 'static) = error.error();
    error.downcast_ref::<Error>().is_some_and(|e| e.retry() == RetrySafety::MayDuplicate)
}

/// The longest wait between two attempts to reach the database at a worker's start.
const MAX_START_WAIT: Duration = Duration::from_secs(5);

pub(crate) struct Engine<S> {
    pub(super) store: S,
    pub(super) settings: InboxSettings,
    pub(super) guard: Option<Arc<Guard<S>>>,
    pub(super) shared: Arc<InboxShared>,
    pub(super) patience: Arc<ComputedPatience>,
}

impl<S: Clone> Clone for Engine<S> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            settings: self.settings.clone(),
            guard: self.guard.clone(),
            shared: self.shared.clone(),
            patience: self.patience.clone(),
        }
    }
}

impl<S: InboxStore> Engine<S> {
    /// The consumer's number, asked for once per source.
    pub(super) async fn consumer(&self, source: &Source) -> Result<i32> {
        let source = source.live();
        if let Some(consumer) = self.shared.registered.read().await.get(source) {
            return Ok(*consumer);
        }
        let mut registered = self.shared.registered.write().await;
        if let Some(consumer) = registered.get(source) {
            return Ok(*consumer);
        }
        let name = source.to_string();
        let table = self.store.inbox();
        let register = table.register(&self.settings.consumer, &name);
        let consumer = self.in_time("register", register).await?;
        registered.insert(source.clone(), consumer);
        self.start_sweepers(consumer);
        Ok(consumer)
    }

    fn start_sweepers(&self, consumer: i32) {
        let InboxSettings { retention, sweep_interval, .. } = self.settings;
        let start = |sweep: Sweep| {
            sweeper::start(sweep.every(sweep_interval), self.store.control(), self.shared.alive.subscribe());
        };
        let marks = Arc::new(OldMarks { table: self.store.inbox(), consumer, retention });
        start(Sweep::new(format!("inbox-sweep/{consumer}"), "marks of the inbox", marks));
        if let Some(guard) = &self.guard {
            let lease = format!("sequence-sweep/{consumer}");
            start(Sweep::new(lease, "keys of the sequence guard", guard.old_rows(consumer)));
        }
    }

    /// Looks at the worker's settings and at the tables, and writes the consumer's name. A database that is away is
    /// waited for: nothing was fetched yet, so nothing is held up.
    pub(crate) async fn start(&self, worker: &WorkerInfo) -> Result<()> {
        let control = self.store.control();
        let hold = self.guard.as_ref().map_or(Duration::ZERO, |guard| guard.longest_hold());
        start_checks::check(&self.settings, &self.patience, &*control, worker, hold)?;
        let mut components = vec!["lease", "inbox"];
        if let Some(guard) = &self.guard {
            guard.check(worker)?;
            components.push("sequence");
        }
        let mut backoff = Backoff::up_to(MAX_START_WAIT);
        loop {
            let ready = async {
                self.in_time("verify", control.verify(&components)).await?;
                self.consumer(&worker.source).await
            };
            match ready.await {
                Ok(_) => return Ok(()),
                Err(e) if self.store.judge(&e) == StoreTrouble::None => return Err(e),
                Err(e) => {
                    let wait = backoff.next_wait();
                    tracing::warn!(target: "polybus", error = %e, ?wait, "the inbox' database does not answer; trying again");
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    /// Handles a message. `Ok` means that it is done: now, or before.
    pub(crate) async fn handle<F, Fut>(
        &self,
        context: &HandlerContext,
        message: &Envelope,
        run: F,
    ) -> Result<(), HandlerError>
    where
        F: Fn(S::Tx) -> Fut + Send + Sync,
        Fut: Future<Output = Result<S::Tx, HandlerError>> + Send,
    {
        let control = self.store.control();
        let patience = self.patience.limit(&self.settings);
        let mut reruns = Reruns::default();
        let (mut busy_since, mut may_hold) = (None, true);
        // The answer to a commit was lost: what is a duplicate then is no copy.
        let mut is_uncertain = false;
        loop {
            patience::wait_while_away(&control, patience).await?;
            let error = match in_run(self.try_once(
                context.source(),
                message,
                RunState { may_hold, is_uncertain },
                &run,
            ))
            .await
            {
                Ok(()) => return Ok(()),
                Err(RunError::Failed(error)) if error.is_permanent() => return Err(error),
                Err(RunError::Failed(error)) => error,
                Err(RunError::Early(key, n)) => {
                    let Some(guard) = &self.guard else { continue };
                    match guard.hold(context, &self.settings.consumer, key, n).await {
                        Ok(()) => {
                            may_hold = false;
                            continue;
                        }
                        // Somebody else has the message.
                        Err(error) if context.is_lock_lost() => return Err(error),
                        Err(error) => error,
                    }
                }
                Err(RunError::Moved) => continue,
                Err(RunError::Busy(error)) => {
                    // Its end decides what becomes of this one.
                    let since = *busy_since.get_or_insert_with(Instant::now);
                    if context.is_lock_lost() || patience.is_some_and(|patience| since.elapsed() > patience) {
                        return Err(error.into());
                    }
                    if since.elapsed() > LONG_COPY {
                        tracing::warn!(
                            target: "polybus", consumer = &*self.settings.consumer, id = %message.id, since = ?since.elapsed(),
                            "another transaction handles a copy of this message, or one of its key, and does not end"
                        );
                    }
                    patience::pause(MAX_CONTENTION).await;
                    continue;
                }
            };
            is_uncertain |= may_be_committed(&error);
            let trouble = self.store.judge(error.error());
            if !reruns.again(trouble, error.error(), &control, patience).await {
                return Err(error);
            }
        }
    }

    /// Limits one of the inbox' own calls.
    async fn in_time<T>(&self, what: &'static str, call: impl Future<Output = Result<T>>) -> Result<T> {
        timeout(CALL_LIMIT, call).await.unwrap_or_else(|_| {
            let text = format!("no answer within {CALL_LIMIT:?}");
            let backend = self.store.control().system();
            let error = Error::new(ErrorKind::Unavailable, text).with_backend(backend).with_operation(what);
            Err(error.may_duplicate())
        })
    }

    /// Begins a transaction. With one writer at a time it may wait long for its turn, and that is no fault.
    async fn begin_in_time<T>(&self, begin: impl Future<Output = Result<T>>) -> Result<T> {
        match self.store.control().single_writer() {
            true => begin.await,
            false => self.in_time("begin", begin).await,
        }
    }

    async fn try_once<F, Fut>(
        &self,
        source: &Source,
        message: &Envelope,
        state: RunState,
        run: &F,
    ) -> Result<(), RunError>
    where
        F: Fn(S::Tx) -> Fut + Send + Sync,
        Fut: Future<Output = Result<S::Tx, HandlerError>> + Send,
    {
        let consumer = self.consumer(source).await?;
        let name = &*self.settings.consumer;
        let key = mark_key(consumer, message, self.settings.key_by.as_deref());
        let guarded = self.guard.as_deref().zip(Numbered::of(consumer, message));
        let mut tx = match &key {
            None => {
                telemetry::inbox_messages(name, "unmarked");
                self.begin_in_time(self.store.begin()).await?
            }
            Some(key) => {
                let limits = TransactionLimits::new(MARK_WAIT, self.settings.handler_timeout);
                match self.begin_in_time(self.store.begin_marked(key, &limits)).await {
                    Err(e) if e.context("mark") == Some("busy") => return Err(RunError::Busy(e)),
                    Err(e) => return Err(e.into()),
                    Ok((mut tx, Mark::Duplicate)) => {
                        telemetry::inbox_messages(name, "duplicate");
                        tracing::debug!(target: "polybus", consumer = name, id = %message.id, "handled before");
                        if let Some((guard, numbered)) = &guarded {
                            if self.of_key(guard.catch_up(&mut tx, numbered)).await? {
                                self.in_time("commit", S::commit(tx)).await?;
                                guard.committed(name, numbered, &[]);
                            }
                            if !state.is_uncertain {
                                guard.knew(name, numbered);
                            }
                        }
                        return Ok(());
                    }
                    Ok((tx, Mark::First)) => tx,
                }
            }
        };
        let findings = match &guarded {
            None => Vec::new(),
            Some((guard, numbered)) => match self.of_key(guard.follow(&mut tx, numbered, state.may_hold)).await? {
                GuardStep::Handle(findings) => findings,
                GuardStep::Hold => return Err(RunError::Early(numbered.key, numbered.number())),
                GuardStep::DeadLetter(refused) => {
                    drop(tx);
                    let refused = self.in_time("sequence", guard.refused(name, numbered, refused)).await?;
                    return Err(refused.map_or(RunError::Moved, RunError::Failed));
                }
            },
        };
        let ran = match self.settings.handler_timeout {
            None => run(tx).await,
            Some(limit) => match tokio::time::timeout(limit, run(tx)).await {
                Ok(ran) => ran,
                Err(_) => Err(HandlerError::new(format!("the handler did not end within {limit:?}"))),
            },
        };
        let committed = self.commit(ran?, key.as_ref(), message).await;
        // Where nobody knows, it is told: better twice than never.
        if let Some((guard, numbered)) = &guarded
            && committed.as_ref().err().is_none_or(|e| e.retry() == RetrySafety::MayDuplicate)
        {
            guard.committed(name, numbered, &findings);
        }
        committed?;
        if key.is_some() {
            telemetry::inbox_messages(name, "first");
        }
        Ok(())
    }

    /// The answer of a call that waits for other messages of the key. They are waited for as a copy is.
    async fn of_key<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T, RunError> {
        match timeout(CALL_LIMIT, call).await {
            Ok(Err(e)) if e.context("sequence") == Some("busy") => Err(RunError::Busy(e)),
            Ok(answer) => Ok(answer?),
            Err(_) => {
                let text = format!("a message of the same key has been handled elsewhere for {CALL_LIMIT:?}");
                Err(RunError::Busy(Error::new(ErrorKind::Unavailable, text).safe().with_operation("sequence")))
            }
        }
    }

    /// Reads the mark back, unless the commit looks for it, then commits.
    pub(super) async fn commit(&self, mut tx: S::Tx, key: Option<&MarkKey>, message: &Envelope) -> Result<()> {
        let is_proven = key.is_some_and(|key| S::commit_proves_mark(&tx, key));
        if self.settings.read_back && !is_proven {
            // Without a mark there is no row to find, but a transaction that is gone answers with an error.
            let nothing = MarkKey { consumer: 0, hour: 0, key: [0; 16] };
            let found = self.in_time("is_marked", self.store.is_marked(&mut tx, key.unwrap_or(&nothing))).await;
            let lost = match (&found, key) {
                (Ok(true), _) | (Ok(false), None) => None,
                (Ok(false), Some(_)) => Some(None),
                (Err(e), _) => Some(Some(e.clone())),
            };
            if let Some(error) = lost {
                return Err(self.transaction_lost(error, message));
            }
        }
        match self.in_time("commit", S::commit(tx)).await {
            Err(e) if e.context("transaction") == Some("lost") => Err(self.transaction_lost(Some(e), message)),
            committed => committed,
        }
    }

    fn transaction_lost(&self, error: Option<Error>, message: &Envelope) -> Error {
        // The connection may be gone, which is nobody's fault: the error as it is says so.
        if let Some(error) = &error
            && self.store.judge(error) != StoreTrouble::None
        {
            return error.clone();
        }
        telemetry::inbox_messages(&self.settings.consumer, "lost");
        tracing::error!(
            target: "polybus", consumer = &*self.settings.consumer, id = %message.id, error = error.as_ref().map(tracing::field::display),
            "the handler went on after an error that ended its transaction; nothing was written, and the message comes again"
        );
        let text = "the handler went on after an error that ended its transaction: use a savepoint where an error is \
                    expected, and give back the transaction that came";
        let lost = Error::new(ErrorKind::Unexpected, text).with_operation("commit");
        let lost = match error.as_ref().map(Error::retry) {
            Some(RetrySafety::MayDuplicate) => lost.may_duplicate(),
            _ => lost.safe(),
        };
        match error {
            Some(error) => lost.with_source(error),
            None => lost,
        }
    }
}
