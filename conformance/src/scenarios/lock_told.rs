//! What the client is told of its locks.

use std::time::Duration;

use polybus_core::QueueSpec;
use tokio::time::{Instant, sleep_until};

use super::{settle_held::not_renewing, tools::short_lock};
use crate::{Cx, Need, Outcome, Scenario, ensure, fail, message, scenario};

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
    q.publish(message(1)).await?;
    let asked = Instant::now();
    let mut sub = not_renewing(&q, 1).await?;
    let delivery = cx.recv(&mut sub).await?;
    let got = Instant::now();
    let Some(until) = delivery.locked_until() else { fail!("no deadline told, though there are locks") };
    let margin = (lock / 4).min(Duration::from_secs(1));
    ensure!(until <= got + lock - margin, "no margin: {:?} of a lock of {lock:?} are promised", until - got);
    ensure!(until >= asked + lock * 3 / 4, "only {:?} of a lock of {lock:?} are promised", until - asked);
    sleep_until(until - margin / 4).await;
    ensure!(delivery.is_held(), "lost before its deadline");
    delivery.ack().await?;
    cx.expect_none_for(&mut sub, lock + margin).await
}
