//! Errors of connecting, and TLS with a client certificate.
#![allow(clippy::unwrap_used)]

mod broker;

use std::time::Duration;

use broker::{url, url_in};
use polybus_core::{Error, ErrorKind, Registry};
use polybus_rabbitmq::RabbitmqConnector;
use tokio::time::timeout;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(120);

async fn refused(url: &str) -> Error {
    let registry = Registry::new().with(RabbitmqConnector);
    let e = timeout(PATIENCE, registry.connect(url)).await.expect("an answer").map(|_| ()).unwrap_err();
    assert!(!format!("{e:?}").contains("s3cret"), "{e:?}");
    e
}

async fn waits(url: &str) -> Error {
    Registry::new().with(RabbitmqConnector).connect(url).await.map(|_| ()).unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_unauthenticated() {
    let Some(url) = url("rabbitmq") else { return };
    let e = refused(&url.replace("guest:guest@", "guest:s3cret@")).await;
    assert_eq!(e.kind(), ErrorKind::Unauthenticated, "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_virtual_host_is_not_found() {
    let Some(url) = url("rabbitmq") else { return };
    let e = refused(&url.replace("/%2f", "/no-such-vhost")).await;
    assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
    assert!(e.to_string().contains("virtual host in the bus URL's path does not exist"), "{e}");
    // Without its host, amqp://bob:5672/password is a URL with a virtual host.
    assert!(!format!("{e} {e:?}").contains("no-such-vhost"), "{e:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_unavailable_with_the_address() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let e = refused(&format!("amqp://guest:s3cret@127.0.0.1:{port}/")).await;
    assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}");
    assert!(e.to_string().contains(&format!("127.0.0.1:{port}")), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_says_nothing_is_given_up_in_time() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let url = |limit: &str| format!("amqp://guest:s3cret@127.0.0.1:{port}/?connect_timeout={limit}");
    // Beside one that may take long, and still waits then.
    let (short, long) = (url("500ms"), url("5m"));
    let e = tokio::select! {
        e = refused(&short) => e,
        e = waits(&long) => panic!("given up first: {e}"),
    };
    assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_takes_the_certificate_it_was_given_and_no_other() {
    let Some(url) = url_in("POLYBUS_RABBITMQ_TLS_URL", "rabbitmq") else { return };
    let driver = Registry::new().with(RabbitmqConnector).connect(&url).await.unwrap();
    driver.close().await.unwrap();
    // Without the client certificate the broker refuses; without the authority we do.
    let (base, parameters) = url.split_once('?').unwrap();
    let cacert = parameters.split('&').find(|p| p.starts_with("cacert=")).unwrap();
    for _ in 0..20 {
        assert_eq!(refused(&format!("{base}?{cacert}")).await.kind(), ErrorKind::Unauthenticated);
    }
    let identity: Vec<&str> = parameters.split('&').filter(|p| !p.starts_with("cacert=")).collect();
    assert_eq!(refused(&format!("{base}?{}", identity.join("&"))).await.kind(), ErrorKind::Unauthenticated);
}
