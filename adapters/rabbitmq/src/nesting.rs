//! Bounds how deeply headers may be nested, in what comes from the broker, before lapin sees it.
//!
//! lapin reads tables and arrays by recursion without a limit. A frame has room for 26,000 of them within each other, the
//! broker passes them on, and a few hundred overflow the stack, which ends the process. So whoever may publish could end
//! every consumer, again and again. A table or array that is too deep becomes a byte array, which is laid out alike on the
//! wire: one byte changes, in place, whatever pieces the frame comes in.
//!
//! What is malformed passes unchanged: lapin refuses it where this walk gives up, and looks no further.

/// Tables and arrays that may stand within each other, the headers' own included. What brokers and clients write has three
/// or four. lapin needs up to 14 KiB of stack for each in a debug build, and has 2 MiB.
pub(crate) const DEEPEST: usize = 32;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;

/// The frames of one connection, as they come.
#[derive(Default)]
pub(crate) struct Nesting {
    head: [u8; 7],
    /// How many bytes of the head have come.
    begun: usize,
    /// Bytes of this frame that are yet to come, the one that ends it included.
    left: usize,
    header: Option<Header>,
}

impl Nesting {
    pub(crate) fn bound(&mut self, mut bytes: &mut [u8]) {
        while let Some(first) = bytes.first() {
            if self.left > 0 {
                let (now, later) = bytes.split_at_mut(self.left.min(bytes.len()));
                if let Some(header) = &mut self.header {
                    header.walk(now);
                }
                self.left -= now.len();
                bytes = later;
                continue;
            }
            self.head[self.begun] = *first;
            self.begun += 1;
            bytes = &mut bytes[1..];
            if self.begun == self.head.len() {
                let [kind, _, _, size @ ..] = self.head;
                self.begun = 0;
                self.header = (kind == HEADER).then(Header::default);
                self.left = match kind {
                    METHOD | HEADER | BODY | HEARTBEAT => (u32::from_be_bytes(size) as usize).saturating_add(1),
                    // No frame: the broker speaks another protocol, and goes.
                    _ => usize::MAX,
                };
            }
        }
    }
}

/// What comes next in a content header.
#[derive(Clone, Copy)]
enum Step {
    /// Class, weight and body size.
    Fixed,
    /// Two bytes that tell which properties are there, the first three by the first bits.
    Flags,
    FlagsRest,
    /// Content type and content encoding, as far as they are there.
    Short,
    /// The end of a table or array, or its next entry.
    Entry,
    Key,
    Type,
    /// Bytes of a length that have come, and their value so far.
    Length {
        of: Of,
        come: u8,
        value: u32,
    },
    /// Nothing more to see.
    Rest,
}

#[derive(Clone, Copy, PartialEq)]
enum Of {
    Table,
    Array,
    Bytes,
}

/// A walk through one content header.
struct Header {
    step: Step,
    /// Bytes to pass over first.
    skip: usize,
    /// Bytes that have come.
    at: usize,
    shorts: u32,
    headers: bool,
    /// The tables and arrays that are open, and where they end.
    open: [(Of, usize); DEEPEST],
    depth: usize,
}

impl Default for Header {
    fn default() -> Self {
        Self {
            step: Step::Fixed,
            skip: 12,
            at: 0,
            shorts: 0,
            headers: false,
            open: [(Of::Table, 0); DEEPEST],
            depth: 0,
        }
    }
}

impl Header {
    fn walk(&mut self, bytes: &mut [u8]) {
        let mut next = 0;
        while next < bytes.len() {
            if self.skip > 0 {
                let passed = self.skip.min(bytes.len() - next);
                self.skip -= passed;
                self.at += passed;
                next += passed;
                continue;
            }
            if self.settle() {
                return;
            }
            if self.skip > 0 {
                continue;
            }
            self.take(&mut bytes[next]);
            self.at += 1;
            next += 1;
        }
    }

    /// Takes the steps that need no byte. True if nothing more is to be seen.
    fn settle(&mut self) -> bool {
        loop {
            self.step = match self.step {
                Step::Fixed => Step::Flags,
                Step::Short if self.shorts == 0 => match self.headers {
                    true => Step::Length { of: Of::Table, come: 0, value: 0 },
                    false => Step::Rest,
                },
                Step::Length { of, come: 4, value } => self.begin(of, value as usize),
                Step::Entry => match self.open[..self.depth].last() {
                    Some((_, end)) if self.at == *end => {
                        self.depth -= 1;
                        Step::Entry
                    }
                    Some((Of::Table, end)) if self.at < *end => Step::Key,
                    Some((_, end)) if self.at < *end => Step::Type,
                    // All are closed, or a value went past the end.
                    _ => Step::Rest,
                },
                Step::Rest => return true,
                _ => return false,
            };
            if self.skip > 0 {
                return false;
            }
        }
    }

    fn begin(&mut self, of: Of, length: usize) -> Step {
        let end = self.at.saturating_add(length);
        if self.open[..self.depth].last().is_some_and(|(_, outer)| end > *outer) {
            return Step::Rest;
        }
        match of {
            Of::Bytes => self.skip = length,
            _ => {
                self.open[self.depth] = (of, end);
                self.depth += 1;
            }
        }
        Step::Entry
    }

    fn take(&mut self, byte: &mut u8) {
        self.step = match self.step {
            Step::Flags => {
                self.shorts = (*byte >> 6).count_ones();
                self.headers = *byte & 0x20 != 0;
                Step::FlagsRest
            }
            Step::FlagsRest => Step::Short,
            Step::Short => {
                self.shorts -= 1;
                self.skip = usize::from(*byte);
                Step::Short
            }
            Step::Key => {
                self.skip = usize::from(*byte);
                Step::Type
            }
            Step::Type => self.value(byte),
            Step::Length { of, come, value } => {
                Step::Length { of, come: come + 1, value: value << 8 | u32::from(*byte) }
            }
            other => other,
        };
    }

    /// The type of a value. <https://www.rabbitmq.com/amqp-0-9-1-errata#section_3>, as lapin reads it.
    fn value(&mut self, kind: &mut u8) -> Step {
        let of = match *kind {
            b'F' | b'A' if self.depth == DEEPEST => {
                *kind = b'x';
                Of::Bytes
            }
            b'F' => Of::Table,
            b'A' => Of::Array,
            b'S' | b'x' => Of::Bytes,
            fixed => {
                self.skip = match fixed {
                    b'V' => 0,
                    b't' | b'b' | b'B' => 1,
                    b's' | b'U' | b'u' => 2,
                    b'I' | b'i' | b'f' => 4,
                    b'D' => 5,
                    b'L' | b'l' | b'd' | b'T' => 8,
                    _ => return Step::Rest,
                };
                return Step::Entry;
            }
        };
        Step::Length { of, come: 0, value: 0 }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        [&[kind, 0, 1][..], &(payload.len() as u32).to_be_bytes(), payload, &[0xce]].concat()
    }

    /// A content header frame with both strings before the headers, and one property behind them.
    fn header(entries: &[u8]) -> Vec<u8> {
        let mut payload = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0xf0, 0];
        payload.extend(b"\x0atext/plain\x04gzip");
        payload.extend((entries.len() as u32).to_be_bytes());
        payload.extend(entries);
        payload.push(2);
        frame(HEADER, &payload)
    }

    /// An entry that holds so many tables or arrays within each other, with something beside each.
    fn nested(kinds: &[u8]) -> Vec<u8> {
        let Some((kind, inner)) = kinds.split_first() else { return b"\x03endS\0\0\0\x02FA".to_vec() };
        let mut content = nested(inner);
        if *kind == b'A' {
            content.drain(..=usize::from(content[0]));
            content.extend(b"V");
        } else {
            content.extend(b"\x01Fl\0\0\0\0\0\0\0\x07");
        }
        let length = (content.len() as u32).to_be_bytes();
        [&b"\x01k"[..], &[*kind], &length, &content].concat()
    }

    fn bounded(stream: &[u8], piece: usize) -> Vec<u8> {
        let mut out = stream.to_vec();
        let mut nesting = Nesting::default();
        out.chunks_mut(piece).for_each(|piece| nesting.bound(piece));
        out
    }

    #[test]
    fn what_is_not_too_deep_passes_unchanged() {
        let mut entries = nested(&b"FA".repeat((DEEPEST - 1) / 2));
        entries.extend(nested(b"AAFF"));
        for value in [
            &b"t\x01"[..],
            b"b\x01",
            b"B\x01",
            b"s\0F",
            b"U\0F",
            b"u\0A",
            b"I\0\0\0F",
            b"i\0\0\0A",
            b"f\0\0\0F",
            b"D\0\0\0\0F",
            b"L\0\0\0\0\0\0\0F",
            b"l\0\0\0\0\0\0\0A",
            b"d\0\0\0\0\0\0\0F",
            b"T\0\0\0\0\0\0\0A",
            b"V",
            b"S\0\0\0\0",
            b"x\0\0\0\x01F",
            b"F\0\0\0\0",
            b"A\0\0\0\0",
        ] {
            entries.extend([b"\x02FA", value].concat());
        }
        let stream = [
            frame(METHOD, b"\0\x3c\0\x3cF"),
            header(&entries),
            frame(BODY, &nested(&[b'F'; 60])),
            frame(HEARTBEAT, b""),
            header(b""),
        ]
        .concat();
        for piece in 1..40 {
            assert!(bounded(&stream, piece) == stream, "in pieces of {piece}");
        }
    }

    #[test]
    fn what_is_too_deep_becomes_bytes() {
        for kinds in [[b'F'; 200], [b'A'; 200]] {
            let stream = [header(&nested(&kinds)), header(&nested(&kinds))].concat();
            for piece in [1, 2, 3, 7, 64, 4096] {
                let changed = bounded(&stream, piece);
                let at: Vec<usize> = (0..stream.len()).filter(|i| stream[*i] != changed[*i]).collect();
                assert_eq!(at.len(), 2, "one in each, in pieces of {piece}");
                assert!(at.iter().all(|i| stream[*i] == kinds[0] && changed[*i] == b'x'));
                // The headers' own table is the first.
                let before = stream[..at[0]].windows(1).filter(|b| b[0] == kinds[0]).count();
                assert_eq!(before, DEEPEST - 1, "in pieces of {piece}");
            }
        }
    }

    #[test]
    fn malformed_frames_and_strange_bytes_do_no_harm() {
        // A xorshift generator: the same bytes in every run.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..2_000 {
            let mut stream = [header(&nested(b"FAFAFFAA")), header(&nested(b"AF"))].concat();
            for _ in 0..=random() % 4 {
                let at = random() as usize % stream.len();
                stream[at] = random() as u8;
            }
            let whole = bounded(&stream, usize::MAX);
            assert_eq!(whole.len(), stream.len());
            assert!(bounded(&stream, 1 + random() as usize % 9) == whole, "pieces make no difference");
        }
    }
}
