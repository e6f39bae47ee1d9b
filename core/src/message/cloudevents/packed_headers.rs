//! Application headers that the carrier would change: all of them packed into one text, or their order written beside
//! them.

use super::json_text::push_string;
use crate::{Headers, message::headers::MAX_HEADERS};

/// The headers' names in their order; `None` if they are sorted by name. Clients of AMQP 0-9-1 hold headers in sorted
/// maps, so sorted ones keep their order anyway.
pub(super) fn order(headers: &Headers) -> Option<String> {
    if headers.iter().map(|(key, _)| key).is_sorted() {
        return None;
    }
    Some(names(headers))
}

/// The headers' names in their order, with commas between.
pub(super) fn names(headers: &Headers) -> String {
    let names: Vec<&str> = headers.iter().map(|(key, _)| key).collect();
    names.join(",")
}

/// Brings the headers that `order` names into that order. The others follow in the order they had.
pub(super) fn reorder(headers: &mut Headers, order: &str) {
    let mut sorted = Headers::new();
    for name in order.split(',').take(MAX_HEADERS) {
        if let Some(value) = headers.remove(name) {
            sorted.push(name, value);
        }
    }
    for (name, value) in headers.iter() {
        sorted.push(name, value);
    }
    *headers = sorted;
}

/// All headers as one JSON array of pairs of name and value.
pub(super) fn pack(headers: &Headers) -> String {
    let mut out = String::with_capacity(headers.size() + 6 * headers.len() + 2);
    out.push('[');
    for (i, (key, value)) in headers.iter().enumerate() {
        out.push_str(if i == 0 { "[" } else { ",[" });
        push_string(&mut out, key);
        out.push(',');
        push_string(&mut out, value);
        out.push(']');
    }
    out.push(']');
    out
}

/// Reads what [`pack`] has written.
pub(super) fn unpack(text: &str) -> Result<Headers, String> {
    let pairs: Vec<(String, String)> =
        serde_json::from_str(text).map_err(|_| "the headers polybus packed are no JSON array of pairs")?;
    Ok(pairs.into_iter().collect())
}
