//! Spans, metrics and the trace context.

use polybus_core::{Address, Envelope, HandlerError, QueueSpec, Source, telemetry::TraceContext, with};

use crate::support::*;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test(start_paused = true)]
async fn what_a_handler_publishes_stays_in_the_trace() {
    let bus = bus(QueueSpec::new()).await;
    let first = Envelope::new("t", "").id("traced").edit(|p| {
        p.traceparent = Some(PARENT.into());
        p.tracestate = Some("vendor=1".into());
    });
    for message in [first, Envelope::new("t", "").id("plain")] {
        bus.publish(&Address::queue("q"), message).await.unwrap();
    }
    let tally = Tally::default();
    let handler = with((bus.clone(), tally.clone()), async |(bus, tally), _cx, msg| {
        assert_eq!(msg.traceparent.is_some(), TraceContext::current().is_some());
        let out = |n: u32| Envelope::new("t", "").id(format!("{}-{n}", msg.id));
        bus.publish(&Address::queue("other"), out(1)).await?;
        // Still there after a wait, and beside another handling on the same thread.
        tokio::time::sleep(secs(1)).await;
        bus.publish(&Address::queue("other"), out(2)).await?;
        tally.add();
        Ok(())
    });
    bus.worker(q()).run(tally.reaches(2), handler).await.unwrap();
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
