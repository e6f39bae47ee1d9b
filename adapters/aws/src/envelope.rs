//! Envelopes as SQS and SNS messages, and back. The body is a CloudEvent in structured mode, since bodies are text and attributes
//! are ten; type, source and key are attributes as well, for filter policies and other readers.

use std::{borrow::Cow, collections::HashMap};

use aws_sdk_sqs::types::{Message, MessageAttributeValue, MessageSystemAttributeName};
use bytes::Bytes;
use polybus_core::{
    DeadLetter, Envelope, Error, FOREIGN, Kind, Result, Source,
    cloudevents::{self, Carried, Decoded, STRUCTURED, Wire},
};
use time::OffsetDateTime;

use crate::{
    error,
    limits::{ATTRIBUTES, is_legal},
};

/// The attribute that holds the content type.
const CONTENT_TYPE: &str = "content-type";
/// The attribute that filter policies look at.
pub(crate) const TYPE: &str = "cloudEvents_type";
/// All that polybus sends along with a copy, in one attribute, since there are ten: a JSON object.
const CARRIED: &str = "polybus-carried";
/// In there: the id and the time, in milliseconds, that SQS gave a message which has none of its own. A copy gets others.
const GIVEN_ID: &str = "id";
const GIVEN_TIME: &str = "time";
const STRING: &str = "String";

/// A message on its way, for a queue or a topic alike.
#[derive(Clone, Debug)]
pub(crate) struct Encoded {
    pub(crate) body: String,
    /// Text all of them.
    pub(crate) attributes: Vec<(&'static str, String)>,
    /// In bytes, as AWS counts.
    pub(crate) size: usize,
}

/// A message as it came, kept so that copies are exact.
#[derive(Debug)]
pub(crate) struct Native {
    pub(crate) body: String,
    pub(crate) attributes: HashMap<String, MessageAttributeValue>,
    /// On FIFO queues.
    pub(crate) group: Option<String>,
}

/// What the broker tells of a message beside its content.
pub(crate) struct Told {
    pub(crate) id: String,
    pub(crate) sent: Option<OffsetDateTime>,
    /// Hand-overs of this message from this queue, this one included.
    pub(crate) receives: u32,
    /// The broker itself moved it here.
    pub(crate) moved: bool,
}

/// The message of an envelope.
pub(crate) fn encode(envelope: &Envelope) -> Encoded {
    structured(envelope, &Carried::default())
}

fn structured(envelope: &Envelope, carried: &Carried) -> Encoded {
    let body = cloudevents::encode_structured(envelope, carried);
    let mut attributes = vec![(CONTENT_TYPE, STRUCTURED.to_owned())];
    let promoted = [
        (TYPE, Some(&*envelope.event_type)),
        ("cloudEvents_source", Some(&*envelope.source)),
        ("cloudEvents_partitionkey", envelope.key.as_deref()),
    ];
    // They stand in the body: what an attribute cannot hold is only not filtered on.
    for (name, value) in promoted {
        if let Some(value) = value.filter(|v| is_legal(v)) {
            attributes.push((name, value.to_owned()));
        }
    }
    let size = body.len() + attributes.iter().map(|(n, v)| n.len() + STRING.len() + v.len()).sum::<usize>();
    Encoded { body, attributes, size }
}

/// An attribute of text, as SQS has it.
pub(crate) fn text(value: impl Into<String>) -> Result<MessageAttributeValue> {
    let built = MessageAttributeValue::builder().data_type(STRING).string_value(value).build();
    built.map_err(|e| error::new(Kind::Unexpected, "encode", e.to_string()))
}

/// The same as SNS has it.
pub(crate) fn topic_text(value: impl Into<String>) -> Result<aws_sdk_sns::types::MessageAttributeValue> {
    let built = aws_sdk_sns::types::MessageAttributeValue::builder().data_type(STRING).string_value(value).build();
    built.map_err(|e| error::new(Kind::Unexpected, "encode", e.to_string()))
}

/// A copy of a message: body and attributes as they came, with `carried`. If no attribute is free for that, or the body is ours, the
/// event is written anew, with the same content.
pub(crate) fn copy(native: &Native, envelope: &Envelope, carried: &Carried) -> Result<(Native, usize)> {
    let mut attributes = native.attributes.clone();
    attributes.retain(|name, _| name != CARRIED && !cloudevents::is_carried(name));
    let body = if attributes.len() < ATTRIBUTES {
        let mut pairs = serde_json::Map::new();
        cloudevents::encode_carried(carried, &mut |name, value| {
            pairs.insert(name.to_owned(), value.into());
        });
        if *envelope.event_type == *FOREIGN {
            pairs.insert(GIVEN_ID.to_owned(), (&*envelope.id).into());
            if let Some(time) = envelope.time {
                pairs.insert(GIVEN_TIME.to_owned(), (time.unix_timestamp_nanos() / 1_000_000).to_string().into());
            }
        }
        attributes.insert(CARRIED.to_owned(), text(ascii(&serde_json::Value::Object(pairs).to_string()))?);
        native.body.clone()
    } else {
        let encoded = structured(envelope, carried);
        attributes =
            encoded.attributes.into_iter().map(|(n, v)| Ok((n.to_owned(), text(v)?))).collect::<Result<_>>()?;
        encoded.body
    };
    let size = body.len() + attributes.iter().map(|(name, value)| name.len() + value_size(value)).sum::<usize>();
    Ok((Native { body, attributes, group: native.group.clone() }, size))
}

/// JSON without the characters that SQS refuses: serde_json escapes only those below a space.
fn ascii(json: &str) -> String {
    json.replace('\u{FFFE}', "\\ufffe").replace('\u{FFFF}', "\\uffff")
}

fn value_size(value: &MessageAttributeValue) -> usize {
    value.data_type().len()
        + value.string_value().map_or(0, str::len)
        + value.binary_value().map_or(0, |b| b.as_ref().len())
}

/// Takes a received message apart; `Malformed` if it is none.
pub(crate) fn take_apart(message: Message) -> Result<(Native, Told)> {
    let system = message.attributes.unwrap_or_default();
    let number = |name| system.get(&name).and_then(|text: &String| text.parse::<u64>().ok());
    let told = Told {
        id: message.message_id.unwrap_or_default(),
        sent: number(MessageSystemAttributeName::SentTimestamp).and_then(instant),
        receives: number(MessageSystemAttributeName::ApproximateReceiveCount)
            .map_or(1, |n| u32::try_from(n).unwrap_or(u32::MAX).max(1)),
        moved: system.contains_key(&MessageSystemAttributeName::DeadLetterQueueSourceArn),
    };
    let group = system.get(&MessageSystemAttributeName::MessageGroupId).cloned();
    let body = message.body.ok_or_else(|| Error::new(Kind::Malformed, "a message without a body"))?;
    Ok((Native { body, attributes: message.message_attributes.unwrap_or_default(), group }, told))
}

fn instant(millis: u64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000).ok()
}

/// Reads a message of any origin; never fails.
pub(crate) fn decode(native: &Native, told: &Told, address: &str) -> Decoded {
    let carried = native.attributes.get(CARRIED).and_then(|v| v.string_value());
    let mut carried: HashMap<String, String> =
        carried.and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default();
    let id = carried.remove(GIVEN_ID);
    let time = carried.remove(GIVEN_TIME).and_then(|millis| instant(millis.parse().ok()?));
    let mut headers: Vec<(Cow<'_, str>, Cow<'_, str>)> = Vec::with_capacity(native.attributes.len());
    let mut content_type = None;
    for (name, value) in &native.attributes {
        // Numbers are text as well; bytes are none.
        let Some(text) = value.string_value() else { continue };
        if name.eq_ignore_ascii_case(CONTENT_TYPE) || name == "contentType" {
            content_type = Some(text);
        } else if name != CARRIED {
            headers.push((Cow::Borrowed(name), Cow::Borrowed(text)));
        }
    }
    // They come in no order.
    headers.sort_unstable();
    headers.extend(carried.iter().map(|(n, v)| (Cow::Borrowed(&**n), Cow::Borrowed(&**v))));
    cloudevents::decode(Wire {
        content_type,
        headers,
        body: Bytes::copy_from_slice(native.body.as_bytes()),
        id: Some(id.as_deref().unwrap_or(&told.id)),
        time: time.or(told.sent),
        address,
    })
}

/// What the broker tells of a message that it moved to the dead letters of `source` itself: it does so for one reason.
pub(crate) fn death(told: &Told, source: &Source) -> Option<Box<DeadLetter>> {
    if !told.moved {
        return None;
    }
    let mut letter = DeadLetter::default();
    letter.reason = Some("max-deliveries-exceeded".into());
    letter.detail = Some("received more often than its queue's redrive policy allows".into());
    letter.origin = Some(source.live().to_string().into());
    Some(Box::new(letter))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn told() -> Told {
        Told { id: "broker-1".into(), sent: instant(1_700_000_000_123), receives: 1, moved: false }
    }

    fn native(encoded: Encoded) -> Native {
        let attributes = encoded.attributes.into_iter().map(|(n, v)| (n.to_owned(), text(v).unwrap())).collect();
        Native { body: encoded.body, attributes, group: None }
    }

    fn letter(detail: &str) -> Carried {
        let mut letter = DeadLetter::default();
        letter.reason = Some("unfit".into());
        letter.detail = Some(detail.into());
        letter.attempt = Some(3);
        letter.origin = Some("queue:q".into());
        letter.time = instant(1_700_000_000_000);
        let mut carried = Carried::new(4, 0);
        carried.dead_letter = Some(Box::new(letter));
        carried
    }

    #[test]
    fn round_trip_of_all_bytes_within_legal_characters() {
        for data in [Bytes::new(), (0..=255u8).collect(), Bytes::from_static("\u{FFFE}\0é😀".as_bytes())] {
            for content_type in ["application/json", "text/plain", "application/octet-stream"] {
                let envelope = Envelope::new("a.b", data.clone())
                    .content_type(content_type)
                    .source("/s\u{1}")
                    .key("k\0")
                    .header("h", "\u{0}\u{FFFF}x");
                let encoded = encode(&envelope);
                assert!(is_legal(&encoded.body) && encoded.attributes.iter().all(|(_, v)| is_legal(v)));
                let decoded = decode(&native(encoded), &told(), "queue:q");
                assert_eq!((decoded.malformed, decoded.envelope), (None, envelope));
            }
        }
    }

    #[test]
    fn the_size_counts_names_types_and_values() {
        let encoded = encode(&Envelope::new("t", "1").source("s"));
        let attributes = "content-typeStringapplication/cloudevents+json".len()
            + "cloudEvents_typeStringt".len()
            + "cloudEvents_sourceStrings".len();
        assert_eq!(encoded.size, encoded.body.len() + attributes);
    }

    #[test]
    fn a_copy_of_a_foreign_message_keeps_body_and_attributes() {
        let attributes = (0..9).map(|i| (format!("a{i}"), text("v").unwrap())).collect();
        let foreign = Native { body: "one,two".into(), attributes, group: Some("g".into()) };
        let envelope = decode(&foreign, &told(), "queue:q").envelope;
        let (copied, _) = copy(&foreign, &envelope, &letter("\u{FFFF}\0 é")).unwrap();
        assert_eq!((&*copied.body, copied.attributes.len(), copied.group.as_deref()), ("one,two", 10, Some("g")));
        assert!(copied.attributes.values().all(|v| is_legal(v.string_value().unwrap())));
        let later = Told { id: "broker-2".into(), sent: None, ..told() };
        let decoded = decode(&copied, &later, "queue:q");
        assert_eq!((&decoded.envelope, &decoded.carried), (&envelope, &letter("\u{FFFF}\0 é")));
        // A copy of the copy carries its own, and no more attributes.
        let (again, _) = copy(&copied, &envelope, &Carried::new(5, 0)).unwrap();
        assert_eq!(again.attributes.len(), 10);
        assert_eq!(decode(&again, &told(), "queue:q").carried, Carried::new(5, 0));
    }

    #[test]
    fn a_copy_without_a_free_attribute_is_the_same_event() {
        let attributes = (0..10).map(|i| (format!("a{i}"), text("v").unwrap())).collect();
        let foreign = Native { body: "one,two".into(), attributes, group: None };
        let envelope = decode(&foreign, &told(), "queue:q").envelope;
        let (copied, size) = copy(&foreign, &envelope, &letter("d")).unwrap();
        assert!(copied.attributes.len() <= ATTRIBUTES && size > copied.body.len());
        let decoded = decode(&copied, &told(), "queue:q");
        assert_eq!((decoded.envelope, decoded.carried), (envelope, letter("d")));
    }

    #[test]
    fn bytes_numbers_and_odd_names_are_tolerated() {
        let number = MessageAttributeValue::builder().data_type("Number.int").string_value("-7").build().unwrap();
        let bytes = MessageAttributeValue::builder()
            .data_type("Binary")
            .binary_value(aws_sdk_sqs::primitives::Blob::new([0, 255]))
            .build()
            .unwrap();
        let attributes = [("count".to_owned(), number), ("bytes".to_owned(), bytes)].into();
        let decoded = decode(&Native { body: "x".into(), attributes, group: None }, &told(), "queue:q");
        assert_eq!((decoded.envelope.headers.get("count"), decoded.envelope.headers.len()), (Some("-7"), 1));
        assert_eq!((&*decoded.envelope.id, &*decoded.envelope.source), ("broker-1", "queue:q"));
    }
}
