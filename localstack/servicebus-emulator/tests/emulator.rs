//! The library's one value: started inside a test, looked at, stopped.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use polybus_servicebus_emulator::auth::AccessKey;
use polybus_servicebus_emulator::broker::{QueueSettings, ReceiveMode};
use polybus_servicebus_emulator::clock::Clock;
use polybus_servicebus_emulator::config::EmulatorConfig;
use polybus_servicebus_emulator::message::Message;
use polybus_servicebus_emulator::{Emulator, EmulatorOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

const SASL_HEADER: &[u8] = b"AMQP\x03\x01\x00\x00";

async fn start() -> Emulator {
    Emulator::start(EmulatorOptions::default()).await.unwrap()
}

/// A connection on which the server has answered.
async fn connect(emulator: &Emulator) -> TcpStream {
    let mut socket = TcpStream::connect(emulator.amqp_addr()).await.unwrap();
    socket.write_all(SASL_HEADER).await.unwrap();
    let mut answer = [0; 8];
    socket.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, SASL_HEADER);
    socket
}

async fn ends(mut socket: TcpStream) {
    let end = tokio::time::timeout(Duration::from_secs(120), async {
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).await
    });
    // An error is an end, too: a reset.
    let _ = end.await.expect("the connection is open still");
}

async fn http_status(emulator: &Emulator, request: &str) -> String {
    let mut socket = TcpStream::connect(emulator.http_addr()).await.unwrap();
    let request = format!("{request} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn it_answers_as_soon_as_it_is_started() {
    let emulator = start().await;
    connect(&emulator).await;
    assert_eq!(http_status(&emulator, "GET /health").await, "HTTP/1.1 200 OK");
    assert_eq!(emulator.amqp_url(), format!("amqp://{}", emulator.amqp_addr()));
    assert_eq!(emulator.http_url(), format!("http://{}", emulator.http_addr()));
    assert_eq!((emulator.amqps_addr(), emulator.certificate()), (None, None));
}

#[tokio::test]
async fn two_do_not_know_of_each_other() {
    let (one, two) = (start().await, start().await);
    one.broker().create_queue("q", QueueSettings::default()).unwrap();
    assert!(two.broker().queue("q").is_err());
    assert_ne!(one.amqp_addr(), two.amqp_addr());
}

#[tokio::test]
async fn the_connection_string_has_the_key_and_nothing_else_has() {
    let emulator = start().await;
    let address = emulator.amqp_addr();
    assert_eq!(
        emulator.connection_string(),
        format!(
            "Endpoint=sb://{address};SharedAccessKeyName=RootManageSharedAccessKey;SharedAccessKey=SAS_KEY_VALUE;UseDevelopmentEmulator=true;"
        )
    );
    let options = EmulatorOptions { key: Some(AccessKey::new("name", "s3cret")), ..EmulatorOptions::default() };
    assert!(!format!("{options:?}").contains("s3cret"));
    let emulator = Emulator::start(options).await.unwrap();
    assert!(emulator.connection_string().contains("SharedAccessKeyName=name;SharedAccessKey=s3cret;"));
    assert!(!format!("{emulator:?}").contains("s3cret"));
    assert_eq!(http_status(&emulator, "GET /q").await, "HTTP/1.1 401 Unauthorized");
}

#[tokio::test]
async fn a_certificate_is_made_where_one_is_needed() {
    let options = EmulatorOptions { amqps: Some("127.0.0.1:0".parse().unwrap()), ..EmulatorOptions::default() };
    let emulator = Emulator::start(options).await.unwrap();
    assert!(emulator.amqps_addr().is_some_and(|address| address.port() != 0));
    assert!(emulator.certificate().unwrap().contains("BEGIN CERTIFICATE"));
}

#[tokio::test]
async fn stopping_ends_connections_and_frees_the_ports() {
    let emulator = start().await;
    let (amqp, http) = (emulator.amqp_addr(), emulator.http_addr());
    let (first, second) = (connect(&emulator).await, connect(&emulator).await);
    emulator.stop().await;
    ends(first).await;
    ends(second).await;
    let again = Emulator::start(EmulatorOptions { amqp, http, ..EmulatorOptions::default() }).await.unwrap();
    let held = connect(&again).await;
    drop(again);
    ends(held).await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let emulator = start().await;
    let amqp = emulator.amqp_addr();
    let error = Emulator::start(EmulatorOptions { amqp, ..EmulatorOptions::default() }).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&amqp.to_string()), "{error}");
}

#[tokio::test]
async fn entities_can_be_there_from_the_start() {
    let config = |queues: &str| {
        EmulatorConfig::parse(&format!(r#"{{"UserConfig": {{"Namespaces": [{{"Queues": {queues}}}]}}}}"#)).unwrap()
    };
    let options = EmulatorOptions { config: config(r#"[{"Name": "q"}]"#), ..EmulatorOptions::default() };
    let emulator = Emulator::start(options).await.unwrap();
    assert_eq!(emulator.broker().queues().len(), 1);
    let options = EmulatorOptions { config: config(r#"[{"Name": "q"}, {"Name": "q"}]"#), ..EmulatorOptions::default() };
    let error = Emulator::start(options).await.unwrap_err();
    assert!(error.to_string().contains("'q' already exists"), "{error}");
}

#[tokio::test]
async fn its_clock_can_be_moved() {
    let emulator =
        Emulator::start(EmulatorOptions { clock: Clock::manual(0), ..EmulatorOptions::default() }).await.unwrap();
    emulator.broker().create_queue("q", QueueSettings::default()).unwrap();
    emulator.broker().target("q").unwrap().schedule(vec![(Message::default(), 3_600_000)]).unwrap();
    let source = emulator.broker().source("q").unwrap();
    let wake = std::sync::Arc::new(Notify::new());
    let mut receiver = source.receiver(ReceiveMode::PeekLock, None, wake.clone()).unwrap();
    assert!(receiver.try_receive(1).unwrap().is_empty());
    emulator.clock().advance(Duration::from_secs(3600));
    wake.notified().await;
    assert_eq!(receiver.try_receive(1).unwrap().len(), 1);
}

#[tokio::test]
async fn connections_are_refused_while_that_is_asked_for() {
    let emulator = start().await;
    let held = connect(&emulator).await;
    emulator.faults().refuse_connections(true);
    ends(TcpStream::connect(emulator.amqp_addr()).await.unwrap()).await;
    emulator.faults().clear();
    connect(&emulator).await;
    emulator.faults().drop_connections();
    ends(held).await;
}
