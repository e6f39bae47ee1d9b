//! A TCP proxy that can cut and stall connections, refuse new ones, and change what the broker sends.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// Changes the bytes of one connection on their way from the broker to the client.
///
/// It gets them in pieces of any size, returns what goes on to the client, and may keep some for later.
pub type ByteFilter = Box<dyn FnMut(&[u8]) -> Vec<u8> + Send>;

type MakeFilter = Box<dyn Fn() -> ByteFilter + Send + Sync>;

/// A TCP proxy before the broker. Dropping it cuts all its connections.
///
/// ```
/// # async fn f() -> std::io::Result<()> {
/// use polybus_conformance::Proxy;
///
/// let proxy = Proxy::start("localhost:5672").await?;
/// let url = format!("amqp://guest:guest@{}", proxy.addr());
/// proxy.cut();
/// # Ok(()) }
/// ```
pub struct Proxy {
    addr: SocketAddr,
    shared: Arc<ProxyState>,
    accepting: JoinHandle<()>,
    /// Keeps the port bound while nobody listens there, so that no other process takes it.
    _port: TcpSocket,
}

struct ProxyState {
    upstream: String,
    /// Whether new connections are to be accepted.
    wanted: watch::Sender<bool>,
    /// Whether the accepting task listens: it follows `wanted`.
    listening: watch::Sender<bool>,
    /// A change cuts every connection that was opened before it.
    generation: watch::Sender<u64>,
    stalled: watch::Sender<bool>,
    /// How many more bytes may go to the broker before a cut. Negative: no limit.
    budget: AtomicI64,
    /// Whether only the connection that uses the budget up is cut.
    alone: AtomicBool,
    opened: AtomicU64,
    sent: AtomicU64,
    filter: Option<MakeFilter>,
}

impl Proxy {
    /// Listens on a free local port and forwards to `upstream` (`host:port`).
    pub async fn start(upstream: impl Into<String>) -> io::Result<Self> {
        Self::listen(upstream.into(), None).await
    }

    /// Like [`Proxy::start`], and what the broker sends goes through a filter, which is made anew for each connection.
    pub async fn filtered(
        upstream: impl Into<String>,
        filter: impl Fn() -> ByteFilter + Send + Sync + 'static,
    ) -> io::Result<Self> {
        Self::listen(upstream.into(), Some(Box::new(filter))).await
    }

    async fn listen(upstream: String, filter: Option<MakeFilter>) -> io::Result<Self> {
        let port = socket(([127, 0, 0, 1], 0).into())?;
        let addr = port.local_addr()?;
        let listener = socket(addr)?.listen(BACKLOG)?;
        let shared = Arc::new(ProxyState {
            upstream,
            filter,
            wanted: watch::Sender::new(true),
            listening: watch::Sender::new(true),
            generation: watch::Sender::new(0),
            stalled: watch::Sender::new(false),
            budget: AtomicI64::new(-1),
            alone: AtomicBool::new(false),
            opened: AtomicU64::new(0),
            sent: AtomicU64::new(0),
        });
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        Ok(Self { addr, shared, accepting, _port: port })
    }

    /// The address at which the proxy listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Cuts every connection now. New ones are still accepted.
    pub fn cut(&self) {
        self.shared.cut();
    }

    /// Cuts every connection once this many more bytes have gone to the broker. The bytes after them never arrive.
    pub fn cut_after(&self, bytes: u32) {
        self.shared.alone.store(false, Ordering::SeqCst);
        self.shared.budget.store(i64::from(bytes), Ordering::SeqCst);
    }

    /// Like [`Proxy::cut_after`], but cuts only the connection that sends the last of these bytes.
    pub fn cut_one_after(&self, bytes: u32) {
        self.shared.alone.store(true, Ordering::SeqCst);
        self.shared.budget.store(i64::from(bytes), Ordering::SeqCst);
    }

    /// Refuses new connections, as a host does on which nobody listens, or accepts them again.
    ///
    /// Returns once the change has taken effect. With [`Proxy::cut`] it makes an outage.
    pub async fn refuse(&self, yes: bool) {
        self.shared.wanted.send_replace(!yes);
        let mut listening = self.shared.listening.subscribe();
        let _ = listening.wait_for(|listens| *listens != yes).await;
    }

    /// Holds every byte back in both directions without closing anything, or lets the bytes pass again.
    pub fn stall(&self, yes: bool) {
        self.shared.stalled.send_replace(yes);
    }

    /// How many connections were accepted so far.
    pub fn opened(&self) -> u64 {
        self.shared.opened.load(Ordering::SeqCst)
    }

    /// How many bytes went to the broker so far.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.shared.stalled.send_replace(false);
        self.shared.cut();
    }
}

impl ProxyState {
    fn cut(&self) {
        self.budget.store(-1, Ordering::SeqCst);
        self.generation.send_modify(|n| *n += 1);
    }

    /// How many of `n` bytes may go to the broker, and whether to cut after them.
    fn allow(&self, n: usize) -> (usize, bool) {
        let wanted = i64::try_from(n).unwrap_or(i64::MAX);
        let taken = self
            .budget
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| (left >= 0).then(|| (left - wanted).max(0)));
        match taken {
            Ok(left) if left <= wanted => (usize::try_from(left).unwrap_or(n), true),
            _ => (n, false),
        }
    }
}

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1024;

/// A socket at this address that shares its port with others of this process.
fn socket(addr: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseport(true)?;
    socket.bind(addr)?;
    Ok(socket)
}

async fn accept(mut listener: TcpListener, shared: Arc<ProxyState>) {
    let mut wanted = shared.wanted.subscribe();
    loop {
        tokio::select! {
            Ok(false) = async { wanted.wait_for(|w| !w).await.map(|w| *w) } => {
                let Ok(addr) = listener.local_addr() else { return };
                drop(listener);
                shared.listening.send_replace(false);
                if wanted.wait_for(|w| *w).await.is_err() {
                    return;
                }
                let Ok(again) = socket(addr).and_then(|s| s.listen(BACKLOG)) else { return };
                listener = again;
                shared.listening.send_replace(true);
            }
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { return };
                shared.opened.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(forward(client, shared.clone()));
            }
        }
    }
}

async fn forward(client: TcpStream, shared: Arc<ProxyState>) {
    let mut generation = shared.generation.subscribe();
    generation.mark_unchanged();
    let Ok(server) = TcpStream::connect(&shared.upstream).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::select! {
        // First, so that nothing more goes through after a cut, however much there is to forward.
        biased;
        _ = generation.changed() => {}
        () = pump(from_client, to_server, &shared, true, None) => {}
        () = pump(from_server, to_client, &shared, false, shared.filter.as_ref().map(|make| make())) => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &ProxyState,
    upwards: bool,
    mut filter: Option<ByteFilter>,
) {
    let mut stalled = shared.stalled.subscribe();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let n = match from.read(&mut buffer).await {
            Ok(n) if n > 0 => n,
            _ => return,
        };
        if stalled.wait_for(|s| !s).await.is_err() {
            return;
        }
        let (n, cut) = if upwards { shared.allow(n) } else { (n, false) };
        let written = match &mut filter {
            Some(filter) => to.write_all(&filter(&buffer[..n])).await,
            None => to.write_all(&buffer[..n]).await,
        };
        if written.is_err() {
            return;
        }
        if upwards {
            shared.sent.fetch_add(n as u64, Ordering::SeqCst);
        }
        if cut {
            let _ = to.flush().await;
            match shared.alone.load(Ordering::SeqCst) {
                true => shared.budget.store(-1, Ordering::SeqCst),
                false => shared.cut(),
            }
            return;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// A server that sends back what it gets.
    async fn echo() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut s, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut r, mut w) = s.split();
                    let _ = tokio::io::copy(&mut r, &mut w).await;
                });
            }
        });
        addr
    }

    async fn say(s: &mut TcpStream, text: &[u8]) -> io::Result<Vec<u8>> {
        s.write_all(text).await?;
        let mut back = vec![0; text.len()];
        s.read_exact(&mut back).await?;
        Ok(back)
    }

    #[tokio::test]
    async fn forwards_cuts_stalls_and_refuses() {
        let proxy = Proxy::start(echo().await).await.unwrap();
        let mut s = TcpStream::connect(proxy.addr()).await.unwrap();
        assert_eq!(say(&mut s, b"hello").await.unwrap(), b"hello");

        proxy.stall(true);
        assert!(timeout(Duration::from_millis(200), say(&mut s, b"wait")).await.is_err());
        proxy.stall(false);
        let mut back = [0; 4];
        s.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"wait");

        proxy.cut();
        assert!(timeout(Duration::from_secs(5), say(&mut s, b"x")).await.unwrap().is_err());
        let mut s = TcpStream::connect(proxy.addr()).await.unwrap();
        assert_eq!(say(&mut s, b"again").await.unwrap(), b"again");
        assert_eq!(proxy.opened(), 2);

        proxy.refuse(true).await;
        let refused = TcpStream::connect(proxy.addr()).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        proxy.refuse(false).await;
        let mut s = TcpStream::connect(proxy.addr()).await.unwrap();
        assert_eq!(say(&mut s, b"back").await.unwrap(), b"back");
    }

    #[tokio::test]
    async fn filters_what_comes_back_per_connection() {
        let number = || -> ByteFilter {
            let mut count = 0;
            Box::new(move |bytes| {
                count += bytes.len();
                bytes.iter().map(|b| b.to_ascii_uppercase()).chain(count.to_string().into_bytes()).collect()
            })
        };
        let proxy = Proxy::filtered(echo().await, number).await.unwrap();
        for _ in 0..2 {
            let mut s = TcpStream::connect(proxy.addr()).await.unwrap();
            for expected in [b"AB2", b"AB4"] {
                s.write_all(b"ab").await.unwrap();
                let mut back = [0; 3];
                s.read_exact(&mut back).await.unwrap();
                assert_eq!(&back, expected);
            }
        }
    }

    #[tokio::test]
    async fn cuts_after_so_many_bytes() {
        let proxy = Proxy::start(echo().await).await.unwrap();
        let mut s = TcpStream::connect(proxy.addr()).await.unwrap();
        assert_eq!(say(&mut s, b"12345").await.unwrap(), b"12345");
        proxy.cut_after(3);
        assert!(timeout(Duration::from_secs(5), say(&mut s, b"6789")).await.unwrap().is_err());
        assert_eq!(proxy.sent(), 8);

        let mut one = TcpStream::connect(proxy.addr()).await.unwrap();
        let mut two = TcpStream::connect(proxy.addr()).await.unwrap();
        assert_eq!(say(&mut two, b"1").await.unwrap(), b"1");
        proxy.cut_one_after(3);
        assert!(timeout(Duration::from_secs(5), say(&mut one, b"6789")).await.unwrap().is_err());
        assert_eq!(say(&mut two, b"still here").await.unwrap(), b"still here");
    }
}
