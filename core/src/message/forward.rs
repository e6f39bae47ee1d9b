//! Making what was received publishable: a bridge's part of the work.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::{
    message::{
        EnvelopeFields, Headers,
        cloudevents::is_counter,
        envelope::{is_extension_name, is_rfc3339},
        headers::{MAX_HEADER_KEY, MAX_HEADERS, MAX_METADATA, check_header_key},
    },
    topology::names::{MAX_EVENT_TYPE, MAX_KEY, check_event_type, fit},
};

/// Before a name that could not stay as it was.
const PREFIX: &str = "forwarded.";
/// All headers beyond the most that there may be, as a JSON object.
const MORE: &str = "forwarded.more";
/// The names of what had no room, in lines.
const DROPPED: &str = "forwarded.dropped";
/// Bytes left free for [`DROPPED`].
const ROOM: usize = 1024;

pub(crate) fn forward(parts: &mut EnvelopeFields) {
    let mut headers = Headers::new();
    if let Some(key) = parts.key.take() {
        match fit(&key, MAX_KEY) {
            fits if fits.is_empty() => {}
            fits => {
                keep(&mut headers, "key", &key, fits != *key);
                parts.key = Some(fits.into());
            }
        }
    }
    let event_type = legal_type(&parts.event_type);
    keep(&mut headers, "type", &parts.event_type, event_type != *parts.event_type);
    parts.event_type = event_type.into();
    for (name, slot) in [("time", &mut parts.time), ("expirytime", &mut parts.expires_at)] {
        if let Some(time) = slot.filter(|time| !is_rfc3339(*time)) {
            keep(&mut headers, name, &time.to_string(), true);
            *slot = None;
        }
    }
    for (name, value) in std::mem::take(&mut parts.extensions).iter() {
        let free = parts.extensions.len() < MAX_HEADERS && parts.extensions.iter().all(|(other, _)| other != name);
        match free && is_extension_name(name) {
            true => parts.extensions.push(name, value),
            false => keep(&mut headers, name, value, true),
        }
    }
    let own = headers;
    let mut headers = Headers::new();
    let mut names = Names::default();
    for (name, value) in std::mem::take(&mut parts.headers).iter().filter(|(name, _)| !is_counter(name)) {
        headers.push(names.free(name), value);
    }
    for (name, value) in own.iter() {
        headers.push(names.free(name), value);
    }
    parts.headers = headers;
    if parts.id.is_empty() {
        parts.id = uuid::Uuid::now_v7().hyphenated().to_string().into();
    }
    pack_what_is_too_many(&mut parts.headers);
    make_room(parts);
}

fn keep(headers: &mut Headers, name: &str, value: &str, changed: bool) {
    if changed {
        headers.push(format!("{PREFIX}{name}"), value);
    }
}

/// The type with `_` for what no type may have, and no empty segment.
fn legal_type(event_type: &str) -> String {
    if check_event_type(event_type).is_ok() {
        return event_type.to_owned();
    }
    let legal = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') { c } else { '_' };
    let text: String = event_type.chars().map(legal).collect();
    let segments: Vec<&str> = text.split('.').filter(|segment| !segment.is_empty()).collect();
    match segments.is_empty() {
        true => "forwarded".to_owned(),
        // A cut may end with a dot, but the hash follows it.
        false => fit(&segments.join("."), MAX_EVENT_TYPE),
    }
}

/// Names that are taken. A foreign message may have ten thousand headers of one name, so none is looked for twice.
#[derive(Default)]
struct Names {
    taken: HashSet<String>,
    /// The number that follows the last one given, by the name that was wanted.
    next: HashMap<String, usize>,
}

impl Names {
    /// The name itself if it may be published and is not taken; else one made of it.
    fn free(&mut self, name: &str) -> String {
        let legal = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') { c } else { '_' };
        let mut wanted: String = name.chars().map(legal).collect();
        if wanted.is_empty() || check_header_key(&fit(&wanted, MAX_HEADER_KEY)).is_err() {
            wanted.insert_str(0, PREFIX);
        }
        let mut free = fit(&wanted, MAX_HEADER_KEY);
        let next = self.next.entry(wanted.to_ascii_lowercase()).or_insert(2);
        while [MORE, DROPPED].iter().any(|own| free.eq_ignore_ascii_case(own))
            || !self.taken.insert(free.to_ascii_lowercase())
        {
            free = fit(&format!("{wanted}_{next}"), MAX_HEADER_KEY);
            *next += 1;
        }
        free
    }
}

fn pack_what_is_too_many(headers: &mut Headers) {
    // One is left free for the names of what has no room.
    let most = MAX_HEADERS - 1;
    if headers.len() <= most {
        return;
    }
    let kept: Headers = headers.iter().take(most - 1).collect();
    let rest: BTreeMap<&str, &str> = headers.iter().skip(most - 1).collect();
    let packed = serde_json::to_string(&rest).unwrap_or_default();
    *headers = kept;
    headers.push(MORE, packed);
}

/// Drops the longest until the rest fits, and tells their names.
fn make_room(parts: &mut EnvelopeFields) {
    let mut dropped: Vec<String> = Vec::new();
    let mut room = MAX_METADATA;
    loop {
        if parts.metadata_size() <= room {
            break;
        }
        room = MAX_METADATA - ROOM;
        let Some(name) = drop_longest(parts) else { break };
        dropped.push(name);
    }
    if dropped.is_empty() {
        return;
    }
    let mut names = dropped.join("\n");
    if names.len() + DROPPED.len() > ROOM {
        let mut cut = ROOM - DROPPED.len() - 4;
        while !names.is_char_boundary(cut) {
            cut -= 1;
        }
        names.truncate(cut);
        names.push('…');
    }
    parts.headers.push(DROPPED, names);
}

/// Headers and extensions by the length of what they say; the identity is only shortened, and last.
fn drop_longest(parts: &mut EnvelopeFields) -> Option<String> {
    let longest = |headers: &Headers| {
        let found = headers.iter().max_by_key(|(_, value)| value.len());
        found.map(|(name, value)| (name.to_owned(), name.len() + value.len()))
    };
    let (header, extension) = (longest(&parts.headers), longest(&parts.extensions));
    let optional = [
        ("subject", &mut parts.subject),
        ("dataschema", &mut parts.data_schema),
        ("datacontenttype", &mut parts.content_type),
        ("correlationid", &mut parts.correlation_id),
        ("causationid", &mut parts.causation_id),
        ("traceparent", &mut parts.traceparent),
        ("tracestate", &mut parts.tracestate),
    ];
    let optional = optional.into_iter().filter_map(|(name, slot)| Some((name, slot.as_ref()?.len(), slot)));
    let optional = optional.max_by_key(|(_, len, _)| *len);
    let len = |found: &Option<(String, usize)>| found.as_ref().map_or(0, |(_, len)| *len);
    let most = len(&header).max(len(&extension)).max(optional.as_ref().map_or(0, |(_, len, _)| *len));
    // Of an identity that is longer than all of these, what stands for it is unique too.
    if let Some((name, slot)) =
        [("id", &mut parts.id), ("source", &mut parts.source)].into_iter().find(|(_, slot)| slot.len() > most.max(512))
    {
        *slot = fit(slot, 512).into();
        return Some(name.to_owned());
    }
    match (header, extension, optional) {
        (Some((name, len)), _, _) if len == most => parts.headers.remove(&name).map(|_| name),
        (_, Some((name, len)), _) if len == most => parts.extensions.remove(&name).map(|_| name),
        (_, _, Some((name, _, slot))) => slot.take().map(|_| name.to_owned()),
        _ => None,
    }
}
