//! Round trips: what is written, received and copied is the same.
#![allow(clippy::unwrap_used)]
use std::sync::Arc;

use fe2o3_amqp::types::{
    messaging::{AmqpValue, ApplicationProperties, Body, Message, MessageId},
    primitives::{Binary, SimpleValue, Value},
};
use polybus_core::{Envelope, ErrorKind, Source, message::cloudevents::CopyState};
use time::{Duration, OffsetDateTime};

use crate::message::{
    body,
    envelope::{
        DETAIL, MAX_ID_LENGTH, REASON, SendOptions, TARGET,
        tests::{full, read, sent},
    },
    native_message::{MessageSections, NativeMessage},
    original::{CopyRequest, OriginalMessage},
    received::{self, MessageContent, ReadContext},
};

type Sent = Message<Body<Value>>;

const LOCK: std::time::Duration = std::time::Duration::from_secs(30);

fn opened(message: Sent, source: &Source) -> MessageContent {
    received::read(message, ReadContext { source, address: &source.address().to_string(), lock: LOCK })
}

fn retried() -> CopyRequest<'static> {
    CopyRequest { id: "copy", redrive: false, bare: false, replacement: None }
}

fn copied(original: &OriginalMessage, envelope: &Envelope, carried: &CopyState) -> Sent {
    read(&original.copy(envelope, carried, SendOptions::default(), retried()).unwrap())
}

fn envelopes() -> [Envelope; 9] {
    [
        full(),
        Envelope::new("a", "").source("s"),
        full().id("x".repeat(3000)).content_type("text/plain; x=ü").correlation_id("y".repeat(500)),
        full().edit(|p| p.content_type = None),
        full().content_type("application/cloudevents+json"),
        full().edit(|p| p.time = None).header("Content-Type", "x"),
        full().reply_to("replies"),
        Envelope::new("a", "").source("s").reply_to("replies"),
        full().edit(|p| p.extensions.push("zone", "eu")).expires_at(OffsetDateTime::now_utc() + Duration::days(100)),
    ]
}

#[test]
fn a_round_trip_is_exact() {
    for envelope in envelopes() {
        let opened = opened(sent(&envelope, &SendOptions::default()), &Source::queue("q"));
        assert_eq!((opened.malformed, opened.envelope), (None, envelope));
    }
}

#[test]
fn what_polybus_wrote_is_not_held_twice_and_its_copies_are_the_same() {
    let later = Some(OffsetDateTime::now_utc() + Duration::hours(1));
    for envelope in envelopes() {
        let message = || sent(&envelope, &SendOptions::default());
        let opened = opened(message(), &Source::queue("q"));
        // Its id does not fit, nor its content type.
        assert_eq!(opened.original.native.is_some(), envelope.id.len() > MAX_ID_LENGTH, "{envelope:?}");
        let (_, bytes) = body::split(message().body);
        let sections = MessageSections {
            header: None,
            annotations: None,
            properties: message().properties.unwrap(),
            application: message().application_properties.unwrap(),
            body: Body::Empty,
            bytes,
            footer: None,
        };
        let again = self::opened(message(), &Source::queue("q")).original;
        let whole = OriginalMessage { native: Some(NativeMessage(Arc::new(sections))), ..again };
        for options in [
            SendOptions { ordered: true, ..SendOptions::default() },
            SendOptions { deduplicated: true, enqueue_at: later, target: Some("s"), ..SendOptions::default() },
        ] {
            let copy = |original: &OriginalMessage| {
                let copy = original.copy(&opened.envelope, &CopyState::new(2, 3), options.clone(), retried());
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
        let mut message = sent(&full(), &SendOptions::default());
        change(&mut message);
        let wanted = format!("{:?} {:?}", message.properties, message.body);
        let id = message.properties.as_ref().unwrap().message_id.clone().unwrap();
        let opened = opened(message, &Source::queue("q"));
        assert!(opened.original.native.is_some(), "change {i}");
        let mut copied = copied(&opened.original, &opened.envelope, &CopyState::new(1, 1));
        let id = copied.properties.as_mut().unwrap().message_id.replace(id).unwrap();
        assert_eq!(id, MessageId::String("copy".into()), "change {i}");
        assert_eq!(format!("{:?} {:?}", copied.properties, copied.body), wanted, "change {i}");
        let again = self::opened(copied, &Source::queue("q"));
        assert_eq!(again.envelope, opened.envelope, "change {i}");
    }
}

#[test]
fn a_replacement_goes_in_the_session_of_its_own_key() {
    let ordered = SendOptions { ordered: true, ..SendOptions::default() };
    let foreign = |group: &str| {
        let mut message = sent(&Envelope::new("a", ""), &SendOptions::default());
        message.properties.as_mut().unwrap().group_id = Some(group.into());
        message
    };
    let other = Envelope::new("a", "").key("new");
    for (case, original, options, wanted) in [
        ("of polybus", sent(&full(), &ordered), &ordered, "new"),
        ("of polybus, as a bus that knows no order reads it", sent(&full(), &ordered), &SendOptions::default(), "new"),
        ("of another program", foreign("theirs"), &ordered, "new"),
        ("of another program where there is no order", foreign("theirs"), &SendOptions::default(), "theirs"),
    ] {
        let MessageContent { original, envelope, .. } = opened(original, &Source::queue("q").dead_letters());
        let request = CopyRequest { redrive: true, replacement: Some(&other), ..retried() };
        let copy = original.copy(&envelope, &CopyState::new(1, 0), options.clone(), request).unwrap();
        // The message's own session, and the one that its batch is sent under.
        let told = original.session_of_copy(&envelope, request, options.ordered);
        assert_eq!(read(&copy).properties.unwrap().group_id.as_deref(), Some(wanted), "{case}");
        assert_eq!(told.as_deref(), Some(wanted), "{case}");
    }
}

#[test]
fn a_bare_copy_carries_nothing() {
    for key in [None, Some("theirs")] {
        let mut message = sent(&full(), &SendOptions::default());
        // With a session of its own the message is not as polybus writes it, and is copied from its sections.
        message.properties.as_mut().unwrap().group_id = key.map(Into::into);
        let MessageContent { original, envelope, .. } = opened(message, &Source::queue("q").dead_letters());
        let request = CopyRequest { bare: true, ..retried() };
        let mut carried = CopyState::new(7, 3);
        carried.mark = Some("mark".into());
        let bare = original.copy(&envelope, &carried, SendOptions::default(), request).unwrap();
        assert_eq!(opened(read(&bare), &Source::queue("q")).original.carried, CopyState::default(), "{key:?}");
    }
}

#[test]
fn no_copy_is_made_of_what_cannot_be_read() {
    let opened =
        received::unreadable("why", ReadContext { source: &Source::queue("q"), address: "queue:q", lock: LOCK });
    assert_eq!(opened.malformed.as_deref(), Some("why"));
    let copied = opened.original.copy(&opened.envelope, &CopyState::default(), SendOptions::default(), retried());
    assert_eq!(copied.unwrap_err().kind(), ErrorKind::Malformed);
}

#[test]
fn copies_lose_what_earlier_copies_and_the_broker_added() {
    let mut message = sent(&full(), &SendOptions { target: Some("other"), ..SendOptions::default() });
    let a = message.application_properties.as_mut().unwrap();
    for (name, value) in [(REASON, "r"), (DETAIL, "d"), ("polybus-attempts", "4"), ("polybus-dead-time", "x")] {
        a.insert(name.into(), SimpleValue::String(value.into()));
    }
    let MessageContent { original, envelope, .. } = opened(message, &Source::queue("q").dead_letters());
    assert_eq!(envelope, full().id(&*envelope.id));
    let again = copied(&original, &envelope, &CopyState::new(2, 3));
    let a = again.application_properties.as_ref().unwrap();
    assert!([REASON, DETAIL, TARGET, "polybus-dead-time"].iter().all(|name| a.get(*name).is_none()), "{a:?}");
    let opened = opened(again, &Source::queue("q"));
    assert_eq!((opened.original.carried.hop, opened.attempt, opened.envelope), (2, 4, envelope));
}

#[test]
fn the_brokers_words_for_dead_letters_become_ours() {
    let mut message = sent(&full(), &SendOptions::default());
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
    assert_eq!((&*e.event_type, &*e.source, &e.data[..]), (Envelope::FOREIGN_TYPE, "topic:t", &b"hello"[..]));
    assert_eq!(e.headers.iter().collect::<Vec<_>>(), [("n", "7"), ("native.unshown", "raw")]);
    let copied = copied(&opened.original, e, &CopyState::new(1, 1));
    assert!(matches!(copied.body, Body::Value(_)));
}
