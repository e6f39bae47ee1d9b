//! Webhooks over TLS.

use std::sync::Arc;

use polybus_patterns::monitor::{Alert, AlertSink, Webhook};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio_rustls::TlsAcceptor;

use crate::{SECRET, server::Receiver};

/// An authority, and a server with a certificate of it for this name.
fn authority(name: &str) -> (String, TlsAcceptor) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let server = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    (issuer.pem(), Arc::new(server).into())
}

#[tokio::test]
async fn an_authority_that_is_trusted_and_others() {
    let (pem, acceptor) = authority("localhost");
    let (other, _) = authority("localhost");
    let receiver = Receiver::start([], Some(acceptor)).await;
    let url = format!("https://u:t0psecret@localhost:{}/t0psecret", receiver.port);
    let webhook = || Webhook::new(&url, SECRET).unwrap();
    webhook().certificate_authorities(pem.as_bytes()).unwrap().send(&Alert::sample()).await.unwrap();
    assert_eq!(receiver.received().len(), 1);
    for webhook in [webhook(), webhook().certificate_authorities(other.as_bytes()).unwrap()] {
        let error = webhook.send(&Alert::sample()).await.unwrap_err();
        let text = format!("{error:?}");
        assert!(text.contains("certificate") && !text.contains("t0psecret"), "{text}");
    }
    assert_eq!(receiver.received().len(), 1, "those were told nothing");
    for bad in ["", "no pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        assert!(webhook().certificate_authorities(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn a_certificate_of_another_name_is_not_taken() {
    let (pem, acceptor) = authority("elsewhere.example.com");
    let receiver = Receiver::start([], Some(acceptor)).await;
    let webhook = Webhook::new(&format!("https://localhost:{}/", receiver.port), SECRET).unwrap();
    let webhook = webhook.certificate_authorities(pem.as_bytes()).unwrap();
    assert!(webhook.send(&Alert::sample()).await.is_err());
    assert_eq!(receiver.received().len(), 0);
}
