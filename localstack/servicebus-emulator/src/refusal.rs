//! The error of a refused operation: an AMQP condition and a text. HTTP maps the condition to a status.

use std::fmt;

/// A refused operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why, in the service's own terms.
    pub condition: Condition,
    /// A text for people. It follows the service's wording, because some SDKs parse it.
    pub description: String,
}

/// Why something was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Condition {
    /// No such queue, topic, subscription or rule.
    NotFound,
    /// An entity of that name exists.
    AlreadyExists,
    /// The entity cannot do that: a session is missing, a rule is on a queue, messages are forwarded elsewhere.
    NotAllowed,
    /// An argument is invalid.
    InvalidField,
    /// The message is above the entity's limit.
    MessageSizeExceeded,
    /// The entity is full, or there are too many entities.
    QuotaExceeded,
    /// The lock expired, was released, or never existed.
    MessageLockLost,
    /// The session's lock expired or was released.
    SessionLockLost,
    /// Another receiver holds the session.
    SessionCannotBeLocked,
    /// No message of that sequence number.
    MessageNotFound,
    /// The service is too busy; the client may try again later.
    ServerBusy,
    /// The time that the client gave passed without a result.
    Timeout,
    /// The entity is disabled for this direction.
    EntityDisabled,
    /// The key is wrong, or the token has expired or is missing.
    Unauthorized,
}

impl Condition {
    /// The AMQP error condition.
    pub fn symbol(self) -> &'static str {
        match self {
            Self::NotFound => "amqp:not-found",
            Self::AlreadyExists => "com.microsoft:entity-already-exists",
            Self::NotAllowed => "amqp:not-allowed",
            Self::InvalidField => "com.microsoft:argument-error",
            Self::MessageSizeExceeded => "amqp:link:message-size-exceeded",
            Self::QuotaExceeded => "amqp:resource-limit-exceeded",
            Self::MessageLockLost => "com.microsoft:message-lock-lost",
            Self::SessionLockLost => "com.microsoft:session-lock-lost",
            Self::SessionCannotBeLocked => "com.microsoft:session-cannot-be-locked",
            Self::MessageNotFound => "com.microsoft:message-not-found",
            Self::ServerBusy => "com.microsoft:server-busy",
            Self::Timeout => "com.microsoft:timeout",
            Self::EntityDisabled => "com.microsoft:entity-disabled",
            Self::Unauthorized => "amqp:unauthorized-access",
        }
    }

    /// The status of `$management` answers and of HTTP.
    pub fn status(self) -> u16 {
        match self {
            Self::NotFound | Self::MessageNotFound => 404,
            Self::AlreadyExists | Self::SessionCannotBeLocked => 409,
            Self::NotAllowed | Self::InvalidField => 400,
            Self::MessageSizeExceeded => 413,
            Self::QuotaExceeded | Self::EntityDisabled => 403,
            Self::MessageLockLost | Self::SessionLockLost => 410,
            Self::Timeout => 408,
            Self::ServerBusy => 503,
            Self::Unauthorized => 401,
        }
    }
}

impl Refusal {
    /// A refusal with its text.
    pub fn new(condition: Condition, description: impl Into<String>) -> Self {
        Self { condition, description: description.into() }
    }

    /// The JavaScript SDK takes the name from the quotes, so the text keeps the service's wording.
    pub(crate) fn no_entity(address: &str) -> Self {
        Self::new(Condition::NotFound, format!("The messaging entity '{address}' could not be found."))
    }

    pub(crate) fn exists(address: &str) -> Self {
        Self::new(Condition::AlreadyExists, format!("The messaging entity '{address}' already exists."))
    }

    /// <https://github.com/Azure/azure-service-bus-java/issues/354> shows one.
    pub(crate) fn expired_token(until_ms: i64) -> Self {
        let format = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z");
        let until = time::OffsetDateTime::from_unix_timestamp(until_ms.div_euclid(1000)).ok();
        let until = until.and_then(|until| until.format(format).ok()).unwrap_or_default();
        Self::new(Condition::Unauthorized, format!("ExpiredToken: The token is expired. Expiration time: '{until}'."))
    }

    pub(crate) fn lock_lost() -> Self {
        Self::new(
            Condition::MessageLockLost,
            "The lock supplied is invalid. Either the lock expired, or the message has already been removed from the queue.",
        )
    }

    pub(crate) fn busy() -> Self {
        Self::new(Condition::ServerBusy, "The server was unable to process the request; please retry the operation.")
    }

    /// <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-throttling>.
    pub(crate) fn throttled() -> Self {
        Self::new(
            Condition::ServerBusy,
            "The request was terminated because the entity is being throttled. Error code: 50009. Please wait 10 seconds and try again.",
        )
    }

    pub(crate) fn session_lock_lost(session: &str) -> Self {
        Self::new(
            Condition::SessionLockLost,
            format!("The session lock has expired on the session '{session}'. Accept a new session."),
        )
    }
}

/// The refusal of an invalid argument.
pub(crate) fn invalid(description: String) -> Refusal {
    Refusal::new(Condition::InvalidField, description)
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.condition.symbol(), self.description)
    }
}

impl std::error::Error for Refusal {}
