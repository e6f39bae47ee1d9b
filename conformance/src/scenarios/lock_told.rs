//! What the client is told of its locks.

use std::time::Duration;

use polybus_core::{ErrorKind, QueueSpec};
use tokio::time::{Instant, sleep_until};

use super::{settle_held::not_renewing, tools::short_lock};
use crate::{Cx, During, Fixture, Need, Outcome, Scenario, ensure, fail, message, scenario};

/// All of them.
pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "settle/lock-told",
            "locked_until leaves a margin and not more than that, and an ack shortly before it is final.",
            lock_told,
        )
        .needs(|_, c| Need::locks(c)),
    ]
}

async fn lock_told(cx: Cx) -> Outcome {
    let lock = short_lock(&cx);
    let q = cx.queue(QueueSpec::new().lock(lock)).await?;
    let (deadline, mut tries) = (cx.deadline(), 1);
    // A machine that never was in time tells nothing of the ack; the deadlines were judged all the same.
    while !is_in_time(&cx, &q, lock, tries).await.during(format!("try {tries}"))? && Instant::now() < deadline {
        tries += 1;
    }
    Ok(())
}

/// Takes a message and acks it shortly before its deadline: a little earlier at each try. False if this machine was too
/// late for that.
async fn is_in_time(cx: &Cx, q: &Fixture, lock: Duration, tries: u32) -> Outcome<bool> {
    q.publish(message(1)).await?;
    let asked = Instant::now();
    let mut sub = not_renewing(q, 1).await?;
    let delivery = cx.recv(&mut sub).await?;
    let got = Instant::now();
    let Some(until) = delivery.locked_until() else { fail!("no deadline told, though there are locks") };
    let margin = (lock / 4).min(Duration::from_secs(1));
    ensure!(until <= got + lock - margin, "no margin: {:?} of a lock of {lock:?} are promised", until - got);
    ensure!(until >= asked + lock * 3 / 4, "only {:?} of a lock of {lock:?} are promised", until - asked);
    sleep_until(until - (margin / 4 * tries).min(lock / 2)).await;
    let held = delivery.is_held();
    ensure!(held || Instant::now() >= until, "lost before its deadline");
    let acked = delivery.ack().await;
    if Instant::now() < until {
        acked.during("ack before the deadline")?;
        return cx.expect_none_for(&mut sub, lock + margin).await.map(|()| true);
    }
    sub.close().await?;
    match acked {
        Ok(()) => {}
        // It is taken out of the way of the next one.
        Err(e) if e.error().kind() == ErrorKind::LockLost => drop(cx.drain(&mut q.subscribe(1).await?, 1).await?),
        acked => acked.during("ack around the deadline")?,
    }
    Ok(false)
}
