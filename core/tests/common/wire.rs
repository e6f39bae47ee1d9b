//! Messages as a broker hands them to the codec.

use std::borrow::Cow;

use bytes::Bytes;
use polybus_core::{
    Envelope,
    message::cloudevents::{DecodedMessage, WireMessage, decode},
};
use time::macros::datetime;

pub(crate) fn wire<'a>(
    content_type: Option<&'a str>,
    headers: &[(&'a str, &'a str)],
    body: &'static [u8],
) -> WireMessage<'a> {
    WireMessage {
        content_type,
        headers: headers.iter().map(|(k, v)| (Cow::Borrowed(*k), Cow::Borrowed(*v))).collect(),
        body: Bytes::from_static(body),
        id: Some("m-1"),
        time: Some(datetime!(2024-05-01 12:00 UTC)),
        address: "queue:payments",
        ..WireMessage::default()
    }
}

pub(crate) fn structured(body: &'static str) -> DecodedMessage {
    decode(wire(Some("application/cloudevents+json; charset=utf-8"), &[], body.as_bytes()))
}

pub(crate) fn reason(decoded: &DecodedMessage) -> &str {
    assert_eq!(&*decoded.envelope.event_type, Envelope::FOREIGN_TYPE);
    decoded.malformed.as_deref().unwrap()
}
