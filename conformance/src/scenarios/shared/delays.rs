//! Measuring how late a delayed delivery is.

use std::time::Duration;

use polybus_core::{Delivery, Subscription};
use tokio::{task::JoinSet, time::Instant};

use crate::{Cx, During, Outcome, ensure, fail, number};

/// A delay that was asked for, and when.
#[derive(Clone, Copy)]
pub(crate) struct ExpectedDelay {
    by: Duration,
    /// The time before the request. The message must not come sooner than `by` after it.
    asked: Instant,
    /// The time after the request was answered. Lateness counts from here.
    taken: Instant,
}

impl ExpectedDelay {
    /// Retries a delivery after `by`.
    pub(crate) async fn retry(delivery: Delivery, by: Duration) -> Outcome<Self> {
        let asked = Instant::now();
        delivery.retry_after(by).await.during(format!("retry after {by:?}"))?;
        Ok(Self { by, asked, taken: Instant::now() })
    }

    /// Makes a request that asks for a delay.
    pub(crate) async fn of(by: Duration, request: impl Future<Output = Outcome>) -> Outcome<Self> {
        let asked = Instant::now();
        request.await?;
        Ok(Self { by, asked, taken: Instant::now() })
    }

    /// Another delay, which was asked for in the same request.
    pub(crate) fn with(self, by: Duration) -> Self {
        Self { by, ..self }
    }

    /// Fails unless a message that comes now is not early, and at most 10 % late.
    pub(crate) fn check(&self, cx: &Cx) -> Outcome {
        self.check_at(cx, Instant::now())
    }

    /// Like [`ExpectedDelay::check`], for a message that came at this time.
    fn check_at(&self, cx: &Cx, came: Instant) -> Outcome {
        let (early, late) = (came - self.asked, came - self.taken);
        ensure!(early >= self.by, "came after {early:?}, before its delay of {:?}", self.by);
        ensure!(
            late <= self.by.mul_f64(1.1) + timing_slack(cx),
            "came after {late:?}, too late for a delay of {:?}",
            self.by
        );
        Ok(())
    }

    /// Fails unless a message that was given back without a delay comes now at once. On a real clock that means: well
    /// before its lock ends.
    pub(crate) fn check_at_once(&self, cx: &Cx, lock: Duration) -> Outcome {
        let late = self.taken.elapsed();
        let most = if cx.time_is_free() { timing_slack(cx) } else { lock / 2 };
        ensure!(late <= most, "came after {late:?}, not at once");
        Ok(())
    }
}

/// Fails unless all of these come, each after its own delay, and acks them. On the paused clock the order is checked
/// too: real brokers promise none between separate requests.
pub(crate) async fn expect_all(cx: &Cx, sub: &mut Subscription, mut due: Vec<(usize, ExpectedDelay)>) -> Outcome {
    // Acks run side by side: a slow answer to one would make the next message late.
    let mut acks = JoinSet::new();
    while let Some(longest) = due.iter().map(|(_, delay)| delay.by).max() {
        let what = format!("{} delayed ones to come", due.len());
        let delivery = cx.recv_within(sub, longest + cx.patience()).await.during(what)?;
        let came = Instant::now();
        let n = number(delivery.envelope())?;
        let Some(at) = due.iter().position(|(of, _)| *of == n) else { fail!("message {n} came, and none was due") };
        let (_, delay) = due.remove(at);
        delay.check_at(cx, came).during(format!("message {n}"))?;
        ensure!(at == 0 || !cx.time_is_free(), "message {n} came before one that was due sooner");
        acks.spawn(delivery.ack());
    }
    while let Some(acked) = acks.join_next().await {
        acked?.during("ack")?;
    }
    Ok(())
}

/// What a busy machine and coarse timers may add to any measured time. Zero on the paused clock.
pub(crate) fn timing_slack(cx: &Cx) -> Duration {
    cx.lateness(Duration::from_millis(if cx.time_is_free() { 5 } else { 5000 }))
}
