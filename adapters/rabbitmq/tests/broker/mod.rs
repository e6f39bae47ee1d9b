//! Which brokers of the local stack there are.

/// The URL of a broker of the local stack, or `None` with a visible line; a failure if `POLYBUS_REQUIRE` names it.
pub(crate) fn url(broker: &str) -> Option<String> {
    let variable = format!("POLYBUS_{}_URL", broker.to_uppercase());
    let url = std::env::var(&variable).ok().filter(|url| !url.is_empty());
    if url.is_none() {
        let required = std::env::var("POLYBUS_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|s| s.trim() == broker), "{variable} is required, but not set");
        eprintln!("SKIPPED: {variable} is not set");
    }
    url
}
