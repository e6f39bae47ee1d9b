//! Reads the beginning of a frame: which message a transfer continues, where its payload begins, and which links and
//! sessions have ended.

const TRANSFER: u8 = 0x14;
const DETACH: u8 = 0x16;
const END: u8 = 0x17;

/// The performative at the beginning of a frame, as far as [`crate::amqp::sanitizer::nesting`] needs it.
#[derive(Debug, PartialEq)]
pub(crate) enum ParsedPerformative {
    /// At least this many bytes are needed.
    Short(usize),
    Transfer(TransferHead),
    /// The link of this handle has ended.
    Detach(u32),
    /// The session has ended.
    End,
    Other,
}

#[derive(Debug, PartialEq)]
pub(crate) struct TransferHead {
    pub(crate) handle: u32,
    pub(crate) more: bool,
    pub(crate) aborted: bool,
    /// Bytes before the payload.
    pub(crate) length: usize,
}

/// Reads the performative of a frame's body.
pub(crate) fn read(bytes: &[u8]) -> ParsedPerformative {
    let (code, at) = match bytes {
        [] | [0x00] => return ParsedPerformative::Short(3),
        [0x00, 0x53, code, ..] => (*code, 3),
        [0x00, 0x53] => return ParsedPerformative::Short(3),
        [0x00, 0x80, 0, 0, 0, 0, 0, 0, 0, code, ..] => (*code, 10),
        [0x00, 0x80, zeros @ ..] if zeros.len() < 8 && zeros.iter().take(7).all(|b| *b == 0) => {
            return ParsedPerformative::Short(10);
        }
        _ => return ParsedPerformative::Other,
    };
    match code {
        TRANSFER | DETACH => {}
        END => return ParsedPerformative::End,
        _ => return ParsedPerformative::Other,
    }
    let (length, fields) = match &bytes[at..] {
        [0xc0, size, ..] => (at + 2 + usize::from(*size), at + 3),
        [0xd0, a, b, c, d, ..] => ((at + 5).saturating_add(u32::from_be_bytes([*a, *b, *c, *d]) as usize), at + 9),
        [] | [0xc0] => return ParsedPerformative::Short(at + 2),
        [0xd0, ..] => return ParsedPerformative::Short(at + 5),
        _ => return ParsedPerformative::Other,
    };
    if bytes.len() < length {
        return ParsedPerformative::Short(length);
    }
    let mut fields = ListFields(bytes.get(fields..length).unwrap_or_default());
    let Some(handle) = fields.next().and_then(uint) else { return ParsedPerformative::Other };
    if code == DETACH {
        return ParsedPerformative::Detach(handle);
    }
    // `handle` is taken. Four fields come before `more`: the delivery's id, tag, format, and whether it is settled.
    // Three come before `aborted`: settle mode, state, and resume.
    let more = fields.nth(4).is_some_and(is_true);
    let aborted = fields.nth(3).is_some_and(is_true);
    ParsedPerformative::Transfer(TransferHead { handle, more, aborted, length })
}

fn uint(value: &[u8]) -> Option<u32> {
    match *value {
        [0x43] => Some(0),
        [0x52, n] => Some(u32::from(n)),
        [0x70, a, b, c, d] => Some(u32::from_be_bytes([a, b, c, d])),
        _ => None,
    }
}

fn is_true(value: &[u8]) -> bool {
    matches!(value, [0x41] | [0x56, 1])
}

/// The encoded values of a list.
struct ListFields<'a>(&'a [u8]);

impl<'a> Iterator for ListFields<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (mut at, mut values) = (0_usize, 1_usize);
        while values > 0 {
            values -= 1;
            let rest = self.0.get(at..)?;
            at = at.saturating_add(match *rest.first()? {
                0x00 => {
                    values += 2;
                    1
                }
                code => match (code >> 4, &rest[1..]) {
                    (0x4, _) => 1,
                    (0x5, _) => 2,
                    (0x6, _) => 3,
                    (0x7, _) => 5,
                    (0x8, _) => 9,
                    (0x9, _) => 17,
                    (0xa | 0xc | 0xe, [size, ..]) => 2 + usize::from(*size),
                    (0xb | 0xd | 0xf, [a, b, c, d, ..]) => 5 + u32::from_be_bytes([*a, *b, *c, *d]) as usize,
                    _ => return None,
                },
            });
        }
        let (value, rest) = self.0.split_at_checked(at)?;
        self.0 = rest;
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use fe2o3_amqp::types::{
        definitions::{DeliveryTag, Handle},
        messaging::{DeliveryState, Modified},
        performatives::{Close, Detach, End, Transfer as FullTransfer},
    };
    use serde::Serialize;

    use super::*;

    fn transfer(handle: u32, more: bool, aborted: bool) -> Vec<u8> {
        let failed = Modified { delivery_failed: Some(true), undeliverable_here: None, message_annotations: None };
        encoded(&FullTransfer {
            handle: Handle(handle),
            delivery_id: Some(70_000),
            delivery_tag: Some(DeliveryTag::from(vec![0xc0; 16])),
            message_format: Some(0),
            settled: None,
            more,
            rcv_settle_mode: None,
            state: aborted.then_some(DeliveryState::Modified(failed)),
            resume: false,
            aborted,
            batchable: true,
        })
    }

    fn encoded(performative: &impl Serialize) -> Vec<u8> {
        serde_amqp::to_vec(performative).unwrap()
    }

    /// The same performative with the widest descriptor and list.
    fn wide(narrow: &[u8]) -> Vec<u8> {
        let [0x00, 0x53, code, 0xc0, size, count, fields @ ..] = narrow else { panic!("{narrow:?}") };
        let mut wide = vec![0x00, 0x80, 0, 0, 0, 0, 0, 0, 0, *code, 0xd0];
        wide.extend((u32::from(*size) + 3).to_be_bytes());
        wide.extend(u32::from(*count).to_be_bytes());
        [&wide, fields].concat()
    }

    #[test]
    fn transfers_are_read_in_every_form_and_from_any_beginning_ask_for_more() {
        for handle in [0, 7, 70_000] {
            for (more, aborted) in [(false, false), (true, false), (true, true), (false, true)] {
                let narrow = transfer(handle, more, aborted);
                for bytes in [wide(&narrow), narrow] {
                    let length = bytes.len();
                    let expected = ParsedPerformative::Transfer(TransferHead { handle, more, aborted, length });
                    assert_eq!(read(&[&bytes, &b"payload"[..]].concat()), expected);
                    for end in 0..length {
                        let ParsedPerformative::Short(need) = read(&bytes[..end]) else { panic!("at {end}") };
                        assert!((end + 1..=length).contains(&need), "{need} at {end}");
                    }
                }
            }
        }
    }

    #[test]
    fn ends_are_told_and_nothing_else() {
        let detach = encoded(&Detach { handle: Handle(300), closed: true, error: None });
        assert_eq!(
            [read(&detach), read(&wide(&detach))],
            [ParsedPerformative::Detach(300), ParsedPerformative::Detach(300)]
        );
        assert_eq!(read(&encoded(&End { error: None })), ParsedPerformative::End);
        assert_eq!(read(&encoded(&Close { error: None })), ParsedPerformative::Other);
        let malformed: [&[u8]; 6] = [
            b"\x40",
            b"\x00\xa3\x04",
            b"\x00\x80\x01",
            b"\x00\x53\x14\x45",
            b"\x00\x53\x14\xc0\x01\0",
            b"\x00\x53\x14\xd0\0\0\0\x01\0\0\0\0",
        ];
        malformed.iter().for_each(|bytes| assert_eq!(read(bytes), ParsedPerformative::Other, "{bytes:?}"));
    }
}
