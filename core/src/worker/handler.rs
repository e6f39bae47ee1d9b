//! The handler that a worker calls for each message, and the errors by which it decides what becomes of a failure.

use std::{borrow::Cow, error::Error as StdError, fmt, time::Duration};

use crate::{Envelope, HandlerContext, Result, worker::WorkerInfo};

/// Handles the messages of one source.
///
/// There are three forms: a function or closure `Fn(HandlerContext, Envelope) -> impl Future`, a closure with state
/// ([`stateful`]), and a type of your own.
///
/// | the result | the message |
/// |---|---|
/// | `Ok` | is acknowledged |
/// | `Err`, a panic, a timeout | comes again after the source's next retry delay; at the last attempt, a dead letter |
/// | [`HandlerError::retry_after`] | comes again after that delay; at the last attempt, a dead letter |
/// | [`HandlerError::permanent`], [`HandlerError::dead_letter`] | becomes a dead letter at once |
///
/// A handler runs on a task of the worker, for many messages at once, and may see a message more than once.
///
/// # Cancel safety
/// The handler's future is dropped at its timeout, when the worker's drain timeout ends, and when the worker's own
/// future is dropped.
///
/// ```
/// use polybus_core::{Envelope, Handler, HandlerContext, HandlerError, stateful};
///
/// struct Payments { db: String }
///
/// impl Handler for Payments {
///     async fn handle(&self, cx: HandlerContext, msg: Envelope) -> Result<(), HandlerError> {
///         println!("{} {} at attempt {}", self.db, msg.id, cx.attempt());
///         Ok(())
///     }
/// }
///
/// async fn function(_cx: HandlerContext, msg: Envelope) -> Result<(), HandlerError> {
///     std::str::from_utf8(&msg.data)?;
///     Ok(())
/// }
///
/// fn takes(_: impl Handler) {}
/// takes(Payments { db: "main".into() });
/// takes(function);
/// takes(|_cx, msg: Envelope| async move {
///     let _: u32 = std::str::from_utf8(&msg.data)?.parse().map_err(HandlerError::permanent)?;
///     Ok(())
/// });
/// takes(stateful(String::from("state"), async |db, _cx, msg| {
///     println!("{db} {}", msg.id);
///     Ok(())
/// }));
/// ```
pub trait Handler: Send + Sync + 'static {
    /// Handles one message.
    fn handle(&self, cx: HandlerContext, msg: Envelope) -> impl Future<Output = Result<(), HandlerError>> + Send;

    /// Looks at the worker's settings, and prepares what the handler needs, before the worker subscribes. An error ends
    /// [`run`](crate::worker::WorkerBuilder::run) with it. Default: `Ok`.
    ///
    /// A handler that wraps another one passes the call on.
    ///
    /// # Errors
    /// Those of the implementation, usually `InvalidArgument` for settings that cannot work.
    ///
    /// # Cancel safety
    /// The future is dropped if the worker is shut down meanwhile.
    ///
    /// ```
    /// use polybus_core::{Envelope, Error, Handler, HandlerContext, HandlerError, Result, worker::WorkerInfo};
    ///
    /// struct InOrder;
    ///
    /// impl Handler for InOrder {
    ///     async fn handle(&self, _cx: HandlerContext, msg: Envelope) -> Result<(), HandlerError> {
    ///         println!("{}", msg.id);
    ///         Ok(())
    ///     }
    ///
    ///     async fn starting(&self, worker: &WorkerInfo) -> Result<()> {
    ///         match worker.settings.ordered {
    ///             true => Ok(()),
    ///             false => Err(Error::invalid(format!("{} is not ordered", worker.source))),
    ///         }
    ///     }
    /// }
    /// ```
    fn starting(&self, _worker: &WorkerInfo) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }
}

impl<F, Fut> Handler for F
where
    F: Fn(HandlerContext, Envelope) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), HandlerError>> + Send,
{
    fn handle(&self, cx: HandlerContext, msg: Envelope) -> impl Future<Output = Result<(), HandlerError>> + Send {
        self(cx, msg)
    }
}

/// A handler made of state and a closure. Each message gets a clone of the state.
///
/// The closure must not capture anything: the state holds what it needs. Put several things in a tuple, and what is
/// costly to clone in an `Arc`.
///
/// ```
/// use polybus_core::{Event, Handler, HandlerError, stateful};
/// # #[derive(serde::Serialize, serde::Deserialize)] struct Payment { amount: u32 }
/// # impl Event for Payment { const TYPE: &'static str = "payment.made"; const VERSION: u32 = 1; }
/// # #[derive(Clone)] struct Db;
/// # impl Db { async fn save(&self, p: Payment) -> std::io::Result<()> { Ok(()) } }
/// # fn is_handler(_: impl Handler) {}
/// # let db = Db;
/// let save = stateful(db, async |db, cx, msg| {
///     let payment = msg.decode::<Payment>().map_err(HandlerError::permanent)?;
///     db.save(payment).await?;
///     println!("saved at attempt {}", cx.attempt());
///     Ok(())
/// });
/// # is_handler(save);
/// # let db = Db;
/// let short = stateful(db, async |db, cx, msg| { db.save(msg.decode::<Payment>()?).await?; Ok(()) });
/// # is_handler(short);
/// ```
pub fn stateful<S, F, Fut>(state: S, f: F) -> impl Handler
where
    S: Clone + Send + Sync + 'static,
    F: Fn(S, HandlerContext, Envelope) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
{
    move |cx: HandlerContext, msg: Envelope| f(state.clone(), cx, msg)
}

type BoxedError = Box<dyn StdError + Send + Sync>;

/// Why a handler failed, and what becomes of its message.
///
/// `?` converts any error into it, text and boxed errors included; those messages are retried by the source's policy.
/// For that it is no [`std::error::Error`] itself.
///
/// The error's text, causes included, becomes the detail of a dead letter (cut at 2 KiB), so keep secrets out of it.
///
/// ```
/// use polybus_core::{Envelope, HandlerContext, HandlerError};
/// use std::time::Duration;
///
/// async fn handle(_cx: HandlerContext, msg: Envelope) -> Result<(), HandlerError> {
///     let text = std::str::from_utf8(&msg.data).map_err(HandlerError::permanent)?; // a dead letter at once
///     if text == "later" {
///         return Err(HandlerError::retry_after(Duration::from_secs(60), "not ready"));
///     }
///     text.parse::<u32>()?; // retried by the source's policy
///     Ok(())
/// }
/// ```
pub struct HandlerError {
    pub(crate) ending: FailureEnding,
    error: BoxedError,
}

/// What a handler's error asks for, before the last attempt.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum FailureEnding {
    Retry,
    RetryAfter(Duration),
    DeadLetter(Cow<'static, str>),
}

/// The reason of the dead letters that [`HandlerError::permanent`] makes.
pub(crate) const PERMANENT: &str = "permanent";

impl HandlerError {
    /// A failure that is retried by the source's policy, as `?` and `.into()` make it.
    ///
    /// ```
    /// use polybus_core::HandlerError;
    ///
    /// let e = HandlerError::new("the bank does not answer");
    /// assert!(!e.is_permanent());
    /// ```
    pub fn new(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        match error.into().downcast::<Carried>() {
            Ok(carried) => carried.0,
            Err(error) => Self { ending: FailureEnding::Retry, error },
        }
    }

    /// A failure that no retry can repair. The message becomes a dead letter at once, with the reason `permanent`.
    ///
    /// On dead letters there is no further place: the message is released.
    ///
    /// ```
    /// use polybus_core::HandlerError;
    ///
    /// let amount = "seven".parse::<u32>().map_err(HandlerError::permanent);
    /// assert!(amount.unwrap_err().is_permanent());
    /// ```
    pub fn permanent(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { ending: FailureEnding::DeadLetter(PERMANENT.into()), ..Self::new(error) }
    }

    /// A failure that is retried after `delay` instead of the policy's. `max_deliveries` still holds.
    ///
    /// A delay longer than the source can do is cut: to `max_hold` on an ordered source, else to the broker's longest.
    ///
    /// ```
    /// use polybus_core::HandlerError;
    /// use std::time::Duration;
    ///
    /// let e = HandlerError::retry_after(Duration::from_secs(3600), "the bank is closed");
    /// assert_eq!(e.to_string(), "the bank is closed");
    /// ```
    pub fn retry_after(delay: Duration, error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { ending: FailureEnding::RetryAfter(delay), ..Self::new(error) }
    }

    /// A failure whose message becomes a dead letter at once. `reason` is one word for machines, `detail` is for
    /// people.
    ///
    /// They are cut at 128 bytes and 2 KiB.
    ///
    /// ```
    /// use polybus_core::HandlerError;
    ///
    /// let e = HandlerError::dead_letter("unknown-currency", "XBT is not configured");
    /// assert!(e.is_permanent());
    /// ```
    pub fn dead_letter(reason: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self { ending: FailureEnding::DeadLetter(reason.into()), error: detail.into().into() }
    }

    /// Whether the message becomes a dead letter without further attempts.
    ///
    /// ```
    /// use polybus_core::HandlerError;
    ///
    /// assert!(HandlerError::permanent("no such account").is_permanent());
    /// ```
    pub fn is_permanent(&self) -> bool {
        matches!(self.ending, FailureEnding::DeadLetter(_))
    }

    /// The reason of the dead letter that the message becomes without further attempts; `None` for a failure that is
    /// retried.
    ///
    /// ```
    /// use polybus_core::HandlerError;
    ///
    /// assert_eq!(HandlerError::permanent("no such account").dead_letter_reason(), Some("permanent"));
    /// assert_eq!(HandlerError::new("the bank does not answer").dead_letter_reason(), None);
    /// ```
    pub fn dead_letter_reason(&self) -> Option<&str> {
        match &self.ending {
            FailureEnding::DeadLetter(reason) => Some(reason),
            _ => None,
        }
    }

    /// The failure as an error of any kind, for what takes nothing else, such as many layers around a tower service.
    /// Made into a `HandlerError` again, it is the same failure: what it asks for is not lost.
    ///
    /// ```
    /// use polybus_core::HandlerError;
    ///
    /// let boxed = HandlerError::permanent("no such account").into_boxed();
    /// assert_eq!(boxed.to_string(), "no such account");
    /// assert!(HandlerError::from(boxed).is_permanent());
    /// ```
    pub fn into_boxed(self) -> Box<dyn StdError + Send + Sync> {
        Box::new(Carried(self))
    }

    /// The error that was given to it, for its causes or for a downcast.
    ///
    /// ```
    /// use polybus_core::HandlerError;
    ///
    /// let e = HandlerError::from(std::io::Error::other("disk full"));
    /// assert!(e.error().is::<std::io::Error>());
    /// ```
    pub fn error(&self) -> &(dyn StdError + Send + Sync + 'static) {
        &*self.error
    }
}

/// A failure on its way through code that knows errors alone.
struct Carried(HandlerError);

impl fmt::Display for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Its text has the causes already.
impl StdError for Carried {}

impl<E: Into<Box<dyn StdError + Send + Sync>>> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self::new(error)
    }
}

/// The error with its causes, on one line.
impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.error)?;
        let mut source = self.error.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.ending)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn question_mark(text: &str) -> Result<u32, HandlerError> {
        let boxed: Result<u32, BoxedError> = Err("boxed".into());
        match text {
            "text" => Err("text")?,
            "string" => Err(String::from("string"))?,
            "boxed" => Ok(boxed?),
            "handler" => Ok(Err(HandlerError::permanent("no"))?),
            "bus" => Err(crate::error::Error::invalid("bus"))?,
            number => Ok(number.parse::<u32>()?),
        }
    }

    #[test]
    fn any_error_becomes_a_retry_and_keeps_its_text() {
        for (text, shown) in [
            ("text", "text"),
            ("string", "string"),
            ("boxed", "boxed"),
            ("bus", "InvalidArgument: bus"),
            ("x", "invalid digit found in string"),
        ] {
            let e = question_mark(text).unwrap_err();
            assert_eq!((e.to_string().as_str(), &e.ending), (shown, &FailureEnding::Retry));
        }
        assert!(question_mark("handler").unwrap_err().is_permanent());
        assert_eq!(question_mark("7").unwrap(), 7);
    }

    #[test]
    fn a_boxed_failure_stays_what_it_is() {
        let io = || std::io::Error::other("disk full");
        let again = |error: HandlerError| HandlerError::from(error.into_boxed());
        let later = Duration::from_secs(7);
        assert_eq!(again(HandlerError::retry_after(later, io())).ending, FailureEnding::RetryAfter(later));
        assert_eq!(again(HandlerError::dead_letter("a", "b")).ending, FailureEnding::DeadLetter("a".into()));
        assert_eq!(again(HandlerError::new(io())).ending, FailureEnding::Retry);
        assert!(again(io().into()).error().is::<std::io::Error>());
        // Whoever makes another failure of it means that.
        let permanent = HandlerError::permanent(HandlerError::new(io()).into_boxed());
        assert!(permanent.is_permanent());
        assert_eq!(permanent.to_string(), "disk full");
        let soon = HandlerError::retry_after(later, HandlerError::permanent(io()).into_boxed());
        assert!(!soon.is_permanent() && soon.error().is::<std::io::Error>());
    }

    #[test]
    fn causes_are_shown() {
        let inner = crate::error::Error::invalid("outer").with_source(std::io::Error::other("inner"));
        assert_eq!(HandlerError::new(inner).to_string(), "InvalidArgument: outer: inner");
    }
}
