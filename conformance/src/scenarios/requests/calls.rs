//! Calls of polybus to polybus.

use std::{
    future::IntoFuture,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use polybus_core::{Envelope, HandlerError, Source};
use polybus_patterns::requests::{Refusal, RequestError, Sent, respond};

use super::{Ask, Desks, Square, squares};
use crate::{Cx, During, Failure, Need, Outcome, Scenario, ensure, ensure_eq, scenario, scenarios::shared::wait_until};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario("requests/answered", "Forty calls at once get each its own answer.", answered),
        scenario("requests/conversation", "Request, answer and events share one correlation id.", conversation),
        scenario("requests/refused", "A refusal is an answer, and its request is acknowledged.", refused),
        scenario(
            "requests/failed",
            "A handler's error is told once all attempts are used up, and the request is a dead letter.",
            failed,
        )
        .needs(|_, c| Need::retry(c, Duration::from_secs(1)).and(Need::dead_letters(c)))
        .timeout(Duration::from_secs(90)),
        scenario(
            "requests/unanswered",
            "A call without a responder ends at its timeout, and does not claim that nothing was sent.",
            unanswered,
        ),
        scenario("requests/late", "An answer after the timeout is counted, and does not come again.", late),
        scenario("requests/dropped-responder", "A call outlives the responder that had begun it.", dropped_responder)
            .timeout(Duration::from_secs(120)),
    ]
}

async fn answered(cx: Cx) -> Outcome {
    let desks = Desks::open(&cx).await?;
    let (_stop, _worker) =
        desks.work(respond(&desks.responder, (), async |(), _cx, ask: Ask| Ok(Square { n: ask.n * ask.n })));
    let calls: Vec<_> =
        (0..40).map(|n| tokio::spawn(desks.requests.call::<Square>(squares(), &Ask { n }).into_future())).collect();
    for (n, call) in calls.into_iter().enumerate() {
        let square = call.await.map_err(|_| Failure::new("the call panicked"))?;
        let square = square.map_err(|e| Failure::new(format!("call {n}: {e}")))?;
        ensure_eq!(square.n, (n * n) as u64, "the answer to call {n}");
    }
    ensure_eq!(desks.requests.stats().waiting, 0, "calls that wait");
    desks.requests.close().await;
    Ok(())
}

async fn conversation(cx: Cx) -> Outcome {
    let desks = Desks::open(&cx).await?;
    let state = desks.responder.clone();
    let (_stop, _worker) = desks.work(respond(&desks.responder, state, async |bus, _cx, ask: Ask| {
        bus.publish(polybus_core::Address::queue("answers"), Envelope::new("square.counted", "{}")).await?;
        Ok(Square { n: ask.n })
    }));
    let ask = Envelope::event(&Ask { n: 1 })?.correlation_id("page-7");
    let reply = desks.requests.call_with(squares(), ask).await.map_err(|e| Failure::new(e.to_string()))?;
    ensure_eq!(reply.correlation_id.as_deref(), Some("page-7"), "the conversation of the answer");
    let mut events = desks.caller.subscribe(Source::queue("answers")).open().await?;
    let event = cx.drain(&mut events, 1).await.during("the event")?.remove(0);
    ensure_eq!(event.correlation_id.as_deref(), Some("page-7"), "the conversation of the event");
    ensure_eq!(event.causation_id, reply.causation_id, "both are caused by the request");
    ensure!(event.causation_id.is_some(), "the event names no cause");
    Ok(())
}

async fn refused(cx: Cx) -> Outcome {
    let desks = Desks::open(&cx).await?;
    let (stop, worker) = desks.work(respond(&desks.responder, (), async |(), _cx, ask: Ask| -> Result<Square, _> {
        Err(Refusal::new("odd", format!("{} is too odd", ask.n)).into())
    }));
    match desks.requests.call::<Square>(squares(), &Ask { n: 7 }).await {
        Err(RequestError::Remote { kind, message }) => {
            ensure_eq!((&*kind, &*message), ("odd", "7 is too odd"), "what the caller is told");
        }
        other => return Err(Failure::new(format!("the call ended with {other:?}"))),
    }
    drop(stop);
    let report = worker.await.map_err(|_| Failure::new("the worker panicked"))??;
    ensure_eq!((report.succeeded, report.dead_lettered), (1, 0), "acknowledged and dead-lettered");
    Ok(())
}

async fn failed(cx: Cx) -> Outcome {
    let desks = Desks::open(&cx).await?;
    let runs = Arc::new(AtomicU32::new(0));
    let (stop, worker) = desks.work(respond(
        &desks.responder,
        runs.clone(),
        async |runs, _cx, _ask: Ask| -> Result<Square, HandlerError> {
            runs.fetch_add(1, Ordering::Relaxed);
            Err("the bank does not answer".into())
        },
    ));
    match desks.requests.call::<Square>(squares(), &Ask { n: 7 }).await {
        Err(RequestError::Remote { kind, message }) => {
            ensure_eq!(&*kind, "failed", "what the caller is told");
            ensure!(!message.contains("bank"), "the detail reaches the caller: {message}");
        }
        other => return Err(Failure::new(format!("the call ended with {other:?}"))),
    }
    ensure_eq!(runs.load(Ordering::Relaxed), 3, "attempts");
    drop(stop);
    let report = worker.await.map_err(|_| Failure::new("the worker panicked"))??;
    ensure_eq!(report.dead_lettered, 1, "dead letters");
    Ok(())
}

async fn unanswered(cx: Cx) -> Outcome {
    let desks = Desks::open(&cx).await?;
    let limit = cx.lateness(Duration::from_secs(2));
    let error = desks.requests.call::<Square>(squares(), &Ask { n: 7 }).timeout(limit).await;
    match error {
        Err(RequestError::Timeout { sent: Sent::Yes | Sent::Maybe, .. }) => {}
        other => return Err(Failure::new(format!("the call ended with {other:?}"))),
    }
    ensure_eq!(desks.requests.stats().waiting, 0, "calls that wait");
    // Nobody computes for a caller who has left: the request has expired.
    let mut requests = desks.responder.subscribe(Source::queue("squares")).open().await?;
    cx.expect_none(&mut requests).await
}

async fn late(cx: Cx) -> Outcome {
    let desks = Desks::open(&cx).await?;
    let mut asked = desks.responder.subscribe(Source::queue("squares")).open().await?;
    let call = tokio::spawn(desks.requests.call::<Square>(squares(), &Ask { n: 7 }).into_future());
    let request = cx.recv(&mut asked).await.during("the request")?;
    call.abort();
    wait_until(&cx, "the call to leave", || desks.requests.stats().waiting == 0).await?;
    let answer = Envelope::event(&Square { n: 49 })?.caused_by(request.envelope());
    desks.responder.publish(polybus_core::Address::queue("replies"), answer).await?;
    request.ack().await?;
    wait_until(&cx, "the late answer", || desks.requests.stats().late >= 1).await?;
    desks.requests.close().await;
    let mut replies = desks.caller.subscribe(Source::queue("replies")).open().await?;
    cx.expect_none(&mut replies).await
}

async fn dropped_responder(cx: Cx) -> Outcome {
    let desks = Desks::open(&cx).await?;
    let begun = Arc::new(AtomicU32::new(0));
    let (_stop, first) = desks.work(respond(
        &desks.responder,
        begun.clone(),
        async |begun, _cx, _ask: Ask| -> Result<Square, HandlerError> {
            begun.fetch_add(1, Ordering::Relaxed);
            std::future::pending().await
        },
    ));
    let call = tokio::spawn(desks.requests.call::<Square>(squares(), &Ask { n: 7 }).into_future());
    wait_until(&cx, "the first responder to begin", || begun.load(Ordering::Relaxed) == 1).await?;
    first.abort();
    let (_stop, _second) =
        desks.work(respond(&desks.responder, (), async |(), _cx, ask: Ask| Ok(Square { n: ask.n * ask.n })));
    let square = call.await.map_err(|_| Failure::new("the call panicked"))?;
    ensure_eq!(square.map_err(|e| Failure::new(e.to_string()))?.n, 49, "the answer of the second");
    Ok(())
}
