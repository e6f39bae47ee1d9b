//! Each fault at the connect has its kind and says what to check.
//!
//! A server here answers as AWS does, since an emulator checks no credentials. Each case runs in a process of its
//! own, since credentials belong to the process.
#![allow(clippy::unwrap_used)]

use std::{
    process::Command,
    time::{Duration, Instant},
};

use polybus_aws::AwsConnector;
use polybus_core::{Address, Bus, BusOptions, Envelope, Registry};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const SECRET: &str = "s3cret-key";

/// Not a test: the process of one case. Connects, publishes, and shows what came of it.
#[tokio::test]
#[ignore = "a part of the other tests"]
async fn child() {
    let Ok(url) = std::env::var("POLYBUS_TEST_URL") else { return };
    let done = async {
        let driver = Registry::new().with(AwsConnector).connect(&url).await?;
        let mut options = BusOptions::default();
        // What is told here is final: nothing is tried again until then.
        options.publish_timeout = Duration::from_secs(60);
        let bus = Bus::new(driver, options)?;
        bus.publish(Address::queue("payments"), Envelope::new("a", "1")).await
    };
    println!("answer: {:?}", done.await.map(|_| ()));
}

/// What a process with these credentials is told.
fn told(url: &str, credentials: bool) -> String {
    let began = Instant::now();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["child", "--exact", "--ignored", "--nocapture"]).env("POLYBUS_TEST_URL", url);
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION"] {
        child.env_remove(name);
    }
    child.env_remove("AWS_DEFAULT_REGION").env("AWS_EC2_METADATA_DISABLED", "true");
    child.env("AWS_CONFIG_FILE", "/nonexistent").env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent");
    if credentials {
        child.env("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE").env("AWS_SECRET_ACCESS_KEY", SECRET);
    }
    let output = String::from_utf8(child.output().unwrap().stdout).unwrap();
    assert!(began.elapsed() < Duration::from_secs(120), "{output}");
    assert!(!output.contains(SECRET), "{output}");
    let answer = output.split_once("answer: ").map(|(_, answer)| answer.to_owned());
    answer.unwrap_or_else(|| panic!("no answer: {output}"))
}

fn expect(told: &str, kind: &str, words: &[&str]) {
    assert!(told.starts_with(&format!("Err({kind}: ")), "{told}");
    for word in words {
        assert!(told.contains(word), "{word:?} is missing: {told}");
    }
}

/// Answers every call in this way, on a thread of its own.
fn server(status: u16, code: &'static str, message: &'static str) -> String {
    let (tx, rx) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            tx.send(listener.local_addr().unwrap()).unwrap();
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(answer(client, status, code, message));
            }
        });
    });
    format!("aws://?region=eu-west-1&endpoint=http://{}", rx.recv().unwrap())
}

async fn answer(mut client: TcpStream, status: u16, code: &str, message: &str) {
    let body = format!(r#"{{"__type":"com.amazonaws.sqs#{code}","message":"{message}"}}"#);
    let length = body.len();
    let mut request = [0; 65536];
    // A request of this test comes in one piece.
    while client.read(&mut request).await.is_ok_and(|n| n > 0) {
        let head =
            format!("HTTP/1.1 {status} X\r\ncontent-type: application/x-amz-json-1.0\r\ncontent-length: {length}");
        let _ = client.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await;
    }
}

#[test]
fn no_credentials() {
    let url = server(400, "InternalFailure", "never asked");
    expect(
        &told(&url, false),
        "Unauthenticated",
        &["no AWS credentials were found", "AWS_ACCESS_KEY_ID", "AWS_PROFILE"],
    );
}

#[test]
fn an_expired_token() {
    let url = server(403, "ExpiredToken", "The security token included in the request is expired");
    expect(&told(&url, true), "Unauthenticated", &["is expired", "get new ones", "operation=connect"]);
}

#[test]
fn credentials_that_aws_does_not_know() {
    let url = server(403, "InvalidClientTokenId", "The security token included in the request is invalid.");
    expect(&told(&url, true), "Unauthenticated", &["is invalid", "AWS_SECRET_ACCESS_KEY"]);
}

#[test]
fn the_endpoint_of_another_region() {
    let url = server(403, "SignatureDoesNotMatch", "Credential should be scoped to a valid region.");
    expect(&told(&url, true), "ConfigInvalid", &["another region", "region=eu-west-1", "endpoint=http://127.0.0.1"]);
}

#[test]
fn no_region() {
    expect(&told("aws://", true), "ConfigInvalid", &["region=", "AWS_REGION"]);
}

#[test]
fn a_region_that_does_not_exist() {
    let told = told("aws://?region=eu-nowhere-1&connect_timeout=3s", true);
    expect(&told, "Unavailable", &["check the region", "region=eu-nowhere-1", "retry=safe"]);
}

#[test]
fn no_right() {
    // Connecting needs none.
    let url = server(403, "AccessDenied", "Access to the resource is denied.");
    expect(&told(&url, true), "PermissionDenied", &["policies", "address=queue:payments", "region=eu-west-1"]);
}

#[test]
fn nobody_there() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let told = told(&format!("aws://?region=eu-west-1&endpoint=http://127.0.0.1:{port}"), true);
    expect(&told, "Unavailable", &["cannot connect", &format!("endpoint=http://127.0.0.1:{port}"), "retry=safe"]);
}

#[test]
fn a_peer_that_says_nothing_is_given_up_in_time() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = silent.local_addr().unwrap();
    let told = told(&format!("aws://?region=eu-west-1&endpoint=http://{endpoint}&timeout=500ms"), true);
    expect(&told, "Timeout", &["no answer in time", &format!("endpoint=http://{endpoint}")]);
}

#[test]
fn a_missing_queue() {
    let Some(url) = polybus_conformance::broker_url("aws", "POLYBUS_AWS_URL") else { return };
    expect(&told(&url, true), "NotFound", &["check the name, the region and the account", "address=queue:payments"]);
}
