//! Turns the SDK's errors into polybus' kinds. No other file does.

use std::error::Error as StdError;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sqs::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
    types::BatchResultErrorEntry,
};
use polybus_core::{Error, ErrorKind, RetrySafety};

use crate::BACKEND;

/// The operation that authenticates for the first time. Refused credentials are final there; see [`passing`].
pub(crate) const CONNECT: &str = "connect";

/// The hint for a clock that is off: the retry that signs by the answer's `Date` has not helped.
const CLOCK: &str = "check this machine's clock: it and the service's differ";
const LOGIN: &str = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, AWS_PROFILE, or the role";

/// SQS' code for "too many messages of this queue are in flight".
const OVER_LIMIT: &str = "OverLimit";
/// The hint for it.
pub(crate) const IN_FLIGHT: &str =
    "SQS hands out 120,000 messages of a queue at a time: settle them sooner, or hold fewer (prefetch)";
/// The name of that quota in metrics.
pub(crate) const QUOTA: &str = "in-flight";

/// Kind, retry safety and hint of a service's error code. Codes differ between services and between their protocols.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html>
fn of_code(code: &str, message: &str, status: u16) -> (ErrorKind, RetrySafety, Option<String>) {
    let never = |kind| (kind, RetrySafety::Never, None);
    let hint = |kind, hint: &str| (kind, RetrySafety::Never, Some(hint.to_owned()));
    // A JSON answer has a namespace before the name; an answer of the query protocol has the service. No other prefix
    // may be cut off: without its prefix `KMS.NotFoundException`, a missing key, would read as a missing queue.
    let name = code.rsplit('#').next().unwrap_or(code);
    let name = name.strip_prefix("AWS.SimpleQueueService.").unwrap_or(name);
    let name = name.strip_suffix("Exception").unwrap_or(name);
    let kms = name.strip_prefix("KMS.").or_else(|| name.strip_prefix("KMS")).or_else(|| name.strip_prefix("Kms"));
    if let Some(kms) = kms {
        return of_key(kms);
    }
    match name {
        "QueueDoesNotExist" | "NonExistentQueue" | "NotFound" | "ResourceNotFound" => {
            hint(ErrorKind::NotFound, "check the name, the region and the account, or declare the topology")
        }
        "AccessDenied" | "AuthorizationError" | "OptInRequired" => {
            hint(ErrorKind::PermissionDenied, "check the identity's policies and those of the queue, topic or key")
        }
        "InvalidSignature" | "SignatureDoesNotMatch" if message.contains("valid region") => hint(
            ErrorKind::ConfigInvalid,
            "the endpoint belongs to another region than the one that is signed for: check region",
        ),
        "RequestExpired" | "RequestTimeTooSkewed" => hint(ErrorKind::Unauthenticated, CLOCK),
        "InvalidSignature" | "SignatureDoesNotMatch"
            if message.contains("expired") || message.contains("Signature not yet") =>
        {
            hint(ErrorKind::Unauthenticated, CLOCK)
        }
        "ExpiredToken" | "TokenRefreshRequired" => {
            hint(ErrorKind::Unauthenticated, "the temporary credentials have expired: get new ones")
        }
        "InvalidClientTokenId"
        | "UnrecognizedClient"
        | "InvalidSignature"
        | "SignatureDoesNotMatch"
        | "MissingAuthenticationToken"
        | "IncompleteSignature"
        | "InvalidSecurity"
        | "AuthFailure"
        | "InvalidAccessKeyId" => hint(ErrorKind::Unauthenticated, LOGIN),
        "Throttling"
        | "Throttled"
        | "RequestThrottled"
        | "TooManyRequests"
        | "RequestLimitExceeded"
        | "SlowDown"
        | "PurgeQueueInProgress" => (ErrorKind::Throttled, RetrySafety::Safe, None),
        OVER_LIMIT => (ErrorKind::Throttled, RetrySafety::Safe, Some(IN_FLIGHT.to_owned())),
        "BatchRequestTooLong" | "MessageTooLong" => never(ErrorKind::PayloadTooLarge),
        "InvalidParameterValue" | "InvalidParameter" if message.contains("must be shorter than") => {
            never(ErrorKind::PayloadTooLarge)
        }
        "ReceiptHandleIsInvalid" | "MessageNotInflight" => never(ErrorKind::LockLost),
        "InvalidParameterValue" if is_lost(message) => never(ErrorKind::LockLost),
        "QueueNameExists" | "QueueAlreadyExists" => never(ErrorKind::AlreadyExists),
        "InvalidParameter" if message.contains("already exists") => never(ErrorKind::AlreadyExists),
        "QueueDeletedRecently" | "ConcurrentAccess" => (ErrorKind::Unavailable, RetrySafety::Safe, None),
        "UnsupportedOperation" => never(ErrorKind::Unsupported),
        "InvalidParameter"
        | "InvalidParameterValue"
        | "InvalidMessageContents"
        | "InvalidAttributeName"
        | "InvalidAttributeValue"
        | "Validation"
        | "ValidationError" => never(ErrorKind::InvalidArgument),
        "ServiceUnavailable" => (ErrorKind::Unavailable, RetrySafety::Safe, None),
        _ if status == 429 => (ErrorKind::Throttled, RetrySafety::Safe, None),
        // An emulator answers 501 to a call that it does not serve at all.
        _ if status == 501 => never(ErrorKind::Unsupported),
        "InternalError" | "InternalFailure" => (ErrorKind::Unavailable, RetrySafety::MayDuplicate, None),
        _ if status >= 500 => (ErrorKind::Unavailable, RetrySafety::MayDuplicate, None),
        _ => never(ErrorKind::Unexpected),
    }
}

/// Whether SQS says that the message's visibility timeout has ended, or that another consumer has it.
/// <https://repost.aws/knowledge-center/sqs-invalidparametervalue-errors>
fn is_lost(message: &str) -> bool {
    message.contains("receipt handle has expired") || message.contains("not available for visibility timeout change")
}

/// Kind, retry safety and hint of an error code of KMS, without `KMS` before it. KMS guards the key of the queue or
/// topic; the message was not stored.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html#API_SendMessage_Errors>
fn of_key(code: &str) -> (ErrorKind, RetrySafety, Option<String>) {
    match code {
        "Throttled" | "Throttling" => (ErrorKind::Throttled, RetrySafety::Safe, None),
        "AccessDenied" => {
            let hint = "check the identity's policies and those of the queue, topic or key";
            (ErrorKind::PermissionDenied, RetrySafety::Never, Some(hint.to_owned()))
        }
        "Internal" | "DependencyTimeout" | "KeyUnavailable" | "KMSInternal" => {
            (ErrorKind::Unavailable, RetrySafety::Safe, None)
        }
        // NotFound, Disabled, InvalidState, InvalidKeyUsage, OptInRequired.
        _ => {
            let hint = "check options.aws.kms_key and the state of the key";
            (ErrorKind::ConfigInvalid, RetrySafety::Never, Some(hint.to_owned()))
        }
    }
}

/// Refused credentials are `Unauthenticated` during the connect, and `Unavailable` from then on.
///
/// A process that was let in before need only wait: a token is renewed, a clock is corrected from the answer's `Date`,
/// a rotated key is read anew.
fn passing(e: Error, operation: &'static str) -> Error {
    match (e.kind(), operation) {
        (ErrorKind::Unauthenticated, CONNECT) => e,
        (ErrorKind::Unauthenticated, _) => new(ErrorKind::Unavailable, operation, e.message()).safe(),
        _ => e,
    }
}

fn coded(code: &str, message: &str, status: u16, operation: &'static str) -> Error {
    let (kind, retry, hint) = of_code(code, message, status);
    let mut text = if message.is_empty() { code.to_owned() } else { format!("{code}: {message}") };
    if text.is_empty() {
        text = format!("HTTP status {status} without an error code");
    }
    if let Some(hint) = hint {
        text = format!("{}; {hint}", text.trim_end_matches('.'));
    }
    let error = retried(new(kind, operation, text), retry);
    if code.ends_with(OVER_LIMIT) { error.with_context("quota", QUOTA) } else { error }
}

fn retried(e: Error, retry: RetrySafety) -> Error {
    match retry {
        RetrySafety::Safe => e.safe(),
        RetrySafety::MayDuplicate => e.may_duplicate(),
        _ => e,
    }
}

/// The error of one call. Retryable ones are `Safe` only where the request was surely not carried out.
pub(crate) fn of<E>(e: SdkError<E, HttpResponse>, operation: &'static str) -> Error
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    if let Some(credentials) = find::<CredentialsError>(&e) {
        return of_credentials(credentials, operation);
    }
    let error = match &e {
        SdkError::ServiceError(s) => {
            let (code, message) = (s.err().code().unwrap_or_default(), s.err().message().unwrap_or_default());
            passing(coded(code, message, s.raw().status().as_u16(), operation), operation)
        }
        SdkError::TimeoutError(_) => new(ErrorKind::Timeout, operation, "no answer in time").may_duplicate(),
        SdkError::DispatchFailure(_) if never_sent(&e) => {
            let text = format!("cannot connect: {}; check the region, the endpoint and the network", deepest(&e));
            new(ErrorKind::Unavailable, operation, text).safe()
        }
        SdkError::DispatchFailure(d) if d.is_timeout() => {
            new(ErrorKind::Timeout, operation, "no answer in time").may_duplicate()
        }
        SdkError::DispatchFailure(_) => {
            new(ErrorKind::Unavailable, operation, format!("connection lost: {}", deepest(&e))).may_duplicate()
        }
        SdkError::ResponseError(r) => {
            let status = r.raw().status().as_u16();
            let text = format!("an answer that cannot be read (HTTP status {status}): {}", deepest(&e));
            let kind = if status >= 500 { ErrorKind::Unavailable } else { ErrorKind::Unexpected };
            new(kind, operation, text).may_duplicate()
        }
        _ => new(ErrorKind::Unexpected, operation, format!("the request could not be made: {}", deepest(&e))),
    };
    error.with_source(e)
}

/// Whether AWS refused the credentials of this call, so that new ones are needed.
pub(crate) fn is_refused<E: ProvideErrorMetadata>(e: &SdkError<E, HttpResponse>) -> bool {
    let SdkError::ServiceError(s) = e else { return false };
    let (code, message) = (s.err().code().unwrap_or_default(), s.err().message().unwrap_or_default());
    of_code(code, message, s.raw().status().as_u16()).0 == ErrorKind::Unauthenticated
}

/// The error of one entry of a batch whose call was answered with 200.
pub(crate) fn of_entry(entry: &BatchResultErrorEntry, operation: &'static str) -> Error {
    coded(entry.code(), entry.message().unwrap_or_default(), 0, operation)
}

/// The same from SNS.
pub(crate) fn of_topic_entry(entry: &aws_sdk_sns::types::BatchResultErrorEntry, operation: &'static str) -> Error {
    coded(entry.code(), entry.message().unwrap_or_default(), 0, operation)
}

/// The error of credentials that are missing or cannot be got. A provider that is out of reach is `Unavailable`, as AWS
/// itself would be.
pub(crate) fn of_credentials(e: &CredentialsError, operation: &'static str) -> Error {
    let error = match e {
        CredentialsError::CredentialsNotLoaded(_) => {
            new(ErrorKind::Unauthenticated, operation, format!("no AWS credentials were found: {LOGIN}"))
        }
        CredentialsError::InvalidConfiguration(_) => {
            let text = format!("AWS credentials could not be got: {}; {LOGIN}", deepest(e));
            new(ErrorKind::Unauthenticated, operation, text)
        }
        CredentialsError::ProviderTimedOut(_) => {
            new(ErrorKind::Unavailable, operation, format!("AWS credentials could not be got in time; {LOGIN}")).safe()
        }
        _ => {
            let text = format!("AWS credentials could not be got: {}; {LOGIN}", deepest(e));
            new(ErrorKind::Unavailable, operation, text).safe()
        }
    };
    passing(error, operation)
}

/// The error of a settlement whose delivery this consumer no longer holds.
pub(crate) fn lock_lost(why: &str) -> Error {
    new(ErrorKind::LockLost, "settle", why)
}

/// The error of a request that lacks a required field, which no request of this crate does.
pub(crate) fn not_built(e: impl std::fmt::Display, operation: &'static str) -> Error {
    new(ErrorKind::Unexpected, operation, e.to_string())
}

/// An error that does not come from the SDK.
pub(crate) fn new(kind: ErrorKind, operation: &'static str, message: impl Into<String>) -> Error {
    Error::new(kind, message).with_backend(BACKEND).with_operation(operation)
}

/// Whether the connection was never made, so that nothing can have been sent.
fn never_sent(e: &(dyn StdError + 'static)) -> bool {
    find::<hyper_util::client::legacy::Error>(e).is_some_and(hyper_util::client::legacy::Error::is_connect)
}

fn find<'a, T: StdError + 'static>(e: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(e);
    while let Some(e) = next {
        if let Some(found) = e.downcast_ref::<T>() {
            return Some(found);
        }
        next = e.source();
    }
    None
}

/// The text of the innermost source: those around it only say that something went wrong.
fn deepest(e: &(dyn StdError + 'static)) -> String {
    let mut e = e;
    while let Some(cause) = e.source() {
        e = cause;
    }
    e.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes() {
        for (code, message, status, kind, retry) in [
            ("AWS.SimpleQueueService.NonExistentQueue", "", 400, ErrorKind::NotFound, RetrySafety::Never),
            ("QueueDoesNotExist", "", 400, ErrorKind::NotFound, RetrySafety::Never),
            ("NotFound", "Topic does not exist", 404, ErrorKind::NotFound, RetrySafety::Never),
            ("AccessDeniedException", "", 400, ErrorKind::PermissionDenied, RetrySafety::Never),
            ("AuthorizationError", "", 403, ErrorKind::PermissionDenied, RetrySafety::Never),
            ("ExpiredToken", "", 403, ErrorKind::Unauthenticated, RetrySafety::Never),
            ("InvalidClientTokenId", "", 403, ErrorKind::Unauthenticated, RetrySafety::Never),
            (
                "com.amazon.coral.service#UnrecognizedClientException",
                "",
                400,
                ErrorKind::Unauthenticated,
                RetrySafety::Never,
            ),
            (
                "SignatureDoesNotMatch",
                "Credential should be scoped to a valid region.",
                403,
                ErrorKind::ConfigInvalid,
                RetrySafety::Never,
            ),
            ("SignatureDoesNotMatch", "Signature expired: 2024", 403, ErrorKind::Unauthenticated, RetrySafety::Never),
            ("RequestThrottled", "", 400, ErrorKind::Throttled, RetrySafety::Safe),
            ("ThrottlingException", "", 400, ErrorKind::Throttled, RetrySafety::Safe),
            ("OverLimit", "", 403, ErrorKind::Throttled, RetrySafety::Safe),
            ("ReceiptHandleIsInvalid", "", 400, ErrorKind::LockLost, RetrySafety::Never),
            ("KMS.NotFoundException", "", 400, ErrorKind::ConfigInvalid, RetrySafety::Never),
            ("KmsNotFound", "", 400, ErrorKind::ConfigInvalid, RetrySafety::Never),
            ("KMSNotFound", "", 400, ErrorKind::ConfigInvalid, RetrySafety::Never),
            ("KMS.DisabledException", "", 400, ErrorKind::ConfigInvalid, RetrySafety::Never),
            ("KMS.AccessDeniedException", "", 400, ErrorKind::PermissionDenied, RetrySafety::Never),
            ("KmsThrottled", "", 400, ErrorKind::Throttled, RetrySafety::Safe),
            ("KMS.ThrottlingException", "", 400, ErrorKind::Throttled, RetrySafety::Safe),
            (
                "InvalidParameterValue",
                "Value x for parameter ReceiptHandle is invalid. Reason: Message does not exist or is not available for \
                 visibility timeout change.",
                400,
                ErrorKind::LockLost,
                RetrySafety::Never,
            ),
            (
                "InvalidParameterValue",
                "Value x for parameter ReceiptHandle is invalid. Reason: The receipt handle has expired.",
                400,
                ErrorKind::LockLost,
                RetrySafety::Never,
            ),
            (
                "InvalidParameterValue",
                "Message must be shorter than 262144 bytes.",
                400,
                ErrorKind::PayloadTooLarge,
                RetrySafety::Never,
            ),
            ("InvalidMessageContents", "", 400, ErrorKind::InvalidArgument, RetrySafety::Never),
            ("InternalFailure", "", 500, ErrorKind::Unavailable, RetrySafety::MayDuplicate),
            ("InternalFailure", "Service 'sts' is not enabled", 501, ErrorKind::Unsupported, RetrySafety::Never),
            ("", "", 503, ErrorKind::Unavailable, RetrySafety::MayDuplicate),
            ("SomethingNew", "", 400, ErrorKind::Unexpected, RetrySafety::Never),
        ] {
            let e = coded(code, message, status, "publish");
            assert_eq!((e.kind(), e.retry(), e.backend()), (kind, retry, BACKEND), "{code}");
            assert!(!e.message().is_empty());
        }
    }

    #[test]
    fn credentials_that_are_not_there_and_a_provider_that_is_not() {
        for (e, kind, retry) in [
            (CredentialsError::not_loaded("none"), ErrorKind::Unauthenticated, RetrySafety::Never),
            (
                CredentialsError::invalid_configuration("no such profile"),
                ErrorKind::Unauthenticated,
                RetrySafety::Never,
            ),
            (
                CredentialsError::provider_timed_out(std::time::Duration::from_secs(5)),
                ErrorKind::Unavailable,
                RetrySafety::Safe,
            ),
            (CredentialsError::provider_error("503 from STS"), ErrorKind::Unavailable, RetrySafety::Safe),
            (CredentialsError::unhandled("what is this"), ErrorKind::Unavailable, RetrySafety::Safe),
        ] {
            let error = of_credentials(&e, CONNECT);
            assert_eq!((error.kind(), error.retry()), (kind, retry), "{error}");
            assert!(error.message().contains(LOGIN));
            // After the connect the process waits for credentials.
            let later = of_credentials(&e, "receive");
            assert_eq!((later.kind(), later.retry()), (ErrorKind::Unavailable, RetrySafety::Safe), "{later}");
            assert!(later.message().contains(LOGIN));
        }
    }

    #[test]
    fn what_a_person_can_mend_says_how() {
        for (code, message, word) in [
            ("ExpiredToken", "The security token included in the request is expired", "get new ones"),
            ("AccessDenied", "User is not authorized", "policies"),
            ("QueueDoesNotExist", "The specified queue does not exist.", "the region"),
            ("InvalidClientTokenId", "", "AWS_PROFILE"),
            ("KmsNotFound", "", "kms_key"),
        ] {
            let e = coded(code, message, 400, "publish");
            assert!(e.message().contains(word), "{e}");
        }
    }
}
