//! What may be said of an error of serde_json. Its text quotes the payload, and so does what an event's own code says.

use serde_json::error::Category;

/// What stands before a value that serde found and did not expect. Only a string's text is escaped by serde.
const FOUND: [&str; 5] = ["boolean `", "integer `", "floating point `", "character `", "string \""];

/// What serde found, where it shows no value.
const FOUND_KIND: [&str; 12] = [
    "null",
    "unit value",
    "Option value",
    "newtype struct",
    "sequence",
    "map",
    "enum",
    "unit variant",
    "newtype variant",
    "tuple variant",
    "struct variant",
    "byte array",
];

/// The text of a serde error without the values that serde found. Payloads may be private, and errors reach logs and
/// dead letters.
///
/// What was expected is shown where serde itself says so, for then it is part of the program. Of all other texts, such
/// as those of an event's own `Deserialize`, nothing is shown but where it was: nobody knows what they quote.
pub(super) fn without_values(error: &serde_json::Error) -> String {
    let text = error.to_string();
    // A value that was in memory has no lines.
    let place = match error.line() {
        0 => String::new(),
        line => format!(" at line {line} column {}", error.column()),
    };
    let said = text.strip_suffix(place.as_str()).unwrap_or(&text);
    let what = match error.classify() {
        Category::Syntax => said.to_owned(),
        Category::Eof => "it ends too early".to_owned(),
        Category::Data | Category::Io => without_found(said).unwrap_or_else(|| "it cannot be read".to_owned()),
    };
    format!("payload is not the JSON it should be: {what}{place}")
}

/// One of serde's own texts without what was found. None for any other text.
fn without_found(said: &str) -> Option<String> {
    if let Some(rest) = said.strip_prefix("invalid type: ").or_else(|| said.strip_prefix("invalid value: ")) {
        return Some(format!("expected {}", after_found(rest)?));
    }
    if let Some(rest) = said.strip_prefix("invalid length ") {
        let (length, expected) = rest.split_once(", expected ")?;
        return length.parse::<u64>().is_ok().then(|| format!("invalid length, expected {expected}"));
    }
    for (start, empty) in [("unknown variant", "there are no variants"), ("unknown field", "there are no fields")] {
        // The name is the payload's, and not escaped: it ends where the program's names begin.
        let Some(rest) = said.strip_prefix(start).and_then(|rest| rest.strip_prefix(" `")) else { continue };
        if rest.ends_with(&format!("`, {empty}")) {
            return Some(format!("{start}, {empty}"));
        }
        let (_, names) = rest.rsplit_once("`, expected ")?;
        return are_names(names).then(|| format!("{start}, expected {names}"));
    }
    let name = said.strip_prefix("missing field ").or_else(|| said.strip_prefix("duplicate field "))?;
    let name = name.strip_prefix('`')?.strip_suffix('`')?;
    (!name.contains('`')).then(|| said.to_owned())
}

/// What follows `…, expected `, if something stands before it that serde found.
fn after_found(rest: &str) -> Option<&str> {
    let found = FOUND.iter().find(|start| rest.starts_with(**start));
    if found.is_some_and(|start| start.ends_with('"')) {
        return after_string(&rest["string \"".len()..])?.strip_prefix(", expected ");
    }
    let (kind, expected) = rest.split_once(", expected ")?;
    // Enums that are numbers say the number alone.
    let known = found.is_some() || FOUND_KIND.contains(&kind) || kind.parse::<i128>().is_ok();
    known.then_some(expected)
}

/// What follows a string that is written as Rust writes it for `Debug`, from behind its first quote.
fn after_string(text: &str) -> Option<&str> {
    let mut escaped = false;
    for (at, char) in text.char_indices() {
        match char {
            '"' if !escaped => return Some(&text[at + 1..]),
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    None
}

/// Whether this is a list of names as serde writes one: `` `a` ``, `` `a` or `b` ``, ``one of `a`, `b` ``.
fn are_names(list: &str) -> bool {
    let list = list.strip_prefix("one of ").unwrap_or(list);
    let mut parts = list.split('`').step_by(2);
    let (first, last) = (list.starts_with('`'), list.len() > 1 && list.ends_with('`'));
    first && last && parts.all(|between| ["", ", ", " or "].contains(&between))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, de::DeserializeOwned};

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Strict {
        order: String,
        cents: u8,
    }

    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    enum Currency {
        Eur,
        Usd,
        Chf,
    }

    #[derive(Debug, Deserialize)]
    enum Nothing {}

    /// Says what it wants in its own words, which quote.
    #[derive(Debug)]
    struct Own;

    impl<'de> Deserialize<'de> for Own {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            Err(serde::de::Error::custom(String::deserialize(from)?))
        }
    }

    /// What is said of these bytes, and of the same value in memory, without the place.
    fn said<T: DeserializeOwned + std::fmt::Debug>(json: &str) -> String {
        let of_bytes = without_values(&serde_json::from_str::<T>(json).unwrap_err());
        let value: serde_json::Value = serde_json::from_str(json).unwrap();
        let of_value = without_values(&serde_json::from_value::<T>(value).unwrap_err());
        let (of_bytes, place) = of_bytes.rsplit_once(" at line ").unwrap_or((&of_bytes, ""));
        // An event's own code knows no place, and serde_json adds it around the event alone.
        assert!(place.starts_with("1 column ") || place.is_empty(), "{of_bytes}: {place}");
        assert_eq!(of_bytes, of_value);
        of_value.strip_prefix("payload is not the JSON it should be: ").unwrap().to_owned()
    }

    #[test]
    fn serdes_own_texts_say_what_was_expected_and_never_what_was_found() {
        assert_eq!(said::<u8>(r#""hush""#), "expected u8");
        assert_eq!(said::<u8>("4711"), "expected u8");
        assert_eq!(said::<bool>("null"), "expected a boolean");
        assert_eq!(said::<bool>("47.11"), "expected a boolean");
        assert_eq!(said::<bool>("[4711]"), "expected a boolean");
        assert_eq!(said::<Vec<u8>>("{}"), "expected a sequence");
        assert_eq!(said::<String>("true"), "expected a string");
        assert_eq!(said::<char>(r#""hush""#), "expected a character");
        assert_eq!(said::<(u8, u8, u8)>("[1,2]"), "invalid length, expected a tuple of size 3");
        assert_eq!(said::<Strict>(r#"{"order":"hush"}"#), "missing field `cents`");
        assert_eq!(said::<Strict>(r#"{"hush":1}"#), "unknown field, expected `order` or `cents`");
        assert_eq!(said::<Currency>(r#""hush""#), "unknown variant, expected one of `Eur`, `Usd`, `Chf`");
        assert_eq!(said::<Nothing>(r#""hush""#), "unknown variant, there are no variants");
        let twice = serde_json::from_str::<Strict>(r#"{"order":"hush","order":"hush"}"#).unwrap_err();
        assert!(without_values(&twice).contains("duplicate field `order` at line 1"), "{}", without_values(&twice));
    }

    #[test]
    fn values_and_names_that_look_like_an_expectation_are_not_shown() {
        assert_eq!(said::<u8>(r#""x\", expected hush, expected hush""#), "expected u8");
        assert_eq!(said::<u8>(r#""\\\", expected hush\\""#), "expected u8");
        assert_eq!(said::<Strict>(r#"{"x`, expected hush":1}"#), "unknown field, expected `order` or `cents`");
        assert_eq!(said::<Nothing>(r#""x`, expected `hush""#), "unknown variant, there are no variants");
        assert_eq!(said::<Currency>(r#""`, there are no variants""#).matches("one of").count(), 1);
    }

    #[test]
    fn of_what_an_events_own_code_says_only_the_place_is_shown() {
        for text in [
            "an unexpected hush",
            "no currency, expected one of ours, got hush",
            "expected a currency, got hush",
            "invalid value: hush",
            "invalid value: expected a currency, got hush",
            "invalid value: a currency, expected one of ours, got hush",
            "invalid type: hush, expected hush",
            "invalid length hush, expected hush",
            "invalid length 4, expected",
            "unknown variant hush",
            "unknown variant `hush`",
            "unknown variant `hush`, expected hush",
            "unknown field `x`, expected `a`, got `hush`",
            "unknown field `x`, expected `hush",
            "missing field hush",
            "missing field `a` in `hush`",
            "duplicate field: hush",
            "hush at line 4 column",
            "",
            "`",
        ] {
            let json = serde_json::to_string(text).unwrap();
            assert_eq!(said::<Own>(&json), "it cannot be read", "{text}");
            assert_eq!(said::<BTreeMap<u8, Own>>(&format!("{{\"1\":{json}}}")), "it cannot be read", "{text}");
        }
    }

    #[test]
    fn what_is_no_json_is_told_with_its_place() {
        let of = |json| without_values(&serde_json::from_str::<BTreeMap<String, u8>>(json).unwrap_err());
        assert!(of("hush").ends_with(": expected value at line 1 column 1"), "{}", of("hush"));
        assert!(of("{} hush").ends_with(": trailing characters at line 1 column 4"), "{}", of("{} hush"));
        assert!(of("{\"hush").ends_with(": it ends too early at line 1 column 6"), "{}", of("{\"hush"));
        assert!(of("{\"a\":1\n \"hush\"}").ends_with(": expected `,` or `}` at line 2 column 2"));
    }
}
