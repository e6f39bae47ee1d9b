//! Memory stays bounded, whichever side is slow or gone.

use std::{sync::Arc, time::Duration};

use polybus_core::{Envelope, Error, ErrorKind, QueueSpec, RetrySafety, Topology};
use tokio::time::{Instant, timeout};

use crate::{
    Cx, During, Failure, Need, Outcome, Scenario,
    drivers::outage_switch::OutageSwitch,
    ensure, ensure_eq, message, messages, scenario,
    scenarios::shared::{GoalCounter, expect_same, publish_until, wait_until},
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "lifecycle/outage-is-bounded",
            "One large publish_all in an outage encodes no more than may wait; then all fail as Unavailable, Safe.",
            outage_is_bounded,
        ),
        scenario(
            "lifecycle/outage-that-ends",
            "What waits for room in an outage is published once it ends, each once.",
            outage_that_ends,
        ),
        scenario(
            "lifecycle/stalled-broker",
            "A broker that takes nothing and says nothing: publishes end by their timeout, memory stays bounded.",
            stalled_broker,
        )
        .needs(|t, _| Need::proxy(t)),
        scenario(
            "lifecycle/slow-handlers",
            "Behind slow handlers no more than the prefetch is held, whatever waits at the broker.",
            slow_handlers,
        ),
        scenario(
            "lifecycle/idle-consumers",
            "Fifty consumers that come and go leave nothing of what they held behind.",
            idle_consumers,
        ),
    ]
}

const SIZE: usize = 8 << 10;

const ROOM: usize = 256 << 10;

fn large(n: usize, data: &Arc<[u8]>) -> Envelope {
    message(n).edit(|p| p.data = bytes::Bytes::from_owner(data.clone()))
}

fn data() -> Arc<[u8]> {
    vec![b'x'; SIZE].into()
}

async fn outage_is_bounded(cx: Cx) -> Outcome {
    let (watch, data) = (OutageSwitch::default(), data());
    let q = cx.queue(QueueSpec::new()).await?;
    let setup = cx.setup(q.bus.topology().clone()).undeclared().wrap(watch.around());
    let bus = setup
        .options(|o| {
            o.publish_timeout = Duration::from_secs(2);
            o.max_pending_bytes = ROOM;
        })
        .open()
        .await?;
    let f = q.on(bus.clone());
    publish_until(&cx, &f, &message(0), None).await.during("publish before the outage")?;
    watch.down(true);
    let began = Instant::now();
    let publishing = bus.publish_all(&q.address, (0..2000).map(|n| large(n, &data)));
    let results = timeout(cx.patience() * 2, publishing).await;
    let results = results.map_err(|_| Failure::new("publish_all hangs in an outage"))?;
    let took = began.elapsed();
    // A backoff that would end after the timeout is not waited for, so the publish may end a little earlier.
    ensure!(took >= Duration::from_secs(1), "given up after {took:?}, long before the publish timeout of 2 s");
    for result in &results {
        let Err(e) = result else { return Err(Failure::new("a publish in an outage is Ok")) };
        ensure!(matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "a publish in an outage: {e:?}");
        ensure_eq!(e.retry(), RetrySafety::Safe, "nothing was sent: {e:?}");
    }
    let most = watch.encoded().1;
    ensure!(most <= ROOM / SIZE + 2, "{most} encoded messages of {SIZE} bytes at once, where {ROOM} bytes may wait");
    wait_until(&cx, "all encoded messages are dropped", || watch.encoded().0 == 0).await?;
    watch.down(false);
    publish_until(&cx, &f, &message(1), None).await.during("publish after the outage")
}

async fn outage_that_ends(cx: Cx) -> Outcome {
    let (watch, data) = (OutageSwitch::default(), data());
    let q = cx.queue(QueueSpec::new()).await?;
    let setup = cx.setup(q.bus.topology().clone()).undeclared().wrap(watch.around());
    let bus = setup.options(|o| o.max_pending_bytes = ROOM).open().await?;
    let sent: Vec<Envelope> = (0..200).map(|n| large(n, &data)).collect();
    watch.down(true);
    let publishing = tokio::spawn(bus.publish_all(&q.address, sent.clone()));
    // Two attempts were refused, so that it has waited and tried again.
    wait_until(&cx, "publish_all to have tried again", || watch.refused() >= 3).await?;
    ensure!(!publishing.is_finished(), "publish_all does not wait for the outage to end");
    watch.down(false);
    for result in timeout(cx.patience() * 2, publishing).await.map_err(|_| Failure::new("it hangs"))?? {
        result.during("a publish that waited for the outage to end")?;
    }
    let mut sub = q.subscribe(50).await?;
    let got = cx.drain(&mut sub, 200).await?;
    expect_same(&sent, &got, "after the outage")?;
    let most = watch.encoded().1;
    ensure!(most <= ROOM / SIZE + 2, "{most} encoded messages at once");
    Ok(())
}

async fn stalled_broker(cx: Cx) -> Outcome {
    let (watch, data, proxy) = (OutageSwitch::default(), data(), cx.proxy().await?);
    let q = cx.queue(QueueSpec::new()).await?;
    let setup = cx.setup(q.bus.topology().clone()).undeclared().through(&proxy).wrap(watch.around());
    let bus = setup
        .options(|o| {
            o.publish_timeout = Duration::from_secs(3);
            o.max_pending_bytes = ROOM;
        })
        .open()
        .await?;
    let f = q.on(bus.clone());
    publish_until(&cx, &f, &message(0), None).await.during("publish before the stall")?;
    proxy.stall(true);
    let publishing = bus.publish_all(&q.address, (0..2000).map(|n| large(n, &data)));
    let results = timeout(cx.patience() * 2, publishing).await;
    let results = results.map_err(|_| Failure::new("publish_all hangs at a stalled broker"))?;
    let passing = |e: &Error| matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Throttled);
    let wrong = results.iter().find(|r| !r.as_ref().is_err_and(passing));
    ensure!(wrong.is_none(), "a publish to a stalled broker: {wrong:?}");
    let most = watch.encoded().1;
    ensure!(most <= ROOM / SIZE + 2, "{most} encoded messages of {SIZE} bytes at once, where {ROOM} bytes may wait");
    proxy.stall(false);
    publish_until(&cx, &f, &message(1), None).await.during("publish after the stall")
}

async fn slow_handlers(cx: Cx) -> Outcome {
    let watch = OutageSwitch::default();
    let topology = Topology::new().queue("q", QueueSpec::new());
    let bus = cx.setup(topology).wrap(watch.around()).open().await?;
    let to = polybus_core::Address::queue("q");
    for result in bus.publish_all(&to, messages(0..400)).await {
        result?;
    }
    let done = GoalCounter::default();
    let handled = done.clone();
    let handler = polybus_core::stateful(handled, async |handled, _, _| {
        tokio::time::sleep(Duration::from_millis(5)).await;
        handled.add();
        Ok(())
    });
    let worker = bus.worker(polybus_core::Source::queue("q")).concurrency(4).prefetch(10);
    let report = timeout(cx.patience() * 3, worker.with_graceful_shutdown(done.reaches(400)).run(handler)).await;
    let report = report.map_err(|_| Failure::new(format!("only {} of 400 were handled in time", done.get())))??;
    ensure_eq!(report.succeeded, 400, "handled");
    let (_, most) = watch.held();
    ensure!(most <= 10, "{most} messages held at once behind a prefetch of 10");
    ensure!(most > 4, "only {most} messages are fetched ahead with a prefetch of 10");
    wait_until(&cx, "nothing is held once all are settled", || watch.held().0 == 0).await
}

async fn idle_consumers(cx: Cx) -> Outcome {
    let watch = OutageSwitch::default();
    let topology = Topology::new().queue("q", QueueSpec::new().max_deliveries(100));
    let bus = cx.setup(topology).wrap(watch.around()).open().await?;
    for result in bus.publish_all(polybus_core::Address::queue("q"), messages(0..5)).await {
        result?;
    }
    for round in 0..50 {
        let mut sub = bus.subscribe(polybus_core::Source::queue("q")).prefetch(5).open().await?;
        let held = cx.recv(&mut sub).await.during(format!("consumer {round}"))?;
        if round % 2 == 0 {
            sub.close().await?;
        }
        drop((sub, held));
    }
    wait_until(&cx, "nothing is held by anybody", || watch.held().0 == 0).await?;
    let mut sub = bus.subscribe(polybus_core::Source::queue("q")).prefetch(5).open().await?;
    cx.drain(&mut sub, 5).await.during("all five in the end")?;
    Ok(())
}
