//! Texts as they are stored.

use std::borrow::Cow;

/// The longest reason or error that is stored.
const LONGEST: usize = 4000;

/// A reason or an error as a column holds it: without U+0000, which PostgreSQL refuses, and not for ever long.
pub(crate) fn stored_text(text: &str) -> String {
    let mut end = text.len().min(LONGEST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].replace('\0', "\u{fffd}")
}

/// A text of any length without U+0000.
pub(crate) fn without_nul(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(stored_text("a\0b"), "a\u{fffd}b");
        assert_eq!(without_nul("a\0b"), "a\u{fffd}b");
        assert_eq!(stored_text(&format!("x{}", "ä".repeat(2000))).len(), 3999);
    }
}
