//! The clients of clouds, against a server that answers as S3 and Azure do: over TLS, and with errors that have secrets.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use polybus_claims::{
    ClaimError, Claims,
    object_store::{
        Certificate, ClientOptions, ObjectStore, RetryConfig, aws::AmazonS3Builder, azure::MicrosoftAzureBuilder,
    },
};
use polybus_core::{Envelope, ErrorKind, RetrySafety};
use support::*;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpListener,
};
use tokio_rustls::{TlsAcceptor, rustls};

type Bucket = Arc<Mutex<Objects>>;

#[derive(Default)]
struct Objects {
    stored: BTreeMap<String, Vec<u8>>,
    /// Methods with path and query, as they came.
    requests: Vec<String>,
    /// The status of everything, if nothing is to work.
    broken: Option<u16>,
}

impl Objects {
    fn answer(&mut self, method: &str, target: &str, body: Vec<u8>) -> (u16, Vec<u8>) {
        self.requests.push(format!("{method} {target}"));
        if let Some(status) = self.broken {
            return (status, b"<Error><SignatureProvided>SECRET</SignatureProvided></Error>".to_vec());
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        match (method, query) {
            ("POST", "uploads") | ("POST", "uploads=") => {
                let xml = "<InitiateMultipartUploadResult><Bucket>shop</Bucket><Key>k</Key><UploadId>7</UploadId>\
                           </InitiateMultipartUploadResult>";
                (200, xml.into())
            }
            ("PUT", query) if query.contains("partNumber=2") && path.contains("broken") => (400, Vec::new()),
            ("PUT", query) => {
                let part = query.split('&').find_map(|pair| pair.strip_prefix("partNumber="));
                self.stored.insert(part.map_or(path.to_owned(), |part| format!("{path}#{part:0>5}")), body);
                (200, Vec::new())
            }
            ("POST", _) => {
                let parts: Vec<_> =
                    self.stored.keys().filter(|key| key.starts_with(&format!("{path}#"))).cloned().collect();
                let whole = parts.iter().flat_map(|part| self.stored.remove(part).unwrap()).collect();
                self.stored.insert(path.to_owned(), whole);
                let xml = "<CompleteMultipartUploadResult><ETag>\"1\"</ETag></CompleteMultipartUploadResult>";
                (200, xml.into())
            }
            ("DELETE", _) => (204, Vec::new()),
            _ => match self.stored.get(path) {
                Some(data) => (200, data.clone()),
                None => (404, b"<Error><Code>NoSuchKey</Code></Error>".to_vec()),
            },
        }
    }
}

async fn serve(mut socket: impl AsyncRead + AsyncWrite + Unpin, bucket: Bucket) -> std::io::Result<()> {
    let mut reader = BufReader::new(&mut socket);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first).await?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).await?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.parse().unwrap(),
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await?;
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap_or_default());
    let (status, body) = bucket.lock().unwrap().answer(method, target, body);
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nETag: \"1\"\r\nLast-Modified: Sun, 01 Mar 2026 10:00:00 GMT\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    socket.write_all(&[head.as_bytes(), &body].concat()).await?;
    socket.shutdown().await
}

/// A server over TLS, with its address and the certificate that it proves itself by.
async fn server() -> (Bucket, String, ClientOptions) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    let (acceptor, listener) = (TlsAcceptor::from(Arc::new(config)), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let address = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let bucket = Bucket::default();
    let served = bucket.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (acceptor, bucket) = (acceptor.clone(), served.clone());
            tokio::spawn(async move { serve(acceptor.accept(socket).await?, bucket).await });
        }
    });
    let trusted = Certificate::from_pem(made.cert.pem().as_bytes()).unwrap();
    // A machine that is busy is no store that is away.
    let patience = std::time::Duration::from_secs(300);
    let options = ClientOptions::new().with_timeout(patience).with_connect_timeout(patience);
    (bucket, address, options.with_root_certificate(trusted))
}

fn s3(address: &str, options: ClientOptions) -> Arc<dyn ObjectStore> {
    let builder = AmazonS3Builder::new().with_bucket_name("shop").with_region("us-east-1").with_endpoint(address);
    let builder = builder.with_access_key_id("SECRETID").with_secret_access_key("SECRETKEY");
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    Arc::new(builder.with_client_options(options).with_retry(retry).build().unwrap())
}

fn claims_in(store: Arc<dyn ObjectStore>, prefix: &str) -> Claims {
    Claims::new(store, prefix).unwrap().threshold(100)
}

#[tokio::test]
async fn s3_keeps_payloads_over_tls() {
    let (bucket, address, options) = server().await;
    let claims = claims_in(s3(&address, options), "claims");
    let message = large();
    let sent = claims.check_in(message.clone()).await.unwrap();
    assert_eq!(bucket.lock().unwrap().requests, [format!("PUT /shop/{}", reference(&sent))]);
    assert!(claims.redeem(sent.clone()).await.unwrap() == message);
    bucket.lock().unwrap().stored.values_mut().for_each(|data| data[9] ^= 1);
    assert!(matches!(claims.redeem(sent.clone()).await, Err(ClaimError::Altered { .. })));
    bucket.lock().unwrap().stored.clear();
    assert!(matches!(claims.redeem(sent).await, Err(ClaimError::Missing { .. })));
}

#[tokio::test]
async fn s3_is_given_large_payloads_in_parts() {
    let (bucket, address, options) = server().await;
    let claims = claims_in(s3(&address, options.clone()), "claims");
    let message = Envelope::new("a.b", payload((17 << 20) + 3, 1));
    let sent = claims.check_in(message.clone()).await.unwrap();
    assert!(claims.redeem(sent).await.unwrap() == message);
    let parts = |bucket: &Bucket| bucket.lock().unwrap().requests.iter().filter(|r| r.contains("partNumber")).count();
    assert_eq!(parts(&bucket), 3);

    let broken = claims_in(s3(&address, options), "broken");
    let failed = broken.check_in(message).await.unwrap_err();
    assert_eq!(failed.retry(), RetrySafety::Safe, "{failed}");
    let aborted = bucket.lock().unwrap().requests.iter().any(|r| r.starts_with("DELETE") && r.contains("uploadId=7"));
    assert!(aborted, "the parts are taken away");
}

#[tokio::test]
async fn what_clouds_answer_shows_no_secret() {
    let (bucket, address, options) = server().await;
    let sas = [("sv".to_owned(), "2024-01-01".to_owned()), ("sig".to_owned(), "SECRET".to_owned())];
    let azure =
        MicrosoftAzureBuilder::new().with_account("shop").with_container_name("c").with_endpoint(address.clone());
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let azure =
        azure.with_config("azure_storage_sas_key".parse().unwrap(), sas.map(|(k, v)| format!("{k}={v}")).join("&"));
    let azure: Arc<dyn ObjectStore> =
        Arc::new(azure.with_client_options(options.clone()).with_retry(retry).build().unwrap());
    for (name, store) in [("s3", s3(&address, options)), ("azure", azure)] {
        let claims = claims_in(store, "claims");
        bucket.lock().unwrap().broken = None;
        let sent = claims.check_in(large()).await.unwrap();
        for (status, kind) in [
            (401, ErrorKind::Unauthenticated),
            (403, ErrorKind::PermissionDenied),
            (400, ErrorKind::Unavailable),
            (503, ErrorKind::Unavailable),
        ] {
            bucket.lock().unwrap().broken = Some(status);
            let failed = claims.check_in(large()).await.unwrap_err();
            assert_eq!((failed.kind(), failed.retry()), (kind, RetrySafety::Safe), "{name} {status}: {failed}");
            let redeemed = claims.redeem(sent.clone()).await.unwrap_err();
            assert!(matches!(redeemed, ClaimError::Store(_)), "{name} {status}: {redeemed}");
            let shown = format!("{failed} {failed:?} {redeemed} {redeemed:?} {claims:?}");
            assert!(!shown.contains("SECRET"), "{name} {status}: {shown}");
        }
    }
    let asked = bucket.lock().unwrap().requests.iter().any(|request| request.contains("sig=SECRET"));
    assert!(asked, "the signature is in the URL");
}
