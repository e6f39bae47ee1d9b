//! Payloads in S3, as LocalStack has it: small and large ones, those that were altered or are gone, and those of the AWS
//! extended client libraries.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use polybus_claims::{
    ClaimError, Claims,
    object_store::{ObjectStore, ObjectStoreExt, aws::AmazonS3Builder, path::Path},
};
use polybus_core::Envelope;
use support::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A bucket of its own; `None` where there is no LocalStack.
async fn bucket() -> Option<(String, Arc<dyn ObjectStore>)> {
    let url = polybus_conformance::broker_url("aws", "POLYBUS_AWS_URL")?;
    let endpoint = url.split("endpoint=").nth(1)?.split('&').next()?.to_owned();
    // Buckets are made by an administrator. LocalStack looks at no signature.
    let name = format!("claims-{}", uuid::Uuid::now_v7().simple());
    let host = endpoint.strip_prefix("http://").unwrap();
    let mut socket = TcpStream::connect(host).await.unwrap();
    let request = format!("PUT /{name} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let store = AmazonS3Builder::new()
        .with_endpoint(endpoint)
        .with_allow_http(true)
        .with_region("us-east-1")
        .with_bucket_name(&name)
        .with_access_key_id("test")
        .with_secret_access_key("test")
        .build()
        .unwrap();
    Some((name, Arc::new(store)))
}

fn payload(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n * 31 % 251) as u8).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_of_any_size_come_back_from_s3() {
    let Some((_, store)) = bucket().await else { return };
    let claims = Claims::new(store.clone(), "claims").unwrap().threshold(1_000);
    // The last one is uploaded in parts.
    for bytes in [1_001, 300_000, 20_000_000] {
        let message = Envelope::new("file.sent", payload(bytes)).header("name", "a");
        let sent = claims.check_in(message.clone()).await.unwrap();
        assert!(sent.data.is_empty() && sent.extensions.get("claimref").is_some());
        let back = claims.redeem(sent).await.unwrap();
        assert_eq!((back.data.len(), back.data == message.data), (bytes, true));
        assert_eq!(back.headers.get("name"), Some("a"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_altered_or_is_gone_from_s3_is_told() {
    let Some((_, store)) = bucket().await else { return };
    let claims = Claims::new(store.clone(), "claims").unwrap().threshold(1_000);
    let sent = claims.check_in(Envelope::new("file.sent", payload(5_000))).await.unwrap();
    let key = Path::from(sent.extensions.get("claimref").unwrap());
    let mut altered = payload(5_000);
    altered[2_500] ^= 1;
    store.put(&key, altered.into()).await.unwrap();
    let error = claims.redeem(sent.clone()).await.unwrap_err();
    assert!(matches!(error, ClaimError::Altered { .. }), "{error:?}");
    store.delete(&key).await.unwrap();
    let error = claims.redeem(sent).await.unwrap_err();
    assert!(matches!(error, ClaimError::Missing { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_of_an_extended_client_comes_from_its_own_bucket() {
    let Some((name, store)) = bucket().await else { return };
    store.put(&Path::from("k/1"), payload(400_000).into()).await.unwrap();
    let pointer = serde_json::json!([
        "software.amazon.payloadoffloading.PayloadS3Pointer", { "s3BucketName": name, "s3Key": "k/1" }
    ]);
    let message = Envelope::bare(Envelope::FOREIGN_TYPE, pointer.to_string())
        .id("m-1")
        .edit(|fields| fields.headers.push("ExtendedPayloadSize", "400000"));
    let claims = claims().0.redeem_foreign(name, "k/", store);
    let back = claims.redeem(message).await.unwrap();
    assert_eq!(&back.data[..], payload(400_000));
}
