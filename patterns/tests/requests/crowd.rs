//! Many callers, some of whom leave, and a responder that is killed.

use std::{future::IntoFuture, time::Duration};

use polybus_patterns::requests::{RequestError, Sent, respond};

use crate::{Ask, Desk, Square, eventually, squares};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_callers_a_third_of_whom_leave_and_a_killed_responder() {
    let desk = Desk::new().await;
    let requests = desk.requests().await;
    let respond = || {
        respond(&desk.bus, (), async |(), _cx, ask: Ask| {
            tokio::time::sleep(Duration::from_millis(ask.n % 7)).await;
            Ok(Square { n: ask.n * ask.n })
        })
    };
    let (_stop, killed) = desk.work(respond());
    let mut staying = Vec::new();
    for n in 0..1_000u64 {
        let call = requests.call::<Square>(squares(), &Ask { n }).timeout(Duration::from_secs(120));
        match n % 3 {
            // Those leave after a moment that differs from one to the next.
            0 => drop(tokio::spawn(tokio::time::timeout(Duration::from_millis(n % 41), call.into_future()))),
            _ => staying.push((n, tokio::spawn(call.into_future()))),
        }
        if n == 500 {
            killed.abort();
        }
    }
    // What the killed one had begun comes again.
    let (_stop, _worker) = desk.work(respond());
    for (n, call) in staying {
        assert_eq!(call.await.unwrap().unwrap().n, n * n);
    }
    eventually("nobody waits", async || requests.stats().waiting == 0).await;
}

#[tokio::test(start_paused = true)]
async fn without_a_responder_every_call_ends_with_the_truth() {
    let desk = Desk::new().await;
    let requests = desk.requests().await;
    let calls = (0..100).map(|n| tokio::spawn(requests.call::<Square>(squares(), &Ask { n }).into_future()));
    for call in calls.collect::<Vec<_>>() {
        let error = call.await.unwrap().unwrap_err();
        assert!(matches!(error, RequestError::Timeout { sent: Sent::Yes, .. }), "{error:?}");
    }
    assert_eq!(requests.stats().waiting, 0);
}
