//! One request over a connection of its own.

use std::{fmt, future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1::handshake,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use polybus_core::{
    Error, Result,
    time::{OffsetDateTime, format_description::well_known::Rfc2822},
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    net::{TcpStream, lookup_host},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use crate::monitor::SinkError;

/// Where requests go.
pub(super) struct Endpoint {
    host: String,
    port: u16,
    /// The header `Host`.
    authority: HeaderValue,
    /// Path and query.
    target: String,
    login: Option<HeaderValue>,
    /// `None` of `http`.
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// There is nothing that a certificate could be checked by.
    is_without_roots: bool,
}

impl Endpoint {
    /// An error shows nothing of the URL.
    pub(super) fn new(url: &Url) -> Result<Self> {
        let machine = || {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            roots
        };
        Self::trusting(url, machine)
    }

    fn trusting(url: &Url, roots: impl FnOnce() -> RootCertStore) -> Result<Self> {
        let wrong = |text: &str| Error::config(format!("the webhook's URL: {text}"));
        let is_tls = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(wrong("write https:// or http://")),
        };
        // The form that sockets and certificates know: an IPv6 address has no brackets there.
        let host = match url.host().ok_or_else(|| wrong("it has no host"))? {
            Host::Domain(name) => name.to_owned(),
            Host::Ipv4(address) => address.to_string(),
            Host::Ipv6(address) => address.to_string(),
        };
        let port = url.port_or_known_default().unwrap_or(if is_tls { 443 } else { 80 });
        let authority = match (url.host_str().unwrap_or(&host), url.port()) {
            (host, Some(port)) => format!("{host}:{port}"),
            (host, None) => host.to_owned(),
        };
        let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
        let mut is_without_roots = false;
        let tls = match is_tls {
            false => None,
            true => {
                let name = ServerName::try_from(host.clone()).map_err(|_| wrong("TLS knows no such host name"))?;
                let roots = roots();
                is_without_roots = roots.is_empty();
                Some((connector(roots)?, name))
            }
        };
        Ok(Self {
            host,
            port,
            authority: authority.parse().map_err(|_| wrong("it has no host"))?,
            target: format!("{}{query}", url.path()),
            login: login(url).map_err(|()| wrong("its user and password cannot be sent"))?,
            tls,
            is_without_roots,
        })
    }

    /// Trusts these authorities alone.
    pub(super) fn trust(&mut self, pem: &[u8]) -> Result<()> {
        let wrong = |e: &dyn fmt::Display| Error::config(format!("the webhook's certificate authorities: {e}"));
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(pem) {
            roots.add(cert.map_err(|e| wrong(&e))?).map_err(|e| wrong(&e))?;
        }
        if roots.is_empty() {
            return Err(wrong(&"there is no certificate in PEM form"));
        }
        if let Some((tls, _)) = &mut self.tls {
            *tls = connector(roots)?;
        }
        self.is_without_roots = false;
        Ok(())
    }

    /// Refuses an endpoint whose every request would fail.
    pub(super) fn check(&self) -> Result<()> {
        match self.is_without_roots {
            true => Err(Error::config(format!(
                "this machine has no certificate authorities to check {self} by: install them (the package \
                 ca-certificates), set SSL_CERT_FILE, or call certificate_authorities"
            ))),
            false => Ok(()),
        }
    }

    /// Sends a body once. What becomes of it is in the answer's status alone. `limit` is the caller's: no address of
    /// the host has all of it.
    pub(super) async fn post(
        &self,
        headers: impl Iterator<Item = (&'static str, String)>,
        body: Bytes,
        limit: Duration,
    ) -> Result<(), SinkError> {
        let mut request = Request::post(&*self.target)
            .header(HOST, &self.authority)
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, concat!("polybus/", env!("CARGO_PKG_VERSION")));
        if let Some(login) = &self.login {
            request = request.header(AUTHORIZATION, login);
        }
        for (name, value) in headers {
            request = request.header(name, value);
        }
        // The error of one that cannot be built could show its target.
        let request = request.body(Full::new(body));
        let request =
            request.map_err(|_| SinkError::refused(format!("no request to {self} can be made of this URL")))?;
        let failed = |e: &dyn fmt::Display| SinkError::again(format!("{self}: {e}"));
        let addresses = lookup_host((&*self.host, self.port)).await.map_err(|e| failed(&e))?.collect();
        let stream = first_of(addresses, limit, TcpStream::connect).await.map_err(|e| failed(&e))?;
        let answer = match &self.tls {
            None => exchange(TokioIo::new(stream), request).await,
            Some((tls, name)) => {
                let stream = tls.connect(name.clone(), stream).await.map_err(|e| failed(&e))?;
                exchange(TokioIo::new(stream), request).await
            }
        };
        let answer = answer.map_err(|e| failed(&e))?;
        self.judge(answer.status(), answer.headers())
    }

    fn judge(&self, status: StatusCode, headers: &HeaderMap) -> Result<(), SinkError> {
        let code = status.as_u16();
        match code {
            200..=299 => Ok(()),
            408 | 425 | 429 | 500..=599 => {
                let error = SinkError::again(format!("{self} answered {code}"));
                Err(match retry_after(headers, OffsetDateTime::now_utc()) {
                    Some(wait) => error.after(wait),
                    None => error,
                })
            }
            300..=399 => Err(SinkError::refused(format!("{self} answered {code}, and redirects are not followed"))),
            _ => Err(SinkError::refused(format!("{self} answered {code}"))),
        }
    }
}

/// Host and port: the one thing that may be shown.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, .. } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// Connects to the first address that answers. Where there are several, each has the same share of the time, and one is
/// left for the request: one that answers nothing, as IPv6 behind a firewall, leaves time for the next.
async fn first_of<T, F: Future<Output = io::Result<T>>>(
    addresses: Vec<SocketAddr>,
    limit: Duration,
    connect: impl Fn(SocketAddr) -> F,
) -> io::Result<T> {
    let share = match addresses.len() {
        0 | 1 => limit,
        n => limit / u32::try_from(n).unwrap_or(u32::MAX).saturating_add(1),
    };
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in addresses {
        failed = match timeout(share, connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(e)) => e,
            Err(_) => io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {share:?}")),
        };
    }
    Err(failed)
}

/// User and password of the URL as basic authentication.
fn login(url: &Url) -> Result<Option<HeaderValue>, ()> {
    let (user, password) = (url.username(), url.password());
    if user.is_empty() && password.is_none() {
        return Ok(None);
    }
    let mut pair: Vec<u8> = percent_decode_str(user).collect();
    pair.push(b':');
    pair.extend(percent_decode_str(password.unwrap_or_default()));
    let mut value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(pair))).map_err(drop)?;
    value.set_sensitive(true);
    Ok(Some(value))
}

fn connector(roots: RootCertStore) -> Result<TlsConnector> {
    let client = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::config(format!("TLS: {e}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(client).into())
}

/// One request and the head of its answer. The connection ends with this future.
async fn exchange<I>(io: I, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = handshake(io).await?;
    let mut driving = JoinSet::new();
    driving.spawn(connection);
    sender.send_request(request).await
}

/// How long the answer says to wait: seconds, or until a time.
fn retry_after(headers: &HeaderMap, now: OffsetDateTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = OffsetDateTime::parse(text, &Rfc2822).ok()?;
    Duration::try_from(until - now).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let now = OffsetDateTime::from_unix_timestamp(1_445_412_480).unwrap(); // Wed, 21 Oct 2015 07:28:00 GMT
        let of = |text: &str| retry_after(&[(RETRY_AFTER, text.parse().unwrap())].into_iter().collect(), now);
        assert_eq!(of("120"), Some(Duration::from_secs(120)));
        assert_eq!(of("Wed, 21 Oct 2015 07:28:30 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(of("Wed, 21 Oct 2015 07:27:00 GMT"), None, "that is over");
        assert_eq!(of("soon"), None);
        assert_eq!(of("-1"), None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn hosts_and_logins_of_urls() {
        let of = |url: &str| Endpoint::new(&Url::parse(url).unwrap());
        let endpoint = of("http://us%40er:p%3Ass@[::1]:8080/a/b?c=d#e").unwrap();
        assert_eq!((endpoint.to_string(), &*endpoint.host), ("[::1]:8080".into(), "::1"));
        assert_eq!((endpoint.authority.to_str().unwrap(), &*endpoint.target), ("[::1]:8080", "/a/b?c=d"));
        assert_eq!(endpoint.login.unwrap().to_str().unwrap(), format!("Basic {}", STANDARD.encode("us@er:p:ss")));
        let plain = of("https://hooks.example.com").unwrap();
        assert_eq!((plain.authority.to_str().unwrap(), &*plain.target, plain.port), ("hooks.example.com", "/", 443));
        assert!(plain.tls.is_some() && plain.login.is_none());
        for bad in ["ftp://host/s3cret", "mailto:s3cret", "file:///s3cret"] {
            let Err(error) = of(bad) else { panic!("{bad}") };
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_hangs_leaves_time_for_the_next() {
        let address = |n: u8| SocketAddr::from(([127, 0, 0, n], 443));
        let start = tokio::time::Instant::now();
        let connect = async |to: SocketAddr| match to == address(1) {
            true => std::future::pending().await,
            false => Ok(to),
        };
        let limit = Duration::from_secs(9);
        assert_eq!(first_of(vec![address(1), address(2)], limit, connect).await.unwrap(), address(2));
        assert_eq!(start.elapsed(), Duration::from_secs(3));
        assert!(first_of(vec![address(1), address(1)], limit, connect).await.is_err());
        assert!(first_of(Vec::new(), limit, connect).await.is_err());
    }

    #[test]
    fn a_machine_without_authorities_is_refused_where_they_are_needed() {
        let of = |url: &str| Endpoint::trusting(&Url::parse(url).unwrap(), RootCertStore::empty).unwrap();
        let error = of("https://hooks.example.com/t0psecret").check().unwrap_err().to_string();
        assert!(error.contains("no certificate authorities") && !error.contains("t0psecret"), "{error}");
        assert!(of("http://hooks.example.com").check().is_ok());
    }
}
