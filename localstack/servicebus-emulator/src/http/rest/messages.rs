//! Translates messages to and from HTTP: properties are headers, and the body is the body.
//!
//! HTTP does not keep the case of a header's name, so the names of properties that came as headers are in lower case.

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use serde_json::{Map, Value as Json};

use super::broker_properties::{self, http_date};
use crate::broker::DeliveredMessage;
use crate::codec::{Value, ValueReader, put_binary, put_descriptor};
use crate::message::{DATA, Message};
use crate::refusal::{Refusal, invalid};

pub(super) const BROKER_PROPERTIES: HeaderName = HeaderName::from_static("brokerproperties");

/// Headers that belong to HTTP or to its clients and are no properties of a message.
const RESERVED: [&str; 32] = [
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "authorization",
    "brokerproperties",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "date",
    "expect",
    "forwarded",
    "from",
    "host",
    "if-match",
    "keep-alive",
    "location",
    "max-forwards",
    "origin",
    "pragma",
    "proxy-authorization",
    "proxy-connection",
    "referer",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];

fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name) || name.starts_with("x-ms-") || name.starts_with("sec-")
}

/// One message from the headers and the body of a request.
pub(crate) fn from_request(headers: &HeaderMap, body: &[u8]) -> Result<Message, Refusal> {
    let mut message = Message::default();
    message.properties.content_type = headers.get(CONTENT_TYPE).map(text);
    if let Some(header) = headers.get(BROKER_PROPERTIES) {
        let properties = serde_json::from_slice(header.as_bytes());
        let properties =
            properties.map_err(|error| invalid(format!("BrokerProperties is no JSON object: {error}.")))?;
        broker_properties::apply(&properties, &mut message)?;
    }
    let own = headers.iter().filter(|(name, _)| !is_reserved(name.as_str()));
    message.application_properties =
        own.map(|(name, value)| (name.as_str().to_owned(), from_header(&text(value)))).collect();
    Ok(complete(message, body))
}

/// The messages of a batch, a JSON array of objects with `Body`, `BrokerProperties` and `UserProperties`.
pub(crate) fn from_batch(body: &[u8]) -> Result<Vec<Message>, Refusal> {
    let parsed: Vec<Map<String, Json>> = serde_json::from_slice(body)
        .map_err(|error| invalid(format!("The batch is no JSON array of objects: {error}.")))?;
    parsed.into_iter().map(from_batch_item).collect()
}

fn from_batch_item(item: Map<String, Json>) -> Result<Message, Refusal> {
    let mut message = Message::default();
    let object = |name: &str| match item.get(name) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::Object(object)) => Ok(Some(object)),
        Some(_) => Err(invalid(format!("'{name}' of a message is no JSON object."))),
    };
    if let Some(properties) = object("BrokerProperties")? {
        broker_properties::apply(properties, &mut message)?;
    }
    for (name, value) in object("UserProperties")?.into_iter().flatten() {
        let value = scalar(value).ok_or_else(|| invalid(format!("The user property '{name}' is no simple value.")))?;
        message.application_properties.push((name.clone(), value));
    }
    let body = match item.get("Body") {
        None | Some(Json::Null) => "",
        Some(Json::String(body)) => body,
        Some(_) => return Err(invalid("'Body' of a message is no string.".to_owned())),
    };
    Ok(complete(message, body.as_bytes()))
}

fn complete(mut message: Message, body: &[u8]) -> Message {
    let mut section = Vec::with_capacity(body.len() + 8);
    put_descriptor(&mut section, DATA);
    put_binary(&mut section, body);
    message.body = section.into();
    message.encoded_size = message.encode().len();
    message
}

/// A header's value is a JSON string, number or truth value; anything else is text as it stands.
fn from_header(text: &str) -> Value {
    serde_json::from_str(text).ok().and_then(|json| scalar(&json)).unwrap_or_else(|| Value::string(text))
}

fn scalar(json: &Json) -> Option<Value> {
    Some(match json {
        Json::Null => Value::Null,
        Json::Bool(truth) => Value::Bool(*truth),
        Json::String(text) => Value::string(text),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(n), _) => i32::try_from(n).map_or(Value::Long(n), Value::Int),
            (None, Some(n)) => Value::Double(n),
            (None, None) => return None,
        },
        Json::Array(_) | Json::Object(_) => return None,
    })
}

fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// Adds a message's properties to the headers of an answer. A name that HTTP does not allow is omitted.
pub(super) fn put_headers(delivered: &DeliveredMessage, headers: &mut HeaderMap) {
    let message = &delivered.message;
    for (name, value) in &message.application_properties {
        let name = HeaderName::try_from(name.as_str()).ok().filter(|name| !is_reserved(name.as_str()));
        if let (Some(name), Some(value)) = (name, to_header(value)) {
            headers.append(name, value);
        }
    }
    let content_type = message.properties.content_type.as_deref();
    if let Some(content_type) = content_type.and_then(|text| HeaderValue::try_from(text).ok()) {
        headers.insert(CONTENT_TYPE, content_type);
    }
    let properties = Json::Object(broker_properties::of(delivered)).to_string();
    if let Ok(properties) = HeaderValue::try_from(ascii(&properties)) {
        headers.insert(BROKER_PROPERTIES, properties);
    }
}

fn to_header(value: &Value) -> Option<HeaderValue> {
    let quoted = |text: &str| ascii(&Json::from(text).to_string());
    let text = match value {
        Value::String(text) | Value::Symbol(text) => quoted(text),
        Value::Char(c) => quoted(&c.to_string()),
        Value::Bool(truth) => truth.to_string(),
        Value::Float(n) => n.to_string(),
        Value::Double(n) => n.to_string(),
        Value::Uuid(_) => quoted(&broker_properties::id_text(value)),
        Value::Timestamp(ms) => quoted(&http_date(*ms)),
        Value::Ulong(n) => n.to_string(),
        Value::Null => "null".to_owned(),
        other => other.as_i64()?.to_string(),
    };
    HeaderValue::try_from(text).ok()
}

/// JSON in ASCII, for a header.
fn ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let mut units = [0; 2];
    for c in json.chars() {
        if c.is_ascii() && c != '\u{7f}' {
            out.push(c);
        } else {
            out.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    out
}

/// The bytes of the body: its data sections, or its value when that is text or binary. Any other value stays encoded.
pub(crate) fn body(message: &Message) -> Bytes {
    let mut data = Vec::with_capacity(message.body.len());
    let mut reader = ValueReader::new(&message.body);
    while !reader.is_empty() {
        let Ok(descriptor) = reader.descriptor() else { return message.body.clone() };
        if is_data(&descriptor) {
            let Ok(bytes) = reader.binary() else { return message.body.clone() };
            data.extend_from_slice(bytes);
        } else {
            return match reader.value() {
                Ok(Value::String(text)) => text.into(),
                Ok(Value::Binary(bytes)) => bytes,
                _ => message.body.clone(),
            };
        }
    }
    data.into()
}

fn is_data(descriptor: &Value) -> bool {
    matches!(descriptor, Value::Ulong(DATA)) || descriptor.as_text() == Some("amqp:data:binary")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::Condition;

    #[test]
    fn headers_that_are_not_https_become_properties() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", "h"),
            ("x-ms-date", "d"),
            ("content-type", "text/plain"),
            ("brokerproperties", "{\"Label\":\"l\"}"),
            ("quoted", "\"a \\u00fc\""),
            ("plain", "a b"),
            ("phone", "0123"),
            ("int", "5"),
            ("long", "5000000000"),
            ("double", "2.5"),
            ("yes", "true"),
            ("list", "[1]"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let message = from_request(&headers, b"body").unwrap();
        assert_eq!(message.properties.content_type.as_deref(), Some("text/plain"));
        assert_eq!(message.properties.subject.as_deref(), Some("l"));
        let expected = [
            ("quoted", Value::string("a ü")),
            ("plain", Value::string("a b")),
            ("phone", Value::string("0123")),
            ("int", Value::Int(5)),
            ("long", Value::Long(5_000_000_000)),
            ("double", Value::Double(2.5)),
            ("yes", Value::Bool(true)),
            ("list", Value::string("[1]")),
        ];
        assert_eq!(message.application_properties.len(), expected.len());
        for (name, value) in expected {
            assert_eq!(message.application_property(name), Some(&value), "{name}");
        }
        assert_eq!(&body(&message)[..], b"body");
        assert_eq!(message.encoded_size, message.encode().len());
    }

    #[test]
    fn values_survive_a_header() {
        for value in [
            Value::string("a \"ü\" 😀\n\u{7f}"),
            Value::Int(-5),
            Value::Long(1 << 40),
            Value::Double(2.5),
            Value::Bool(false),
            Value::Null,
        ] {
            let header = to_header(&value).unwrap();
            assert_eq!(from_header(header.to_str().unwrap()), value);
        }
        assert_eq!(to_header(&Value::List(Vec::new())), None);
    }

    #[test]
    fn a_batch_is_an_array() {
        let messages = from_batch(
            br#"[{"Body":"one","BrokerProperties":{"MessageId":"1"},"UserProperties":{"Colour":"red","n":1}},{"Body":"two"},{}]"#,
        )
        .unwrap();
        let bodies: Vec<Bytes> = messages.iter().map(body).collect();
        assert_eq!(bodies, ["one", "two", ""]);
        assert_eq!(messages[0].application_property("Colour"), Some(&Value::string("red")));
        for bad in
            ["", "{}", "[1]", r#"[{"Body":1}]"#, r#"[{"BrokerProperties":"x"}]"#, r#"[{"UserProperties":{"a":[]}}]"#]
        {
            assert_eq!(from_batch(bad.as_bytes()).expect_err(bad).condition, Condition::InvalidField, "{bad}");
        }
    }

    #[test]
    fn bodies_of_every_kind_have_bytes() {
        let mut message = Message::default();
        assert_eq!(&body(&message)[..], b"");
        message.set_body_value(&Value::string("text"));
        assert_eq!(&body(&message)[..], b"text");
        message.set_body_value(&Value::Int(5));
        assert_eq!(body(&message), message.body);
        let two = [complete(Message::default(), b"a").body, complete(Message::default(), b"b").body].concat();
        message.body = two.into();
        assert_eq!(&body(&message)[..], b"ab");
    }
}
