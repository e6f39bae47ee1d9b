//! Structured mode: the whole event as one JSON document.

use std::{borrow::Cow, fmt};

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;
use serde::{
    Deserialize,
    de::{Deserializer, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{
    CopyState, WireMessage,
    attributes::{self, AttributePlacement, PREFIX},
    content_type, internal_headers,
    json_text::{escaped_len, is_xml_json, push_string},
    native_headers, packed_headers,
};
use crate::{Envelope, Headers, message::EnvelopeFields};

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Writes the document.
pub(super) fn encode(envelope: &Envelope, carried: &CopyState) -> String {
    let room = 512 + envelope.metadata_size() + envelope.data.len() * 4 / 3;
    let mut out = String::with_capacity(room);
    let mut member = |name: &str, value: &str| {
        out.push(if out.is_empty() { '{' } else { ',' });
        push_string(&mut out, name);
        out.push(':');
        push_string(&mut out, value);
    };
    attributes::each(envelope, &mut |name, value| member(&name[PREFIX.len()..], value));
    if let Some(content_type) = &envelope.content_type {
        member("datacontenttype", content_type);
    }
    for (name, value) in envelope.extensions.iter() {
        member(name, value);
    }
    internal_headers::each(carried, &mut |name, value| member(&name.replace('-', ""), value));
    if !envelope.headers.is_empty() {
        member("polybusheaders", &packed_headers::pack(&envelope.headers));
    }
    push_data(&mut out, envelope);
    out.push('}');
    out
}

/// Appends the payload in the most readable form that gives the same bytes back: JSON as it is, text as a string, or
/// base64.
fn push_data(out: &mut String, envelope: &Envelope) {
    let data = &envelope.data;
    if data.is_empty() {
        return;
    }
    let text = std::str::from_utf8(data).ok();
    if is_json(envelope.content_type.as_deref()) {
        if let Some(json) = text.filter(|text| embeds(text)) {
            out.push_str(",\"data\":");
            out.push_str(json);
            return;
        }
    } else if let Some(text) = text.filter(|text| escaped_len(text) <= data.len() * 4 / 3) {
        out.push_str(",\"data\":");
        push_string(out, text);
        return;
    }
    out.push_str(",\"data_base64\":\"");
    BASE64.encode_string(data, out);
    out.push('"');
}

/// Whether JSON text can stand in the document as it is: one value without white space around it. `null` cannot, since
/// most readers take it for no payload.
fn embeds(text: &str) -> bool {
    let whole = |raw: &RawValue| raw.get().len() == text.len();
    text != "null" && is_xml_json(text) && serde_json::from_str::<&RawValue>(text).is_ok_and(whole)
}

/// Whether `data` is JSON by this content type. CloudEvents says that it is where there is none.
fn is_json(content_type: Option<&str>) -> bool {
    content_type.is_none_or(content_type::is_json)
}

/// Whether the body may be an event although its content type does not say so. It is asked of every foreign message, so
/// it must be cheap.
pub(super) fn looks_so(body: &[u8]) -> bool {
    const NAME: &[u8] = b"\"specversion\"";
    let start = body.strip_prefix("\u{FEFF}".as_bytes()).unwrap_or(body).trim_ascii_start();
    start.first() == Some(&b'{') && start.windows(NAME.len()).any(|at| at == NAME)
}

/// Reads a document, and fills `carried` with what it holds of polybus' own headers. The error is a reason for a
/// person.
pub(super) fn decode(wire: &WireMessage<'_>, carried: &mut CopyState) -> Result<EnvelopeFields, String> {
    let body = std::str::from_utf8(&wire.body).map_err(|_| "structured mode, but the body is not UTF-8")?;
    let members: JsonMembers<'_> = serde_json::from_str(body.trim_start_matches('\u{FEFF}')).map_err(|e| {
        format!("structured mode, but the body is no JSON object (line {}, column {})", e.line(), e.column())
    })?;
    let version = members.0.iter().find(|(name, _)| attributes::lower(&name.0) == "specversion");
    let version = version.and_then(|(name, raw)| scalar(&name.0, raw).transpose()).transpose()?;
    attributes::check_version(&version.ok_or("structured mode, but no specversion")?)?;

    let mut fields = EnvelopeFields::bare("", Bytes::new());
    let mut document = CopyState::default();
    let (mut data, mut data_base64, mut headers) = (None, None, None);
    let mut misnamed = Headers::new();
    for (name, raw) in &members.0 {
        match &*name.0 {
            "data" => only(&mut data, raw, "data")?,
            "data_base64" => only(&mut data_base64, raw, "data_base64")?,
            name => {
                let Some(value) = scalar(name, raw)? else { continue };
                match name.strip_prefix("polybus") {
                    Some("headers") => headers = Some(packed_headers::unpack(&value)?),
                    Some(own) => internal_headers::set(&mut document, own, &value),
                    None => {
                        if attributes::set(&mut fields, name, Cow::Borrowed(&value))? == AttributePlacement::Misnamed {
                            misnamed.push(name, &*value);
                        }
                    }
                }
            }
        }
    }
    attributes::complete(&fields)?;
    fields.headers = headers.unwrap_or_else(|| application_headers(wire));
    for (name, value) in misnamed.iter() {
        fields.headers.push(name, value);
    }
    fields.data = payload(wire, fields.content_type.as_deref(), data, data_base64)?;
    internal_headers::fill(carried, document);
    Ok(fields)
}

/// The payload's bytes, from whichever of the two members there is.
fn payload(
    wire: &WireMessage<'_>,
    content_type: Option<&str>,
    data: Option<&RawValue>,
    data_base64: Option<&RawValue>,
) -> Result<Bytes, String> {
    match (data.filter(|raw| raw.get() != "null"), data_base64.filter(|raw| raw.get() != "null")) {
        (None, None) => Ok(Bytes::new()),
        (Some(_), Some(_)) => Err("both data and data_base64".into()),
        (None, Some(raw)) => {
            let text = string(raw).ok_or("data_base64 is no string")?;
            BASE64.decode(text.as_bytes()).map(Bytes::from).map_err(|_| "data_base64 is no base64".into())
        }
        (Some(raw), None) if raw.get().starts_with('"') && !is_json(content_type) => {
            Ok(string(raw).ok_or("data is no valid string")?.into_owned().into())
        }
        (Some(raw), None) => Ok(wire.body.slice_ref(raw.get().as_bytes())),
    }
}

/// An attribute's value as text; `None` for `null`, which CloudEvents takes for absent. Objects, arrays and broken
/// strings are no values of attributes. An optional attribute that has such a value is its JSON text.
fn scalar<'a>(name: &str, raw: &'a RawValue) -> Result<Option<Cow<'a, str>>, String> {
    let text = match raw.get().as_bytes() {
        b"null" => return Ok(None),
        [b'"', ..] => string(raw),
        [b'{' | b'[', ..] => None,
        _ => Some(raw.get().into()),
    };
    match text {
        Some(text) => Ok(Some(text)),
        None if attributes::is_required(name) => Err(format!("attribute {} is no text", attributes::shown(name))),
        None => Ok(Some(raw.get().into())),
    }
}

fn string(raw: &RawValue) -> Option<Cow<'_, str>> {
    serde_json::from_str::<BorrowedText<'_>>(raw.get()).ok().map(|text| text.0)
}

/// Sets a member that may stand once.
fn only<'a>(slot: &mut Option<&'a RawValue>, raw: &'a RawValue, name: &str) -> Result<(), String> {
    match slot.replace(raw) {
        Some(_) => Err(format!("{name} is there twice")),
        None => Ok(()),
    }
}

/// The application's headers among the native ones.
fn application_headers(wire: &WireMessage<'_>) -> Headers {
    let applications = |name: &str| {
        native_headers::prefixed(name).is_none()
            && internal_headers::own(name).is_none()
            && !native_headers::is_counter(name)
    };
    wire.headers.iter().filter(|(name, _)| applications(name)).map(|(name, value)| (&**name, &**value)).collect()
}

/// A JSON string, borrowed from the document where it has no escapes.
#[derive(Deserialize)]
struct BorrowedText<'a>(#[serde(borrow)] Cow<'a, str>);

/// The members of a JSON object in order. Their values are not parsed yet.
struct JsonMembers<'a>(Vec<(BorrowedText<'a>, &'a RawValue)>);

impl<'de> Deserialize<'de> for JsonMembers<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = JsonMembers<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::with_capacity(16);
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(JsonMembers(members))
            }
        }

        deserializer.deserialize_map(Object)
    }
}
