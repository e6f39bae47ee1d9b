//! A receiver of webhooks: a real HTTP server that answers as a test says.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::Instant,
};
use tokio_rustls::TlsAcceptor;

/// How the receiver treats one connection.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    Answer(u16, Vec<(&'static str, String)>),
    /// Takes the request and never answers.
    Hangs,
    /// Closes the connection in place of an answer.
    Closes,
    /// Answers with something that is no HTTP.
    Babbles,
    /// Promises a body that never comes.
    PromisesBody,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) at: Instant,
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Received {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap().to_str().unwrap()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

#[derive(Default)]
struct Shared {
    acts: Mutex<VecDeque<Act>>,
    received: Mutex<Vec<Received>>,
}

/// The server. It ends when it is dropped.
pub(crate) struct Receiver {
    pub(crate) port: u16,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

impl Receiver {
    /// The acts are for one connection each; then 204 for each.
    pub(crate) async fn start(acts: impl IntoIterator<Item = Act>, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared { acts: Mutex::new(acts.into_iter().collect()), ..Shared::default() });
        let mut tasks = JoinSet::new();
        let of_task = shared.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let act = of_task.acts.lock().pop_front().unwrap_or(Act::Answer(204, Vec::new()));
                connections.spawn(serve(stream, tls.clone(), of_task.clone(), act));
            }
        });
        Self { port, shared, _tasks: tasks }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/alerts", self.port)
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.shared.received.lock().clone()
    }

    /// Waits for so many requests.
    pub(crate) async fn until(&self, requests: usize) -> Vec<Received> {
        let far = Instant::now() + Duration::from_secs(60);
        while self.received().len() < requests {
            assert!(Instant::now() < far, "{} of {requests} requests came", self.received().len());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.received()
    }
}

async fn serve(stream: TcpStream, tls: Option<TlsAcceptor>, shared: Arc<Shared>, act: Act) {
    match tls {
        Some(tls) => {
            // A client that does not trust this server ends the handshake.
            if let Ok(stream) = tls.accept(stream).await {
                speak(stream, shared, act).await;
            }
        }
        None => speak(stream, shared, act).await,
    }
}

async fn speak<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(mut stream: S, shared: Arc<Shared>, act: Act) {
    let raw: &[u8] = match &act {
        Act::Answer(..) => {
            let service = service_fn(move |request| answer(request, shared.clone(), act.clone()));
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            return;
        }
        Act::Hangs | Act::Closes => b"",
        Act::Babbles => b"220 mail.example.com ESMTP\r\n",
        Act::PromisesBody => b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n",
    };
    let mut some = vec![0; 4096];
    let _ = stream.read(&mut some).await;
    let _ = stream.write_all(raw).await;
    let _ = stream.flush().await;
    if !matches!(act, Act::Closes) {
        // Until the client goes.
        while stream.read(&mut some).await.is_ok_and(|n| n > 0) {}
    }
}

async fn answer(request: Request<Incoming>, shared: Arc<Shared>, act: Act) -> hyper::Result<Response<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let target = head.uri.to_string();
    shared.received.lock().push(Received { at: Instant::now(), target, headers: head.headers, body });
    let Act::Answer(status, headers) = act else { panic!("{act:?} is no answer") };
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(name, value);
    }
    Ok(response.body(Full::new(Bytes::from_static(b"{}"))).unwrap())
}
