//! Spans with OpenTelemetry's messaging names.

use tracing::{Span, field::Empty, info_span};

use crate::{Address, Envelope, Source};

/// The span of one publish.
pub(crate) fn publish_span(backend: &'static str, to: &Address, message: &Envelope) -> Span {
    info_span!(
        target: "polybus",
        "publish",
        otel.name = %format_args!("publish {}", to.name()),
        otel.kind = "producer",
        messaging.system = backend,
        messaging.operation.name = "publish",
        messaging.operation.r#type = "send",
        messaging.destination.name = to.name(),
        messaging.message.id = &*message.id,
        messaging.message.body.size = message.data.len(),
        error.r#type = Empty,
    )
}

/// The span of one handling.
pub(crate) fn process_span(backend: &'static str, from: &Source, attempt: u32, message: &Envelope) -> Span {
    let live = from.live();
    let subscription = match live {
        Source::Subscription { name, .. } => Some(&**name),
        _ => None,
    };
    info_span!(
        target: "polybus",
        "process",
        otel.name = %format_args!("process {from}"),
        otel.kind = "consumer",
        messaging.system = backend,
        messaging.operation.name = "process",
        messaging.operation.r#type = "process",
        messaging.destination.name = live.address().name(),
        messaging.destination.subscription.name = subscription,
        messaging.message.id = &*message.id,
        messaging.message.body.size = message.data.len(),
        messaging.message.conversation_id = message.correlation_id.as_deref(),
        polybus.attempt = attempt,
        polybus.outcome = Empty,
        error.r#type = Empty,
    )
}
