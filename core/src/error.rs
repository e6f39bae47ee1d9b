//! One error type for every operation and every broker.

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

/// The result of a polybus operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Cause = Box<dyn StdError + Send + Sync>;

/// What went wrong, in words that are the same on every broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The queue, topic, subscription or virtual host does not exist.
    NotFound,
    /// The entity exists already, in another form.
    AlreadyExists,
    /// The credentials are known but lack the right.
    PermissionDenied,
    /// The credentials are wrong, missing or expired.
    Unauthenticated,
    /// The caller passed something that can never work.
    InvalidArgument,
    /// The configuration or the URL is wrong.
    ConfigInvalid,
    /// The encoded message is larger than the broker takes.
    PayloadTooLarge,
    /// This broker cannot do it; nothing was sent.
    Unsupported,
    /// The broker pushes back: blocked, throttled, over quota.
    Throttled,
    /// No answer in time.
    Timeout,
    /// The broker cannot be reached, or the connection was lost.
    Unavailable,
    /// The delivery is no longer held by this consumer; the broker will hand it out again, or has.
    LockLost,
    /// The message cannot be decoded.
    Malformed,
    /// The bus, subscription or publisher was closed.
    Closed,
    /// The broker or a driver did something polybus does not know.
    Unexpected,
}

impl ErrorKind {
    /// The kind's name as it appears in messages, metrics and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "NotFound",
            ErrorKind::AlreadyExists => "AlreadyExists",
            ErrorKind::PermissionDenied => "PermissionDenied",
            ErrorKind::Unauthenticated => "Unauthenticated",
            ErrorKind::InvalidArgument => "InvalidArgument",
            ErrorKind::ConfigInvalid => "ConfigInvalid",
            ErrorKind::PayloadTooLarge => "PayloadTooLarge",
            ErrorKind::Unsupported => "Unsupported",
            ErrorKind::Throttled => "Throttled",
            ErrorKind::Timeout => "Timeout",
            ErrorKind::Unavailable => "Unavailable",
            ErrorKind::LockLost => "LockLost",
            ErrorKind::Malformed => "Malformed",
            ErrorKind::Closed => "Closed",
            ErrorKind::Unexpected => "Unexpected",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether calling again can help, and what it may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RetrySafety {
    /// The same call fails again.
    Never,
    /// Nothing was done: calling again is free of side effects.
    Safe,
    /// The operation may have been carried out: calling again with the same id may store it twice.
    MayDuplicate,
}

/// An error: what, whether to retry, and where. Cheap to clone, since one failed batch answers every caller.
///
/// `Display` leaves the source out; walk [`std::error::Error::source`] for it. No secret ever gets in.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    retry: RetrySafety,
    message: String,
    backend: &'static str,
    operation: &'static str,
    context: Vec<(&'static str, String)>,
    source: Option<Arc<Cause>>,
}

impl Error {
    /// An error that a retry does not mend. See [`Error::safe`] and [`Error::may_duplicate`] for the others.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Arc::new(Inner {
            kind,
            retry: RetrySafety::Never,
            message: message.into(),
            backend: "",
            operation: "",
            context: Vec::new(),
            source: None,
        }))
    }

    /// The capability is missing; nothing was sent.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// The caller's argument can never work.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    /// The configuration or URL is wrong.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::ConfigInvalid, message)
    }

    fn edit(mut self, f: impl FnOnce(&mut Inner)) -> Self {
        f(Arc::make_mut(&mut self.0));
        self
    }

    /// Marks the error as retryable without side effects.
    pub fn safe(self) -> Self {
        self.edit(|e| e.retry = RetrySafety::Safe)
    }

    /// Marks the error as retryable at the risk of a duplicate.
    pub fn may_duplicate(self) -> Self {
        self.edit(|e| e.retry = RetrySafety::MayDuplicate)
    }

    /// Names the broker family, for example `rabbitmq`.
    pub fn with_backend(self, backend: &'static str) -> Self {
        self.edit(|e| e.backend = backend)
    }

    /// Names the operation, for example `publish`.
    pub fn with_operation(self, operation: &'static str) -> Self {
        self.edit(|e| e.operation = operation)
    }

    /// Adds a key and value that tell where. Never pass a secret.
    pub fn with_context(self, key: &'static str, value: impl fmt::Display) -> Self {
        self.edit(|e| e.context.push((key, value.to_string())))
    }

    /// Changes the message.
    pub(crate) fn reworded(self, message: String) -> Self {
        self.edit(|e| e.message = message)
    }

    /// Keeps the underlying error for [`std::error::Error::source`].
    pub fn with_source(self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        let source = source.into();
        self.edit(|e| e.source = Some(Arc::new(source)))
    }

    /// A driver's error: whose, and at what. A kind that passes by itself becomes [`RetrySafety::Safe`]; what may have taken effect says
    /// [`Error::may_duplicate`] afterwards.
    pub fn of_driver(self, backend: &'static str, operation: &'static str) -> Self {
        let error = self.with_backend(backend).with_operation(operation);
        if error.is_transient() { error.safe() } else { error }
    }

    /// The broker said nothing for this long.
    pub fn no_answer(limit: Duration) -> Self {
        Self::new(
            ErrorKind::Timeout,
            format!("no answer from the broker within {}", crate::runtime::duration::format(limit)),
        )
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether calling again can help.
    pub fn retry(&self) -> RetrySafety {
        self.0.retry
    }

    /// Whether the trouble is one that passes by itself: the broker is away, slow, or pushes back.
    ///
    /// It says nothing of what calling again may cost: see [`retry`](Self::retry).
    ///
    /// ```
    /// use polybus_core::{Error, ErrorKind};
    ///
    /// assert!(Error::new(ErrorKind::Unavailable, "connection refused").is_transient());
    /// assert!(!Error::new(ErrorKind::NotFound, "no such queue").is_transient());
    /// ```
    pub fn is_transient(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Throttled)
    }

    /// The broker family, empty where none was involved.
    pub fn backend(&self) -> &'static str {
        self.0.backend
    }

    /// The operation, empty where unknown.
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// The message alone, without kind and context.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The value of a context key.
    pub fn context(&self, key: &str) -> Option<&str> {
        self.0.context.iter().find(|(k, _)| *k == key).map(|(_, v)| v.as_str())
    }

    /// The same error for each of `n` items of a failed batch.
    pub fn for_each_of<T>(self, n: usize) -> Vec<Result<T>> {
        (0..n).map(|_| Err(self.clone())).collect()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let e = &*self.0;
        write!(f, "{}: {}", e.kind, e.message)?;
        let mut sep = " (";
        let places = [("backend", e.backend), ("operation", e.operation)];
        let places = places.iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| (*k, *v));
        for (key, value) in places.chain(e.context.iter().map(|(k, v)| (*k, v.as_str()))) {
            write!(f, "{sep}{key}={value}")?;
            sep = ", ";
        }
        match e.retry {
            RetrySafety::Never => {}
            RetrySafety::Safe => write!(f, "{sep}retry=safe").map(|()| sep = ", ")?,
            RetrySafety::MayDuplicate => write!(f, "{sep}retry=may-duplicate").map(|()| sep = ", ")?,
        }
        if sep == ", " { f.write_str(")") } else { Ok(()) }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        let mut source = StdError::source(self);
        while let Some(cause) = source {
            write!(f, "\n  caused by: {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|e| &***e as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_says_what_where_and_whether_to_retry() {
        let cause = std::io::Error::other("socket gone");
        let e = Error::new(ErrorKind::Unavailable, "connection lost")
            .may_duplicate()
            .with_backend("rabbitmq")
            .with_operation("publish")
            .with_context("address", "queue:payments")
            .with_source(cause);
        assert_eq!(
            e.to_string(),
            "Unavailable: connection lost (backend=rabbitmq, operation=publish, address=queue:payments, retry=may-duplicate)"
        );
        assert!(format!("{e:?}").contains("caused by: socket gone"));
        assert_eq!(Error::invalid("no").to_string(), "InvalidArgument: no");
    }
}
