//! The AMQP 1.0 server. Each connection is one task with a protocol engine of its own.
//!
//! `connection.rs` moves bytes: it reads frames, writes what the engine produced, and runs the timers. `sasl.rs` comes
//! before it and negotiates the protocol and a login. `engine.rs` holds the state of the connection and handles one
//! frame at a time; `session.rs` is the state of one session.
//!
//! A message that a client sends arrives as transfers in `links/incoming.rs`, which joins them and stores the message
//! in the broker, or passes a request to `requests/`. A message that a client receives is taken from the broker by
//! `links/outgoing.rs`, and `links/settlement.rs` settles it. `wire/` decodes and encodes what all of them read and
//! write.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::SharedState;

mod connection;
mod engine;
#[cfg(test)]
mod fuzz_tests;
mod links;
mod requests;
mod sasl;
mod session;
mod wire;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The pause after a failed accept. Most often the process is out of file descriptors, and an immediate retry would
/// fail too.
const REST: Duration = Duration::from_millis(20);

/// The limits that the server announces to its clients.
#[derive(Clone, Debug)]
pub struct AmqpOptions {
    /// The container id.
    pub container: Arc<str>,
    /// The longest frame it takes.
    pub max_frame_size: u32,
    /// A client that is silent for twice as long is disconnected.
    pub idle_timeout: Duration,
}

impl Default for AmqpOptions {
    fn default() -> Self {
        Self {
            container: Arc::from("polybus-servicebus-emulator"),
            max_frame_size: 64 * 1024,
            idle_timeout: Duration::from_secs(120),
        }
    }
}

/// Accepts connections for as long as it is polled; dropping it drops them.
pub async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, shared: SharedState) {
    serve_with(listener, tls, shared, AmqpOptions::default()).await;
}

/// The same with other options.
pub async fn serve_with(listener: TcpListener, tls: Option<TlsAcceptor>, shared: SharedState, options: AmqpOptions) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((socket, _)) if !shared.faults.refuses() => {
                connections.spawn(connection(socket, tls.clone(), shared.clone(), options.clone()));
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(REST).await;
            }
        }
    }
}

async fn connection(mut socket: TcpStream, tls: Option<TlsAcceptor>, shared: SharedState, options: AmqpOptions) {
    // With Nagle's algorithm the peer's delayed acknowledgements would hold answers back.
    let _ = socket.set_nodelay(true);
    match tls {
        None => connection::serve(&mut socket, shared, options).await,
        Some(tls) => match timeout(HANDSHAKE, tls.accept(socket)).await {
            Ok(Ok(mut stream)) => connection::serve(&mut stream, shared, options).await,
            Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
            Err(_) => tracing::debug!("TLS handshake timed out"),
        },
    }
}

/// Serves one client on a stream that is ready for AMQP, such as a WebSocket.
pub async fn serve_stream<S>(mut stream: S, shared: SharedState)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin,
{
    connection::serve(&mut stream, shared, AmqpOptions::default()).await;
}
