//! Copies of messages: dead letters, redrives, and retries that wait outside of the visibility timeout.
//!
//! A copy has the body and the attributes of its original. What polybus sends along is one more attribute. A message
//! has ten attributes at most; where the original has ten, some of them travel inside that attribute and are put back
//! when the copy is read.

use std::collections::HashMap;

use aws_sdk_sqs::{primitives::Blob, types::MessageAttributeValue};
use base64::{Engine, prelude::BASE64_STANDARD};
use polybus_core::{
    Envelope, ErrorKind, Result,
    message::cloudevents::{self, CopyState},
};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use crate::{
    error,
    message::{
        envelope::{self, CONTENT_TYPE, text},
        limits::ATTRIBUTES,
        native_message::NativeMessage,
    },
};

/// The attribute with everything that polybus sends along with a copy: a JSON object with the members below.
const CARRIED: &str = "polybus-carried";
/// Id and time, in milliseconds, that the broker gave an original without ones of its own. The broker gives the copy
/// others.
const ORIGINAL_ID: &str = "id";
const ORIGINAL_TIME: &str = "time";
/// The id by which SQS deduplicated an original that polybus did not write. The copy has its own.
const ORIGINAL_DEDUP: &str = "dedup";
/// The attributes that had to make room, each with its data type and its text or, in base64, its bytes.
const MOVED: &str = "attributes";

/// A copy, ready to be sent.
#[derive(Debug)]
pub(crate) struct MessageCopy {
    pub(crate) body: String,
    pub(crate) attributes: HashMap<String, MessageAttributeValue>,
    /// In bytes of body and attributes, as AWS counts.
    pub(crate) size: usize,
}

impl MessageCopy {
    fn new(body: String, attributes: HashMap<String, MessageAttributeValue>) -> Self {
        let size = body.len() + attributes.iter().map(|(name, value)| size(name, value)).sum::<usize>();
        Self { body, attributes, size }
    }
}

/// What becomes of polybus' own attribute where the original leaves no room for one more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum AttributeOverflow {
    /// Some of the original's attributes travel inside it.
    MoveInside,
    /// It is left out: the copy has exactly the attributes of its original.
    LeaveOut,
}

/// A copy of the message as it came, with what is `carried`.
pub(crate) fn copy(
    native: &NativeMessage,
    envelope: &Envelope,
    carried: &CopyState,
    overflow: AttributeOverflow,
) -> Result<MessageCopy> {
    let mut attributes = native.attributes.clone();
    attributes.retain(|name, _| !cloudevents::is_carried(name));
    if attributes.len() >= ATTRIBUTES && overflow == AttributeOverflow::LeaveOut {
        return Ok(MessageCopy::new(native.body.clone(), attributes));
    }
    let mut pairs = Map::new();
    cloudevents::encode_carried(carried, &mut |name, value| {
        pairs.insert(name.to_owned(), value.into());
    });
    if *envelope.event_type == *Envelope::FOREIGN_TYPE {
        pairs.insert(ORIGINAL_ID.to_owned(), (&*envelope.id).into());
        if let Some(time) = envelope.time {
            pairs.insert(ORIGINAL_TIME.to_owned(), (time.unix_timestamp_nanos() / 1_000_000).to_string().into());
        }
    }
    if let Some(dedup) = native.dedup.as_deref().filter(|_| envelope::is_of_others(native, envelope)) {
        pairs.insert(ORIGINAL_DEDUP.to_owned(), dedup.into());
    }
    let moved = make_room(&mut attributes);
    if !moved.is_empty() {
        pairs.insert(MOVED.to_owned(), moved.into());
    }
    attributes.insert(CARRIED.to_owned(), text(escape_illegal(&Value::Object(pairs).to_string()))?);
    Ok(MessageCopy::new(native.body.clone(), attributes))
}

/// The message as it came and nothing else: for one so large that nothing fits beside it.
pub(crate) fn plain_copy(native: &NativeMessage) -> MessageCopy {
    MessageCopy::new(native.body.clone(), native.attributes.clone())
}

/// Another message, in place of the original.
pub(crate) fn replacement(envelope: &Envelope, carried: &CopyState) -> Result<MessageCopy> {
    let encoded = envelope::structured(envelope, carried);
    let attributes =
        encoded.attributes.into_iter().map(|(n, v)| Ok((n.to_owned(), text(v)?))).collect::<Result<_>>()?;
    Ok(MessageCopy::new(encoded.body, attributes))
}

/// Takes out so many attributes that one more fits: the smallest first, and last those that say what the message is.
fn make_room(attributes: &mut HashMap<String, MessageAttributeValue>) -> Map<String, Value> {
    let mut moved = Map::new();
    while attributes.len() >= ATTRIBUTES {
        let weight = |name: &str, value: &MessageAttributeValue| {
            let says_what = name.eq_ignore_ascii_case(CONTENT_TYPE) || name.starts_with("cloudEvents");
            (says_what, size(name, value), name.to_owned())
        };
        let Some(name) = attributes.iter().map(|(name, value)| weight(name, value)).min().map(|(.., name)| name) else {
            break;
        };
        let Some(value) = attributes.remove(&name) else { break };
        let json = match value.binary_value() {
            Some(bytes) => json!({ "type": value.data_type(), "bytes": BASE64_STANDARD.encode(bytes.as_ref()) }),
            None => json!({ "type": value.data_type(), "text": value.string_value().unwrap_or_default() }),
        };
        moved.insert(name, json);
    }
    moved
}

/// Takes polybus' attribute out and returns its text members by name. The attributes that travelled inside are put
/// back.
pub(crate) fn take_carried(attributes: &mut HashMap<String, MessageAttributeValue>) -> HashMap<String, String> {
    let Some(carried) = attributes.remove(CARRIED) else { return HashMap::new() };
    let Some(Value::Object(pairs)) = carried.string_value().and_then(|json| serde_json::from_str(json).ok()) else {
        return HashMap::new();
    };
    let mut texts = HashMap::new();
    for (name, value) in pairs {
        match value {
            Value::String(text) => {
                texts.insert(name, text);
            }
            Value::Object(moved) if name == MOVED => {
                attributes.extend(moved.into_iter().filter_map(|(name, json)| Some((name, attribute(&json)?))));
            }
            _ => {}
        }
    }
    texts
}

fn attribute(json: &Value) -> Option<MessageAttributeValue> {
    let value = MessageAttributeValue::builder().data_type(json.get("type")?.as_str()?);
    let value = match (json.get("text"), json.get("bytes")) {
        (Some(text), _) => value.string_value(text.as_str()?),
        (None, bytes) => value.binary_value(Blob::new(BASE64_STANDARD.decode(bytes?.as_str()?).ok()?)),
    };
    value.build().ok()
}

/// Id and time that the broker gave a copy's original.
#[derive(Default)]
pub(crate) struct OriginalIdentity<'a> {
    pub(crate) id: Option<&'a str>,
    pub(crate) time: Option<OffsetDateTime>,
}

/// The deduplication id of a copy's original.
pub(crate) fn original_dedup(carried: &HashMap<String, String>) -> Option<String> {
    carried.get(ORIGINAL_DEDUP).cloned()
}

pub(crate) fn original_identity(native: &NativeMessage) -> OriginalIdentity<'_> {
    let millis = native.carried.get(ORIGINAL_TIME).and_then(|millis| millis.parse().ok());
    OriginalIdentity {
        id: native.carried.get(ORIGINAL_ID).map(String::as_str),
        time: millis.and_then(envelope::instant),
    }
}

/// Escapes the characters that SQS refuses and that serde_json leaves as they are: it escapes those below a space.
fn escape_illegal(json: &str) -> String {
    json.replace('\u{FFFE}', "\\ufffe").replace('\u{FFFF}', "\\uffff")
}

fn size(name: &str, value: &MessageAttributeValue) -> usize {
    name.len()
        + value.data_type().len()
        + value.string_value().map_or(0, str::len)
        + value.binary_value().map_or(0, |b| b.as_ref().len())
}

/// The error of a copy that is larger than SQS takes.
pub(crate) fn too_large(size: usize, limit: usize) -> polybus_core::Error {
    let text = format!("a copy of {size} bytes: SQS takes {limit}");
    error::new(ErrorKind::PayloadTooLarge, "settle", text).with_context("size", size).with_context("limit", limit)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use polybus_core::driver::DeadLetter;

    use super::*;
    use crate::message::{
        envelope::{BrokerMetadata, decode},
        limits::is_legal,
    };

    fn metadata() -> BrokerMetadata {
        BrokerMetadata { sent: envelope::instant(1_700_000_000_123), receives: 1, moved: false }
    }

    fn letter(detail: &str) -> CopyState {
        let mut letter = DeadLetter::default();
        letter.reason = Some("unfit".into());
        letter.detail = Some(detail.into());
        letter.attempt = Some(3);
        letter.origin = Some("queue:q".into());
        letter.time = envelope::instant(1_700_000_000_000);
        let mut carried = CopyState::new(4, 0);
        carried.dead_letter = Some(Box::new(letter));
        carried.mark = Some("m1".into());
        carried
    }

    fn foreign(attributes: HashMap<String, MessageAttributeValue>) -> NativeMessage {
        NativeMessage { id: "broker-1".into(), body: "one,two".into(), attributes, ..NativeMessage::default() }
    }

    fn texts(n: usize) -> HashMap<String, MessageAttributeValue> {
        (0..n).map(|i| (format!("a{i}"), text("v").unwrap())).collect()
    }

    /// The copy as a consumer reads it.
    fn received(copy: MessageCopy) -> NativeMessage {
        let mut attributes = copy.attributes;
        let carried = take_carried(&mut attributes);
        NativeMessage { id: "broker-2".into(), body: copy.body, attributes, carried, ..NativeMessage::default() }
    }

    #[test]
    fn a_copy_of_a_foreign_message_keeps_body_and_attributes() {
        let foreign = foreign(texts(9));
        let envelope = decode(&foreign, &metadata(), "queue:q").envelope;
        let copied = copy(&foreign, &envelope, &letter("\u{FFFF}\0 é"), AttributeOverflow::MoveInside).unwrap();
        assert_eq!((&*copied.body, copied.attributes.len()), ("one,two", 10));
        assert!(copied.attributes.values().all(|v| is_legal(v.string_value().unwrap())));
        let later = BrokerMetadata { sent: None, ..metadata() };
        let copied = received(copied);
        let decoded = decode(&copied, &later, "queue:q");
        assert_eq!((&decoded.envelope, &decoded.carried), (&envelope, &letter("\u{FFFF}\0 é")));
        // A copy of the copy carries its own, and no more attributes.
        let again = copy(&copied, &envelope, &CopyState::new(5, 0), AttributeOverflow::MoveInside).unwrap();
        assert_eq!(again.attributes.len(), 10);
        assert_eq!(decode(&received(again), &metadata(), "queue:q").carried, CopyState::new(5, 0));
    }

    #[test]
    fn ten_attributes_of_all_kinds_come_back_as_they_were() {
        let given: HashMap<String, Value> =
            serde_json::from_str(include_str!("../../tests/data/ten_attributes.json")).unwrap();
        let attributes: HashMap<String, MessageAttributeValue> = given
            .iter()
            .map(|(name, v)| {
                let value = MessageAttributeValue::builder().data_type(v["DataType"].as_str().unwrap());
                let value = match v["BinaryValue"].as_str() {
                    Some(bytes) => value.binary_value(Blob::new(BASE64_STANDARD.decode(bytes).unwrap())),
                    None => value.string_value(v["StringValue"].as_str().unwrap()),
                };
                (name.clone(), value.build().unwrap())
            })
            .collect();
        let foreign = foreign(attributes.clone());
        let envelope = decode(&foreign, &metadata(), "queue:q").envelope;
        let mut native = foreign;
        for hop in 1..4 {
            let copied = copy(&native, &envelope, &letter("d"), AttributeOverflow::MoveInside).unwrap();
            assert_eq!((copied.attributes.len(), &*copied.body), (ATTRIBUTES, "one,two"), "hop {hop}");
            native = received(copied);
            assert_eq!(native.attributes, attributes, "hop {hop}");
            let decoded = decode(&native, &metadata(), "queue:q");
            assert_eq!((&decoded.envelope, &decoded.carried), (&envelope, &letter("d")));
        }
        let back = copy(&native, &envelope, &CopyState::new(9, 0), AttributeOverflow::LeaveOut).unwrap();
        assert_eq!((&*back.body, &back.attributes), ("one,two", &attributes), "nothing of polybus is left in it");
    }

    #[test]
    fn attributes_that_say_what_a_message_is_do_not_move() {
        let mut attributes = texts(8);
        attributes.insert("content-type".into(), text("a/b").unwrap());
        attributes.insert("cloudEvents_id".into(), text("1").unwrap());
        let moved = make_room(&mut attributes);
        assert_eq!((moved.len(), attributes.len()), (1, 9));
        assert!(attributes.contains_key("content-type") && attributes.contains_key("cloudEvents_id"));
        // An emulator may let more than ten through.
        let mut many = texts(14);
        assert_eq!((make_room(&mut many).len(), many.len()), (5, 9));
    }

    #[test]
    fn a_plain_copy_is_as_large_as_its_original() {
        let foreign = foreign(texts(10));
        let size = "one,two".len() + 10 * "a0Stringv".len();
        assert_eq!(plain_copy(&foreign).size, size);
    }
}
