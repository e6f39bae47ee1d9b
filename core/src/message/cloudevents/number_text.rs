//! Numbers and times as text. Writing them does not allocate, since every message has some.

use std::{fmt::Display, io::Write};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Bytes for the longest text: `9999-12-31T23:59:59.999999999+23:59` has 35, a `u64` has 20.
const ROOM: usize = 40;

/// Hands `read` the text that `write` puts into a buffer on the stack; not called if writing fails.
fn on_stack(write: impl FnOnce(&mut &mut [u8]) -> bool, read: impl FnOnce(&str)) {
    let mut room = [0; ROOM];
    let mut rest = &mut room[..];
    let written = write(&mut rest);
    let len = ROOM - rest.len();
    if let (true, Ok(text)) = (written, std::str::from_utf8(&room[..len])) {
        read(text);
    }
}

/// Hands `read` the number in decimal.
pub(super) fn number(n: impl Display, read: impl FnOnce(&str)) {
    on_stack(|out| write!(out, "{n}").is_ok(), read);
}

/// Hands `read` the time in RFC 3339 with its own offset. Not called for a time that RFC 3339 cannot write;
/// `Envelope::check` refuses such a time.
pub(super) fn time(time: OffsetDateTime, read: impl FnOnce(&str)) {
    on_stack(|out| time.format_into(out, &Rfc3339).is_ok(), read);
}

/// Reads RFC 3339.
pub(super) fn parse_time(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok()
}

/// Reads a number if it would be written the same way again: no sign, no leading zeros.
pub(super) fn parse_number<T: std::str::FromStr>(text: &str) -> Option<T> {
    let canonical = text == "0" || text.starts_with(|c: char| matches!(c, '1'..='9'));
    if canonical { text.parse().ok() } else { None }
}
