//! The certificate that the emulator serves TLS with: read from PEM, or generated and self-signed.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// A certificate with its key, ready to serve. A clone refers to the same one.
#[derive(Clone)]
pub struct TlsIdentity {
    acceptor: TlsAcceptor,
    certificate: Arc<str>,
}

impl TlsIdentity {
    /// A certificate chain and its private key, both PEM.
    pub fn from_pem(certificates: &str, key: &str) -> io::Result<Self> {
        let chain = CertificateDer::pem_slice_iter(certificates.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| invalid("the certificate cannot be read", &error))?;
        // The parser's error could contain parts of the key file, so it is not passed on.
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "there is no private key in PEM"))?;
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|config| config.with_no_client_auth().with_single_cert(chain, key))
            .map_err(|error| invalid("certificate and key cannot be used", &error))?;
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), certificate: Arc::from(certificates) })
    }

    /// The same from files.
    pub fn from_files(certificates: &Path, key: &Path) -> io::Result<Self> {
        let read = |path: &Path| {
            std::fs::read_to_string(path)
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
        };
        Self::from_pem(&read(certificates)?, &read(key)?)
    }

    /// A new certificate for localhost, which signs itself.
    pub fn self_signed() -> io::Result<Self> {
        Self::self_signed_for(&[])
    }

    /// The same for these hosts too, such as a namespace's name.
    pub fn self_signed_for(hosts: &[String]) -> io::Result<Self> {
        let local = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let names: Vec<String> = local.iter().chain(hosts).cloned().collect();
        let made = rcgen::generate_simple_self_signed(names).map_err(io::Error::other)?;
        Self::from_pem(&made.cert.pem(), &made.signing_key.serialize_pem())
    }

    /// The certificate in PEM, for clients to trust.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

fn invalid(what: &str, why: &dyn fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_of_its_own_can_be_used() {
        let tls = TlsIdentity::self_signed().unwrap();
        assert!(tls.certificate().starts_with("-----BEGIN CERTIFICATE-----"));
    }

    #[test]
    fn what_is_no_certificate_or_key_is_refused() {
        let good = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (certificate, key) = (good.cert.pem(), good.signing_key.serialize_pem());
        let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap().signing_key.serialize_pem();
        let why = |certificate: &str, key: &str| TlsIdentity::from_pem(certificate, key).unwrap_err().to_string();
        assert!(TlsIdentity::from_pem(&certificate, &key).is_ok());
        assert!(why("", &key).contains("cannot be used"));
        assert!(why(&certificate, "").contains("no private key"));
        assert!(why(&certificate, &other).contains("cannot be used"));
        let missing = TlsIdentity::from_files(Path::new("/none/cert.pem"), Path::new("/none/key.pem")).unwrap_err();
        assert!(missing.to_string().contains("/none/cert.pem"));
    }
}
