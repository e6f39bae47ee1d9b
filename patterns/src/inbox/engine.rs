//! Runs a handler once for each message: mark, handler, read-back, commit.

use std::{future::Future, sync::Arc, time::Duration};

use polybus_core::{
    Envelope, Error, ErrorKind, HandlerContext, HandlerError, Result, Source, driver::kit::backoff::Backoff,
    worker::WorkerInfo,
};

use super::{InboxSettings, InboxShared, MARK_WAIT, key::mark_key, patience, start_checks, sweeper};
use crate::{
    store::{InboxStore, Mark, MarkKey, StoreTrouble, TransactionLimits},
    telemetry,
};

/// How often a handler is run again at once for one attempt, because its transaction lost against another one.
const MAX_CONTENTION: u32 = 5;

/// The longest wait between two attempts to reach the database at a worker's start.
const MAX_START_WAIT: Duration = Duration::from_secs(5);

pub(super) struct Engine<S> {
    pub(super) store: S,
    pub(super) settings: InboxSettings,
    pub(super) shared: Arc<InboxShared>,
}

impl<S: Clone> Clone for Engine<S> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), settings: self.settings.clone(), shared: self.shared.clone() }
    }
}

impl<S: InboxStore> Engine<S> {
    /// The consumer's number, asked for once per source.
    pub(super) async fn consumer(&self, source: &Source) -> Result<i32> {
        let source = source.live().to_string();
        let mut registered = self.shared.registered.lock().await;
        if let Some(consumer) = registered.get(&source) {
            return Ok(*consumer);
        }
        let consumer = self.store.inbox().register(&self.settings.consumer, &source).await?;
        registered.insert(source, consumer);
        let (table, control) = (self.store.inbox(), self.store.control());
        sweeper::start(&self.settings, table, control, consumer, self.shared.alive.subscribe());
        Ok(consumer)
    }

    /// Looks at the worker's settings and at the tables, and writes the consumer's name. A database that is away is
    /// waited for: nothing was fetched yet, so nothing is held up.
    pub(super) async fn start(&self, worker: &WorkerInfo) -> Result<()> {
        let control = self.store.control();
        start_checks::check(&self.settings, &self.shared.patience, &*control, worker)?;
        let mut backoff = Backoff::up_to(MAX_START_WAIT);
        loop {
            let ready = async {
                control.verify(&["lease", "inbox"]).await?;
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
        let patience = self.shared.patience.limit(&self.settings);
        let mut contended = 0;
        loop {
            patience::wait_while_away(&control, patience).await?;
            let error = match self.try_once(context.source(), message, &run).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if error.is_permanent() {
                return Err(error);
            }
            if is_mark_busy(&error) && !context.is_lock_lost() {
                // Another copy of the message is under way. Its end decides what becomes of this one.
                continue;
            }
            match self.store.judge(error.error()) {
                StoreTrouble::Contention if contended < MAX_CONTENTION => {
                    contended += 1;
                    patience::pause(contended).await;
                }
                // Whatever the handler says: where the database is away, that is why.
                _ if control.is_away().await => patience::begin(&control),
                _ => return Err(error),
            }
        }
    }

    async fn try_once<F, Fut>(&self, source: &Source, message: &Envelope, run: &F) -> Result<(), HandlerError>
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
                self.store.begin().await?
            }
            Some(key) => {
                let limits = TransactionLimits::new(MARK_WAIT, self.settings.handler_timeout);
                match self.store.begin_marked(key, &limits).await? {
                    (_, Mark::Duplicate) => {
                        telemetry::inbox_messages(name, "duplicate");
                        tracing::debug!(target: "polybus", consumer = name, id = %message.id, "handled before");
                        return Ok(());
                    }
                    (tx, Mark::First) => tx,
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
            let found = self.store.is_marked(&mut tx, key.unwrap_or(&nothing)).await;
            let lost = match (&found, key) {
                (Ok(true), _) | (Ok(false), None) => None,
                (Ok(false), Some(_)) => Some(None),
                (Err(e), _) => Some(Some(e.clone())),
            };
            if let Some(error) = lost {
                return Err(self.transaction_lost(error, message));
            }
        }
        S::commit(tx).await
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

/// Whether the mark waited for another copy in vain.
fn is_mark_busy(error: &HandlerError) -> bool {
    error.error().downcast_ref::<Error>().is_some_and(|e| e.context("mark") == Some("busy"))
}
