//! Delivery states, sent by a delivery's receiver and confirmed by its sender.

use super::AmqpError;
use crate::codec::{Value, begin_list, end_list, put_bool, put_descriptor};

const RECEIVED: u64 = 0x23;
const ACCEPTED: u64 = 0x24;
const REJECTED: u64 = 0x25;
const RELEASED: u64 = 0x26;
const MODIFIED: u64 = 0x27;

/// The state of a delivery.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum DeliveryState {
    Accepted,
    Rejected(Option<AmqpError>),
    Released,
    Modified {
        failed: bool,
        undeliverable_here: bool,
        annotations: Vec<(Value, Value)>,
    },
    /// Nothing final: how far a delivery got, or a state of a transaction.
    Other,
}

impl DeliveryState {
    pub(crate) fn decode(value: Value) -> Option<Self> {
        let Value::Described(described) = value else { return None };
        let (descriptor, Value::List(items)) = *described else { return None };
        let code = match &descriptor {
            Value::Ulong(code) => *code,
            Value::Symbol(name) => match name.as_str() {
                "amqp:received:list" => RECEIVED,
                "amqp:accepted:list" => ACCEPTED,
                "amqp:rejected:list" => REJECTED,
                "amqp:released:list" => RELEASED,
                "amqp:modified:list" => MODIFIED,
                _ => 0,
            },
            _ => 0,
        };
        let flag = |at: usize| items.get(at).and_then(Value::as_bool).unwrap_or(false);
        Some(match code {
            ACCEPTED => Self::Accepted,
            REJECTED => Self::Rejected(items.first().and_then(AmqpError::decode)),
            RELEASED => Self::Released,
            MODIFIED => Self::Modified {
                failed: flag(0),
                undeliverable_here: flag(1),
                annotations: items.get(2).and_then(Value::as_map).unwrap_or_default().to_vec(),
            },
            _ => Self::Other,
        })
    }

    pub(crate) fn encode_into(&self, out: &mut Vec<u8>) {
        match self {
            Self::Accepted => empty(out, ACCEPTED),
            Self::Released => empty(out, RELEASED),
            Self::Rejected(None) => empty(out, REJECTED),
            Self::Rejected(Some(error)) => {
                put_descriptor(out, REJECTED);
                let list = begin_list(out);
                error.encode_into(out);
                end_list(out, list, 1);
            }
            Self::Modified { failed, undeliverable_here, .. } => {
                put_descriptor(out, MODIFIED);
                let list = begin_list(out);
                put_bool(out, *failed);
                put_bool(out, *undeliverable_here);
                end_list(out, list, 2);
            }
            Self::Other => empty(out, RECEIVED),
        }
    }
}

fn empty(out: &mut Vec<u8>, descriptor: u64) {
    put_descriptor(out, descriptor);
    let list = begin_list(out);
    end_list(out, list, 0);
}
