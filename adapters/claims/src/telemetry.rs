//! The metrics of claims.

#[cfg(feature = "metrics")]
use metrics::counter;

/// Claims by what became of them: checked_in, redeemed, or the reason that they were not. `bytes` were moved.
pub(crate) fn claim(outcome: &'static str, bytes: u64) {
    #[cfg(feature = "metrics")]
    {
        counter!("polybus_claims_total", "outcome" => outcome).increment(1);
        counter!("polybus_claims_bytes_total", "outcome" => outcome).increment(bytes);
    }
    let _ = (outcome, bytes);
}

/// Payloads that a sweep has deleted.
pub(crate) fn swept(deleted: u64) {
    #[cfg(feature = "metrics")]
    counter!("polybus_claims_swept_total").increment(deleted);
    let _ = deleted;
}
