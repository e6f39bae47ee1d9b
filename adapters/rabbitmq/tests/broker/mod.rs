//! Finds the brokers of the local stack.

/// The URL of a broker, from `POLYBUS_<BROKER>_URL`. Without it the test is skipped, with a visible line, or fails if
/// `POLYBUS_REQUIRE` names the broker.
pub(crate) fn url(broker: &str) -> Option<String> {
    url_in(&format!("POLYBUS_{}_URL", broker.to_uppercase()), broker)
}

/// The same from any variable.
pub(crate) fn url_in(variable: &str, broker: &str) -> Option<String> {
    let url = std::env::var(variable).ok().filter(|url| !url.is_empty());
    if url.is_none() {
        let required = std::env::var("POLYBUS_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|s| s.trim() == broker), "{variable} is required, but not set");
        eprintln!("SKIPPED: {variable} is not set");
    }
    url
}
