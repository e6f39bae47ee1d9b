//! A few requests to the administration API: one connection kept open, on the bus's own TLS.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, StatusCode,
    client::conn::http1::{SendRequest, handshake},
    header::{AUTHORIZATION, CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use polybus_core::{Kind, Result};
use time::OffsetDateTime;
use tokio::{net::TcpStream, sync::Mutex, time::timeout};

use crate::{
    config::CALL,
    connection::Wires,
    error,
    sas::Token,
    tls::{self, Handshake},
};

const VERSION: &str = "api-version=2021-05";
/// More than a page of entities takes.
const MOST: usize = 16 << 20;

/// An answer.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: String,
}

/// The administration API.
pub(crate) struct Http {
    wires: Arc<Wires>,
    /// A connection that answered its last request whole.
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl Http {
    pub(crate) fn new(wires: Arc<Wires>) -> Self {
        Self { wires, idle: Mutex::default() }
    }

    /// One request. What was sent on a kept connection that had just been closed is sent again: all of polybus' requests
    /// may be repeated.
    pub(crate) async fn request(&self, method: Method, path: &str, body: Option<String>) -> Result<Answer> {
        self.wires.ensure_open()?;
        let asking = async {
            loop {
                let kept = self.idle.lock().await.pop();
                let reused = kept.is_some();
                let sender = match kept {
                    Some(sender) => sender,
                    None => self.connect().await?,
                };
                match self.exchange(sender, &method, path, body.clone()).await {
                    Err(_) if reused => continue,
                    done => return done,
                }
            }
        };
        let answer = timeout(CALL, asking).await.unwrap_or_else(|_| Err(error::timeout("manage", CALL)));
        let api = &self.wires.config.management;
        answer.map_err(|e| e.with("management", format!("{}:{}", api.host, api.port)))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let api = &self.wires.config.management;
        let io = |e: std::io::Error| {
            error::new(Kind::Unavailable, "manage", format!("cannot connect to the administration API: {e}"))
                .caused_by(e)
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

    async fn exchange(
        &self,
        mut sender: SendRequest<Full<Bytes>>,
        method: &Method,
        path: &str,
        body: Option<String>,
    ) -> Result<Answer> {
        let config = &self.wires.config;
        let api = &config.management;
        let failed =
            |e: &dyn std::fmt::Display| error::new(Kind::Unavailable, "manage", format!("the administration API: {e}"));
        let joint = if path.contains('?') { '&' } else { '?' };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/{path}{joint}{VERSION}"))
            .header(HOST, format!("{}:{}", api.host, api.port))
            .header(CONTENT_TYPE, "application/atom+xml;type=entry;charset=utf-8");
        let resource = format!("https://{}/", config.host);
        if let Some(Token { text, .. }) = config.credential.token(&resource, OffsetDateTime::now_utc()) {
            request = request.header(AUTHORIZATION, text.reveal());
        }
        let request = request.body(Full::from(body.unwrap_or_default())).map_err(|e| failed(&e))?;
        sender.ready().await.map_err(|e| failed(&e))?;
        let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MOST).collect().await.map_err(|e| failed(&e))?.to_bytes();
        let body = String::from_utf8_lossy(&body).into_owned();
        self.idle.lock().await.push(sender);
        Ok(Answer { status, body })
    }
}

async fn start<S>(stream: TokioIo<S>) -> Result<SendRequest<Full<Bytes>>>
where
    TokioIo<S>: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(stream)
        .await
        .map_err(|e| error::new(Kind::Unavailable, "manage", format!("the administration API: {e}")))?;
    tokio::spawn(async move {
        // Its end shows at the next request.
        let _ = connection.await;
    });
    Ok(sender)
}
