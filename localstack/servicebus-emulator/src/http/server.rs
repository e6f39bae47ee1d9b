//! Accepts HTTP connections. Their first byte tells TLS from plain HTTP, and each step has a time limit.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::service::{Connection, HttpService};
use crate::faults::FaultOrder;
use crate::transport::{WebSocket, WriteTimeout};
use crate::{SharedState, amqp};

/// The time limit for the first byte, and for the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The time limit for a request's header, and between two requests. The service drops idle connections after two
/// minutes, too.
const HEAD: Duration = Duration::from_secs(120);
/// The pause after a failed accept. Most often the process is out of file descriptors, and an immediate retry would
/// fail too.
const REST: Duration = Duration::from_millis(50);
const MAX_HEAD_BYTES: usize = 64 * 1024;
const TLS_HANDSHAKE: u8 = 0x16;

/// Accepts connections for as long as it is polled; dropping it drops them. With `tls` both plain HTTP and TLS are
/// answered.
pub async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, shared: SharedState) {
    let service = Arc::new(HttpService::new(shared));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((socket, _)) => {
                connections.spawn(connection(socket, tls.clone(), service.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "an HTTP connection could not be accepted");
                sleep(REST).await;
            }
        }
    }
}

async fn connection(socket: TcpStream, tls: Option<TlsAcceptor>, service: Arc<HttpService>) {
    // With Nagle's algorithm the peer's delayed acknowledgements would hold answers back.
    let _ = socket.set_nodelay(true);
    let mut first = [0];
    match (timeout(HANDSHAKE, socket.peek(&mut first)).await, tls) {
        (Ok(Ok(1)), Some(tls)) if first[0] == TLS_HANDSHAKE => match timeout(HANDSHAKE, tls.accept(socket)).await {
            Ok(Ok(stream)) => serve_one(stream, service, true).await,
            Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
            Err(_) => tracing::debug!("TLS handshake timed out"),
        },
        (Ok(Ok(1)), _) if first[0] != TLS_HANDSHAKE => serve_one(socket, service, false).await,
        // The client sent nothing, hung up, or wants TLS where there is no certificate.
        _ => {}
    }
}

async fn serve_one<S>(stream: S, service: Arc<HttpService>, tls: bool)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let connection = Connection { tls, ..Connection::default() };
    let orders = service.shared.faults.orders();
    let answer = hyper::service::service_fn(|request| service.answer(request, &connection));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(WriteTimeout::new(stream)), answer)
        .with_upgrades();
    tokio::select! {
        served = served => {
            if let Err(error) = served {
                tracing::debug!(%error, "an HTTP connection ended");
            }
        }
        () = ordered_away(orders, &connection) => return,
    }
    let upgrade = connection.upgrade.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(upgrade) = upgrade
        && let Ok(upgraded) = upgrade.await
    {
        let socket = WebSocket::new(TokioIo::new(upgraded));
        amqp::serve_stream(socket, service.shared.clone()).await;
    }
}

/// Ends when the fault that drops connections applies to this one.
async fn ordered_away(mut orders: Receiver<FaultOrder>, connection: &Connection) {
    loop {
        match orders.recv().await {
            Ok(FaultOrder::DropConnections) if !connection.switching.load(Ordering::Acquire) => return,
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}
