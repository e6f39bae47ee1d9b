//! Waiting for messages over many reconnects, and a server that dies right after its answer.

use std::{collections::BTreeMap, time::Duration};

use polybus_core::{Outgoing, QueueSpec};
use tokio::time::sleep;

use super::lifecycle_faults::SETTLED;
use crate::{Cx, During, Need, Outcome, Scenario, ensure, ensure_eq, message, messages, number, scenario};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "lifecycle/pulls-over-reconnects",
            "A consumer that waits while its connection is lost ten times takes everything later, each at attempt 1.",
            pulls,
        )
        .needs(|t, _| Need::proxy(t))
        .timeout(Duration::from_secs(120)),
        scenario(
            "attempts/server-kill",
            "Attempts, retries and delays that the broker has answered survive its being killed in that moment.",
            server_kill,
        )
        .needs(|t, c| {
            Need::durable_restart(t).and(Need::attempts_across_crash(c)).and(Need::retry(c, Duration::from_secs(3)))
        })
        .alone()
        .timeout(Duration::from_secs(180)),
    ]
}

async fn pulls(cx: Cx) -> Outcome {
    const N: usize = 40;
    let proxy = cx.proxy().await?;
    let q = cx.queue(QueueSpec::new().max_deliveries(100)).await?;
    let through = q.on(cx.setup(q.bus.topology().clone()).through(&proxy).undeclared().open().await?);
    let mut sub = through.subscribe(10).await?;
    for round in 0..10 {
        // A call that waits at the broker, wide open, when its connection goes.
        cx.expect_none_for(&mut sub, Duration::from_millis(150)).await.during(format!("round {round}"))?;
        if round % 3 == 2 {
            proxy.refuse(true).await;
        }
        proxy.cut();
        sleep(Duration::from_millis(50)).await;
        proxy.refuse(false).await;
    }
    cx.expect_none(&mut sub).await?;
    if let Some(lock) = cx.lock_outlives() {
        // A poll on a lost connection ends by itself where the broker does not see that it is lost: within the lock.
        cx.expect_none_for(&mut sub, lock).await?;
    }
    q.publish_all(messages(0..N)).await?;
    let mut seen: BTreeMap<usize, u32> = BTreeMap::new();
    for _ in 0..N {
        let delivery = cx.recv(&mut sub).await.during(format!("after {} of {N}", seen.len()))?;
        let n = number(delivery.envelope())?;
        ensure!(seen.insert(n, delivery.attempt()).is_none(), "came twice: {delivery:?}");
        ensure_eq!(delivery.attempt(), 1, "attempt of message {n}: an old call of the consumer's took it first");
        delivery.ack().await?;
    }
    cx.expect_none(&mut sub).await
}

async fn server_kill(cx: Cx) -> Outcome {
    let by = Duration::from_secs(3);
    // Named, so that what the delay needs is as old as the queue when the broker dies.
    let q = cx.queue(QueueSpec::new().max_deliveries(100).retry([by])).await?;
    sleep(SETTLED).await;
    q.publish_all(messages(0..2)).await?;
    let mut sub = q.subscribe(2).await?;
    let mut held = None;
    for attempt in 1..=2 {
        for delivery in cx.collect(&mut sub, 2).await? {
            ensure_eq!(delivery.attempt(), attempt, "attempt");
            match (attempt, number(delivery.envelope())?) {
                (1, _) => delivery.release().await?,
                (_, 0) => delivery.retry_after(by).await?,
                // Held when the broker dies.
                _ => held = Some(delivery),
            }
        }
    }
    if cx.capabilities().max_queue_delay.is_some_and(|most| most >= by) {
        q.publish(Outgoing::from(message(2)).delay(by)).await?;
    } else {
        q.publish(message(2)).await?;
    }
    cx.restart().await?;
    drop(held);
    let mut seen = BTreeMap::new();
    while seen.len() < 3 {
        let delivery = cx.recv(&mut sub).await.during(format!("after the restart came {seen:?}"))?;
        let n = number(delivery.envelope())?;
        let attempt = delivery.attempt();
        seen.insert(n, attempt);
        ensure!(n == 2 || attempt >= 3, "message {n} comes at attempt {attempt}, it was handed out twice before");
        // A lost connection costs an ack, and the message comes again.
        let _ = delivery.ack().await;
    }
    Ok(())
}
