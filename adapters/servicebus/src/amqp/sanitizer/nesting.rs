//! Limits how deeply the values in messages may be nested, in what comes from the broker, before fe2o3-amqp reads it.
//!
//! serde_amqp reads lists, maps, arrays and described values by recursion without a limit. A few hundred within each
//! other overflow the stack of a debug build, a few thousand that of an optimised one, and end the process. Without
//! this, whoever may send could end every consumer, again and again. [`crate::amqp::sanitizer::walk`] changes a message
//! without changing its length, whatever pieces it comes in.
//!
//! A value that is too deep arrives as binary, in a body, in annotations and wherever else values are. A copy of the
//! message, for a retry or a redrive, carries it as binary too. The dead letters are the broker's own: there it stays
//! as it was sent. A message that cannot be read any more is a malformed delivery like others: it goes to the dead
//! letters, and its link goes on.
//!
//! A malformed frame passes unchanged: fe2o3-amqp refuses it as well, and ends the connection. The values in
//! performatives, which the broker itself writes, are not looked at.

use std::{io, mem};

use crate::amqp::sanitizer::{
    performative::{self, ParsedPerformative},
    walk::MessageWalk,
};

/// In bytes: length, offset of the body, type and channel.
const FRAME_HEAD_LENGTH: usize = 8;
/// The most messages whose transfers are incomplete. Each link has one at most, and the broker allows no more links on
/// a connection.
/// <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-quotas>
const MAX_OPEN_MESSAGES: usize = 5_000;

/// Reads the frames of one connection as they come.
pub(crate) struct NestingLimiter {
    part: FramePart,
    /// The part of a head or performative that has come, if it comes in pieces, and how many bytes are needed.
    gathered: Vec<u8>,
    needed: usize,
    /// The length of this frame's body, and how much of it is still to come.
    body: usize,
    left: usize,
    channel: u16,
    walk: MessageWalk,
    /// The messages that continue in another frame, by channel and handle.
    waiting: Vec<(u16, u32, MessageWalk)>,
}

#[derive(Clone, Copy)]
enum FramePart {
    Head,
    Performative,
    Payload { handle: u32, more: bool },
    Rest,
}

impl NestingLimiter {
    pub(crate) fn new() -> Self {
        Self {
            part: FramePart::Head,
            gathered: Vec::new(),
            needed: FRAME_HEAD_LENGTH,
            body: 0,
            left: 0,
            channel: 0,
            walk: MessageWalk::new(),
            waiting: Vec::new(),
        }
    }

    /// Makes the next bytes safe, in place. Fails where more messages are incomplete than there can be links.
    pub(crate) fn sanitize(&mut self, mut bytes: &mut [u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let passed = match self.part {
                FramePart::Head => self.gather(bytes),
                _ => {
                    let here = self.left.min(bytes.len());
                    let passed = self.within(&mut bytes[..here]);
                    self.left -= passed;
                    passed
                }
            };
            if self.left == 0 {
                self.end()?;
            }
            bytes = &mut bytes[passed..];
        }
        Ok(())
    }

    /// Handles bytes of the body. Returns how many it has used.
    fn within(&mut self, bytes: &mut [u8]) -> usize {
        match self.part {
            FramePart::Performative => return self.gather(bytes),
            FramePart::Payload { .. } => self.walk.walk(bytes),
            FramePart::Head | FramePart::Rest => {}
        }
        bytes.len()
    }

    /// Reads the head or performative once enough of it is there. Returns how many bytes it has used.
    fn gather(&mut self, bytes: &[u8]) -> usize {
        if self.gathered.is_empty() {
            return self.read(bytes).unwrap_or_else(|| {
                self.gathered.extend_from_slice(bytes);
                bytes.len()
            });
        }
        let missing = self.needed.saturating_sub(self.gathered.len()).min(bytes.len());
        self.gathered.extend_from_slice(&bytes[..missing]);
        let gathered = mem::take(&mut self.gathered);
        if self.read(&gathered).is_none() {
            self.gathered = gathered;
        }
        missing
    }

    /// Reads a head or performative. Returns its length; `None` if more bytes are needed.
    fn read(&mut self, bytes: &[u8]) -> Option<usize> {
        match self.part {
            FramePart::Head => self.head(bytes),
            _ => self.performative(bytes),
        }
    }

    fn head(&mut self, bytes: &[u8]) -> Option<usize> {
        let [a, b, c, d, offset, kind, channel @ ..] = *bytes.first_chunk::<FRAME_HEAD_LENGTH>().or_else(|| {
            self.needed = FRAME_HEAD_LENGTH;
            None
        })?;
        if [a, b, c, d] == *b"AMQP" {
            // A protocol header, which has the same length.
            return Some(FRAME_HEAD_LENGTH);
        }
        self.channel = u16::from_be_bytes(channel);
        self.body = (u32::from_be_bytes([a, b, c, d]) as usize).checked_sub(FRAME_HEAD_LENGTH).unwrap_or(usize::MAX);
        self.left = self.body;
        self.part = match (offset, kind) {
            (2, 0) if self.body != usize::MAX => FramePart::Performative,
            _ => FramePart::Rest,
        };
        Some(FRAME_HEAD_LENGTH)
    }

    fn performative(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut length = 0;
        self.part = match performative::read(bytes) {
            ParsedPerformative::Short(needed) if needed <= self.body => {
                self.needed = needed;
                return None;
            }
            ParsedPerformative::Transfer(transfer) => {
                length = transfer.length;
                match self.position(transfer.handle) {
                    Some(at) => self.walk = self.waiting.swap_remove(at).2,
                    None => self.walk.restart(),
                }
                match transfer.aborted {
                    true => FramePart::Rest,
                    false => FramePart::Payload { handle: transfer.handle, more: transfer.more },
                }
            }
            ParsedPerformative::Detach(handle) => {
                if let Some(at) = self.position(handle) {
                    self.waiting.swap_remove(at);
                }
                FramePart::Rest
            }
            ParsedPerformative::End => {
                self.waiting.retain(|(channel, ..)| *channel != self.channel);
                FramePart::Rest
            }
            ParsedPerformative::Short(_) | ParsedPerformative::Other => FramePart::Rest,
        };
        Some(length)
    }

    fn position(&self, handle: u32) -> Option<usize> {
        self.waiting.iter().position(|(channel, of, _)| (*channel, *of) == (self.channel, handle))
    }

    fn end(&mut self) -> io::Result<()> {
        if let FramePart::Payload { handle, more: true } = self.part {
            if self.waiting.len() == MAX_OPEN_MESSAGES {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "more messages are begun than there can be links",
                ));
            }
            self.waiting.push((self.channel, handle, self.walk.clone()));
        }
        self.part = FramePart::Head;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::amqp::sanitizer::walk::{
        MAX_DEPTH,
        tests::{annotations, body, compound, harmless, is_decoded_on_a_small_stack, nested, random, section},
    };

    fn frame(kind: u8, channel: u16, body: &[u8]) -> Vec<u8> {
        [&(body.len() as u32 + 8).to_be_bytes()[..], &[2, kind], &channel.to_be_bytes(), body].concat()
    }

    fn transfer(link: (u16, u8), more: bool, payload: &[u8]) -> Vec<u8> {
        let more = if more { 0x41 } else { 0x42 };
        let fields = [0x52, link.1, 0x52, 7, 0xa0, 4, 0xc0, 0xd0, 0xc0, 0xd0, 0x43, 0x42, more];
        frame(0, link.0, &[section(0x14, &compound(0xc0, 6, &fields)), payload.to_vec()].concat())
    }

    fn aborted(link: (u16, u8)) -> Vec<u8> {
        let fields = b"\x40\x40\x40\x40\x41\x40\x00\x53\x24\x45\x40\x41";
        frame(0, link.0, &section(0x14, &compound(0xd0, 10, &[&[0x52, link.1], &fields[..]].concat())))
    }

    fn too_deep() -> Vec<u8> {
        body(&nested(&[0xd0; 40]))
    }

    fn bounded(stream: &[u8], piece: usize) -> Vec<u8> {
        let mut out = stream.to_vec();
        let mut nesting = NestingLimiter::new();
        out.chunks_mut(piece).for_each(|piece| nesting.sanitize(piece).unwrap());
        out
    }

    /// A connection's beginning, which has nothing to walk through.
    fn beginning() -> Vec<u8> {
        let deep = nested(&[0xd0; 60]);
        let open = section(0x10, &compound(0xd0, 1, &deep));
        [b"AMQP\x03\x01\0\0", &frame(1, 0, &deep)[..], b"AMQP\0\x01\0\0", &frame(0, 0, &open), &frame(0, 0, b"")]
            .concat()
    }

    #[test]
    fn what_is_not_too_deep_passes_unchanged() {
        let message = harmless();
        let mut stream = [beginning(), transfer((0, 0), false, &message)].concat();
        // Two links of two sessions take turns with a message each, byte by byte and in larger parts.
        let links = [(0, 1), (1, 1), (0, 0), (1, 0)];
        for part in [1, 100] {
            for (at, piece) in message.chunks(part).enumerate() {
                let more = (at + 1) * part < message.len();
                links.iter().for_each(|link| stream.extend(transfer(*link, more, piece)));
            }
        }
        for piece in (1..40).chain([stream.len()]) {
            assert!(bounded(&stream, piece) == stream, "in pieces of {piece}");
        }
    }

    #[test]
    fn a_message_in_many_frames_is_bounded_as_in_one() {
        let message = too_deep();
        let whole = bounded(&transfer((0, 0), false, &message), usize::MAX);
        let whole = &whole[whole.len() - message.len()..];
        assert_eq!(whole.iter().zip(&message).filter(|(after, before)| after != before).count(), 1);
        for part in (1..30).chain([message.len() - 1]) {
            let (mut stream, mut expected) = (beginning(), beginning());
            let frames = message.chunks(part).zip(whole.chunks(part)).enumerate();
            for (at, (before, after)) in frames {
                let more = (at + 1) * part < message.len();
                for link in [(0, 1), (3, 1)] {
                    stream.extend(transfer(link, more, before));
                    expected.extend(transfer(link, more, after));
                }
                let between = transfer((0, 0), false, &annotations(b"\x40"));
                let empty = transfer((0, 1), true, b"");
                for frames in [&mut stream, &mut expected] {
                    frames.extend(&between);
                    if more {
                        frames.extend(&empty);
                    }
                }
            }
            for piece in [1, 2, 3, 7, 64, 4096, usize::MAX] {
                assert!(bounded(&stream, piece) == expected, "in parts of {part} and pieces of {piece}");
            }
        }
    }

    #[test]
    fn a_message_that_never_ends_has_no_part_in_the_next() {
        let detached = frame(0, 3, &section(0x16, &compound(0xc0, 2, b"\x52\x01\x41")));
        let ended = frame(0, 3, &section(0x17, b"\x45"));
        for end in [aborted((3, 1)), detached, ended] {
            // The end of a list that is passed over as a string would be.
            let begun = transfer((3, 1), true, &body(b"\xb1\0\x01\0\0"));
            let other = transfer((4, 1), true, &body(b"\xb1\0\x01\0\0"));
            let next = transfer((3, 1), false, &too_deep());
            let other_goes_on = transfer((4, 1), false, &too_deep());
            let before = [&begun[..], &other, &end].concat();
            let stream = [&before[..], &next, &other_goes_on].concat();
            let expected = [&before[..], &bounded(&next, usize::MAX), &other_goes_on].concat();
            assert!(expected != stream);
            for piece in [1, 5, 4096] {
                assert!(bounded(&stream, piece) == expected, "in pieces of {piece}");
            }
        }
    }

    #[test]
    fn more_messages_begun_than_there_can_be_links_are_an_error() {
        let mut nesting = NestingLimiter::new();
        let mut begin = |link: usize| {
            nesting.sanitize(&mut transfer(((link >> 8) as u16, link as u8), true, &body(b"\xb0\0\x01\0\0")))
        };
        (0..MAX_OPEN_MESSAGES).for_each(|link| begin(link).unwrap());
        begin(7).unwrap();
        assert_eq!(begin(MAX_OPEN_MESSAGES).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn malformed_frames_do_no_harm_and_pieces_make_no_difference() {
        let mut random = random();
        let parts = [0xd0, 0xc1, 0x00, 0xd1].repeat(MAX_DEPTH);
        let message = annotations(&nested(&parts[..16]));
        let deep = body(&nested(&[0xd0, 0xd1, 0x00, 0xd0].repeat(MAX_DEPTH)));
        let whole = [
            beginning(),
            transfer((0, 0), false, &message),
            transfer((0, 1), true, &deep[..100]),
            transfer((1, 0), true, &deep[..50]),
            aborted((1, 0)),
            transfer((0, 1), false, &deep[100..]),
            transfer((1, 0), false, &harmless()),
        ]
        .concat();
        for _ in 0..3_000 {
            let mut stream = whole.clone();
            for _ in 0..=random() % 4 {
                let at = random() % stream.len();
                stream[at] = random() as u8;
            }
            let once = bounded(&stream, usize::MAX);
            assert_eq!(once.len(), stream.len());
            assert!(bounded(&stream, 1 + random() % 9) == once, "pieces make a difference");
        }
        let frame = bounded(&transfer((0, 0), false, &deep), usize::MAX);
        is_decoded_on_a_small_stack(vec![frame[frame.len() - deep.len()..].to_vec()]);
    }
}
