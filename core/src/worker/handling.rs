//! One handling: run the handler, decide what becomes of the message, and settle it.

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
    consume::{
        Delivery,
        settle::{
            handling_record::{Failed, Told},
            rules::MAX_DELIVERIES,
        },
    },
    driver::{Capabilities, Settlement, catch_panic::panic_text},
    error::Result,
    message::Envelope,
    runtime::duration,
    telemetry::{HandleMetrics, TraceScope, process_span},
    topology::{EntitySettings, Source},
    worker::{
        HandlerContext, HandlerError, RetryPolicy, handler::Ending, pool::Pool, runner::Runner, settling::settle,
    },
};

/// Longest detail of a dead letter, in bytes: brokers carry it in headers.
const MAX_DETAIL: usize = 2048;

/// What becomes of failures.
pub(crate) struct Policy {
    retry: RetryPolicy,
    pub(crate) max_deliveries: Option<u32>,
    /// Longest delay the source takes; `None` if it takes none at all.
    longest: Option<Duration>,
    pub(crate) ordered: bool,
}

impl Policy {
    pub(crate) fn new(
        given: Option<RetryPolicy>,
        settings: &EntitySettings,
        source: &Source,
        capabilities: &Capabilities,
    ) -> Result<Self> {
        let retry = given.unwrap_or_else(|| RetryPolicy::new(settings.retry.iter().copied()));
        retry.check()?;
        let max_deliveries = (!source.is_dead_letters()).then_some(settings.max_deliveries);
        let longest = match settings.ordered {
            true => Some(settings.max_hold),
            false => capabilities.max_retry_delay,
        };
        Ok(Self { retry, max_deliveries, longest, ordered: settings.ordered })
    }

    /// What to do with a message whose handler failed at this attempt. Dead letters are not settled by this.
    fn after(&self, attempt: u32, ending: &Ending, detail: String) -> Settlement {
        let dead_letter = |reason: &str| Settlement::DeadLetter { reason: reason.into(), detail: detail.into() };
        let delay = match ending {
            Ending::DeadLetter(reason) => return dead_letter(reason),
            _ if self.max_deliveries.is_some_and(|n| attempt >= n) => return dead_letter(MAX_DELIVERIES),
            Ending::RetryAfter(delay) => *delay,
            Ending::Retry => self.retry.delay(attempt),
        };
        match self.longest {
            Some(longest) if !delay.is_zero() => Settlement::RetryAfter(delay.min(longest)),
            _ => Settlement::Release,
        }
    }
}

enum Failure {
    Error(HandlerError),
    Panic(String),
    Timeout(Duration),
}

impl Failure {
    fn outcome(&self) -> &'static str {
        match self {
            Self::Error(e) if e.is_permanent() => "permanent",
            Self::Error(_) => "error",
            Self::Panic(_) => "panic",
            Self::Timeout(_) => "timeout",
        }
    }

    fn ending(&self) -> &Ending {
        match self {
            Self::Error(e) => &e.ending,
            Self::Panic(_) | Self::Timeout(_) => &Ending::Retry,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(e) => e.fmt(f),
            Self::Panic(message) => write!(f, "the handler panicked: {message}"),
            Self::Timeout(after) => write!(f, "the handler did not end within {after:?}"),
        }
    }
}

/// Runs the handler for one delivery and settles it.
pub(crate) async fn handle<R: Runner>(pool: &Pool, runner: &mut R, delivery: Delivery) {
    let message = delivery.envelope().clone();
    let attempt = delivery.attempt();
    let span = process_span(&pool.system, &pool.about.source, attempt, &message);
    let trace = TraceScope::of(&message);
    if let Some(trace) = &trace {
        trace.adopt(&span);
    }
    let context = HandlerContext::new(&pool.about, delivery, span.clone());
    let mut running = Running::new(&pool.metrics, &span);
    let result = run(pool.handler_timeout, runner, context.clone(), message.clone(), &span, trace).await;
    running.outcome = result.as_ref().map_or_else(Failure::outcome, |()| "ok");
    drop(running);
    // It is always there: only this function takes it.
    let Some(delivery) = context.take() else { return };
    let (how, failed) = match result {
        Ok(()) => (Settlement::Ack, None),
        Err(failure) => {
            let how = if delivery.source().is_dead_letters() {
                pause_dead_letter(pool, attempt).await;
                Settlement::Release
            } else {
                pool.policy.after(attempt, failure.ending(), detail(&failure))
            };
            let (source, id, error) = (pool.about.source.clone(), message.id.clone(), failure.to_string());
            (how, Some(Failed { source, id, attempt, error, in_place: pool.policy.ordered }))
        }
    };
    // A retry that is held in place takes as long as its delay, and core sees to it.
    let follow = how != Settlement::Ack && !(pool.policy.ordered && matches!(how, Settlement::RetryAfter(_)));
    let told = Told::new(&pool.tally, failed, &span);
    settle(pool, delivery, how, follow, told).await;
}

/// Runs the handler to its end, its panic or its timeout. Its future is gone when this returns.
async fn run<R: Runner>(
    timeout: Option<Duration>,
    runner: &mut R,
    context: HandlerContext,
    message: Envelope,
    span: &Span,
    trace: Option<TraceScope>,
) -> Result<(), Failure> {
    // The call itself is made inside, so that a panic before the first await is caught as well.
    let mut future = pin!(async move { runner.run(context, message).await });
    let ends = timeout.map(|timeout| (timeout, duration::after(Instant::now(), timeout)));
    let mut timer: Option<Pin<Box<Sleep>>> = None;
    poll_fn(|cx| {
        let polled = {
            let _entered = span.enter();
            let mut poll = || catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
            match &trace {
                Some(trace) => trace.enter(poll),
                None => poll(),
            }
        };
        match polled {
            Ok(Poll::Ready(result)) => Poll::Ready(result.map_err(Failure::Error)),
            Err(panic) => Poll::Ready(Err(Failure::Panic(panic_text(&*panic)))),
            // A handler that never waits costs no timer.
            Ok(Poll::Pending) => match ends {
                None => Poll::Pending,
                Some((timeout, ends)) => {
                    let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(ends)));
                    timer.as_mut().poll(cx).map(|()| Err(Failure::Timeout(timeout)))
                }
            },
        }
    })
    .await
}

/// Dead letters take no delay, so the place of the handler is kept for a while instead of spinning.
async fn pause_dead_letter(pool: &Pool, attempt: u32) {
    let mut stopping = pool.about.stopping.subscribe();
    tokio::select! {
        () = sleep(pool.policy.retry.delay(attempt)) => {}
        _ = stopping.wait_for(Option::is_some) => {}
    }
}

fn detail(failure: &Failure) -> String {
    let mut text = failure.to_string();
    if text.len() > MAX_DETAIL {
        text.truncate(text.floor_char_boundary(MAX_DETAIL));
    }
    text
}

/// Counts a run also if it is dropped half-way.
struct Running<'a> {
    metrics: &'a HandleMetrics,
    span: &'a Span,
    began: Instant,
    outcome: &'static str,
}

impl<'a> Running<'a> {
    fn new(metrics: &'a HandleMetrics, span: &'a Span) -> Self {
        metrics.started();
        Self { metrics, span, began: Instant::now(), outcome: "cancelled" }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.span.record("polybus.outcome", self.outcome);
        if self.outcome != "ok" {
            self.span.record("error.type", self.outcome);
        }
        self.metrics.ended(self.outcome, self.began.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(ordered: bool, max_retry_delay: Option<Duration>, source: &Source) -> Policy {
        let settings = EntitySettings { ordered, max_hold: Duration::from_secs(10), ..EntitySettings::default() };
        let capabilities = Capabilities { max_retry_delay, ..Capabilities::default() };
        let Ok(policy) = Policy::new(
            Some(RetryPolicy::fixed(Duration::from_secs(60)).jitter(0.0)),
            &settings,
            source,
            &capabilities,
        ) else {
            panic!("the policy is valid")
        };
        policy
    }

    #[test]
    fn delays_are_cut_to_what_the_source_takes() {
        let source = Source::queue("q");
        let retry = |p: Policy| p.after(1, &Ending::Retry, String::new());
        let secs = |s| Settlement::RetryAfter(Duration::from_secs(s));
        assert_eq!(retry(policy(false, Some(Duration::MAX), &source)), secs(60));
        assert_eq!(retry(policy(false, Some(Duration::from_secs(20)), &source)), secs(20));
        assert_eq!(retry(policy(true, None, &source)), secs(10));
        assert_eq!(retry(policy(false, None, &source)), Settlement::Release);
    }

    #[test]
    fn the_last_attempt_is_dead_lettered_with_the_errors_text() {
        let p = policy(false, Some(Duration::MAX), &Source::queue("q"));
        for ending in [Ending::Retry, Ending::RetryAfter(Duration::from_secs(1))] {
            assert!(matches!(p.after(4, &ending, "why".into()), Settlement::RetryAfter(_)));
            let dead = Settlement::DeadLetter { reason: MAX_DELIVERIES.into(), detail: "why".into() };
            assert_eq!(p.after(5, &ending, "why".into()), dead);
        }
        let dead = Settlement::DeadLetter { reason: "poison".into(), detail: "why".into() };
        assert_eq!(p.after(1, &Ending::DeadLetter("poison".into()), "why".into()), dead);
    }

    #[test]
    fn a_long_detail_is_cut_between_characters() {
        let text = detail(&Failure::Panic("é".repeat(MAX_DETAIL)));
        assert!(text.len() <= MAX_DETAIL && text.len() > MAX_DETAIL - 4 && text.ends_with('é'));
    }
}
