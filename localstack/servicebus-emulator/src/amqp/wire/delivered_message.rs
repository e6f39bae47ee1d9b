//! Encodes a message of the broker for its receiver.

use crate::broker::DeliveredMessage;
use crate::codec::Value;
use crate::message::encode::{put_header, put_pairs};
use crate::message::{ANNOTATIONS, DELIVERY_ANNOTATIONS, FOOTER, MapPairs, MessageHeader};

/// Appends the same bytes as `delivered.to_message().encode()`, without copying the message first.
pub(crate) fn encode_into(out: &mut Vec<u8>, delivered: &DeliveredMessage) {
    let message = &*delivered.message;
    let header =
        MessageHeader { delivery_count: delivered.delivery_count, first_acquirer: false, ..message.header.clone() };
    put_header(out, &header);
    match delivered.lock_token {
        None => put_pairs(out, DELIVERY_ANNOTATIONS, &message.delivery_annotations),
        Some(token) => {
            let mut annotations = message.delivery_annotations.clone();
            annotations.push((Value::symbol("x-opt-lock-token"), Value::Uuid(*token.as_bytes())));
            put_pairs(out, DELIVERY_ANNOTATIONS, &annotations);
        }
    }
    put_pairs(out, ANNOTATIONS, &annotations(delivered));
    message.encode_bare_into(out);
    put_pairs(out, FOOTER, &message.footer);
}

/// The message's annotations and the broker's. No name appears twice, because the broker removed its own names when the
/// message was sent.
fn annotations(delivered: &DeliveredMessage) -> MapPairs {
    let own = &delivered.message.annotations;
    let mut annotations = Vec::with_capacity(own.len() + 6);
    annotations.extend_from_slice(own);
    let mut put = |name: &str, value: Value| annotations.push((Value::symbol(name), value));
    put("x-opt-sequence-number", Value::Long(delivered.sequence_number));
    if delivered.enqueued_elsewhere {
        put("x-opt-enqueue-sequence-number", Value::Long(delivered.enqueued_sequence_number));
    }
    put("x-opt-enqueued-time", Value::Timestamp(delivered.enqueued_at));
    if delivered.shows_state() {
        put("x-opt-message-state", Value::Int(delivered.state as i32));
    }
    if let Some(until) = delivered.locked_until {
        put("x-opt-locked-until", Value::Timestamp(until));
    }
    if let Some(source) = &delivered.dead_letter_source {
        put("x-opt-deadletter-source", Value::string(source.as_ref()));
    }
    annotations
}
