//! One error type for every operation and every broker: what went wrong, and whether trying again can help.

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

/// The result of a polybus operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type BoxedSource = Box<dyn StdError + Send + Sync>;

/// What went wrong, in words that are the same on every broker.
///
/// ```
/// use polybus_core::{Error, ErrorKind};
///
/// fn is_missing(error: &Error) -> bool {
///     matches!(error.kind(), ErrorKind::NotFound)
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The queue, topic, subscription or virtual host does not exist.
    NotFound,
    /// The entity exists already, with other settings.
    AlreadyExists,
    /// Someone else was first: what was read has changed since. Read again, decide again.
    Conflict,
    /// The credentials are right, and lack a permission.
    PermissionDenied,
    /// The credentials are wrong, missing or expired.
    Unauthenticated,
    /// The caller passed something that no broker takes.
    InvalidArgument,
    /// The configuration or the URL is wrong.
    ConfigInvalid,
    /// The encoded message is larger than the broker takes.
    PayloadTooLarge,
    /// This broker cannot do it. Nothing was sent.
    Unsupported,
    /// The broker pushes back: it blocks, throttles, or a quota is used up.
    Throttled,
    /// The broker did not answer in time.
    Timeout,
    /// The broker cannot be reached, or the connection was lost.
    Unavailable,
    /// This consumer no longer holds the delivery. The broker will hand it out again, or has.
    LockLost,
    /// The message cannot be decoded.
    Malformed,
    /// The bus, subscription or publisher was closed.
    Closed,
    /// The broker or a driver did something that polybus does not know.
    Unexpected,
}

impl ErrorKind {
    /// The kind's name as it appears in messages, metrics and reports.
    ///
    /// ```
    /// assert_eq!(polybus_core::ErrorKind::LockLost.as_str(), "LockLost");
    /// ```
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "NotFound",
            ErrorKind::AlreadyExists => "AlreadyExists",
            ErrorKind::Conflict => "Conflict",
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
///
/// ```
/// use polybus_core::{Error, ErrorKind, RetrySafety};
///
/// let error = Error::new(ErrorKind::Timeout, "no answer").may_duplicate();
/// assert_eq!(error.retry(), RetrySafety::MayDuplicate);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RetrySafety {
    /// The same call would fail again.
    Never,
    /// Nothing was done. Calling again has no side effects.
    Safe,
    /// The operation may have been carried out. Calling again with the same id may store the message twice.
    MayDuplicate,
}

/// What went wrong, where, and whether to try again. Cheap to clone, since one failed batch answers every caller.
///
/// `Display` shows kind, message, context and retry safety. It leaves out the underlying error, for which see
/// [`std::error::Error::source`]; `Debug` shows that too. An error never holds a secret.
///
/// ```
/// use polybus_core::{Error, ErrorKind};
///
/// let error = Error::new(ErrorKind::Unavailable, "connection lost").may_duplicate();
/// let error = error.with_context("address", "queue:a");
/// assert_eq!(error.to_string(), "Unavailable: connection lost (address=queue:a, retry=may-duplicate)");
/// ```
#[derive(Clone)]
pub struct Error(Arc<ErrorDetails>);

#[derive(Clone)]
struct ErrorDetails {
    kind: ErrorKind,
    retry: RetrySafety,
    message: String,
    backend: &'static str,
    operation: &'static str,
    context: Vec<(&'static str, String)>,
    copy_kept: bool,
    source: Option<Arc<BoxedSource>>,
}

impl Error {
    /// An error of which [`retry`](Self::retry) is `Never`. [`Error::safe`] and [`Error::may_duplicate`] change that.
    ///
    /// ```
    /// use polybus_core::{Error, ErrorKind, RetrySafety};
    ///
    /// let error = Error::new(ErrorKind::NotFound, "no queue \"payments\"");
    /// assert_eq!((error.kind(), error.retry()), (ErrorKind::NotFound, RetrySafety::Never));
    /// ```
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Arc::new(ErrorDetails {
            kind,
            retry: RetrySafety::Never,
            message: message.into(),
            backend: "",
            operation: "",
            context: Vec::new(),
            copy_kept: false,
            source: None,
        }))
    }

    /// An error of kind `Unsupported`: this broker cannot do it.
    ///
    /// ```
    /// use polybus_core::{Error, ErrorKind};
    ///
    /// assert_eq!(Error::unsupported("this broker has no topics").kind(), ErrorKind::Unsupported);
    /// ```
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// An error of kind `InvalidArgument`: the caller's argument can never work.
    ///
    /// ```
    /// use polybus_core::{Error, ErrorKind};
    ///
    /// assert_eq!(Error::invalid("a key of 300 bytes").kind(), ErrorKind::InvalidArgument);
    /// ```
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    /// An error of kind `ConfigInvalid`: the configuration or the URL is wrong.
    ///
    /// ```
    /// use polybus_core::{Error, ErrorKind};
    ///
    /// assert_eq!(Error::config("max_deliveries must be at least 1").kind(), ErrorKind::ConfigInvalid);
    /// ```
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::ConfigInvalid, message)
    }

    fn edit(mut self, f: impl FnOnce(&mut ErrorDetails)) -> Self {
        f(Arc::make_mut(&mut self.0));
        self
    }

    /// Says that nothing was done, so that calling again has no side effects.
    ///
    /// ```
    /// use polybus_core::{Error, ErrorKind, RetrySafety};
    ///
    /// let error = Error::new(ErrorKind::Unavailable, "connection refused").safe();
    /// assert_eq!(error.retry(), RetrySafety::Safe);
    /// ```
    pub fn safe(self) -> Self {
        self.edit(|e| e.retry = RetrySafety::Safe)
    }

    /// Says that the operation may have been carried out, so that calling again may make a duplicate.
    ///
    /// ```
    /// use polybus_core::{Error, ErrorKind, RetrySafety};
    ///
    /// let error = Error::new(ErrorKind::Unavailable, "connection lost").may_duplicate();
    /// assert_eq!(error.retry(), RetrySafety::MayDuplicate);
    /// ```
    pub fn may_duplicate(self) -> Self {
        self.edit(|e| e.retry = RetrySafety::MayDuplicate)
    }

    /// Names the broker family, for example `rabbitmq`.
    ///
    /// ```
    /// assert_eq!(polybus_core::Error::invalid("no").with_backend("rabbitmq").backend(), "rabbitmq");
    /// ```
    pub fn with_backend(self, backend: &'static str) -> Self {
        self.edit(|e| e.backend = backend)
    }

    /// Names the operation, for example `publish`.
    ///
    /// ```
    /// assert_eq!(polybus_core::Error::invalid("no").with_operation("publish").operation(), "publish");
    /// ```
    pub fn with_operation(self, operation: &'static str) -> Self {
        self.edit(|e| e.operation = operation)
    }

    /// Adds a key and a value that tell where. Never pass a secret.
    ///
    /// ```
    /// let error = polybus_core::Error::invalid("no such day").with_context("field", "date");
    /// assert_eq!(error.context("field"), Some("date"));
    /// ```
    pub fn with_context(self, key: &'static str, value: impl fmt::Display) -> Self {
        self.edit(|e| e.context.push((key, value.to_string())))
    }

    /// Adds where it happened, unless the driver has told it already.
    pub(crate) fn with_place(self, key: &'static str, value: impl fmt::Display) -> Self {
        if self.context(key).is_some() { self } else { self.with_context(key, value) }
    }

    /// Tells that a settlement's copy was made and its original not settled, so the message is there twice.
    ///
    /// Core then goes on with an ack of the original. Repeating the settlement would make a second copy, so an error
    /// that was `Safe` to repeat is `MayDuplicate` from here on; one that is not to be repeated stays so. The error's
    /// text says `copy=kept`.
    ///
    /// ```
    /// use polybus_core::{Error, ErrorKind, RetrySafety};
    ///
    /// let error = Error::new(ErrorKind::Unavailable, "the original was not deleted").safe().with_kept_copy();
    /// assert!(error.is_copy_kept() && error.to_string().contains("copy=kept"));
    /// assert_eq!(error.retry(), RetrySafety::MayDuplicate);
    ///
    /// let lost = Error::new(ErrorKind::LockLost, "the lock has ended").with_kept_copy();
    /// assert_eq!(lost.retry(), RetrySafety::Never);
    /// ```
    pub fn with_kept_copy(self) -> Self {
        self.edit(|e| {
            e.copy_kept = true;
            if e.retry == RetrySafety::Safe {
                e.retry = RetrySafety::MayDuplicate;
            }
        })
    }

    /// Whether a settlement's copy was made and its original not settled: see [`with_kept_copy`](Self::with_kept_copy).
    ///
    /// ```
    /// assert!(!polybus_core::Error::invalid("no").is_copy_kept());
    /// ```
    pub fn is_copy_kept(&self) -> bool {
        self.0.copy_kept
    }

    /// Changes the message.
    #[cfg(feature = "config")]
    pub(crate) fn reworded(self, message: String) -> Self {
        self.edit(|e| e.message = message)
    }

    /// Keeps the underlying error for [`std::error::Error::source`].
    ///
    /// ```
    /// use std::error::Error as _;
    /// use polybus_core::{Error, ErrorKind};
    ///
    /// let cause = std::io::Error::other("socket gone");
    /// let error = Error::new(ErrorKind::Unavailable, "connection lost").with_source(cause);
    /// assert_eq!(error.source().map(|cause| cause.to_string()).as_deref(), Some("socket gone"));
    /// ```
    pub fn with_source(self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        let source = source.into();
        self.edit(|e| e.source = Some(Arc::new(source)))
    }

    /// Names the driver and the operation of a driver's error. One that [`is_transient`](Self::is_transient) becomes
    /// [`RetrySafety::Safe`]; call [`Error::may_duplicate`] afterwards where the operation may have taken effect.
    ///
    /// ```
    /// use polybus_core::{Error, ErrorKind, RetrySafety};
    ///
    /// let error = Error::new(ErrorKind::Throttled, "slow down").of_driver("aws", "publish");
    /// assert_eq!((error.backend(), error.retry()), ("aws", RetrySafety::Safe));
    /// ```
    pub fn of_driver(self, backend: &'static str, operation: &'static str) -> Self {
        let error = self.with_backend(backend).with_operation(operation);
        if error.is_transient() { error.safe() } else { error }
    }

    /// An error of kind `Timeout`: the broker did not answer for this long.
    ///
    /// ```
    /// let error = polybus_core::Error::no_answer(std::time::Duration::from_secs(5));
    /// assert_eq!(error.to_string(), "Timeout: no answer from the broker within 5s");
    /// ```
    pub fn no_answer(limit: Duration) -> Self {
        Self::new(
            ErrorKind::Timeout,
            format!("no answer from the broker within {}", crate::runtime::duration::format(limit)),
        )
    }

    /// What went wrong.
    ///
    /// ```
    /// use polybus_core::{Error, ErrorKind};
    ///
    /// assert_eq!(Error::invalid("no").kind(), ErrorKind::InvalidArgument);
    /// ```
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether calling again can help, and what it may cost.
    ///
    /// ```
    /// use polybus_core::{Error, RetrySafety};
    ///
    /// assert_eq!(Error::invalid("no").retry(), RetrySafety::Never);
    /// ```
    pub fn retry(&self) -> RetrySafety {
        self.0.retry
    }

    /// Whether the trouble passes by itself: the broker is away, slow, or pushes back.
    ///
    /// It does not say what calling again may cost: see [`retry`](Self::retry).
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

    /// The broker family; empty where none was involved.
    ///
    /// ```
    /// assert_eq!(polybus_core::Error::invalid("no").backend(), "");
    /// ```
    pub fn backend(&self) -> &'static str {
        self.0.backend
    }

    /// The operation; empty where it is not known.
    ///
    /// ```
    /// assert_eq!(polybus_core::Error::invalid("no").operation(), "");
    /// ```
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// The message alone, without kind and context.
    ///
    /// ```
    /// assert_eq!(polybus_core::Error::invalid("no such day").message(), "no such day");
    /// ```
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The value of a context key.
    ///
    /// ```
    /// let error = polybus_core::Error::invalid("no").with_context("source", "queue:payments");
    /// assert_eq!((error.context("source"), error.context("address")), (Some("queue:payments"), None));
    /// ```
    pub fn context(&self, key: &str) -> Option<&str> {
        self.0.context.iter().find(|(k, _)| *k == key).map(|(_, v)| v.as_str())
    }

    /// The same error for each of `n` items of a batch that failed as a whole.
    ///
    /// ```
    /// let results = polybus_core::Error::unsupported("purge").for_each_of::<()>(3);
    /// assert!(results.len() == 3 && results.iter().all(Result::is_err));
    /// ```
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
        if e.copy_kept {
            write!(f, "{sep}copy=kept")?;
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
