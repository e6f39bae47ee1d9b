use std::task::{Context, Waker};

use tokio::time::{Instant, advance, timeout};

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn a_cancelled_receive_loses_nothing() {
    let w = world().await;
    let mut c = w.consume("queue:q", 10).await;
    for _ in 0..3 {
        assert!(timeout(secs(1), c.rx.receive(1)).await.is_err());
    }
    w.publish("queue:q", &["1"]).await;
    assert_eq!(c.seen(1), ids(&[("1", 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_wake_up_meant_for_a_cancelled_receive_goes_to_another() {
    let w = world().await;
    let (mut a, mut b) = (w.consume("queue:q", 1).await, w.consume("queue:q", 1).await);
    let waker = Waker::noop();
    // Both wait, the publish wakes one of them, and whichever it is gives up: the other one must get it.
    let mut first = a.rx.receive(1);
    assert!(first.as_mut().poll(&mut Context::from_waker(waker)).is_pending());
    let second = tokio::spawn(async move { (b.one().await.envelope.id.to_string(), b) });
    tokio::task::yield_now().await;
    for id in ["1", "2"] {
        w.publish("queue:q", &[id]).await;
    }
    drop(first);
    let (_, mut b) = second.await.unwrap();
    let mut third = a.rx.receive(1);
    assert!(third.as_mut().poll(&mut Context::from_waker(waker)).is_ready());
    drop(third);
    assert!(b.seen(1).is_empty());
}

#[tokio::test(start_paused = true)]
async fn only_the_one_that_gave_up_was_woken() {
    let w = world().await;
    let mut consumers = [w.consume("queue:q", 1).await, w.consume("queue:q", 1).await];
    for round in 0..4 {
        let woken = {
            let [a, b] = &mut consumers;
            let (mut one, mut two) = (a.rx.receive(1), b.rx.receive(1));
            let counts = [CountingWaker::new(), CountingWaker::new()];
            assert!(one.as_mut().poll(&mut Context::from_waker(&counts[0].clone().into())).is_pending());
            assert!(two.as_mut().poll(&mut Context::from_waker(&counts[1].clone().into())).is_pending());
            w.publish("queue:q", &["1"]).await;
            assert_eq!(counts[0].get() + counts[1].get(), 1, "one message wakes one consumer");
            let woken = usize::from(counts[1].get() == 1);
            if woken == 0 {
                drop(one)
            } else {
                drop(two)
            }
            assert_eq!(counts[1 - woken].get(), 1, "round {round}: the wake-up was passed on");
            woken
        };
        let [a, b] = &mut consumers;
        let other = if woken == 0 { b } else { a };
        let got = other.one().await;
        other.ack(&got).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_earlier_deadline_wakes_those_who_wait_for_a_later_one() {
    let w = world().await;
    w.publish("queue:q", &["1", "2"]).await;
    let mut c = w.consume("queue:q", 2).await;
    let got = c.ready(2);
    c.settle(&got[0], retry(20)).await.unwrap();
    let settler = c.settler.clone();
    let start = Instant::now();
    let waiting = tokio::spawn(async move { (c.one().await.envelope.id.to_string(), start.elapsed(), c) });
    tokio::task::yield_now().await;
    settle_by(&*settler, &got[1], retry(5)).await.unwrap();
    let (id, at, _c) = waiting.await.unwrap();
    assert_eq!((&*id, at), ("2", secs(5)));
}

#[tokio::test(start_paused = true)]
async fn a_receive_that_gave_up_leaves_no_timer() {
    let w = world().await;
    w.publish("queue:q", &["1"]).await;
    let mut c = w.consume("queue:q", 1).await;
    let got = c.one().await;
    c.settle(&got, retry(20)).await.unwrap();
    assert!(timeout(secs(1), c.rx.receive(1)).await.is_err());
    let start = Instant::now();
    let (send, done) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(30));
        send.send(()).unwrap();
    });
    done.await.unwrap();
    assert_eq!(start.elapsed(), secs(0));
    advance(secs(19)).await;
    assert_eq!(c.seen(1), ids(&[("1", 2)]));
}

struct CountingWaker(std::sync::atomic::AtomicUsize);

impl CountingWaker {
    fn new() -> std::sync::Arc<Self> {
        std::sync::Arc::new(Self(0.into()))
    }

    fn get(&self) -> usize {
        self.0.load(std::sync::atomic::Ordering::SeqCst)
    }
}

impl std::task::Wake for CountingWaker {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
}
