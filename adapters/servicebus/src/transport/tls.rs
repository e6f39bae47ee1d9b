//! TLS with rustls and aws-lc-rs. Nothing else names these crates.

use std::{path::Path, sync::Arc};

use polybus_core::{Error, Result};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::config::config_error;

/// Makes the connector, once for each driver, so that TLS sessions are resumed. With `cacert` that authority alone is
/// trusted, without it those of this machine. `ConfigInvalid` names a file that cannot be used.
pub(crate) fn connector(cacert: Option<&Path>) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    match cacert {
        Some(path) => {
            let wrong = |e: &dyn std::fmt::Display| config_error(format!("cacert={}: {e}", path.display()));
            let found: Vec<_> = CertificateDer::pem_file_iter(path)
                .and_then(|certs| certs.collect::<std::result::Result<_, _>>())
                .map_err(|e| wrong(&e))?;
            if found.is_empty() {
                return Err(wrong(&"no certificate in PEM form"));
            }
            for cert in found {
                roots.add(cert).map_err(|e| wrong(&e))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(config_error("this machine has no certificate authorities: name one with cacert=FILE"));
            }
        }
    }
    let client = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| config_error(format!("TLS: {e}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(client).into())
}

/// Makes the TLS handshake on a connected stream.
pub(crate) async fn wrap(tls: &TlsConnector, host: &str, stream: TcpStream) -> Result<TlsStream<TcpStream>, TlsError> {
    let name =
        ServerName::try_from(host.to_owned()).map_err(|e| TlsError::InvalidName(config_error(format!("host: {e}"))))?;
    tls.connect(name, stream).await.map_err(TlsError::Handshake)
}

/// Why a handshake has failed.
pub(crate) enum TlsError {
    InvalidName(Error),
    Handshake(std::io::Error),
}
