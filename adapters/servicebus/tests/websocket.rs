//! AMQP over WebSockets, against an emulator in this process: everything goes to its HTTP port.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use polybus_core::{
    Address, Bus, BusOptions, Delivery, Envelope, Error, ErrorKind, Outgoing, QueueSpec, Registry, Source,
    Subscription, Topology,
};
use polybus_servicebus::ServicebusConnector;
use polybus_servicebus_emulator::{Emulator, EmulatorOptions as Emulated, TlsIdentity, auth::AccessKey};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};

fn with_key() -> Emulated {
    Emulated { key: Some(AccessKey::new("Root", "s3cret")), ..Emulated::default() }
}

async fn bus(url: &str, topology: Topology) -> Bus {
    let driver = Registry::new().with(ServicebusConnector).connect(url).await.unwrap();
    let bus = Bus::new(driver, BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();
    bus
}

fn plain(at: SocketAddr) -> String {
    format!("servicebus://Root:s3cret@{at}?emulator=true&transport=websocket")
}

async fn refused(url: &str) -> Error {
    let e = Registry::new().with(ServicebusConnector).connect(url).await.map(|_| ()).unwrap_err();
    assert!(!format!("{e:?}").contains("s3cret"), "{e:?}");
    e
}

async fn next(sub: &mut Subscription) -> Delivery {
    timeout(Duration::from_secs(120), sub.next()).await.unwrap().unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_every_size_and_fate() {
    let emulator = Emulator::start(with_key()).await.unwrap();
    let bus = bus(&plain(emulator.http_addr()), Topology::new().queue("q", QueueSpec::new())).await;
    let q = Address::queue("q");
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(10).open().await.unwrap();
    // One frame, and several: a frame has 64 KiB.
    for size in [0, 1, 125, 126, 65_535, 65_536, 200_000] {
        let data: Vec<u8> = (0..size).map(|n: u32| n.to_le_bytes()[0]).collect();
        bus.publish(&q, Envelope::new("a", data.clone())).await.unwrap();
        let d = next(&mut sub).await;
        assert_eq!(d.envelope().data, data);
        d.ack().await.unwrap();
    }
    bus.publish(&q, Outgoing::from(Envelope::new("a", "x")).delay(Duration::from_millis(300))).await.unwrap();
    next(&mut sub).await.retry_after(Duration::from_millis(200)).await.unwrap();
    let d = next(&mut sub).await;
    assert_eq!(d.attempt(), 2);
    d.release().await.unwrap();
    let d = next(&mut sub).await;
    assert_eq!(d.attempt(), 3);
    d.dead_letter("broken", "of old").await.unwrap();
    let mut dead = bus.subscribe(Source::queue("q").dead_letters()).open().await.unwrap();
    let d = next(&mut dead).await;
    assert_eq!(d.dead_letter_info().unwrap().reason.as_deref(), Some("broken"));
    d.ack().await.unwrap();
    timeout(Duration::from_secs(120), bus.close()).await.expect("closing hangs").unwrap();
    assert_eq!(bus.publish(&q, Envelope::new("a", "")).await.unwrap_err().kind(), ErrorKind::Closed);
    emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_keep_their_order() {
    let emulator = Emulator::start(with_key()).await.unwrap();
    let bus = bus(&plain(emulator.http_addr()), Topology::new().queue("s", QueueSpec::new().ordered(true))).await;
    let s = Address::queue("s");
    for n in 0..20 {
        for key in ["a", "b", "c"] {
            bus.publish(&s, Envelope::new("n", n.to_string()).key(key)).await.unwrap();
        }
    }
    let mut sub = bus.subscribe(Source::queue("s")).prefetch(10).open().await.unwrap();
    let mut seen = std::collections::BTreeMap::<String, Vec<String>>::new();
    for _ in 0..60 {
        let d = next(&mut sub).await;
        let text = String::from_utf8(d.envelope().data.to_vec()).unwrap();
        seen.entry(d.envelope().key.as_deref().unwrap().to_owned()).or_default().push(text);
        d.ack().await.unwrap();
    }
    let wanted: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    assert!(seen.len() == 3 && seen.values().all(|got| *got == wanted), "{seen:?}");
    bus.close().await.unwrap();
    emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_connections_lose_nothing() {
    let emulator = Emulator::start(with_key()).await.unwrap();
    let queue = QueueSpec::new().lock(Duration::from_secs(5));
    let bus = bus(&plain(emulator.http_addr()), Topology::new().queue("q", queue)).await;
    let q = Address::queue("q");
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(10).open().await.unwrap();
    let publishing = tokio::spawn({
        let (bus, q) = (bus.clone(), q.clone());
        async move {
            for n in 0..200 {
                bus.publish(&q, Envelope::new("n", n.to_string())).await.unwrap();
            }
        }
    });
    let (mut seen, mut count) = (BTreeSet::new(), 0);
    while seen.len() < 200 {
        let d = next(&mut sub).await;
        seen.insert(String::from_utf8(d.envelope().data.to_vec()).unwrap());
        // An answer that was lost leaves it open; the message comes again then.
        let _ = d.ack().await;
        count += 1;
        match count {
            50 | 100 => emulator.faults().drop_connections(),
            150 => emulator.faults().drop_after_frames(20),
            170 => emulator.faults().clear(),
            _ => {}
        }
    }
    publishing.await.unwrap();
    bus.close().await.unwrap();
    emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_takes_the_authority_it_was_given_and_no_other() {
    let emulator =
        Emulator::start(Emulated { tls: Some(TlsIdentity::self_signed().unwrap()), ..with_key() }).await.unwrap();
    let cacert = std::env::temp_dir().join(format!("polybus-websocket-{}.pem", std::process::id()));
    std::fs::write(&cacert, emulator.certificate().unwrap()).unwrap();
    let port = emulator.http_addr().port();
    let url = format!("servicebus://Root:s3cret@localhost:{port}?transport=websocket");
    let bus = bus(&format!("{url}&cacert={}", cacert.display()), Topology::new().queue("q", QueueSpec::new())).await;
    bus.publish(Address::queue("q"), Envelope::new("a", "x")).await.unwrap();
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    next(&mut sub).await.ack().await.unwrap();
    bus.close().await.unwrap();
    let e = refused(&url).await;
    assert!(e.kind() == ErrorKind::Unauthenticated && e.to_string().contains("certificate"), "{e}");
    std::fs::remove_file(&cacert).unwrap();
    emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_is_unauthenticated_and_a_missing_queue_not_found() {
    let emulator = Emulator::start(with_key()).await.unwrap();
    let at = emulator.http_addr();
    let e = refused(&format!("servicebus://Root:wr0ng@{at}?emulator=true&transport=websocket")).await;
    assert!(e.kind() == ErrorKind::Unauthenticated && !format!("{e:?}").contains("wr0ng"), "{e:?}");
    let bus = bus(&plain(at), Topology::new()).await;
    let e = bus.publish(Address::queue("none"), Envelope::new("a", "")).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
    bus.close().await.unwrap();
    emulator.stop().await;
}

/// Answers every request with this, whatever it asks for.
async fn answering(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (mut request, mut chunk) = (Vec::new(), [0; 1024]);
            while !request.windows(4).any(|w| w == b"\r\n\r\n") {
                match stream.read(&mut chunk).await {
                    Ok(n) if n > 0 => request.extend_from_slice(&chunk[..n]),
                    _ => break,
                }
            }
            let text = String::from_utf8_lossy(&request).to_lowercase();
            assert!(text.starts_with("get /$servicebus/websocket http/1.1\r\n"), "{text}");
            assert!(text.contains("sec-websocket-protocol: amqpwsb10\r\n"), "{text}");
            let _ = stream.write_all(answer).await;
        }
    });
    at
}

#[tokio::test(flavor = "multi_thread")]
async fn each_answer_that_is_no_websocket_is_told() {
    let page = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: 13\r\n\r\n<html>s3cret";
    let no_protocol = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    for (answer, kind, word) in [
        (&b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: s3cret\r\n\r\n"[..], ErrorKind::Unauthenticated, "401"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", ErrorKind::PermissionDenied, "403"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", ErrorKind::Unavailable, "404"),
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", ErrorKind::Unauthenticated, "407"),
        (b"HTTP/1.1 429 Too Many Requests\r\n\r\n", ErrorKind::Throttled, "429"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", ErrorKind::Unavailable, "503"),
        (b"HTTP/1.1 302 Found\r\nLocation: https://login/?s3cret\r\n\r\n", ErrorKind::Unavailable, "302"),
        (page, ErrorKind::Unavailable, "does a proxy answer"),
        (no_protocol, ErrorKind::Unavailable, "does not speak WebSockets"),
        (b"SSH-2.0-OpenSSH_9.7\r\n\r\n", ErrorKind::Unavailable, "does not speak WebSockets"),
        (b"", ErrorKind::Unavailable, "does not speak WebSockets"),
    ] {
        let at = answering(answer).await;
        let e = refused(&plain(at)).await;
        assert_eq!(e.kind(), kind, "{e}");
        assert!(e.to_string().contains(word) && e.to_string().contains(&at.to_string()), "{e}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_never_answers_is_given_up() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("{}&connect_timeout=300ms", plain(silent.local_addr().unwrap()));
    let e = timeout(Duration::from_secs(120), refused(&url)).await.expect("it is waited for");
    assert!(e.kind() == ErrorKind::Unavailable && e.to_string().contains("300ms"), "{e}");
}
