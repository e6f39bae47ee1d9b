//! AMQP errors: a condition, a text, and for rejections an info map.

use crate::codec::{DecodeError, Value, begin_list, end_list, put_descriptor, put_null, put_string, put_symbol};
use crate::refusal::Refusal;

pub(crate) const ERROR: u64 = 0x1d;

pub(crate) const DECODE_ERROR: &str = "amqp:decode-error";
pub(crate) const FRAMING_ERROR: &str = "amqp:connection:framing-error";
pub(crate) const CONNECTION_FORCED: &str = "amqp:connection:forced";
pub(crate) const NOT_ALLOWED: &str = "amqp:not-allowed";
pub(crate) const NOT_IMPLEMENTED: &str = "amqp:not-implemented";
pub(crate) const INVALID_FIELD: &str = "amqp:invalid-field";
pub(crate) const RESOURCE_LIMIT: &str = "amqp:resource-limit-exceeded";
pub(crate) const UNATTACHED_HANDLE: &str = "amqp:session:unattached-handle";
pub(crate) const HANDLE_IN_USE: &str = "amqp:session:handle-in-use";
pub(crate) const DETACH_FORCED: &str = "amqp:link:detach-forced";
pub(crate) const TRANSFER_LIMIT: &str = "amqp:link:transfer-limit-exceeded";
pub(crate) const MESSAGE_SIZE: &str = "amqp:link:message-size-exceeded";

/// The error that ends a connection, a session or a link, or rejects a delivery.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AmqpError {
    pub(crate) condition: String,
    pub(crate) description: String,
    /// The info map of a peer's error, which carries the dead-letter reason.
    pub(crate) info: Vec<(Value, Value)>,
}

impl AmqpError {
    pub(crate) fn new(condition: &str, description: impl Into<String>) -> Self {
        Self { condition: condition.to_owned(), description: description.into(), info: Vec::new() }
    }

    pub(crate) fn decode(value: &Value) -> Option<Self> {
        let Value::Described(described) = value else { return None };
        let items = described.1.as_items()?;
        let text = |at: usize| items.get(at).and_then(Value::as_text).unwrap_or_default().to_owned();
        let info = items.get(2).and_then(Value::as_map).unwrap_or_default().to_vec();
        Some(Self { condition: text(0), description: text(1), info })
    }

    pub(crate) fn encode_into(&self, out: &mut Vec<u8>) {
        put_descriptor(out, ERROR);
        let list = begin_list(out);
        put_symbol(out, &self.condition);
        put_string(out, &self.description);
        // Python's SDK reads the third field of a rejection without asking whether there is one.
        put_null(out);
        end_list(out, list, 3);
    }
}

impl From<Refusal> for AmqpError {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.condition.symbol(), refusal.description)
    }
}

impl From<DecodeError> for AmqpError {
    fn from(error: DecodeError) -> Self {
        Self::new(DECODE_ERROR, error.0)
    }
}
