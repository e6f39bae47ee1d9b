//! A received message: what core is told of it, and what is kept of it so that copies are exact.

use std::borrow::Cow;

use bytes::Bytes;
use fe2o3_amqp::types::{
    messaging::{
        ApplicationProperties, Batch, Body, Data, Message, MessageAnnotations, MessageId, Properties,
        annotations::{Annotations, OwnedKey},
    },
    primitives::{Binary, SimpleValue, Symbol, Value},
};
use polybus_core::{
    DeadLetter, Envelope, Kind, Result, Source,
    cloudevents::{self, Carried, Decoded, Wire},
};

use crate::{
    body,
    envelope::{self, CONTENT_TYPE, DELIVERIES, DETAIL, LONGEST_ID, Postage, REASON, TARGET, text},
    error,
};

/// A message that was read.
pub(crate) struct Opened {
    pub(crate) original: Original,
    pub(crate) envelope: Envelope,
    /// 1-based.
    pub(crate) attempt: u32,
    pub(crate) hop: u32,
    pub(crate) malformed: Option<Box<str>>,
    /// How it came to the dead letters that it was read from.
    pub(crate) dead_letter: Option<Box<DeadLetter>>,
}

/// What is kept of a message while it is not settled.
pub(crate) struct Original {
    /// Hand-overs before this one.
    pub(crate) delivery_count: u32,
    /// What the envelope does not say again; nothing of a message that is as polybus writes it.
    kept: Option<Box<Kept>>,
    /// Nothing of the message is known, so that no copy of it can be made.
    unreadable: bool,
}

struct Kept {
    properties: Properties,
    application: ApplicationProperties,
    /// Empty where `bytes` is all of it.
    body: Body<Value>,
    bytes: Bytes,
}

/// Reads a message of any origin; never fails. `address` is that of `source`.
pub(crate) fn open(mut message: Message<Body<Value>>, source: &Source, address: &str) -> Opened {
    let (body, bytes) = body::split(std::mem::replace(&mut message.body, Body::Empty));
    // Read in place: they are large, and seldom kept.
    let properties = message.properties.get_or_insert_default();
    let application = message.application_properties.get_or_insert_default();
    let whole = matches!(body, Body::Empty);
    let decoded = decode(properties, application, message.message_annotations.as_ref(), bytes, source, address);
    let delivery_count = message.header.as_ref().map_or(0, |h| h.delivery_count);
    let dead = source.is_dead_letters();
    let attempt = match dead {
        true => dead_attempt(application, delivery_count),
        false => decoded.carried.attempts.saturating_add(delivery_count).saturating_add(1),
    };
    let dead_letter = dead.then(|| death(application, decoded.carried.dead_letter.clone(), source));
    let kept = (!whole || !is_as_written(properties, application, &decoded)).then(|| {
        Box::new(Kept {
            properties: std::mem::take(properties),
            application: std::mem::take(application),
            body,
            bytes: decoded.body.unwrap_or_else(|| decoded.envelope.data.clone()),
        })
    });
    let Decoded { envelope, carried, malformed, .. } = decoded;
    let original = Original { delivery_count, kept, unreadable: false };
    Opened { original, envelope, attempt, hop: carried.hop, malformed, dead_letter }
}

/// Of a message that the client could not read at all.
pub(crate) fn unreadable(why: &str, source: &Source, address: &str) -> Opened {
    let empty = Message {
        header: None,
        delivery_annotations: None,
        message_annotations: None,
        properties: None,
        application_properties: None,
        body: Body::Empty,
        footer: None,
    };
    let opened = open(empty, source, address);
    Opened { malformed: Some(why.into()), original: Original { unreadable: true, ..opened.original }, ..opened }
}

impl Original {
    /// The encoded copy of a message: as it came, without what the broker or an earlier copy added, and with `carried`.
    ///
    /// `Malformed` for one that could not be read: a copy would be an empty message in its place.
    pub(crate) fn copy(&self, envelope: &Envelope, carried: &Carried, postage: &Postage<'_>) -> Result<Vec<u8>> {
        if self.unreadable {
            let text = "a message that cannot be read cannot be copied: move it with the broker's own tools, or acknowledge it";
            return Err(error::new(Kind::Malformed, "settle", text));
        }
        let Some(kept) = &self.kept else { return envelope::encode(envelope, carried, postage) };
        let mut application = ApplicationProperties::default();
        for (name, value) in kept.application.iter().filter(|(name, _)| is_copied(name)) {
            application.insert(name.clone(), value.clone());
        }
        cloudevents::encode_carried(carried, &mut |name, value| {
            application.insert(name.to_owned(), SimpleValue::String(value.to_owned()));
        });
        let mut properties = kept.properties.clone();
        properties.absolute_expiry_time = None;
        let data = match &kept.body {
            Body::Empty => Body::Data(Batch::new(vec![Data(Binary::from(kept.bytes.to_vec()))])),
            other => other.clone(),
        };
        envelope::pack(properties, application, data, envelope, carried, postage)
    }
}

fn said<'a>(application: &'a ApplicationProperties, name: &str) -> Option<Cow<'a, str>> {
    application.get(name).and_then(text)
}

/// Whether the envelope, encoded again, gives all of the message but the body: then nothing else of it has to be held.
fn is_as_written(properties: &Properties, application: &ApplicationProperties, decoded: &Decoded) -> bool {
    let Decoded { envelope, carried, body: None, malformed: None, .. } = decoded else { return false };
    if !has_written_properties(properties, envelope) {
        return false;
    }
    // They come in the order in which they were written, as a rule.
    let mut next = application.iter();
    let (mut written, mut same) = (0, true);
    cloudevents::encode_binary_for_http(envelope, carried, &mut |name, value| {
        written += 1;
        let found = match next.next() {
            Some((key, found)) if key == name => Some(found),
            _ => application.get(name),
        };
        same &= matches!(found, Some(SimpleValue::String(text)) if text == value);
    });
    same && written == application.len()
}

fn has_written_properties(properties: &Properties, envelope: &Envelope) -> bool {
    let Properties {
        message_id,
        user_id: None,
        to: None,
        subject,
        reply_to: None,
        correlation_id,
        content_type,
        content_encoding: None,
        // The broker's, and left out of copies.
        absolute_expiry_time: _,
        creation_time,
        group_id: None,
        group_sequence: None,
        reply_to_group_id: None,
    } = properties
    else {
        return false;
    };
    let is = |id: &Option<MessageId>, text: Option<&str>| match (id, text) {
        (Some(MessageId::String(id)), Some(text)) => id == text,
        (None, None) => true,
        _ => false,
    };
    is(message_id, Some(&envelope.id))
        && is(correlation_id, envelope.correlation_id.as_deref().filter(|id| id.len() <= LONGEST_ID))
        && subject.as_deref() == Some(&*envelope.event_type)
        && content_type.as_ref().map(Symbol::as_str) == envelope.content_type.as_deref()
        && *creation_time == envelope.time.map(envelope::timestamp)
}

fn annotation<'a>(annotations: &'a Annotations, name: &str) -> Option<&'a Value> {
    annotations.iter().find_map(|(key, value)| match key {
        OwnedKey::Symbol(symbol) if symbol.as_str() == name => Some(value),
        _ => None,
    })
}

fn decode(
    properties: &Properties,
    application: &ApplicationProperties,
    annotations: Option<&MessageAnnotations>,
    body: Bytes,
    source: &Source,
    address: &str,
) -> Decoded {
    let dead = source.is_dead_letters();
    let own = |name: &str| !(dead && matches!(name, REASON | DETAIL));
    let mut headers = Vec::with_capacity(application.len());
    let readable = application.iter().filter(|(name, _)| own(name));
    headers.extend(readable.filter_map(|(name, value)| Some((Cow::Borrowed(name.as_str()), text(value)?))));
    let long = said(application, CONTENT_TYPE);
    let annotation = |name| annotations.and_then(|annotations| annotation(annotations, name));
    let id = match &properties.message_id {
        Some(MessageId::String(id)) => Some(Cow::Borrowed(id.as_str())),
        Some(MessageId::Ulong(id)) => Some(id.to_string().into()),
        Some(MessageId::Uuid(id)) => Some(uuid::Uuid::from_bytes(*id.as_inner()).to_string().into()),
        Some(MessageId::Binary(id)) => Some(id.iter().map(|b| format!("{b:02x}")).collect::<String>().into()),
        None => match annotation("x-opt-sequence-number") {
            Some(Value::Long(n)) => Some(n.to_string().into()),
            _ => None,
        },
    };
    let enqueued = annotation("x-opt-enqueued-time").and_then(|at| match at {
        Value::Timestamp(at) => envelope::instant(at),
        _ => None,
    });
    cloudevents::decode(Wire {
        content_type: long.as_deref().or(properties.content_type.as_ref().map(Symbol::as_str)),
        headers,
        body,
        id: id.as_deref(),
        time: properties.creation_time.as_ref().and_then(envelope::instant).or(enqueued),
        address,
    })
}

/// How often these dead letters were handed out, this time included.
fn dead_attempt(application: &ApplicationProperties, delivery_count: u32) -> u32 {
    let before: Option<u32> = said(application, DELIVERIES).and_then(|n| n.parse().ok());
    // One that counts from the beginning again is taken at its word.
    let before = before.filter(|before| *before <= delivery_count).unwrap_or(0);
    (delivery_count - before).saturating_add(1)
}

/// How a message came to the dead letters of `source`: as polybus told, completed by what the broker tells.
fn death(application: &ApplicationProperties, told: Option<Box<DeadLetter>>, source: &Source) -> Box<DeadLetter> {
    let mut death = told.unwrap_or_default();
    let reason = said(application, REASON).map(|reason| envelope::named(&reason).into());
    death.reason = reason.or(death.reason);
    death.detail = said(application, DETAIL).filter(|d| !d.is_empty()).map(Into::into).or(death.detail);
    death.origin = death.origin.or_else(|| Some(source.live().to_string().into()));
    death
}

/// Whether a copy keeps this application property.
fn is_copied(name: &str) -> bool {
    !cloudevents::is_carried(name) && !matches!(name, TARGET | REASON | DETAIL)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use fe2o3_amqp::types::messaging::AmqpValue;
    use time::{Duration, OffsetDateTime};

    use super::*;
    use crate::envelope::tests::{full, read, sent};

    type Sent = Message<Body<Value>>;

    fn opened(message: Sent, source: &Source) -> Opened {
        open(message, source, &source.address().to_string())
    }

    fn envelopes() -> [Envelope; 7] {
        [
            full(),
            Envelope::new("a", "").source("s"),
            full().id("x".repeat(3000)).content_type("text/plain; x=ü").correlation_id("y".repeat(500)),
            full().edit(|p| p.content_type = None),
            full().content_type("application/cloudevents+json"),
            full().edit(|p| p.time = None).header("Content-Type", "x"),
            full()
                .edit(|p| p.extensions.push("zone", "eu"))
                .expires_at(OffsetDateTime::now_utc() + Duration::days(100)),
        ]
    }

    #[test]
    fn a_round_trip_is_exact() {
        for envelope in envelopes() {
            let opened = opened(sent(&envelope, &Postage::default()), &Source::queue("q"));
            assert_eq!((opened.malformed, opened.envelope), (None, envelope));
        }
    }

    #[test]
    fn what_polybus_wrote_is_not_held_twice_and_its_copies_are_the_same() {
        let later = Some(OffsetDateTime::now_utc() + Duration::hours(1));
        for envelope in envelopes() {
            let message = || sent(&envelope, &Postage::default());
            let opened = opened(message(), &Source::queue("q"));
            // Its id does not fit, nor its content type.
            assert_eq!(opened.original.kept.is_some(), envelope.id.len() > LONGEST_ID, "{envelope:?}");
            let (_, bytes) = body::split(message().body);
            let kept = Kept {
                properties: message().properties.unwrap(),
                application: message().application_properties.unwrap(),
                body: Body::Empty,
                bytes,
            };
            let whole = Original { delivery_count: 0, kept: Some(Box::new(kept)), unreadable: false };
            for postage in [
                Postage { ordered: true, ..Postage::default() },
                Postage { deduplicated: true, enqueue_at: later, target: Some("s"), ..Postage::default() },
            ] {
                let copy = |original: &Original| {
                    let message = read(&original.copy(&opened.envelope, &Carried::new(2, 3), &postage).unwrap());
                    // How long is left is counted from now.
                    let mut application: Vec<_> = message.application_properties.unwrap().0.into_iter().collect();
                    application.sort_by(|a, b| a.0.cmp(&b.0));
                    let annotations = format!("{:?}", message.message_annotations);
                    (message.properties, application, body::split(message.body).1, annotations)
                };
                assert_eq!(copy(&opened.original), copy(&whole));
            }
        }
    }

    #[test]
    fn whatever_differs_is_kept() {
        let changes: [fn(&mut Sent); 9] = [
            |m| m.properties.as_mut().unwrap().group_id = Some("g".into()),
            |m| m.properties.as_mut().unwrap().reply_to = Some("r".into()),
            |m| m.properties.as_mut().unwrap().subject = None,
            |m| m.properties.as_mut().unwrap().creation_time = None,
            |m| m.properties.as_mut().unwrap().message_id = Some(MessageId::Ulong(7)),
            |m| drop(m.application_properties.as_mut().unwrap().insert("n".into(), SimpleValue::Int(7))),
            |m| drop(m.application_properties.as_mut().unwrap().insert("none".into(), SimpleValue::Null)),
            |m| {
                let sequence = SimpleValue::Int(7);
                m.application_properties.as_mut().unwrap().insert("cloudEvents_sequence".into(), sequence);
            },
            |m| m.body = Body::Value(AmqpValue(Value::String("text".into()))),
        ];
        for (i, change) in changes.into_iter().enumerate() {
            let mut message = sent(&full(), &Postage::default());
            change(&mut message);
            let wanted = format!("{:?} {:?}", message.properties, message.body);
            let opened = opened(message, &Source::queue("q"));
            assert!(opened.original.kept.is_some(), "change {i}");
            let copied = opened.original.copy(&opened.envelope, &Carried::default(), &Postage::default()).unwrap();
            let copied = read(&copied);
            assert_eq!(format!("{:?} {:?}", copied.properties, copied.body), wanted, "change {i}");
        }
    }

    #[test]
    fn no_copy_is_made_of_what_cannot_be_read() {
        let opened = unreadable("why", &Source::queue("q"), "queue:q");
        assert_eq!(opened.malformed.as_deref(), Some("why"));
        let copied = opened.original.copy(&opened.envelope, &Carried::default(), &Postage::default());
        assert_eq!(copied.unwrap_err().kind(), Kind::Malformed);
    }

    #[test]
    fn copies_lose_what_earlier_copies_and_the_broker_added() {
        let mut message = sent(&full(), &Postage { target: Some("other"), ..Postage::default() });
        let a = message.application_properties.as_mut().unwrap();
        for (name, value) in [(REASON, "r"), (DETAIL, "d"), ("polybus-attempts", "4"), ("polybus-dead-time", "x")] {
            a.insert(name.into(), SimpleValue::String(value.into()));
        }
        let Opened { original, envelope, .. } = opened(message, &Source::queue("q").dead_letters());
        assert_eq!(envelope, full().id(&*envelope.id));
        let copied = original.copy(&envelope, &Carried::new(2, 3), &Postage::default()).unwrap();
        let again = read(&copied);
        let a = again.application_properties.as_ref().unwrap();
        assert!([REASON, DETAIL, TARGET, "polybus-dead-time"].iter().all(|name| a.get(*name).is_none()), "{a:?}");
        let opened = opened(again, &Source::queue("q"));
        assert_eq!((opened.hop, opened.attempt, opened.envelope), (2, 4, envelope));
    }

    #[test]
    fn the_brokers_words_for_dead_letters_become_ours() {
        let mut message = sent(&full(), &Postage::default());
        let a = message.application_properties.as_mut().unwrap();
        a.insert(REASON.into(), SimpleValue::String("TTLExpiredException".into()));
        let death = opened(message, &Source::queue("q").dead_letters()).dead_letter.unwrap();
        assert_eq!((death.reason.as_deref(), death.origin.as_deref()), (Some("expired"), Some("queue:q")));
        assert_eq!((death.detail, death.time), (None, None));
    }

    #[test]
    fn foreign_messages_and_their_odd_values_are_tolerated() {
        let mut application = ApplicationProperties::default();
        application.insert("n".into(), SimpleValue::Int(7));
        application.insert("none".into(), SimpleValue::Null);
        application.insert("raw".into(), SimpleValue::Binary(Binary::from(vec![0xff])));
        let message = Message {
            header: None,
            delivery_annotations: None,
            message_annotations: None,
            properties: None,
            application_properties: Some(application),
            body: Body::Value(AmqpValue(Value::String("hello".into()))),
            footer: None,
        };
        let opened = opened(message, &Source::subscription("t", "s"));
        let e = &opened.envelope;
        assert_eq!((&*e.event_type, &*e.source, &e.data[..]), (polybus_core::FOREIGN, "topic:t", &b"hello"[..]));
        assert_eq!(e.headers.iter().collect::<Vec<_>>(), [("n", "7")]);
        let copied = read(&opened.original.copy(e, &Carried::new(1, 1), &Postage::default()).unwrap());
        assert!(matches!(copied.body, Body::Value(_)));
    }
}
