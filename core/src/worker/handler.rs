//! What a worker calls for each message.

use std::{borrow::Cow, error::Error as StdError, fmt, time::Duration};

use crate::{message::Envelope, worker::HandlerContext};

/// Handles the messages of one source.
///
/// Three forms fit: a function or closure `Fn(HandlerContext, Envelope) -> impl Future`, [`stateful`] for a closure that needs state,
/// and a type of your own.
///
/// Ok acknowledges the message. An error, a panic and a timeout count as failures: the message comes again after the
/// source's next retry delay, or goes to the dead letters at the last attempt. See [`HandlerError`] for other endings.
///
/// A handler runs on a task of the worker and may run for many messages at once. Its future is dropped at its timeout, and
/// when the worker's drain timeout ends.
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

/// A handler from state and a closure: each message gets a clone of the state.
///
/// The closure must not capture anything; what it needs is in the state. Put what is dear to clone in an `Arc`, several
/// things in a tuple.
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

/// Why a handler did not finish a message, and what becomes of it.
///
/// It is no [`std::error::Error`] itself, so that `?` takes any error, text and boxed errors included; those are retried
/// by the source's policy. The error's text, causes included, becomes the detail of the dead letter, so keep secrets out.
pub struct HandlerError {
    pub(crate) ending: FailureEnding,
    error: BoxedError,
}

/// What a handler's error asks for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum FailureEnding {
    Retry,
    RetryAfter(Duration),
    DeadLetter(Cow<'static, str>),
}

/// The reason of dead letters made by [`HandlerError::permanent`].
pub(crate) const PERMANENT: &str = "permanent";

impl HandlerError {
    /// A failure that the source's retry policy may mend. The same as `?` or `.into()`.
    pub fn new(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { ending: FailureEnding::Retry, error: error.into() }
    }

    /// A failure that no retry mends: dead-lettered at once, with reason `permanent`.
    pub fn permanent(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { ending: FailureEnding::DeadLetter(PERMANENT.into()), error: error.into() }
    }

    /// A failure to be tried again after `delay` instead of the policy's. `max_deliveries` still holds.
    pub fn retry_after(delay: Duration, error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { ending: FailureEnding::RetryAfter(delay), error: error.into() }
    }

    /// Dead-letters the message at once. `reason` is one word for machines, `detail` is for people.
    pub fn dead_letter(reason: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self { ending: FailureEnding::DeadLetter(reason.into()), error: detail.into().into() }
    }

    /// Whether it is dead-lettered without further tries.
    pub fn is_permanent(&self) -> bool {
        matches!(self.ending, FailureEnding::DeadLetter(_))
    }

    /// The error itself.
    pub fn error(&self) -> &(dyn StdError + Send + Sync + 'static) {
        &*self.error
    }
}

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
    fn causes_are_shown() {
        let inner = crate::error::Error::invalid("outer").with_source(std::io::Error::other("inner"));
        assert_eq!(HandlerError::new(inner).to_string(), "InvalidArgument: outer: inner");
    }
}
