//! The one table from the client's errors to those of polybus.

use polybus_core::{Error, ErrorKind};
use redis::RedisError;

use crate::BACKEND;

/// The error of `operation`. A kind that passes by itself is `Safe`; what may have taken effect says `may_duplicate`
/// afterwards.
pub(crate) fn of(e: RedisError, operation: &'static str) -> Error {
    let kind = match (e.code(), e.kind()) {
        (Some("LOCKLOST"), _) => ErrorKind::LockLost,
        (Some("NOGROUP"), _) => ErrorKind::NotFound,
        _ if e.detail() == Some("no such key") => ErrorKind::NotFound,
        (Some("NOPERM"), _) => ErrorKind::PermissionDenied,
        (Some("OOM"), _) => ErrorKind::Throttled,
        (Some("LOADING" | "BUSY" | "READONLY" | "MASTERDOWN" | "MISCONF"), _) => ErrorKind::Unavailable,
        (Some("NOAUTH" | "WRONGPASS"), _) | (_, redis::ErrorKind::AuthenticationFailed) => ErrorKind::Unauthenticated,
        (_, redis::ErrorKind::InvalidClientConfig) => ErrorKind::ConfigInvalid,
        _ if e.is_timeout() => ErrorKind::Timeout,
        _ if e.is_io_error() || e.is_unrecoverable_error() => ErrorKind::Unavailable,
        _ => ErrorKind::Unexpected,
    };
    Error::new(kind, e.to_string()).with_source(e).of_driver(BACKEND, operation)
}

pub(crate) fn new(kind: ErrorKind, text: &str) -> Error {
    Error::new(kind, text).with_backend(BACKEND)
}
