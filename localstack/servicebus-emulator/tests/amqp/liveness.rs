//! Heartbeats, faults, TLS, and what connections leave behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use polybus_servicebus_emulator::codec::Value;
use polybus_servicebus_emulator::{SharedState, amqp};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig, crypto::aws_lc_rs};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::client::{
    ACCEPTED, AMQP_HEADER, ATTACH, BEGIN, CLOSE, Client, DETACH, FLOW, OPEN, TRANSFER, flow, frame, receiver, state,
};
use crate::support::{emulator, message, text_of};

/// A client with nothing between it and the server: a clock that stands still runs on while bytes are on their way
/// through sockets.
fn beside(shared: &SharedState) -> Client {
    let (near, far) = tokio::io::duplex(64 * 1024);
    tokio::spawn(amqp::serve_stream(far, shared.clone()));
    Client { socket: Box::new(near) }
}

#[tokio::test(start_paused = true)]
async fn a_client_with_an_idle_time_out_gets_heartbeats() {
    let emulator = emulator().await;
    let mut client = beside(&emulator.shared);
    client.open(65536, Some(100)).await;
    for _ in 0..5 {
        let since = tokio::time::Instant::now();
        assert!(client.next_or_heartbeat().await.is_none());
        assert!(since.elapsed() < Duration::from_millis(100), "{:?}", since.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_disconnected_and_a_beating_one_is_not() {
    let emulator = emulator().await;
    let mut silent = beside(&emulator.shared);
    let open = silent.open(65536, None).await;
    assert_eq!(open.number(4), 120_000);
    let mut beating = beside(&emulator.shared);
    beating.open(65536, None).await;
    beating.begin(0).await;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        beating.write(&frame(0, 0, &[])).await;
    }
    beating.expect_nothing().await;
    assert_eq!(silent.expect(CLOSE).await.condition(0), "amqp:connection:forced");
    silent.expect_end_of_stream().await;
}

#[tokio::test]
async fn close_is_answered() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    client.send(0, CLOSE, Vec::new()).await;
    assert!(client.expect(CLOSE).await.field(0).is_null());
    client.expect_end_of_stream().await;
}

#[tokio::test]
async fn connections_are_dropped_and_refused_on_request() {
    let emulator = emulator().await;
    let faults = &emulator.shared.faults;
    let mut client = Client::begun(&emulator.address).await;
    faults.drop_connections();
    client.expect_end_of_stream().await;
    faults.refuse_connections(true);
    let mut client = Client::connect(&emulator.address).await;
    client.expect_end_of_stream().await;
    faults.clear();
    let mut client = Client::begun(&emulator.address).await;
    client.sender(0, "q").await;
    faults.drop_after_frames(2);
    assert_eq!(client.publish(0, 0, &message("1")).await, state(ACCEPTED));
    client.transfer(0, 1, 0, false, &message("2")).await;
    client.expect_end_of_stream().await;
    assert_eq!(emulator.stored("q"), 1, "the second frame was not handled");
    Client::begun(&emulator.address).await;
}

#[tokio::test]
async fn links_are_detached_on_request() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    client.sender(0, "q").await;
    client.receiver(1, "q/$DeadLetterQueue").await;
    emulator.shared.faults.detach("deadletter", "amqp:link:detach-forced", "moved");
    let detach = client.expect(DETACH).await;
    assert_eq!((detach.number(0), detach.condition(2)), (1, "amqp:link:detach-forced"));
    assert_eq!(client.publish(0, 0, &message("1")).await, state(ACCEPTED));
}

#[tokio::test]
async fn frames_are_held_back_on_request() {
    let emulator = emulator().await;
    let mut client = Client::begun(&emulator.address).await;
    emulator.shared.faults.delay_frames(Duration::from_millis(50));
    let since = Instant::now();
    client.expect_nothing().await;
    assert!(since.elapsed() >= Duration::from_millis(50));
}

/// A server's configuration and a client's that trusts it.
fn tls() -> (TlsAcceptor, TlsConnector) {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(aws_lc_rs::default_provider());
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .expect("a server");
    let mut roots = RootCertStore::empty();
    roots.add(certified.cert.der().clone()).expect("a root");
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    (TlsAcceptor::from(Arc::new(server)), TlsConnector::from(Arc::new(client)))
}

#[tokio::test]
async fn the_same_over_tls() {
    let emulator = emulator().await;
    let (acceptor, connector) = tls();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let server = tokio::spawn(amqp::serve(listener, Some(acceptor), emulator.shared.clone()));
    // Who does not speak TLS is let go of.
    let mut plain = Client::connect(&address.to_string()).await;
    plain.write(AMQP_HEADER).await;
    let socket = TcpStream::connect(address).await.expect("connect");
    let name = ServerName::try_from("localhost").expect("a name");
    let stream = connector.connect(name, socket).await.expect("a handshake");
    let mut client = Client { socket: Box::new(stream) };
    client.open(65536, None).await;
    client.begin(0).await;
    client.sender(0, "q").await;
    let text = "x".repeat(200_000);
    let bytes = message(&text);
    let mut chunks = bytes.chunks(60_000).peekable();
    while let Some(chunk) = chunks.next() {
        client.transfer(0, 0, 0, chunks.peek().is_some(), chunk).await;
    }
    client.next().await;
    client.receiver(1, "q").await;
    client.credit(1, 0, 1, false).await;
    let mut payload = Vec::new();
    loop {
        let frame = client.expect(TRANSFER).await;
        payload.extend_from_slice(&frame.payload);
        if frame.field(5) != &Value::Bool(true) {
            break;
        }
    }
    assert_eq!(text_of(&payload), text);
    server.abort();
}

/// Everything a receiver says until it waits, in one write.
fn receiving(address: &str) -> Vec<u8> {
    let mut bytes = AMQP_HEADER.to_vec();
    let performatives = [
        (OPEN, vec![Value::string("one of many")]),
        (BEGIN, vec![Value::Null, Value::Uint(0), Value::Uint(100), Value::Uint(100)]),
        (ATTACH, receiver(0, address, 0)),
        (FLOW, flow(0, 0, 10, false)),
    ];
    for (code, fields) in performatives {
        let body = polybus_servicebus_emulator::codec::encode(&Value::described(code, Value::List(fields)));
        bytes.extend(frame(0, 0, &body));
    }
    bytes
}

fn resident_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB").trim().to_owned();
    line.trim_end_matches(" kB").parse().expect("a number")
}

/// Connections that each wait for messages with a receiver, half of them dropped at once and half closed.
async fn open_and_drop(address: &str, count: usize) {
    for at in 0..count {
        let mut client = Client::connect(address).await;
        client.write(&receiving("q")).await;
        client.read(8).await;
        for code in [OPEN, BEGIN, ATTACH] {
            client.expect(code).await;
        }
        if at % 2 == 0 {
            client.send(0, CLOSE, Vec::new()).await;
        }
    }
}

#[tokio::test]
async fn ten_thousand_connections_leave_nothing_behind() {
    let emulator = emulator().await;
    let metrics = tokio::runtime::Handle::current().metrics();
    let idle = metrics.num_alive_tasks();
    open_and_drop(&emulator.address, 1000).await;
    let tasks_end = async || {
        let since = Instant::now();
        while metrics.num_alive_tasks() > idle {
            assert!(since.elapsed() < Duration::from_secs(300), "{} tasks", metrics.num_alive_tasks());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tasks_end().await;
    let before = resident_kb();
    open_and_drop(&emulator.address, 9000).await;
    tasks_end().await;
    let grown = resident_kb().saturating_sub(before);
    assert!(grown < 4096, "{grown} kB more than after the first thousand");
    // No receiver that is gone keeps a message to itself.
    emulator.put("q", &["1"]);
    let mut client = Client::begun(&emulator.address).await;
    client.receiver(0, "q").await;
    client.credit(0, 0, 1, false).await;
    assert_eq!(text_of(&client.expect(TRANSFER).await.payload), "1");
}

#[tokio::test]
async fn three_hundred_connections_at_once() {
    let emulator = emulator().await;
    let mut clients = Vec::new();
    for _ in 0..300 {
        let mut client = Client::connect(&emulator.address).await;
        client.write(&receiving("q")).await;
        clients.push(client);
    }
    for client in &mut clients {
        client.read(8).await;
        for code in [OPEN, BEGIN, ATTACH] {
            client.expect(code).await;
        }
    }
    let texts: Vec<String> = (0..3000).map(|n| n.to_string()).collect();
    emulator.put("q", &texts.iter().map(String::as_str).collect::<Vec<_>>());
    let mut got = Vec::new();
    for client in &mut clients {
        for _ in 0..10 {
            got.push(text_of(&client.expect(TRANSFER).await.payload).parse::<usize>().expect("a number"));
        }
    }
    got.sort_unstable();
    assert!(got.into_iter().eq(0..3000), "each message went to one receiver");
}
