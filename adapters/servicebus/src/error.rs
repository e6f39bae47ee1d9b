//! Turns the broker's conditions and status codes, and the errors of fe2o3-amqp, into error kinds; nothing else does.

use std::time::Duration;

use fe2o3_amqp::{
    connection::{ConnectionStopReason, OpenError},
    link::{
        DetachError, LinkStateError, ReceiverAttachError, RecvError, SendError, SenderAttachError, SessionStopReason,
    },
    session::BeginError,
    types::{
        definitions::{self, ErrorCondition},
        primitives::Symbol,
    },
};
use polybus_core::{Error, ErrorKind};

use crate::BACKEND;

/// The beginning of the broker's description where a token has expired.
const EXPIRED_TOKEN_PREFIX: &str = "ExpiredToken";
const UNAUTHORIZED: &str = "amqp:unauthorized-access";

/// The kind of an AMQP condition on a connection that is established.
/// <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-amqp-protocol-guide>
pub(crate) fn of_condition(condition: &str) -> ErrorKind {
    let short = condition.strip_prefix("com.microsoft:").unwrap_or(condition);
    match short {
        "amqp:not-found" | "entity-deleted" | "entity-not-found" => ErrorKind::NotFound,
        UNAUTHORIZED => ErrorKind::PermissionDenied,
        // An operator who has disabled an entity for maintenance will enable it again.
        "entity-disabled" => ErrorKind::Unavailable,
        "auth-failed" => ErrorKind::Unauthenticated,
        "amqp:resource-limit-exceeded" | "server-busy" | "quota-exceeded" => ErrorKind::Throttled,
        "amqp:link:message-size-exceeded" => ErrorKind::PayloadTooLarge,
        "message-lock-lost" | "session-lock-lost" | "message-not-found" => ErrorKind::LockLost,
        "entity-already-exists" => ErrorKind::AlreadyExists,
        "amqp:not-implemented" => ErrorKind::Unsupported,
        "amqp:not-allowed"
        | "amqp:invalid-field"
        | "argument-error"
        | "argument-out-of-range"
        | "session-cannot-be-locked" => ErrorKind::InvalidArgument,
        "timeout" | "operation-timeout" => ErrorKind::Timeout,
        "amqp:internal-error"
        | "amqp:link:detach-forced"
        | "amqp:link:stolen"
        | "amqp:connection:forced"
        | "amqp:connection:redirect"
        | "operation-cancelled"
        | "container-close"
        | "amqp:illegal-state" => ErrorKind::Unavailable,
        _ => ErrorKind::Unexpected,
    }
}

/// The condition as text.
pub(crate) fn condition(e: &definitions::Error) -> String {
    match &e.condition {
        ErrorCondition::AmqpError(e) => Symbol::from(e).into_inner(),
        ErrorCondition::ConnectionError(e) => Symbol::from(e).into_inner(),
        ErrorCondition::SessionError(e) => Symbol::from(e).into_inner(),
        ErrorCondition::LinkError(e) => Symbol::from(e).into_inner(),
        ErrorCondition::Custom(symbol) => symbol.as_str().to_owned(),
    }
}

/// The error that the broker has sent.
pub(crate) fn of_peer(e: &definitions::Error, operation: &'static str) -> Error {
    let description = e.description.as_deref();
    // A token expires by the broker's clock. It is no refusal: the next link comes with a new token.
    if description.is_some_and(|d| d.starts_with(EXPIRED_TOKEN_PREFIX)) {
        return lost(operation, "the token ran out before it was renewed").with_context("condition", UNAUTHORIZED);
    }
    of_parts(&condition(e), description, operation)
}

/// Whether the broker has refused the token.
pub(crate) fn is_unauthorized(e: &Error) -> bool {
    e.context("condition") == Some(UNAUTHORIZED)
}

/// The error of a condition and its description.
pub(crate) fn of_parts(condition: &str, description: Option<&str>, operation: &'static str) -> Error {
    let text = description.filter(|d| !d.is_empty()).unwrap_or(condition);
    new(of_condition(condition), operation, text).with_context("condition", condition)
}

/// Whether the broker has closed a link because nothing came over it for ten minutes.
pub(crate) fn is_idle(e: &Error) -> bool {
    e.context("condition") == Some("amqp:link:detach-forced") && e.message().to_ascii_lowercase().contains("idle")
}

/// Whether the broker says that it is busy.
pub(crate) fn is_busy(e: &Error) -> bool {
    let told = e.context("condition") == Some("com.microsoft:server-busy");
    told || e.kind() == ErrorKind::Throttled && matches!(e.context("status"), Some("429" | "503"))
}

/// The error of a status code of `$management` or `$cbs`, where there is no condition.
pub(crate) fn of_status(code: i32, description: &str, operation: &'static str) -> Error {
    let kind = match code {
        400 => ErrorKind::InvalidArgument,
        401 => ErrorKind::Unauthenticated,
        403 => ErrorKind::PermissionDenied,
        404 => ErrorKind::NotFound,
        408 => ErrorKind::Timeout,
        409 => ErrorKind::AlreadyExists,
        410 => ErrorKind::LockLost,
        413 => ErrorKind::PayloadTooLarge,
        429 => ErrorKind::Throttled,
        500 | 502 | 503 | 504 => ErrorKind::Unavailable,
        _ => ErrorKind::Unexpected,
    };
    let text = if description.is_empty() { "the broker gives no reason" } else { description };
    new(kind, operation, text).with_context("status", code)
}

/// The error of an HTTP status that is no success.
/// <https://learn.microsoft.com/rest/api/servicebus/status-and-error-codes>
#[cfg(feature = "rest")]
pub(crate) fn of_http(status: u16, detail: &str, operation: &'static str) -> Error {
    let says = |words: &[&str]| words.iter().any(|word| detail.to_ascii_lowercase().contains(word));
    let kind = match status {
        // "Messaging entity 'q' is currently disabled." or, for one direction, "disabled for Send operations."
        403 if says(&["currently disabled", "disabled for"]) => ErrorKind::Unavailable,
        401 if says(&["claim(s) are required"]) => ErrorKind::PermissionDenied,
        // The service has one code for messages that are too large and for entities that are full.
        403 if says(&["too large", "message size", "maximum size", "maximum message"]) => ErrorKind::PayloadTooLarge,
        403 if says(&["quota", "is full", "size limit"]) => ErrorKind::Throttled,
        410 => ErrorKind::NotFound,
        503 if says(&["busy", "throttl"]) => ErrorKind::Throttled,
        _ => return of_status(i32::from(status), detail, operation),
    };
    new(kind, operation, detail).with_context("status", status)
}

/// An error of connecting.
pub(crate) fn of_open(e: &OpenError, address: &str) -> Error {
    let error = match e {
        OpenError::Io(io) => Error::new(ErrorKind::Unavailable, format!("cannot connect: {io}")),
        OpenError::SaslError { .. } => Error::new(ErrorKind::Unauthenticated, "the broker refused the login"),
        OpenError::ProtocolHeaderMismatch(_) => Error::new(ErrorKind::Unavailable, "the peer does not speak AMQP 1.0"),
        OpenError::RemoteClosedWithError(peer) => of_peer(peer, "connect"),
        other => Error::new(ErrorKind::Unavailable, format!("cannot connect: {other}")),
    };
    finish(error, "connect").with_context("address", address)
}

pub(crate) fn of_begin(e: &BeginError) -> Error {
    lost("begin session", &e.to_string())
}

pub(crate) fn of_sender_attach(e: &SenderAttachError) -> Error {
    match e {
        SenderAttachError::RemoteClosedWithError(peer) => of_peer(peer, "attach"),
        SenderAttachError::SessionStopped(reason) => of_stop(reason, "attach"),
        other => lost("attach", &other.to_string()),
    }
}

pub(crate) fn of_receiver_attach(e: &ReceiverAttachError) -> Error {
    match e {
        ReceiverAttachError::RemoteClosedWithError(peer) => of_peer(peer, "attach"),
        ReceiverAttachError::SessionStopped(reason) => of_stop(reason, "attach"),
        other => lost("attach", &other.to_string()),
    }
}

pub(crate) fn of_send(e: &SendError) -> Error {
    match e {
        SendError::LinkStateError(state) => of_link(state, "publish"),
        SendError::Detached(detached) => of_detach(detached, "publish"),
        SendError::MessageSizeExceeded(told) => {
            let text = format!("message of {} bytes: the broker takes {}", told.size, told.max_size);
            new(ErrorKind::PayloadTooLarge, "publish", text)
                .with_context("size", told.size)
                .with_context("limit", told.max_size)
        }
        other => new(ErrorKind::Unexpected, "publish", other.to_string()),
    }
}

pub(crate) fn of_recv(e: &RecvError, operation: &'static str) -> Error {
    match e {
        RecvError::LinkStateError(state) => of_link(state, operation),
        other => lost(operation, &other.to_string()),
    }
}

fn of_link(e: &LinkStateError, operation: &'static str) -> Error {
    match e {
        LinkStateError::RemoteDetachedWithError(peer) | LinkStateError::RemoteClosedWithError(peer) => {
            of_peer(peer, operation)
        }
        LinkStateError::SessionStopped(reason) => of_stop(reason, operation),
        other => lost(operation, &other.to_string()),
    }
}

fn of_detach(e: &DetachError, operation: &'static str) -> Error {
    match e {
        DetachError::RemoteDetachedWithError(peer) | DetachError::RemoteClosedWithError(peer) => {
            of_peer(peer, operation)
        }
        DetachError::SessionStopped(reason) => of_stop(reason, operation),
        other => lost(operation, &other.to_string()),
    }
}

fn of_stop(reason: &SessionStopReason, operation: &'static str) -> Error {
    match reason {
        SessionStopReason::RemoteEndedWithError(peer) => of_peer(peer, operation),
        SessionStopReason::ConnectionStopped(ConnectionStopReason::RemoteClosedWithError(peer)) => {
            lost(operation, &format!("{}: {}", condition(peer), peer.description.as_deref().unwrap_or("")))
        }
        _ => lost(operation, "the connection or session has ended"),
    }
}

/// The connection, session or link is gone. The next attempt makes a new one.
pub(crate) fn lost(operation: &'static str, why: &str) -> Error {
    new(ErrorKind::Unavailable, operation, format!("connection lost: {why}"))
}

/// No answer came in time. The request may have been carried out.
pub(crate) fn timeout(operation: &'static str, limit: Duration) -> Error {
    finish(Error::no_answer(limit), operation)
}

/// This consumer does not hold the delivery any more.
pub(crate) fn lock_lost(why: &str) -> Error {
    new(ErrorKind::LockLost, "settle", why)
}

/// The error for a delivery that this side knows to be gone.
pub(crate) fn not_held() -> Error {
    lock_lost("the lock has run out, or the message was settled before")
}

/// An error that did not come from fe2o3-amqp.
pub(crate) fn new(kind: ErrorKind, operation: &'static str, message: impl Into<String>) -> Error {
    finish(Error::new(kind, message), operation)
}

fn finish(error: Error, operation: &'static str) -> Error {
    error.of_driver(BACKEND, operation)
}

#[cfg(test)]
mod tests {
    use fe2o3_amqp::types::definitions::AmqpError;
    use polybus_core::RetrySafety;

    use super::*;

    #[test]
    fn conditions() {
        for (condition, kind) in [
            ("amqp:not-found", ErrorKind::NotFound),
            ("amqp:unauthorized-access", ErrorKind::PermissionDenied),
            ("com.microsoft:auth-failed", ErrorKind::Unauthenticated),
            ("com.microsoft:server-busy", ErrorKind::Throttled),
            ("com.microsoft:entity-disabled", ErrorKind::Unavailable),
            ("com.microsoft:message-lock-lost", ErrorKind::LockLost),
            ("amqp:link:message-size-exceeded", ErrorKind::PayloadTooLarge),
            ("amqp:connection:forced", ErrorKind::Unavailable),
            ("amqp:not-allowed", ErrorKind::InvalidArgument),
            ("something:else", ErrorKind::Unexpected),
        ] {
            assert_eq!(of_condition(condition), kind, "{condition}");
        }
    }

    #[cfg(feature = "rest")]
    #[test]
    fn answers_over_http() {
        for (status, detail, kind) in [
            (401, "Unauthorized access. 'Send' claim(s) are required", ErrorKind::PermissionDenied),
            (401, "claim is empty or token is invalid", ErrorKind::Unauthenticated),
            (403, "The message size exceeds the limit", ErrorKind::PayloadTooLarge),
            (403, "The queue's quota has been reached", ErrorKind::Throttled),
            (403, "", ErrorKind::PermissionDenied),
            (403, "Messaging entity 'q' is currently disabled for receive operations.", ErrorKind::Unavailable),
            (
                403,
                "Messaging entity 'sb://n/q' is currently disabled. For more information see",
                ErrorKind::Unavailable,
            ),
            (404, "", ErrorKind::NotFound),
            (410, "", ErrorKind::NotFound),
            (413, "", ErrorKind::PayloadTooLarge),
            (429, "", ErrorKind::Throttled),
            (503, "The server is busy", ErrorKind::Throttled),
            (502, "", ErrorKind::Unavailable),
        ] {
            assert_eq!(of_http(status, detail, "publish").kind(), kind, "{status} {detail}");
        }
    }

    #[test]
    fn standard_and_own_conditions_of_a_peer_are_read_alike() {
        let e = definitions::Error::new(AmqpError::ResourceLimitExceeded, "queue full".to_owned(), None);
        let e = of_peer(&e, "publish");
        assert_eq!((e.kind(), e.retry(), e.message()), (ErrorKind::Throttled, RetrySafety::Safe, "queue full"));
        let over = definitions::Error::new(AmqpError::UnauthorizedAccess, "ExpiredToken: over".to_owned(), None);
        assert_eq!(of_peer(&over, "receive").kind(), ErrorKind::Unavailable);
        let custom = ErrorCondition::Custom(Symbol::from("com.microsoft:session-lock-lost"));
        assert_eq!(of_peer(&definitions::Error::new(custom, None, None), "settle").kind(), ErrorKind::LockLost);
        assert_eq!(of_status(410, "", "settle").kind(), ErrorKind::LockLost);
    }
}
