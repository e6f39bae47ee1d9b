//! How a worker ends, and what it outlives.

use std::{collections::BTreeSet, time::Duration};

use polybus_core::{QueueSpec, stateful};
use tokio::time::{Instant, timeout};

use super::run;
use crate::{
    Cx, Failure, Need, Outcome, Scenario, ensure, ensure_eq, message, messages, number, numbers, scenario,
    scenarios::shared::{GoalCounter, HandlerLog, wait_until},
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "worker/drain",
            "A shutdown lets handlers finish, gives back at once what none has begun, and begins nothing new.",
            drain,
        ),
        scenario(
            "worker/drain-timeout",
            "Handlers that outlast the drain are dropped and their messages given back.",
            drain_timeout,
        ),
        scenario("worker/dropped", "A worker whose future is dropped gives everything back.", dropped),
        scenario(
            "worker/survives-cuts",
            "A worker goes on after its connection was cut, and handles everything.",
            survives_cuts,
        )
        .needs(|t, _| Need::proxy(t)),
        scenario(
            "worker/two-of-one-queue",
            "Two workers share a queue: each message is handled by one, and both get some.",
            two_of_one_queue,
        ),
    ]
}

async fn drain(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish_all(messages(0..30)).await?;
    let (begun, go_on) = (GoalCounter::default(), GoalCounter::default());
    let log = HandlerLog::default();
    let handler = stateful((begun.clone(), go_on.clone(), log.clone()), async |(begun, go_on, log), cx, msg| {
        begun.add();
        cx.cancelled().await;
        go_on.reaches(1).await;
        log.add(&msg, cx.attempt());
        Ok(())
    });
    let stop = GoalCounter::default();
    let worker = q.bus.worker(q.source.clone()).concurrency(4).prefetch(20);
    let worker = tokio::spawn(worker.with_graceful_shutdown(stop.reaches(1)).run(handler));
    wait_until(&cx, "four handlers to run", || begun.get() == 4).await?;
    stop.add();
    // The rest must come here before the handlers have ended.
    let other = q.on(cx.second_bus(&q.bus).await?);
    let mut sub = other.subscribe(30).await?;
    let given: BTreeSet<usize> = numbers(&cx.drain(&mut sub, 26).await?)?.into_iter().collect();
    cx.expect_none(&mut sub).await?;
    ensure_eq!(begun.get(), 4, "handlers begun, after the shutdown");
    ensure!(!worker.is_finished(), "the worker ends before its handlers");
    go_on.add();
    let report = timeout(cx.patience(), worker).await.map_err(|_| Failure::new("the drain hangs"))???;
    ensure_eq!((report.succeeded, report.handled()), (4, 4), "handled in all");
    let handled: BTreeSet<usize> = numbers(log.all().iter().map(|r| &r.message))?.into_iter().collect();
    ensure_eq!(given.union(&handled).count(), 30, "given back and handled, together");
    cx.expect_none(&mut sub).await
}

async fn drain_timeout(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish_all(messages(0..3)).await?;
    let begun = GoalCounter::default();
    let handler = stateful(begun.clone(), async |begun, _, _| {
        begun.add();
        std::future::pending::<()>().await;
        Ok(())
    });
    let worker = q.bus.worker(q.source.clone()).concurrency(2).drain_timeout(Duration::from_millis(400));
    let began = Instant::now();
    let report = run(&cx, worker, begun.reaches(2), handler).await?;
    ensure!(began.elapsed() >= Duration::from_millis(400), "dropped after {:?}", began.elapsed());
    ensure_eq!((report.dropped, report.handled()), (2, 2), "dropped handlers");
    let mut sub = q.on(cx.second_bus(&q.bus).await?).subscribe(5).await?;
    let mut again = 0;
    for d in cx.collect(&mut sub, 3).await? {
        again += usize::from(d.attempt() > 1);
        d.ack().await?;
    }
    ensure!(again >= 2, "only {again} of the two dropped handlings count as attempts");
    Ok(())
}

async fn dropped(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish_all(messages(0..20)).await?;
    let begun = GoalCounter::default();
    let handler = stateful(begun.clone(), async |begun, _, _| {
        begun.add();
        std::future::pending::<()>().await;
        Ok(())
    });
    let worker = q.bus.worker(q.source.clone()).concurrency(3).prefetch(10).run(handler);
    let worker = tokio::spawn(worker);
    wait_until(&cx, "three handlers to run", || begun.get() == 3).await?;
    worker.abort();
    let mut sub = q.on(cx.second_bus(&q.bus).await?).subscribe(20).await?;
    let back: BTreeSet<usize> = numbers(&cx.drain(&mut sub, 20).await?)?.into_iter().collect();
    ensure_eq!(back, (0..20).collect(), "what comes back");
    ensure_eq!(begun.get(), 3, "handlers begun");
    cx.expect_none(&mut sub).await
}

async fn survives_cuts(cx: Cx) -> Outcome {
    let proxy = cx.proxy().await?;
    let q = cx.queue(QueueSpec::new().max_deliveries(100)).await?;
    let bus = cx.setup(q.bus.topology().clone()).through(&proxy).undeclared().open().await?;
    let (log, distinct) = (HandlerLog::default(), GoalCounter::default());
    let handler = stateful((log.clone(), distinct.clone()), async |(log, distinct), cx, msg| {
        tokio::time::sleep(Duration::from_millis(5)).await;
        if log.add(&msg, cx.attempt()) == 1 {
            distinct.add();
        }
        Ok(())
    });
    let worker = tokio::spawn(
        bus.worker(q.source.clone()).concurrency(4).with_graceful_shutdown(distinct.reaches(200)).run(handler),
    );
    for part in 0..4 {
        q.publish_all(messages(part * 50..(part + 1) * 50)).await?;
        wait_until(&cx, "half of this part to be handled", || distinct.get() >= part * 50 + 25).await?;
        proxy.cut();
    }
    let report = timeout(cx.patience() * 2, worker)
        .await
        .map_err(|_| Failure::new(format!("only {} of 200 were handled in time", distinct.get())))???;
    ensure!(report.handled() >= 200, "{report:?}");
    let seen: BTreeSet<usize> = log.all().iter().map(|r| number(&r.message)).collect::<Outcome<_>>()?;
    ensure_eq!(seen, (0..200).collect(), "what was handled");
    Ok(())
}

async fn two_of_one_queue(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let other = q.on(cx.second_bus(&q.bus).await?);
    let (total, first, second) = (GoalCounter::default(), HandlerLog::default(), HandlerLog::default());
    let handler = |log: &HandlerLog| {
        stateful((log.clone(), total.clone()), async |(log, total), cx, msg| {
            log.add(&msg, cx.attempt());
            tokio::time::sleep(Duration::from_millis(10)).await;
            total.add();
            Ok(())
        })
    };
    let done = GoalCounter::default();
    let one = run(&cx, q.bus.worker(q.source.clone()).concurrency(2), done.reaches(1), handler(&first));
    let two = run(&cx, other.bus.worker(q.source.clone()).concurrency(2), done.reaches(1), handler(&second));
    let publish = async {
        let (deadline, mut n) = (cx.deadline(), 0);
        // Messages are published until both workers have got some: one that starts late would find nothing left.
        let both = || first.1.get() > 0 && second.1.get() > 0;
        while n < 60 || (!both() && Instant::now() < deadline) {
            q.publish(message(n)).await?;
            n += 1;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let handled = timeout(cx.patience(), total.reaches(n)).await;
        done.add();
        ensure!(handled.is_ok(), "only {} of {n} were handled in time", total.get());
        Outcome::Ok(n)
    };
    let (one, two, published) = tokio::join!(one, two, publish);
    let published = published?;
    ensure_eq!(one?.succeeded + two?.succeeded, published as u64, "handled by both together");
    let (first, second) = (first.all(), second.all());
    ensure!(!first.is_empty() && !second.is_empty(), "{} and {} of {published}", first.len(), second.len());
    let all: BTreeSet<usize> = first.iter().chain(&second).map(|r| number(&r.message)).collect::<Outcome<_>>()?;
    ensure_eq!(all, (0..published).collect(), "what was handled");
    Ok(())
}
