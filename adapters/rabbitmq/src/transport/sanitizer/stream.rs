//! The stream that lapin reads: what comes from the broker goes through [`Frames`] first, above TLS where there is any.

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
    frames::Frames,
    large_headers::{Coming, Large},
};

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
    /// There may be more to hand on in what has been read already.
    again: bool,
    large: Arc<Large>,
    coming: Option<Coming>,
    /// What stands for a large frame, of which the first `placed` bytes have been handed on.
    place: Vec<u8>,
    placed: usize,
}

impl Guarded {
    pub(crate) fn new(inner: Bare, large: Arc<Large>) -> Self {
        let buffer = vec![0; READ].into_boxed_slice();
        Self {
            inner,
            frames: Frames::default(),
            buffer,
            read: 0,
            done: 0,
            given: 0,
            again: false,
            large,
            coming: None,
            place: Vec::new(),
            placed: 0,
        }
    }

    /// Looks through what has been read for what may be handed on.
    fn walk(&mut self) {
        self.again = false;
        let Some(coming) = &mut self.coming else {
            let walked = self.frames.walk(&mut self.buffer[..self.read]);
            self.done = walked.done;
            self.coming = walked.large.map(Coming::new);
            self.again = self.coming.is_some();
            return;
        };
        self.done = coming.take(&mut self.buffer[..self.read]);
        self.given = self.done;
        if let Some(whole) = self.coming.take_if(|coming| coming.is_complete()) {
            (self.place, self.placed, self.again) = (whole.keep(&self.large), 0, true);
        }
    }
}

impl AsyncRead for Guarded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        while this.given == this.done {
            if this.placed < this.place.len() {
                let count = bytes.len().min(this.place.len() - this.placed);
                bytes[..count].copy_from_slice(&this.place[this.placed..this.placed + count]);
                this.placed += count;
                return Poll::Ready(Ok(count));
            }
            this.buffer.copy_within(this.done..this.read, 0);
            (this.read, this.done, this.given) = (this.read - this.done, 0, 0);
            if !this.again {
                let more = ready!(Pin::new(&mut this.inner).poll_read(cx, &mut this.buffer[this.read..]))?;
                if more == 0 {
                    return Poll::Ready(Ok(0));
                }
                this.read += more;
            }
            this.walk();
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
        async move { Ok(Guarded::new(Bare::Plain(connecting.await?), Arc::default())) }
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
                let mut guarded =
                    Guarded::new(Bare::connect(&Tokio::current(), vec![addr]).await.unwrap(), Arc::default());
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
            let large = Arc::new(Large::default());
            let mut guarded = Guarded::new(Bare::connect(&Tokio::current(), vec![addr]).await.unwrap(), large.clone());
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
