//! What is not HTTP, too large, or on the wrong port. It ends its own connection at most.

use std::sync::Arc;

use polybus_servicebus_emulator::{Emulator, EmulatorOptions, TlsIdentity};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::client::{ask, emulator, emulator_with, receive, send};

async fn raw(emulator: &Emulator, bytes: &[u8]) -> Option<u16> {
    let mut stream = TcpStream::connect(emulator.http_addr()).await.expect("a connection");
    // It may hang up before it has read everything.
    let _ = stream.write_all(bytes).await;
    receive(&mut stream).await.map(|answer| answer.status)
}

#[tokio::test]
async fn nonsense_is_the_clients_fault() {
    let emulator = emulator().await;
    assert_eq!(raw(&emulator, b"\x00\x01\x02\x03\r\n\r\n").await, Some(400));
    assert_eq!(raw(&emulator, b"GET / HTTP/9.9\r\n\r\n").await, Some(400));
    assert_eq!(raw(&emulator, b"GET /q HTTP/1.1\r\nbroken header\r\n\r\n").await, Some(400));
    assert_eq!(raw(&emulator, b"AMQP\x00\x01\x00\x00").await, Some(400));
    let large = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(200_000));
    assert_eq!(raw(&emulator, large.as_bytes()).await, Some(431));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(1000));
    assert_eq!(raw(&emulator, many.as_bytes()).await, Some(431));
    // TLS where there is no certificate.
    assert_eq!(raw(&emulator, b"\x16\x03\x01\x00\x05hello").await, None);
    assert_eq!(ask(emulator.http_addr(), "GET", "/health", &[], "").await.status, 200);
}

#[tokio::test]
async fn bodies_are_bounded() {
    let emulator = emulator().await;
    let at = emulator.http_addr();
    assert_eq!(ask(at, "PUT", "/q", &[], &"x".repeat(1024 * 1024 + 1)).await.status, 413);
    assert_eq!(ask(at, "POST", "/$emulator/clock", &[], &"x".repeat(64 * 1024 + 1)).await.status, 413);
    assert_eq!(ask(at, "POST", "/q/messages/head", &[], &"x".repeat(2000)).await.status, 413);
    let broken = b"PUT /q HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n\r\n";
    assert_eq!(raw(&emulator, broken).await, Some(400));
}

#[tokio::test(start_paused = true)]
async fn slow_clients_are_given_up() {
    let emulator =
        emulator_with(EmulatorOptions { tls: Some(TlsIdentity::self_signed().unwrap()), ..EmulatorOptions::default() })
            .await;
    let started = Instant::now();
    for (said, status, seconds) in [
        ("", None, 10),
        ("\u{16}\u{3}", None, 10),
        ("GET /q HTT", None, 120),
        ("PUT /q HTTP/1.1\r\nContent-Length: 5\r\n\r\nab", Some(408), 30),
        ("POST /q/messages HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", Some(408), 30),
    ] {
        let before = started.elapsed();
        assert_eq!(raw(&emulator, said.as_bytes()).await, status, "{said}");
        assert_eq!((started.elapsed() - before).as_secs(), seconds, "{said}");
    }
}

#[tokio::test]
async fn unknown_methods_and_paths_are_told() {
    let emulator = emulator().await;
    let at = emulator.http_addr();
    for (status, method, path) in [
        (405, "PATCH", "/q"),
        (405, "POST", "/q"),
        (405, "PUT", "/$Resources/queues"),
        (405, "DELETE", "/$namespaceinfo"),
        (405, "PATCH", "/q/messages"),
        (404, "GET", "/$emulator/else"),
        (200, "GET", "/"),
        (200, "GET", "/$namespaceinfo"),
    ] {
        assert_eq!(ask(at, method, path, &[], "").await.status, status, "{method} {path}");
    }
}

#[tokio::test]
async fn one_connection_serves_many_requests() {
    let emulator = emulator().await;
    let mut stream = TcpStream::connect(emulator.http_addr()).await.unwrap();
    for _ in 0..3 {
        send(&mut stream, "GET", "/health", &[], "").await;
        assert_eq!(receive(&mut stream).await.expect("an answer").status, 200);
    }
}

#[tokio::test]
async fn one_port_serves_http_and_https() {
    let tls = TlsIdentity::self_signed().unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(tls.certificate().as_bytes()).unwrap()).unwrap();
    let emulator = emulator_with(EmulatorOptions { tls: Some(tls), ..EmulatorOptions::default() }).await;
    let at = emulator.http_addr();
    assert_eq!(ask(at, "GET", "/health", &[], "").await.status, 200);

    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let connector = TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()));
    let socket = TcpStream::connect(at).await.unwrap();
    let mut stream = connector.connect(ServerName::try_from("localhost").unwrap(), socket).await.unwrap();
    send(&mut stream, "GET", "/$namespaceinfo", &[], "").await;
    let answer = receive(&mut stream).await.expect("an answer");
    assert_eq!((answer.status, answer.count("<id>https://localhost:5300/$namespaceinfo</id>")), (200, 1));
}

#[tokio::test]
async fn stopping_ends_what_is_open() {
    let emulator = emulator().await;
    let mut stream = TcpStream::connect(emulator.http_addr()).await.unwrap();
    send(&mut stream, "GET", "/health", &[], "").await;
    assert_eq!(receive(&mut stream).await.expect("an answer").status, 200);
    emulator.stop().await;
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
}
