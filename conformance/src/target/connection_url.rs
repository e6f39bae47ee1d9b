//! The URL of a target: where a proxy forwards to, and the URL of one more connection.

use polybus_core::{Error, Registry, Result, driver::ConnectUrl};
use url::Url;

use crate::ConnectOverrides;

/// Where the broker of a URL listens.
#[derive(Debug, PartialEq)]
pub(super) enum Upstream {
    /// `host:port`.
    Address(String),
    /// The URL names a host and no port, and its connector has no default port for this scheme.
    PortUnknown(String),
    /// The URL names no host: nothing listens anywhere.
    Nowhere,
}

/// The port is that of the URL, else the scheme's well-known one, else the connector's `default_port`.
pub(super) fn upstream(url: &Url, registry: &Registry) -> Upstream {
    let at = endpoint(url);
    let url = at.as_ref().unwrap_or(url);
    let Some(host) = url.host_str().filter(|h| !h.is_empty() && url.scheme() != "memory") else {
        return Upstream::Nowhere;
    };
    match url.port_or_known_default().or_else(|| registry.default_port(url.scheme())) {
        Some(port) => Upstream::Address(format!("{host}:{port}")),
        None => Upstream::PortUnknown(url.scheme().into()),
    }
}

/// A service's own address, where the URL of the bus names it as a parameter.
fn endpoint(url: &Url) -> Option<Url> {
    let (_, endpoint) = url.query_pairs().find(|(name, _)| name == "endpoint")?;
    Url::parse(&endpoint).ok()
}

/// The URL with the overrides worked in. Its errors never show the URL, which may hold a password.
pub(super) fn with_overrides(url: &str, overrides: &ConnectOverrides) -> Result<String> {
    ConnectUrl::parse(url)?;
    let unfit = || Error::config("this bus URL takes no other host and port, so no proxy can stand before it");
    let mut url = Url::parse(url).map_err(|_| unfit())?;
    if url.scheme() == "memory" && url.host_str().unwrap_or("").is_empty() {
        let query = url.query().map(|q| format!("?{q}")).unwrap_or_default();
        url = Url::parse(&format!("memory://{}{query}", overrides.space)).map_err(|_| unfit())?;
    }
    let mut parameters = overrides.parameters.clone();
    if let Some(through) = overrides.through {
        let mut endpoint = endpoint(&url);
        let at = endpoint.as_mut().unwrap_or(&mut url);
        at.set_ip_host(through.ip()).map_err(|()| unfit())?;
        at.set_port(Some(through.port())).map_err(|()| unfit())?;
        if let Some(endpoint) = endpoint {
            parameters.insert("endpoint".into(), endpoint.into());
        }
    }
    if !parameters.is_empty() {
        let kept: Vec<(String, String)> = url
            .query_pairs()
            .filter(|(k, _)| !parameters.contains_key(&**k))
            .map(|(k, v)| (k.into(), v.into()))
            .collect();
        url.query_pairs_mut().clear().extend_pairs(kept).extend_pairs(&parameters);
    }
    Ok(url.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn overrides_change_host_port_parameters_and_space() {
        let mut o = ConnectOverrides { space: "x-1".into(), ..ConnectOverrides::default() };
        assert_eq!(with_overrides("memory://", &o).unwrap(), "memory://x-1");
        assert_eq!(with_overrides("memory://named", &o).unwrap(), "memory://named");
        o.parameters.insert("max_message_size".into(), "64KiB".into());
        o.through = Some(([127, 0, 0, 1], 9).into());
        let url = with_overrides("aws://?region=r-1&endpoint=http://host:4566", &o).unwrap();
        let endpoint = "endpoint=http%3A%2F%2F127.0.0.1%3A9%2F";
        assert_eq!(url, format!("aws://?region=r-1&{endpoint}&max_message_size=64KiB"));
        let url = with_overrides("amqp://u:p@host:5673/v?a=1&max_message_size=1KiB", &o).unwrap();
        assert_eq!(url, "amqp://u:p@127.0.0.1:9/v?a=1&max_message_size=64KiB");
    }
}
