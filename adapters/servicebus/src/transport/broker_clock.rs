//! How far the broker's clock is from this machine's, as its answers over HTTP tell.

use parking_lot::Mutex;

use hyper::{HeaderMap, header::DATE};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc2822};

/// The difference between the broker's clock and this machine's.
#[derive(Default)]
pub(crate) struct BrokerClock(Mutex<Option<Duration>>);

impl BrokerClock {
    /// Reads the time of an answer, which may be an error as well.
    pub(crate) fn read(&self, headers: &HeaderMap) {
        let date = headers.get(DATE).and_then(|date| OffsetDateTime::parse(date.to_str().ok()?, &Rfc2822).ok());
        if let Some(date) = date {
            *self.0.lock() = Some(date - OffsetDateTime::now_utc());
        }
    }

    /// How far the broker's clock is ahead, to a second. `None` if the broker has never answered over HTTP.
    pub(crate) fn ahead(&self) -> Option<Duration> {
        *self.0.lock()
    }
}
