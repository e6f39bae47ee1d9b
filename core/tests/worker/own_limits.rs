//! What a driver says of single messages: a limit of deliveries of their own, and its own view; and what it is told.

use std::sync::{Arc, Mutex};

use polybus_core::{
    HandlerContext, QueueSpec, Result, Source,
    driver::{
        Batching, Driver, DriverLayer, DriverToken, ReceivedMessage, Receiver, SettleRequest, Settlement, Settler,
        async_trait,
    },
    memory::MemoryDriver,
    topology::Entity,
};
use tokio::time::Instant;

use crate::support::{over, publish, q, secs, take};

type Told = Arc<Mutex<Vec<(Settlement, Option<Box<str>>)>>>;

/// Gives each message as many deliveries as its id says.
struct OwnLimits {
    inner: MemoryDriver,
    told: Told,
}

struct LimitedReceiver(Box<dyn Receiver>);

struct RecordingSettler {
    inner: Arc<dyn Settler>,
    told: Told,
}

#[async_trait]
impl DriverLayer for OwnLimits {
    fn inner(&self) -> &dyn Driver {
        &self.inner
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        let (receiver, inner) = self.inner.open_receiver(from).await?;
        Ok((Box::new(LimitedReceiver(receiver)), Arc::new(RecordingSettler { inner, told: self.told.clone() })))
    }
}

#[async_trait]
impl Receiver for LimitedReceiver {
    async fn receive(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
        let mut received = self.0.receive(max).await?;
        for message in &mut received {
            message.max_deliveries = message.envelope.id.parse().ok();
            message.native = Some(DriverToken::new(format!("row {}", message.envelope.id)));
        }
        Ok(received)
    }

    async fn close(&mut self) -> Result<()> {
        self.0.close().await
    }
}

#[async_trait]
impl Settler for RecordingSettler {
    fn batching(&self) -> Batching {
        self.inner.batching()
    }

    async fn settle(&self, batch: &[SettleRequest]) -> Vec<Result<()>> {
        self.told.lock().unwrap().extend(batch.iter().map(|one| (one.how.clone(), one.failure.clone())));
        self.inner.settle(batch).await
    }

    async fn extend(&self, tokens: &[DriverToken], by: std::time::Duration) -> Vec<Result<Instant>> {
        self.inner.extend(tokens, by).await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_with_a_limit_of_its_own_ends_there() {
    let told = Told::default();
    let driver = OwnLimits { inner: MemoryDriver::new(), told: told.clone() };
    let bus = over(Arc::new(driver), QueueSpec::new().max_deliveries(3).retry([secs(1)])).await;
    // The last one has no limit of its own, but its queue's.
    publish(&bus, ["1", "5", "x"]).await;
    let log = Arc::new(Mutex::new(Vec::new()));
    let handler = {
        let log = log.clone();
        move |cx: HandlerContext, msg: polybus_core::Envelope| {
            let seen = (msg.id.to_string(), cx.attempt(), cx.max_deliveries(), cx.is_last_attempt());
            assert_eq!(cx.native::<String>(), Some(&format!("row {}", msg.id)));
            assert!(cx.native::<u32>().is_none());
            log.lock().unwrap().push(seen);
            async { Err("no".into()) }
        }
    };
    let report = bus.worker(q()).with_graceful_shutdown(tokio::time::sleep(secs(60))).run(handler).await.unwrap();
    assert_eq!((report.dead_lettered, report.retried), (3, 6));
    let of = |id: &str| {
        let log = log.lock().unwrap();
        log.iter().filter(|seen| seen.0 == id).map(|seen| (seen.1, seen.2, seen.3)).collect::<Vec<_>>()
    };
    assert_eq!(of("1"), [(1, Some(1), true)]);
    assert_eq!(of("x"), (1..=3).map(|n| (n, Some(3), n == 3)).collect::<Vec<_>>());
    assert_eq!(of("5"), (1..=5).map(|n| (n, Some(5), n == 5)).collect::<Vec<_>>());
    let (_, attempt, letter) = take(&bus, q().dead_letters()).await;
    assert_eq!((attempt, letter.unwrap().reason.as_deref()), (1, Some("max-deliveries-exceeded")));
    // A driver is told why a message comes again, and the detail of a dead letter is not told twice.
    for (how, failure) in told.lock().unwrap().iter() {
        let comes_again = matches!(how, Settlement::RetryAfter(_) | Settlement::Release);
        assert_eq!(failure.as_deref(), comes_again.then_some("no"), "{how:?}");
    }
}
