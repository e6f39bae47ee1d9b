//! Messages in management requests and answers, where they are carried in encoded form.

use super::{ManagementResult, NO_CONTENT, OK, missing};
use crate::amqp::wire::delivered_message;
use crate::broker::{DeliveredMessage, Source};
use crate::codec::Value;
use crate::message::Message;
use crate::refusal::{Condition, Refusal};

/// The most bytes of peeked messages in one answer. The client asks for the rest from the last number on.
const MAX_PEEKED_BYTES: usize = 1024 * 1024;

/// For `peek-message`: each message alone.
pub(crate) fn peeked(messages: &[DeliveredMessage]) -> Value {
    let mut bytes = 0;
    let fits = |message: &&DeliveredMessage| {
        let first = bytes == 0;
        bytes += message.message.encoded_size.max(1);
        first || bytes <= MAX_PEEKED_BYTES
    };
    Value::List(messages.iter().take_while(fits).map(|message| map(vec![("message", encoded(message))])).collect())
}

/// For `receive-by-sequence-number`: each message with its lock token.
pub(crate) fn received(messages: &[DeliveredMessage]) -> Value {
    let one = |message: &DeliveredMessage| {
        let mut entry = vec![("message", encoded(message))];
        if let Some(token) = message.lock_token {
            entry.push(("lock-token", Value::Uuid(*token.as_bytes())));
        }
        map(entry)
    };
    Value::List(messages.iter().map(one).collect())
}

/// For `schedule-message`: messages and when they are due.
pub(crate) fn to_schedule(body: &Value) -> Result<Vec<(Message, i64)>, Refusal> {
    let messages = body.get("messages").and_then(Value::as_items).ok_or_else(|| missing("messages"))?;
    messages.iter().map(scheduled).collect()
}

fn scheduled(entry: &Value) -> Result<(Message, i64), Refusal> {
    let bytes = entry.get("message").and_then(Value::as_bytes).ok_or_else(|| missing("message"))?;
    let message = Message::decode(bytes)
        .map_err(|error| Refusal::new(Condition::InvalidField, format!("No message: {error}.")))?;
    let at = message.annotation("x-opt-scheduled-enqueue-time").and_then(Value::as_i64);
    Ok((message, at.ok_or_else(|| missing("x-opt-scheduled-enqueue-time"))?))
}

/// The last millisecond of the year 9999; clients round it up.
const END_OF_TIME_MS: i64 = 253_402_300_799_999;

/// Ids of sessions, a page at a time.
pub(crate) fn sessions(source: &Source, body: &Value) -> ManagementResult {
    let number = |name: &str| body.get(name).and_then(Value::as_u32).and_then(|n| usize::try_from(n).ok());
    let (skip, top) = (number("skip").unwrap_or(0), number("top").unwrap_or(100));
    // The last moment .NET knows stands for no time at all.
    let after = body.get("last-updated-time").and_then(Value::as_i64).filter(|time| *time < END_OF_TIME_MS);
    let page: Vec<Value> = source.sessions(after)?.into_iter().skip(skip).take(top).map(Value::String).collect();
    if page.is_empty() {
        return Ok((NO_CONTENT, Vec::new()));
    }
    let next = i32::try_from(skip + page.len()).unwrap_or(i32::MAX);
    Ok((OK, vec![("skip", Value::Int(next)), ("sessions-ids", Value::Array(page))]))
}

fn encoded(message: &DeliveredMessage) -> Value {
    let mut bytes = Vec::new();
    delivered_message::encode_into(&mut bytes, message);
    Value::Binary(bytes.into())
}

pub(crate) fn map(entries: Vec<(&str, Value)>) -> Value {
    Value::Map(entries.into_iter().map(|(key, value)| (Value::string(key), value)).collect())
}
