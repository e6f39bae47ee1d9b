//! Which errors end a consumer, and which ones it outlives.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;

use async_trait::async_trait;
use polybus_core::{
    Error, ErrorKind, QueueSpec, Result, Source, Subscription,
    driver::{Driver, DriverLayer, ReceivedMessage, Receiver, Settler},
    topology::Entity,
};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use crate::{
    ClockKind, Cx, During, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, fail, message, number, numbers,
    scenario, scenarios::shared::publish_until,
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "consume/passing-errors",
            "A source that is refused for a while, in whatever words, and comes back is lived through.",
            passes,
        )
        .timeout(Duration::from_secs(180)),
        scenario(
            "consume/ten-expired-tokens",
            "Ten Unauthenticated in a row do not end a consumer that was let in before.",
            ten_expired_tokens,
        ),
        scenario("consume/throttled-for-long", "After 200 Throttled in a row a consumer goes on.", throttled_for_long)
            .needs(|t, _| Need::when(t.clock == ClockKind::Paused, "minutes of real time")),
        scenario(
            "consume/deleted-queue",
            "A consumer of a deleted queue ends once that has lasted, not before, and says for how long it was refused.",
            deleted,
        )
        .needs(|_, c| Need::declare(c))
        .timeout(Duration::from_secs(120)),
        scenario(
            "consume/deleted-and-back",
            "A queue that is deleted and made anew while its consumer is refused: the consumer goes on with the new one.",
            deleted_and_back,
        )
        .needs(|_, c| Need::declare(c))
        .timeout(Duration::from_secs(120)),
    ]
}

/// The error that receivers answer: for a number of calls, or until it is cleared.
#[derive(Default)]
struct RefusalScript {
    now: Mutex<Option<(ErrorKind, usize)>>,
    changed: Notify,
    told: Notify,
}

impl RefusalScript {
    fn set(&self, trouble: Option<(ErrorKind, usize)>) {
        *self.now.lock() = trouble;
        self.changed.notify_one();
    }

    fn answer(&self) -> Option<Error> {
        let mut now = self.now.lock();
        let (kind, left) = now.as_mut()?;
        let e = Error::new(*kind, "the broker has its trouble").safe();
        *left = left.saturating_sub(1);
        if *left == 0 {
            *now = None;
            self.told.notify_one();
        }
        Some(e)
    }

    /// A driver whose receivers answer by this script.
    fn around(self: &Arc<Self>, inner: Arc<dyn Driver>) -> Arc<dyn Driver> {
        Arc::new(RefusingDriver { inner, trouble: self.clone() })
    }
}

struct RefusingDriver {
    inner: Arc<dyn Driver>,
    trouble: Arc<RefusalScript>,
}

#[async_trait]
impl DriverLayer for RefusingDriver {
    fn inner(&self) -> &dyn Driver {
        &*self.inner
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        let (receiver, settler) = self.inner.open_receiver(from).await?;
        Ok((Box::new(RefusingReceiver { receiver, trouble: self.trouble.clone() }), settler))
    }
}

struct RefusingReceiver {
    receiver: Box<dyn Receiver>,
    trouble: Arc<RefusalScript>,
}

#[async_trait]
impl Receiver for RefusingReceiver {
    async fn receive(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
        loop {
            if let Some(e) = self.trouble.answer() {
                return Err(e);
            }
            tokio::select! {
                received = self.receiver.receive(max) => return received,
                () = self.trouble.changed.notified() => {}
            }
        }
    }

    async fn close(&mut self) -> Result<()> {
        self.receiver.close().await
    }
}

/// A queue and a consumer of it, which answers by the script and ends after `give_up_after` of refusals.
async fn refusing_consumer(cx: &Cx, give_up_after: Duration) -> Outcome<(Fixture, Arc<RefusalScript>, Subscription)> {
    let q = cx.queue(QueueSpec::new()).await?;
    let trouble = Arc::new(RefusalScript::default());
    let around = trouble.clone();
    let setup = cx.setup(q.bus.topology().clone()).undeclared().wrap(move |driver| around.around(driver));
    let bus = setup.options(|o| o.give_up_after = give_up_after).open().await?;
    let mut sub = q.on(bus).subscribe(5).await?;
    q.publish(message(0)).await?;
    ensure_eq!(numbers(&cx.drain(&mut sub, 1).await?)?, [0], "before the trouble");
    Ok((q, trouble, sub))
}

async fn passes(cx: Cx) -> Outcome {
    let (q, trouble, mut sub) = refusing_consumer(&cx, Duration::from_secs(60)).await?;
    let lasts = Duration::from_secs(if cx.time_is_free() { 50 } else { 3 });
    let kinds = [
        ErrorKind::NotFound,
        ErrorKind::PermissionDenied,
        ErrorKind::Unauthenticated,
        ErrorKind::Throttled,
        ErrorKind::Unavailable,
        ErrorKind::Unexpected,
    ];
    for (n, kind) in kinds.into_iter().enumerate() {
        trouble.set(Some((kind, usize::MAX)));
        q.publish(message(n)).await?;
        cx.expect_none_for(&mut sub, lasts).await.during(format!("while it is {kind}"))?;
        trouble.set(None);
        // On a slow machine its lock may have run out while it waited for the errors to end.
        loop {
            let back = cx.recv(&mut sub).await.during(format!("after it was {kind}"))?;
            ensure_eq!(number(back.envelope())?, n, "after the trouble");
            match back.ack().await {
                Err(e) if e.error().kind() == ErrorKind::LockLost => {}
                acked => break acked.during(format!("ack after it was {kind}"))?,
            }
        }
    }
    Ok(())
}

/// Answers this error so many times in a row, which a consumer outlives by the default options.
async fn outlives_in_a_row(cx: &Cx, kind: ErrorKind, times: usize) -> Outcome {
    let (q, trouble, mut sub) = refusing_consumer(cx, Duration::from_secs(30)).await?;
    trouble.set(Some((kind, times)));
    q.publish(message(1)).await?;
    // Five seconds for each error are more than the longest backoff.
    let next = cx.recv_within(&mut sub, cx.patience() + Duration::from_secs(5) * times as u32).await?;
    ensure_eq!(numbers([next.envelope()])?, [1], "after {times} times {kind}");
    ensure!(trouble.answer().is_none(), "it was not asked {times} times");
    next.ack().await.during("ack")?;
    Ok(())
}

async fn ten_expired_tokens(cx: Cx) -> Outcome {
    outlives_in_a_row(&cx, ErrorKind::Unauthenticated, 10).await
}

async fn throttled_for_long(cx: Cx) -> Outcome {
    outlives_in_a_row(&cx, ErrorKind::Throttled, 200).await
}

async fn deleted(cx: Cx) -> Outcome {
    let limit = Duration::from_secs(5);
    let q = cx.queue(QueueSpec::new()).await?;
    let bus = cx.setup(q.bus.topology().clone()).undeclared().options(|o| o.give_up_after = limit).open().await?;
    let mut sub = q.on(bus).subscribe(5).await?;
    q.publish(message(0)).await?;
    cx.drain(&mut sub, 1).await?;
    let began = Instant::now();
    cx.second_bus(&q.bus).await?.delete().await.during("delete")?;
    // The limit that the consumer was given, and ten seconds more, as this machine is slowed down.
    let within = limit + cx.lateness(Duration::from_secs(10));
    let Ok(last) = timeout(within, sub.next()).await else { fail!("it goes on for more than {within:?}") };
    let Some(Err(e)) = last else { fail!("expected the end with NotFound, got {last:?}") };
    ensure_eq!(e.kind(), ErrorKind::NotFound, "kind of {e:?}");
    ensure!(e.context("refused_for").is_some(), "it does not say for how long it was refused: {e:?}");
    ensure!(began.elapsed() >= limit, "it ended after {:?}, and may within {limit:?} come back", began.elapsed());
    ensure!(sub.next().await.is_none(), "it went on after its end");
    Ok(())
}

async fn deleted_and_back(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let other = cx.setup(q.bus.topology().clone()).make().await??;
    let setup = cx.setup(q.bus.topology().clone()).undeclared();
    let bus = setup.options(|o| o.give_up_after = Duration::from_secs(90)).open().await?;
    let mut sub = q.on(bus).subscribe(5).await?;
    q.publish(message(0)).await?;
    cx.drain(&mut sub, 1).await?;
    other.delete().await.during("delete")?;
    cx.expect_none(&mut sub).await.during("while it is gone")?;
    other.declare().await.during("declare anew")?;
    publish_until(&cx, &q, &message(1), None).await?;
    ensure_eq!(numbers(&cx.drain(&mut sub, 1).await?)?, [1], "from the new queue");
    Ok(())
}
