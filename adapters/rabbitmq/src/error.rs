//! Turns lapin's errors into errors of polybus. No other file does.
//!
//! RabbitMQ tells an error by a reply code and a text. While connecting, [`of_connect`] reads them; on a connection
//! that stands, [`of`] does. The codes are those of <https://www.rabbitmq.com/amqp-0-9-1-reference#constants>, and
//! the texts are needed because RabbitMQ uses one code for many things.
//!
//! | what happened on a standing connection | kind |
//! |---|---|
//! | 404 | `NotFound` |
//! | 403 | `PermissionDenied` |
//! | 403, 404, 405, 406 or 504 with a text that says that a queue is away or taken for now | `Unavailable` |
//! | 402, 312, 313: an invalid path, no route, no consumers | `NotFound` |
//! | 311, or 406 about a message's size | `PayloadTooLarge` |
//! | 406 about an acknowledgement: a delivery was held beyond `consumer_timeout` | `Unavailable` |
//! | 406 about a limit of queues, 506, 530 about a limit | `Throttled` |
//! | 406 about an invalid argument, expiration or user id | `InvalidArgument` |
//! | any other 406: an entity stands with other settings | `AlreadyExists` |
//! | any other 405; 320, 541: the broker's own trouble | `Unavailable` |
//! | any other 530 | `PermissionDenied` |
//! | 540 | `Unsupported` |
//! | a lost connection, channel or heartbeat | `Unavailable` |
//! | no answer within 15 s | `Timeout` |
//! | a delivery whose channel is gone | `LockLost` |
//! | anything else | `Unexpected` |
//!
//! | what happened while connecting | kind |
//! |---|---|
//! | 403: user name or password is wrong | `Unauthenticated` |
//! | 530, the virtual host does not exist | `NotFound` |
//! | 530, a limit of connections or channels is reached | `Throttled` |
//! | any other 530: the user has no access to the virtual host | `PermissionDenied` |
//! | the TLS handshake failed | `Unauthenticated` |
//! | the address cannot be reached, or not in time | `Unavailable` |
//! | any other reply code | as above |
//!
//! `Unavailable`, `Throttled` and `Timeout` are `Safe` to retry here. Only publishing can leave open whether a
//! message was stored, and the publisher says so itself.

use std::{io, time::Duration};

use lapin::ErrorKind as LapinErrorKind;
use polybus_core::{Error, ErrorKind};

use crate::BACKEND;

/// Texts by which RabbitMQ says that it cannot serve a queue now, though the reply code is one for something final: the
/// queue's node or process is down or about to stop, or another consumer has the queue to itself.
///
/// They are the texts of `rabbit_amqqueue`, `rabbit_channel` and `rabbit_access_control`, 3.10 to 4.3:
/// <https://github.com/rabbitmq/rabbitmq-server/blob/v3.10.8/deps/rabbit/src/rabbit_amqqueue.erl#L580>.
const PASSING: [&str; 12] = [
    "is down or inaccessible",
    "process is stopped by supervisor",
    "has crashed and failed to restart",
    "due to timeout",
    "timeout occurred",
    "may be stopping or being demoted",
    "does not have a running local replica",
    "oordinator unavailable",
    "in exclusive use",
    "cannot obtain exclusive access to locked",
    // The broker's authorization backend, such as LDAP or HTTP, does not answer.
    "returned an error",
    "failed authorizing",
];

/// The kind of a reply code on a connection that stands.
///
/// Where the code alone says too little the text decides. Only what is surely gone is `NotFound`, and only what is
/// surely forbidden is `PermissionDenied`: core ends a subscription on which these last, and waits as long as it is
/// `Unavailable`.
fn of_code(code: u16, text: &str) -> ErrorKind {
    let says = |what: &str| text.contains(what);
    match code {
        404 if says("NOT_FOUND - no ") => ErrorKind::NotFound,
        403 | 404 | 405 | 406 | 504 if PASSING.iter().any(|passing| says(passing)) => ErrorKind::Unavailable,
        403 => ErrorKind::PermissionDenied,
        404 | 402 | 312 | 313 => ErrorKind::NotFound,
        406 if says("larger than configured max size") || says("larger than max size") => ErrorKind::PayloadTooLarge,
        // A consumer held a delivery beyond `consumer_timeout`. Its channel is gone, and the consumer goes on with
        // another.
        406 if says("acknowledgement") || says("delivery tag") => ErrorKind::Unavailable,
        406 if says("is reached") => ErrorKind::Throttled,
        406 if says("invalid arg") || says("invalid expiration") || says("user_id property") => {
            ErrorKind::InvalidArgument
        }
        406 => ErrorKind::AlreadyExists,
        311 => ErrorKind::PayloadTooLarge,
        405 => ErrorKind::Unavailable,
        506 => ErrorKind::Throttled,
        // The broker's own trouble: a node stops, a queue's process died, or an operation took too long.
        320 | 541 => ErrorKind::Unavailable,
        530 if says("limit") => ErrorKind::Throttled,
        530 => ErrorKind::PermissionDenied,
        540 => ErrorKind::Unsupported,
        _ => ErrorKind::Unexpected,
    }
}

/// The reply code and text, if the broker itself closed the channel or connection.
pub(crate) fn reply(e: &lapin::Error) -> Option<(u16, &str)> {
    match e.kind() {
        LapinErrorKind::ProtocolError(amqp) => Some((amqp.get_id(), amqp.get_message().as_str())),
        _ => None,
    }
}

/// An error of an operation on a connection that stood. A transient one is `Safe` to retry: only publishing can be
/// ambiguous, and the publisher says so itself.
pub(crate) fn of(e: &lapin::Error, operation: &'static str) -> Error {
    let (kind, message) = match e.kind() {
        LapinErrorKind::ProtocolError(amqp) => {
            let text = amqp.get_message().as_str();
            (of_code(amqp.get_id(), text), text.to_owned())
        }
        LapinErrorKind::IOError(_)
        | LapinErrorKind::RuntimeShutdownError(_)
        | LapinErrorKind::MissingHeartbeatError
        | LapinErrorKind::InvalidChannel(_)
        | LapinErrorKind::InvalidChannelState(..)
        | LapinErrorKind::InvalidConnectionState(_) => (ErrorKind::Unavailable, format!("connection lost: {e}")),
        LapinErrorKind::ChannelsLimitReached => {
            (ErrorKind::Throttled, "no channel is free on this connection".to_owned())
        }
        LapinErrorKind::AuthProviderError(_) => (ErrorKind::Unauthenticated, "the broker refused the login".to_owned()),
        _ => (ErrorKind::Unexpected, e.to_string()),
    };
    finish(Error::new(kind, message), operation).with_source(e.clone())
}

/// An error while connecting, where the reply codes mean other things than later.
///
/// The broker's text is never shown here. It names the user and the virtual host, and in a URL that was split in the
/// wrong place these are parts of a password.
pub(crate) fn of_connect(e: &lapin::Error, address: &str) -> Error {
    let error = match (reply(e), e.kind()) {
        (Some((403, _)), _) | (_, LapinErrorKind::AuthProviderError(_)) => {
            Error::new(ErrorKind::Unauthenticated, "the broker refused user name and password")
        }
        (Some((530, text)), _) if text.contains("not found") => Error::new(
            ErrorKind::NotFound,
            "the virtual host in the bus URL's path does not exist: make it, or mend the path",
        ),
        (Some((530, text)), _) if text.contains("limit") => Error::new(
            ErrorKind::Throttled,
            "the broker has as many connections or channels of this user or virtual host as it is allowed",
        ),
        (Some((530, _)), _) => {
            Error::new(ErrorKind::PermissionDenied, "this user has no access to the virtual host in the bus URL's path")
        }
        (_, LapinErrorKind::IOError(io)) if io.kind() == io::ErrorKind::InvalidData => {
            Error::new(ErrorKind::Unauthenticated, format!("TLS handshake failed: {io}"))
        }
        (_, LapinErrorKind::IOError(io)) => Error::new(ErrorKind::Unavailable, format!("cannot connect: {io}")),
        (Some((code, text)), _) => {
            Error::new(of_code(code, text), format!("the broker refused the connection with reply code {code}"))
        }
        _ => return of(e, "connect").with_context("address", address),
    };
    let error = finish(error, "connect").with_context("address", address);
    if reply(e).is_some() { error } else { error.with_source(e.clone()) }
}

/// The broker did not answer within the limit. It may have done what it was asked for.
pub(crate) fn timeout(operation: &'static str, limit: Duration) -> Error {
    finish(Error::no_answer(limit), operation)
}

/// A delivery that this consumer can no longer settle. `why` is the message.
pub(crate) fn lock_lost(why: &str) -> Error {
    Error::new(ErrorKind::LockLost, why.to_owned()).with_backend(BACKEND).with_operation("settle")
}

/// An error that does not come from lapin.
pub(crate) fn new(kind: ErrorKind, operation: &'static str, message: impl Into<String>) -> Error {
    finish(Error::new(kind, message), operation)
}

/// Adds the backend and the operation, and makes a transient error `Safe`.
fn finish(error: Error, operation: &'static str) -> Error {
    error.of_driver(BACKEND, operation)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use lapin::protocol::AMQPError;
    use polybus_core::RetrySafety;

    use super::*;

    fn protocol(code: u16, text: &str) -> lapin::Error {
        LapinErrorKind::ProtocolError(AMQPError::from_id(code, text.into()).unwrap()).into()
    }

    #[test]
    fn reply_codes() {
        for (code, text, kind) in [
            (403, "ACCESS_REFUSED - access to queue 'q'", ErrorKind::PermissionDenied),
            (404, "NOT_FOUND - no queue 'q'", ErrorKind::NotFound),
            (406, "PRECONDITION_FAILED - inequivalent arg 'x'", ErrorKind::AlreadyExists),
            (
                406,
                "PRECONDITION_FAILED - message size 9 is larger than configured max size 8",
                ErrorKind::PayloadTooLarge,
            ),
            (
                406,
                "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: 1800000 ms",
                ErrorKind::Unavailable,
            ),
            (406, "PRECONDITION_FAILED - unknown delivery tag 7", ErrorKind::Unavailable),
            (320, "CONNECTION_FORCED - broker forced connection closure", ErrorKind::Unavailable),
            (
                404,
                "NOT_FOUND - home node 'a@b' of durable queue 'q' in vhost '/' is down or inaccessible",
                ErrorKind::Unavailable,
            ),
            (404, "NOT_FOUND - queue 'q' in vhost '/' process is stopped by supervisor", ErrorKind::Unavailable),
            (404, "NOT_FOUND - queue 'q' in vhost '/' has crashed and failed to restart", ErrorKind::Unavailable),
            (
                404,
                "NOT_FOUND - failed to perform operation on queue 'q' in vhost '/' due to timeout",
                ErrorKind::Unavailable,
            ),
            (
                404,
                "NOT_FOUND - failed to perform operation on queue 'q' in vhost '/': its master replica <1> may be stopping or being demoted",
                ErrorKind::Unavailable,
            ),
            (
                405,
                "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'q' in vhost '/'",
                ErrorKind::Unavailable,
            ),
            (403, "ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use", ErrorKind::Unavailable),
            (
                403,
                "ACCESS_REFUSED - access to queue 'q' refused, backend http returned an error: timeout",
                ErrorKind::Unavailable,
            ),
            (
                504,
                "CHANNEL_ERROR - queue 'q' in vhost '/' timeout occurred during consume operation",
                ErrorKind::Unavailable,
            ),
            (
                406,
                "PRECONDITION_FAILED - cannot declare queue 'q': queue limit in vhost '/' (1) is reached",
                ErrorKind::Throttled,
            ),
            (
                406,
                "PRECONDITION_FAILED - invalid arg 'x-a' for queue 'q': expected integer",
                ErrorKind::InvalidArgument,
            ),
            (541, "INTERNAL_ERROR - Cannot declare a queue 'q' on node 'a@b': nodedown", ErrorKind::Unavailable),
            (541, "INTERNAL_ERROR", ErrorKind::Unavailable),
            (501, "FRAME_ERROR", ErrorKind::Unexpected),
        ] {
            let e = of(&protocol(code, text), "publish");
            assert_eq!((e.kind(), e.backend()), (kind, BACKEND), "{code}");
            let passes = matches!(kind, ErrorKind::Unavailable | ErrorKind::Throttled);
            assert_eq!(e.retry(), if passes { RetrySafety::Safe } else { RetrySafety::Never });
        }
    }

    #[test]
    fn connecting_reads_the_codes_its_own_way() {
        let of = |code, text: &str| {
            let e = of_connect(&protocol(code, text), "h:1");
            assert!(!format!("{e} {e:?}").contains("s3cret"), "{e:?}");
            e.kind()
        };
        assert_eq!(of(403, "ACCESS_REFUSED - Login was refused"), ErrorKind::Unauthenticated);
        assert_eq!(of(530, "NOT_ALLOWED - vhost s3cret not found"), ErrorKind::NotFound);
        assert_eq!(
            of(530, "NOT_ALLOWED - access to vhost 's3cret' refused for user 's3cret'"),
            ErrorKind::PermissionDenied
        );
        assert_eq!(of(530, "NOT_ALLOWED - connection limit (0) is reached"), ErrorKind::Throttled);
        assert_eq!(
            of(541, "INTERNAL_ERROR - access to vhost 's3cret' refused: vhost 's3cret' is down"),
            ErrorKind::Unavailable
        );
    }
}
