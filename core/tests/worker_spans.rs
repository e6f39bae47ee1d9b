//! The spans of a publish and a handling. In a process of its own: tracing keeps for all threads who listens.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex},
};

use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver, stateful};
use tokio::sync::Notify;
use tracing::{
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::layer::{Context as LayerContext, Layer, SubscriberExt};

/// Keeps each span's name and fields.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<BTreeMap<u64, BTreeMap<String, String>>>>);

struct Fields<'a>(&'a mut BTreeMap<String, String>);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}").trim_matches('"').to_owned());
    }
}

impl<S: tracing::Subscriber> Layer<S> for Spans {
    fn on_new_span(&self, span: &Attributes<'_>, id: &Id, _: LayerContext<'_, S>) {
        let mut all = self.0.lock().unwrap();
        let fields = all.entry(id.into_u64()).or_default();
        fields.insert("span".into(), span.metadata().name().into());
        span.record(&mut Fields(fields));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: LayerContext<'_, S>) {
        if let Some(fields) = self.0.lock().unwrap().get_mut(&id.into_u64()) {
            values.record(&mut Fields(fields));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn spans_have_opentelemetrys_names() {
    let spans = Spans::default();
    let _installed = tracing::subscriber::set_default(tracing_subscriber::registry().with(spans.clone()));
    let topology = Topology::new().queue("q", QueueSpec::new().max_deliveries(1));
    let bus = Bus::new(Arc::new(MemoryDriver::new()), BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();
    let message = Envelope::new("t", "12345").id("m").correlation_id("c");
    bus.publish(Address::queue("q"), message).await.unwrap();
    let done = Arc::new(Notify::new());
    let handler = stateful(done.clone(), async |done, cx, _msg| {
        done.notify_one();
        // The handler runs inside its span, and can add to it.
        assert_eq!(tracing::Span::current().id(), cx.span().id());
        assert!(!cx.span().is_disabled());
        Err("no")?
    });
    bus.worker(Source::queue("q")).with_graceful_shutdown(done.notified()).run(handler).await.unwrap();
    let spans: Vec<_> = spans.0.lock().unwrap().values().cloned().collect();
    let of = |name: &str| spans.iter().find(|s| s.get("span").is_some_and(|n| n == name)).unwrap().clone();
    let both = [
        ("messaging.system", "memory"),
        ("messaging.system.name", "memory"),
        ("messaging.destination.name", "q"),
        ("messaging.message.id", "m"),
        ("messaging.message.body.size", "5"),
    ];
    let publish = [
        ("span", "publish"),
        ("otel.name", "publish q"),
        ("otel.kind", "producer"),
        ("messaging.operation.name", "publish"),
        ("messaging.operation.type", "send"),
    ];
    let process = [
        ("span", "process"),
        ("otel.name", "process queue:q"),
        ("otel.kind", "consumer"),
        ("messaging.operation.name", "process"),
        ("messaging.operation.type", "process"),
        ("messaging.message.conversation_id", "c"),
        ("polybus.attempt", "1"),
        ("polybus.outcome", "error"),
        ("polybus.settled", "dead_letter"),
        ("error.type", "error"),
    ];
    let texts = |fields: &[(&str, &str)]| -> BTreeMap<String, String> {
        both.iter().chain(fields).map(|(k, v)| (k.to_string(), v.to_string())).collect()
    };
    assert_eq!(of("publish"), texts(&publish));
    assert_eq!(of("process"), texts(&process));
}
