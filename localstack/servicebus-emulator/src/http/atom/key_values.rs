//! Pairs of a name and a typed value in the XML of rules: `KeyValueOfstringanyType`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use uuid::Uuid;

use crate::broker::WITHOUT_ZONE;
use crate::codec::Value;
use crate::http::iso8601::{duration, parse_duration, parse_timestamp, timestamp};
use crate::http::xml::{Xml, XmlElement};
use crate::refusal::{Refusal, invalid};

const PAIR: &str = "KeyValueOfstringanyType";
const TIMESPAN: &str = "com.microsoft:timespan";
const TICKS_PER_MS: i64 = 10_000;

/// The pairs under an element of a rule.
pub(super) fn read(parent: Option<&XmlElement>) -> Result<Vec<(String, Value)>, Refusal> {
    let Some(parent) = parent else { return Ok(Vec::new()) };
    parent.children.iter().filter(|child| child.name == PAIR).map(pair).collect()
}

fn pair(pair: &XmlElement) -> Result<(String, Value), Refusal> {
    let key = pair.text_of("Key").ok_or_else(|| invalid("A key is missing.".to_owned()))?;
    let Some(value) = pair.child("Value") else { return Ok((key.to_owned(), Value::Null)) };
    let kind = value.attribute("type").unwrap_or("string");
    let kind = kind.rsplit_once(':').map_or(kind, |(_, kind)| kind);
    let parsed = parse(kind, &value.text)
        .ok_or_else(|| invalid(format!("The value of '{key}' is no {kind} that can be read.")))?;
    Ok((key.to_owned(), parsed))
}

fn parse(kind: &str, text: &str) -> Option<Value> {
    let trimmed = text.trim();
    Some(match kind {
        "string" => Value::string(text),
        "boolean" => Value::Bool(matches!(trimmed, "true" | "True" | "1")),
        "int" => Value::Int(trimmed.parse().ok()?),
        "long" => Value::Long(trimmed.parse().ok()?),
        "short" => Value::Short(trimmed.parse().ok()?),
        "byte" => Value::Byte(trimmed.parse().ok()?),
        "unsignedInt" => Value::Uint(trimmed.parse().ok()?),
        "unsignedLong" => Value::Ulong(trimmed.parse().ok()?),
        "unsignedShort" => Value::Ushort(trimmed.parse().ok()?),
        "unsignedByte" => Value::Ubyte(trimmed.parse().ok()?),
        "double" | "decimal" => Value::Double(float(trimmed)?),
        #[allow(clippy::cast_possible_truncation, reason = "the type it is said to be")]
        "float" => Value::Float(float(trimmed)? as f32),
        "char" => Value::Char(text.chars().next()?),
        "dateTime" => {
            let time = Value::Timestamp(parse_timestamp(trimmed)?);
            // A time without a zone is marked, so that it is written without one again.
            let zone = trimmed.split_once('T').is_some_and(|(_, time)| time.contains(['Z', 'z', '+', '-']));
            if zone { time } else { Value::Described(Box::new((Value::symbol(WITHOUT_ZONE), time))) }
        }
        "duration" => {
            let ticks = parse_duration(trimmed)?.map_or(i64::MAX, |ms| ms.saturating_mul(TICKS_PER_MS));
            Value::Described(Box::new((Value::symbol(TIMESPAN), Value::Long(ticks))))
        }
        "guid" => Value::Uuid(*Uuid::parse_str(trimmed).ok()?.as_bytes()),
        "base64Binary" => Value::Binary(STANDARD.decode(trimmed).ok()?.into()),
        _ => return None,
    })
}

/// Parses a number. Infinity has names of its own in XML Schema.
fn float(text: &str) -> Option<f64> {
    match text {
        "INF" => Some(f64::INFINITY),
        "-INF" => Some(f64::NEG_INFINITY),
        text => text.parse().ok(),
    }
}

/// Appends an element with these pairs, unless there are none.
pub(super) fn write(xml: &mut Xml, name: &str, pairs: &[(String, Value)]) {
    if pairs.is_empty() {
        return;
    }
    xml.element(name, &[], |xml| {
        for (key, value) in pairs {
            let (kind, text) = shown(value);
            xml.element(PAIR, &[], |xml| {
                xml.text("Key", key);
                // The JavaScript SDK cuts the first five characters off the type, so the prefix has to have four.
                let kind = format!("d6p1:{kind}");
                let schema = ("xmlns:d6p1", "http://www.w3.org/2001/XMLSchema");
                xml.element("Value", &[("i:type", &kind), schema], |xml| xml.push_text(&text));
            });
        }
    });
}

fn shown(value: &Value) -> (&'static str, String) {
    match value {
        Value::String(text) | Value::Symbol(text) => ("string", text.clone()),
        Value::Bool(truth) => ("boolean", truth.to_string()),
        Value::Double(n) => ("double", n.to_string()),
        Value::Float(n) => ("double", n.to_string()),
        Value::Char(c) => ("string", c.to_string()),
        Value::Timestamp(ms) => ("dateTime", timestamp(*ms)),
        Value::Uuid(bytes) => ("guid", Uuid::from_bytes(*bytes).to_string()),
        Value::Binary(bytes) => ("base64Binary", STANDARD.encode(bytes)),
        Value::Described(described) if described.0.as_text() == Some(WITHOUT_ZONE) => {
            let text = described.1.as_i64().map(timestamp).unwrap_or_default();
            ("dateTime", text.trim_end_matches('Z').to_owned())
        }
        Value::Described(described) if described.0.as_text() == Some(TIMESPAN) => {
            ("duration", duration(described.1.as_i64().map(|ticks| ticks / TICKS_PER_MS)))
        }
        other => match other.as_i64() {
            // The JavaScript SDK knows no long.
            Some(n) if i32::try_from(n).is_ok() => ("int", n.to_string()),
            Some(n) => ("long", n.to_string()),
            None => ("string", String::new()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(inside: &str) -> Result<Vec<(String, Value)>, Refusal> {
        let text = format!("<p xmlns:i=\"i\">{inside}</p>");
        read(Some(&XmlElement::parse(text.as_bytes()).unwrap()))
    }

    #[test]
    fn what_is_written_reads_back() {
        let given = vec![
            ("text".to_owned(), Value::string(" a<b ")),
            ("yes".to_owned(), Value::Bool(true)),
            ("int".to_owned(), Value::Int(-5)),
            ("long".to_owned(), Value::Long(1 << 40)),
            ("double".to_owned(), Value::Double(2.5)),
            ("time".to_owned(), Value::Timestamp(1_700_000_000_123)),
            ("id".to_owned(), Value::Uuid([7; 16])),
            ("bytes".to_owned(), Value::Binary(vec![1, 2, 255].into())),
        ];
        let mut xml = Xml::default();
        write(&mut xml, "p", &given);
        assert_eq!(read(Some(&XmlElement::parse(xml.into_string().as_bytes()).unwrap())), Ok(given));
    }

    #[test]
    fn durations_are_ticks() {
        let read = pairs(
            "<KeyValueOfstringanyType><Key>k</Key><Value i:type=\"x:duration\">PT1S</Value></KeyValueOfstringanyType>",
        );
        let expected = Value::Described(Box::new((Value::symbol(TIMESPAN), Value::Long(10_000_000))));
        assert_eq!(read, Ok(vec![("k".to_owned(), expected.clone())]));
        assert_eq!(shown(&expected), ("duration", "PT1S".to_owned()));
    }

    #[test]
    fn a_time_goes_back_with_a_zone_only_if_it_came_with_one() {
        for (text, shown_as) in [
            ("2023-11-14T22:13:20.123Z", "2023-11-14T22:13:20.123Z"),
            ("2023-11-14T22:13:20.123", "2023-11-14T22:13:20.123"),
            ("2023-11-14T22:13:20", "2023-11-14T22:13:20"),
            ("2023-11-14T23:13:20+01:00", "2023-11-14T22:13:20Z"),
        ] {
            assert_eq!(shown(&parse("dateTime", text).unwrap()), ("dateTime", shown_as.to_owned()));
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (kind, text) in [("int", "x"), ("int", "3000000000"), ("dateTime", "now"), ("guid", "g"), ("what", "x")] {
            let inside = format!(
                "<KeyValueOfstringanyType><Key>k</Key><Value i:type=\"x:{kind}\">{text}</Value></KeyValueOfstringanyType>"
            );
            assert!(pairs(&inside).expect_err(kind).description.contains("'k'"));
        }
        assert!(pairs("<KeyValueOfstringanyType><Value>v</Value></KeyValueOfstringanyType>").is_err());
    }
}
