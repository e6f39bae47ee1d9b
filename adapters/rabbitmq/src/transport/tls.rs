//! TLS with rustls and aws-lc-rs, named here and nowhere else.

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

use crate::{BACKEND, config::Config, transport::sanitizer::stream::Bare};

/// How long a broker may take to look at a client's certificate, beside the way there and back.
const VERDICT: Duration = Duration::from_millis(100);

/// TLS as one driver uses it.
#[derive(Clone)]
pub(crate) struct Tls {
    connector: RustlsConnector,
    /// Whether the broker asks for a client's certificate.
    asks: Arc<AtomicBool>,
}

impl Tls {
    pub(crate) async fn wrap(&self, stream: Bare, host: &str) -> io::Result<Bare> {
        let began = Instant::now();
        let mut stream = stream.into_rustls(&self.connector, host).await?;
        if !self.asks.load(Ordering::Acquire) {
            return Ok(stream);
        }
        // In TLS 1.3 a client is done before the broker has looked at its certificate. Were we to speak at once, the socket's reset could
        // overtake the alert that says why, and a refusal would look like an outage.
        let wait = VERDICT + began.elapsed() * 2;
        match timeout(wait, stream.read(&mut [0])).await {
            Err(_) => Ok(stream),
            Ok(Err(e)) => Err(e),
            Ok(Ok(0)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(Ok(_)) => Err(io::Error::other("this is no AMQP broker: it speaks first")),
        }
    }
}

/// Notes that it was asked.
#[derive(Debug)]
struct Asked {
    resolver: Arc<dyn ResolvesClientCert>,
    asks: Arc<AtomicBool>,
}

impl ResolvesClientCert for Asked {
    fn resolve(&self, issuers: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asks.store(true, Ordering::Release);
        self.resolver.resolve(issuers, schemes)
    }

    fn only_raw_public_keys(&self) -> bool {
        self.resolver.only_raw_public_keys()
    }

    fn has_certs(&self) -> bool {
        self.resolver.has_certs()
    }
}

/// Builds the connector once per driver, so that TLS sessions are resumed. With `cacert` that authority alone is trusted,
/// without it the machine's. `ConfigInvalid` names the file that cannot be used.
pub(crate) fn connector(config: &Config) -> Result<Tls> {
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
            // rustls' text on a bad key says what is wrong with it and shows nothing of it.
            let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| wrong("key", key, e))?;
            builder.with_client_auth_cert(chain, secret).map_err(|e| wrong("key", key, e))?
        }
        None => builder.with_no_client_auth(),
    };
    let asks = Arc::new(AtomicBool::new(false));
    client.client_auth_cert_resolver =
        Arc::new(Asked { resolver: client.client_auth_cert_resolver.clone(), asks: asks.clone() });
    Ok(Tls { connector: Arc::new(client).into(), asks })
}

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
