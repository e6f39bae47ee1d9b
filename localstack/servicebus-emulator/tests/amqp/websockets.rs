//! AMQP over WebSockets, on the port of HTTP.

use polybus_servicebus_emulator::broker::QueueSettings;
use polybus_servicebus_emulator::{Emulator, EmulatorOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::AMQP_HEADER;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// Asks for a WebSocket; returns the head of the answer.
async fn handshake(socket: &mut TcpStream, headers: &str) -> String {
    let request = format!("GET /$servicebus/websocket HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
    socket.write_all(request.as_bytes()).await.expect("written");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.expect("a head"));
    }
    String::from_utf8(head).expect("text").to_lowercase()
}

fn headers(protocol: &str) -> String {
    format!(
        "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\
         Sec-WebSocket-Protocol: {protocol}\r\n"
    )
}

#[tokio::test]
async fn amqp_after_the_handshake() {
    let emulator = Emulator::start(EmulatorOptions::default()).await.expect("started");
    emulator.broker().create_queue("q", QueueSettings::default()).expect("q");
    for (offered, chosen) in [("amqp", "amqp"), ("other, AMQPWSB10", "amqpwsb10")] {
        let mut socket = TcpStream::connect(emulator.http_addr()).await.expect("connected");
        let head = handshake(&mut socket, &headers(offered)).await;
        assert!(head.starts_with("http/1.1 101"), "{head}");
        // The example of RFC 6455, section 1.3.
        assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
        assert!(head.contains(&format!("sec-websocket-protocol: {chosen}")), "{head}");
        // The protocol header in a frame whose mask is zero.
        socket.write_all(&[&[0x82, 0x88, 0, 0, 0, 0][..], AMQP_HEADER].concat()).await.expect("written");
        let mut answer = [0; 10];
        socket.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(answer, [&[0x82, 8][..], AMQP_HEADER].concat()[..]);
        emulator.faults().drop_connections();
        assert_eq!(socket.read(&mut answer).await.unwrap_or(0), 0, "dropped like any other connection");
    }
}

#[tokio::test]
async fn what_is_no_handshake_is_refused() {
    let emulator = Emulator::start(EmulatorOptions::default()).await.expect("started");
    let good = headers("amqp");
    let cases = [
        (String::new(), "http/1.1 426"),
        (good.replace("13", "8"), "http/1.1 426"),
        (good.replace("Upgrade: websocket\r\n", ""), "http/1.1 426"),
        (headers("mqtt"), "http/1.1 400"),
    ];
    for (headers, status) in cases {
        let mut socket = TcpStream::connect(emulator.http_addr()).await.expect("connected");
        let head = handshake(&mut socket, &headers).await;
        assert!(head.starts_with(status), "{headers}: {head}");
    }
}
