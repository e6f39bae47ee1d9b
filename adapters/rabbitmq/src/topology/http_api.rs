//! A small client of the management API, for what AMQP itself does not tell: bindings, and messages that are not ready.
//!
//! It works only where the bus URL has `management`. A few small GETs need no HTTP client crate: HTTP/1.0 has neither
//! chunked bodies nor persistent connections, and TLS is the bus's own.

use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::{AsyncReadExt, AsyncWriteExt};
use lapin::tcp::AsyncTcpStream;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use polybus_core::{Error, ErrorKind, Result};
use serde_json::Value;
use tokio::time::timeout;

use crate::{
    config::{CALL, ManagementApi},
    error,
    transport::{connection::DriverConnections, tls},
};

/// The largest answer that is read, in bytes: more than a list of a few hundred queues takes.
const MAX_ANSWER: u64 = 16 << 20;

/// The counts of one queue, as the management API gathered them last.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct QueueCounts {
    /// Ready and unacknowledged messages together.
    pub(crate) messages: u64,
    pub(crate) unacknowledged: u64,
}

/// The product name and version of the broker.
pub(crate) async fn version(connections: &DriverConnections) -> Result<String> {
    let overview = get(connections, "/api/overview?columns=product_name,product_version,rabbitmq_version").await?;
    let field = |name: &str| overview.get(name).and_then(Value::as_str);
    let version = field("product_version").or(field("rabbitmq_version")).unwrap_or("of unknown version");
    Ok(format!("{} {version}", field("product_name").unwrap_or("RabbitMQ")))
}

/// The routing keys that bind the queue or exchange `to` to the exchange `from`.
pub(crate) async fn bindings(
    connections: &DriverConnections,
    from: &str,
    to: &str,
    to_exchange: bool,
) -> Result<Vec<String>> {
    let kind = if to_exchange { 'e' } else { 'q' };
    let path = format!("/api/bindings/{}/e/{}/{kind}/{}", vhost(connections), escape(from), escape(to));
    let found = get(connections, &path).await?;
    let keys = found.as_array().into_iter().flatten().filter_map(|b| b.get("routing_key")?.as_str());
    Ok(keys.map(Into::into).collect())
}

/// The name and counts of every queue whose name begins with `prefix`.
pub(crate) async fn counts(connections: &DriverConnections, prefix: &str) -> Result<Vec<(String, QueueCounts)>> {
    let pattern = escape(&format!("^{}", regex_quote(prefix)));
    let columns = "columns=name,messages,messages_unacknowledged";
    let path = format!("/api/queues/{}?{columns}&name={pattern}&use_regex=true&pagination=false", vhost(connections));
    let found = get(connections, &path).await?;
    let list = found.as_array().or_else(|| found.get("items")?.as_array());
    let counts = list.into_iter().flatten().filter_map(|queue| {
        let name = queue.get("name")?.as_str().filter(|name| name.starts_with(prefix))?;
        // A queue that was made just now has no counts yet.
        let count = |field: &str| queue.get(field).and_then(Value::as_u64).unwrap_or(0);
        let counts = QueueCounts { messages: count("messages"), unacknowledged: count("messages_unacknowledged") };
        Some((name.to_owned(), counts))
    });
    Ok(counts.collect())
}

fn vhost(connections: &DriverConnections) -> String {
    escape(&connections.config.vhost)
}

fn escape(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// Escapes a name for use in a regular expression.
fn regex_quote(text: &str) -> String {
    text.chars().flat_map(|c| (!c.is_alphanumeric()).then_some('\\').into_iter().chain([c])).collect()
}

/// Gets a path, within the limit for calls. Without `management` in the bus URL it is `Unsupported`.
async fn get(connections: &DriverConnections, path: &str) -> Result<Value> {
    let Some(api) = &connections.config.management else {
        return Err(Error::unsupported("the bus URL names no management="));
    };
    match timeout(CALL, fetch(connections, api, path)).await {
        Ok(done) => done.map_err(|e| e.with_context("management", format!("{}:{}", api.host, api.port))),
        Err(_) => Err(error::timeout("management", CALL)),
    }
}

/// One request on a connection of its own.
async fn fetch(connections: &DriverConnections, api: &ManagementApi, path: &str) -> Result<Value> {
    let io = |e: std::io::Error| {
        error::new(ErrorKind::Unavailable, "management", format!("management API: {e}")).with_source(e)
    };
    let runtime = lapin::runtime::default_runtime().map_err(|e| error::of(&e, "management"))?;
    let found: Vec<_> = tokio::net::lookup_host((api.host.as_str(), api.port)).await.map_err(io)?.collect();
    let mut stream = AsyncTcpStream::connect(&runtime, found).await.map_err(io)?;
    if api.tls {
        let own = connections.tls.clone();
        let tls = own.map_or_else(|| tls::connector(&connections.config), Ok)?;
        stream = tls.wrap(stream, &api.host).await.map_err(io)?;
    }
    let login = STANDARD.encode(format!("{}:{}", api.user, api.password));
    let host = if api.host.contains(':') { format!("[{}]", api.host) } else { api.host.clone() };
    let request = format!(
        "GET {}{path} HTTP/1.0\r\nHost: {}:{}\r\nAuthorization: Basic {login}\r\nAccept: application/json\r\n\r\n",
        api.path, host, api.port
    );
    stream.write_all(request.as_bytes()).await.map_err(io)?;
    stream.flush().await.map_err(io)?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await.map_err(io)?;
    parse(&answer)
}

/// Reads an HTTP answer with a body of JSON.
fn parse(answer: &[u8]) -> Result<Value> {
    let wrong = |text: String| error::new(ErrorKind::Unexpected, "management", text);
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n");
    let end = end.ok_or_else(|| wrong("management API: no HTTP answer".into()))?;
    let head = String::from_utf8_lossy(&answer[..end]);
    let status = head.split(' ').nth(1).and_then(|code| code.parse::<u16>().ok()).unwrap_or(0);
    match status {
        200 => serde_json::from_slice(&answer[end + 4..]).map_err(|e| wrong(format!("management API: {e}"))),
        401 => Err(error::new(ErrorKind::Unauthenticated, "management", "management API: wrong user name or password")),
        403 => Err(error::new(ErrorKind::PermissionDenied, "management", "management API: this user may not look")),
        404 => Err(error::new(ErrorKind::NotFound, "management", "management API: not found")),
        other => Err(wrong(format!("management API: status {other}"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn answers() {
        let ok = parse(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n[{\"name\":\"q\"}]").unwrap();
        assert_eq!(ok[0]["name"], "q");
        for (answer, kind) in [
            (&b"HTTP/1.1 401 Unauthorized\r\n\r\n{}"[..], ErrorKind::Unauthenticated),
            (b"HTTP/1.1 404 Not Found\r\n\r\n{}", ErrorKind::NotFound),
            (b"HTTP/1.1 200 OK\r\n\r\n{cut", ErrorKind::Unexpected),
            (b"\x00\x01", ErrorKind::Unexpected),
        ] {
            assert_eq!(parse(answer).unwrap_err().kind(), kind);
        }
        assert_eq!(regex_quote("a.b-c1"), "a\\.b\\-c1");
    }
}
