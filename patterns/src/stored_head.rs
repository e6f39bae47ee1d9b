//! The column `head` of rows and jobs: attributes and headers of a message as JSON.
//!
//! `{"content_type": "application/json", "headers": [["cloudEvents:id", "7"], …]}`: the pairs are those of CloudEvents'
//! binary mode, so that a row written by a newer version is read as its message on a broker would be.

use std::borrow::Cow;

use bytes::Bytes;
use polybus_core::{
    Envelope, Error, ErrorKind, Result,
    message::cloudevents::{CopyState, WireMessage, decode, encode_binary},
};
use serde_json::{Value, json};

pub(crate) fn encode_head(envelope: &Envelope) -> String {
    let mut headers: Vec<Value> = Vec::new();
    encode_binary(envelope, &CopyState::default(), &mut |name, value| headers.push(json!([name, value])));
    json!({ "content_type": envelope.content_type.as_deref(), "headers": headers }).to_string()
}

/// The message of a row.
///
/// # Errors
/// `Malformed` for a head that no version of polybus writes.
pub(crate) fn decode_head(head: &str, data: Bytes) -> Result<Envelope> {
    let malformed = |why: &str| Error::new(ErrorKind::Malformed, format!("the row's head cannot be read: {why}"));
    let head: Value = serde_json::from_str(head).map_err(|e| malformed("it is no JSON").with_source(e))?;
    let pairs = head.get("headers").and_then(Value::as_array).ok_or_else(|| malformed("it has no headers"))?;
    let mut headers = Vec::with_capacity(pairs.len());
    for pair in pairs {
        let text = |i: usize| pair.get(i).and_then(Value::as_str);
        let (Some(name), Some(value)) = (text(0), text(1)) else { return Err(malformed("a header is no pair")) };
        headers.push((Cow::Borrowed(name), Cow::Borrowed(value)));
    }
    let content_type = head.get("content_type").and_then(Value::as_str);
    let decoded = decode(WireMessage { content_type, headers, body: data, ..WireMessage::default() });
    if let Some(why) = decoded.malformed {
        return Err(malformed(&why));
    }
    if &*decoded.envelope.event_type == Envelope::FOREIGN_TYPE {
        return Err(malformed("it has no id, type or source"));
    }
    // `decode` reads a missing content type as none, and so it was.
    Ok(decoded.envelope)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use polybus_core::{ErrorKind, time::OffsetDateTime};

    use super::*;

    #[test]
    fn a_message_comes_back_as_it_was() {
        let rich = Envelope::new("order.placed", vec![0, 159, 146, 150])
            .source("/shop")
            .key("a\u{0}b \u{1F980}")
            .subject("orders/7")
            .sequence(7)
            .schema_version(3)
            .expires_at(OffsetDateTime::from_unix_timestamp(4_000_000_000).unwrap())
            .correlation_id("c")
            .causation_id("d")
            .header("tenant", "acme \"quoted\"\n")
            .header("Content-Type", "x")
            .edit(|fields| fields.extensions.push("myext", "1"));
        let plain = Envelope::bare("order.placed", "").id("1").source("/shop");
        let structured = plain.clone().content_type("application/cloudevents+json");
        for message in [rich, plain, structured] {
            let back = decode_head(&encode_head(&message), message.data.clone()).unwrap();
            assert_eq!(*back, *message);
        }
    }

    #[test]
    fn what_no_version_wrote_is_malformed() {
        for head in ["", "{}", r#"{"headers":[["a"]]}"#, r#"{"headers":[]}"#, r#"{"headers":[["cloudEvents:id","1"]]}"#]
        {
            assert_eq!(decode_head(head, Bytes::new()).unwrap_err().kind(), ErrorKind::Malformed, "{head}");
        }
    }
}
