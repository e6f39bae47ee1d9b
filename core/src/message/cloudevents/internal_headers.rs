//! The headers of polybus itself, which carry a [`CopyState`]: `polybus-…` among the native headers, `polybus…` in a
//! document.

use super::{CopyState, number_text};
use crate::message::DeadLetter;

/// Prefix of all native headers that polybus adds.
const PREFIX: &str = "polybus-";

/// The name behind the prefix if the native header is one of polybus; case is ignored in the prefix.
pub(super) fn own(header: &str) -> Option<&str> {
    let bytes = header.as_bytes();
    let own = bytes.len() >= PREFIX.len() && bytes[..PREFIX.len()].eq_ignore_ascii_case(PREFIX.as_bytes());
    if own { header.get(PREFIX.len()..) } else { None }
}

/// Hands `put` each part of the state that is set, under its native name.
pub(super) fn each(carried: &CopyState, put: &mut dyn FnMut(&str, &str)) {
    for (name, count) in
        [("polybus-hop", carried.hop), ("polybus-attempts", carried.attempts), ("polybus-redriven", carried.redriven)]
    {
        if count > 0 {
            number_text::number(count, |text| put(name, text));
        }
    }
    if let Some(mark) = &carried.mark {
        put("polybus-mark", mark);
    }
    let Some(dead) = carried.dead_letter.as_deref() else { return };
    for (name, text) in [
        ("polybus-dead-reason", &dead.reason),
        ("polybus-dead-detail", &dead.detail),
        ("polybus-dead-origin", &dead.origin),
    ] {
        if let Some(text) = text {
            put(name, text);
        }
    }
    if let Some(attempt) = dead.attempt {
        number_text::number(attempt, |text| put("polybus-dead-attempt", text));
    }
    if let Some(time) = dead.time {
        number_text::time(time, |text| put("polybus-dead-time", text));
    }
}

/// Sets one field by its name without the prefix, in native or structured spelling. A value that cannot be read counts
/// as absent: anybody can write these headers, and a wrong one must not cost the message.
pub(super) fn set(carried: &mut CopyState, name: &str, value: &str) {
    let mut dead = |set: &mut dyn FnMut(&mut DeadLetter)| set(carried.dead_letter.get_or_insert_default());
    match name {
        "dead-reason" | "deadreason" => dead(&mut |d| d.reason = Some(value.into())),
        "dead-detail" | "deaddetail" => dead(&mut |d| d.detail = Some(value.into())),
        "dead-origin" | "deadorigin" => dead(&mut |d| d.origin = Some(value.into())),
        "dead-attempt" | "deadattempt" => dead(&mut |d| d.attempt = number_text::parse_number(value)),
        "dead-time" | "deadtime" => dead(&mut |d| d.time = number_text::parse_time(value)),
        "hop" => carried.hop = number_text::parse_number(value).unwrap_or(0),
        "redriven" => carried.redriven = number_text::parse_number(value).unwrap_or(0),
        "mark" => carried.mark = Some(value.into()),
        "attempts" => carried.attempts = number_text::parse_number(value).unwrap_or(0),
        _ => {}
    }
}

/// Fills in from the document what the native headers did not tell. Native headers count first, since an adapter that
/// copies a body as it came can only write headers.
pub(super) fn fill(carried: &mut CopyState, document: CopyState) {
    // A hop among the native headers says that polybus wrote them for this copy. What they leave out is then absent.
    if carried.hop > 0 {
        return;
    }
    carried.hop = document.hop;
    if carried.attempts == 0 {
        carried.attempts = document.attempts;
    }
    if carried.redriven == 0 {
        carried.redriven = document.redriven;
    }
    if carried.mark.is_none() {
        carried.mark = document.mark;
    }
    if carried.dead_letter.is_none() {
        carried.dead_letter = document.dead_letter;
    }
}
