//! Replaces what is not UTF-8 in short strings, since lapin ends the connection over it.
//!
//! To the broker short strings are bytes, which it passes on as their publisher wrote them. Each byte that is not UTF-8
//! becomes a question mark, in place, so lengths stay the same.

/// Mends a piece of a string, and answers how many bytes are done. While `more` of the string is to come, the
/// beginning of a character at the end is not done.
pub(crate) fn mend(text: &mut [u8], more: bool) -> usize {
    // Nearly all text is ASCII, and that is quick to see.
    if text.is_ascii() {
        return text.len();
    }
    let mut at = 0;
    while let Err(e) = std::str::from_utf8(&text[at..]) {
        at += e.valid_up_to();
        let wrong = match e.error_len() {
            Some(wrong) => wrong,
            None if more => return at,
            None => text.len() - at,
        };
        text[at..at + wrong].fill(b'?');
        at += wrong;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mended(text: &[u8]) -> Vec<u8> {
        let mut text = text.to_vec();
        assert_eq!(mend(&mut text, false), text.len());
        text
    }

    #[test]
    fn utf8_stays_and_all_else_becomes_question_marks() {
        for text in ["", "a", "größe", "€", "\u{10ffff}\u{0}\u{7ff}\u{800}", "\u{fffd}?"] {
            assert_eq!(mended(text.as_bytes()), text.as_bytes());
        }
        for (text, expected) in [
            (&b"gr\xf6\xdfe"[..], "gr??e"),
            (b"\xc3", "?"),
            (b"\xe2\x82", "??"),
            (b"\xe2\x82A", "??A"),
            (b"\xe2\xc3\xa4", "?ä"),
            // Too long for what they say, a surrogate, beyond the last character.
            (b"\xc0\x80", "??"),
            (b"\xed\xa0\x80", "???"),
            (b"\xf4\x90\x80\x80", "????"),
        ] {
            assert_eq!(mended(text), expected.as_bytes(), "{text:?}");
        }
    }

    #[test]
    fn the_beginning_of_a_character_waits_for_its_end() {
        for (text, decided) in
            [(&b"a\xc3"[..], 1), (b"\xff\xe2\x82", 1), (b"\xf0\x9f\x98", 0), (b"ab", 2), (b"\xe2A", 2)]
        {
            assert_eq!(mend(&mut text.to_vec(), true), decided, "{text:?}");
        }
    }
}
