//! The AMQP 1.0 server: one task per connection, an engine of its own in each.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::Shared;

mod answer;
mod attach;
mod cbs;
mod condition;
mod connection;
mod delivered;
mod engine;
mod frame;
#[cfg(test)]
mod fuzz_tests;
mod idle;
mod incoming;
mod io;
mod link;
mod management;
mod management_ids;
mod management_messages;
mod management_rules;
mod outgoing;
mod performative;
mod requests;
mod sasl;
mod session;
mod session_filter;
mod settlement;
mod state;
mod wake;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long accepting rests when the process is out of sockets.
const REST: Duration = Duration::from_millis(20);

/// What the server tells its clients.
#[derive(Clone, Debug)]
pub struct Options {
    /// The container id.
    pub container: Arc<str>,
    /// The longest frame it takes.
    pub max_frame_size: u32,
    /// A client that is silent for twice as long is disconnected.
    pub idle_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            container: Arc::from("polybus-servicebus-emulator"),
            max_frame_size: 64 * 1024,
            idle_timeout: Duration::from_secs(120),
        }
    }
}

/// Accepts connections for as long as it is polled; dropping it drops them.
pub async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Shared) {
    serve_with(listener, tls, shared, Options::default()).await;
}

/// The same with options of one's own.
pub async fn serve_with(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Shared, options: Options) {
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

async fn connection(mut socket: TcpStream, tls: Option<TlsAcceptor>, shared: Shared, options: Options) {
    // Without it, the peer's delayed acknowledgements hold answers back.
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
pub async fn serve_stream<S>(mut stream: S, shared: Shared)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin,
{
    connection::serve(&mut stream, shared, Options::default()).await;
}
