//! What becomes of a request, and what its caller is told.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use polybus_core::{Address, Envelope, Event, HandlerError, memory::RawMessage};
use polybus_patterns::{
    requests::{Refusal, RequestError, Requests, Responder, respond},
    types::{DecodeFailure, Types},
};
use serde::{Deserialize, Serialize};

use crate::{Ask, Desk, Seen, Square, eventually, squares};

async fn remote(requests: &Requests, n: u64) -> (String, String) {
    match requests.call::<Square>(squares(), &Ask { n }).timeout(Duration::from_secs(60)).await {
        Err(RequestError::Remote { kind, message }) => (kind.into(), message.into()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_an_answer() {
    let desk = Desk::new().await;
    let requests = desk.requests().await;
    let (stop, worker) = desk.work(respond(&desk.bus, (), async |(), _cx, ask: Ask| match ask.n {
        1 => Err(Refusal::new("odd", "1 is too odd").into()),
        2 => Err(HandlerError::permanent(Refusal::new("even", "2 is too even"))),
        n => Ok(Square { n }),
    }));
    assert_eq!(remote(&requests, 1).await, ("odd".into(), "1 is too odd".into()));
    assert_eq!(remote(&requests, 2).await, ("even".into(), "2 is too even".into()));
    eventually("a dead letter", async || desk.dead_reasons("squares").await == ["permanent"]).await;
    drop(stop);
    let report = worker.await.unwrap().unwrap();
    assert_eq!((report.succeeded, report.retried, report.dead_lettered), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_permanent_error_tells_its_reason_and_keeps_its_detail() {
    let desk = Desk::new().await;
    let requests = desk.requests().await;
    let (_stop, _worker) = desk.work(respond(&desk.bus, (), async |(), _cx, _ask: Ask| -> Result<Square, _> {
        Err(HandlerError::dead_letter("no-such-tenant", "tenant 7 of the secret list"))
    }));
    let (kind, message) = remote(&requests, 1).await;
    assert_eq!(kind, "no-such-tenant");
    assert!(!message.contains("secret"), "{message}");
    eventually("a dead letter", async || desk.dead_reasons("squares").await == ["no-such-tenant"]).await;
}

#[tokio::test(start_paused = true)]
async fn an_error_is_told_at_the_last_attempt_alone() {
    let desk = Desk::new().await;
    let requests = desk.requests().await;
    let attempts: Seen<u32> = Seen::default();
    let (_stop, _worker) = desk.work(respond(&desk.bus, attempts.clone(), async |attempts, cx, ask: Ask| {
        attempts.lock().unwrap().push(cx.attempt());
        match (ask.n, cx.attempt()) {
            (1, 3) | (3, _) => Ok(Square { n: ask.n }),
            (2, _) => panic!("two"),
            _ => Err("the bank does not answer".into()),
        }
    }));
    let square: Square = requests.call(squares(), &Ask { n: 1 }).await.unwrap();
    assert_eq!((square.n, attempts.lock().unwrap().clone()), (1, vec![1, 2, 3]));
    assert_eq!(remote(&requests, 2).await.0, "panic");
    assert_eq!(remote(&requests, 4).await.0, "failed");
    assert_eq!(attempts.lock().unwrap().len(), 9);
    eventually("dead letters", async || desk.dead_reasons("squares").await.len() == 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_cannot_be_read_is_answered_too() {
    let desk = Desk::new().await;
    let requests = desk.requests().await;
    let (_stop, _worker) = desk.work(respond(&desk.bus, (), async |(), _cx, ask: Ask| Ok(Square { n: ask.n })));
    let request = Envelope::new("square.wanted", r#"{"n":"hush"}"#);
    let answer = requests.call_with(squares(), request).await;
    assert!(
        matches!(&answer, Err(RequestError::Remote { kind, message })
        if &**kind == "malformed" && !message.contains("hush")),
        "{answer:?}"
    );
    eventually("a dead letter", async || desk.dead_reasons("squares").await == ["malformed"]).await;
}

#[tokio::test(start_paused = true)]
async fn nobody_computes_for_a_caller_who_has_left() {
    let desk = Desk::new().await;
    let requests = desk.requests().await;
    requests.call::<Square>(squares(), &Ask { n: 1 }).timeout(Duration::from_secs(1)).await.unwrap_err();
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let (stop, worker) = desk.work(respond(&desk.bus, (), async |(), _cx, ask: Ask| {
        RUNS.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(10)).await;
        Ok(Square { n: ask.n })
    }));
    // The first one expires in the queue, the second one while its handler runs.
    requests.call::<Square>(squares(), &Ask { n: 2 }).timeout(Duration::from_secs(5)).await.unwrap_err();
    eventually("the queue is empty", async || {
        let stats = desk.bus.stats(polybus_core::Source::queue("squares")).await.unwrap();
        (stats.ready, stats.in_flight) == (Some(0), Some(0))
    })
    .await;
    assert_eq!(RUNS.load(Ordering::Relaxed), 1);
    let replies = desk.memory.published(&Address::queue("replies"));
    assert!(replies.iter().all(|reply| &*reply.event_type == "polybus.reply.probe"), "an answer that nobody waits for");
    drop(stop);
    let report = worker.await.unwrap().unwrap();
    assert_eq!((report.succeeded, report.retried), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn requests_that_cannot_be_answered_are_dead_letters_before_their_handler() {
    let desk = Desk::new().await;
    let responder = Responder::new(&desk.bus).only_to(|to| to.queue() != "other");
    let (_stop, _worker) = desk.work(
        responder
            .handler((), async |(), _cx, ask: Ask| -> Result<Square, HandlerError> { panic!("it ran for {}", ask.n) }),
    );
    desk.bus.publish(squares(), Envelope::event(&Ask { n: 1 }).unwrap()).await.unwrap();
    // Not allowed, the queue of the requests itself, and one that is ordered.
    for (n, queue) in ["other", "squares", "ordered"].into_iter().enumerate() {
        let ask = Envelope::event(&Ask { n: n as u64 }).unwrap().reply_to(queue);
        desk.bus.publish(squares(), ask).await.unwrap();
    }
    eventually("four dead letters", async || {
        let stats = desk.bus.stats(polybus_core::Source::queue("squares")).await.unwrap();
        stats.dead_lettered == Some(4)
    })
    .await;
    let mut reasons = desk.dead_reasons("squares").await;
    reasons.sort();
    assert_eq!(reasons, ["no-reply-queue", "reply-queue-refused", "reply-queue-refused", "reply-queue-refused"]);
}

#[tokio::test(start_paused = true)]
async fn a_reply_queue_that_is_gone_ends_the_request() {
    let desk = Desk::new().await;
    let (stop, worker) = desk.work(respond(&desk.bus, (), async |(), _cx, ask: Ask| Ok(Square { n: ask.n })));
    desk.bus.publish(squares(), Envelope::event(&Ask { n: 1 }).unwrap().reply_to("amq.gen-gone")).await.unwrap();
    eventually("the request is acknowledged", async || {
        let stats = desk.bus.stats(polybus_core::Source::queue("squares")).await.unwrap();
        (stats.ready, stats.in_flight) == (Some(0), Some(0))
    })
    .await;
    drop(stop);
    assert_eq!(worker.await.unwrap().unwrap().succeeded, 1);
    assert!(desk.dead_reasons("squares").await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_too_large_is_told() {
    let desk = Desk::new().await;
    let requests = desk.requests().await;
    let responder = Responder::new(&desk.bus);
    let (_stop, _worker) = desk.work(
        responder.message_handler((), async |(), _cx, _ask| Ok(Envelope::new("square.made", vec![b'x'; 100_000]))),
    );
    let (kind, message) = remote(&requests, 1).await;
    assert_eq!(kind, "reply-refused");
    assert!(message.contains("PayloadTooLarge"), "{message}");
    eventually("a dead letter", async || desk.dead_reasons("squares").await == ["reply-refused"]).await;
}

#[tokio::test(start_paused = true)]
async fn another_programs_request_is_answered_with_its_own_correlation_id() {
    let desk = Desk::new().await;
    let (_stop, _worker) = desk.work(respond(&desk.bus, (), async |(), _cx, ask: Ask| Ok(Square { n: ask.n * 2 })));
    let raw = |correlation: Option<&str>, id: &str| RawMessage {
        body: r#"{"n":21}"#.into(),
        id: Some(id.into()),
        correlation_id: correlation.map(Into::into),
        native: vec![("reply-to", "other".into())],
        ..RawMessage::default()
    };
    // Where a program sets no correlation id, the answer's is the message's id, as JMS has it.
    for (correlation, id, wanted) in [(Some("rpc-7"), "m-1", "rpc-7"), (None, "m-2", "m-2")] {
        desk.memory.inject(&squares(), raw(correlation, id)).unwrap();
        let mut replies = desk.bus.subscribe(polybus_core::Source::queue("other")).open().await.unwrap();
        let reply = replies.next().await.unwrap().unwrap();
        assert_eq!(reply.envelope().correlation_id.as_deref(), Some(wanted));
        assert_eq!(&*reply.envelope().data, br#"{"n":42}"#);
        assert_eq!(reply.envelope().headers.get("native.content-encoding"), None);
        reply.ack().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn many_reply_queues_of_other_programs_are_answered() {
    // More than publishers are kept for.
    let queues: Vec<String> = (0..150).map(|n| format!("reply-{n}")).collect();
    let desk = Desk::new().await;
    let topology = queues
        .iter()
        .fold(polybus_core::Topology::new(), |all, queue| all.queue(queue.as_str(), polybus_core::QueueSpec::new()));
    let others = polybus_core::Bus::new(desk.memory.clone(), polybus_core::BusOptions::topology(topology)).unwrap();
    others.declare().await.unwrap();
    let (_stop, _worker) = desk.work(respond(&desk.bus, (), async |(), _cx, ask: Ask| Ok(Square { n: ask.n })));
    for round in 0..2 {
        for (n, queue) in queues.iter().enumerate() {
            let request = Envelope::event(&Ask { n: n as u64 }).unwrap().reply_to(queue.as_str());
            desk.bus.publish(squares(), request).await.unwrap();
        }
        for queue in &queues {
            let replies = async || others.stats(polybus_core::Source::queue(queue.as_str())).await.unwrap().ready;
            eventually("a reply in each queue", async || replies().await == Some(round + 1)).await;
        }
    }
}

/// The second version of the request.
#[derive(Serialize, Deserialize)]
struct AskAgain {
    n: u64,
    times: u64,
}

impl Event for AskAgain {
    const TYPE: &'static str = Ask::TYPE;
    const VERSION: u32 = 2;
}

#[tokio::test(start_paused = true)]
async fn a_responder_reads_several_versions_by_a_handler_of_messages_alone() {
    let desk = Desk::new().await;
    let requests = desk.requests().await;
    let ask = |n| requests.call::<Square>(squares(), &AskAgain { n, times: 3 }).timeout(Duration::from_secs(60));
    let (stop, worker) = desk.work(respond(&desk.bus, (), async |(), _cx, ask: Ask| Ok(Square { n: ask.n })));
    let newer = ask(2).await;
    assert!(matches!(&newer, Err(RequestError::Remote { kind, .. }) if **kind == *"malformed"), "{newer:?}");
    eventually("a dead letter", async || desk.dead_reasons("squares").await == ["malformed"]).await;
    drop(stop);
    worker.await.unwrap().unwrap();

    let types = Types::new().event::<AskAgain>().upcast::<AskAgain>(1, |mut json, _| {
        json["times"] = 1.into();
        Ok(json)
    });
    types.check().unwrap();
    let (_stop, _worker) = desk.work(Responder::new(&desk.bus).message_handler(types, async |types, _cx, msg| {
        let ask: AskAgain = types.decode(&msg).map_err(DecodeFailure::dead_letter)?;
        Ok(Envelope::event(&Square { n: ask.n * ask.times })?)
    }));
    assert_eq!(ask(2).await.unwrap(), Square { n: 6 });
    let older = requests.call::<Square>(squares(), &Ask { n: 2 }).timeout(Duration::from_secs(60)).await;
    assert_eq!(older.unwrap(), Square { n: 2 });
}
