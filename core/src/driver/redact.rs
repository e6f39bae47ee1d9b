//! Shows URLs without what may be secret in them.

use url::Url;

use crate::driver::pasted_urls;

/// The URL's scheme, host and port. `***` stands for user and password, path, and parameters with their names: if a
/// character of a password was not percent-encoded, a part of the password may be in any of them.
pub(crate) fn url(url: &Url) -> String {
    // A scheme that is no known protocol may be a part of a secret.
    let scheme = pasted_urls::protocol(url.scheme()).unwrap_or("***");
    if is_split(url).is_some() {
        return format!("{scheme}://***");
    }
    let user = if url.username().is_empty() && url.password().is_none() { "" } else { "***@" };
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let path = if matches!(url.path(), "" | "/") { url.path() } else { "/***" };
    let query = if url.query().is_some() { "?***" } else { "" };
    format!("{scheme}://{user}{}{port}{path}{query}", url.host_str().unwrap_or(""))
}

/// Why the URL was split in the wrong places; `None` if it looks right. A character was then not percent-encoded, most
/// likely in a password, and what was taken for the host is a part of it.
pub(crate) fn is_split(url: &Url) -> Option<&'static str> {
    let host = url.host_str().unwrap_or("");
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    let literal = host.starts_with('[') && host.ends_with(']');
    if url.cannot_be_a_base() {
        return Some("// is missing after the scheme");
    }
    if url.fragment().is_some() {
        return Some("a # stands in it");
    }
    if url.path().contains('@') {
        return Some("an @ stands behind the first /");
    }
    // A parameter's value may hold an @ (`management=http://user:password@host`), its name may not.
    let name = |piece: &str| piece.split_once('=').map_or(piece, |(name, _)| name).contains('@');
    if url.query().is_some_and(|query| query.split('&').any(name)) {
        return Some("an @ stands behind the first ?");
    }
    if host.contains(',') {
        return Some("one host is expected: give several a name of their own in DNS, or a load balancer");
    }
    if !literal && !host.bytes().all(plain) {
        return Some("the host holds characters that no host's name has");
    }
    None
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_secret_survives() {
        let shown = |text: &str| super::url(&url::Url::parse(text).unwrap());
        assert_eq!(shown("amqp://s3cret:s3cret@h:1/s3cret?s3cret=s3cret&s3cret"), "amqp://***@h:1/***?***");
        assert_eq!((&*shown("memory://"), &*shown("amqp://[::1]/")), ("memory://", "amqp://[::1]/"));
        for split in [
            "amqp://bob:12/s3cret@h",
            "amqp://bob:12?s3cret@h",
            "amqp:bob:s3cret@h",
            "amqp://bob:12#s3cret@h",
            "amqp://h/#s3cret",
            "amqp://bob%3As3cret%40h",
            "amqp://h,s3cret",
        ] {
            assert_eq!(shown(split), "amqp://***", "{split}");
        }
    }
}
