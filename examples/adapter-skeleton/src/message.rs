//! A message as a stream's entry: CloudEvents in binary mode, and what copies carry.

use std::borrow::Cow;

use polybus_core::{
    Envelope,
    driver::SettleRequest,
    message::cloudevents::{
        CopyState, DecodedMessage, WireMessage, WireNames, decode, encode_binary_named, encode_carried, is_carried,
    },
    time::OffsetDateTime,
    topology::Source,
};

/// An entry's names and values, of whatever bytes.
pub(crate) type EntryFields = Vec<(Vec<u8>, Vec<u8>)>;

/// An application header that is named like one of our own two fields travels inside `polybus-headers`.
const NAMES: WireNames = WireNames { reserved: &["body", "content-type"], ..WireNames::CE };
/// The first entry of a message, on copies: a foreign message has its id and time from it, and keeps them.
const FIRST_ENTRY: &str = "polybus-redis-entry";

pub(crate) fn encode(envelope: &Envelope, carried: &CopyState) -> EntryFields {
    let mut fields = EntryFields::new();
    encode_binary_named(envelope, carried, &NAMES, &mut |name, value| fields.push((name.into(), value.into())));
    fields.extend(envelope.content_type.as_ref().map(|text| ("content-type".into(), text.as_bytes().into())));
    fields.push(("body".into(), envelope.data.to_vec()));
    fields
}

/// Reads an entry of any origin; never fails.
pub(crate) fn read(entry: &str, fields: &EntryFields, source: &Source) -> DecodedMessage {
    let field = |name: &str| fields.iter().find(|(n, _)| n == name.as_bytes()).map(|(_, value)| &**value);
    let text = |name: &str| field(name).and_then(|value| str::from_utf8(value).ok());
    let (mut headers, mut unshown) = (Vec::new(), Vec::new());
    for (name, value) in fields {
        match (str::from_utf8(name), str::from_utf8(value)) {
            (Ok(name), _) if NAMES.reserved.contains(&name) => {}
            (Ok(name), Ok(value)) => headers.push((Cow::Borrowed(name), Cow::Borrowed(value))),
            (Ok(name), Err(_)) => unshown.push(name),
            _ => {}
        }
    }
    // An entry's id begins with the milliseconds at which the server took it.
    let first = text(FIRST_ENTRY).unwrap_or(entry);
    let millis = first.split_once('-').and_then(|(millis, _)| millis.parse::<i128>().ok());
    decode(WireMessage {
        content_type: text("content-type"),
        headers,
        body: field("body").unwrap_or_default().to_vec().into(),
        id: Some(first),
        time: millis.and_then(|millis| OffsetDateTime::from_unix_timestamp_nanos(millis * 1_000_000).ok()),
        address: &source.address().to_string(),
        // A header that is no text is named at least.
        native: Vec::from_iter((!unshown.is_empty()).then(|| ("unshown", unshown.join(",").into()))),
        ..WireMessage::default()
    })
}

/// The entry as it came, with what this copy tells in place of what the last one told.
pub(crate) fn copy(
    entry: &str,
    fields: &EntryFields,
    carried: &CopyState,
    settle: &SettleRequest,
    source: &Source,
) -> EntryFields {
    let mut copy = fields.clone();
    copy.retain(|(name, _)| !str::from_utf8(name).is_ok_and(is_carried));
    if !copy.iter().any(|(name, _)| name == FIRST_ENTRY.as_bytes()) {
        copy.push((FIRST_ENTRY.into(), entry.into()));
    }
    encode_carried(&carried.copied(settle, source), &mut |name, value| copy.push((name.into(), value.into())));
    copy
}
