//! Opening, and who else consumes the reply queue.

use std::time::Duration;

use polybus_core::{Bus, BusOptions, ErrorKind, QueueSpec, Source, SubscriptionSpec, TopicSpec, Topology};
use polybus_patterns::Requests;

use crate::Desk;

#[tokio::test(start_paused = true)]
async fn a_second_process_on_one_reply_queue_is_refused() {
    let desk = Desk::new().await;
    let first = desk.requests().await;
    let second = Requests::builder(&desk.bus, Source::queue("replies")).patience(Duration::ZERO).open().await;
    let error = second.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{error}");
    assert!(error.to_string().contains("own"), "{error}");
    drop(first);
}

#[tokio::test(start_paused = true)]
async fn a_consumer_of_any_kind_is_noticed() {
    let desk = Desk::new().await;
    let mut other = desk.bus.subscribe(Source::queue("replies")).prefetch(1).open().await.unwrap();
    let taking = tokio::spawn(async move {
        while let Some(Ok(delivery)) = other.next().await {
            delivery.ack().await.unwrap();
        }
    });
    let error =
        Requests::builder(&desk.bus, Source::queue("replies")).patience(Duration::ZERO).open().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{error}");
    taking.abort();
}

#[tokio::test(start_paused = true)]
async fn opening_waits_for_the_process_before_it() {
    let desk = Desk::new().await;
    let first = desk.requests().await;
    let opening = tokio::spawn({
        let bus = desk.bus.clone();
        async move { Requests::open(&bus, Source::queue("replies")).await }
    });
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert!(!opening.is_finished());
    first.close().await;
    opening.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_cannot_take_replies_is_refused() {
    let topology = Topology::new()
        .queue("ordered", QueueSpec::new().ordered(true))
        .topic("topic", TopicSpec::new().subscription("a", SubscriptionSpec::new()));
    let bus = Bus::new(std::sync::Arc::new(polybus_core::memory::MemoryDriver::new()), BusOptions::topology(topology));
    let bus = bus.unwrap();
    bus.declare().await.unwrap();
    for source in
        [Source::queue("ordered"), Source::subscription("topic", "a"), Source::queue("ordered").dead_letters()]
    {
        let error = Requests::open(&bus, source.clone()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{source}: {error}");
    }
    let error = Requests::open(&bus, Source::queue("missing")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let error = Requests::builder(&bus, Source::queue("missing")).max_waiting(0).open().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_reply_queue_can_be_used_again_after_a_close() {
    let desk = Desk::new().await;
    for _ in 0..3 {
        let requests = desk.requests().await;
        requests.close().await;
        requests.close().await;
    }
    // The drop of the last clone ends it as well, but nobody waits for that.
    drop(desk.requests().await);
    desk.requests().await;
}
