//! Decodes messages and batches from bytes.

use bytes::Bytes;

use super::{
    ANNOTATIONS, APPLICATION_PROPERTIES, DATA, DELIVERY_ANNOTATIONS, FOOTER, HEADER, MapPairs, Message, MessageHeader,
    MessageProperties, PROPERTIES, SEQUENCE, VALUE,
};
use crate::codec::{DecodeError, Value, ValueReader};

impl Message {
    /// Decodes a message. Its body is copied, so that a small message never holds a whole read buffer.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut message = Self { encoded_size: bytes.len(), ..Self::default() };
        let mut reader = ValueReader::new(bytes);
        let mut body = None;
        while !reader.is_empty() {
            let at = bytes.len() - reader.rest().len();
            let section = section(&reader.descriptor()?)?;
            if let DATA | SEQUENCE | VALUE = section {
                reader.skip()?;
                let end = bytes.len() - reader.rest().len();
                match &mut body {
                    None => body = Some(at..end),
                    Some(range) if range.end == at => range.end = end,
                    Some(_) => return Err(DecodeError("body sections are not together")),
                }
                continue;
            }
            let value = reader.value()?;
            match section {
                HEADER => message.header = header(value)?,
                DELIVERY_ANNOTATIONS => message.delivery_annotations = pairs(value)?,
                ANNOTATIONS => message.annotations = pairs(value)?,
                PROPERTIES => message.properties = properties(value)?,
                APPLICATION_PROPERTIES => message.application_properties = application_properties(value)?,
                _ => message.footer = pairs(value)?,
            }
        }
        message.body = body.map_or_else(Bytes::new, |range| Bytes::copy_from_slice(&bytes[range]));
        Ok(message)
    }

    /// Decodes the messages of a batch, which are the data sections of an outer one. That one comes first, without
    /// them.
    pub fn decode_batch(bytes: &[u8]) -> Result<(Self, Vec<Self>), DecodeError> {
        let (mut envelope, mut messages) = (Self { encoded_size: bytes.len(), ..Self::default() }, Vec::new());
        let mut reader = ValueReader::new(bytes);
        while !reader.is_empty() {
            match section(&reader.descriptor()?)? {
                DATA => messages.push(Self::decode(reader.binary()?)?),
                ANNOTATIONS => envelope.annotations = pairs(reader.value()?)?,
                PROPERTIES => envelope.properties = properties(reader.value()?)?,
                _ => reader.skip()?,
            }
        }
        Ok((envelope, messages))
    }

    /// The value of the body, when it is one value section, or the bytes of its first data section.
    pub fn body_value(&self) -> Result<Value, DecodeError> {
        if self.body.is_empty() {
            return Ok(Value::Null);
        }
        let mut reader = ValueReader::new(&self.body);
        reader.descriptor()?;
        reader.value()
    }
}

fn section(descriptor: &Value) -> Result<u64, DecodeError> {
    let code = match descriptor {
        Value::Ulong(code) => *code,
        Value::Symbol(name) => match name.as_str() {
            "amqp:header:list" => HEADER,
            "amqp:delivery-annotations:map" => DELIVERY_ANNOTATIONS,
            "amqp:message-annotations:map" => ANNOTATIONS,
            "amqp:properties:list" => PROPERTIES,
            "amqp:application-properties:map" => APPLICATION_PROPERTIES,
            "amqp:data:binary" => DATA,
            "amqp:amqp-sequence:list" => SEQUENCE,
            "amqp:amqp-value:*" => VALUE,
            "amqp:footer:map" => FOOTER,
            _ => 0,
        },
        _ => 0,
    };
    if (HEADER..=FOOTER).contains(&code) { Ok(code) } else { Err(DecodeError("no section of a message")) }
}

fn fields(value: Value) -> Result<impl FnMut() -> Value, DecodeError> {
    let Value::List(items) = value else { return Err(DecodeError("a section is no list")) };
    let mut items = items.into_iter();
    Ok(move || items.next().unwrap_or(Value::Null))
}

fn header(value: Value) -> Result<MessageHeader, DecodeError> {
    let mut next = fields(value)?;
    Ok(MessageHeader {
        durable: next().as_bool().unwrap_or(false),
        priority: next().as_u32().and_then(|n| u8::try_from(n).ok()).unwrap_or(4),
        ttl_ms: next().as_u32(),
        first_acquirer: next().as_bool().unwrap_or(false),
        delivery_count: next().as_u32().unwrap_or(0),
    })
}

fn properties(value: Value) -> Result<MessageProperties, DecodeError> {
    let mut next = fields(value)?;
    Ok(MessageProperties {
        message_id: some(next()),
        user_id: bytes(next()),
        to: text(next()),
        subject: text(next()),
        reply_to: text(next()),
        correlation_id: some(next()),
        content_type: text(next()),
        content_encoding: text(next()),
        absolute_expiry: next().as_i64(),
        creation_time: next().as_i64(),
        group_id: text(next()),
        group_sequence: next().as_u32(),
        reply_to_group_id: text(next()),
    })
}

fn pairs(value: Value) -> Result<MapPairs, DecodeError> {
    match value {
        Value::Map(pairs) => Ok(pairs),
        Value::Null => Ok(Vec::new()),
        _ => Err(DecodeError("a section is no map")),
    }
}

fn application_properties(value: Value) -> Result<Vec<(String, Value)>, DecodeError> {
    let keyed = |(key, value)| match key {
        Value::String(key) | Value::Symbol(key) => Ok((key, value)),
        _ => Err(DecodeError("the key of an application property is no string")),
    };
    pairs(value)?.into_iter().map(keyed).collect()
}

fn some(value: Value) -> Option<Value> {
    (!value.is_null()).then_some(value)
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::String(text) | Value::Symbol(text) => Some(text),
        _ => None,
    }
}

fn bytes(value: Value) -> Option<Bytes> {
    match value {
        Value::Binary(bytes) => Some(bytes),
        Value::String(text) => Some(Bytes::from(text)),
        _ => None,
    }
}
