//! A broker that refuses, throttles or is switched off for a while, and comes back.

use std::{collections::BTreeMap, time::Duration};

use polybus_core::{Error, ErrorKind, QueueSpec};
use tokio::time::sleep;

use crate::{
    Cx, During, FlakyBroker, Outcome, Scenario, ensure_eq, message, number, scenario, scenarios::shared::wait_until,
};

pub(super) fn all() -> Vec<Scenario> {
    vec![scenario(
        "strangers/refused-for-a-while",
        "A broker that refuses, throttles or does not answer for a while: nothing ends, nothing is lost or doubled.",
        refused,
    )]
}

const N: usize = 60;

async fn refused(cx: Cx) -> Outcome {
    let flaky = FlakyBroker::new();
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
                wait_until(&cx, "calls that are refused", || flaky.refused() > before + 3).await?;
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
