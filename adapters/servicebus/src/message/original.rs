//! A received message: what core is told of it, and what is kept of it so that copies are exact.

use std::{borrow::Cow, sync::Arc, time::Duration};

use fe2o3_amqp::types::{
    messaging::{
        ApplicationProperties, Batch, Body, Data, Header, Message, MessageAnnotations, MessageId, Priority, Properties,
    },
    primitives::{Binary, SimpleValue, Symbol, Value},
};
use polybus_core::{
    Envelope, ErrorKind, Result, Source,
    driver::DeadLetter,
    message::cloudevents::{self, CopyState, DecodedMessage, WireMessage},
};
use tokio::time::Instant;

use crate::{
    error,
    message::{
        annotations::{self, Told},
        body,
        envelope::{
            self, CONTENT_TYPE, CopyOf, DELIVERIES, DETAIL, LONGEST_ID, ORIGINAL_ID, ORIGINAL_TIME, Postage, REASON,
            Rest, TARGET, text,
        },
        native_message::{NativeMessage, Sections},
        native_view,
    },
};

/// A message that was read.
pub(crate) struct Opened {
    pub(crate) original: Original,
    pub(crate) envelope: Envelope,
    /// 1-based.
    pub(crate) attempt: u32,
    pub(crate) malformed: Option<Box<str>>,
    /// How it came to the dead letters that it was read from.
    pub(crate) dead_letter: Option<Box<DeadLetter>>,
}

/// What is kept of a message while it is not settled.
pub(crate) struct Original {
    /// Hand-overs before this one.
    pub(crate) delivery_count: u32,
    /// Its place in the entity that it was read from; 0 if the broker does not tell.
    pub(crate) sequence: i64,
    /// What polybus sent along with it.
    pub(crate) carried: CopyState,
    /// When the lock that it came under ends, by the broker's clock, and how old it was then.
    pub(crate) told: Told,
    /// What the envelope does not say again; nothing of a message that is as polybus writes it.
    pub(crate) kept: Option<NativeMessage>,
    /// It is in the session of its key.
    in_session: bool,
    lives: Option<Lives>,
    /// Nothing of the message is known, so that no copy of it can be made.
    unreadable: bool,
}

/// How long the sender lets it live.
#[derive(Clone, Copy)]
struct Lives {
    until: Instant,
    /// From when the broker had it.
    whole: time::Duration,
}

/// Where a message is read.
#[derive(Clone, Copy)]
pub(crate) struct At<'a> {
    pub(crate) source: &'a Source,
    /// Its address, as text.
    pub(crate) address: &'a str,
    /// How long the broker holds it.
    pub(crate) lock: Duration,
}

/// Reads a message of any origin; never fails.
pub(crate) fn open(mut message: Message<Body<Value>>, at: At<'_>) -> Opened {
    let (body, bytes) = body::split(std::mem::replace(&mut message.body, Body::Empty));
    // Read in place: they are large, and seldom kept.
    let properties = message.properties.get_or_insert_default();
    let application = message.application_properties.get_or_insert_default();
    let (header, annotations) = (message.header.as_ref(), message.message_annotations.as_ref());
    let told = Told::of(annotations);
    let whole = matches!(body, Body::Empty);
    let sections = Read { header, annotations, properties, application };
    let decoded = decode(&sections, bytes, told, at);
    let delivery_count = header.map_or(0, |h| h.delivery_count);
    let dead = at.source.is_dead_letters();
    let attempt = match dead {
        true => dead_attempt(application, delivery_count),
        false => decoded.carried.attempts.saturating_add(delivery_count).saturating_add(1),
    };
    let dead_letter = dead.then(|| {
        let mut death = death(application, decoded.carried.dead_letter.clone(), at.source);
        decoded.carried.tell_redriven(&mut death);
        death
    });
    let lives = told.left(header, at.lock).map(|left| Lives {
        until: Instant::now() + Duration::try_from(left).unwrap_or_default(),
        whole: time::Duration::milliseconds(header.and_then(|h| h.ttl).unwrap_or_default().into()),
    });
    let as_written = whole && message.footer.is_none() && is_as_written(&sections, &decoded);
    let in_session = as_written && properties.group_id.is_some();
    let DecodedMessage { envelope, carried, malformed, body: whole_body, .. } = decoded;
    let kept = (!as_written).then(|| {
        remember(properties, application, &envelope, carried.hop, told);
        NativeMessage(Arc::new(Sections {
            header: message.header.take(),
            annotations: message.message_annotations.take(),
            properties: std::mem::take(properties),
            application: std::mem::take(application),
            body,
            bytes: whole_body.unwrap_or_else(|| envelope.data.clone()),
            footer: message.footer.take(),
        }))
    });
    let original = Original {
        delivery_count,
        sequence: told.sequence.unwrap_or(0),
        carried,
        told,
        kept,
        in_session,
        lives,
        unreadable: false,
    };
    Opened { original, envelope, attempt, malformed, dead_letter }
}

/// Of a message that the client could not read at all.
pub(crate) fn unreadable(why: &str, at: At<'_>) -> Opened {
    let empty = Message {
        header: None,
        delivery_annotations: None,
        message_annotations: None,
        properties: None,
        application_properties: None,
        body: Body::Empty,
        footer: None,
    };
    let opened = open(empty, at);
    Opened { malformed: Some(why.into()), original: Original { unreadable: true, ..opened.original }, ..opened }
}

/// What one copy is made for.
#[derive(Clone, Copy)]
pub(crate) struct CopyFor<'a> {
    /// Its message id.
    pub(crate) id: &'a str,
    /// Out of the dead letters.
    pub(crate) redrive: bool,
    /// Without what polybus adds, since there is no room for it.
    pub(crate) bare: bool,
    /// This goes in place of the original.
    pub(crate) instead: bool,
}

impl Original {
    /// Whether the time to live that its sender gave it is over after this long.
    pub(crate) fn ends_within(&self, delay: Duration) -> bool {
        self.lives.is_some_and(|lives| lives.until.saturating_duration_since(Instant::now()) <= delay)
    }

    /// The encoded copy of a message: as it came, without what the broker or an earlier copy added, and with `carried`.
    ///
    /// `Malformed` for one that could not be read: a copy would be an empty message in its place.
    pub(crate) fn copy(
        &self,
        envelope: &Envelope,
        carried: &CopyState,
        postage: Postage<'_>,
        copy: CopyFor<'_>,
    ) -> Result<Vec<u8>> {
        if self.unreadable && !copy.instead {
            let text = "a message that cannot be read cannot be copied: move it with the broker's own tools, or acknowledge it";
            return Err(error::new(ErrorKind::Malformed, "settle", text));
        }
        let session = self.session(envelope);
        let session = session.as_deref();
        let left = self.lives.map(|lives| match copy.redrive {
            // The broker counts no longer among dead letters: it begins anew.
            true => lives.whole,
            // `lifetime` takes the delay off.
            false => {
                let left = lives.until.saturating_duration_since(Instant::now());
                time::Duration::try_from(left).unwrap_or(time::Duration::MAX)
            }
        });
        let of = CopyOf { id: copy.id, session, left, redrive: copy.redrive };
        let postage = Postage { copy: Some(of), ..postage };
        let Some(kept) = self.kept.as_ref().filter(|_| !copy.instead) else {
            return envelope::encode(envelope, carried, &postage);
        };
        let kept = &*kept.0;
        let mut application = ApplicationProperties::default();
        for (name, value) in kept.application.iter().filter(|(name, _)| is_copied(name)) {
            if !(copy.bare && matches!(name.as_str(), ORIGINAL_ID | ORIGINAL_TIME)) {
                application.insert(name.clone(), value.clone());
            }
        }
        if !copy.bare {
            cloudevents::encode_carried(carried, &mut |name, value| {
                application.insert(name.to_owned(), SimpleValue::String(value.to_owned()));
            });
        }
        let mut properties = kept.properties.clone();
        properties.absolute_expiry_time = None;
        let rest = Rest {
            priority: kept.header.as_ref().map_or_else(Priority::default, |header| header.priority),
            annotations: annotations::without_brokers(kept.annotations.as_ref()),
            body: match &kept.body {
                Body::Empty => Body::Data(Batch::new(vec![Data(Binary::from(kept.bytes.to_vec()))])),
                other => other.clone(),
            },
            footer: kept.footer.clone(),
        };
        envelope::pack(properties, application, rest, envelope, carried, &postage)
    }

    /// The session that it came in.
    pub(crate) fn session(&self, envelope: &Envelope) -> Option<String> {
        match &self.kept {
            Some(kept) => kept.properties().group_id.clone(),
            None => envelope.key.as_deref().filter(|_| self.in_session).map(envelope::session),
        }
    }

    /// By what the broker tells partitions apart.
    /// <https://learn.microsoft.com/azure/service-bus-messaging/message-sequencing>
    pub(crate) fn partition(&self) -> u16 {
        u16::try_from((self.sequence >> 48) & 0xffff).unwrap_or_default()
    }
}

/// The sections that are read, and not kept of most messages.
struct Read<'a> {
    header: Option<&'a Header>,
    annotations: Option<&'a MessageAnnotations>,
    properties: &'a Properties,
    application: &'a ApplicationProperties,
}

/// Notes what a copy, which gets an id and a time of its own, would not say again.
fn remember(
    properties: &Properties,
    application: &mut ApplicationProperties,
    envelope: &Envelope,
    hop: u32,
    told: Told,
) {
    let foreign = &*envelope.event_type == polybus_core::Envelope::FOREIGN_TYPE;
    if application.get(ORIGINAL_ID).is_none() {
        let own = match &properties.message_id {
            Some(MessageId::String(id)) => Some(SimpleValue::String(id.clone())),
            Some(MessageId::Ulong(id)) => Some(SimpleValue::Ulong(*id)),
            Some(MessageId::Uuid(id)) => Some(SimpleValue::Uuid(id.clone())),
            Some(MessageId::Binary(id)) => Some(SimpleValue::Binary(id.clone())),
            None => None,
        };
        let is_told = matches!(&properties.message_id, Some(MessageId::String(id)) if **id == *envelope.id)
            || matches!(&properties.message_id, Some(MessageId::String(id))
                if *id == polybus_core::driver::kit::names::dedup_id(&envelope.source, &envelope.id, 0));
        // The copy of a CloudEvent has an id of its own already, and the event's is in it.
        if foreign {
            let id = own.unwrap_or_else(|| SimpleValue::String((*envelope.id).into()));
            application.insert(ORIGINAL_ID.into(), id);
        } else if let Some(id) = own.filter(|_| hop == 0 && !is_told) {
            application.insert(ORIGINAL_ID.into(), id);
        }
    }
    if let (true, None, None, Some(at)) =
        (foreign, &properties.creation_time, application.get(ORIGINAL_TIME), told.enqueued)
    {
        application.insert(ORIGINAL_TIME.into(), SimpleValue::Timestamp(envelope::timestamp(at)));
    }
}

fn said<'a>(application: &'a ApplicationProperties, name: &str) -> Option<Cow<'a, str>> {
    application.get(name).and_then(text)
}

/// Whether the envelope, encoded again, gives all of the message but the body: then nothing else of it has to be held.
fn is_as_written(read: &Read<'_>, decoded: &DecodedMessage) -> bool {
    let DecodedMessage { envelope, carried, body: None, malformed: None, .. } = decoded else { return false };
    let Read { properties, application, .. } = read;
    if !has_written_properties(properties, envelope, carried.hop)
        || read.header.is_some_and(|header| header.priority != Priority::default())
        || !annotations::are_brokers(read.annotations)
    {
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

fn has_written_properties(properties: &Properties, envelope: &Envelope, hop: u32) -> bool {
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
        group_id,
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
    // A copy has an id of its own, which the next one does not need.
    (hop > 0 && matches!(message_id, Some(MessageId::String(_))) || is(message_id, Some(&envelope.id)))
        && group_id
            .as_deref()
            .is_none_or(|group| envelope.key.as_deref().map(envelope::session).as_deref() == Some(group))
        && is(correlation_id, envelope.correlation_id.as_deref().filter(|id| id.len() <= LONGEST_ID))
        && subject.as_deref() == Some(&*envelope.event_type)
        && content_type.as_ref().map(Symbol::as_str) == envelope.content_type.as_deref()
        && *creation_time == envelope.time.map(envelope::timestamp)
}

fn decode(read: &Read<'_>, body: bytes::Bytes, told: Told, at: At<'_>) -> DecodedMessage {
    let Read { properties, application, .. } = read;
    let dead = at.source.is_dead_letters();
    let own = |name: &str| !(dead && matches!(name, REASON | DETAIL));
    let mut headers = Vec::with_capacity(application.len());
    let readable = application.iter().filter(|(name, _)| own(name));
    headers.extend(readable.filter_map(|(name, value)| Some((Cow::Borrowed(name.as_str()), text(value)?))));
    let long = said(application, CONTENT_TYPE);
    let id = said(application, ORIGINAL_ID)
        .or_else(|| properties.message_id.as_ref().map(native_view::id))
        .or_else(|| told.sequence.map(|number| number.to_string().into()));
    let enqueued = match application.get(ORIGINAL_TIME) {
        Some(SimpleValue::Timestamp(at)) => envelope::instant(at),
        _ => told.enqueued,
    };
    let correlation = properties.correlation_id.as_ref().map(native_view::id);
    cloudevents::decode(WireMessage {
        content_type: long.as_deref().or(properties.content_type.as_ref().map(Symbol::as_str)),
        headers,
        body,
        id: id.as_deref(),
        time: properties.creation_time.as_ref().and_then(envelope::instant).or(enqueued),
        address: at.address,
        correlation_id: correlation.as_deref(),
        subject: native_view::subject(properties, application),
        native: native_view::others(read.header, read.annotations, properties, application),
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
    use crate::message::envelope::tests::{full, read, sent};

    type Sent = Message<Body<Value>>;

    const LOCK: std::time::Duration = std::time::Duration::from_secs(30);

    fn opened(message: Sent, source: &Source) -> Opened {
        open(message, At { source, address: &source.address().to_string(), lock: LOCK })
    }

    fn retried() -> CopyFor<'static> {
        CopyFor { id: "copy", redrive: false, bare: false, instead: false }
    }

    fn copied(original: &Original, envelope: &Envelope, carried: &CopyState) -> Sent {
        read(&original.copy(envelope, carried, Postage::default(), retried()).unwrap())
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
            let kept = Sections {
                header: None,
                annotations: None,
                properties: message().properties.unwrap(),
                application: message().application_properties.unwrap(),
                body: Body::Empty,
                bytes,
                footer: None,
            };
            let again = self::opened(message(), &Source::queue("q")).original;
            let whole = Original { kept: Some(NativeMessage(Arc::new(kept))), ..again };
            for postage in [
                Postage { ordered: true, ..Postage::default() },
                Postage { deduplicated: true, enqueue_at: later, target: Some("s"), ..Postage::default() },
            ] {
                let copy = |original: &Original| {
                    let copy = original.copy(&opened.envelope, &CopyState::new(2, 3), postage.clone(), retried());
                    let message = read(&copy.unwrap());
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
            let id = message.properties.as_ref().unwrap().message_id.clone().unwrap();
            let opened = opened(message, &Source::queue("q"));
            assert!(opened.original.kept.is_some(), "change {i}");
            let mut copied = copied(&opened.original, &opened.envelope, &CopyState::new(1, 1));
            let id = copied.properties.as_mut().unwrap().message_id.replace(id).unwrap();
            assert_eq!(id, MessageId::String("copy".into()), "change {i}");
            assert_eq!(format!("{:?} {:?}", copied.properties, copied.body), wanted, "change {i}");
            let again = self::opened(copied, &Source::queue("q"));
            assert_eq!(again.envelope, opened.envelope, "change {i}");
        }
    }

    #[test]
    fn no_copy_is_made_of_what_cannot_be_read() {
        let opened = unreadable("why", At { source: &Source::queue("q"), address: "queue:q", lock: LOCK });
        assert_eq!(opened.malformed.as_deref(), Some("why"));
        let copied = opened.original.copy(&opened.envelope, &CopyState::default(), Postage::default(), retried());
        assert_eq!(copied.unwrap_err().kind(), ErrorKind::Malformed);
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
        let again = copied(&original, &envelope, &CopyState::new(2, 3));
        let a = again.application_properties.as_ref().unwrap();
        assert!([REASON, DETAIL, TARGET, "polybus-dead-time"].iter().all(|name| a.get(*name).is_none()), "{a:?}");
        let opened = opened(again, &Source::queue("q"));
        assert_eq!((opened.original.carried.hop, opened.attempt, opened.envelope), (2, 4, envelope));
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
        assert_eq!(
            (&*e.event_type, &*e.source, &e.data[..]),
            (polybus_core::Envelope::FOREIGN_TYPE, "topic:t", &b"hello"[..])
        );
        assert_eq!(e.headers.iter().collect::<Vec<_>>(), [("n", "7"), ("native.unshown", "raw")]);
        let copied = copied(&opened.original, e, &CopyState::new(1, 1));
        assert!(matches!(copied.body, Body::Value(_)));
    }
}
