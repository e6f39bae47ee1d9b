//! A broker that refuses, throttles, or is switched off for a while, and comes back.

use std::{collections::BTreeMap, time::Duration};

use polybus_core::{Error, ErrorKind, QueueSpec};
use tokio::time::{sleep, timeout};

use crate::{
    Calling, Cx, During, Failure, Flaky, Outcome, Scenario, ensure, ensure_eq, message, messages, number, scenario,
    scenarios::working::until,
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "strangers/refused-for-a-while",
            "A broker that refuses, throttles or does not answer for a while: nothing ends, nothing is lost or doubled.",
            refused,
        ),
        scenario(
            "lifecycle/close-while-settling",
            "Close ends in good time while settlements that have begun cannot reach the broker.",
            close_while_settling,
        ),
    ]
}

const N: usize = 60;

async fn refused(cx: Cx) -> Outcome {
    let flaky = Flaky::new();
    let q = cx.queue(QueueSpec::new()).await?;
    let setup = cx.setup(q.bus.topology().clone()).undeclared().wrap(flaky.around());
    let f = q.on(setup.options(|o| o.publish_timeout = Duration::from_secs(300)).open().await?);
    let mut sub = f.subscribe(5).await?;
    let publishing = tokio::spawn({
        let f = f.clone();
        async move {
            for n in 0..N {
                f.publish(message(n)).await.during(format!("message {n}"))?;
                sleep(Duration::from_millis(20)).await;
            }
            Outcome::Ok(())
        }
    });
    let trouble = tokio::spawn({
        let (flaky, cx) = (flaky.clone(), cx.clone());
        async move {
            for kind in [ErrorKind::Unavailable, ErrorKind::Throttled, ErrorKind::Timeout] {
                let before = flaky.refused();
                flaky.answer_all(Error::new(kind, "in trouble").safe());
                until(&cx, "calls that are refused", || flaky.refused() > before + 3).await?;
                flaky.well();
                sleep(Duration::from_millis(200)).await;
            }
            Outcome::Ok(())
        }
    });
    let mut seen: BTreeMap<usize, u32> = BTreeMap::new();
    for _ in 0..N {
        let delivery = cx.recv(&mut sub).await.during(format!("after {} messages", seen.len()))?;
        *seen.entry(number(delivery.envelope())?).or_default() += 1;
        ensure_eq!(delivery.attempt(), 1, "attempt");
        delivery.ack().await.during("ack")?;
    }
    publishing.await??;
    trouble.await??;
    ensure_eq!(seen.len(), N, "different messages among {N}");
    cx.expect_none(&mut sub).await
}

async fn close_while_settling(cx: Cx) -> Outcome {
    let flaky = Flaky::new();
    let q = cx.queue(QueueSpec::new()).await?;
    let f = q.on(cx.setup(q.bus.topology().clone()).undeclared().wrap(flaky.around()).open().await?);
    q.publish_all(messages(0..6)).await?;
    let mut sub = f.subscribe(6).await?;
    let mut held = cx.collect(&mut sub, 6).await?;
    flaky.answer(&[Calling::Settle], Error::new(ErrorKind::Unavailable, "an outage").safe());
    let before = flaky.refused();
    let settling: Vec<_> = held.drain(..3).map(|delivery| tokio::spawn(delivery.ack())).collect();
    until(&cx, "settlements that were refused", || flaky.refused() > before).await?;
    let most = cx.lateness(Duration::from_secs(30));
    let closed = timeout(most, f.bus.close()).await;
    // Whether it could say goodbye is not the point.
    let _ = closed.map_err(|_| Failure::new(format!("close does not end within {most:?}")))?;
    drop((held, sub));
    for task in settling {
        let settled = timeout(cx.patience(), task).await.map_err(|_| Failure::new("an ack hangs after close"))??;
        ensure!(settled.is_err(), "an ack that never reached the broker is Ok");
    }
    flaky.well();
    // All six are there: none of the acks was carried out.
    let mut sub = q.subscribe(6).await?;
    for delivery in cx.collect(&mut sub, 6).await.during("after the close")? {
        delivery.ack().await?;
    }
    cx.expect_none(&mut sub).await
}
