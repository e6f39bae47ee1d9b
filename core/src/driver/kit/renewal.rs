//! The one task that renews locks, for what a consumer holds and for what waits in a driver's buffer.
//!
//! Calls go side by side, and locks that fall due meanwhile do not wait for them. So a call that is never answered
//! costs its own locks an eighth of their time, and the others nothing.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Weak},
    task::Poll,
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    Error, ErrorKind, Result,
    driver::catch_panic::{caught, caught_call},
};

/// How often the task looks whether its locks still exist while none is due.
pub(crate) const MAX_SLEEP: Duration = Duration::from_secs(60);

/// Locks that are renewed in a task of their own.
pub(crate) trait RenewedLocks {
    type Id;
    type Token;

    /// Takes the locks that are due now, while `under_way` calls are not answered yet.
    fn plan(&self, under_way: usize) -> RenewalPlan<Self::Id, Self::Token>;

    /// Takes the result of one lock's renewal.
    fn answered(&self, id: Self::Id, result: Result<Instant>);

    /// Notified when a lock is due before the plan's `next`.
    fn earlier(&self) -> &Arc<Notify>;
}

/// What the task does next.
pub(crate) struct RenewalPlan<I, T> {
    pub(crate) calls: Vec<RenewalCall<I, T>>,
    /// When the next lock is due that is in no call.
    pub(crate) next: Option<Instant>,
    /// No lock is held and no call is under way, so the task ends. The next lock starts another one.
    pub(crate) ends: bool,
}

/// The locks of one call, and how long its answer is waited for.
pub(crate) struct RenewalCall<I, T> {
    pub(crate) ids: Vec<I>,
    pub(crate) tokens: Vec<T>,
    pub(crate) limit: Duration,
}

/// Renews until the plan ends, or the locks are dropped. `extend` makes one attempt and answers with one result for
/// each token.
pub(crate) async fn renew<L: RenewedLocks, F>(weak: Weak<L>, extend: impl Fn(Vec<L::Token>) -> F)
where
    F: Future<Output = Vec<Result<Instant>>>,
{
    let mut calls = Vec::new();
    loop {
        let Some(locks) = weak.upgrade() else { return };
        let (plan, earlier) = (locks.plan(calls.len()), locks.earlier().clone());
        // The task must not keep the locks alive while it sleeps.
        drop(locks);
        if plan.ends {
            return;
        }
        for RenewalCall { ids, tokens, limit } in plan.calls {
            let renewing = caught_call(|| extend(tokens));
            calls.push(Box::pin(answers(ids, limit, renewing)));
        }
        let answered = tokio::select! {
            answered = any(&mut calls) => answered,
            () = sleep_until(plan.next.unwrap_or_else(|| Instant::now() + MAX_SLEEP)) => continue,
            () = earlier.notified() => continue,
        };
        let Some(locks) = weak.upgrade() else { return };
        for (id, result) in answered {
            locks.answered(id, result);
        }
    }
}

/// One call, bounded in time. A panic, a timeout and a missing answer are errors of each of its locks.
async fn answers<I, F>(ids: Vec<I>, limit: Duration, renewing: Result<F>) -> Vec<(I, Result<Instant>)>
where
    F: Future<Output = Vec<Result<Instant>>>,
{
    let late = |_| Err(Error::no_answer(limit).with_operation("extend").safe());
    let results = match renewing {
        Ok(renewing) => timeout(limit, caught(renewing)).await.unwrap_or_else(late),
        Err(panicked) => Err(panicked),
    };
    let mut results = results.unwrap_or_else(|e| e.for_each_of(ids.len()));
    results.resize_with(ids.len(), || Err(Error::new(ErrorKind::Unexpected, "the driver gave no answer")));
    ids.into_iter().zip(results).collect()
}

/// Waits until one of the calls is answered. Waits for ever if there is none.
async fn any<C: Future>(calls: &mut Vec<Pin<Box<C>>>) -> C::Output {
    poll_fn(|cx| {
        for at in 0..calls.len() {
            if let Poll::Ready(answer) = calls[at].as_mut().poll(cx) {
                drop(calls.swap_remove(at));
                return Poll::Ready(answer);
            }
        }
        Poll::Pending
    })
    .await
}
