//! TLS with rustls and aws-lc-rs, named here and nowhere else.

use std::{path::Path, sync::Arc};

use lapin::tcp::RustlsConnector;
use polybus_core::{Error, Result};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::{BACKEND, config::Config};

/// Builds the connector once per driver, so that TLS sessions are resumed. With `cacert` that authority alone is trusted,
/// without it the machine's. `ConfigInvalid` names the file that cannot be used.
pub(crate) fn connector(config: &Config) -> Result<RustlsConnector> {
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
    let client = match &config.identity {
        Some((cert, key)) => {
            let chain = certificates("cert", cert)?;
            // rustls' text on a bad key says what is wrong with it and shows nothing of it.
            let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| wrong("key", key, e))?;
            builder.with_client_auth_cert(chain, secret).map_err(|e| wrong("key", key, e))?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(client).into())
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
    Error::config(text).backend(BACKEND)
}
