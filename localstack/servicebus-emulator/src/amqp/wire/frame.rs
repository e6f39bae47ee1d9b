//! Frames: cut out of the input, and put around the output.

use bytes::{Buf, Bytes, BytesMut};

/// The frame type of AMQP itself.
pub(crate) const AMQP: u8 = 0;
/// The frame type of the SASL layer.
pub(crate) const SASL: u8 = 1;

const HEAD: usize = 8;

/// A frame that came in. An empty body is a heartbeat.
#[derive(Debug, PartialEq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) channel: u16,
    pub(crate) body: Bytes,
}

/// Takes the next complete frame off the input, if there is one. `max` is the max-frame-size that the peer was told.
pub(crate) fn take(input: &mut BytesMut, max: usize) -> Result<Option<Frame>, &'static str> {
    let Some(head) = input.first_chunk::<HEAD>() else { return Ok(None) };
    let size = usize::try_from(u32::from_be_bytes([head[0], head[1], head[2], head[3]])).unwrap_or(usize::MAX);
    let offset = usize::from(head[4]) * 4;
    let (kind, channel) = (head[5], u16::from_be_bytes([head[6], head[7]]));
    if offset < HEAD || size < offset {
        return Err("a frame is shorter than its own header");
    }
    if size > max {
        return Err("a frame is longer than max-frame-size");
    }
    if input.len() < size {
        return Ok(None);
    }
    let mut body = input.split_to(size).freeze();
    body.advance(offset);
    Ok(Some(Frame { kind, channel, body }))
}

/// Appends a frame whose body `write` appends.
pub(crate) fn put(out: &mut Vec<u8>, kind: u8, channel: u16, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([0, 0, 0, 0, 2, kind]);
    out.extend(channel.to_be_bytes());
    write(out);
    let size = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&size.to_be_bytes());
}
