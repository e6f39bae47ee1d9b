//! What a caller sees.

use std::time::Duration;

use polybus_core::{Envelope, ErrorKind, Source};
use polybus_patterns::requests::{Reply, RequestError, Requests, Sent, respond};
use tokio::time::Instant;

use crate::{Ask, Desk, Square, eventually, squares};

#[tokio::test(start_paused = true)]
async fn a_call_is_answered() {
    let desk = Desk::new().await;
    let requests = desk.requests().await;
    let (stop, worker) = desk.work(respond(&desk.bus, (), async |(), _cx, ask: Ask| Ok(Square { n: ask.n * ask.n })));
    let square: Square = requests.call(squares(), &Ask { n: 7 }).await.unwrap();
    assert_eq!(square.n, 49);
    let stats = requests.stats();
    assert_eq!((stats.waiting, stats.answered, stats.late), (0, 1, 0));
    drop(stop);
    assert_eq!(worker.await.unwrap().unwrap().succeeded, 1);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_says_that_the_request_was_sent_and_a_late_answer_is_counted() {
    let desk = Desk::new().await;
    let requests = desk.requests().await;
    let begun = Instant::now();
    let error = requests.call::<Square>(squares(), &Ask { n: 7 }).timeout(Duration::from_secs(5)).await.unwrap_err();
    assert!(matches!(error, RequestError::Timeout { sent: Sent::Yes, .. }), "{error:?}");
    assert_eq!(begun.elapsed(), Duration::from_secs(5));
    assert_eq!(requests.stats().waiting, 0);

    // The responder answers though the caller has left: it does not look at the clock.
    let request = desk.memory.published(&squares()).pop().unwrap();
    let reply = Reply::with(&request, Envelope::new("square.made", "{}")).unwrap();
    reply.publish(&desk.bus).await.unwrap();
    eventually("a late reply", async || requests.stats().late == 1).await;
    assert_eq!(requests.stats().answered, 0);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_leaves_nothing() {
    let desk = Desk::new().await;
    let requests = desk.requests().await;
    let waiting = Box::pin(async { requests.call::<Square>(squares(), &Ask { n: 7 }).await });
    let _ = tokio::time::timeout(Duration::from_secs(1), waiting).await.unwrap_err();
    assert_eq!(requests.stats().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn one_call_above_the_limit_is_refused_and_nothing_is_sent() {
    let desk = Desk::new().await;
    let requests = Requests::builder(&desk.bus, Source::queue("replies")).max_waiting(2).open().await.unwrap();
    let call = || tokio::spawn(std::future::IntoFuture::into_future(requests.call::<Square>(squares(), &Ask { n: 1 })));
    let (one, two) = (call(), call());
    eventually("two calls wait", async || requests.stats().waiting == 2).await;
    let error = call().await.unwrap().unwrap_err();
    assert!(matches!(error, RequestError::TooManyWaiting { limit: 2 }) && error.sent() == Sent::No, "{error:?}");
    assert_eq!(desk.memory.published(&squares()).len(), 2);
    requests.close().await;
    for ended in [one, two] {
        let error = ended.await.unwrap().unwrap_err();
        assert!(matches!(error, RequestError::Closed { sent: Sent::Yes, .. }), "{error:?}");
    }
    assert!(matches!(call().await.unwrap(), Err(RequestError::Closed { sent: Sent::No, .. })));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_sent_says_so() {
    let desk = Desk::new().await;
    let requests = desk.requests().await;
    let nowhere = polybus_core::Address::queue("nowhere");
    let error = requests.call::<Square>(nowhere, &Ask { n: 1 }).await.unwrap_err();
    assert!(matches!(&error, RequestError::Publish(e) if e.kind() == ErrorKind::NotFound), "{error:?}");
    assert_eq!(error.sent(), Sent::No);
    let large = Envelope::new("square.wanted", vec![b'x'; 100_000]);
    let error = requests.call_with(squares(), large).await.unwrap_err();
    assert!(matches!(&error, RequestError::Publish(e) if e.kind() == ErrorKind::PayloadTooLarge), "{error:?}");
    let error = requests.call::<Square>(squares(), &Ask { n: 1 }).timeout(Duration::ZERO).await.unwrap_err();
    assert!(matches!(&error, RequestError::Publish(e) if e.kind() == ErrorKind::InvalidArgument), "{error:?}");
    assert_eq!(requests.stats().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_another_type_cannot_be_read() {
    let desk = Desk::new().await;
    let requests = desk.requests().await;
    let (_stop, _worker) = desk.work(respond(&desk.bus, (), async |(), _cx, ask: Ask| Ok(ask)));
    let error = requests.call::<Square>(squares(), &Ask { n: 1 }).await.unwrap_err();
    assert!(matches!(&error, RequestError::Decode(e) if e.kind() == ErrorKind::Malformed), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn the_request_tells_all_that_a_responder_needs() {
    let desk = Desk::new().await;
    let requests = desk.requests().await;
    let call =
        requests.call::<Square>(squares(), &Ask { n: 1 }).timeout(Duration::from_secs(9)).header("tenant", "acme");
    call.key("customer-3").await.unwrap_err();
    let request = desk.memory.published(&squares()).pop().unwrap();
    assert_eq!(request.extensions.get("replyto"), Some("replies"));
    assert_eq!(request.correlation_id, Some(request.id.clone()), "it begins a conversation");
    assert_eq!((request.key.as_deref(), request.headers.get("tenant")), (Some("customer-3"), Some("acme")));
    assert!(request.expires_at.is_some_and(|at| at <= desk.bus.now()));
}

#[tokio::test(start_paused = true)]
async fn a_timeout_without_an_end_works() {
    let desk = Desk::new().await;
    let requests = desk.requests().await;
    let (_stop, _worker) = desk.work(respond(&desk.bus, (), async |(), _cx, ask: Ask| Ok(Square { n: ask.n })));
    let answer = requests.call::<Square>(squares(), &Ask { n: 3 }).timeout(Duration::MAX).await.unwrap();
    assert_eq!(answer.n, 3);
}
