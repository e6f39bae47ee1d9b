//! How far the broker's clock is from this machine's, as its answers over HTTP tell.

use std::sync::{Mutex, PoisonError};

use hyper::{HeaderMap, header::DATE};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc2822};

/// The broker's clock beside this machine's.
#[derive(Default)]
pub(crate) struct BrokerClock(Mutex<Option<Duration>>);

impl BrokerClock {
    /// Reads the time of an answer, which may be a refusal as well.
    pub(crate) fn read(&self, headers: &HeaderMap) {
        let date = headers.get(DATE).and_then(|date| OffsetDateTime::parse(date.to_str().ok()?, &Rfc2822).ok());
        if let Some(date) = date {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(date - OffsetDateTime::now_utc());
        }
    }

    /// What is to be added to this machine's clock, to a second; `None` if the broker never answered over HTTP.
    pub(crate) fn ahead(&self) -> Option<Duration> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
