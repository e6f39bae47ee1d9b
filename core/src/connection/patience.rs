//! Asking again while the broker is not ready, up to a deadline.

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinSet, time::Instant};

use crate::{
    error::{Error, ErrorKind, Result},
    runtime::backoff::Backoff,
};

/// How long a step of closing waits for a broker that does not answer: all of a consumer's in all, a publisher's, the connection's.
pub(crate) const MOST_AT_CLOSE: Duration = Duration::from_secs(5);
/// And each of a consumer's steps at least.
pub(crate) const LEAST_AT_CLOSE: Duration = Duration::from_millis(500);

/// Bounds one attempt, which then counts as one that passes and had no effect.
pub(crate) async fn until<T>(deadline: Instant, attempt: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |_| Err(Error::new(ErrorKind::Timeout, "no answer within the publish timeout").safe());
    tokio::time::timeout_at(deadline, attempt).await.unwrap_or_else(late)
}

/// Calls again with backoff after errors that pass, as long as there is time before the deadline and `go_on` says so. The first failure
/// is a warning in the log, so that a program that waits says what for.
pub(crate) async fn again<T, F>(
    deadline: Instant,
    operation: &'static str,
    passes: impl Fn(&Error) -> bool,
    go_on: impl Fn() -> Result<()>,
    mut call: impl FnMut() -> F,
) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let mut backoff = Backoff::default();
    let mut told = false;
    let mut last: Option<Error> = None;
    loop {
        let e = match call().await {
            Ok(value) => return Ok(value),
            // The one that the deadline cut short says nothing of the broker.
            Err(e) if e.kind() == ErrorKind::Timeout && Instant::now() >= deadline => return Err(last.unwrap_or(e)),
            Err(e) => e,
        };
        let wait = backoff.next();
        if !passes(&e) || Instant::now() + wait >= deadline {
            return Err(e);
        }
        if std::mem::replace(&mut told, true) {
            tracing::debug!(operation, error = %e, ?wait, "the broker is still not ready; trying again");
        } else {
            let left = deadline - Instant::now();
            tracing::warn!(operation, error = %e, for_up_to = ?left, "the broker is not ready; trying again");
        }
        last = Some(e);
        tokio::time::sleep(wait).await;
        go_on()?;
    }
}

/// One step of closing, with `until` and half a second at least. One that takes longer is dropped, which a driver's futures allow at any
/// time, and `late` tells of it: what the broker still holds for this client it takes back when the connection ends.
pub(crate) async fn closed_by(
    until: Instant,
    step: impl Future<Output = Result<()>>,
    late: impl FnOnce(),
) -> Result<()> {
    let until = until.max(Instant::now() + LEAST_AT_CLOSE);
    tokio::time::timeout_at(until, step).await.unwrap_or_else(|_| {
        late();
        Ok(())
    })
}

/// Does this with each consumer or publisher, side by side: a broker that does not answer is waited for once.
pub(crate) async fn side_by_side<T, F>(all: &[Arc<T>], step: impl Fn(Arc<T>) -> F) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let mut steps: JoinSet<Result<()>> = all.iter().map(|one| step(one.clone())).collect();
    let mut result = Ok(());
    while let Some(ended) = steps.join_next().await {
        let failed = |e| Err(Error::new(ErrorKind::Unexpected, "a step of closing failed").with_source(e));
        result = result.and(ended.unwrap_or_else(failed));
    }
    result
}
