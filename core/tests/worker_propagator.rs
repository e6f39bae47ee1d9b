//! A tracing system with contexts of its own. In a process of its own: the propagator is installed once.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::{Arc, Mutex};

use polybus_core::{
    Address, Bus, BusOptions, Envelope, QueueSpec, Source, Topology,
    memory::MemoryDriver,
    stateful,
    telemetry::{TraceContext, TracePropagator, set_propagator},
};
use tokio::sync::Notify;
use tracing::Span;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const OWN: &str = "00-11111111111111111111111111111111-2222222222222222-01";

type Seen = Arc<Mutex<Vec<(bool, String)>>>;

#[derive(Clone, Default)]
struct Own(Seen);

impl TracePropagator for Own {
    fn current(&self) -> Option<TraceContext> {
        Some(TraceContext::new(OWN, None).unwrap())
    }

    fn continue_from(&self, span: &Span, parent: &TraceContext) {
        self.0.lock().unwrap().push((span.is_disabled(), parent.traceparent().to_owned()));
    }
}

#[tokio::test(start_paused = true)]
async fn the_propagators_context_comes_first() {
    let own = Own::default();
    assert!(set_propagator(own.clone()));
    assert!(!set_propagator(Own::default()), "the first one stays");
    let _installed = tracing::subscriber::set_default(tracing_subscriber::registry());

    let topology = Topology::new().queue("q", QueueSpec::new()).queue("out", QueueSpec::new());
    let bus = Bus::new(Arc::new(MemoryDriver::new()), BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();
    bus.publish(Address::queue("q"), Envelope::new("t", "").traceparent(PARENT)).await.unwrap();
    let done = Arc::new(Notify::new());
    let handler = stateful((bus.clone(), done.clone()), async |(bus, done), _cx, _msg| {
        bus.publish(Address::queue("out"), Envelope::new("t", "")).await?;
        done.notify_one();
        Ok(())
    });
    bus.worker(Source::queue("q")).with_graceful_shutdown(done.notified()).run(handler).await.unwrap();

    assert_eq!(*own.0.lock().unwrap(), [(false, PARENT.to_owned())]);
    let mut sub = bus.subscribe(Source::queue("out")).open().await.unwrap();
    let delivery = sub.next().await.unwrap().unwrap();
    assert_eq!(delivery.envelope().traceparent.as_deref(), Some(OWN));
    delivery.ack().await.unwrap();
}
