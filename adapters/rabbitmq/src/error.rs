//! The one place that turns lapin's errors into kinds.

use std::{io, time::Duration};

use lapin::ErrorKind;
use polybus_core::{Error, Kind};

use crate::BACKEND;

/// What a broker's reply code means once a connection stands. <https://www.rabbitmq.com/amqp-0-9-1-reference#constants>
fn of_code(code: u16, text: &str) -> Kind {
    match code {
        403 => Kind::PermissionDenied,
        404 | 402 | 312 | 313 => Kind::NotFound,
        406 if text.contains("larger than configured max size") => Kind::PayloadTooLarge,
        // A consumer held a delivery beyond `consumer_timeout`: its channel is gone, the next one goes on.
        406 if text.contains("acknowledgement") || text.contains("delivery tag") => Kind::Unavailable,
        406 => Kind::AlreadyExists,
        311 => Kind::PayloadTooLarge,
        405 => Kind::Unavailable,
        506 => Kind::Throttled,
        320 | 541 => Kind::Unavailable,
        530 => Kind::PermissionDenied,
        540 => Kind::Unsupported,
        _ => Kind::Unexpected,
    }
}

/// The reply code and text, where the broker itself closed the channel or connection.
pub(crate) fn reply(e: &lapin::Error) -> Option<(u16, &str)> {
    match e.kind() {
        ErrorKind::ProtocolError(amqp) => Some((amqp.get_id(), amqp.get_message().as_str())),
        _ => None,
    }
}

/// An error of an operation on a connection that stood. Retryable ones are `Safe`: only publishing can be ambiguous, and
/// says so itself.
pub(crate) fn of(e: &lapin::Error, operation: &'static str) -> Error {
    let (kind, message) = match e.kind() {
        ErrorKind::ProtocolError(amqp) => {
            let text = amqp.get_message().as_str();
            (of_code(amqp.get_id(), text), text.to_owned())
        }
        ErrorKind::IOError(_)
        | ErrorKind::RuntimeShutdownError(_)
        | ErrorKind::MissingHeartbeatError
        | ErrorKind::InvalidChannel(_)
        | ErrorKind::InvalidChannelState(..)
        | ErrorKind::InvalidConnectionState(_) => (Kind::Unavailable, format!("connection lost: {e}")),
        ErrorKind::ChannelsLimitReached => (Kind::Throttled, "no channel is free on this connection".to_owned()),
        ErrorKind::AuthProviderError(_) => (Kind::Unauthenticated, "the broker refused the login".to_owned()),
        _ => (Kind::Unexpected, e.to_string()),
    };
    finish(Error::new(kind, message), operation).caused_by(e.clone())
}

/// An error while connecting: the same codes mean other things there.
pub(crate) fn of_connect(e: &lapin::Error, address: &str, vhost: &str) -> Error {
    let error = match (reply(e), e.kind()) {
        (Some((403, _)), _) | (_, ErrorKind::AuthProviderError(_)) => {
            Error::new(Kind::Unauthenticated, "the broker refused user name and password")
        }
        (Some((530, text)), _) if text.contains("not found") => {
            Error::new(Kind::NotFound, format!("virtual host {vhost:?} does not exist"))
        }
        (Some((530, text)), _) if text.contains("limit") => Error::new(Kind::Throttled, text.to_owned()),
        (Some((530, _)), _) => {
            Error::new(Kind::PermissionDenied, format!("this user has no access to virtual host {vhost:?}"))
        }
        (_, ErrorKind::IOError(io)) if io.kind() == io::ErrorKind::InvalidData => {
            Error::new(Kind::Unauthenticated, format!("TLS handshake failed: {io}"))
        }
        (_, ErrorKind::IOError(io)) => Error::new(Kind::Unavailable, format!("cannot connect: {io}")),
        _ => return of(e, "connect").with("address", address),
    };
    finish(error, "connect").with("address", address).caused_by(e.clone())
}

/// Nothing came in time. What was asked for may have been done.
pub(crate) fn timeout(operation: &'static str, limit: Duration) -> Error {
    finish(Error::no_answer(limit), operation)
}

/// The delivery is no longer this consumer's.
pub(crate) fn lock_lost(why: &str) -> Error {
    Error::new(Kind::LockLost, why.to_owned()).backend(BACKEND).operation("settle")
}

/// An error that lapin has no part in.
pub(crate) fn new(kind: Kind, operation: &'static str, message: impl Into<String>) -> Error {
    finish(Error::new(kind, message), operation)
}

fn finish(error: Error, operation: &'static str) -> Error {
    error.of_driver(BACKEND, operation)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use lapin::protocol::AMQPError;
    use polybus_core::Retry;

    use super::*;

    fn protocol(code: u16, text: &str) -> lapin::Error {
        ErrorKind::ProtocolError(AMQPError::from_id(code, text.into()).unwrap()).into()
    }

    #[test]
    fn reply_codes() {
        for (code, text, kind) in [
            (403, "ACCESS_REFUSED - access to queue 'q'", Kind::PermissionDenied),
            (404, "NOT_FOUND - no queue 'q'", Kind::NotFound),
            (406, "PRECONDITION_FAILED - inequivalent arg 'x'", Kind::AlreadyExists),
            (406, "PRECONDITION_FAILED - message size 9 is larger than configured max size 8", Kind::PayloadTooLarge),
            (
                406,
                "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: 1800000 ms",
                Kind::Unavailable,
            ),
            (406, "PRECONDITION_FAILED - unknown delivery tag 7", Kind::Unavailable),
            (320, "CONNECTION_FORCED - broker forced connection closure", Kind::Unavailable),
            (501, "FRAME_ERROR", Kind::Unexpected),
        ] {
            let e = of(&protocol(code, text), "publish");
            assert_eq!((e.kind(), e.backend_name()), (kind, BACKEND), "{code}");
            assert_eq!(e.retry(), if kind == Kind::Unavailable { Retry::Safe } else { Retry::Never });
        }
    }

    #[test]
    fn connecting_reads_the_codes_its_own_way() {
        let of = |code, text: &str| of_connect(&protocol(code, text), "h:1", "v").kind();
        assert_eq!(of(403, "ACCESS_REFUSED - Login was refused"), Kind::Unauthenticated);
        assert_eq!(of(530, "NOT_ALLOWED - vhost v not found"), Kind::NotFound);
        assert_eq!(of(530, "NOT_ALLOWED - access to vhost 'v' refused for user 'u'"), Kind::PermissionDenied);
        assert_eq!(of(530, "NOT_ALLOWED - connection limit (0) is reached"), Kind::Throttled);
    }
}
