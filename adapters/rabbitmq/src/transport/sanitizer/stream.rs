//! The stream that lapin reads: a socket, or TLS on it, whose bytes from the broker go through [`FrameSanitizer`]
//! first.

use std::{
    fmt,
    future::Future,
    io::{self, IoSlice, Read, Write},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use async_rs::{
    Runtime, Tokio,
    traits::Reactor,
    util::{DummyIO, RuntimeParts},
};
use futures_util::{AsyncRead, AsyncWrite, Stream};
use lapin::AsyncTcpStream;

use crate::transport::sanitizer::{
    frames::FrameSanitizer,
    large_headers::{IncomingLargeHeader, LargeHeaders},
};

/// A socket as lapin uses it by itself: plain, or with TLS.
pub(crate) type BrokerStream = AsyncTcpStream<<Tokio as Reactor>::TcpStream>;

/// A runtime for lapin whose sockets are sanitized.
pub(crate) fn runtime() -> Runtime<RuntimeParts<Tokio, SanitizedReactor>> {
    Runtime::new(RuntimeParts::new(Tokio::current(), SanitizedReactor(Tokio::current())))
}

/// How many bytes are read at once.
const READ: usize = 64 * 1024;

/// A socket whose bytes from the broker are safe for lapin.
///
/// They are read into a buffer of its own, since not all of them may be handed on at once. When a read cuts a
/// character in two, the first half must wait for the second: a byte that was handed on cannot be mended any more.
/// lapin's buffer cannot keep it, being a ring in which a read may have room for one byte only.
pub(crate) struct SanitizedStream {
    inner: BrokerStream,
    sanitizer: FrameSanitizer,
    buffer: Box<[u8]>,
    /// How many bytes are in the buffer. The first `ready` of them may be handed on, and the first `handed_on` have
    /// been.
    filled: usize,
    ready: usize,
    handed_on: usize,
    /// The rest of the buffer must be walked through before the socket is read again.
    walk_again: bool,
    large: Arc<LargeHeaders>,
    /// The large content header that is coming, if one is.
    incoming: Option<IncomingLargeHeader>,
    /// The small frame that stands for a large one. The first `stand_in_sent` bytes of it have been handed on.
    stand_in: Vec<u8>,
    stand_in_sent: usize,
}

impl SanitizedStream {
    pub(crate) fn new(inner: BrokerStream, large: Arc<LargeHeaders>) -> Self {
        let buffer = vec![0; READ].into_boxed_slice();
        Self {
            inner,
            sanitizer: FrameSanitizer::default(),
            buffer,
            filled: 0,
            ready: 0,
            handed_on: 0,
            walk_again: false,
            large,
            incoming: None,
            stand_in: Vec::new(),
            stand_in_sent: 0,
        }
    }

    /// Walks through the buffer, and finds out how much of it may be handed on.
    fn walk(&mut self) {
        self.walk_again = false;
        let Some(incoming) = &mut self.incoming else {
            let walked = self.sanitizer.walk(&mut self.buffer[..self.filled]);
            self.ready = walked.done;
            self.incoming = walked.large.map(IncomingLargeHeader::new);
            self.walk_again = self.incoming.is_some();
            return;
        };
        self.ready = incoming.take(&mut self.buffer[..self.filled]);
        self.handed_on = self.ready;
        if let Some(whole) = self.incoming.take_if(|incoming| incoming.is_complete()) {
            (self.stand_in, self.stand_in_sent, self.walk_again) = (whole.store_in(&self.large), 0, true);
        }
    }
}

impl AsyncRead for SanitizedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        while this.handed_on == this.ready {
            if this.stand_in_sent < this.stand_in.len() {
                let count = bytes.len().min(this.stand_in.len() - this.stand_in_sent);
                bytes[..count].copy_from_slice(&this.stand_in[this.stand_in_sent..this.stand_in_sent + count]);
                this.stand_in_sent += count;
                return Poll::Ready(Ok(count));
            }
            this.buffer.copy_within(this.ready..this.filled, 0);
            (this.filled, this.ready, this.handed_on) = (this.filled - this.ready, 0, 0);
            if !this.walk_again {
                let more = ready!(Pin::new(&mut this.inner).poll_read(cx, &mut this.buffer[this.filled..]))?;
                if more == 0 {
                    return Poll::Ready(Ok(0));
                }
                this.filled += more;
            }
            this.walk();
        }
        let count = bytes.len().min(this.ready - this.handed_on);
        bytes[..count].copy_from_slice(&this.buffer[this.handed_on..this.handed_on + count]);
        this.handed_on += count;
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for SanitizedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

impl fmt::Debug for SanitizedStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SanitizedStream")
    }
}

/// Tokio's reactor with another type of socket. lapin reads whatever type its reactor has.
#[derive(Clone, Debug)]
pub(crate) struct SanitizedReactor(Tokio);

impl Reactor for SanitizedReactor {
    type TcpStream = SanitizedStream;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + Send + 'static>(
        &self,
        _: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<DummyIO, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, time: Duration) -> Self::Sleep {
        self.0.sleep(time)
    }

    fn interval(&self, time: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(time)
    }

    fn tcp_connect_addr(&self, addr: SocketAddr) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(addr);
        async move { Ok(SanitizedStream::new(BrokerStream::Plain(connecting.await?), Arc::default())) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use futures_util::{AsyncReadExt, FutureExt};

    use super::*;

    /// A content header frame whose content type is this.
    fn header(text: &[u8]) -> Vec<u8> {
        let payload = [&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0x80, 0, text.len() as u8], text].concat();
        [&[2, 0, 1][..], &(payload.len() as u32).to_be_bytes(), &payload, &[0xce]].concat()
    }

    #[tokio::test]
    async fn whatever_the_pieces_all_bytes_arrive_in_order_and_mended() {
        let (came, expected) = (b"\xf0\x9f\xa6\x80\xc3\xf0\x9f\xa6 \xe2\x82\xac", "\u{1f980}???? \u{20ac}");
        let stream = [header(came), header(b"a"), header(&came.repeat(20))].concat();
        let expected = [header(expected.as_bytes()), header(b"a"), header(&expected.as_bytes().repeat(20))].concat();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        for room in [1, 2, 3, 5, 4096] {
            for piece in [1, 2, 7, stream.len()] {
                let mut guarded = SanitizedStream::new(
                    BrokerStream::connect(&Tokio::current(), vec![addr]).await.unwrap(),
                    Arc::default(),
                );
                let (mut peer, _) = listener.accept().unwrap();
                peer.set_nodelay(true).unwrap();
                let (mut got, mut bytes) = (Vec::new(), vec![0; room]);
                for piece in stream.chunks(piece) {
                    peer.write_all(piece).unwrap();
                    tokio::task::yield_now().await;
                    while let Some(read) = guarded.read(&mut bytes).now_or_never() {
                        got.extend(&bytes[..read.unwrap()]);
                    }
                }
                drop(peer);
                guarded.read_to_end(&mut got).await.unwrap();
                assert!(got == expected, "pieces of {piece}, with room for {room}");
            }
        }
    }

    /// A content header with headers of so many bytes, beside a message of that name.
    fn headers(bytes: usize) -> Vec<u8> {
        let entry = [&b"\x01k"[..], b"S", &(bytes as u32).to_be_bytes(), &vec![b'x'; bytes]].concat();
        let name = b"\x04g\xf6\xdfe";
        let table = [&(entry.len() as u32).to_be_bytes()[..], &entry].concat();
        let payload = [&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0xa0, 0][..], name, &table].concat();
        [&[2, 0, 1][..], &(payload.len() as u32).to_be_bytes(), &payload, &[0xce]].concat()
    }

    #[tokio::test]
    async fn what_is_above_the_frame_size_is_kept_and_a_small_one_goes_in_its_place() {
        let tune = b"\x01\0\0\0\0\0\x0c\0\x0a\0\x1e\0\0\0\0\x10\0\0\0\xce";
        // What just fits, what just does not, and one after the other.
        let overhead = headers(0).len();
        let sizes = [10, 4096 - overhead, 4097 - overhead, 5000, 200_000, 10];
        let stream = [&tune[..], &sizes.map(headers).concat()].concat();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        for piece in [1, 7, 4000, stream.len()] {
            let large = Arc::new(LargeHeaders::default());
            let mut guarded = SanitizedStream::new(
                BrokerStream::connect(&Tokio::current(), vec![addr]).await.unwrap(),
                large.clone(),
            );
            let (mut peer, _) = listener.accept().unwrap();
            let stream = stream.clone();
            let writing = std::thread::spawn(move || stream.chunks(piece).for_each(|p| peer.write_all(p).unwrap()));
            let mut got = Vec::new();
            guarded.read_to_end(&mut got).await.unwrap();
            writing.join().unwrap();
            let mut rest = &got[tune.len()..];
            for size in sizes {
                let length = u32::from_be_bytes(rest[3..7].try_into().unwrap()) as usize;
                let (frame, next) = rest.split_at(length + 8);
                rest = next;
                assert!(frame.len() <= 4096 && frame[..3] == [2, 0, 1] && frame[frame.len() - 1] == 0xce);
                let (properties, _) =
                    crate::transport::sanitizer::large_headers::parse(&frame[7 + 12..frame.len() - 1]).unwrap();
                let properties = large.restore(properties);
                assert_eq!(properties.content_type().as_ref().unwrap().as_str(), "g??e");
                let table = properties.headers().as_ref().unwrap();
                let lapin::types::AMQPValue::LongString(value) = &table.inner()["k"] else { panic!("{table:?}") };
                assert_eq!(value.len(), size, "in pieces of {piece}");
            }
            assert!(rest.is_empty());
        }
    }
}
