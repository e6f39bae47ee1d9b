//! JSON strings written with characters that every broker takes, also one whose protocol is XML.

/// Appends `text` as a JSON string. Control characters, U+FFFE and U+FFFF are escaped, since XML 1.0 refuses them.
pub(super) fn push_string(out: &mut String, text: &str) {
    out.push('"');
    let mut plain = 0;
    for (at, len) in escapes(text) {
        out.push_str(&text[plain..at]);
        match text.as_bytes()[at] {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            0xEF if text[at..].starts_with('\u{FFFE}') => out.push_str("\\ufffe"),
            0xEF => out.push_str("\\uffff"),
            control => {
                out.push_str("\\u00");
                for digit in [control >> 4, control & 15] {
                    out.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
                }
            }
        }
        plain = at + len;
    }
    out.push_str(&text[plain..]);
    out.push('"');
}

/// How many bytes [`push_string`] appends, without the quotes.
pub(super) fn escaped_len(text: &str) -> usize {
    let longer = |(at, len): (usize, usize)| match text.as_bytes()[at] {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' => 1,
        _ => 6 - len,
    };
    text.len() + escapes(text).map(longer).sum::<usize>()
}

/// Whether XML 1.0, and with it SQS, takes JSON text as it is. JSON has no raw control characters in strings, so two
/// characters are left to look for.
pub(super) fn is_xml_json(json: &str) -> bool {
    !json.contains(['\u{FFFE}', '\u{FFFF}'])
}

/// The places in `text` that must be escaped: where each begins, and its length in bytes.
fn escapes(text: &str) -> impl Iterator<Item = (usize, usize)> {
    let bytes = text.as_bytes();
    bytes.iter().enumerate().filter_map(move |(at, byte)| match byte {
        0..0x20 | b'"' | b'\\' => Some((at, 1)),
        0xEF if matches!(bytes[at + 1..], [0xBF, 0xBE | 0xBF, ..]) => Some((at, 3)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_what_json_and_xml_refuse() {
        let text = "a\"\\\n\r\t\u{0}\u{1f}\u{7f}é\u{FFFD}\u{FFFE}\u{FFFF}\u{1FFFE}😀";
        let mut out = String::new();
        push_string(&mut out, text);
        assert_eq!(out, "\"a\\\"\\\\\\n\\r\\t\\u0000\\u001f\u{7f}é\u{FFFD}\\ufffe\\uffff\u{1FFFE}😀\"");
        assert_eq!(out.len(), escaped_len(text) + 2);
        assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text);
    }
}
