//! Measuring how late a delayed delivery is.

use std::time::Duration;

use polybus_core::{Delivery, Subscription};
use tokio::{task::JoinSet, time::Instant};

use crate::{Cx, During, Outcome, ensure, fail, number};

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

    /// Another delay, asked for in the same request.
    pub(super) fn with(self, by: Duration) -> Self {
        Self { by, ..self }
    }

    /// What was delayed has come now: not before its time, and at most 10 % late.
    pub(super) fn check(&self, cx: &Cx) -> Outcome {
        self.check_at(cx, Instant::now())
    }

    /// The same of what came then.
    fn check_at(&self, cx: &Cx, came: Instant) -> Outcome {
        let (early, late) = (came - self.asked, came - self.taken);
        ensure!(early >= self.by, "came after {early:?}, before its delay of {:?}", self.by);
        ensure!(late <= self.by.mul_f64(1.1) + slack(cx), "came after {late:?}, too late for a delay of {:?}", self.by);
        Ok(())
    }

    /// What was given back without a delay has come now. On a real clock that is told from what comes as its lock ends.
    pub(super) fn check_at_once(&self, cx: &Cx, lock: Duration) -> Outcome {
        let late = self.taken.elapsed();
        let most = if cx.time_is_free() { slack(cx) } else { lock / 2 };
        ensure!(late <= most, "came after {late:?}, not at once");
        Ok(())
    }
}

/// All of these come and are acked, each after its own delay. No order is promised between separate requests; where the
/// clock is ours, nothing comes before what stands in front of it.
pub(super) async fn all_come(cx: &Cx, sub: &mut Subscription, mut due: Vec<(usize, Delay)>) -> Outcome {
    // Not one after another: a slow answer to one ack would make the next message late.
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

/// What a loaded machine and a coarse target may add to any time that is measured. Nothing where the clock is ours.
pub(super) fn slack(cx: &Cx) -> Duration {
    cx.lateness(Duration::from_millis(if cx.time_is_free() { 5 } else { 5000 }))
}
