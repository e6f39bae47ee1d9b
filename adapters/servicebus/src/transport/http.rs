//! Requests over HTTP: connections kept open, on the bus's own TLS, for the administration API and what else speaks HTTP.

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
    amqp::connection::Wires,
    config::CALL,
    error,
    transport::{
        broker_clock::BrokerClock,
        tls::{self, Handshake},
    },
};

const VERSION: &str = "api-version=2021-05";
/// More than a page of entities takes.
const MOST: usize = 16 << 20;
/// Kept connections that are older may have been closed by the service: <https://learn.microsoft.com/azure/load-balancer/load-balancer-tcp-reset>
const FRESH: Duration = Duration::from_secs(60);
/// A message's properties are headers.
const HEADERS: usize = 512;

/// An answer in text.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: String,
}

/// A request.
pub(crate) struct Ask {
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Sent again where it is not known whether it was carried out.
    pub(crate) repeat: bool,
    pub(crate) limit: Duration,
}

/// An answer as it came, and when it began to come.
#[derive(Debug)]
#[cfg_attr(not(feature = "rest"), allow(dead_code))]
pub(crate) struct Told {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) at: Instant,
}

/// Everything that goes over HTTP.
pub(crate) struct Http {
    wires: Arc<Wires>,
    /// Connections that answered their last request whole.
    idle: Mutex<Vec<(SendRequest<Full<Bytes>>, Instant)>>,
    pub(crate) clock: BrokerClock,
}

impl Http {
    pub(crate) fn new(wires: Arc<Wires>) -> Self {
        Self { wires, idle: Mutex::default(), clock: BrokerClock::default() }
    }

    /// Whether anything may be asked that can wait.
    pub(crate) fn ensure_calm(&self, operation: &'static str) -> Result<()> {
        self.wires.ensure_calm(operation)
    }

    /// What an answer means that is none of success, after what came before it.
    pub(crate) fn judged(&self, e: Error) -> Error {
        self.wires.note(&e);
        self.wires.judged(e)
    }

    /// One request to the administration API. All of polybus' own may be repeated.
    pub(crate) async fn request(&self, method: Method, path: &str, body: Option<String>) -> Result<Answer> {
        let joint = if path.contains('?') { '&' } else { '?' };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/atom+xml;type=entry;charset=utf-8"));
        let body = body.unwrap_or_default();
        let target = format!("/{path}{joint}{VERSION}");
        let ask = Ask { method, target, headers, body: body.into(), repeat: true, limit: CALL };
        let told = self.ask(&ask, "manage").await?;
        Ok(Answer { status: told.status, body: String::from_utf8_lossy(&told.body).into_owned() })
    }

    /// One request, once more if it met a kept connection that had just been closed. An error that leaves open whether it was
    /// carried out says `MayDuplicate`, unless it may be repeated anyway.
    pub(crate) async fn ask(&self, ask: &Ask, operation: &'static str) -> Result<Told> {
        self.wires.ensure_open()?;
        let path = ask.target.split('?').next().unwrap_or_default();
        let path = percent_decode_str(path.trim_matches('/')).decode_utf8_lossy();
        self.wires.config.admits(&path).map_err(|e| e.with_operation(operation))?;
        let sent = AtomicBool::new(false);
        let asking = async {
            loop {
                let kept = self.kept().await;
                let reused = kept.is_some();
                let sender = match kept {
                    Some(sender) => sender,
                    None => self.connect().await?,
                };
                match self.exchange(sender, ask, &sent).await {
                    Err(_) if reused && (ask.repeat || !sent.load(Ordering::Acquire)) => continue,
                    done => return done,
                }
            }
        };
        let answer = timeout(ask.limit, asking).await.unwrap_or_else(|_| Err(error::timeout(operation, ask.limit)));
        let api = &self.wires.config.management;
        answer.map_err(|e| {
            let e = e.with_operation(operation).with_context("endpoint", format!("{}:{}", api.host, api.port));
            let open = sent.load(Ordering::Acquire) && !ask.repeat;
            if open && matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) { e.may_duplicate() } else { e }
        })
    }

    async fn kept(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().await;
        idle.retain(|(sender, since)| !sender.is_closed() && since.elapsed() < FRESH);
        idle.pop().map(|(sender, _)| sender)
    }

    async fn authorization(&self) -> Result<Option<HeaderValue>> {
        let config = &self.wires.config;
        let entity = config.entity.as_deref().unwrap_or_default();
        let token = config.credential.token(&format!("https://{}/{entity}", config.host)).await?;
        token.map(|token| token.header()).transpose()
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let limit = self.wires.config.connect_timeout;
        let late = |_| {
            let text = format!("cannot connect within {}", duration::format(limit));
            Err(error::new(ErrorKind::Unavailable, "connect", text))
        };
        timeout(limit, self.dial()).await.unwrap_or_else(late)
    }

    async fn dial(&self) -> Result<SendRequest<Full<Bytes>>> {
        let api = &self.wires.config.management;
        let io = |e: std::io::Error| {
            error::new(ErrorKind::Unavailable, "connect", format!("cannot connect over HTTP: {e}")).with_source(e)
        };
        let stream = TcpStream::connect((api.host.as_str(), api.port)).await.map_err(io)?;
        let _ = stream.set_nodelay(true);
        match self.wires.tls().filter(|_| api.tls) {
            None => start(TokioIo::new(stream)).await,
            Some(tls) => match tls::wrap(tls, &api.host, stream).await {
                Ok(stream) => start(TokioIo::new(stream)).await,
                Err(Handshake::Name(e)) => Err(e),
                Err(Handshake::Failed(e)) => Err(io(e)),
            },
        }
    }

    async fn exchange(&self, mut sender: SendRequest<Full<Bytes>>, ask: &Ask, sent: &AtomicBool) -> Result<Told> {
        let config = &self.wires.config;
        let api = &config.management;
        let failed = |e: &dyn std::fmt::Display| error::new(ErrorKind::Unavailable, "manage", format!("HTTP: {e}"));
        let mut request = Request::new(Full::new(ask.body.clone()));
        *request.method_mut() = ask.method.clone();
        *request.uri_mut() = ask.target.parse().map_err(|e| unusable(&e))?;
        *request.headers_mut() = ask.headers.clone();
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
        let most = MOST.max(config.max_message_size.saturating_mul(2));
        let (head, body) = response.into_parts();
        let body = Limited::new(body, most).collect().await.map_err(|e| failed(&e))?.to_bytes();
        self.idle.lock().await.push((sender, Instant::now()));
        if head.status.is_success() {
            self.wires.let_in();
        }
        self.clock.read(&head.headers);
        Ok(Told { status: head.status, headers: head.headers, body, at })
    }
}

fn unusable(e: &dyn std::fmt::Display) -> Error {
    error::new(ErrorKind::InvalidArgument, "manage", format!("HTTP: {e}"))
}

async fn start<S>(stream: TokioIo<S>) -> Result<SendRequest<Full<Bytes>>>
where
    TokioIo<S>: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, connection) = Builder::new()
        .max_headers(HEADERS)
        .handshake(stream)
        .await
        .map_err(|e| error::new(ErrorKind::Unavailable, "connect", format!("HTTP: {e}")))?;
    tokio::spawn(async move {
        // Its end shows at the next request.
        let _ = connection.await;
    });
    Ok(sender)
}
