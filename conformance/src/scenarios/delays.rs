//! Measuring how late a delayed delivery is.

use std::time::Duration;

use polybus_core::Delivery;
use tokio::time::Instant;

use crate::{Cx, During, Outcome, ensure};

/// A delay that was asked for.
#[derive(Clone, Copy)]
pub(super) struct Delay {
    by: Duration,
    /// Before the request: nothing may come sooner than `by` after it.
    asked: Instant,
    /// After the request was answered: from here on lateness counts.
    taken: Instant,
}

impl Delay {
    /// Gives a delivery back to come again after `by`.
    pub(super) async fn retry(delivery: Delivery, by: Duration) -> Outcome<Self> {
        let asked = Instant::now();
        delivery.retry_after(by).await.during(format!("retry after {by:?}"))?;
        Ok(Self { by, asked, taken: Instant::now() })
    }

    /// Does something that delays.
    pub(super) async fn of(by: Duration, request: impl Future<Output = Outcome>) -> Outcome<Self> {
        let asked = Instant::now();
        request.await?;
        Ok(Self { by, asked, taken: Instant::now() })
    }

    /// What was delayed has come now: not before its time, and at most 10 % late.
    pub(super) fn check(&self, cx: &Cx) -> Outcome {
        let now = Instant::now();
        let (early, late) = (now - self.asked, now - self.taken);
        ensure!(early >= self.by, "came after {early:?}, before its delay of {:?}", self.by);
        ensure!(late <= self.by.mul_f64(1.1) + slack(cx), "came after {late:?}, too late for a delay of {:?}", self.by);
        Ok(())
    }
}

/// What a loaded machine and a coarse target may add to any time that is measured. Nothing where the clock is ours.
pub(super) fn slack(cx: &Cx) -> Duration {
    cx.lateness(Duration::from_millis(if cx.time_is_free() { 5 } else { 1500 }))
}
