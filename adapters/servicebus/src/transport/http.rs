//! Requests over HTTP to the namespace, over connections that are kept open.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    HeaderMap, Method, Request, StatusCode,
    client::conn::http1::{Builder, SendRequest},
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use polybus_core::{Error, ErrorKind, Result, driver::kit::duration};
use tokio::{
    net::TcpStream,
    sync::Mutex,
    time::{Instant, timeout},
};

use crate::{
    config::CALL_TIMEOUT,
    error,
    transport::{
        broker_clock::BrokerClock,
        namespace::Namespace,
        tls::{self, TlsError},
    },
};

const API_VERSION: &str = "api-version=2021-05";
/// In bytes: more than a page of entities takes.
const MAX_RESPONSE_BYTES: usize = 16 << 20;
/// The service may have closed connections that are idle for longer:
/// <https://learn.microsoft.com/azure/load-balancer/load-balancer-tcp-reset>
const MAX_IDLE: Duration = Duration::from_secs(60);
/// The most headers of an answer: the properties of a message are headers.
const MAX_HEADERS: usize = 512;

/// A connection, to send requests on.
type HttpSender = SendRequest<Full<Bytes>>;

/// An answer as text.
pub(crate) struct TextResponse {
    pub(crate) status: StatusCode,
    pub(crate) body: String,
}

/// A request.
pub(crate) struct HttpRequest {
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Whether it may be sent again where it is not known whether it was carried out.
    pub(crate) repeatable: bool,
    pub(crate) limit: Duration,
}

/// An answer as it came, and when its head came.
#[derive(Debug)]
#[cfg_attr(not(feature = "rest"), allow(dead_code))]
pub(crate) struct HttpResponse {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) at: Instant,
}

/// A pool of HTTP connections to the namespace.
pub(crate) struct HttpPool {
    namespace: Arc<Namespace>,
    /// Connections whose last answer was read to its end.
    idle: Mutex<Vec<(HttpSender, Instant)>>,
    pub(crate) clock: BrokerClock,
}

impl HttpPool {
    pub(crate) fn new(namespace: Arc<Namespace>) -> Self {
        Self { namespace, idle: Mutex::default(), clock: BrokerClock::default() }
    }

    /// `Throttled` while the broker is busy.
    #[cfg(feature = "rest")]
    pub(crate) fn ensure_not_busy(&self, operation: &'static str) -> Result<()> {
        self.namespace.ensure_not_busy(operation)
    }

    /// Notes whether the broker is busy, and classifies a refused login: see [`Namespace::classify_refusal`].
    #[cfg(feature = "rest")]
    pub(crate) fn classify_refusal(&self, e: Error) -> Error {
        self.namespace.note_busy(&e);
        self.namespace.classify_refusal(e)
    }

    /// Sends a request to the administration API. All that polybus makes may be repeated.
    pub(crate) async fn request(&self, method: Method, path: &str, body: Option<String>) -> Result<TextResponse> {
        let joint = if path.contains('?') { '&' } else { '?' };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/atom+xml;type=entry;charset=utf-8"));
        let body = body.unwrap_or_default();
        let target = format!("/{path}{joint}{API_VERSION}");
        let call = HttpRequest { method, target, headers, body: body.into(), repeatable: true, limit: CALL_TIMEOUT };
        let response = self.send(&call, "manage").await?;
        Ok(TextResponse { status: response.status, body: String::from_utf8_lossy(&response.body).into_owned() })
    }

    /// Sends a request, and sends it again if a kept connection turns out to be closed. An error is `MayDuplicate` if
    /// it is not known whether the request was carried out, unless it may be repeated anyway.
    pub(crate) async fn send(&self, call: &HttpRequest, operation: &'static str) -> Result<HttpResponse> {
        self.namespace.ensure_open()?;
        let path = call.target.split('?').next().unwrap_or_default();
        let path = percent_decode_str(path.trim_matches('/')).decode_utf8_lossy();
        self.namespace.config.admits(&path).map_err(|e| e.with_operation(operation))?;
        let sent = AtomicBool::new(false);
        let asking = async {
            loop {
                let idle = self.take_idle().await;
                let reused = idle.is_some();
                let sender = match idle {
                    Some(sender) => sender,
                    None => self.connect().await?,
                };
                match self.exchange(sender, call, &sent).await {
                    Err(_) if reused && (call.repeatable || !sent.load(Ordering::Acquire)) => continue,
                    done => return done,
                }
            }
        };
        let answer = timeout(call.limit, asking).await.unwrap_or_else(|_| Err(error::timeout(operation, call.limit)));
        let api = &self.namespace.config.management;
        answer.map_err(|e| {
            let e = e.with_operation(operation).with_context("endpoint", format!("{}:{}", api.host, api.port));
            let open = sent.load(Ordering::Acquire) && !call.repeatable;
            if open && matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) { e.may_duplicate() } else { e }
        })
    }

    async fn take_idle(&self) -> Option<HttpSender> {
        let mut idle = self.idle.lock().await;
        idle.retain(|(sender, since)| !sender.is_closed() && since.elapsed() < MAX_IDLE);
        idle.pop().map(|(sender, _)| sender)
    }

    async fn authorization(&self) -> Result<Option<HeaderValue>> {
        let config = &self.namespace.config;
        let entity = config.entity.as_deref().unwrap_or_default();
        let token = config.credential.token(&format!("https://{}/{entity}", config.host)).await?;
        token.map(|token| token.header()).transpose()
    }

    async fn connect(&self) -> Result<HttpSender> {
        let limit = self.namespace.config.connect_timeout;
        let late = |_| {
            let text = format!("cannot connect within {}", duration::format(limit));
            Err(error::new(ErrorKind::Unavailable, "connect", text))
        };
        timeout(limit, self.dial()).await.unwrap_or_else(late)
    }

    async fn dial(&self) -> Result<HttpSender> {
        let api = &self.namespace.config.management;
        let io = |e: std::io::Error| {
            error::new(ErrorKind::Unavailable, "connect", format!("cannot connect over HTTP: {e}")).with_source(e)
        };
        let stream = TcpStream::connect((api.host.as_str(), api.port)).await.map_err(io)?;
        let _ = stream.set_nodelay(true);
        match self.namespace.tls().filter(|_| api.tls) {
            None => start_connection(TokioIo::new(stream)).await,
            Some(tls) => match tls::wrap(tls, &api.host, stream).await {
                Ok(stream) => start_connection(TokioIo::new(stream)).await,
                Err(TlsError::InvalidName(e)) => Err(e),
                Err(TlsError::Handshake(e)) => Err(io(e)),
            },
        }
    }

    async fn exchange(&self, mut sender: HttpSender, call: &HttpRequest, sent: &AtomicBool) -> Result<HttpResponse> {
        let config = &self.namespace.config;
        let api = &config.management;
        let failed = |e: &dyn std::fmt::Display| error::new(ErrorKind::Unavailable, "manage", format!("HTTP: {e}"));
        let mut request = Request::new(Full::new(call.body.clone()));
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = call.target.parse().map_err(|e| unusable(&e))?;
        *request.headers_mut() = call.headers.clone();
        let host = HeaderValue::from_str(&format!("{}:{}", api.host, api.port)).map_err(|e| unusable(&e))?;
        request.headers_mut().insert(HOST, host);
        if let Some(token) = self.authorization().await? {
            request.headers_mut().insert(AUTHORIZATION, token);
        }
        sender.ready().await.map_err(|e| failed(&e))?;
        sent.store(true, Ordering::Release);
        let response = sender.try_send_request(request).await.map_err(|mut e| {
            if e.take_message().is_some() {
                sent.store(false, Ordering::Release);
            }
            failed(e.error())
        })?;
        let at = Instant::now();
        let most = MAX_RESPONSE_BYTES.max(config.max_message_size.saturating_mul(2));
        let (head, body) = response.into_parts();
        let body = Limited::new(body, most).collect().await.map_err(|e| failed(&e))?.to_bytes();
        self.idle.lock().await.push((sender, Instant::now()));
        if head.status.is_success() {
            self.namespace.note_login();
        }
        self.clock.read(&head.headers);
        Ok(HttpResponse { status: head.status, headers: head.headers, body, at })
    }
}

fn unusable(e: &dyn std::fmt::Display) -> Error {
    error::new(ErrorKind::InvalidArgument, "manage", format!("HTTP: {e}"))
}

async fn start_connection<S>(stream: TokioIo<S>) -> Result<HttpSender>
where
    TokioIo<S>: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, connection) = Builder::new()
        .max_headers(MAX_HEADERS)
        .handshake(stream)
        .await
        .map_err(|e| error::new(ErrorKind::Unavailable, "connect", format!("HTTP: {e}")))?;
    tokio::spawn(async move {
        // The next request on the connection finds out that it has ended.
        let _ = connection.await;
    });
    Ok(sender)
}
