//! The CloudEvents attributes: which field of the envelope each one is.

use std::borrow::Cow;

use super::number_text;
use crate::message::{EnvelopeFields, Headers};

/// Before an attribute's name in a native header.
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

/// A message with more extension attributes is malformed: each is compared with those before it.
const MAX_EXTENSIONS: usize = 1024;
/// With `cloudEvents:` before it an attribute's name still fits into the 255 bytes that AMQP 0-9-1 has for a header's.
pub(crate) const MAX_EXTENSION_NAME: usize = 240;

/// Hands `put` each attribute that is set, under its native name, without content type and extensions.
pub(super) fn each(parts: &EnvelopeFields, put: &mut dyn FnMut(&str, &str)) {
    put("cloudEvents:specversion", "1.0");
    put("cloudEvents:id", &parts.id);
    put("cloudEvents:type", &parts.event_type);
    put("cloudEvents:source", &parts.source);
    if let Some(time) = parts.time {
        number_text::time(time, |text| put("cloudEvents:time", text));
    }
    if let Some(version) = parts.schema_version {
        number_text::number(version, |text| put("cloudEvents:schemaversion", text));
    }
    if let Some(sequence) = parts.sequence {
        number_text::number(sequence, |text| put("cloudEvents:sequence", text));
    }
    if let Some(time) = parts.expires_at {
        number_text::time(time, |text| put("cloudEvents:expirytime", text));
    }
    for (name, value) in [
        ("cloudEvents:subject", &parts.subject),
        ("cloudEvents:dataschema", &parts.data_schema),
        ("cloudEvents:correlationid", &parts.correlation_id),
        ("cloudEvents:causationid", &parts.causation_id),
        ("cloudEvents:partitionkey", &parts.key),
        ("cloudEvents:traceparent", &parts.traceparent),
        ("cloudEvents:tracestate", &parts.tracestate),
    ] {
        if let Some(value) = value {
            put(name, value);
        }
    }
}

/// What became of an attribute.
#[derive(PartialEq, Eq)]
pub(super) enum Set {
    /// It is part of the event.
    Taken,
    /// No attribute can be named so: it belongs among the headers, so that it is not lost.
    Misnamed,
}

/// Sets the field of one attribute, its name in any case. `specversion` is checked elsewhere and ignored here, and so is what
/// a later polybus may send along.
///
/// An optional attribute that cannot be read (a time without an offset, a number by other rules) stays readable as an extension: it
/// never costs the event. The error is a reason for a person, without the value.
pub(super) fn set(parts: &mut EnvelopeFields, name: &str, value: Cow<'_, str>) -> Result<Set, String> {
    let name = lower(name);
    match &*name {
        "specversion" => Ok(()),
        "id" => required(&mut parts.id, &name, value),
        "type" => required(&mut parts.event_type, &name, value),
        "source" => required(&mut parts.source, &name, value),
        "time" => read(&mut parts.time, &mut parts.extensions, &name, number_text::parse_time(&value), value),
        "expirytime" => {
            read(&mut parts.expires_at, &mut parts.extensions, &name, number_text::parse_time(&value), value)
        }
        "schemaversion" => {
            read(&mut parts.schema_version, &mut parts.extensions, &name, number_text::parse_number(&value), value)
        }
        "sequence" => read(&mut parts.sequence, &mut parts.extensions, &name, number_text::parse_number(&value), value),
        "subject" => once(&mut parts.subject, &name, value.into()),
        "dataschema" => once(&mut parts.data_schema, &name, value.into()),
        "datacontenttype" => once(&mut parts.content_type, &name, value.into()),
        "correlationid" => once(&mut parts.correlation_id, &name, value.into()),
        "causationid" => once(&mut parts.causation_id, &name, value.into()),
        "partitionkey" => once(&mut parts.key, &name, value.into()),
        "traceparent" => once(&mut parts.traceparent, &name, value.into()),
        "tracestate" => once(&mut parts.tracestate, &name, value.into()),
        // CloudEvents reserves them for the payload.
        "data" | "data_base64" => return Ok(Set::Misnamed),
        own if own.starts_with("polybus") => Ok(()),
        bad if !is_tolerable(bad) => return Ok(Set::Misnamed),
        _ => extension(&mut parts.extensions, &name, value),
    }
    .map(|()| Set::Taken)
}

/// Whether an event without it is none.
pub(super) fn is_required(name: &str) -> bool {
    matches!(&*lower(name), "specversion" | "id" | "type" | "source")
}

/// CloudEvents allows `[a-z0-9]+`; others are in use (`my_ext`), and kept if a native header can be named so.
fn is_tolerable(name: &str) -> bool {
    (1..=MAX_EXTENSION_NAME).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic() && b != b',')
}

/// Refuses a message that lacks a required attribute.
pub(super) fn complete(parts: &EnvelopeFields) -> Result<(), String> {
    for (name, value) in [("id", &parts.id), ("type", &parts.event_type), ("source", &parts.source)] {
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

/// The name in lower case, as CloudEvents wants it.
pub(super) fn lower(name: &str) -> Cow<'_, str> {
    if name.bytes().any(|b| b.is_ascii_uppercase()) { name.to_ascii_lowercase().into() } else { name.into() }
}

fn required(slot: &mut Box<str>, name: &str, value: Cow<'_, str>) -> Result<(), String> {
    if !slot.is_empty() && **slot != *value {
        return Err(twice(name));
    }
    *slot = value.into();
    Ok(())
}

fn once<T: PartialEq>(slot: &mut Option<T>, name: &str, value: T) -> Result<(), String> {
    if slot.as_ref().is_some_and(|old| *old != value) {
        return Err(twice(name));
    }
    *slot = Some(value);
    Ok(())
}

/// A value that may make no sense here, but does to others.
fn read<T: PartialEq>(
    slot: &mut Option<T>,
    extensions: &mut Headers,
    name: &str,
    parsed: Option<T>,
    value: Cow<'_, str>,
) -> Result<(), String> {
    match parsed {
        // Each name once, in whatever form: a copy has room for one.
        Some(_) if extensions.get(name).is_some() => Err(twice(name)),
        Some(parsed) => once(slot, name, parsed),
        None if slot.is_some() => Err(twice(name)),
        None => extension(extensions, name, value),
    }
}

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

/// A name from the wire, short enough for a reason.
pub(super) fn shown(name: &str) -> String {
    format!("{:?}", name.chars().take(64).collect::<String>())
}
