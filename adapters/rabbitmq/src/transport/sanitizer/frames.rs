//! Finds the frames in the bytes of a connection, and sanitizes methods and content headers in place.
//!
//! [`nesting`](super::nesting) and [`utf8`](super::utf8) say what is changed. A content header that is larger than a
//! frame may be is left to [`large_headers`](super::large_headers).

use crate::transport::sanitizer::{header_walk::PayloadWalk, large_headers::MAX_HEADER};

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;

/// The length of a frame's head in bytes: kind, channel and size of the payload.
const HEAD: usize = 7;
/// Class and method of `connection.tune`, in which the broker says how large a frame may be, and the size of its
/// payload, which is always the same.
const TUNE: ([u8; 4], usize) = ([0, 10, 0, 30], 12);

/// Where in the frames of a connection the next byte belongs.
#[derive(Default)]
pub(crate) struct FrameSanitizer {
    /// How many bytes of this frame are yet to come, including the byte that ends it.
    left: usize,
    payload: PayloadWalk,
    /// The largest frame in bytes, once the broker has said it.
    max: Option<usize>,
}

/// How far the bytes at hand could be sanitized.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct WalkProgress {
    /// How many bytes may be handed on.
    pub(crate) done: usize,
    /// The head of the next frame, if that is a content header that is larger than a frame may be.
    pub(crate) large: Option<[u8; HEAD]>,
}

impl FrameSanitizer {
    /// Sanitizes the next bytes, in place.
    ///
    /// A few bytes at the end may not be done: they begin a character or a frame of which the rest is missing. The
    /// caller passes them again with more bytes behind them.
    pub(crate) fn walk(&mut self, bytes: &mut [u8]) -> WalkProgress {
        let mut next = 0;
        while next < bytes.len() {
            if self.left == 0 {
                let Some(head) = bytes[next..].first_chunk::<HEAD>() else { break };
                let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
                if head[0] == HEADER && self.max.is_some_and(|max| size + HEAD + 1 > max) && size <= MAX_HEADER {
                    return WalkProgress { done: next, large: Some(*head) };
                }
                if head[..3] == [METHOD, 0, 0] && size == TUNE.1 {
                    let Some(tune) = bytes[next + HEAD..].first_chunk::<12>() else { break };
                    if tune[..4] == TUNE.0 {
                        let max = u32::from_be_bytes([tune[6], tune[7], tune[8], tune[9]]) as usize;
                        self.max = Some(max).filter(|max| *max > 0);
                    }
                }
                self.begin(head[0], size);
                next += HEAD;
                continue;
            }
            let here = self.left.min(bytes.len() - next);
            let ends = here == self.left;
            let done = self.payload.walk(&mut bytes[next..next + here - usize::from(ends)]);
            // At the end of a frame nothing can complete a character, so all of it is done.
            let done = if ends { here } else { done };
            self.left -= done;
            next += done;
            if done < here {
                break;
            }
        }
        WalkProgress { done: next, large: None }
    }

    /// Begins a frame whose head has been read.
    fn begin(&mut self, kind: u8, size: usize) {
        self.left = size.saturating_add(1);
        match kind {
            METHOD => self.payload.begin_method(),
            HEADER => self.payload.begin_header(),
            BODY | HEARTBEAT => self.payload.begin_other(),
            // This is no frame: the broker refuses the protocol and closes the connection. All that follows passes.
            _ => {
                self.payload.begin_other();
                self.left = usize::MAX;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::transport::sanitizer::nesting::DEEPEST;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        [&[kind, 0, 1][..], &(payload.len() as u32).to_be_bytes(), payload, &[0xce]].concat()
    }

    fn short(text: &[u8]) -> Vec<u8> {
        [&[text.len() as u8], text].concat()
    }

    /// A content header frame with every property.
    fn full(text: &[u8], entries: &[u8]) -> Vec<u8> {
        let mut payload = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0xff, 0xfc];
        payload.extend(short(text).repeat(2));
        payload.extend((entries.len() as u32).to_be_bytes());
        payload.extend(entries);
        payload.extend([2, 0xff]);
        payload.extend(short(text).repeat(4));
        payload.extend([0xff; 8]);
        payload.extend(short(text).repeat(4));
        frame(HEADER, &payload)
    }

    fn header(entries: &[u8]) -> Vec<u8> {
        full(b"text/plain", entries)
    }

    fn method(class: u8, method: u8, arguments: &[&[u8]]) -> Vec<u8> {
        frame(METHOD, &[&[0, class, 0, method][..], &arguments.concat()].concat())
    }

    /// Methods that bring text, the broker's own reply texts among them.
    fn methods(text: &[u8]) -> Vec<u8> {
        let text = &*short(text);
        let tag = &[0xff; 9][..];
        [
            method(10, 50, &[b"\xff\xff", text, b"\0\0\0\0"]),
            method(20, 40, &[b"\xff\xff", text, b"\0\0\0\0"]),
            method(60, 50, &[b"\xff\xff", text, text, text]),
            method(60, 60, &[text, tag, text, text]),
            method(60, 71, &[tag, text, text, b"\xff\xff\xff\xff"]),
            method(60, 80, &[tag]),
        ]
        .concat()
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

    /// What becomes of a stream that comes in pieces.
    fn walked(stream: &[u8], piece: usize) -> Vec<u8> {
        let (mut out, mut held) = (Vec::new(), Vec::new());
        let mut frames = FrameSanitizer::default();
        for piece in stream.chunks(piece) {
            held.extend(piece);
            let done = frames.walk(&mut held).done;
            out.extend(held.drain(..done));
            assert!(held.len() < HEAD + TUNE.1, "not more than the beginning of a character or of a frame");
        }
        out.extend(held);
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
            b"S\0\0\0\x02\xff\xc3",
            b"x\0\0\0\x02F\xff",
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
            assert!(walked(&stream, piece) == stream, "in pieces of {piece}");
        }
    }

    #[test]
    fn what_is_too_deep_becomes_bytes() {
        for kinds in [[b'F'; 200], [b'A'; 200]] {
            let stream = [header(&nested(&kinds)), header(&nested(&kinds))].concat();
            for piece in [1, 2, 3, 7, 64, 4096] {
                let changed = walked(&stream, piece);
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
    fn text_that_is_no_utf8_is_mended_wherever_it_stands() {
        let stream = |text: &[u8]| {
            // In the headers, within a table, and within a table in an array.
            let named = [short(text), b"V".to_vec()].concat();
            let length = (named.len() as u32).to_be_bytes();
            let table = [&b"F"[..], &length, &named].concat();
            let array = [&b"A"[..], &(table.len() as u32).to_be_bytes(), &table].concat();
            let entries = [&named[..], b"\x01k", &table, b"\x01k", &array, b"\x01kS\0\0\0\x02\xff\xc3"].concat();
            [methods(text), full(text, &entries), frame(BODY, b"\xff\xc3"), full(text, b"")].concat()
        };
        for (text, mended) in [
            (&b""[..], ""),
            ("gr\u{f6}\u{df}e, €, \u{1f980}".as_bytes(), "gr\u{f6}\u{df}e, €, \u{1f980}"),
            (b"gr\xf6\xdfe", "gr??e"),
            (b"\xf0\x9f\xa6", "???"),
            (b"\xc3\xc3\xa4\xc3", "?ä?"),
            (&[b'x'; 255], &"x".repeat(255)),
            (&[0x80; 255], &"?".repeat(255)),
        ] {
            let (stream, mended) = (stream(text), stream(mended.as_bytes()));
            for piece in (1..40).chain([stream.len()]) {
                assert!(walked(&stream, piece) == mended, "{text:?} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn what_comes_after_a_frame_waits_for_no_text_that_runs_out_of_it() {
        // A key of which the frame holds the beginning of a character, and no more.
        let mut torn = header(b"\x09k");
        torn.truncate(7 + 14 + 2 * 11 + 4);
        torn.extend(b"\x09k\xe2\x82");
        let size = (torn.len() - 7) as u32;
        torn[3..7].copy_from_slice(&size.to_be_bytes());
        torn.push(0xce);
        let stream = [torn, header(b"")].concat();
        for piece in 1..40 {
            let mut frames = FrameSanitizer::default();
            let mut held = Vec::new();
            for piece in stream.chunks(piece) {
                held.extend(piece);
                let done = frames.walk(&mut held).done;
                held.drain(..done);
            }
            assert!(held.is_empty(), "in pieces of {piece}");
            assert!(walked(&stream, piece) == stream, "in pieces of {piece}");
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
        for _ in 0..4_000 {
            let text = "gr\u{f6}\u{df}e, €, \u{1f980}".as_bytes();
            let frames = [methods(text), header(&nested(b"FAFAFFAA")), full(text, &nested(b"AF")), methods(b"a")];
            let mut stream = frames.concat();
            for _ in 0..=random() % 8 {
                let at = random() as usize % stream.len();
                stream[at] = random() as u8;
            }
            let whole = walked(&stream, usize::MAX);
            assert_eq!(whole.len(), stream.len());
            assert!(walked(&stream, 1 + random() as usize % 9) == whole, "pieces make no difference");
        }
    }
}
