//! Clocks that differ by minutes.

use std::{sync::Arc, time::Duration};

use polybus_core::{Bus, Outgoing, QueueSpec, clock::Clock};
use time::OffsetDateTime;
use tokio::time::Instant;

use super::redrive;
use crate::{
    Cx, During, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, message, messages, number, numbers, scenario,
    scenarios::shared::ExpectedDelay,
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "strangers/clocks-and-dead-letters",
            "Dead letters of programs whose clocks are minutes ahead or behind: each redrive moves all that are there.",
            dead_letters,
        )
        .needs(|_, c| Need::redrive(c)),
        scenario(
            "strangers/clocks-and-delays",
            "A clock that is off by minutes changes no retry, no delay and no lock.",
            delays,
        )
        .needs(|_, c| Need::retry(c, Duration::from_secs(1))),
        scenario(
            "strangers/clocks-and-expiry",
            "A message that is expired by the consumer's clock alone is never lost unseen: it can be a dead letter.",
            expiry,
        )
        .needs(|_, c| Need::dead_letters(c)),
    ]
}

const OFF: time::Duration = time::Duration::minutes(5);

/// A clock that differs from another one by this much.
struct ShiftedClock {
    by: time::Duration,
    of: Bus,
}

impl Clock for ShiftedClock {
    fn now(&self) -> OffsetDateTime {
        self.of.now() + self.by
    }
}

/// The same queue, used by a program whose clock is off by this much.
async fn shifted(cx: &Cx, q: &Fixture, by: time::Duration) -> Outcome<Fixture> {
    let clock = Arc::new(ShiftedClock { by, of: q.bus.clone() });
    let setup = cx.setup(q.bus.topology().clone()).undeclared();
    Ok(q.on(setup.options(|o| o.clock = Some(clock)).open().await?))
}

async fn dead_letters(cx: Cx) -> Outcome {
    const EACH: usize = 4;
    let q = cx.queue(QueueSpec::new()).await?;
    let (ahead, behind) = (shifted(&cx, &q, OFF).await?, shifted(&cx, &q, -OFF).await?);
    for redriver in [&q, &ahead, &behind] {
        for (i, of) in [&ahead, &q, &behind].into_iter().enumerate() {
            of.publish_all(messages(i * EACH..(i + 1) * EACH)).await?;
            let mut sub = of.subscribe(EACH).await?;
            for delivery in cx.collect(&mut sub, EACH).await? {
                delivery.dead_letter("unfit", "").await?;
            }
            sub.close().await?;
        }
        redrive(redriver, 3 * EACH).await?;
        let mut sub = q.subscribe(3 * EACH).await?;
        let mut back = numbers(&cx.drain(&mut sub, 3 * EACH).await?)?;
        back.sort_unstable();
        ensure_eq!(back, (0..3 * EACH).collect::<Vec<_>>(), "what is back");
        cx.expect_none(&mut sub).await?;
    }
    Ok(())
}

async fn delays(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    for by in [OFF, -OFF] {
        let f = shifted(&cx, &q, by).await?;
        let second = Duration::from_secs(1);
        let mut sub = f.subscribe(1).await?;
        f.publish(message(1)).await?;
        let delay = ExpectedDelay::retry(cx.recv(&mut sub).await?, second).await?;
        let mut held = cx.recv(&mut sub).await.during(format!("a retry with the clock off by {by}"))?;
        delay.check(&cx).during(format!("the clock is off by {by}"))?;
        ensure!(held.is_held(), "the lock ends with the clock off by {by}");
        if cx.capabilities().locks {
            held.extend(Duration::from_secs(20)).await.during("extend")?;
        }
        held.ack().await.during("ack")?;
        if cx.capabilities().max_queue_delay.is_some_and(|most| most >= second) {
            let later = Outgoing::from(message(2)).delay(second);
            let delay = ExpectedDelay::of(second, async { f.publish(later).await }).await?;
            let delivery = cx.recv(&mut sub).await?;
            delay.check(&cx).during(format!("a publish delay, the clock off by {by}"))?;
            delivery.ack().await?;
        }
        sub.close().await?;
    }
    Ok(())
}

async fn expiry(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().dead_letter_expired(true)).await?;
    let (ahead, behind) = (shifted(&cx, &q, OFF).await?, shifted(&cx, &q, -OFF).await?);
    let began = Instant::now();
    // A lifetime of an hour has not ended for a clock that is five minutes off.
    q.publish(message(0).expires_at(q.bus.now() + Duration::from_secs(3600))).await?;
    let mut sub = ahead.subscribe(1).await?;
    cx.drain(&mut sub, 1).await.during("far from its end, for a clock that is ahead")?;
    // A lifetime of two minutes has ended for a clock five minutes ahead, and has not for one behind.
    for n in [1, 2] {
        q.publish(message(n).expires_at(q.bus.now() + Duration::from_secs(120))).await?;
    }
    cx.expect_none(&mut sub).await.during("expired by the consumer's clock")?;
    sub.close().await?;
    let mut dead = behind.subscribe_dead(2).await?;
    for letter in cx.collect(&mut dead, 2).await.during("what expired by one clock")? {
        let reason = letter.dead_letter_info().and_then(|d| d.reason.as_deref());
        ensure_eq!(reason, Some("expired"), "reason");
        letter.ack().await?;
    }
    dead.close().await?;
    q.publish(message(3).expires_at(q.bus.now() + Duration::from_secs(120))).await?;
    let mut sub = behind.subscribe(1).await?;
    if began.elapsed() < Duration::from_secs(100) {
        let delivery = cx.recv(&mut sub).await.during("for a clock that is behind")?;
        ensure_eq!(number(delivery.envelope())?, 3, "what comes");
        delivery.ack().await?;
    }
    Ok(())
}
