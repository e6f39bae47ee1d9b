//! Runs a handler once for each message: mark, handler, read-back, commit.

use std::{future::Future, sync::Arc, time::Duration};

use polybus_core::{
    Envelope, Error, ErrorKind, HandlerContext, HandlerError, Result, Source, driver::kit::backoff::Backoff,
    worker::WorkerInfo,
};
use tokio::time::{Instant, timeout};

use super::{
    InboxSettings, InboxShared, MARK_WAIT,
    key::mark_key,
    patience,
    reruns::{MAX_CONTENTION, Reruns},
    start_checks::{self, ComputedPatience},
    sweeper,
};
use crate::{
    store::{InboxStore, Mark, MarkKey, StoreTrouble, TransactionLimits, in_run},
    telemetry,
};

/// How long the database has for one of the inbox' own calls. A connection whose packets are lost in silence gives no
/// error for a quarter of an hour, and the message would be held all the while.
const CALL_LIMIT: Duration = Duration::from_secs(90);

/// After how long a copy that is under way elsewhere is mentioned in the log.
const LONG_COPY: Duration = Duration::from_secs(30);

/// Why a run did not end well.
enum RunError {
    /// Another copy of the message is under way, for longer than a mark waits.
    Busy(Error),
    Failed(HandlerError),
}

impl<E: Into<HandlerError>> From<E> for RunError {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// The longest wait between two attempts to reach the database at a worker's start.
const MAX_START_WAIT: Duration = Duration::from_secs(5);

pub(super) struct Engine<S> {
    pub(super) store: S,
    pub(super) settings: InboxSettings,
    pub(super) shared: Arc<InboxShared>,
    pub(super) patience: Arc<ComputedPatience>,
}

impl<S: Clone> Clone for Engine<S> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            settings: self.settings.clone(),
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
        let (table, control) = (self.store.inbox(), self.store.control());
        sweeper::start(&self.settings, table, control, consumer, self.shared.alive.subscribe());
        Ok(consumer)
    }

    /// Looks at the worker's settings and at the tables, and writes the consumer's name. A database that is away is
    /// waited for: nothing was fetched yet, so nothing is held up.
    pub(super) async fn start(&self, worker: &WorkerInfo) -> Result<()> {
        let control = self.store.control();
        start_checks::check(&self.settings, &self.patience, &*control, worker)?;
        let mut backoff = Backoff::up_to(MAX_START_WAIT);
        loop {
            let ready = async {
                self.in_time("verify", control.verify(&["lease", "inbox"])).await?;
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
    pub(super) async fn handle<F, Fut>(
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
        let mut busy_since = None;
        loop {
            patience::wait_while_away(&control, patience).await?;
            let error = match in_run(self.try_once(context.source(), message, &run)).await {
                Ok(()) => return Ok(()),
                Err(RunError::Failed(error)) if error.is_permanent() => return Err(error),
                Err(RunError::Failed(error)) => error,
                Err(RunError::Busy(error)) => {
                    // Its end decides what becomes of this one.
                    let since = *busy_since.get_or_insert_with(Instant::now);
                    if context.is_lock_lost() || patience.is_some_and(|patience| since.elapsed() > patience) {
                        return Err(error.into());
                    }
                    if since.elapsed() > LONG_COPY {
                        tracing::warn!(
                            target: "polybus", consumer = &*self.settings.consumer, id = %message.id, since = ?since.elapsed(),
                            "another transaction handles a copy of this message, and does not end"
                        );
                    }
                    patience::pause(MAX_CONTENTION).await;
                    continue;
                }
            };
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

    async fn try_once<F, Fut>(&self, source: &Source, message: &Envelope, run: &F) -> Result<(), RunError>
    where
        F: Fn(S::Tx) -> Fut + Send + Sync,
        Fut: Future<Output = Result<S::Tx, HandlerError>> + Send,
    {
        let consumer = self.consumer(source).await?;
        let name = &*self.settings.consumer;
        let key = mark_key(consumer, message, self.settings.key_by.as_deref());
        let tx = match &key {
            None => {
                telemetry::inbox_messages(name, "unmarked");
                self.begin_in_time(self.store.begin()).await?
            }
            Some(key) => {
                let limits = TransactionLimits::new(MARK_WAIT, self.settings.handler_timeout);
                match self.begin_in_time(self.store.begin_marked(key, &limits)).await {
                    Err(e) if e.context("mark") == Some("busy") => return Err(RunError::Busy(e)),
                    Err(e) => return Err(e.into()),
                    Ok((_, Mark::Duplicate)) => {
                        telemetry::inbox_messages(name, "duplicate");
                        tracing::debug!(target: "polybus", consumer = name, id = %message.id, "handled before");
                        return Ok(());
                    }
                    Ok((tx, Mark::First)) => tx,
                }
            }
        };
        let ran = match self.settings.handler_timeout {
            None => run(tx).await,
            Some(limit) => match tokio::time::timeout(limit, run(tx)).await {
                Ok(ran) => ran,
                Err(_) => Err(HandlerError::new(format!("the handler did not end within {limit:?}"))),
            },
        };
        self.commit(ran?, key.as_ref(), message).await?;
        if key.is_some() {
            telemetry::inbox_messages(name, "first");
        }
        Ok(())
    }

    /// Reads the mark back, then commits.
    pub(super) async fn commit(&self, mut tx: S::Tx, key: Option<&MarkKey>, message: &Envelope) -> Result<()> {
        if self.settings.read_back {
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
        self.in_time("commit", S::commit(tx)).await
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
        let lost = Error::new(ErrorKind::Unexpected, text).safe().with_operation("commit");
        match error {
            Some(error) => lost.with_source(error),
            None => lost,
        }
    }
}
