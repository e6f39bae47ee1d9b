//! The stream that lapin reads: what comes from the broker goes through [`Frames`] first, above TLS where there is any.

use std::{
    fmt,
    future::Future,
    io::{self, IoSlice, Read, Write},
    net::SocketAddr,
    pin::Pin,
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

use crate::frames::Frames;

/// A socket as lapin would use it.
pub(crate) type Bare = AsyncTcpStream<<Tokio as Reactor>::TcpStream>;

/// A runtime whose sockets are guarded.
pub(crate) fn runtime() -> Runtime<RuntimeParts<Tokio, GuardedReactor>> {
    Runtime::new(RuntimeParts::new(Tokio::current(), GuardedReactor(Tokio::current())))
}

/// Bytes that are read at once.
const READ: usize = 64 * 1024;

/// A socket whose bytes from the broker are safe for lapin.
///
/// They are read into a buffer of its own, since not all that has come may be handed on at once: of a character that a read cuts
/// in two the first half waits for the second, for what is handed on cannot be mended any more. lapin's buffer cannot keep it,
/// being a ring in which a read may have room for one byte only.
pub(crate) struct Guarded {
    inner: Bare,
    frames: Frames,
    buffer: Box<[u8]>,
    /// Bytes in the buffer, of which the first `done` may be handed on and the first `given` have been.
    read: usize,
    done: usize,
    given: usize,
}

impl Guarded {
    pub(crate) fn new(inner: Bare) -> Self {
        let buffer = vec![0; READ].into_boxed_slice();
        Self { inner, frames: Frames::default(), buffer, read: 0, done: 0, given: 0 }
    }
}

impl AsyncRead for Guarded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        while this.given == this.done {
            this.buffer.copy_within(this.done..this.read, 0);
            (this.read, this.done, this.given) = (this.read - this.done, 0, 0);
            let more = ready!(Pin::new(&mut this.inner).poll_read(cx, &mut this.buffer[this.read..]))?;
            if more == 0 {
                return Poll::Ready(Ok(0));
            }
            this.read += more;
            this.done = this.frames.walk(&mut this.buffer[..this.read]);
        }
        let count = bytes.len().min(this.done - this.given);
        bytes[..count].copy_from_slice(&this.buffer[this.given..this.given + count]);
        this.given += count;
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Guarded {
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

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guarded")
    }
}

/// Tokio's, but for the type of its sockets, by which lapin knows what it reads.
#[derive(Clone, Debug)]
pub(crate) struct GuardedReactor(Tokio);

impl Reactor for GuardedReactor {
    type TcpStream = Guarded;
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
        async move { Ok(Guarded::new(Bare::Plain(connecting.await?))) }
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
                let mut guarded = Guarded::new(Bare::connect(&Tokio::current(), vec![addr]).await.unwrap());
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
}
