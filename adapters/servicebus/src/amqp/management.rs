//! The operations of an entity's `$management` node that polybus uses.
//! <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-amqp-request-response>

use std::sync::Arc;

use fe2o3_amqp::types::primitives::{Array, Binary, OrderedMap, SimpleValue, Uuid, Value};
use polybus_core::{Error, ErrorKind, Result, RetrySafety, driver::kit::reconnect::SharedAttempt};

use crate::{
    amqp::{
        connection::AmqpConnection,
        rpc::{RpcClient, RpcReply},
        sessions::MessageSession,
    },
    config::CALL_TIMEOUT,
    error,
    transport::namespace::Namespace,
};

/// The management node of one entity.
pub(crate) struct ManagementNode {
    namespace: Arc<Namespace>,
    path: String,
    rpc: SharedAttempt<(Arc<AmqpConnection>, RpcClient)>,
}

/// What the broker is to do with locked messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SettleStatus {
    Completed,
    Abandoned,
    DeadLettered {
        reason: Box<str>,
        detail: Box<str>,
        /// Application properties that the dead letter gets.
        notes: Vec<(String, String)>,
    },
}

/// A message that is to be enqueued later.
pub(crate) struct ScheduledMessage {
    pub(crate) message_id: String,
    pub(crate) session: Option<String>,
    pub(crate) encoded: Vec<u8>,
}

fn amqp_map(fields: Vec<(&str, Value)>) -> Value {
    let fields = fields.into_iter().map(|(name, value)| (Value::String(name.into()), value));
    Value::Map(fields.collect::<OrderedMap<Value, Value>>())
}

fn field<'a>(body: &'a Value, name: &str) -> Option<&'a Value> {
    let Value::Map(fields) = body else { return None };
    fields.iter().find_map(|(key, value)| match key {
        Value::String(key) if key == name => Some(value),
        Value::Symbol(key) if key.as_str() == name => Some(value),
        _ => None,
    })
}

fn tokens(locks: &[uuid::Uuid]) -> Value {
    Value::Array(Array(locks.iter().map(|lock| Value::Uuid(Uuid::from(*lock.as_bytes()))).collect()))
}

fn longs(numbers: &[i64]) -> Value {
    Value::Array(Array(numbers.iter().map(|n| Value::Long(*n)).collect()))
}

fn items(value: &Value) -> &[Value] {
    match value {
        Value::Array(Array(items)) | Value::List(items) => items,
        _ => &[],
    }
}

/// An error of a request that may be repeated without harm is `Safe`, though it may have been carried out.
fn safe_to_repeat(e: Error) -> Error {
    if e.retry() == RetrySafety::MayDuplicate { e.safe() } else { e }
}

impl ManagementNode {
    pub(crate) fn new(namespace: Arc<Namespace>, path: impl Into<String>) -> Self {
        Self { namespace, path: path.into(), rpc: SharedAttempt::default() }
    }

    async fn call(&self, operation: &'static str, verb: &str, body: Value, link: Option<&str>) -> Result<RpcReply> {
        // Boxed, since the future that opens a connection is large and calls are awaited deep inside of others.
        let opened = Box::pin(async {
            let connection = self.namespace.connection().await?;
            let node = format!("{}/$management", self.path);
            let rpc = connection.attach(&self.path, || RpcClient::open(&connection, &node)).await?;
            Ok(Arc::new((connection, rpc)))
        });
        let pair = self.rpc.get(|(connection, rpc)| rpc.is_alive() && connection.is_alive(), opened).await;
        let pair = pair.map_err(|e| e.with_operation(operation))?;
        let (connection, rpc) = &*pair;
        let timeout = u32::try_from(CALL_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
        let mut fields = vec![
            ("operation", SimpleValue::String(format!("com.microsoft:{verb}"))),
            ("com.microsoft:server-timeout", SimpleValue::Uint(timeout)),
        ];
        // The broker closes links that are idle. This names the link that the request is about, so that it counts as
        // used.
        fields.extend(link.map(|link| ("associated-link-name", SimpleValue::String(link.into()))));
        match Box::pin(rpc.call(operation, fields.clone(), body.clone())).await?.check(operation) {
            // The token has run out by the broker's clock, and the broker has not detached the link yet. Nothing was
            // carried out, so the request is safe to send again with a new token.
            Err(e) if error::is_unauthorized(&e) && connection.tokens().renewable() => {
                let replaced = Box::pin(connection.tokens().replace(connection, &self.path)).await;
                replaced.map_err(|e| safe_to_repeat(e).with_operation(operation))?;
                Box::pin(rpc.call(operation, fields, body)).await?.check(operation)
            }
            answered => answered,
        }
    }

    /// Settles locked messages. `Ok` means that the broker has settled all of them. An error leaves open which.
    pub(crate) async fn settle(
        &self,
        locks: &[uuid::Uuid],
        status: &SettleStatus,
        session: Option<&MessageSession>,
    ) -> Result<()> {
        let mut fields = vec![("lock-tokens", tokens(locks))];
        let word = match status {
            SettleStatus::Completed => "completed",
            SettleStatus::Abandoned => "abandoned",
            SettleStatus::DeadLettered { reason, detail, notes } => {
                fields.push(("deadletter-reason", Value::String((**reason).into())));
                fields.push(("deadletter-description", Value::String((**detail).into())));
                let notes = notes.iter().map(|(name, text)| (name.as_str(), Value::String(text.clone())));
                fields.push(("properties-to-modify", amqp_map(notes.collect())));
                "suspended"
            }
        };
        fields.push(("disposition-status", Value::String(word.into())));
        if let Some(session) = session {
            fields.push(("session-id", Value::String(session.id().into())));
        }
        self.call("settle", "update-disposition", amqp_map(fields), session.map(MessageSession::link))
            .await
            .map(|_| ())
            .map_err(safe_to_repeat)
    }

    /// Renews the locks of messages without a session.
    pub(crate) async fn renew(&self, locks: &[uuid::Uuid]) -> Result<()> {
        self.call("extend", "renew-lock", amqp_map(vec![("lock-tokens", tokens(locks))]), None)
            .await
            .map(|_| ())
            .map_err(safe_to_repeat)
    }

    /// Renews the lock of a session.
    pub(crate) async fn renew_session(&self, session: &MessageSession) -> Result<()> {
        let body = amqp_map(vec![("session-id", Value::String(session.id().into()))]);
        self.call("extend", "renew-session-lock", body, Some(session.link())).await.map(|_| ()).map_err(safe_to_repeat)
    }

    /// Schedules messages. Returns their sequence numbers, by which they can be withdrawn.
    pub(crate) async fn schedule(&self, messages: Vec<ScheduledMessage>) -> Result<Vec<i64>> {
        let count = messages.len();
        let list = messages.into_iter().map(|m| {
            let mut fields =
                vec![("message-id", Value::String(m.message_id)), ("message", Value::Binary(Binary::from(m.encoded)))];
            if let Some(session) = m.session {
                fields.push(("session-id", Value::String(session)));
            }
            amqp_map(fields)
        });
        let body = amqp_map(vec![("messages", Value::List(list.collect()))]);
        let reply = self.call("settle", "schedule-message", body, None).await?;
        let numbers = field(&reply.body, "sequence-numbers").map(items).unwrap_or_default();
        let numbers: Vec<i64> =
            numbers.iter().filter_map(|n| if let Value::Long(n) = n { Some(*n) } else { None }).collect();
        if numbers.len() == count {
            return Ok(numbers);
        }
        let text = format!("{} numbers for {count} scheduled messages", numbers.len());
        Err(error::new(ErrorKind::Unexpected, "settle", text).may_duplicate())
    }

    /// Withdraws scheduled messages.
    pub(crate) async fn cancel(&self, numbers: &[i64]) -> Result<()> {
        let body = amqp_map(vec![("sequence-numbers", longs(numbers))]);
        self.call("settle", "cancel-scheduled-message", body, None).await.map(|_| ())
    }
}
