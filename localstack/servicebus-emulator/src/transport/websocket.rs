//! The server's end of a WebSocket as a stream of bytes (RFC 6455). AMQP ignores the bounds of WebSocket messages.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

const CONTINUATION: u8 = 0x0;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;

const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;
const NORMAL: u16 = 1000;
const PROTOCOL_ERROR: u16 = 1002;

/// The largest payload of a control frame, in bytes.
const MAX_CONTROL: u64 = 125;
/// The largest payload of a frame that this end sends.
const MAX_WRITE: usize = 64 * 1024;
/// The bytes of pongs that may wait for a peer that does not read. Above it pings are not answered.
const MAX_WAITING: usize = 128 * 1024;

/// A WebSocket after its handshake.
pub(crate) struct WebSocket<S> {
    stream: S,
    /// Frames as they came in.
    input: BytesMut,
    /// The unread rest of the current data frame.
    data: Option<DataFrame>,
    output: BytesMut,
    close_sent: bool,
    ended: bool,
}

struct DataFrame {
    left: u64,
    mask: [u8; 4],
    at: usize,
}

/// The complete header of a frame.
struct FrameHeader {
    opcode: u8,
    length: u64,
    mask: [u8; 4],
    size: usize,
}

impl<S> WebSocket<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, input: BytesMut::new(), data: None, output: BytesMut::new(), close_sent: false, ended: false }
    }

    fn put(&mut self, opcode: u8, payload: &[u8]) {
        self.output.extend_from_slice(&[FINAL | opcode]);
        match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
            (Ok(length @ 0..=125), _) => self.output.extend_from_slice(&[length]),
            (_, Ok(length)) => {
                self.output.extend_from_slice(&[126]);
                self.output.extend_from_slice(&length.to_be_bytes());
            }
            _ => {
                self.output.extend_from_slice(&[127]);
                self.output.extend_from_slice(&(payload.len() as u64).to_be_bytes());
            }
        }
        self.output.extend_from_slice(payload);
    }

    fn say_close(&mut self, code: u16) {
        if !self.close_sent {
            self.close_sent = true;
            self.put(CLOSE, &code.to_be_bytes());
        }
    }

    /// Handles the control frames before the next data. Returns true when data can be read or the stream has ended.
    fn advance(&mut self) -> bool {
        loop {
            if self.ended || self.data.as_ref().is_some_and(|data| data.left > 0) {
                return true;
            }
            let head = match head(&self.input) {
                Ok(Some(head)) => head,
                Ok(None) => return false,
                Err(()) => return self.broken(),
            };
            if let CONTINUATION | BINARY = head.opcode {
                self.input.advance(head.size);
                self.data = Some(DataFrame { left: head.length, mask: head.mask, at: 0 });
                continue;
            }
            let Some(size) = usize::try_from(head.length).ok().filter(|_| head.length <= MAX_CONTROL) else {
                return self.broken();
            };
            if self.input.len() < head.size + size {
                return false;
            }
            self.input.advance(head.size);
            let mut payload = self.input.split_to(size);
            unmask(&mut payload, head.mask, 0);
            match head.opcode {
                PING if self.output.len() < MAX_WAITING => self.put(PONG, &payload),
                PING | PONG => {}
                CLOSE => {
                    self.say_close(NORMAL);
                    self.ended = true;
                }
                _ => return self.broken(),
            }
        }
    }

    fn broken(&mut self) -> bool {
        self.say_close(PROTOCOL_ERROR);
        self.ended = true;
        true
    }

    /// Copies out the bytes of the current data frame that have arrived.
    fn take(&mut self, into: &mut ReadBuf<'_>) -> bool {
        let Some(data) = &mut self.data else { return false };
        let left = usize::try_from(data.left).unwrap_or(usize::MAX);
        let size = left.min(self.input.len()).min(into.remaining());
        if size == 0 {
            return false;
        }
        let mut payload = self.input.split_to(size);
        unmask(&mut payload, data.mask, data.at);
        into.put_slice(&payload);
        data.left -= size as u64;
        data.at = (data.at + size) % 4;
        true
    }
}

/// Reads a frame's header. An unmasked frame is an error, because clients must mask theirs.
fn head(input: &[u8]) -> Result<Option<FrameHeader>, ()> {
    let Some([first, second]) = input.first_chunk() else { return Ok(None) };
    if second & MASKED == 0 || first & 0x70 != 0 {
        return Err(());
    }
    let (length, size) = match second & !MASKED {
        126 => match input[2..].first_chunk() {
            Some(length) => (u64::from(u16::from_be_bytes(*length)), 4),
            None => return Ok(None),
        },
        127 => match input[2..].first_chunk() {
            Some(length) => (u64::from_be_bytes(*length), 10),
            None => return Ok(None),
        },
        short => (u64::from(short), 2),
    };
    let mask = input.get(size..).and_then(|rest| rest.first_chunk());
    Ok(mask.map(|mask| FrameHeader { opcode: first & 0x0f, length, mask: *mask, size: size + 4 }))
}

fn unmask(payload: &mut [u8], mask: [u8; 4], at: usize) {
    for (byte, key) in payload.iter_mut().zip(mask.iter().cycle().skip(at)) {
        *byte ^= key;
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// Writes and flushes all pending output.
    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &self.output))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(written);
        }
        Pin::new(&mut self.stream).poll_flush(context)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            let readable = this.advance();
            if !this.output.is_empty()
                && let Poll::Ready(Err(error)) = this.poll_drain(context)
            {
                return Poll::Ready(Err(error));
            }
            if this.ended || (readable && this.take(into)) {
                return Poll::Ready(Ok(()));
            }
            this.input.reserve(4096);
            // The future is made anew at each poll, which is correct because `read_buf` keeps no state between polls.
            let read = std::pin::pin!(this.stream.read_buf(&mut this.input)).poll(context);
            if ready!(read)? == 0 {
                this.ended = true;
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocket<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.close_sent {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if !self.output.is_empty() {
            ready!(self.poll_drain(context))?;
        }
        let size = bytes.len().min(MAX_WRITE);
        self.put(BINARY, &bytes[..size]);
        match self.poll_drain(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // The bytes are buffered, so they count as written; the rest goes out before any later write.
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(size)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_drain(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.say_close(NORMAL);
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [1, 2, 3, 4];
        let mut bytes = vec![FINAL | opcode];
        match payload.len() {
            length @ 0..126 => bytes.push(MASKED | u8::try_from(length).expect("short")),
            length @ 126..65536 => {
                bytes.push(MASKED | 126);
                bytes.extend(u16::try_from(length).expect("short").to_be_bytes());
            }
            length => {
                bytes.push(MASKED | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        bytes.extend(mask);
        let start = bytes.len();
        bytes.extend_from_slice(payload);
        unmask(&mut bytes[start..], mask, 0);
        bytes
    }

    fn pair() -> (WebSocket<DuplexStream>, DuplexStream) {
        let (near, far) = duplex(1024 * 1024);
        (WebSocket::new(near), far)
    }

    #[tokio::test]
    async fn data_is_a_stream_whatever_its_frames_are() {
        let (mut socket, mut client) = pair();
        let long: Vec<u8> = (0..70_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let mut bytes = Vec::new();
        for payload in [b"AM".as_slice(), b"", b"QP", &long[..300], &long] {
            bytes.extend(masked(BINARY, payload));
        }
        bytes.extend(masked(CONTINUATION, b"end"));
        // In pieces that end anywhere.
        let writer = tokio::spawn(async move {
            for piece in bytes.chunks(7) {
                client.write_all(piece).await.expect("written");
            }
            client
        });
        let mut read = vec![0; 4 + 300 + 70_000 + 3];
        socket.read_exact(&mut read).await.expect("all of it");
        assert_eq!(&read[..4], b"AMQP");
        assert_eq!((&read[4..304], &read[304..70_304], &read[70_304..]), (&long[..300], &long[..], &b"end"[..]));
        drop(writer.await);
        assert_eq!(socket.read(&mut read).await.expect("the end"), 0);
    }

    #[tokio::test]
    async fn what_is_written_comes_in_binary_frames() {
        for length in [0, 125, 126, 65_535, 65_536, 200_000] {
            let (mut socket, mut client) = pair();
            let payload = vec![7; length];
            socket.write_all(&payload).await.expect("written");
            socket.shutdown().await.expect("closed");
            drop(socket);
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).await.expect("read");
            let (mut got, mut rest) = (0, rest.as_slice());
            while rest[0] == FINAL | BINARY {
                let (size, head) = match rest[1] {
                    126 => (usize::from(u16::from_be_bytes([rest[2], rest[3]])), 4),
                    127 => (65_536, 10),
                    short => (usize::from(short), 2),
                };
                assert!(rest[head..head + size].iter().all(|byte| *byte == 7));
                got += size;
                rest = &rest[head + size..];
            }
            assert_eq!((got, rest), (length, &[FINAL | CLOSE, 2, 3, 232][..]));
        }
    }

    #[tokio::test]
    async fn pings_are_answered_and_close_ends_it() {
        let (mut socket, mut client) = pair();
        let mut bytes = masked(PING, b"hello");
        bytes.extend(masked(PONG, b""));
        bytes.extend(masked(CLOSE, &NORMAL.to_be_bytes()));
        client.write_all(&bytes).await.expect("written");
        assert_eq!(socket.read(&mut [0; 8]).await.expect("the end"), 0);
        let mut answer = vec![0; 11];
        client.read_exact(&mut answer).await.expect("answers");
        assert_eq!(answer, [&[FINAL | PONG, 5][..], b"hello", &[FINAL | CLOSE, 2, 3, 232]].concat());
        assert!(socket.write_all(b"too late").await.is_err());
    }

    #[tokio::test]
    async fn what_no_client_sends_ends_it() {
        let unmasked = vec![FINAL | BINARY, 1, 0];
        let large_ping = masked(PING, &[0; 126]);
        for bytes in [unmasked, masked(0x1, b"text"), masked(0x3, b""), large_ping, vec![0xff, 0xff]] {
            let (mut socket, mut client) = pair();
            client.write_all(&bytes).await.expect("written");
            assert_eq!(socket.read(&mut [0; 8]).await.expect("the end"), 0, "{bytes:02x?}");
            let mut answer = vec![0; 4];
            client.read_exact(&mut answer).await.expect("a close");
            assert_eq!(answer, [FINAL | CLOSE, 2, 3, 234]);
        }
    }
}
