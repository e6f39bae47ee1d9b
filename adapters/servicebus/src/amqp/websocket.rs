//! AMQP over WebSockets, where only HTTPS passes: the handshake, and the byte stream that AMQP sees.
//! <https://docs.oasis-open.org/amqp-bindmap/amqp-wsb/v1.0/amqp-wsb-v1.0.html>

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::{Sink, Stream};
use polybus_core::{Error, ErrorKind, Result};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        self, Message,
        client::IntoClientRequest,
        handshake::client::{Request, Response},
        http::{
            StatusCode,
            header::{CONTENT_TYPE, HeaderValue, SEC_WEBSOCKET_PROTOCOL},
        },
    },
};

use crate::{
    config::{Config, config_error},
    error,
};

const WEBSOCKET_PATH: &str = "/$servicebus/websocket";
/// The name that Microsoft's SDKs ask for; the standard's is `amqp`.
const SUBPROTOCOL: &str = "AMQPWSB10";

/// A WebSocket as a byte stream. The boundaries of its messages mean nothing to AMQP.
pub(crate) struct WebSocket<S> {
    socket: WebSocketStream<S>,
    unread: Bytes,
    ended: bool,
}

/// Makes the handshake. It does not send the credential, which goes over AMQP later.
pub(crate) async fn open<S>(config: &Config, stream: S) -> Result<WebSocket<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (socket, _) = client_async(request(config)?, stream).await.map_err(|e| connect_error(e, config))?;
    Ok(WebSocket { socket, unread: Bytes::new(), ended: false })
}

fn request(config: &Config) -> Result<Request> {
    let scheme = if config.tls { "wss" } else { "ws" };
    let host = if config.host.contains(':') { format!("[{}]", config.host) } else { config.host.clone() };
    let authority = match (config.tls, config.port) {
        (true, 443) | (false, 80) => host,
        (_, port) => format!("{host}:{port}"),
    };
    let request = format!("{scheme}://{authority}{WEBSOCKET_PATH}").into_client_request();
    let mut request = request.map_err(|e| config_error(format!("host: {e}")))?;
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    Ok(request)
}

/// The error of a failed handshake. The body of the answer is not shown, since anybody may have written it.
fn connect_error(e: tungstenite::Error, config: &Config) -> Error {
    let error = match e {
        tungstenite::Error::Http(answer) => status_error(&answer),
        tungstenite::Error::Io(e) => {
            error::new(ErrorKind::Unavailable, "connect", format!("cannot connect over WebSockets: {e}")).with_source(e)
        }
        other => error::new(ErrorKind::Unavailable, "connect", format!("the peer does not speak WebSockets: {other}")),
    };
    error.with_context("address", config.address())
}

fn status_error(answer: &Response) -> Error {
    let status = answer.status();
    let kind = match status {
        StatusCode::UNAUTHORIZED | StatusCode::PROXY_AUTHENTICATION_REQUIRED => ErrorKind::Unauthenticated,
        StatusCode::FORBIDDEN => ErrorKind::PermissionDenied,
        StatusCode::TOO_MANY_REQUESTS => ErrorKind::Throttled,
        // 404 is among them: gateways answer it while the service behind them starts. It says nothing about a queue.
        _ => ErrorKind::Unavailable,
    };
    let is_page = answer.headers().get(CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"text/html"));
    let guess = if is_page { ", with a page in HTML: does a proxy answer in the broker's place?" } else { "" };
    let text = format!("the WebSocket at {WEBSOCKET_PATH} was answered with {status}{guess}");
    error::new(kind, "connect", text).with_context("status", status.as_u16())
}

fn io_error(e: tungstenite::Error) -> io::Error {
    match e {
        tungstenite::Error::Io(e) => e,
        other => io::Error::other(other),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.unread.is_empty() {
            if this.ended {
                return Poll::Ready(Ok(()));
            }
            match ready!(Pin::new(&mut this.socket).poll_next(context)) {
                Some(Ok(Message::Binary(bytes))) => this.unread = bytes,
                Some(Ok(Message::Text(_))) => {
                    let text = "text on a WebSocket that carries AMQP";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
                }
                // After a close message the peer sends nothing more, even if the connection stays open.
                Some(Ok(Message::Close(_))) | None => this.ended = true,
                // The library answers pings itself.
                Some(Ok(_)) => {}
                Some(Err(e)) => return Poll::Ready(Err(io_error(e))),
            }
        }
        let size = this.unread.len().min(into.remaining());
        into.put_slice(&this.unread.split_to(size));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocket<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut socket = Pin::new(&mut self.get_mut().socket);
        ready!(socket.as_mut().poll_ready(context)).map_err(io_error)?;
        socket.start_send(Message::Binary(Bytes::copy_from_slice(bytes))).map_err(io_error)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(context).map_err(io_error)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = &mut self.get_mut().socket;
        ready!(Pin::new(&mut *socket).poll_close(context)).map_err(io_error)?;
        Pin::new(socket.get_mut()).poll_shutdown(context)
    }
}

impl<S> fmt::Debug for WebSocket<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebSocket").field("ended", &self.ended).finish_non_exhaustive()
    }
}
