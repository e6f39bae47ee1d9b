//! Envelopes as messages of SQS and SNS, and back.
//!
//! The body is a CloudEvent in structured mode, since bodies are text and a message has ten attributes at most. Type,
//! source and key are attributes as well, for filter policies and other readers.

use std::borrow::Cow;

use aws_sdk_sqs::types::{Message, MessageAttributeValue, MessageSystemAttributeName as System};
use bytes::Bytes;
use polybus_core::{
    Envelope, Error, ErrorKind, Result, Source,
    driver::DeadLetter,
    message::cloudevents::{self, CopyState, DecodedMessage, STRUCTURED, WireMessage},
};
use time::OffsetDateTime;

use crate::{
    consume::copies,
    error,
    message::{
        limits::is_legal,
        native_message::NativeMessage,
        notification::{self, SnsNotification},
    },
    topology::names,
};

/// The attribute that holds the content type.
pub(crate) const CONTENT_TYPE: &str = "content-type";
/// The attribute that filter policies look at.
pub(crate) const TYPE: &str = "cloudEvents_type";
/// The attributes that repeat what stands in the body.
const PROMOTED: [&str; 3] = [TYPE, "cloudEvents_source", "cloudEvents_partitionkey"];
pub(crate) const STRING: &str = "String";

/// A message as it is sent, to a queue or a topic alike.
#[derive(Clone, Debug)]
pub(crate) struct EncodedMessage {
    pub(crate) body: String,
    /// All of them are text.
    pub(crate) attributes: Vec<(&'static str, String)>,
    /// In bytes of body and attributes, as AWS counts.
    pub(crate) size: usize,
}

/// The system attributes of a received message.
pub(crate) struct BrokerMetadata {
    pub(crate) sent: Option<OffsetDateTime>,
    /// How often this queue has handed the message out, this time included.
    pub(crate) receives: u32,
    /// Whether a redrive policy moved it here.
    pub(crate) moved: bool,
}

/// Encodes an envelope that is published.
pub(crate) fn encode(envelope: &Envelope) -> EncodedMessage {
    structured(envelope, &CopyState::default())
}

/// Encodes an envelope that replaces another message.
pub(crate) fn structured(envelope: &Envelope, carried: &CopyState) -> EncodedMessage {
    let body = cloudevents::encode_structured(envelope, carried);
    let mut attributes = vec![(CONTENT_TYPE, STRUCTURED.to_owned())];
    let values = [Some(&*envelope.event_type), Some(&*envelope.source), envelope.key.as_deref()];
    // A value that an attribute cannot hold is left out: it stands in the body, and only filters miss it.
    for (name, value) in PROMOTED.into_iter().zip(values) {
        if let Some(value) = value.filter(|v| is_legal(v)) {
            attributes.push((name, value.to_owned()));
        }
    }
    let size = body.len() + attributes.iter().map(|(n, v)| n.len() + STRING.len() + v.len()).sum::<usize>();
    EncodedMessage { body, attributes, size }
}

/// A text attribute of SQS.
pub(crate) fn text(value: impl Into<String>) -> Result<MessageAttributeValue> {
    let built = MessageAttributeValue::builder().data_type(STRING).string_value(value).build();
    built.map_err(|e| error::not_built(e, "encode"))
}

/// A text attribute of SNS.
pub(crate) fn topic_text(value: impl Into<String>) -> Result<aws_sdk_sns::types::MessageAttributeValue> {
    let built = aws_sdk_sns::types::MessageAttributeValue::builder().data_type(STRING).string_value(value).build();
    built.map_err(|e| error::not_built(e, "encode"))
}

/// Splits a received message into content and system attributes. `Malformed` if it has no body.
pub(crate) fn take_apart(message: Message) -> Result<(NativeMessage, BrokerMetadata)> {
    let mut system = message.attributes.unwrap_or_default();
    let number = |name| system.get(&name).and_then(|text: &String| text.parse::<u64>().ok());
    let metadata = BrokerMetadata {
        sent: number(System::SentTimestamp).and_then(instant),
        receives: number(System::ApproximateReceiveCount).map_or(1, |n| u32::try_from(n).unwrap_or(u32::MAX).max(1)),
        moved: system.contains_key(&System::DeadLetterQueueSourceArn),
    };
    let mut attributes = message.message_attributes.unwrap_or_default();
    let carried = copies::take_carried(&mut attributes);
    let native = NativeMessage {
        id: message.message_id.unwrap_or_default(),
        body: message.body.ok_or_else(|| Error::new(ErrorKind::Malformed, "a message without a body"))?,
        attributes,
        group: system.remove(&System::MessageGroupId),
        dedup: copies::original_dedup(&carried).or_else(|| system.remove(&System::MessageDeduplicationId)),
        trace: system.remove(&System::AwsTraceHeader),
        carried,
    };
    Ok((native, metadata))
}

/// The time of so many milliseconds since 1970, which is how SQS tells times.
pub(crate) fn instant(millis: u64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000).ok()
}

/// Decodes a message, whoever wrote it. One that cannot be decoded is marked as malformed.
pub(crate) fn decode(native: &NativeMessage, metadata: &BrokerMetadata, address: &str) -> DecodedMessage {
    let inside = notification::unwrap(native);
    let decoded = read(native, inside.as_ref(), metadata, address, Vec::new());
    match properties(native, inside.as_ref(), &decoded.envelope) {
        none if none.is_empty() => decoded,
        properties => read(native, inside.as_ref(), metadata, address, properties),
    }
}

fn read<'a>(
    native: &'a NativeMessage,
    inside: Option<&'a SnsNotification>,
    metadata: &BrokerMetadata,
    address: &'a str,
    properties: Vec<(&'static str, Cow<'a, str>)>,
) -> DecodedMessage {
    // Numbers have a text value as well; binary attributes have none.
    let own = native.attributes.iter().filter_map(|(name, value)| Some((&**name, value.string_value()?)));
    let mut headers: Vec<(Cow<'_, str>, Cow<'_, str>)> = Vec::with_capacity(native.attributes.len());
    let mut content_type = None;
    for (name, text) in own.chain(inside.into_iter().flat_map(SnsNotification::texts)) {
        if name.eq_ignore_ascii_case(CONTENT_TYPE) || name == "contentType" {
            content_type = Some(text);
        } else {
            headers.push((name.into(), text.into()));
        }
    }
    // Attributes come in no order; headers are to be the same each time.
    headers.sort_unstable();
    let carried = native.carried.iter().filter(|(name, _)| cloudevents::is_carried(name));
    headers.extend(carried.map(|(n, v)| (Cow::Borrowed(&**n), Cow::Borrowed(&**v))));
    let body = inside.map_or(&native.body, |inside| &inside.message);
    let original = copies::original_identity(native);
    cloudevents::decode(WireMessage {
        content_type,
        headers,
        body: Bytes::copy_from_slice(body.as_bytes()),
        id: Some(original.id.or(inside.map(|inside| &*inside.message_id)).unwrap_or(&native.id)),
        time: original.time.or_else(|| inside?.time()).or(metadata.sent),
        subject: inside.and_then(|inside| inside.subject.as_deref()),
        address,
        native: properties,
        ..WireMessage::default()
    })
}

/// The native properties of a message that polybus did not write, as far as the envelope has no field for them.
///
/// In a message of polybus the group is the key, and the deduplication id is made of what stands in the envelope. So
/// both are properties only where the group is not the key's.
fn properties<'a>(
    native: &'a NativeMessage,
    inside: Option<&'a SnsNotification>,
    envelope: &Envelope,
) -> Vec<(&'static str, Cow<'a, str>)> {
    let mut all: Vec<(&'static str, Cow<'a, str>)> = Vec::new();
    let group = native.group.as_deref();
    if let Some(group) = group.filter(|g| envelope.key.as_deref().is_none_or(|key| names::group(key) != *g)) {
        all.push(("message-group-id", group.into()));
        all.extend(native.dedup.as_deref().map(|dedup| ("message-deduplication-id", dedup.into())));
    }
    if let Some(trace) = native.trace.as_deref().filter(|_| *envelope.event_type == *Envelope::FOREIGN_TYPE) {
        all.push(("aws-trace-header", trace.into()));
    }
    let own = native.attributes.iter().filter(|(_, value)| value.string_value().is_none()).map(|(name, _)| &**name);
    let mut unshown: Vec<&str> = own.chain(inside.into_iter().flat_map(SnsNotification::binaries)).collect();
    if !unshown.is_empty() {
        unshown.sort_unstable();
        all.push(("unshown", unshown.join(",").into()));
    }
    all
}

/// Whether a message has anything that polybus does not write. Then a delivery shows it as it came.
pub(crate) fn is_of_others(native: &NativeMessage, envelope: &Envelope) -> bool {
    let own = |name: &str| name == CONTENT_TYPE || PROMOTED.contains(&name);
    *envelope.event_type == *Envelope::FOREIGN_TYPE
        || native.attributes.is_empty()
        || !native.attributes.keys().all(|name| own(name))
}

/// The reason of a dead letter that a redrive policy moved to the dead letters of `source`: it was received too often.
pub(crate) fn broker_dead_letter(metadata: &BrokerMetadata, source: &Source) -> Option<Box<DeadLetter>> {
    if !metadata.moved {
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

    fn metadata() -> BrokerMetadata {
        BrokerMetadata { sent: instant(1_700_000_000_123), receives: 1, moved: false }
    }

    fn native(encoded: EncodedMessage) -> NativeMessage {
        let attributes = encoded.attributes.into_iter().map(|(n, v)| (n.to_owned(), text(v).unwrap())).collect();
        NativeMessage { body: encoded.body, attributes, ..NativeMessage::default() }
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
                let decoded = decode(&native(encoded), &metadata(), "queue:q");
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
    fn bytes_numbers_and_odd_names_are_tolerated() {
        let number = MessageAttributeValue::builder().data_type("Number.int").string_value("-7").build().unwrap();
        let bytes = MessageAttributeValue::builder()
            .data_type("Binary")
            .binary_value(aws_sdk_sqs::primitives::Blob::new([0, 255]))
            .build()
            .unwrap();
        let attributes = [("count".to_owned(), number), ("bytes".to_owned(), bytes)].into();
        let foreign = NativeMessage { id: "broker-1".into(), body: "x".into(), attributes, ..NativeMessage::default() };
        let decoded = decode(&foreign, &metadata(), "queue:q");
        assert_eq!(decoded.envelope.headers.get("count"), Some("-7"));
        assert_eq!((&*decoded.envelope.id, &*decoded.envelope.source), ("broker-1", "queue:q"));
        assert!(is_of_others(&foreign, &decoded.envelope));
        assert_eq!(properties(&foreign, None, &decoded.envelope), [("unshown", "bytes".into())]);
    }

    #[test]
    fn what_polybus_wrote_has_no_properties_of_others() {
        for key in ["k", &"no group ".repeat(20)] {
            let envelope = Envelope::new("a.b", "1").key(key);
            let mut own = native(encode(&envelope));
            own.group = Some(names::group(key));
            own.dedup = Some("d".into());
            assert!(properties(&own, None, &envelope).is_empty() && !is_of_others(&own, &envelope));
            own.group = Some("theirs".into());
            let shown = properties(&own, None, &envelope);
            assert_eq!(shown, [("message-group-id", "theirs".into()), ("message-deduplication-id", "d".into())]);
        }
    }

    const WRAPPED: &str = include_str!("../../tests/data/sns_not_raw.json");

    #[test]
    fn what_sns_has_wrapped_is_the_message_inside() {
        let wrapped = NativeMessage { id: "sqs-1".into(), body: WRAPPED.into(), ..NativeMessage::default() };
        let decoded = decode(&wrapped, &metadata(), "subscription:orders/billing");
        assert_eq!((decoded.malformed, &*decoded.envelope.event_type), (None, "order.placed"));
        assert_eq!((&*decoded.envelope.id, &*decoded.envelope.data), ("n-1", &b"{\"total\":12}"[..]));
        assert!(is_of_others(&wrapped, &decoded.envelope));
        // One that is no CloudEvent: id, time and subject are those of SNS.
        let plain = r#"{"Type":"Notification","MessageId":"sns-1","TopicArn":"arn:aws:sns:r:1:t","Message":"one,two",
            "Subject":"Import","Timestamp":"2026-03-01T10:00:00.123Z","MessageAttributes":{
            "tenant":{"Type":"String","Value":"eu"},"sign":{"Type":"Binary","Value":"3q0="}}}"#;
        let plain = NativeMessage { id: "sqs-1".into(), body: plain.into(), ..NativeMessage::default() };
        let inside = notification::unwrap(&plain).unwrap();
        let decoded = decode(&plain, &metadata(), "queue:q");
        let e = &decoded.envelope;
        assert_eq!((&*e.id, &*e.event_type, &*e.data), ("sns-1", Envelope::FOREIGN_TYPE, &b"one,two"[..]));
        assert_eq!(e.time.unwrap().unix_timestamp_nanos(), 1_772_359_200_123_000_000);
        assert_eq!(e.headers.get("tenant"), Some("eu"));
        assert_eq!(properties(&plain, Some(&inside), e), [("unshown", "sign".into())]);
    }

    #[test]
    fn a_payload_that_looks_like_a_wrapper_stays_one() {
        let envelope = Envelope::new("a.b", WRAPPED).source("/s");
        let decoded = decode(&native(encode(&envelope)), &metadata(), "queue:q");
        assert_eq!(decoded.envelope, envelope);
        // Neither is a message with attributes of its own unwrapped: SNS sends none beside its wrapper.
        let attributes = [("a".to_owned(), text("b").unwrap())].into();
        let foreign = NativeMessage { body: WRAPPED.into(), attributes, ..NativeMessage::default() };
        assert_eq!(&*decode(&foreign, &metadata(), "queue:q").envelope.data, WRAPPED.as_bytes());
    }
}
