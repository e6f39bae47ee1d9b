//! Retrying a call with backoff until a deadline, while the broker is not ready.

use tokio::time::Instant;

use crate::{Error, ErrorKind, Result, runtime::backoff::Backoff};

/// Ends one attempt at the deadline, with a `Timeout` that is [`Safe`](crate::error::RetrySafety::Safe). Only for calls
/// that have no effect when they are dropped, such as connecting.
pub(crate) async fn attempt_until<T>(deadline: Instant, attempt: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |_| Err(Error::new(ErrorKind::Timeout, "no answer within the publish timeout").safe());
    tokio::time::timeout_at(deadline, attempt).await.unwrap_or_else(late)
}

/// Calls again with backoff after errors that `may_retry` accepts, until the deadline, or until `ensure_open` fails.
///
/// The first failure is a warning in the log, so that a program that waits says what for; later ones are logged at
/// `debug`.
pub(crate) async fn retry_until<T, F>(
    deadline: Instant,
    operation: &'static str,
    may_retry: impl Fn(&Error) -> bool,
    ensure_open: impl Fn() -> Result<()>,
    mut call: impl FnMut() -> F,
) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let mut backoff = Backoff::default();
    let mut warned = false;
    let mut last: Option<Error> = None;
    loop {
        let e = match call().await {
            Ok(value) => return Ok(value),
            // The deadline cut this attempt short. The error before it says more about the broker.
            Err(e) if e.kind() == ErrorKind::Timeout && Instant::now() >= deadline => return Err(last.unwrap_or(e)),
            Err(e) => e,
        };
        let wait = backoff.next_wait();
        if !may_retry(&e) || Instant::now() + wait >= deadline {
            return Err(e);
        }
        if std::mem::replace(&mut warned, true) {
            tracing::debug!(operation, error = %e, ?wait, "the broker is still not ready; trying again");
        } else {
            let left = deadline - Instant::now();
            tracing::warn!(operation, error = %e, for_up_to = ?left, "the broker is not ready; trying again");
        }
        last = Some(e);
        tokio::time::sleep(wait).await;
        ensure_open()?;
    }
}
