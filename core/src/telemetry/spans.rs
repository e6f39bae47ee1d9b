//! The spans of a publish and of a handling, with OpenTelemetry's names for messaging.

use tracing::{Span, field::Empty, info_span};

use crate::{Address, Envelope, Source, driver::MessagingSystem};

/// The span of one publish.
pub(crate) fn publish_span(system: &MessagingSystem, to: &Address, message: &Envelope) -> Span {
    info_span!(
        target: "polybus",
        "publish",
        otel.name = %format_args!("publish {}", to.name()),
        otel.kind = "producer",
        messaging.system = system.system,
        messaging.system.name = system.system_name,
        server.address = system.server_address.as_deref(),
        server.port = system.server_port,
        messaging.operation.name = "publish",
        messaging.operation.r#type = "send",
        messaging.destination.name = to.name(),
        messaging.message.id = &*message.id,
        messaging.message.body.size = message.data.len(),
        error.r#type = Empty,
    )
}

/// The span of one handling.
pub(crate) fn process_span(system: &MessagingSystem, from: &Source, attempt: u32, message: &Envelope) -> Span {
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
        messaging.system = system.system,
        messaging.system.name = system.system_name,
        server.address = system.server_address.as_deref(),
        server.port = system.server_port,
        messaging.operation.name = "process",
        messaging.operation.r#type = "process",
        messaging.destination.name = live.address().name(),
        messaging.destination.subscription.name = subscription,
        messaging.message.id = &*message.id,
        messaging.message.body.size = message.data.len(),
        messaging.message.conversation_id = message.correlation_id.as_deref(),
        polybus.attempt = attempt,
        polybus.outcome = Empty,
        polybus.settled = Empty,
        error.r#type = Empty,
    )
}
