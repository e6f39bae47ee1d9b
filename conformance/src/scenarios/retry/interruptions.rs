//! Retries outlive the consumer, the connection and the broker process that took them.

use std::time::Duration;

use polybus_core::QueueSpec;
use tokio::time::{Instant, sleep};

use super::SECOND;
use crate::{
    Cx, During, Need, Outcome, Scenario, ensure, ensure_eq, message, messages, number, scenario,
    scenarios::shared::{CutPoint, ExpectedDelay, SETTLED_QUEUE_AGE, check_cut, queue_through},
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "retry/survives-close",
            "A retry does not need the consumer that asked for it: it comes to another one in time.",
            survives_close,
        )
        .needs(|_, c| Need::retry(c, Duration::from_secs(2))),
        scenario(
            "retry/survives-restart",
            "Messages waiting for a retry survive a restart of the broker.",
            survives_restart,
        )
        .needs(|t, c| Need::retry(c, Duration::from_secs(3)).and(Need::durable_restart(t)))
        .timeout(Duration::from_secs(120))
        .alone(),
        scenario("retry/cut", "A connection lost at any point of a retry: the message comes again.", cut)
            .needs(|t, c| Need::retry(c, SECOND).and(Need::proxy(t)))
            .timeout(Duration::from_secs(120)),
    ]
}

async fn survives_close(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let first = q.on(cx.second_bus(&q.bus).await?);
    q.publish(message(1)).await?;
    let (mut sub, delivery) = first.one(&cx).await?;
    // This consumer waits before the other one closes, so that the time of the close does not count as lateness.
    let mut next = q.subscribe(1).await?;
    let retried = ExpectedDelay::retry(delivery, Duration::from_secs(2)).await?;
    let closes = async {
        sub.close().await?;
        Outcome::Ok(first.bus.close().await?)
    };
    let comes = async {
        let delivery = cx.recv(&mut next).await?;
        retried.check(&cx)?;
        Outcome::Ok(delivery)
    };
    let (closed, delivery) = tokio::join!(closes, comes);
    closed.during("close")?;
    let delivery = delivery?;
    ensure_eq!(delivery.attempt(), 2, "attempt");
    delivery.ack().await?;
    cx.expect_none(&mut next).await
}

async fn survives_restart(cx: Cx) -> Outcome {
    const N: usize = 20;
    let by = Duration::from_secs(3);
    // The topology names the delay, so that the delay's entities are as old as the queue.
    let q = cx.queue(QueueSpec::new().retry([by])).await?;
    let mut sub = q.subscribe(N).await?;
    sleep(SETTLED_QUEUE_AGE).await;
    q.publish_all(messages(0..N)).await?;
    let started = Instant::now();
    for delivery in cx.collect(&mut sub, N).await? {
        delivery.retry_after(by).await?;
    }
    cx.restart().await?;
    let mut seen = Vec::new();
    for i in 0..N {
        let within = cx.patience() + Duration::from_secs(20);
        let delivery = cx.recv_within(&mut sub, within).await.during(format!("{i} of {N} after the restart"))?;
        ensure!(started.elapsed() >= by, "came after {:?}", started.elapsed());
        ensure!(delivery.attempt() >= 2, "attempt {}", delivery.attempt());
        seen.push(number(delivery.envelope())?);
        delivery.ack().await?;
    }
    seen.sort_unstable();
    ensure_eq!(seen, (0..N).collect::<Vec<_>>(), "what came");
    Ok(())
}

async fn cut(cx: Cx) -> Outcome {
    let proxy = cx.proxy().await?;
    let (cut, safe) = queue_through(&cx, &proxy).await?;
    let mut sub = cut.subscribe(5).await?;
    // What the driver makes at the first use of a delay is there before the first cut.
    safe.publish(message(1000)).await?;
    cx.recv(&mut sub).await?.retry_after(SECOND).await?;
    cx.drain(&mut sub, 1).await?;
    for (n, cut_at) in CutPoint::every().enumerate() {
        safe.publish(message(n)).await?;
        let mut left = 2;
        while left > 0 {
            let what = format!("message {n}, {cut_at:?}, {left} deliveries to come");
            let delivery = cx.recv(&mut sub).await.during(what)?;
            if number(delivery.envelope())? != n {
                // The copy of an earlier, cut move exists already, and its message came again.
                check_cut(delivery.ack().await)?;
                continue;
            }
            if left == 2 {
                cut_at.arm(&proxy);
                check_cut(delivery.retry_after(SECOND).await)?;
                proxy.cut();
            } else {
                check_cut(delivery.ack().await)?;
            }
            left -= 1;
        }
    }
    Ok(())
}
