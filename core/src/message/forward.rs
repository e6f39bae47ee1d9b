//! Makes a received message publishable again, for bridges: the work behind
//! [`Envelope::forward`](super::Envelope::forward).

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::{
    Headers,
    message::{
        EnvelopeFields,
        cloudevents::is_counter,
        envelope::{is_extension_name, is_rfc3339},
        headers::{MAX_HEADER_KEY, MAX_HEADERS, MAX_METADATA, check_header_key},
    },
    topology::names::{MAX_EVENT_TYPE, MAX_KEY, check_event_type, fit},
};

/// Prefix of headers that hold what could not stay where it was.
const PREFIX: &str = "forwarded.";
/// The header that holds all headers beyond the limit, as a JSON object.
const MORE: &str = "forwarded.more";
/// The header that names what was left behind, one name a line.
const DROPPED: &str = "forwarded.dropped";
/// Bytes that are left free for [`DROPPED`].
const ROOM: usize = 1024;

/// Changes the fields that may not be published as they are. The order of the steps matters: later ones count headers
/// that earlier ones add.
pub(crate) fn forward(fields: &mut EnvelopeFields) {
    let mut headers = Headers::new();
    if let Some(key) = fields.key.take() {
        match fit(&key, MAX_KEY) {
            fits if fits.is_empty() => {}
            fits => {
                keep(&mut headers, "key", &key, fits != *key);
                fields.key = Some(fits.into());
            }
        }
    }
    let event_type = legal_type(&fields.event_type);
    keep(&mut headers, "type", &fields.event_type, event_type != *fields.event_type);
    fields.event_type = event_type.into();
    for (name, slot) in [("time", &mut fields.time), ("expirytime", &mut fields.expires_at)] {
        if let Some(time) = slot.filter(|time| !is_rfc3339(*time)) {
            keep(&mut headers, name, &time.to_string(), true);
            *slot = None;
        }
    }
    for (name, value) in std::mem::take(&mut fields.extensions).iter() {
        let free = fields.extensions.len() < MAX_HEADERS && fields.extensions.iter().all(|(other, _)| other != name);
        match free && is_extension_name(name) {
            true => fields.extensions.push(name, value),
            false => keep(&mut headers, name, value, true),
        }
    }
    let own = headers;
    let mut headers = Headers::new();
    let mut names = UniqueHeaderNames::default();
    for (name, value) in std::mem::take(&mut fields.headers).iter().filter(|(name, _)| !is_counter(name)) {
        headers.push(names.unique(name), value);
    }
    for (name, value) in own.iter() {
        headers.push(names.unique(name), value);
    }
    fields.headers = headers;
    if fields.id.is_empty() {
        fields.id = uuid::Uuid::now_v7().hyphenated().to_string().into();
    }
    pack_what_is_too_many(&mut fields.headers);
    make_room(fields);
}

/// Keeps a value that was changed elsewhere in a header of its own.
fn keep(headers: &mut Headers, name: &str, value: &str, changed: bool) {
    if changed {
        headers.push(format!("{PREFIX}{name}"), value);
    }
}

/// The type with `_` for each character that no type may have, without empty segments, and cut to the limit.
fn legal_type(event_type: &str) -> String {
    if check_event_type(event_type).is_ok() {
        return event_type.to_owned();
    }
    let legal = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') { c } else { '_' };
    let text: String = event_type.chars().map(legal).collect();
    let segments: Vec<&str> = text.split('.').filter(|segment| !segment.is_empty()).collect();
    match segments.is_empty() {
        true => "forwarded".to_owned(),
        // The cut may end with a dot. That is no empty segment, since the hash follows it.
        false => fit(&segments.join("."), MAX_EVENT_TYPE),
    }
}

/// Header names that are taken. A foreign message may have ten thousand headers of one name, so the number that follows
/// a name is remembered instead of tried from 2 each time.
#[derive(Default)]
struct UniqueHeaderNames {
    taken: HashSet<String>,
    /// By the name that was wanted: the number to try next.
    next: HashMap<String, usize>,
}

impl UniqueHeaderNames {
    /// The name itself if it may be published and is not taken; otherwise one made of it.
    fn unique(&mut self, name: &str) -> String {
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

/// Packs the last headers into one where there are more than the limit.
fn pack_what_is_too_many(headers: &mut Headers) {
    // One is left free for the header that names what is left behind.
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

/// Drops the longest until the rest fits, and names them in a header.
fn make_room(fields: &mut EnvelopeFields) {
    let mut dropped: Vec<String> = Vec::new();
    let mut room = MAX_METADATA;
    loop {
        if fields.metadata_size() <= room {
            break;
        }
        room = MAX_METADATA - ROOM;
        let Some(name) = drop_longest(fields) else { break };
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
    fields.headers.push(DROPPED, names);
}

/// Drops the longest of headers, extensions and optional attributes, and answers its name. An id or source that is
/// longer than all of them is shortened instead.
fn drop_longest(fields: &mut EnvelopeFields) -> Option<String> {
    let longest = |headers: &Headers| {
        let found = headers.iter().max_by_key(|(_, value)| value.len());
        found.map(|(name, value)| (name.to_owned(), name.len() + value.len()))
    };
    let (header, extension) = (longest(&fields.headers), longest(&fields.extensions));
    let optional = [
        ("subject", &mut fields.subject),
        ("dataschema", &mut fields.data_schema),
        ("datacontenttype", &mut fields.content_type),
        ("correlationid", &mut fields.correlation_id),
        ("causationid", &mut fields.causation_id),
        ("traceparent", &mut fields.traceparent),
        ("tracestate", &mut fields.tracestate),
    ];
    let optional = optional.into_iter().filter_map(|(name, slot)| Some((name, slot.as_ref()?.len(), slot)));
    let optional = optional.max_by_key(|(_, len, _)| *len);
    let len = |found: &Option<(String, usize)>| found.as_ref().map_or(0, |(_, len)| *len);
    let most = len(&header).max(len(&extension)).max(optional.as_ref().map_or(0, |(_, len, _)| *len));
    // A shortened id or source ends in a hash of the whole, so it stays unique.
    if let Some((name, slot)) = [("id", &mut fields.id), ("source", &mut fields.source)]
        .into_iter()
        .find(|(_, slot)| slot.len() > most.max(512))
    {
        *slot = fit(slot, 512).into();
        return Some(name.to_owned());
    }
    match (header, extension, optional) {
        (Some((name, len)), _, _) if len == most => fields.headers.remove(&name).map(|_| name),
        (_, Some((name, len)), _) if len == most => fields.extensions.remove(&name).map(|_| name),
        (_, _, Some((name, _, slot))) => slot.take().map(|_| name.to_owned()),
        _ => None,
    }
}
