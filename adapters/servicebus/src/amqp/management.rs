//! The operations of an entity's `$management` node that polybus uses.
//! <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-amqp-request-response>

use std::sync::Arc;

use fe2o3_amqp::types::primitives::{Array, Binary, OrderedMap, SimpleValue, Uuid, Value};
use polybus_core::{Error, ErrorKind, Result, RetrySafety, driver::kit::reconnect::SharedAttempt};

use crate::{
    amqp::{
        connection::{Wire, Wires},
        rpc::{Reply, Rpc},
        sessions::Session,
    },
    config::CALL,
    error,
};

/// The management node of one path.
pub(crate) struct Management {
    wires: Arc<Wires>,
    path: String,
    rpc: SharedAttempt<(Arc<Wire>, Rpc)>,
}

/// What becomes of locked messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Completed,
    Abandoned,
    DeadLettered {
        reason: Box<str>,
        detail: Box<str>,
        /// Application properties to set.
        notes: Vec<(String, String)>,
    },
}

/// One message to be scheduled.
pub(crate) struct Scheduled {
    pub(crate) message_id: String,
    pub(crate) session: Option<String>,
    pub(crate) encoded: Vec<u8>,
}

fn map(fields: Vec<(&str, Value)>) -> Value {
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

/// What may be asked twice without harm can be asked again.
fn repeatable(e: Error) -> Error {
    if e.retry() == RetrySafety::MayDuplicate { e.safe() } else { e }
}

impl Management {
    pub(crate) fn new(wires: Arc<Wires>, path: impl Into<String>) -> Self {
        Self { wires, path: path.into(), rpc: SharedAttempt::default() }
    }

    async fn call(&self, operation: &'static str, verb: &str, body: Value, link: Option<&str>) -> Result<Reply> {
        // Boxed: what opens a connection is large, and calls are awaited deep inside of other work.
        let opened = Box::pin(async {
            let wire = self.wires.get().await?;
            let node = format!("{}/$management", self.path);
            let rpc = wire.attach(&self.path, || Rpc::open(&wire, &node)).await?;
            Ok(Arc::new((wire, rpc)))
        });
        let pair = self.rpc.get(|(wire, rpc)| rpc.alive() && wire.alive(), opened).await;
        let pair = pair.map_err(|e| e.with_operation(operation))?;
        let (wire, rpc) = &*pair;
        let timeout = u32::try_from(CALL.as_millis()).unwrap_or(u32::MAX);
        let mut fields = vec![
            ("operation", SimpleValue::String(format!("com.microsoft:{verb}"))),
            ("com.microsoft:server-timeout", SimpleValue::Uint(timeout)),
        ];
        // So that the broker takes the link for one in use.
        fields.extend(link.map(|link| ("associated-link-name", SimpleValue::String(link.into()))));
        match Box::pin(rpc.call(operation, fields.clone(), body.clone())).await?.check(operation) {
            // The token has run out by the broker's clock, which has not detached the link yet. Nothing was carried out.
            Err(e) if error::is_unauthorized(&e) && wire.tokens().renewable() => {
                let replaced = Box::pin(wire.tokens().replace(wire, &self.path)).await;
                replaced.map_err(|e| repeatable(e).with_operation(operation))?;
                Box::pin(rpc.call(operation, fields, body)).await?.check(operation)
            }
            answered => answered,
        }
    }

    /// Settles locked messages, all or with an error that leaves open which. Ok is the broker's word.
    pub(crate) async fn settle(&self, locks: &[uuid::Uuid], status: &Status, session: Option<&Session>) -> Result<()> {
        let mut fields = vec![("lock-tokens", tokens(locks))];
        let word = match status {
            Status::Completed => "completed",
            Status::Abandoned => "abandoned",
            Status::DeadLettered { reason, detail, notes } => {
                fields.push(("deadletter-reason", Value::String((**reason).into())));
                fields.push(("deadletter-description", Value::String((**detail).into())));
                let notes = notes.iter().map(|(name, text)| (name.as_str(), Value::String(text.clone())));
                fields.push(("properties-to-modify", map(notes.collect())));
                "suspended"
            }
        };
        fields.push(("disposition-status", Value::String(word.into())));
        if let Some(session) = session {
            fields.push(("session-id", Value::String(session.id().into())));
        }
        self.call("settle", "update-disposition", map(fields), session.map(Session::link))
            .await
            .map(|_| ())
            .map_err(repeatable)
    }

    /// Renews the locks of messages without a session.
    pub(crate) async fn renew(&self, locks: &[uuid::Uuid]) -> Result<()> {
        self.call("extend", "renew-lock", map(vec![("lock-tokens", tokens(locks))]), None)
            .await
            .map(|_| ())
            .map_err(repeatable)
    }

    /// Renews the lock of a session.
    pub(crate) async fn renew_session(&self, session: &Session) -> Result<()> {
        let body = map(vec![("session-id", Value::String(session.id().into()))]);
        self.call("extend", "renew-session-lock", body, Some(session.link())).await.map(|_| ()).map_err(repeatable)
    }

    /// Stores messages for later; their numbers withdraw them.
    pub(crate) async fn schedule(&self, messages: Vec<Scheduled>) -> Result<Vec<i64>> {
        let count = messages.len();
        let list = messages.into_iter().map(|m| {
            let mut fields =
                vec![("message-id", Value::String(m.message_id)), ("message", Value::Binary(Binary::from(m.encoded)))];
            if let Some(session) = m.session {
                fields.push(("session-id", Value::String(session)));
            }
            map(fields)
        });
        let body = map(vec![("messages", Value::List(list.collect()))]);
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
        let body = map(vec![("sequence-numbers", longs(numbers))]);
        self.call("settle", "cancel-scheduled-message", body, None).await.map(|_| ())
    }
}
