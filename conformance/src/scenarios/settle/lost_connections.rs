//! An ack that is Ok has reached the broker, where acks are confirmed.

use std::time::Duration;

use polybus_core::{ErrorKind, QueueSpec};
use tokio::time::timeout;

use crate::{Cx, During, Need, Outcome, Scenario, ensure, fail, messages, number, scenario};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "settle/ok-means-done",
            "An ack that is Ok is final though its consumer and its connection vanish in the same moment.",
            ok_means_done,
        )
        .needs(|_, c| Need::confirmed_settlement(c)),
        scenario(
            "settle/no-ok-while-stalled",
            "No ack is Ok while the connection is stalled; what says Ok in the end is gone, the rest comes again.",
            no_ok_while_stalled,
        )
        .needs(|t, c| Need::confirmed_settlement(c).and(Need::proxy(t)))
        .timeout(Duration::from_secs(120)),
    ]
}

const N: usize = 5;

async fn ok_means_done(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().max_deliveries(100)).await?;
    for round in 0..5 {
        q.publish_all(messages(0..N)).await?;
        let bus = cx.second_bus(&q.bus).await?;
        let mut sub = q.on(bus.clone()).subscribe(N).await?;
        for delivery in cx.collect(&mut sub, N).await? {
            delivery.ack().await.during("ack")?;
        }
        // Not closed: whatever had been left for later is gone with them.
        drop((sub, bus));
        let mut sub = q.subscribe(N).await?;
        cx.expect_none(&mut sub).await.during(format!("after acks that were Ok, round {round}"))?;
        sub.close().await?;
    }
    Ok(())
}

async fn no_ok_while_stalled(cx: Cx) -> Outcome {
    let proxy = cx.proxy().await?;
    let q = cx.queue(QueueSpec::new().max_deliveries(100)).await?;
    let through = q.on(cx.setup(q.bus.topology().clone()).through(&proxy).undeclared().open().await?);
    q.publish_all(messages(0..N)).await?;
    let mut sub = through.subscribe(N).await?;
    let mut held = cx.collect(&mut sub, N).await?;
    proxy.stall(true);
    let mut acks = tokio::task::JoinSet::new();
    for delivery in held.drain(..) {
        let n = number(delivery.envelope())?;
        acks.spawn(async move { (n, delivery.ack().await.map_err(polybus_core::Error::from)) });
    }
    let mut done = Vec::new();
    let early = timeout(Duration::from_secs(3), async {
        while let Some(ended) = acks.join_next().await {
            let (n, result) = ended?;
            if result.is_ok() {
                fail!("the ack of message {n} is Ok, and nothing can have reached the broker");
            }
            done.push((n, result));
        }
        Outcome::Ok(())
    })
    .await;
    early.unwrap_or(Ok(()))?;
    proxy.stall(false);
    while let Some(ended) = timeout(cx.patience(), acks.join_next()).await.unwrap_or(None) {
        done.push(ended?);
    }
    ensure!(done.len() == N, "{} of {N} acks hang after the stall", N - done.len());
    sub.close().await?;
    let mut sub = q.subscribe(N).await?;
    let left: Vec<usize> = crate::numbers(&super::tools::rest(&cx, &mut sub, 0).await?)?;
    for (n, result) in done {
        match result {
            Ok(()) => {
                ensure!(!left.contains(&n), "message {n} comes again after an ack that was Ok");
            }
            Err(e) => {
                let passing = matches!(e.kind(), ErrorKind::LockLost | ErrorKind::Unavailable | ErrorKind::Timeout);
                ensure!(passing, "an ack at a stalled broker: {e:?}");
            }
        }
    }
    Ok(())
}
