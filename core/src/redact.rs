//! Keeps secrets out of what people read.

use url::Url;

/// The URL without password and parameter values; a path, host and user stay readable.
pub(crate) fn url(url: &Url) -> String {
    let mut shown = url.clone();
    if shown.password().is_some() {
        let _ = shown.set_password(Some("***"));
    }
    let names: Vec<String> = url.query_pairs().map(|(k, _)| format!("{k}=***")).collect();
    shown.set_query((!names.is_empty()).then(|| names.join("&")).as_deref());
    shown.set_fragment(None);
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
    }
}
