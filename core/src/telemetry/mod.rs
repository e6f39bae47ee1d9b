//! What polybus reports about itself: spans, metrics, and what messages inherit: their conversation and their trace.
//!
//! # Spans
//!
//! They go through `tracing` at level `INFO`, with OpenTelemetry's names for messaging. Without a subscriber they cost
//! next to nothing.
//!
//! | span | `otel.kind` | one for each |
//! |---|---|---|
//! | `publish` | `producer` | publish |
//! | `process` | `consumer` | handling by a worker |
//!
//! Both have `messaging.system`, `messaging.system.name`, `server.address`, `server.port`,
//! `messaging.destination.name`, `messaging.message.id` and `messaging.message.body.size`, and:
//!
//! - `publish`: `messaging.operation.name` = `publish`, `messaging.operation.type` = `send`.
//! - `process`: `messaging.operation.name` = `process`, `messaging.operation.type` = `process`,
//!   `messaging.destination.subscription.name` on subscriptions, `messaging.message.conversation_id` if the message
//!   has a correlation id, and `polybus.attempt`. At its end comes `polybus.outcome`, and once the broker has
//!   answered `polybus.settled`: `ack`, `retry`, `release`, `dead_letter`, `lock_lost`, `unsettled`.
//!
//! Both have `error.type` if they fail. `messaging.system` and its newer form `messaging.system.name` are
//! OpenTelemetry's own values:
//!
//! | | `messaging.system` | `messaging.system.name` |
//! |---|---|---|
//! | RabbitMQ | `rabbitmq` | `rabbitmq` |
//! | SQS: queues, and subscriptions, which are queues | `aws_sqs` | `aws.sqs` |
//! | SNS: topics | `aws.sns` | `aws.sns` |
//! | Azure Service Bus | `servicebus` | `azure.servicebus` |
//! | `memory://`, and adapters that say nothing else | the backend's name | the backend's name |
//!
//! # Metrics
//!
//! They go through the `metrics` facade. Handles are resolved when a publisher or a consumer is opened, so install the
//! recorder first. `source` and `address` are the texts of the configuration (`queue:payments`,
//! `subscription:orders/billing`).
//!
//! | name | kind | labels | what |
//! |---|---|---|---|
//! | `polybus_published_total` | counter | backend, address, outcome | publishes; outcome is `ok` or an error kind |
//! | `polybus_publish_duration_seconds` | histogram | backend, address | from the call to the broker's confirm |
//! | `polybus_received_total` | counter | backend, source | messages handed out |
//! | `polybus_receive_failed_total` | counter | backend, source, reason | receives that failed (1) |
//! | `polybus_consumers_refused` | gauge | backend, source | consumers that the broker refuses now (2) |
//! | `polybus_settled_total` | counter | backend, source, settlement, outcome | settlements (3) |
//! | `polybus_retried_total` | counter | backend, source | messages that will come again after a delay |
//! | `polybus_dead_lettered_total` | counter | backend, source, reason | messages moved to the dead letters |
//! | `polybus_expired_total` | counter | backend, source | messages past `expires_at`, not handed out |
//! | `polybus_unwanted_total` | counter | backend, source, policy | messages of unwanted types (4) |
//! | `polybus_renewal_failed_total` | counter | backend, source, reason | renewals of locks that failed and go on |
//! | `polybus_blocked_keys` | gauge | backend, source | keys that fill the window (5) |
//! | `polybus_lock_lost_total` | counter | backend, source | deliveries whose lock was lost before they were settled |
//! | `polybus_handled_total` | counter | backend, source, outcome | handler runs (6) |
//! | `polybus_handle_duration_seconds` | histogram | backend, source | how long handlers ran |
//! | `polybus_handlers_running` | gauge | backend, source | handlers running now |
//!
//! 1. They are tried again after a pause. The reason is an error kind, or the quota that holds them up: `in-flight`
//!    (SQS).
//! 2. By `NotFound`, `PermissionDenied` or `Unauthenticated`. They end once that has lasted for `give_up_after`.
//! 3. As the broker answered them: `ack`, `release`, `retry`, `dead_letter`, `redrive`, `set_aside`, `give_back`; and
//!    `held_in_place`, a release or retry of an ordered source that waits in this process; in a consumer that is
//!    stopping it is a `give_back`. The outcome is `ok` or an error kind.
//! 4. They match none of the subscription's types. The policy is what is done with them: `dead-letter`, `handle` or
//!    `discard`.
//! 5. Of an ordered source: keys whose backlog fills the prefetch window while their first message is not settled. It
//!    is 0 once that moves. The log names the keys.
//! 6. The outcome is `ok`, `error`, `permanent`, `panic`, `timeout` or `cancelled`.
//!
//! # Conversations and traces
//!
//! A message that a worker's handler publishes inherits from the message that it handles: the correlation id of the
//! conversation, the id of the handled message as its causation id, and the trace. A message carries the trace as
//! `traceparent` and `tracestate`; an inherited one has the same trace id, and one new parent id for the whole handling.
//! What a message says itself stays. [`Current`] is what is inherited: a program sets it where a conversation begins,
//! and carries it into tasks that a handler spawns, which are outside otherwise. A program with an OpenTelemetry context
//! of its own installs a [`TracePropagator`].

mod current;
mod metrics;
#[cfg(not(feature = "metrics"))]
mod no_metrics;
mod spans;
mod trace;

pub(crate) use self::{
    current::Scope,
    metrics::{ConsumeMetrics, HandleMetrics, PublishMetrics},
    spans::{process_span, publish_span},
};
pub use self::{
    current::{Current, with_current},
    trace::{TraceContext, TracePropagator, set_propagator},
};
