//! TLS by rustls, with aws-lc-rs as its cryptography. No other file chooses that.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::AsyncReadExt;
use lapin::tcp::RustlsConnector;
use polybus_core::{Error, Result};
use rustls::{
    ClientConfig, RootCertStore, SignatureScheme,
    client::ResolvesClientCert,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use tokio::time::{Instant, timeout};

use crate::{BACKEND, config::RabbitmqConfig, transport::sanitizer::stream::BrokerStream};

/// How long a broker may take to check a client certificate, apart from the round trip.
const CERT_CHECK_TIME: Duration = Duration::from_millis(100);

/// The TLS settings of one driver.
#[derive(Clone)]
pub(crate) struct TlsConnector {
    connector: RustlsConnector,
    /// Whether the broker has asked for a client certificate, in any handshake so far.
    cert_requested: Arc<AtomicBool>,
}

impl TlsConnector {
    /// Does the handshake. If the broker asks for a client certificate, this waits a moment for a refusal.
    pub(crate) async fn wrap(&self, stream: BrokerStream, host: &str) -> io::Result<BrokerStream> {
        let began = Instant::now();
        let mut stream = stream.into_rustls(&self.connector, host).await?;
        if !self.cert_requested.load(Ordering::Acquire) {
            return Ok(stream);
        }
        // In TLS 1.3 the client's handshake is done before the broker has checked the certificate. If the client
        // spoke at once, a reset of the socket could overtake the alert that tells why, and a refusal would look like
        // an outage. So the alert is read first.
        let wait = CERT_CHECK_TIME + began.elapsed() * 2;
        match timeout(wait, stream.read(&mut [0])).await {
            Err(_) => Ok(stream),
            Ok(Err(e)) => Err(e),
            Ok(Ok(0)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(Ok(_)) => Err(io::Error::other("this is no AMQP broker: it speaks first")),
        }
    }
}

/// A resolver of client certificates that records that the broker asked for one.
#[derive(Debug)]
struct CertRequestRecorder {
    resolver: Arc<dyn ResolvesClientCert>,
    cert_requested: Arc<AtomicBool>,
}

impl ResolvesClientCert for CertRequestRecorder {
    fn resolve(&self, issuers: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.cert_requested.store(true, Ordering::Release);
        self.resolver.resolve(issuers, schemes)
    }

    fn only_raw_public_keys(&self) -> bool {
        self.resolver.only_raw_public_keys()
    }

    fn has_certs(&self) -> bool {
        self.resolver.has_certs()
    }
}

/// Builds the connector. It is built once per driver, so that TLS sessions are resumed.
///
/// With `cacert` that authority alone is trusted, and without it the authorities of the machine.
///
/// # Errors
/// `ConfigInvalid` names the file that cannot be used.
pub(crate) fn connector(config: &RabbitmqConfig) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    match &config.cacert {
        Some(path) => {
            for cert in certificates("cacert", path)? {
                roots.add(cert).map_err(|e| wrong("cacert", path, e))?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                return Err(config_error("this machine has no certificate authorities: name one with cacert=FILE"));
            }
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| config_error(format!("TLS: {e}")))?
        .with_root_certificates(roots);
    let mut client = match &config.identity {
        Some((cert, key)) => {
            let chain = certificates("cert", cert)?;
            // The text of rustls on a bad key says what is wrong with it and shows no part of it.
            let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| wrong("key", key, e))?;
            builder.with_client_auth_cert(chain, secret).map_err(|e| wrong("key", key, e))?
        }
        None => builder.with_no_client_auth(),
    };
    let cert_requested = Arc::new(AtomicBool::new(false));
    client.client_auth_cert_resolver = Arc::new(CertRequestRecorder {
        resolver: client.client_auth_cert_resolver.clone(),
        cert_requested: cert_requested.clone(),
    });
    Ok(TlsConnector { connector: Arc::new(client).into(), cert_requested })
}

/// Reads the certificates of a PEM file.
fn certificates(parameter: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(|certs| certs.collect::<std::result::Result<_, _>>())
        .map_err(|e| wrong(parameter, path, e))?;
    if found.is_empty() {
        return Err(wrong(parameter, path, "no certificate in PEM form"));
    }
    Ok(found)
}

fn wrong(parameter: &str, path: &Path, e: impl std::fmt::Display) -> Error {
    config_error(format!("bus URL: {parameter}={}: {e}", path.display()))
}

fn config_error(text: impl Into<String>) -> Error {
    Error::config(text).with_backend(BACKEND)
}
