//! What a call may end with.

use std::{error::Error as StdError, fmt, time::Duration};

use polybus_core::Error;

/// Whether a request was sent, as far as its caller can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sent {
    /// The broker has taken it: somebody may have handled it.
    Yes,
    /// It may have been taken: the broker had not confirmed it.
    Maybe,
    /// It was not: nobody will ever see it.
    No,
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Yes => "it was sent",
            Self::Maybe => "it may have been sent",
            Self::No => "it was not sent",
        })
    }
}

/// Why a call got no answer.
///
/// ```
/// use polybus_patterns::requests::{RequestError, Sent};
///
/// fn may_call_again(error: &RequestError) -> bool {
///     // Whoever handles the request may have done so in all other cases.
///     error.sent() == Sent::No
/// }
/// # let _ = may_call_again;
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum RequestError {
    /// No answer within the call's timeout.
    Timeout {
        /// Whether the request was sent.
        sent: Sent,
        /// The timeout.
        after: Duration,
    },
    /// The other side answers that it cannot.
    Remote {
        /// One word for machines: a [`Refusal`]'s own, or `permanent`, `malformed`, `failed` (all attempts were used
        /// up), `panic`, or the reason of the dead letter that the request became.
        kind: Box<str>,
        /// For people.
        message: Box<str>,
    },
    /// The request was not sent, for this reason.
    Publish(Error),
    /// The answer cannot be read.
    Decode(Error),
    /// As many calls wait as [`max_waiting`](super::RequestsBuilder::max_waiting) allows. Nothing was sent.
    TooManyWaiting {
        /// The limit.
        limit: usize,
    },
    /// The requests were closed, or their reply queue ended with this error, before the answer came.
    Closed {
        /// Whether the request was sent.
        sent: Sent,
        /// Why.
        cause: Error,
    },
}

impl RequestError {
    /// Whether the request was sent. A call may be repeated without a second effect only if it was not.
    ///
    /// ```
    /// use polybus_patterns::requests::{RequestError, Sent};
    ///
    /// assert_eq!(RequestError::TooManyWaiting { limit: 10_000 }.sent(), Sent::No);
    /// ```
    pub fn sent(&self) -> Sent {
        match self {
            Self::Timeout { sent, .. } | Self::Closed { sent, .. } => *sent,
            Self::Remote { .. } | Self::Decode(_) => Sent::Yes,
            Self::Publish(_) | Self::TooManyWaiting { .. } => Sent::No,
        }
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout { sent, after } => write!(f, "no answer to the request within {after:?}; {sent}"),
            Self::Remote { kind, message } => write!(f, "the responder refuses: {kind}: {message}"),
            Self::Publish(e) => write!(f, "the request was not sent: {e}"),
            Self::Decode(e) => write!(f, "the answer cannot be read: {e}"),
            Self::TooManyWaiting { limit } => {
                write!(f, "{limit} calls wait for an answer already: wait for them, or raise max_waiting")
            }
            Self::Closed { sent, cause } => write!(f, "no answers come any more: {cause}; {sent}"),
        }
    }
}

impl StdError for RequestError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Publish(e) | Self::Decode(e) | Self::Closed { cause: e, .. } => e.source(),
            _ => None,
        }
    }
}

/// The error of a responder's handler that is an answer: the caller gets it as [`RequestError::Remote`], and the request
/// is acknowledged. Any other error is retried, or sends the request to the dead letters.
///
/// Inside [`HandlerError::permanent`](polybus_core::HandlerError::permanent) it is both: the caller's answer, and a dead
/// letter.
///
/// ```
/// # use polybus_core::{Event, HandlerError};
/// # use polybus_patterns::requests::Refusal;
/// # struct GetQuote { sku: String }
/// # struct Quote { cents: u64 }
/// fn quote(ask: GetQuote) -> Result<Quote, HandlerError> {
///     match &*ask.sku {
///         "A-7" => Ok(Quote { cents: 1250 }),
///         other => Err(Refusal::new("unknown-sku", format!("there is no {other}")).into()),
///     }
/// }
/// # assert!(quote(GetQuote { sku: "B".into() }).is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    kind: Box<str>,
    message: Box<str>,
}

impl Refusal {
    /// A refusal. `kind` is one word for machines, `message` is for people. Both reach the caller, so keep secrets out.
    ///
    /// ```
    /// let refusal = polybus_patterns::requests::Refusal::new("unknown-sku", "there is no B-3");
    /// assert_eq!(refusal.kind(), "unknown-sku");
    /// ```
    pub fn new(kind: impl Into<Box<str>>, message: impl Into<Box<str>>) -> Self {
        Self { kind: kind.into(), message: message.into() }
    }

    /// One word for machines.
    ///
    /// ```
    /// # use polybus_patterns::requests::Refusal;
    /// assert_eq!(Refusal::new("unknown-sku", "there is no B-3").kind(), "unknown-sku");
    /// ```
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The text for people.
    ///
    /// ```
    /// # use polybus_patterns::requests::Refusal;
    /// assert_eq!(Refusal::new("unknown-sku", "there is no B-3").message(), "there is no B-3");
    /// ```
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.message)
    }
}

impl StdError for Refusal {}
