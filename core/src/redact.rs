//! Keeps secrets out of what people read.

use url::Url;

/// The URL without password and parameter values; path, host and user stay readable.
///
/// A `@` behind the host means that the password holds a character that ought to be percent-encoded, so that its end was
/// taken for something else: then nothing behind the host is shown.
pub(crate) fn url(url: &Url) -> String {
    let mut shown = url.clone();
    shown.set_fragment(None);
    if shown.cannot_be_a_base() || shown.path().contains('@') || shown.query().is_some_and(|q| q.contains('@')) {
        return format!("{}://***", shown.scheme());
    }
    if shown.password().is_some() {
        let _ = shown.set_password(Some("***"));
    }
    let names: Vec<String> = url.query_pairs().map(|(k, _)| format!("{k}=***")).collect();
    shown.set_query((!names.is_empty()).then(|| names.join("&")).as_deref());
    shown.to_string()
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_secret_survives() {
        let u = url::Url::parse("amqp://bob:s3cret@h:1/v?token=s3cret&x=s3cret#s3cret").unwrap();
        let shown = super::url(&u);
        assert!(!shown.contains("s3cret"), "{shown}");
        assert!(shown.starts_with("amqp://bob:***@h:1/v"));
        for split in ["amqp://bob:12/s3cret@h", "amqp://bob:12?s3cret@h", "amqp:bob:s3cret@h", "amqp://bob:12#s3cret@h"]
        {
            let shown = super::url(&url::Url::parse(split).unwrap());
            assert!(!shown.contains("s3cret"), "{shown}");
        }
    }
}
