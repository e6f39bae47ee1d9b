//! What else comes to a reply queue.

use std::time::Duration;

use polybus_core::{Address, Envelope, Source, memory::RawMessage};
use polybus_patterns::requests::RequestError;

use crate::{Ask, Desk, Square, eventually, squares};

fn replies() -> Address {
    Address::queue("replies")
}

/// The id of a request by a process that was opened at this time.
fn of_process(seconds: u64) -> String {
    let timestamp = uuid::Timestamp::from_unix(uuid::NoContext, seconds, 0);
    format!("{}-0", uuid::Uuid::new_v7(timestamp).simple())
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_process_left_is_acknowledged() {
    let desk = Desk::new().await;
    for id in [of_process(1_000), of_process(2_000)] {
        desk.bus.publish(replies(), Envelope::new("square.made", "{}").causation_id(id)).await.unwrap();
    }
    let requests = desk.requests().await;
    eventually("both are gone", async || {
        let stats = requests.stats();
        stats.left_over + stats.stray >= 2 && desk.bus.stats(Source::queue("replies")).await.unwrap().ready == Some(0)
    })
    .await;
    // Once the process knows that it is alone, each costs one attempt.
    let before = requests.stats();
    desk.bus.publish(replies(), Envelope::new("square.made", "{}").causation_id(of_process(3_000))).await.unwrap();
    eventually("it is gone", async || requests.stats().left_over == before.left_over + 1).await;
    assert_eq!(requests.stats().stray, before.stray);
    assert!(desk.dead_reasons("replies").await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn replies_of_another_process_are_passed_on_for_a_while() {
    let desk = Desk::new().await;
    let requests = desk.requests().await;
    // That process was opened later, so it lives.
    desk.bus
        .publish(replies(), Envelope::new("square.made", "{}").causation_id(of_process(90_000_000_000)))
        .await
        .unwrap();
    eventually("all three attempts", async || requests.stats().stray == 3).await;
    eventually("it is gone", async || desk.bus.stats(Source::queue("replies")).await.unwrap().ready == Some(0)).await;
    assert!(desk.dead_reasons("replies").await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_no_reply_is_kept() {
    let desk = Desk::new().await;
    let requests = desk.requests().await;
    desk.bus.publish(replies(), Envelope::new("order.placed", "{}")).await.unwrap();
    desk.memory.inject(&replies(), RawMessage { body: "hello".into(), ..RawMessage::default() }).unwrap();
    eventually("both are seen", async || requests.stats().not_replies == 2).await;
    eventually("both are kept", async || {
        desk.bus.stats(Source::queue("replies")).await.unwrap().dead_lettered == Some(2)
    })
    .await;
    assert_eq!(desk.dead_reasons("replies").await, ["not-a-reply", "not-a-reply"]);
}

#[tokio::test(start_paused = true)]
async fn another_programs_answer_is_found_by_its_correlation_id() {
    let desk = Desk::new().await;
    let requests = desk.requests().await;
    let answering = async {
        eventually("a request", async || !desk.memory.published(&squares()).is_empty()).await;
        let request = desk.memory.published(&squares()).pop().unwrap();
        let (_, correlation) = request.native_reply().unwrap();
        let answer =
            RawMessage { body: r#"{"n":9}"#.into(), correlation_id: Some(correlation.into()), ..RawMessage::default() };
        desk.memory.inject(&replies(), answer).unwrap();
    };
    let (square, ()) = tokio::join!(async { requests.call::<Square>(squares(), &Ask { n: 3 }).await }, answering);
    assert_eq!(square.unwrap().n, 9);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_twice_is_late_the_second_time() {
    let desk = Desk::new().await;
    let requests = desk.requests().await;
    let answering = async {
        eventually("a request", async || !desk.memory.published(&squares()).is_empty()).await;
        let request = desk.memory.published(&squares()).pop().unwrap();
        for _ in 0..2 {
            let answer = Envelope::new("square.made", r#"{"n":9}"#).caused_by(&request);
            desk.bus.publish(replies(), answer).await.unwrap();
        }
    };
    let (square, ()) = tokio::join!(async { requests.call::<Square>(squares(), &Ask { n: 3 }).await }, answering);
    assert_eq!(square.unwrap().n, 9);
    eventually("one of each", async || (requests.stats().answered, requests.stats().late) == (1, 1)).await;
}

#[tokio::test(start_paused = true)]
async fn calls_end_with_their_reply_queue() {
    let desk = Desk::new().await;
    let requests = desk.requests().await;
    let call = tokio::spawn(std::future::IntoFuture::into_future(
        requests.call::<Square>(squares(), &Ask { n: 1 }).timeout(Duration::from_secs(3600)),
    ));
    eventually("the call waits", async || requests.stats().waiting == 1).await;
    desk.bus.delete().await.unwrap();
    let error = call.await.unwrap().unwrap_err();
    assert!(
        matches!(&error, RequestError::Closed { cause, .. }
        if cause.kind() == polybus_core::ErrorKind::NotFound),
        "{error:?}"
    );
    let error = requests.call::<Square>(squares(), &Ask { n: 1 }).await.unwrap_err();
    assert!(matches!(error, RequestError::Closed { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn an_earlier_process_that_is_back_gets_its_replies() {
    let desk = Desk::new().await;
    let requests = desk.requests().await;
    let publish = async |id: String| {
        desk.bus.publish(replies(), Envelope::new("square.made", "{}").causation_id(id)).await.unwrap();
    };
    publish(of_process(1_000)).await;
    eventually("it was left over", async || requests.stats().left_over == 1).await;
    // Long after this one looked, whoever gets an answer lives.
    tokio::time::sleep(Duration::from_secs(601)).await;
    publish(of_process(1_000)).await;
    eventually("it was passed on", async || requests.stats().stray == 3).await;
    assert_eq!(requests.stats().left_over, 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_over_once_somebody_else_was_seen() {
    let desk = Desk::new().await;
    let requests = desk.requests().await;
    desk.bus.publish(replies(), Envelope::new("polybus.reply.probe", "{}")).await.unwrap();
    eventually("the probe is seen", async || desk.bus.stats(Source::queue("replies")).await.unwrap().ready == Some(0))
        .await;
    desk.bus.publish(replies(), Envelope::new("square.made", "{}").causation_id(of_process(1_000))).await.unwrap();
    eventually("it was passed on", async || requests.stats().stray == 3).await;
    assert_eq!(requests.stats().left_over, 0);
}
