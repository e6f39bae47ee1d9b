//! One try of one batch.

use std::future::Future;

use polybus_core::{Error, ErrorKind, HandlerError, RetrySafety};

use super::super::LoggedEvent;
use crate::{
    catch_panic::{caught, panic_text},
    store::{
        Checkpoint, LogStore, StoreTrouble,
        calls::{in_time, rows_limit},
        in_run,
    },
};

/// Where a batch begins and ends.
pub(super) struct Batch<'a> {
    pub(super) subscription: &'a str,
    pub(super) events: &'a [LoggedEvent],
    pub(super) from: Checkpoint,
    /// The position of the last event in it, or of one behind it that is not wanted.
    pub(super) to: i64,
}

impl Batch<'_> {
    fn end(&self) -> Checkpoint {
        Checkpoint { position: self.to, token: self.from.token }
    }
}

/// A way to handle a batch and to move the checkpoint. False where the checkpoint is not where it was.
pub(super) trait Attempt<S: LogStore>: Sync {
    fn try_once(&self, store: &S, batch: &Batch<'_>) -> impl Future<Output = Result<bool, HandlerError>> + Send;
}

/// With the transaction in which the checkpoint moves.
pub(super) struct WithTransaction<T, F> {
    pub(super) state: T,
    pub(super) handler: F,
}

/// The checkpoint moves after the handler.
pub(super) struct Outside<T, F> {
    pub(super) state: T,
    pub(super) handler: F,
}

impl<S, T, F, Fut> Attempt<S> for WithTransaction<T, F>
where
    S: LogStore,
    T: Clone + Send + Sync,
    F: Fn(T, S::Tx, Vec<LoggedEvent>) -> Fut + Send + Sync,
    Fut: Future<Output = Result<S::Tx, HandlerError>> + Send,
{
    async fn try_once(&self, store: &S, batch: &Batch<'_>) -> Result<bool, HandlerError> {
        in_run(async {
            let Some(tx) = begin(store, batch).await? else { return Ok(false) };
            let handled = caught((self.handler)(self.state.clone(), tx, batch.events.to_vec())).await;
            let mut tx = handled.unwrap_or_else(|panic| Err(panicked(&*panic)))?;
            // PostgreSQL answers the COMMIT of a transaction that has failed with Ok.
            let limit = rows_limit(&*store.control());
            match in_time(limit, store.is_checkpoint(&mut tx, batch.subscription, &batch.end())).await {
                Ok(true) => {}
                Ok(false) => return Err(lost(store, batch, None)),
                Err(error) => return Err(lost(store, batch, Some(error))),
            }
            commit(store, tx, batch).await
        })
        .await
    }
}

impl<S, T, F, Fut> Attempt<S> for Outside<T, F>
where
    S: LogStore,
    T: Clone + Send + Sync,
    F: Fn(T, Vec<LoggedEvent>) -> Fut + Send + Sync,
    Fut: Future<Output = Result<(), HandlerError>> + Send,
{
    async fn try_once(&self, store: &S, batch: &Batch<'_>) -> Result<bool, HandlerError> {
        let handled = caught((self.handler)(self.state.clone(), batch.events.to_vec())).await;
        handled.unwrap_or_else(|panic| Err(panicked(&*panic)))?;
        let Some(tx) = begin(store, batch).await? else { return Ok(false) };
        commit(store, tx, batch).await
    }
}

/// Moves the checkpoint without a handler.
pub(super) async fn move_on<S: LogStore>(store: &S, batch: &Batch<'_>) -> Result<bool, HandlerError> {
    let Some(tx) = begin(store, batch).await? else { return Ok(false) };
    commit(store, tx, batch).await
}

/// A transaction in which the checkpoint has moved; `None` where it is not where it was.
async fn begin<S: LogStore>(store: &S, batch: &Batch<'_>) -> Result<Option<S::Tx>, HandlerError> {
    let limit = rows_limit(&*store.control());
    let mut tx = in_time(limit, store.begin()).await?;
    let moved = store.move_checkpoint(&mut tx, batch.subscription, &batch.from, batch.to);
    Ok(in_time(limit, moved).await?.then_some(tx))
}

async fn commit<S: LogStore>(store: &S, tx: S::Tx, batch: &Batch<'_>) -> Result<bool, HandlerError> {
    let limit = rows_limit(&*store.control());
    match in_time(limit, S::commit(tx)).await {
        Ok(()) => Ok(true),
        Err(e) if e.context("transaction") == Some("lost") => Err(lost(store, batch, Some(e))),
        // Nobody knows whether it was committed, and the checkpoint tells.
        Err(e) if e.retry() == RetrySafety::MayDuplicate => {
            let found = in_time(limit, store.log().subscriptions(Some(batch.subscription))).await?;
            match found.first().is_some_and(|found| found.checkpoint == batch.end()) {
                true => Ok(true),
                false => Err(e.into()),
            }
        }
        Err(e) => Err(e.into()),
    }
}

fn lost<S: LogStore>(store: &S, batch: &Batch<'_>, error: Option<Error>) -> HandlerError {
    // The connection may be gone, which is nobody's fault: the error as it is says so.
    if let Some(error) = &error
        && store.judge(error) != StoreTrouble::None
    {
        return error.clone().into();
    }
    tracing::error!(
        target: "polybus", subscription = batch.subscription, error = error.as_ref().map(tracing::field::display),
        "the handler went on after an error that ended its transaction; nothing was written, and it runs again"
    );
    let text = "the handler went on after an error that ended its transaction: use a savepoint where an error is \
                expected, and give back the transaction that came";
    let lost = Error::new(ErrorKind::Unexpected, text).with_operation("commit").safe();
    match error {
        Some(error) => lost.with_source(error).into(),
        None => lost.into(),
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> HandlerError {
    HandlerError::new(format!("the handler panicked: {}", panic_text(panic)))
}
