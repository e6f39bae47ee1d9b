//! The body of a message as bytes, whatever AMQP 1.0 sections it came in.

use bytes::Bytes;
use fe2o3_amqp::types::{
    messaging::{AmqpValue, Body},
    primitives::Value,
};

/// Splits off the bytes of a body. Of a body that is data nothing else is left, so that nothing is held twice.
pub(crate) fn split(body: Body<Value>) -> (Body<Value>, Bytes) {
    match body {
        Body::Data(sections) => {
            let mut sections = sections.into_iter();
            let mut bytes = sections.next().map(|data| data.0.into_vec()).unwrap_or_default();
            // By the specification several data sections are one sequence of bytes.
            sections.for_each(|data| bytes.extend_from_slice(&data.0));
            (Body::Empty, bytes.into())
        }
        Body::Value(AmqpValue(Value::String(text))) => {
            let bytes = Bytes::from(text.clone().into_bytes());
            (Body::Value(AmqpValue(Value::String(text))), bytes)
        }
        Body::Value(AmqpValue(Value::Binary(raw))) => {
            let bytes = Bytes::from(raw.to_vec());
            (Body::Value(AmqpValue(Value::Binary(raw))), bytes)
        }
        Body::Empty | Body::Value(AmqpValue(Value::Null)) => (body, Bytes::new()),
        Body::Value(AmqpValue(value)) => {
            let bytes = serde_amqp::to_vec(&value).unwrap_or_default();
            (Body::Value(AmqpValue(value)), bytes.into())
        }
        Body::Sequence(sections) => {
            // A sequence has no form as text, so these are its encoded bytes.
            let mut bytes = Vec::new();
            for section in sections.iter() {
                bytes.extend(serde_amqp::to_vec(&Value::List(section.0.clone())).unwrap_or_default());
            }
            (Body::Sequence(sections), bytes.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use fe2o3_amqp::types::{
        messaging::{Batch, Data},
        primitives::Binary,
    };

    use super::*;

    #[test]
    fn bytes_of_every_kind_of_body() {
        let data = |parts: &[&[u8]]| {
            Body::Data(Batch::new(parts.iter().map(|p| Data(Binary::from(p.to_vec()))).collect::<Vec<_>>()))
        };
        let value = |v: Value| Body::Value(AmqpValue(v));
        for (body, bytes) in [
            (data(&[b"ab"]), &b"ab"[..]),
            (data(&[b"a", b"", b"b"]), b"ab"),
            (value(Value::String("é".into())), "é".as_bytes()),
            (value(Value::Binary(Binary::from(vec![0, 255]))), &[0, 255]),
            (value(Value::Null), b""),
            (Body::Empty, b""),
            (value(Value::Bool(true)), &[0x41]),
        ] {
            assert_eq!(&split(body).1[..], bytes);
        }
    }
}
