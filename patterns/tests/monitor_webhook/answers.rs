//! What each answer of a receiver means.

use std::time::Duration;

use polybus_patterns::monitor::{Alert, AlertSink, Monitor, Rule, Webhook};
use tokio::net::TcpSocket;

use crate::{
    SECRET, bus, log,
    server::{Act, Receiver},
};

fn act(status: u16) -> Act {
    Act::Answer(status, Vec::new())
}

/// Runs a monitor whose alert fires at once, until all that it tells is sent or dropped. Answers how many were sent and
/// dropped.
async fn sent_and_dropped(webhook: Webhook) -> (u64, u64) {
    let rule = Rule::measure("on", async || Ok(Some(1.0))).above(0).held_for(1);
    let (fired, has_fired) = tokio::sync::oneshot::channel::<()>();
    let fired = parking_lot::Mutex::new(Some(fired));
    let told = move |_| {
        drop(fired.lock().take());
        async { Ok(()) }
    };
    let monitor = Monitor::new(&bus().await).rule(rule).sink(webhook).sink_fn("told", told);
    let monitor = monitor.drain_timeout(Duration::from_secs(60));
    let report = monitor.run(async { drop(has_fired.await) }).await.unwrap();
    // The closure is one of the two.
    (report.sent - 1, report.dropped)
}

#[tokio::test]
async fn what_may_pass_is_tried_three_times_and_what_will_not_once() {
    for (acts, wanted, requests) in [
        (vec![act(200)], (1, 0), 1),
        (vec![act(500), act(204)], (1, 0), 2),
        (vec![act(503), act(429), act(204)], (1, 0), 3),
        (vec![act(408), act(425), act(502), act(204)], (0, 1), 3),
        (vec![act(404), act(204)], (0, 1), 1),
        (vec![act(410), act(204)], (0, 1), 1),
        (vec![act(401), act(204)], (0, 1), 1),
    ] {
        let receiver = Receiver::start(acts.clone(), None).await;
        let webhook = Webhook::new(&receiver.url(), SECRET).unwrap();
        assert_eq!(sent_and_dropped(webhook).await, wanted, "{acts:?}");
        let received = receiver.received();
        assert_eq!(received.len(), requests, "{acts:?}");
        let id = received[0].header("webhook-id").to_owned();
        assert!(received.iter().all(|r| r.header("webhook-id") == id && r.body == received[0].body));
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Receiver::start([], None).await;
    for status in [301, 302, 307, 308] {
        let redirect = Act::Answer(status, vec![("location", elsewhere.url())]);
        let receiver = Receiver::start([redirect], None).await;
        let error = Webhook::new(&receiver.url(), SECRET).unwrap().send(&Alert::sample()).await.unwrap_err();
        assert!(error.to_string().contains("redirects are not followed"), "{error}");
    }
    assert_eq!(elsewhere.received().len(), 0);
}

#[tokio::test]
async fn retry_after_is_kept() {
    let busy = Act::Answer(429, vec![("retry-after", "3".into())]);
    let receiver = Receiver::start([busy], None).await;
    let webhook = Webhook::new(&receiver.url(), SECRET).unwrap();
    assert_eq!(sent_and_dropped(webhook).await, (1, 0));
    let received = receiver.received();
    // By itself it would wait for a second at most.
    assert!(received[1].at - received[0].at >= Duration::from_secs(3));
}

#[tokio::test]
async fn a_receiver_that_hangs_closes_babbles_or_is_not_there_is_tried_again() {
    let (log, _keeping) = log::Log::keep();
    for (act, word) in
        [(Act::Hangs, "did not answer within 300ms"), (Act::Closes, "127.0.0.1:"), (Act::Babbles, "127.0.0.1:")]
    {
        let receiver = Receiver::start([act.clone()], None).await;
        let url = format!("http://u:t0psecret@127.0.0.1:{}/t0psecret?t0psecret#t0psecret", receiver.port);
        let webhook = Webhook::new(&url, SECRET).unwrap().timeout(Duration::from_millis(300));
        let error = webhook.send(&Alert::sample()).await.unwrap_err();
        assert!(error.to_string().contains(word), "{act:?}: {error}");
        assert!(!format!("{error:?}").contains("t0psecret"), "{error:?}");
        assert_eq!(
            sent_and_dropped(webhook.timeout(Duration::from_secs(10))).await,
            (1, 0),
            "{act:?}: the next is fine"
        );
    }
    // A port that is taken, so that nobody else gets it meanwhile, and on which nobody listens.
    let taken = TcpSocket::new_v4().unwrap();
    taken.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let port = taken.local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}/t0psecret");
    assert_eq!(sent_and_dropped(Webhook::new(&url, SECRET).unwrap()).await, (0, 1));
    assert_eq!(log.count(&["an alert could not be sent, and is dropped", &format!("127.0.0.1:{port}")]), 1);
    assert_eq!(log.count(&["t0psecret"]), 0);
}

#[tokio::test]
async fn the_head_of_an_answer_is_enough() {
    let receiver = Receiver::start([Act::PromisesBody], None).await;
    Webhook::new(&receiver.url(), SECRET).unwrap().send(&Alert::sample()).await.unwrap();
}
