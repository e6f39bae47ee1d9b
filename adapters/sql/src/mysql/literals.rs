//! Statements with their values in the text.
//!
//! What the loops do is a handful of statements in one transaction, sent as one text: one round trip. Prepared
//! statements cannot be sent so. Values are numbers and bytes in hexadecimal, which no setting of a session reads as
//! anything else.

use std::fmt::Write;

/// A value for a `?N` of a template.
#[derive(Clone, Debug)]
pub(super) enum Value<'a> {
    Number(i64),
    Bytes(&'a [u8]),
    Null,
    /// Text that was made here, such as a list.
    Sql(&'a str),
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Bytes(text.as_bytes())
    }
}

impl<'a> From<Option<&'a str>> for Value<'a> {
    fn from(text: Option<&'a str>) -> Self {
        text.map_or(Self::Null, Self::from)
    }
}

impl From<Option<i64>> for Value<'_> {
    fn from(number: Option<i64>) -> Self {
        number.map_or(Self::Null, Self::Number)
    }
}

impl From<i32> for Value<'_> {
    fn from(number: i32) -> Self {
        Self::Number(i64::from(number))
    }
}

impl From<i64> for Value<'_> {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

/// Fills in a template: `?1` is the first value, and a value may stand in several places.
pub(super) fn fill(template: &str, values: &[Value<'_>]) -> String {
    let mut text = String::with_capacity(template.len() + 200);
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('?') {
        text.push_str(before);
        let digits = after.bytes().take_while(u8::is_ascii_digit).count();
        let value = after[..digits].parse::<usize>().ok().and_then(|n| values.get(n.checked_sub(1)?));
        match value {
            Some(Value::Number(number)) => drop(write!(text, "{number}")),
            Some(Value::Bytes(bytes)) => push_bytes(&mut text, bytes),
            Some(Value::Null) => text.push_str("NULL"),
            Some(Value::Sql(sql)) => text.push_str(sql),
            None => unreachable!("a template names a value that it was not given"),
        }
        rest = &after[digits..];
    }
    text.push_str(rest);
    text
}

fn push_bytes(text: &mut String, bytes: &[u8]) {
    text.push_str("x'");
    for byte in bytes {
        text.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
        text.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
    }
    text.push('\'');
}

/// A list of numbers for IN. It must not be empty.
pub(super) fn numbers(numbers: impl IntoIterator<Item = i64>) -> String {
    let numbers: Vec<String> = numbers.into_iter().map(|number| number.to_string()).collect();
    numbers.join(",")
}

/// A list of byte strings for IN. It must not be empty.
pub(super) fn byte_strings<'a>(all: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut text = String::new();
    for (n, bytes) in all.into_iter().enumerate() {
        if n > 0 {
            text.push(',');
        }
        push_bytes(&mut text, bytes);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_filled_in_and_what_they_hold_is_not_read() {
        let text = fill("a = ?2 AND b IN (?1) OR c = ?2", &[Value::Sql("1,2"), Value::Bytes(b"?1'\\\0")]);
        assert_eq!(text, "a = x'3f31275c00' AND b IN (1,2) OR c = x'3f31275c00'");
        assert_eq!(fill("?1", &[(-7).into()]), "-7");
        assert_eq!(fill("?1", &["ä".into()]), "x'c3a4'");
        assert_eq!(fill("?1, ?2", &[None::<&str>.into(), Some(3).into()]), "NULL, 3");
    }

    #[test]
    fn lists() {
        assert_eq!(numbers([1, -2]), "1,-2");
        assert_eq!(byte_strings([&b"a"[..], &b""[..]]), "x'61',x''");
    }
}
