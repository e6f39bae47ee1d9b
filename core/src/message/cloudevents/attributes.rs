//! The CloudEvents attributes: which field of the envelope each one is, and how it is written and read.

use std::borrow::Cow;

use super::number_text;
use crate::{Headers, message::EnvelopeFields};

/// Prefix of an attribute's name in a native header.
pub(super) const PREFIX: &str = "cloudEvents:";

/// Attributes that have a meaning to CloudEvents or polybus: no extension may be published under their names.
pub(crate) const KNOWN: [&str; 18] = [
    "specversion",
    "id",
    "type",
    "source",
    "time",
    "subject",
    "schemaversion",
    "dataschema",
    "datacontenttype",
    "correlationid",
    "causationid",
    "partitionkey",
    "sequence",
    "expirytime",
    "traceparent",
    "tracestate",
    "data",
    "data_base64",
];

/// A message with more extension attributes is malformed. Each one is compared with all before it, so there must be a
/// limit.
const MAX_EXTENSIONS: usize = 1024;
/// With `cloudEvents:` before it an attribute's name still fits into the 255 bytes that AMQP 0-9-1 has for a header's.
pub(crate) const MAX_EXTENSION_NAME: usize = 240;

/// Hands `put` each attribute that is set, under its native name. Content type and extensions are not among them.
pub(super) fn each(fields: &EnvelopeFields, put: &mut dyn FnMut(&str, &str)) {
    put("cloudEvents:specversion", "1.0");
    put("cloudEvents:id", &fields.id);
    put("cloudEvents:type", &fields.event_type);
    put("cloudEvents:source", &fields.source);
    if let Some(time) = fields.time {
        number_text::time(time, |text| put("cloudEvents:time", text));
    }
    if let Some(version) = fields.schema_version {
        number_text::number(version, |text| put("cloudEvents:schemaversion", text));
    }
    if let Some(sequence) = fields.sequence {
        number_text::number(sequence, |text| put("cloudEvents:sequence", text));
    }
    if let Some(time) = fields.expires_at {
        number_text::time(time, |text| put("cloudEvents:expirytime", text));
    }
    for (name, value) in [
        ("cloudEvents:subject", &fields.subject),
        ("cloudEvents:dataschema", &fields.data_schema),
        ("cloudEvents:correlationid", &fields.correlation_id),
        ("cloudEvents:causationid", &fields.causation_id),
        ("cloudEvents:partitionkey", &fields.key),
        ("cloudEvents:traceparent", &fields.traceparent),
        ("cloudEvents:tracestate", &fields.tracestate),
    ] {
        if let Some(value) = value {
            put(name, value);
        }
    }
}

/// Where an attribute belongs.
#[derive(PartialEq, Eq)]
pub(super) enum AttributePlacement {
    /// It is part of the event.
    InEvent,
    /// No attribute can have its name. It belongs among the headers, so that it is not lost.
    Misnamed,
}

/// Sets the field of one attribute. The case of its name is ignored.
///
/// `specversion` is ignored, since it is checked elsewhere, and so are the `polybus…` attributes of later versions. An
/// optional attribute that cannot be read, such as a time without an offset, becomes an extension: it never makes the
/// event unreadable. The error is a reason for a person, and does not quote the value.
pub(super) fn set(fields: &mut EnvelopeFields, name: &str, value: Cow<'_, str>) -> Result<AttributePlacement, String> {
    let name = lower(name);
    match &*name {
        "specversion" => Ok(()),
        "id" => required(&mut fields.id, &name, value),
        "type" => required(&mut fields.event_type, &name, value),
        "source" => required(&mut fields.source, &name, value),
        "time" => read(&mut fields.time, &mut fields.extensions, &name, number_text::parse_time(&value), value),
        "expirytime" => {
            read(&mut fields.expires_at, &mut fields.extensions, &name, number_text::parse_time(&value), value)
        }
        "schemaversion" => {
            read(&mut fields.schema_version, &mut fields.extensions, &name, number_text::parse_number(&value), value)
        }
        "sequence" => {
            read(&mut fields.sequence, &mut fields.extensions, &name, number_text::parse_number(&value), value)
        }
        "subject" => once(&mut fields.subject, &name, value.into()),
        "dataschema" => once(&mut fields.data_schema, &name, value.into()),
        "datacontenttype" => once(&mut fields.content_type, &name, value.into()),
        "correlationid" => once(&mut fields.correlation_id, &name, value.into()),
        "causationid" => once(&mut fields.causation_id, &name, value.into()),
        "partitionkey" => once(&mut fields.key, &name, value.into()),
        "traceparent" => once(&mut fields.traceparent, &name, value.into()),
        "tracestate" => once(&mut fields.tracestate, &name, value.into()),
        // CloudEvents reserves these two names for the payload.
        "data" | "data_base64" => return Ok(AttributePlacement::Misnamed),
        own if own.starts_with("polybus") => Ok(()),
        bad if !is_tolerable(bad) => return Ok(AttributePlacement::Misnamed),
        _ => extension(&mut fields.extensions, &name, value),
    }
    .map(|()| AttributePlacement::InEvent)
}

/// Whether CloudEvents requires this attribute.
pub(super) fn is_required(name: &str) -> bool {
    matches!(&*lower(name), "specversion" | "id" | "type" | "source")
}

/// Whether an extension may keep this name. CloudEvents allows `[a-z0-9]+`; others (`my_ext`) are in use, and are kept
/// if a native header can have the name.
fn is_tolerable(name: &str) -> bool {
    (1..=MAX_EXTENSION_NAME).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic() && b != b',')
}

/// Refuses a message that lacks a required attribute.
pub(super) fn complete(fields: &EnvelopeFields) -> Result<(), String> {
    for (name, value) in [("id", &fields.id), ("type", &fields.event_type), ("source", &fields.source)] {
        if value.is_empty() {
            return Err(format!("attribute {name} is missing or empty"));
        }
    }
    Ok(())
}

/// Refuses a `specversion` whose events may look different.
pub(super) fn check_version(version: &str) -> Result<(), String> {
    let version = version.trim();
    if version == "1" || version.strip_prefix("1.").is_some_and(|minor| minor.parse::<u32>().is_ok()) {
        return Ok(());
    }
    Err(format!("CloudEvents specversion {}: only 1.x can be read", shown(version)))
}

/// The name in lower case, as CloudEvents demands it.
pub(super) fn lower(name: &str) -> Cow<'_, str> {
    if name.bytes().any(|b| b.is_ascii_uppercase()) { name.to_ascii_lowercase().into() } else { name.into() }
}

/// Sets a required attribute. A second one with another value is an error.
fn required(slot: &mut Box<str>, name: &str, value: Cow<'_, str>) -> Result<(), String> {
    if !slot.is_empty() && **slot != *value {
        return Err(twice(name));
    }
    *slot = value.into();
    Ok(())
}

/// Sets an optional attribute. A second one with another value is an error.
fn once<T: PartialEq>(slot: &mut Option<T>, name: &str, value: T) -> Result<(), String> {
    if slot.as_ref().is_some_and(|old| *old != value) {
        return Err(twice(name));
    }
    *slot = Some(value);
    Ok(())
}

/// Sets an attribute whose text was parsed. Text that could not be parsed is kept as an extension.
fn read<T: PartialEq>(
    slot: &mut Option<T>,
    extensions: &mut Headers,
    name: &str,
    parsed: Option<T>,
    value: Cow<'_, str>,
) -> Result<(), String> {
    match parsed {
        // A name may stand once, as a field or as an extension, since a copy of the message writes it once.
        Some(_) if extensions.get(name).is_some() => Err(twice(name)),
        Some(parsed) => once(slot, name, parsed),
        None if slot.is_some() => Err(twice(name)),
        None => extension(extensions, name, value),
    }
}

/// Adds an extension. A second one of the name with another value is an error.
fn extension(extensions: &mut Headers, name: &str, value: Cow<'_, str>) -> Result<(), String> {
    match extensions.get(name) {
        Some(old) if *old == *value => Ok(()),
        Some(_) => Err(twice(name)),
        None if extensions.len() == MAX_EXTENSIONS => Err(format!("more than {MAX_EXTENSIONS} extension attributes")),
        None => {
            extensions.push(name, value);
            Ok(())
        }
    }
}

fn twice(name: &str) -> String {
    format!("attribute {} is there twice, with different values", shown(name))
}

/// A name from the wire, quoted and cut to a length that a reason can hold.
pub(super) fn shown(name: &str) -> String {
    format!("{:?}", name.chars().take(64).collect::<String>())
}
