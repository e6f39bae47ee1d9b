//! Metrics and the trace context.

use std::future::pending;

use polybus_core::{Address, Envelope, HandlerError, QueueSpec, Source, stateful, telemetry::TraceContext};

use crate::{recorder::Recorder, support::*};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test(start_paused = true)]
async fn what_a_handler_publishes_stays_in_the_trace() {
    let bus = bus(QueueSpec::new()).await;
    let first = Envelope::new("t", "").id("traced").edit(|p| {
        p.traceparent = Some(PARENT.into());
        p.tracestate = Some("vendor=1".into());
    });
    for message in [first, Envelope::new("t", "").id("plain")] {
        bus.publish(Address::queue("q"), message).await.unwrap();
    }
    let tally = Counter::default();
    let handler = stateful((bus.clone(), tally.clone()), async |(bus, tally), _cx, msg| {
        assert_eq!(msg.traceparent.is_some(), TraceContext::current().is_some());
        let out = |n: u32| Envelope::new("t", "").id(format!("{}-{n}", msg.id));
        bus.publish(Address::queue("other"), out(1)).await?;
        // Still there after a wait, and beside another handling on the same thread.
        tokio::time::sleep(secs(1)).await;
        bus.publish(Address::queue("other"), out(2)).await?;
        tally.add();
        Ok(())
    });
    bus.worker(q()).with_graceful_shutdown(tally.reaches(2)).run(handler).await.unwrap();
    assert!(TraceContext::current().is_none());

    let mut sub = bus.subscribe(Source::queue("other")).open().await.unwrap();
    let mut parents = Vec::new();
    for _ in 0..4 {
        let delivery = sub.next().await.unwrap().unwrap();
        let message = delivery.envelope().clone();
        delivery.ack().await.unwrap();
        match TraceContext::of(&message) {
            Some(trace) => {
                assert!(message.id.starts_with("traced"), "{message:?}");
                assert_eq!(trace.trace_id(), "0af7651916cd43dd8448eb211c80319c");
                assert_eq!(trace.tracestate(), Some("vendor=1"));
                parents.push(trace.parent_id().to_owned());
            }
            None => assert!(message.id.starts_with("plain"), "{message:?}"),
        }
    }
    assert_eq!(parents.len(), 2);
    assert_eq!(parents[0], parents[1], "one parent for the whole handling");
    assert_ne!(parents[0], "b7ad6b7169203331");
}

#[tokio::test(start_paused = true)]
async fn everything_is_counted() {
    let recorder = Recorder::default();
    let _installed = metrics::set_default_local_recorder(&recorder);
    let bus = bus(QueueSpec::new().max_deliveries(2)).await;
    publish(&bus, ["fine", "slow", "poison", "flaky", "panics"]).await;
    let missing = bus.publish(Address::queue("missing"), Envelope::new("t", "")).await;
    assert!(missing.is_err());
    let tally = Counter::default();
    let handler = stateful(tally.clone(), async |tally, cx, msg| {
        tally.add();
        match (&*msg.id, cx.attempt()) {
            ("slow", 1) => pending().await,
            ("poison", _) => Err(HandlerError::dead_letter("poison", "no")),
            ("flaky", 1) => Err("once")?,
            ("panics", _) => panic!("boom"),
            _ => Ok(()),
        }
    });
    let worker = bus.worker(q()).handler_timeout(secs(1));
    let done = async { tokio::join!(tally.reaches(8), tokio::time::sleep(secs(10))).0 };
    let report = worker.with_graceful_shutdown(done).run(handler).await.unwrap();
    assert_eq!((report.succeeded, report.retried, report.dead_lettered), (3, 3, 2));
    let wanted = [
        ("polybus_dead_lettered_total{reason=max-deliveries-exceeded}", 1),
        ("polybus_dead_lettered_total{reason=poison}", 1),
        ("polybus_handle_duration_seconds", 8),
        ("polybus_handled_total{outcome=error}", 1),
        ("polybus_handled_total{outcome=ok}", 3),
        ("polybus_handled_total{outcome=panic}", 2),
        ("polybus_handled_total{outcome=permanent}", 1),
        ("polybus_handled_total{outcome=timeout}", 1),
        ("polybus_publish_duration_seconds{backend=memory,address=queue:q}", 5),
        ("polybus_published_total{backend=memory,address=queue:missing,outcome=NotFound}", 1),
        ("polybus_published_total{backend=memory,address=queue:q,outcome=ok}", 5),
        ("polybus_received_total", 8),
        ("polybus_retried_total", 3),
        ("polybus_settled_total{settlement=ack,outcome=ok}", 3),
        ("polybus_settled_total{settlement=dead_letter,outcome=ok}", 2),
        ("polybus_settled_total{settlement=retry,outcome=ok}", 3),
    ];
    let told = recorder.nonzero("backend=memory,source=queue:q");
    assert_eq!(told, wanted.map(|(k, n)| (k.to_owned(), n)).into());
}
