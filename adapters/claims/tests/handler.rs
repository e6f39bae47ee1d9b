//! What becomes of a message whose claim is not redeemed.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use polybus_claims::Claims;
use polybus_core::{
    Bus, BusOptions, Envelope, ErrorKind, Handler, HandlerContext, HandlerError, QueueSpec, Result, Source,
    SubscriptionSpec, TopicSpec, Topology,
    clock::TokioClock,
    redrive::{RedriveOptions, RedriveVerdict},
    testing::TestBus,
    worker::{HandlerRequest, WorkerInfo},
};
use support::*;
use tower::{Layer, ServiceBuilder, service_fn};

const ATTEMPTS: u32 = 3;

async fn bus(max_deliveries: u32) -> TestBus {
    let queue = QueueSpec::new().max_deliveries(max_deliveries).retry([Duration::from_secs(10)]);
    let options = BusOptions::topology(Topology::new().queue("reports", queue)).clock(Arc::new(TokioClock::new()));
    TestBus::with_options(options).await.unwrap()
}

/// What the inner handler saw.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<Envelope>>>);

impl Seen {
    fn take(&self) -> Vec<Envelope> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    fn handler(&self) -> impl Handler + use<> {
        let seen = self.clone();
        move |_cx: HandlerContext, msg: Envelope| {
            seen.0.lock().unwrap().push(msg);
            std::future::ready(Ok(()))
        }
    }
}

/// Works the queue until nothing is left of it; then its dead letters, by reason and attempts.
async fn work(bus: &TestBus, handler: impl Handler) -> Vec<(String, u32)> {
    let source = Source::queue("reports");
    {
        let idle = bus.run_until_idle();
        let run = bus.worker(&source).with_graceful_shutdown(async { idle.await.unwrap() }).run(handler);
        run.await.unwrap();
    }
    dead_letters(bus, &source).await
}

async fn dead_letters(bus: &Bus, source: &Source) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    let looking = bus.redrive_each(source, RedriveOptions::new(), |letter| {
        let info = letter.dead_letter_info().unwrap();
        let attempts = info.attempt.unwrap_or_default();
        found.push((letter.reason().unwrap_or_default().to_owned(), attempts));
        RedriveVerdict::Keep
    });
    let _ = looking.await.unwrap();
    found
}

async fn publish(bus: &Bus, message: Envelope) {
    bus.publish(Source::queue("reports").address(), message).await.unwrap();
}

fn with(message: Envelope, name: &'static str, value: &str) -> Envelope {
    message.edit(|fields| {
        fields.extensions.remove(name);
        fields.extensions.push(name, value);
    })
}

#[tokio::test(start_paused = true)]
async fn the_handler_gets_what_was_checked_in() {
    let (bus, (claims, _), seen) = (bus(ATTEMPTS).await, claims(), Seen::default());
    let messages = [large().source("/s"), Envelope::new("a.b", "small").source("/s")];
    for message in &messages {
        publish(&bus, claims.check_in(message.clone()).await.unwrap()).await;
    }
    assert_eq!(bus.published(&Source::queue("reports").address())[0].envelope.data.len(), 0);
    assert_eq!(work(&bus, claims.handler(seen.handler())).await, []);
    let mut seen = seen.take();
    seen.sort_by_key(|message| message.data.len());
    assert!(seen[1] == messages[0] && seen[0] == messages[1]);
}

#[tokio::test(start_paused = true)]
async fn what_no_attempt_can_repair_is_a_dead_letter_at_once() {
    let (bus, (claims, store), seen) = (bus(ATTEMPTS).await, claims(), Seen::default());
    let sent = claims.check_in(large()).await.unwrap();
    let mut altered = large().data.to_vec();
    altered[4321] ^= 1;
    store.write(&reference(&sent), altered).await;
    for (message, reason) in [
        (sent.clone(), "claim-altered"),
        (with(sent.clone(), "claimref", "claims/../secret"), "claim-outside"),
        (with(sent.clone(), "claimsize", "300000000"), "claim-too-large"),
        (with(sent, "claimsize", "many"), "claim-malformed"),
    ] {
        publish(&bus, message).await;
        assert_eq!(work(&bus, claims.handler(seen.handler())).await, [(reason.to_owned(), 1)]);
        let drop = bus.redrive_each(Source::queue("reports"), RedriveOptions::new(), |_| RedriveVerdict::Drop);
        let _ = drop.await.unwrap();
    }
    assert!(seen.take().is_empty(), "no handler ran");
}

#[tokio::test(start_paused = true)]
async fn a_missing_payload_is_a_dead_letter_at_the_last_attempt() {
    let (bus, (claims, store), seen) = (bus(ATTEMPTS).await, claims(), Seen::default());
    let sent = claims.check_in(large()).await.unwrap();
    store.remove(&reference(&sent)).await;
    let before = store.requests();
    publish(&bus, sent).await;
    let found = work(&bus, claims.handler(seen.handler())).await;
    assert_eq!(found, [("claim-missing".to_owned(), ATTEMPTS)]);
    // Twice at the last attempt, since those before may have met something else.
    assert_eq!((store.requests() - before, seen.take().len()), (ATTEMPTS as usize + 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_a_store_shows_late_is_waited_for() {
    for (attempts, late) in [(ATTEMPTS, 2), (2, 1), (1, 1)] {
        let (bus, (claims, store), seen) = (bus(attempts).await, claims(), Seen::default());
        publish(&bus, claims.check_in(large()).await.unwrap()).await;
        store.set(Fault::MissingFor(late));
        assert_eq!(work(&bus, claims.handler(seen.handler())).await, [], "{attempts} attempts, late by {late}");
        assert_eq!(seen.take().len(), 1);
    }
    // One look more than there are.
    let (bus, (claims, store), seen) = (bus(1).await, claims(), Seen::default());
    publish(&bus, claims.check_in(large()).await.unwrap()).await;
    store.set(Fault::MissingFor(2));
    assert_eq!(work(&bus, claims.handler(seen.handler())).await, [("claim-missing".to_owned(), 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_makes_plain_retries() {
    let (bus, (claims, store), seen) = (bus(ATTEMPTS).await, claims(), Seen::default());
    publish(&bus, claims.check_in(large()).await.unwrap()).await;
    store.set(Fault::Fail);
    let back = store.clone();
    let returns = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(15)).await;
        back.set(Fault::None);
    });
    assert_eq!(work(&bus, claims.handler(seen.handler())).await, []);
    returns.await.unwrap();
    assert_eq!(seen.take().len(), 1);

    publish(&bus, claims.check_in(large()).await.unwrap()).await;
    store.set(Fault::Fail);
    let found = work(&bus, claims.handler(seen.handler())).await;
    assert_eq!(found, [("max-deliveries-exceeded".to_owned(), ATTEMPTS)]);
    let mut details = Vec::new();
    let look = bus.redrive_each(Source::queue("reports"), RedriveOptions::new(), |letter| {
        details.extend(letter.dead_letter_info().and_then(|info| info.detail.clone()));
        RedriveVerdict::Keep
    });
    let _ = look.await.unwrap();
    assert!(details[0].contains("object store failed") && !details[0].contains("SECRET"), "{details:?}");
}

#[tokio::test(start_paused = true)]
async fn every_subscription_redeems_its_copy() {
    let subscription = || SubscriptionSpec::new().retry([Duration::from_secs(1)]);
    let topic = TopicSpec::new().subscription("a", subscription()).subscription("b", subscription());
    let bus = TestBus::new(Topology::new().topic("events", topic)).await.unwrap();
    let ((claims, _), seen) = (claims(), Seen::default());
    bus.publish(polybus_core::Address::topic("events"), claims.check_in(large()).await.unwrap()).await.unwrap();
    for name in ["a", "b"] {
        let handler = claims.handler(seen.handler());
        let done = async {
            while seen.0.lock().unwrap().len() < if name == "a" { 1 } else { 2 } {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let worker = bus.worker(Source::subscription("events", name)).with_graceful_shutdown(done);
        assert_eq!(worker.run(handler).await.unwrap().succeeded, 1);
    }
    assert_eq!(seen.take().iter().map(|message| message.data.len()).collect::<Vec<_>>(), [10_000, 10_000]);
}

/// A handler that remembers that it was asked at the start.
struct Asked(Arc<AtomicUsize>);

impl Handler for Asked {
    async fn handle(&self, _cx: HandlerContext, _msg: Envelope) -> Result<(), HandlerError> {
        Ok(())
    }

    async fn starting(&self, _worker: &WorkerInfo) -> Result<()> {
        self.0.fetch_add(1, SeqCst);
        Err(polybus_core::Error::config("not today"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_is_refused_that_outlives_the_payloads() {
    let (bus, (claims, _), asked) = (bus(ATTEMPTS).await, claims(), Arc::new(AtomicUsize::new(0)));
    // Two delays of 10 s, and a day.
    let enough = DAY + Duration::from_secs(20);
    let start = async |retention| {
        let handler = claims.clone().retention(retention).handler(Asked(asked.clone()));
        let stop = tokio::time::sleep(Duration::from_secs(60));
        bus.worker(Source::queue("reports")).with_graceful_shutdown(stop).run(handler).await.unwrap_err()
    };
    let refused = start(enough - Duration::from_nanos(1)).await;
    assert_eq!((refused.kind(), asked.load(SeqCst)), (ErrorKind::InvalidArgument, 0), "{refused}");
    let of_inner = start(enough).await;
    assert_eq!((of_inner.kind(), asked.load(SeqCst)), (ErrorKind::ConfigInvalid, 1), "{of_inner}");

    let layer = claims.clone().retention(DAY).layer();
    let service = layer.layer(service_fn(async |_: HandlerRequest| Ok::<_, HandlerError>(())));
    let worker = bus.worker(Source::queue("reports")).check_at_start(layer.start_check());
    assert_eq!(worker.serve(service).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
}

#[tokio::test(start_paused = true)]
async fn a_tower_service_gets_what_was_checked_in() {
    let (bus, (claims, store), seen) = (bus(ATTEMPTS).await, claims(), Seen::default());
    let (good, gone) = (claims.check_in(large()).await.unwrap(), claims.check_in(large()).await.unwrap());
    store.remove(&reference(&gone)).await;
    for message in [good, gone] {
        publish(&bus, message).await;
    }
    let collected = seen.clone();
    let service = service_fn(move |request: HandlerRequest| {
        collected.0.lock().unwrap().push(request.message);
        std::future::ready(Ok::<_, HandlerError>(()))
    });
    let layer = claims.layer();
    let service = ServiceBuilder::new().concurrency_limit(4).layer(layer.clone()).service(service);
    let source = Source::queue("reports");
    let idle = bus.run_until_idle();
    let worker = bus.worker(&source).check_at_start(layer.start_check());
    worker.with_graceful_shutdown(async { idle.await.unwrap() }).serve(service).await.unwrap();
    assert_eq!(seen.take().iter().map(|message| message.data.len()).collect::<Vec<_>>(), [10_000]);
    assert_eq!(dead_letters(&bus, &source).await, [("claim-missing".to_owned(), ATTEMPTS)]);
}

/// A message fails, lies among the dead letters for seven days while a sweeper runs, and is redriven.
async fn redriven_after_seven_days(retention: Duration) -> (Vec<Envelope>, Vec<(String, u32)>) {
    let (bus, seen) = (bus(ATTEMPTS).await, Seen::default());
    let folder = tempfile::tempdir().unwrap();
    let claims = Claims::folder(folder.path(), "claims").unwrap().threshold(100).retention(retention);
    let claims = claims.clock(Arc::new(TokioClock::new()));
    publish(&bus, claims.check_in(large()).await.unwrap()).await;
    let broken =
        |_cx: HandlerContext, _msg: Envelope| std::future::ready(Err::<(), _>("the printer is on fire".into()));
    assert_eq!(work(&bus, claims.handler(broken)).await, [("max-deliveries-exceeded".to_owned(), ATTEMPTS)]);

    let sweeping = claims.clone();
    let sweeper = tokio::spawn(async move { sweeping.sweep_every(Duration::from_secs(3600)).await });
    tokio::time::sleep(7 * DAY).await;
    sweeper.abort();
    assert_eq!(bus.redrive(&Source::queue("reports"), |_| true, usize::MAX).await.unwrap().moved, 1);
    let letters = work(&bus, claims.handler(seen.handler())).await;
    (seen.take(), letters)
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_is_redriven_after_seven_days_has_its_payload() {
    let (seen, letters) = redriven_after_seven_days(polybus_claims::DEFAULT_RETENTION).await;
    assert!(seen.len() == 1 && seen[0].data == large().data && letters.is_empty(), "{letters:?}");
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_is_redriven_after_the_retention_is_told_so() {
    let (seen, letters) = redriven_after_seven_days(3 * DAY).await;
    assert_eq!((seen.len(), letters), (0, vec![("claim-missing".to_owned(), ATTEMPTS)]));
}
