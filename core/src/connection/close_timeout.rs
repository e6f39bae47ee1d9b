//! How long closing waits for a broker that does not answer.

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinSet, time::Instant};

use crate::{Error, ErrorKind, Result};

/// How long closing waits in all: for one consumer, for one publisher, and for the connection.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long each step of closing a consumer may take at least, however late it begins.
pub(crate) const MIN_STEP_TIMEOUT: Duration = Duration::from_millis(500);

/// Waits for one step of closing until `until`, and for [`MIN_STEP_TIMEOUT`] at least. A step that takes longer is
/// dropped, which a driver's futures allow at any time, and `on_timeout` logs it. It is no error: the broker takes back
/// what this client holds once the connection ends.
pub(crate) async fn close_until(
    until: Instant,
    step: impl Future<Output = Result<()>>,
    on_timeout: impl FnOnce(),
) -> Result<()> {
    let until = until.max(Instant::now() + MIN_STEP_TIMEOUT);
    tokio::time::timeout_at(until, step).await.unwrap_or_else(|_| {
        on_timeout();
        Ok(())
    })
}

/// Runs `step` for each consumer or publisher, all at the same time, so that a broker that does not answer is waited
/// for once. Answers the first error, after all have ended.
pub(crate) async fn run_concurrently<T, F>(all: &[Arc<T>], step: impl Fn(Arc<T>) -> F) -> Result<()>
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
