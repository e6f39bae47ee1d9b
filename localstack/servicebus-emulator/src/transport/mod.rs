//! The byte streams that connections run on: TLS, the server's end of a WebSocket, and a time limit on writes.
//!
//! The AMQP server reads and writes any [`ByteStream`]. The HTTP server wraps its sockets in a [`WriteTimeout`] and,
//! after an upgrade, in a [`WebSocket`] that it hands to the AMQP server.

mod tls;
mod websocket;
mod write_timeout;

pub use tls::TlsIdentity;
pub(crate) use websocket::WebSocket;
pub(crate) use write_timeout::WriteTimeout;

use tokio::io::{AsyncRead, AsyncWrite};

/// A stream that AMQP runs on: TCP, TLS or a WebSocket.
pub(crate) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}
