//! One handling: runs the handler, decides what becomes of the message, and settles it.

use std::{
    fmt,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep};
use tracing::Span;

use crate::{
    Delivery, Envelope, HandlerContext, HandlerError, Result, RetryPolicy,
    consume::settle::handling_record::{FailedHandling, HandlingRecord},
    driver::{Capabilities, Settlement, catch_panic::panic_text},
    runtime::{duration, poll_then_spawn::poll_then_spawn},
    telemetry::{HandleMetrics, Scope, process_span},
    topology::EntitySettings,
    worker::{handler::FailureEnding, pool::HandlerPool, runner::RunHandler},
};

/// The longest detail of a dead letter in bytes. It travels as a header.
const MAX_DETAIL: usize = 2048;

/// The rule for messages whose handler has failed.
pub(crate) struct FailurePolicy {
    retry: RetryPolicy,
    /// The longest delay that the source can do; `None` if it can do none.
    max_delay: Option<Duration>,
    pub(crate) ordered: bool,
}

impl FailurePolicy {
    pub(crate) fn new(
        given: Option<RetryPolicy>,
        settings: &EntitySettings,
        capabilities: &Capabilities,
    ) -> Result<Self> {
        let retry = given.unwrap_or_else(|| RetryPolicy::new(settings.retry.iter().copied()));
        retry.check()?;
        let max_delay = match settings.ordered {
            true => Some(settings.max_hold),
            false => capabilities.max_retry_delay,
        };
        Ok(Self { retry, max_delay, ordered: settings.ordered })
    }

    /// The settlement of a message whose handler failed at this attempt. It does not look at the last attempt:
    /// `settle/rules.rs` turns that one's retry into a dead letter. It is not for messages of dead letters.
    fn after(&self, attempt: u32, ending: &FailureEnding, detail: &str) -> Settlement {
        let delay = match ending {
            FailureEnding::DeadLetter(reason) => {
                return Settlement::DeadLetter { reason: (&**reason).into(), detail: detail.into() };
            }
            FailureEnding::RetryAfter(delay) => *delay,
            FailureEnding::Retry => self.retry.delay(attempt),
        };
        match self.max_delay {
            Some(max_delay) if !delay.is_zero() => Settlement::RetryAfter(delay.min(max_delay)),
            _ => Settlement::Release,
        }
    }
}

enum HandlerFailure {
    Error(HandlerError),
    Panic(String),
    Timeout(Duration),
}

impl HandlerFailure {
    fn outcome(&self) -> &'static str {
        match self {
            Self::Error(e) if e.is_permanent() => "permanent",
            Self::Error(_) => "error",
            Self::Panic(_) => "panic",
            Self::Timeout(_) => "timeout",
        }
    }

    fn ending(&self) -> &FailureEnding {
        match self {
            Self::Error(e) => &e.ending,
            Self::Panic(_) | Self::Timeout(_) => &FailureEnding::Retry,
        }
    }
}

impl fmt::Display for HandlerFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(e) => e.fmt(f),
            Self::Panic(message) => write!(f, "the handler panicked: {message}"),
            Self::Timeout(after) => write!(f, "the handler did not end within {after:?}"),
        }
    }
}

/// Runs the handler for one delivery and settles it.
pub(crate) async fn handle<R: RunHandler>(pool: &HandlerPool, runner: &mut R, delivery: Delivery) {
    let message = delivery.envelope().clone();
    let attempt = delivery.attempt();
    let span = process_span(&pool.system, &pool.info.source, attempt, &message);
    let scope = Scope::of(&message);
    scope.adopt(&span);
    let context = HandlerContext::new(&pool.info, delivery, span.clone());
    let mut running = RunningHandler::new(&pool.metrics, &span);
    let result = run(pool.handler_timeout, runner, context.clone(), message.clone(), &span, scope).await;
    running.outcome = result.as_ref().map_or_else(HandlerFailure::outcome, |()| "ok");
    drop(running);
    // The delivery is always there, since only this function takes it.
    let Some(delivery) = context.take_delivery() else { return };
    let (how, detail, failed) = match result {
        Ok(()) => (Settlement::Ack, None, None),
        Err(failure) => {
            let detail = detail(&failure);
            let how = if delivery.source().is_dead_letters() {
                pause_dead_letter(pool, attempt).await;
                Settlement::Release
            } else {
                pool.policy.after(attempt, failure.ending(), &detail)
            };
            let (source, id, error) = (pool.info.source.clone(), message.id.clone(), failure.to_string());
            let failed = FailedHandling { source, id, attempt, error, in_place: pool.policy.ordered };
            (how, Some(detail.into()), Some(failed))
        }
    };
    // The answer is not awaited, so that a settlement keeps no handler's place. The prefetch bounds how many are under
    // way.
    let record = HandlingRecord::new(&pool.counts, failed, &span);
    if let Some(run) = delivery.settle_recorded(how, detail, record) {
        poll_then_spawn(run).await;
    }
}

/// Runs the handler until it ends, panics or times out. Its future is dropped by the time this returns.
async fn run<R: RunHandler>(
    timeout: Option<Duration>,
    runner: &mut R,
    context: HandlerContext,
    message: Envelope,
    span: &Span,
    scope: Scope,
) -> Result<(), HandlerFailure> {
    // The handler is called inside the future, so that a panic before its first await is caught as well.
    let mut future = pin!(async move { runner.run(context, message).await });
    let ends_at = timeout.map(|timeout| (timeout, duration::after(Instant::now(), timeout)));
    let mut timer: Option<Pin<Box<Sleep>>> = None;
    poll_fn(|cx| {
        let polled = {
            let _entered = span.enter();
            let poll = || catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
            scope.enter(poll)
        };
        match polled {
            Ok(Poll::Ready(result)) => Poll::Ready(result.map_err(HandlerFailure::Error)),
            Err(panic) => Poll::Ready(Err(HandlerFailure::Panic(panic_text(&*panic)))),
            // The timer is made at the first wait: a handler that never waits costs none.
            Ok(Poll::Pending) => match ends_at {
                None => Poll::Pending,
                Some((timeout, ends_at)) => {
                    let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(ends_at)));
                    timer.as_mut().poll(cx).map(|()| Err(HandlerFailure::Timeout(timeout)))
                }
            },
        }
    })
    .await
}

/// Waits before a dead letter is released. Dead letters take no delay, so the handler's place is kept meanwhile;
/// without that the worker would spin.
async fn pause_dead_letter(pool: &HandlerPool, attempt: u32) {
    let mut stopping = pool.info.stopping.subscribe();
    tokio::select! {
        () = sleep(pool.policy.retry.delay(attempt)) => {}
        _ = stopping.wait_for(Option::is_some) => {}
    }
}

fn detail(failure: &HandlerFailure) -> String {
    let mut text = failure.to_string();
    if text.len() > MAX_DETAIL {
        text.truncate(text.floor_char_boundary(MAX_DETAIL));
    }
    text
}

/// Counts a handler's run, also if it is dropped before it ends.
struct RunningHandler<'a> {
    metrics: &'a HandleMetrics,
    span: &'a Span,
    started: Instant,
    outcome: &'static str,
}

impl<'a> RunningHandler<'a> {
    fn new(metrics: &'a HandleMetrics, span: &'a Span) -> Self {
        metrics.started();
        Self { metrics, span, started: Instant::now(), outcome: "cancelled" }
    }
}

impl Drop for RunningHandler<'_> {
    fn drop(&mut self) {
        self.span.record("polybus.outcome", self.outcome);
        if self.outcome != "ok" {
            self.span.record("error.type", self.outcome);
        }
        self.metrics.ended(self.outcome, self.started.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(ordered: bool, max_retry_delay: Option<Duration>) -> FailurePolicy {
        let settings = EntitySettings { ordered, max_hold: Duration::from_secs(10), ..EntitySettings::default() };
        let capabilities = Capabilities { max_retry_delay, ..Capabilities::default() };
        let Ok(policy) =
            FailurePolicy::new(Some(RetryPolicy::fixed(Duration::from_secs(60)).jitter(0.0)), &settings, &capabilities)
        else {
            panic!("the policy is valid")
        };
        policy
    }

    #[test]
    fn delays_are_cut_to_what_the_source_takes() {
        let retry = |p: FailurePolicy| p.after(1, &FailureEnding::Retry, "");
        let secs = |s| Settlement::RetryAfter(Duration::from_secs(s));
        assert_eq!(retry(policy(false, Some(Duration::MAX))), secs(60));
        assert_eq!(retry(policy(false, Some(Duration::from_secs(20)))), secs(20));
        assert_eq!(retry(policy(true, None)), secs(10));
        assert_eq!(retry(policy(false, None)), Settlement::Release);
    }

    #[test]
    fn a_handlers_dead_letter_keeps_its_reason_and_the_errors_text() {
        let dead = Settlement::DeadLetter { reason: "poison".into(), detail: "why".into() };
        let policy = policy(false, Some(Duration::MAX));
        assert_eq!(policy.after(1, &FailureEnding::DeadLetter("poison".into()), "why"), dead);
    }

    #[test]
    fn a_long_detail_is_cut_between_characters() {
        let text = detail(&HandlerFailure::Panic("é".repeat(MAX_DETAIL)));
        assert!(text.len() <= MAX_DETAIL && text.len() > MAX_DETAIL - 4 && text.ends_with('é'));
    }
}
