//! The byte streams that connections run on.

use tokio::io::{AsyncRead, AsyncWrite};

/// TCP, TLS or a WebSocket.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}
