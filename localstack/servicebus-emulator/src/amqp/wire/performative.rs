//! The performatives that a peer sends. Decoding is lenient: a field of a wrong type counts as absent, and only
//! mandatory fields cause an error.

use super::error::{DECODE_ERROR, NOT_IMPLEMENTED};
use super::{AmqpError, DeliveryState};
use crate::codec::{Value, ValueReader};

pub(crate) const OPEN: u64 = 0x10;
pub(crate) const BEGIN: u64 = 0x11;
pub(crate) const ATTACH: u64 = 0x12;
pub(crate) const FLOW: u64 = 0x13;
pub(crate) const TRANSFER: u64 = 0x14;
pub(crate) const DISPOSITION: u64 = 0x15;
pub(crate) const DETACH: u64 = 0x16;
pub(crate) const END: u64 = 0x17;
pub(crate) const CLOSE: u64 = 0x18;

/// One performative.
#[derive(Debug)]
pub(crate) enum Performative {
    Open(Open),
    Begin(Begin),
    Attach(Box<Attach>),
    Flow(Flow),
    Transfer(Transfer),
    Disposition(Disposition),
    Detach(Detach),
    End,
    Close,
}

#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) max_frame_size: u32,
    pub(crate) idle_timeout_ms: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct Begin {
    pub(crate) next_outgoing_id: u32,
    pub(crate) incoming_window: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct Attach {
    pub(crate) name: String,
    pub(crate) handle: u32,
    /// The peer receives on this link.
    pub(crate) receives: bool,
    pub(crate) snd_settle_mode: u8,
    pub(crate) rcv_settle_mode: u8,
    pub(crate) source: Value,
    pub(crate) target: Value,
    pub(crate) initial_delivery_count: u32,
    pub(crate) properties: Value,
}

#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) next_incoming_id: Option<u32>,
    pub(crate) incoming_window: u32,
    pub(crate) next_outgoing_id: u32,
    pub(crate) handle: Option<u32>,
    pub(crate) delivery_count: Option<u32>,
    pub(crate) link_credit: Option<u32>,
    pub(crate) drain: bool,
    pub(crate) echo: bool,
}

#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) handle: u32,
    pub(crate) delivery_id: Option<u32>,
    pub(crate) message_format: Option<u32>,
    pub(crate) settled: Option<bool>,
    pub(crate) more: bool,
    pub(crate) aborted: bool,
}

#[derive(Debug)]
pub(crate) struct Disposition {
    /// Sent as the receiver of what it settles.
    pub(crate) as_receiver: bool,
    pub(crate) first: u32,
    pub(crate) last: u32,
    pub(crate) settled: bool,
    pub(crate) state: Option<DeliveryState>,
}

#[derive(Debug)]
pub(crate) struct Detach {
    pub(crate) handle: u32,
    pub(crate) closed: bool,
}

impl Performative {
    /// Decodes a frame's body. The bytes after the performative are the payload of a transfer.
    pub(crate) fn decode(body: &[u8]) -> Result<(Self, &[u8]), AmqpError> {
        let mut reader = ValueReader::new(body);
        let code = code_of(&reader.descriptor()?);
        let Value::List(items) = reader.value()? else {
            return Err(AmqpError::new(DECODE_ERROR, "a performative is no list"));
        };
        let mut fields = PerformativeFields(items);
        let fields = &mut fields;
        let performative = match code {
            OPEN => Self::Open(Open::of(fields)),
            BEGIN => Self::Begin(Begin::of(fields)?),
            ATTACH => Self::Attach(Box::new(Attach::of(fields)?)),
            FLOW => Self::Flow(Flow::of(fields)?),
            TRANSFER => Self::Transfer(Transfer::of(fields)?),
            DISPOSITION => Self::Disposition(Disposition::of(fields)?),
            DETACH => {
                Self::Detach(Detach { handle: fields.need_u32(0, "handle")?, closed: fields.bool(1).unwrap_or(false) })
            }
            END => Self::End,
            CLOSE => Self::Close,
            _ => return Err(AmqpError::new(NOT_IMPLEMENTED, "no such performative")),
        };
        Ok((performative, reader.rest()))
    }
}

impl Open {
    fn of(fields: &mut PerformativeFields) -> Self {
        Self { max_frame_size: fields.u32(2).unwrap_or(u32::MAX), idle_timeout_ms: fields.u32(4).filter(|ms| *ms > 0) }
    }
}

impl Begin {
    fn of(fields: &mut PerformativeFields) -> Result<Self, AmqpError> {
        Ok(Self {
            next_outgoing_id: fields.need_u32(1, "next-outgoing-id")?,
            incoming_window: fields.need_u32(2, "incoming-window")?,
        })
    }
}

impl Attach {
    fn of(fields: &mut PerformativeFields) -> Result<Self, AmqpError> {
        let name = fields.take(0).as_text().map(str::to_owned);
        Ok(Self {
            name: name.ok_or_else(|| missing("name"))?,
            handle: fields.need_u32(1, "handle")?,
            receives: fields.bool(2).ok_or_else(|| missing("role"))?,
            snd_settle_mode: fields.u32(3).and_then(|n| u8::try_from(n).ok()).unwrap_or(2),
            rcv_settle_mode: fields.u32(4).and_then(|n| u8::try_from(n).ok()).unwrap_or(0),
            source: fields.take(5),
            target: fields.take(6),
            initial_delivery_count: fields.u32(9).unwrap_or(0),
            properties: fields.take(13),
        })
    }

    /// The address of the source or target that the peer asks for.
    pub(crate) fn address(&self) -> Option<&str> {
        terminus(if self.receives { &self.source } else { &self.target })?.first()?.as_text()
    }

    /// The reply address: the peer's own end.
    pub(crate) fn own_address(&self) -> Option<&str> {
        terminus(if self.receives { &self.target } else { &self.source })?.first()?.as_text()
    }

    /// The filters of the source, by name.
    pub(crate) fn filters(&self) -> &[(Value, Value)] {
        terminus(&self.source).and_then(|source| source.get(7)?.as_map()).unwrap_or_default()
    }
}

/// The fields of a source or target.
pub(crate) fn terminus(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Described(described) => described.1.as_items(),
        _ => None,
    }
}

impl Flow {
    fn of(fields: &mut PerformativeFields) -> Result<Self, AmqpError> {
        Ok(Self {
            next_incoming_id: fields.u32(0),
            incoming_window: fields.need_u32(1, "incoming-window")?,
            next_outgoing_id: fields.need_u32(2, "next-outgoing-id")?,
            handle: fields.u32(4),
            delivery_count: fields.u32(5),
            link_credit: fields.u32(6),
            drain: fields.bool(8).unwrap_or(false),
            echo: fields.bool(9).unwrap_or(false),
        })
    }
}

impl Transfer {
    fn of(fields: &mut PerformativeFields) -> Result<Self, AmqpError> {
        Ok(Self {
            handle: fields.need_u32(0, "handle")?,
            delivery_id: fields.u32(1),
            message_format: fields.u32(3),
            settled: fields.bool(4),
            more: fields.bool(5).unwrap_or(false),
            aborted: fields.bool(9).unwrap_or(false),
        })
    }
}

impl Disposition {
    fn of(fields: &mut PerformativeFields) -> Result<Self, AmqpError> {
        let first = fields.need_u32(1, "first")?;
        Ok(Self {
            as_receiver: fields.bool(0).ok_or_else(|| missing("role"))?,
            first,
            last: fields.u32(2).unwrap_or(first),
            settled: fields.bool(3).unwrap_or(false),
            state: DeliveryState::decode(fields.take(4)),
        })
    }
}

/// The numeric code of a descriptor. Some client libraries send the symbolic name instead.
fn code_of(descriptor: &Value) -> u64 {
    match descriptor {
        Value::Ulong(code) => *code,
        Value::Symbol(name) => match name.as_str() {
            "amqp:open:list" => OPEN,
            "amqp:begin:list" => BEGIN,
            "amqp:attach:list" => ATTACH,
            "amqp:flow:list" => FLOW,
            "amqp:transfer:list" => TRANSFER,
            "amqp:disposition:list" => DISPOSITION,
            "amqp:detach:list" => DETACH,
            "amqp:end:list" => END,
            "amqp:close:list" => CLOSE,
            _ => 0,
        },
        _ => 0,
    }
}

fn missing(field: &str) -> AmqpError {
    AmqpError::new(DECODE_ERROR, format!("the mandatory field {field} is missing"))
}

/// The fields of a performative. Trailing fields may be omitted.
struct PerformativeFields(Vec<Value>);

impl PerformativeFields {
    fn take(&mut self, at: usize) -> Value {
        self.0.get_mut(at).map_or(Value::Null, |field| std::mem::replace(field, Value::Null))
    }

    fn u32(&self, at: usize) -> Option<u32> {
        self.0.get(at)?.as_u32()
    }

    fn need_u32(&self, at: usize, name: &str) -> Result<u32, AmqpError> {
        self.u32(at).ok_or_else(|| missing(name))
    }

    fn bool(&self, at: usize) -> Option<bool> {
        self.0.get(at)?.as_bool()
    }
}
