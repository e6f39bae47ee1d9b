//! A client that writes requests byte by byte, and the emulator it talks to.

use std::net::SocketAddr;

use polybus_servicebus_emulator::clock::Clock;
use polybus_servicebus_emulator::{Emulator, EmulatorOptions};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// A time from which moving the clock shows.
pub(crate) const START_MS: i64 = 1_700_000_000_000;

/// An emulator whose clock stands still.
pub(crate) async fn emulator() -> Emulator {
    emulator_with(EmulatorOptions::default()).await
}

pub(crate) async fn emulator_with(options: EmulatorOptions) -> Emulator {
    Emulator::start(EmulatorOptions { clock: Clock::manual(START_MS), ..options }).await.expect("an emulator")
}

/// An answer as it came.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(crate) fn broker_properties(&self) -> serde_json::Value {
        serde_json::from_str(self.header("BrokerProperties").expect("BrokerProperties")).expect("JSON")
    }

    /// How often a text stands in the body.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.body.matches(text).count()
    }
}

/// One request on a connection of its own.
pub(crate) async fn ask(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    try_ask(address, method, path, headers, body).await.expect("an answer")
}

/// The same, with `None` when the connection ends without an answer.
pub(crate) async fn try_ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Option<Answer> {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    send(&mut stream, method, path, headers, body).await;
    receive(&mut stream).await
}

pub(crate) async fn send<S>(stream: &mut S, method: &str, path: &str, headers: &[(&str, &str)], body: &str)
where
    S: AsyncWrite + Unpin,
{
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: localhost:5300\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += "\r\n";
    request += body;
    stream.write_all(request.as_bytes()).await.expect("written");
}

pub(crate) async fn receive<S>(stream: &mut S) -> Option<Answer>
where
    S: AsyncRead + Unpin,
{
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        match stream.read(&mut part).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => bytes.extend_from_slice(&part[..read]),
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).expect("a head in UTF-8");
    let mut lines = head.lines();
    let status = lines.next().expect("a status line").split(' ').nth(1).expect("a status").parse().expect("a number");
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(": ").expect("a header"))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length: usize = length.map_or(0, |(_, value)| value.parse().expect("a length"));
    let mut body = bytes.split_off(end + 4);
    while body.len() < length {
        match stream.read(&mut part).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => body.extend_from_slice(&part[..read]),
        }
    }
    Some(Answer { status, headers, body: String::from_utf8(body).expect("a body in UTF-8") })
}
